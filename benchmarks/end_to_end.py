"""One image, array in and instances out: ours beside the straightforward way, in one run.

    python benchmarks/end_to_end.py --engines torch compiled

Straightforward: the network as a plain float32 torch module (NCHW, eager), percentiles by numpy, a
clustering that looks at all pixels for every instance. The scene: a generated field of 100 nuclei,
1024 x 2048 px, RGB uint8, which the bundled model segments at its pixel size (scale 1). Both run
the same weights, and in float32 must find the same instances.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import floor
import numpy as np
import torch
from report import Table, finish, percent
from scenes import scene_image

from spatialembed.command.bench import in_turns, ratio
from spatialembed.evaluation.label_metrics import label_ap
from spatialembed.inference import model_file
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.cluster import cluster
from spatialembed.method.labels import relabel
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.normalization import network_input, normalize, to_tensor
from spatialembed.types import Embeddings, Instances

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from plain_cluster import cluster_plain

SAME_PIXELS = 1e-4
"""Share of pixels that may differ in float32, where sums are taken in another order."""


class Plain:
    """The straightforward way."""

    def __init__(self, net: SpatialEmbeddingNet, info: model_file.ModelInfo) -> None:
        self.net, self.info = net.eval(), info

    def normalise(self, image: np.ndarray) -> torch.Tensor:
        return normalize(to_tensor(image), self.info.normalization)[None].contiguous()

    @torch.inference_mode()
    def network(self, images: torch.Tensor) -> Embeddings:
        return self.net(images)

    def cluster(self, maps: Embeddings) -> Instances:
        return cluster_plain(maps, self.info.thresholds, self.info.class_names)[0].numpy()

    def __call__(self, image: np.ndarray) -> Instances:
        return self.cluster(self.network(self.normalise(image)))


def main() -> None:
    options = parsed()
    height, width = options.size
    image = np.repeat(scene_image(height, width, options.instances)[..., None], 3, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        model = at_pixel_size(options.model, Path(folder) / "model")
        plain = Plain(*model_file.load(model))
        ours, starts = {}, {}
        for name in options.engines:
            began = time.perf_counter()
            ours[name] = loaded(model, name, options.threads)
            ours[name](image)
            starts[name] = time.perf_counter() - began
        truth = plain(image)
        check_clustering(plain, image)
        rows_equal = [equality(name, p(image), truth, p) for name, p in ours.items()]
        jobs: dict[str, Callable[[], object]] = {"plain": partial(plain, image)}
        jobs |= {name: partial(p, image) for name, p in ours.items()}
        seconds = in_turns(jobs, options.rounds)
        shares = {"plain": stages_of_plain(plain, image, options.rounds)}
        shares |= {name: stages(p, image, options.rounds) for name, p in ours.items()}
        floors = {name: the_floor(p, (height, width)) for name, p in ours.items()}
    scene = f"{height} x {width} px, {len(truth)} objects"
    finish(
        "end_to_end",
        [
            Table(
                f"End to end, {scene}",
                ["engine", "times faster than plain", "start and first call, by usual calls"],
                [speed_row(name, p, seconds, starts) for name, p in ours.items()],
            ),
            Table("The same instances as plain float32", EQUALITY, rows_equal),
            Table(
                "Share of each stage",
                ["way", *shares["plain"]],
                [[name, *map(percent, share.values())] for name, share in named(shares, ours)],
            ),
            Table(
                "Network against the floor of the machine",
                ["engine", "network / floor", "floor by operations / by bytes"],
                [floor_row(name, p, floors[name], shares, seconds) for name, p in ours.items()],
            ),
        ],
        facts={"seconds": seconds, "start": starts, "shares": shares, "floors": floors},
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["torch:float32", "torch", "compiled"])
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--size", nargs=2, type=int, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def at_pixel_size(model: str, folder: Path) -> Path:
    """The model as one that sees images at their own size."""
    net, info = model_file.load(model)
    return model_file.save(folder, net, replace(info, scale=1.0))


def loaded(model: Path, name: str, threads: int | None) -> Predictor:
    """The predictor of "engine" or "engine:precision"."""
    engine, _, precision = name.partition(":")
    return load(model, engine=engine, precision=precision or "auto", device="cpu", threads=threads)


def label(predictor: Predictor) -> str:
    """What really runs: an engine that does not start gives way to torch."""
    return f"{predictor.engine.name} {predictor.engine.precision}"


def named(shares: dict[str, Any], ours: dict[str, Predictor]) -> list[tuple[str, Any]]:
    return [(label(ours[n]) if n in ours else n, share) for n, share in shares.items()]


# ---------------------------------------------------------------- equal results


EQUALITY = ["engine", "objects", "pixels that differ", "AP50", "AP90"]


def check_clustering(plain: Plain, image: np.ndarray) -> None:
    """From equal maps both clusterings give equal results, to the last bit."""
    maps = plain.network(plain.normalise(image))
    ours = cluster(maps, plain.info.thresholds, plain.info.class_names)[0].numpy()
    theirs = plain.cluster(maps)
    assert np.array_equal(ours.labels, theirs.labels), "the clusterings differ"
    assert np.array_equal(ours.scores, theirs.scores), "the scores differ"


def equality(name: str, found: Instances, truth: Instances, predictor: Predictor) -> list[str]:
    """A row of the second table; in float32 the instances must be the same."""
    ap = label_ap(found.labels, truth.labels, (0.5, 0.9))
    differ = differing(found.labels, truth.labels)
    if predictor.engine.precision == "float32":
        assert len(found) == len(truth), f"{name}: {len(found)} objects, plain {len(truth)}"
        assert differ <= SAME_PIXELS, f"{name}: {differ:.2%} of the pixels differ"
    numbers = (str(len(found)), f"{differ:.4%}", f"{ap[0]:.3f}", f"{ap[1]:.3f}")
    return [label(predictor), *numbers]


def differing(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of pixels that another object owns; an object is the one it overlaps most."""
    pairs = labels.astype(np.int64) * (int(truth.max()) + 1) + truth
    codes, counts = np.unique(pairs, return_counts=True)
    mine, theirs = np.divmod(codes, int(truth.max()) + 1)
    best = np.zeros(int(labels.max()) + 1, np.int64)
    order = np.argsort(counts)  # the largest overlap comes last and stays
    inside = order[mine[order] > 0]
    best[mine[inside]] = theirs[inside]
    assert len(relabel(labels)[1]) == labels.max()
    return float((best[labels] != truth).mean())


# ---------------------------------------------------------------- stages and floor


def stages(predictor: Predictor, image: np.ndarray, rounds: int) -> dict[str, float]:
    """Share of each stage of a prediction."""
    info = predictor.info
    images = network_input(image, info.normalization)[None]
    maps = predictor.engine(images)

    def clustered() -> Instances:
        return cluster(maps, info.thresholds, info.class_names)[0].numpy()

    jobs: dict[str, Callable[[], object]] = {
        "normalise": partial(network_input, image, info.normalization),
        "network": partial(predictor.engine, images),
        "cluster": clustered,
    }
    return as_shares(in_turns(jobs, rounds))


def stages_of_plain(plain: Plain, image: np.ndarray, rounds: int) -> dict[str, float]:
    images = plain.normalise(image)
    maps = plain.network(images)
    jobs: dict[str, Callable[[], object]] = {
        "normalise": partial(plain.normalise, image),
        "network": partial(plain.network, images),
        "cluster": partial(plain.cluster, maps),
    }
    return as_shares(in_turns(jobs, min(rounds, 2)))


def as_shares(seconds: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {name: value / sum(medians.values()) for name, value in medians.items()}


def the_floor(predictor: Predictor, size_hw: tuple[int, int]) -> tuple[float, float]:
    info = predictor.info
    net = SpatialEmbeddingNet(len(info.class_names), info.elliptical, info.network).eval()
    dtype = torch.bfloat16 if predictor.engine.precision == "bfloat16" else torch.float32
    return floor.seconds(net, size_hw, dtype, torch.device("cpu"))


def speed_row(
    name: str, predictor: Predictor, seconds: dict[str, list[float]], starts: dict[str, float]
) -> list[str]:
    usual = statistics.median(seconds[name])
    faster = ratio(seconds["plain"], seconds[name])
    return [label(predictor), str(faster), f"{starts[name] / usual:.1f}"]


def floor_row(
    name: str,
    predictor: Predictor,
    floors: tuple[float, float],
    shares: dict[str, dict[str, float]],
    seconds: dict[str, list[float]],
) -> list[str]:
    network = shares[name]["network"] * statistics.median(seconds[name])
    return [
        label(predictor),
        f"{network / max(floors):.2f}",
        f"{floors[0] / floors[1]:.2f}",
    ]


if __name__ == "__main__":
    main()
