"""Would masks that may overlap score better on Cityscapes than one owner a pixel does?

    python benchmarks/overlapping.py --model MODEL --data ROOT --split val

The same maps give three results: one owner a pixel, as ``predict`` gives it; classes that overlap
each other, one owner a pixel in each; and proposals as they are found, before any owner is settled.
The benchmark takes masks that overlap, and matches each detection alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from spatialembed.data.cityscapes import CityscapesDataset, open_cityscapes
from spatialembed.evaluation.cityscapes_ap import ClassOverlaps, average_precision, mask_overlaps
from spatialembed.evaluation.label_metrics import mean
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.method.geometry import embed, precision
from spatialembed.types import Embeddings, Instances

WAYS = ("one owner a pixel", "classes overlap", "all overlap")
Found = tuple[list[np.ndarray], list[int], list[float]]
"""Masks (H, W) bool, classes and scores of the objects of an image."""


def three_ways(maps: Embeddings, options: ClusterOptions) -> Iterator[Found]:
    """What the maps of one image give, in the order of WAYS."""
    yield _masks(cluster(maps, options)[0].numpy())
    by_class = [
        cluster(maps._replace(seed=maps.seed[:, c : c + 1]), options)[0].numpy()
        for c in range(maps.seed.shape[1])
    ]
    for full in (False, True):
        masks: list[np.ndarray] = []
        classes: list[int] = []
        scores: list[float] = []
        for c, found in enumerate(by_class):
            own = _masks(found)[0]
            masks += _members(maps, c, found, own, options) if full else own
            classes += [c] * len(found)
            scores += found.scores.tolist()
        yield masks, classes, scores


def _masks(found: Instances) -> Found:
    masks = [found.mask(i) for i in range(len(found))]
    return masks, found.classes.tolist(), found.scores.tolist()


def _members(
    maps: Embeddings, c: int, found: Instances, own: list[np.ndarray], options: ClusterOptions
) -> list[np.ndarray]:
    """All members of each object of class c, those that a better one owns too."""
    seed = maps.seed[0, c]
    e = embed(maps.offset[0])  # (2, H, W)
    masks = []
    for score, mask in zip(found.scores.tolist(), own, strict=True):
        inside = torch.from_numpy(mask)
        at = int((inside & (seed == score)).flatten().nonzero()[0, 0])  # the pixel it began with
        p = precision(maps.log_precision[0].flatten(1)[:, at])  # (S,)
        d = e - e.flatten(1)[:, at, None, None]  # (2, H, W)
        phi = torch.exp(-(p[0] * d[0] ** 2 + p[-1] * d[1] ** 2))
        members = (seed > options.foreground) & (phi > options.membership)
        lost = int((inside & ~members).sum())
        assert lost <= 0.01 * int(inside.sum()), f"{lost} px of an object are no members of it"
        masks.append((members | inside).numpy())
    return masks


def measured(
    predictor: Predictor, dataset: CityscapesDataset
) -> dict[str, list[dict[str, ClassOverlaps]]]:
    """Of each way the overlaps of all images with their truth."""
    names = dataset.class_names
    images: dict[str, list[dict[str, ClassOverlaps]]] = {way: [] for way in WAYS}
    for i in track(range(len(dataset)), "overlapping", console=Console(stderr=True)):
        ids = dataset.instance_ids(i)
        maps = predictor.embeddings(dataset.image_path(i))
        maps = Embeddings(*(m.detach().float().cpu() for m in maps))
        for way, (masks, classes, scores) in zip(
            WAYS, three_ways(maps, predictor.settings), strict=True
        ):
            found = mask_overlaps(ids, masks, [names[c] for c in classes], scores, names)
            images[way].append(found)
    return images


def table(images: dict[str, list[dict[str, ClassOverlaps]]], names: tuple[str, ...]) -> Table:
    """A row a way: AP and AP50, mean over the classes that occur, and detections."""
    table = Table(title=f"{len(images[WAYS[0]])} images")
    for heading in ("masks", "AP", "AP50", "detections"):
        table.add_column(heading, justify="left" if heading == "masks" else "right")
    for way, of_images in images.items():
        ap = average_precision(of_images, names)  # (C, 10)
        detections = sum(len(image[name].scores) for image in of_images for name in names)
        figures = (mean(ap.mean(axis=1), axis=0), mean(ap[:, 0], axis=0))
        table.add_row(way, *(f"{figure:.4f}" for figure in figures), str(detections))
    return table


def main() -> None:
    """Print the three results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", required=True, help="of the classes of Cityscapes, or some")
    parser.add_argument("--data", required=True, help="Cityscapes root")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--start", type=float, help="instead of the model's own")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    predictor = load(args.model, device=args.device)
    predictor.settings = predictor.options(start=args.start)
    dataset = open_cityscapes(args.data, split=args.split, classes=predictor.info.class_names)
    dataset = dataset.subset(range(len(dataset))[: args.images])
    Console().print(table(measured(predictor, dataset), dataset.class_names))


if __name__ == "__main__":
    main()
