"""Every engine beside the network as plain torch runs it: how much faster, and how near its maps.

    python benchmarks/engines.py
    python benchmarks/engines.py --rounds 1 --data DIR --group-by mosaic

Plain: the network as it was trained, float32, NCHW, operation by operation. The scene: a generated
field of nuclei. With --data, the instances that each engine finds on the held-out images of a
folder too: AP beside that of plain, and the pixels that went to another instance.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import floor
import numpy as np
import torch
from report import Table, finish
from rich.progress import track
from scenes import scene_image
from torch import Tensor

from spatialembed.command.bench import in_turns, ratio
from spatialembed.data.open import select
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.label_metrics import label_ap
from spatialembed.inference import model_file
from spatialembed.inference.engine import Engine, build, torch_engine
from spatialembed.inference.engines.compiled import missing_compiler
from spatialembed.inference.predictor import Predictor
from spatialembed.method.geometry import LOG_SCALE
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.normalization import network_input
from spatialembed.options import DeviceOptions, PartOptions
from spatialembed.types import UNIT, Embeddings

NAMES = [
    "torch:float32", "torch:bfloat16", "compiled:float32", "compiled:bfloat16",
    "onnxruntime:float32", "openvino:float32", "openvino:bfloat16",
]  # fmt: skip


def main() -> None:
    options = parsed()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    net, info = model_file.load(options.model)
    scene = scene_image(*options.size, options.instances)
    images = network_input(scene, info.normalization)[None].contiguous().to(device)
    plain = net.to(device).requires_grad_(False)
    engines, starts = started(options.engines, plain, images)
    jobs: dict[str, Callable[[], object]] = {"plain": partial(plain_maps, plain, images)}
    jobs |= {name: partial(engine, images) for name, engine in engines.items()}
    seconds = in_turns(jobs, options.rounds)
    floors = {
        precision: floor.seconds(plain, options.size, getattr(torch, precision), device)
        for precision in {engine.precision for engine in engines.values()}
    }
    plain.to(device)
    tables = [
        Table(
            f"The network, {options.size[0]} x {options.size[1]} px, batch 1, {device.type}",
            ["engine", "times faster than plain", "start, by plain runs", "seconds / floor"],
            [speed_row(n, e.precision, seconds, starts, floors) for n, e in engines.items()],
        ),
        Table(
            "Largest difference from plain; of offset and bandwidth where pixels take part",
            ["engine", "offset, px", "bandwidth, %", "seed", "pixels with a seed 0.01 off, %"],
            [
                near_row(n, e(images), plain_maps(plain, images), info.thresholds.foreground)
                for n, e in engines.items()
            ],
        ),
    ]
    if options.data:
        dataset = select(PartOptions(data=options.data, split="val", group_by=options.group_by))
        predictors = {"plain": Predictor(torch_engine(net, device=device, scale=info.scale), info)}
        for name, engine in engines.items():
            engine.scale = info.scale
            predictors[name] = Predictor(engine, info)
        tables.append(agreement(predictors, [dataset[i] for i in range(len(dataset))]))
    megapixels = options.size[0] * options.size[1] / 1e6
    pace = {name: statistics.median(s) / megapixels for name, s in seconds.items()}
    facts = {"seconds": seconds, "start": starts, "floors": floors, "seconds a megapixel": pace}
    finish("engines", tables, facts=facts)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=NAMES, metavar="ENGINE:PRECISION")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--size", nargs=2, type=int, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", help="folder of images with masks, to compare instances on")
    parser.add_argument("--group-by", help="column of index.csv whose groups were held out whole")
    return parser.parse_args()


def started(
    names: Sequence[str], net: SpatialEmbeddingNet, images: Tensor
) -> tuple[dict[str, Engine], dict[str, float]]:
    """The engines that start here, and the seconds until each has answered once."""
    engines: dict[str, Engine] = {}
    starts: dict[str, float] = {}
    for name in names:
        engine, precision = name.split(":")
        if engine == "compiled" and missing_compiler(images.device):
            continue
        began = time.perf_counter()
        try:
            run = build(
                net, DeviceOptions(engine=engine, precision=precision, device=str(images.device))
            )
        except SpatialEmbedError as error:
            print(f"{name} is left out: {error}")
            continue
        if run.name != engine:  # it did not start, and gave way
            continue
        run(images)
        engines[name], starts[name] = run, time.perf_counter() - began
    return engines, starts


@torch.inference_mode()
def plain_maps(net: SpatialEmbeddingNet, images: Tensor) -> Embeddings:
    return net(images)


def speed_row(
    name: str,
    precision: str,
    seconds: dict[str, list[float]],
    starts: dict[str, float],
    floors: dict[str, tuple[float, float]],
) -> list[str]:
    start = starts[name] / statistics.median(seconds["plain"])
    over = min(seconds[name]) / max(floors[precision])
    return [name, str(ratio(seconds["plain"], seconds[name])), f"{start:.1f}", f"{over:.2f}"]


def near_row(name: str, maps: Embeddings, exact: Embeddings, foreground: float) -> list[str]:
    used = exact.seed.amax(1, keepdim=True) > foreground  # (1, 1, H, W)
    offset, log_precision, seed = (
        (a - b).abs() for a, b in zip(maps, exact, strict=True)
    )  # (1, 2, H, W), (1, S, H, W), (1, C, H, W)
    # A margin is proportional to exp(-LOG_SCALE r / 2).
    bandwidth = torch.expm1(LOG_SCALE / 2 * (log_precision * used).max())
    return [
        name,
        f"{UNIT * float((offset * used).max()):.2g}",
        f"{100 * float(bandwidth):.2g}",
        f"{float(seed.max()):.2g}",
        f"{100 * float((seed > 0.01).float().mean()):.2g}",
    ]


def agreement(predictors: dict[str, Predictor], samples: Sequence) -> Table:  # type: ignore[type-arg]
    """AP of each, and how many pixels are not in the instance that they are in for plain."""
    aps: dict[str, list[float]] = {name: [] for name in predictors}
    moved = dict.fromkeys(predictors, 0)
    for sample in track(samples, "instances"):
        exact = predictors["plain"](sample.image)
        truth = sample.target.labels.numpy()
        for name, predictor in predictors.items():
            found = exact if name == "plain" else predictor(sample.image)
            aps[name].append(float(label_ap(found.labels, truth).mean()))
            moved[name] += different(found.labels, exact.labels)
    pixels = sum(sample.image.shape[0] * sample.image.shape[1] for sample in samples)
    mean = {name: float(np.nanmean(ap)) for name, ap in aps.items()}
    return Table(
        f"Instances of {len(samples)} held-out images",
        ["engine", "mean AP", "more than plain", "pixels in another instance, %"],
        [
            [n, f"{mean[n]:.4f}", f"{mean[n] - mean['plain']:+.4f}", f"{100 * m / pixels:.3g}"]
            for n, m in moved.items()
        ],
    )


def different(labels: np.ndarray, exact: np.ndarray) -> int:
    """Pixels of (H, W) labels outside the instance of ``exact`` that theirs covers best."""
    pairs = np.zeros((labels.max() + 1, exact.max() + 1), np.int64)
    np.add.at(pairs, (labels, exact), 1)
    return int(labels.size - pairs.max(axis=1).sum())


if __name__ == "__main__":
    main()
