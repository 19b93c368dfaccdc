"""A folder of images through ``predict``: the whole command against the sum of its parts.

    python benchmarks/folder.py

The parts run one after another, each over all images: reading and normalising, the network,
clustering, writing. The command does them at the same time. On a processor the parts share the
cores, so that only what leaves one idle is won; beside a GPU, all but the longest part can be.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import Table, finish, percent

from spatialembed.command.bench import in_turns, ratio
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.images.read import read_image
from spatialembed.images.write import write_png
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.cluster import cluster
from spatialembed.method.normalization import network_input
from spatialembed.results.folder import ResultFolder
from spatialembed.types import Embeddings, Instances


def main() -> None:
    options = parsed()
    predictor = load(options.model, device=options.device, engine=options.engine)
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / "images", Path(folder) / "out"
        for i in range(options.images):
            picture = nuclei_field(options.size, options.size, seed=i).image
            write_png(images / f"{i:03d}.png", np.repeat(picture[..., None], 3, axis=2))
        parts = parts_of(predictor, sorted(images.iterdir()), out, options.batch)
        whole = partial(
            predict_folder, predictor, [images], out, batch=options.batch, progress=False
        )
        seconds = in_turns({**parts, "whole": whole}, options.rounds)
    summed = [sum(round_) for round_ in zip(*(seconds[part] for part in parts), strict=True)]
    longest = max(statistics.median(seconds[part]) for part in parts)
    overlap = statistics.median(seconds["whole"]) / longest
    shares = {part: statistics.median(seconds[part]) / statistics.median(summed) for part in parts}
    rate = options.images / statistics.median(seconds["whole"])
    if predictor.device.type == "cuda":
        print(f"{rate:.1f} images a second")
    engine = f"{predictor.engine.name} {predictor.engine.precision}"
    faster = ratio(summed, seconds["whole"])
    title = f"{options.images} images of {options.size} x {options.size} px, {engine}"
    finish(
        f"folder_{predictor.device.type}",
        [
            Table(
                f"A folder: {title}",
                ["", "whole command"],
                [
                    [
                        "times faster than the sum of its parts",
                        str(faster),
                    ],
                    ["time by that of the longest part", f"{overlap:.2f}"],
                ],
            ),
            Table(
                "Share of each part in the sum", [*parts], [[percent(s) for s in shares.values()]]
            ),
        ],
        facts={"seconds": seconds, "images_per_second": rate},
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def parts_of(
    predictor: Predictor, paths: list[Path], out: Path, batch: int
) -> dict[str, Callable[[], object]]:
    """Each part over all images, from what the part before it gives."""
    info = predictor.info

    def read() -> list[tuple[np.ndarray, torch.Tensor]]:
        pixels = [read_image(path) for path in paths]
        return [(image, network_input(image, info.normalization)) for image in pixels]

    items = read()
    inputs = [image for _, image in items]
    stacks = [torch.stack(inputs[i : i + batch]) for i in range(0, len(inputs), batch)]

    def network() -> list[Embeddings]:
        return [predictor.engine(stack) for stack in stacks]

    maps = network()

    def clustered() -> list[Instances]:
        each = (cluster(m, info.thresholds, info.class_names) for m in maps)
        return [instances.numpy() for found in each for instances in found]

    found = clustered()

    def write() -> None:
        with ResultFolder(out, info.class_names) as results:
            for path, (image, _), instances in zip(paths, items, found, strict=True):
                results.add(path.name, image, instances, stem=path.stem)
                results.wait()  # nothing overlaps, and the shared files are written once

    return {"read": read, "network": network, "cluster": clustered, "write": write}


if __name__ == "__main__":
    main()
