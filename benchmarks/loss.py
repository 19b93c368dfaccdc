"""The loss, forward and backward: ours beside the plain way, in time and in memory.

    python benchmarks/loss.py

Plain: for every instance the Lovasz hinge over all pixels of the image, as the equations stand, by
torch and its autograd. Maps are those of a network in training: offsets point most of the way to
the centre, bandwidths are about right, with noise. Value and gradient of both must agree.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from epochs import Training
from report import Line, Table, finish
from torch import Tensor

from spatialembed.command.bench import in_turns, ratio
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.types import UNIT, Embeddings, Target

COUNTS = (10, 30, 100, 300, 1000)
"""Instances at a fixed size of the image, and at a fixed share of it that they cover."""
COVERED = 0.25
IN_TRAINING = 512
"""Side of the image whose maps come from moments of a training: see ``epochs``."""


def main() -> None:
    options = parsed()
    if options.memory:
        print(f"{peak_bytes(options.memory, options.size, options.instances)} bytes")
        return
    maps, target = training_scene(options.size, options.instances)
    agree(maps, target)
    seconds = in_turns(
        {
            "plain": partial(step, plain_loss, maps, target),
            "ours": partial(step, ours, maps, target),
        },
        options.rounds,
    )
    memory = {way: memory_of(way, options) for way in ("plain", "ours")}
    count = len(target.classes)
    in_training = rows_in_training(options)
    by_count = growth_in_instances(options)
    by_area = growth_in_area(options)
    finish(
        "loss",
        [
            Table(
                f"Loss, forward and backward, {options.size} x {options.size} px, {count} objects",
                ["", "plain / ours"],
                [
                    ["time", str(ratio(seconds["plain"], seconds["ours"]))],
                    ["peak memory", f"{memory['plain'] / max(memory['ours'], 1):.1f}"],
                ],
            ),
            Table(
                f"Maps of the network lite in training, {IN_TRAINING} x {IN_TRAINING} px",
                ["epoch", "plain / ours", "instance term", "seed term"],
                in_training,
            ),
            Table(
                "Growth of the time, slope on logarithmic axes",
                ["against", "ours"],
                [
                    ["instances, at one covered area", f"{slope(by_count):.2f}"],
                    ["covered area, at one number of instances", f"{slope(by_area):.2f}"],
                ],
            ),
        ],
        lines=[by_count, by_area],
        facts={"seconds": seconds, "peak_bytes": memory},
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--instances", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("plain", "ours"), help="print its peak only")
    return parser.parse_args()


# ---------------------------------------------------------------- the two ways


def plain_loss(maps: Embeddings, target: Target) -> Tensor:
    """Section 3 of docs/method.md as it stands; one image, one class, no pixel ignored."""
    height, width = target.labels.shape
    y, x = torch.meshgrid(torch.arange(height) / UNIT, torch.arange(width) / UNIT, indexing="ij")
    position = torch.stack((x, y))  # (2, H, W)
    embedding = position + maps.offset[0]
    raw, seed = maps.log_precision[0], maps.seed[0, 0]
    instance, smoothness = raw.new_zeros(()), raw.new_zeros(())
    foreground = raw.new_zeros(())
    for k in range(1, len(target.classes) + 1):
        mask = target.labels == k
        center = position[:, mask].mean(1)[:, None, None]
        mean = raw[:, mask].mean(1)[:, None, None]
        precision = (10 * mean).clamp(-40, 40).exp()
        phi = (-(precision * (embedding - center) ** 2).sum(0)).exp()  # (H, W)
        instance = instance + hinge((2 * phi - 1).flatten(), mask.flatten())
        smoothness = smoothness + ((raw - mean.detach())[:, mask] ** 2).mean()
        foreground = foreground + ((seed - phi.detach())[mask] ** 2).sum()
    background = (seed[target.labels == 0] ** 2).sum()
    k = max(len(target.classes), 1)
    seeds = (background + 10 * foreground) / (height * width)
    return instance / k + 10 * smoothness / k + seeds


def hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """Lovasz hinge: the hinge errors, sorted, times the steps of the Jaccard loss."""
    errors = 1 - logits * (2 * mask.to(logits) - 1)
    errors, order = errors.sort(descending=True)
    own = mask[order].to(logits)
    missed = own.sum() - own.cumsum(0)
    jaccard = 1 - missed / (own.sum() + (1 - own).cumsum(0))
    steps = torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))
    return (errors.relu() * steps).sum()


def ours(maps: Embeddings, target: Target) -> Tensor:
    return spatial_embedding_loss(maps, [target], center="centroid").total()


def step(loss: Callable[[Embeddings, Target], Tensor], maps: Embeddings, target: Target) -> Tensor:
    """Forward and backward; the gradients are left in the maps."""
    for tensor in maps:
        tensor.grad = None
    value = loss(maps, target)
    value.backward()
    return value.detach()


def agree(maps: Embeddings, target: Target) -> None:
    """Value and gradient are the same both ways."""
    values, gradients = [], []
    for loss in (plain_loss, ours):
        values.append(float(step(loss, maps, target)))
        gradients.append([m.grad.clone() for m in maps])
    assert math.isclose(*values, rel_tol=1e-3), values
    for name, a, b in zip(maps._fields, *gradients, strict=True):
        scale = float(a.abs().max())
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale), f"gradient by {name}"
    print(f"values {values[0]:.6f} and {values[1]:.6f}; gradients agree")


# ---------------------------------------------------------------- scenes


def training_scene(size: int, instances: int) -> tuple[Embeddings, Target]:
    """Maps of a network in training, leaves of the graph, and the truth of a field of nuclei."""
    target = nuclei_field(size, size, seed=0, count=instances).target
    return training_maps(target), target


def disks(size: int, count: int, covered: float) -> Target:
    """``count`` equal disks on a grid that cover a share of the image."""
    columns = math.ceil(math.sqrt(count))
    pitch = size / columns
    radius = math.sqrt(covered * size * size / (math.pi * count))
    y, x = np.mgrid[:size, :size]
    cell = (y // pitch).astype(np.int64) * columns + (x // pitch).astype(np.int64)
    inside = (y % pitch - pitch / 2) ** 2 + (x % pitch - pitch / 2) ** 2 <= radius**2
    labels = np.where(inside & (cell < count), cell + 1, 0).astype(np.int32)
    classes = torch.zeros(count, dtype=torch.int64)
    return Target(torch.from_numpy(labels), classes, torch.zeros(size, size, dtype=torch.bool))


def training_maps(target: Target) -> Embeddings:
    rng = np.random.default_rng(0)
    labels = target.labels.numpy()
    count = np.bincount(labels.ravel(), minlength=len(target.classes) + 1)
    y, x = (axis.astype(np.float32) for axis in np.mgrid[: labels.shape[0], : labels.shape[1]])
    offset = rng.normal(0, 2, (2, *labels.shape))
    for axis, at in enumerate((x, y)):
        center = np.bincount(labels.ravel(), at.ravel()) / np.maximum(count, 1)
        offset[axis] += np.where(labels > 0, 0.8 * (center[labels] - at), 0)
    radius = np.sqrt(np.maximum(count, 1) / math.pi)
    margin = np.where(labels > 0, radius[labels], 10) / UNIT
    raw = np.log(math.log(2) / margin**2) / 10 + rng.normal(0, 0.03, (2, *labels.shape))
    seed = rng.uniform(0, 1, labels.shape)
    maps = (offset / UNIT, raw, seed[None])
    return Embeddings(
        *(torch.from_numpy(m[None].astype(np.float32)).requires_grad_() for m in maps)
    )


# ---------------------------------------------------------------- maps of a training


def rows_in_training(options: argparse.Namespace) -> list[list[str]]:
    """Epoch, how much faster than the plain way, and the terms."""
    training = Training(IN_TRAINING)
    (target,) = training.targets
    rows = []
    for epoch, maps in training.maps().items():
        leaves = Embeddings(*(m.clone().requires_grad_() for m in maps))
        jobs = {
            way: partial(step, loss, leaves, target)
            for way, loss in (("plain", plain_loss), ("ours", ours))
        }
        seconds = in_turns(jobs, options.rounds)
        with torch.no_grad():
            terms = spatial_embedding_loss(maps, [target], center="learnable")
        said = [f"{term:.3f}" for term in (terms.instance.item(), terms.seed.item())]
        rows.append([epoch, str(ratio(seconds["plain"], seconds["ours"])), *said])
    return rows


# ---------------------------------------------------------------- growth and memory


def growth_in_instances(options: argparse.Namespace) -> Line:
    counts = [c for c in COUNTS if c * 16 < options.size**2]
    targets = {c: disks(options.size, c, COVERED) for c in counts}
    return Line("instances", "loss", counts, medians(targets, options.rounds))


def growth_in_area(options: argparse.Namespace) -> Line:
    areas = [0.02, 0.05, 0.1, 0.2, 0.4]
    targets = {a: disks(options.size, options.instances, a) for a in areas}
    pixels = [int((targets[a].labels > 0).sum()) for a in areas]
    return Line("area", "loss", pixels, medians(targets, options.rounds))


def medians(targets: dict, rounds: int) -> list[float]:  # type: ignore[type-arg]
    jobs = {key: partial(step, ours, training_maps(t), t) for key, t in targets.items()}
    return [sorted(times)[len(times) // 2] for times in in_turns(jobs, rounds).values()]


def slope(line: Line) -> float:
    """Of the logarithms: 1 is growth in proportion, 0 none."""
    return float(np.polyfit(np.log(line.x), np.log(line.seconds), 1)[0])


def memory_of(way: str, options: argparse.Namespace) -> int:
    """Peak of one step, measured in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--memory", way]
    words += ["--size", str(options.size), "--instances", str(options.instances)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2])


def peak_bytes(way: str, size: int, instances: int) -> int:
    """What a step needs above the maps themselves: the peak of resident memory (Linux, glibc)."""
    small = training_scene(64, 3)
    step(ours, *small)  # compiles
    maps, target = training_scene(size, instances)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again unseen
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step({"plain": plain_loss, "ours": ours}[way], maps, target)
    return status("VmHWM") - before


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    main()
