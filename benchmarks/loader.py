"""Whether loaders keep up: a crop of a 1024x2048 street as it is loaded, against its training step.

    python benchmarks/loader.py

A step is the network forward and backward, without the loss. Loading is timed in one process, so
that two loader processes keep up where the network takes at least half as long a crop as loading.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable

import torch
from report import Table, finish

from spatialembed.command.bench import in_turns
from spatialembed.data.cityscapes import CityscapesDataset, open_cityscapes
from spatialembed.generated.streets import write_streets
from spatialembed.inference.device import resolve_device, resolve_precision
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.instance_index import InstanceIndex, instance_index
from spatialembed.training.loader import Batch, CropPlan, Crops, collate
from spatialembed.types import Normalization

CASES = ((512, 4), (1024, 2))
"""Side of the crops and crops a step, as the two published stages have them, fitted to a CPU."""
AUGMENT = AugmentOptions(
    object_centred=0.0, zoom=(1, 1), rotate=False, brightness=0, contrast=0, noise=0, blur=0
)
"""As the config cityscapes."""


def main() -> None:
    options = parsed()
    device = resolve_device(options.device)
    half = resolve_precision(options.precision, device) == "bfloat16"
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        write_streets(folder, 5, (1024, 2048), progress=False)
        streets = open_cityscapes(folder, split="train")
        index = instance_index(streets, progress=False)
        for size, batch in CASES:
            seconds = in_turns(jobs(streets, index, size, batch, device, half), options.rounds)
            rows.append(row(size, batch, seconds))
            facts[f"{size}x{batch}"] = seconds
    finish(
        f"loader_{device.type}",
        [
            Table(
                f"Loading crops of streets, {device.type}, {'bfloat16' if half else 'float32'}",
                ["crops", "step : loading, one process"],
                rows,
            )
        ],
        facts={"seconds": facts},
    )


def jobs(
    streets: CityscapesDataset,
    index: InstanceIndex,
    size: int,
    batch: int,
    device: torch.device,
    half: bool,
) -> dict[str, Callable[[], object]]:
    """Loading of a batch and a step; every round takes the same crops."""
    plan = CropPlan(size, 1.0, batch, batch, seed=0, epoch=0, sampling="natural")
    loader = Crops(streets, Normalization("none"), AUGMENT, plan, index)
    crops = collate(loader.__getitems__(range(batch)))
    assert isinstance(crops, Batch)
    images = crops.to(device).images.contiguous(memory_format=torch.channels_last)
    net = SpatialEmbeddingNet(8).to(device, memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            maps = net(images)
        torch.autograd.backward([m.float().square().mean() for m in maps])

    return {"loading": lambda: loader.__getitems__(range(batch)), "step": step}


def row(size: int, batch: int, seconds: dict[str, list[float]]) -> list[str]:
    step = statistics.median(seconds["step"]) / statistics.median(seconds["loading"])
    return [f"{batch} of {size} x {size}", f"{step:.1f}"]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
