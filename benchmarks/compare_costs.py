"""What a method costs: its loss, its grouping and its prediction.

    loss       forward and backward of the loss alone, on the maps of the trained network, of a
               field of 60 nuclei at 1024 x 1024; of a detector with its network, since it cannot do
               without
    memory     the peak of resident memory that this adds (Linux)
    grouping   from maps to instances at 1024 x 2048, on a mosaic of validation images
    network    the maps of that mosaic

Processor time, all threads together, the median of the rounds: other loads do not count. Loss and
grouping run once before they are timed: what is compiled at first use is compiled then.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from compare_runs import at_most, method_of, network_of, predicted, predicts_maps, spread
from loss import status
from race import clock
from race_data import Trial
from torch import Tensor, nn

from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.method.normalization import network_input
from spatialembed.types import Target

LOSS_PX, OBJECTS = 1024, 60
Scene = tuple[Tensor, Target]
MOSAIC_HW = (1024, 2048)
LONGEST = 30.0
"""Seconds of grouping, after which it is given up."""


def loaded(name: str, num_classes: int, network: str, state: Path) -> nn.Module:
    """The network of a finished run."""
    net = network_of(method_of(name), num_classes, network, 0)
    net.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["net"])
    return net.eval()


def loss_scene() -> Scene:
    """Image (3, H, W) in [0, 1] with the truth, on which losses are timed."""
    sample = nuclei_field(LOSS_PX, LOSS_PX, seed=0, count=OBJECTS)
    image = torch.from_numpy(np.asarray(sample.image, np.float32) / sample.image.max())
    return image.expand(3, -1, -1).contiguous(), sample.target


def loss_job(method: ModuleType, net: nn.Module, scene: Scene) -> Callable[[], None]:
    """Forward and backward of the loss of the scene."""
    image, target = scene
    if not predicts_maps(method):
        return lambda: method.loss(net.train(), image[None], [target]).total().backward()
    maps = predicted(method, net, image)[None].clone()

    def job() -> None:
        method.loss(maps.detach().requires_grad_(), [target]).total().backward()

    return job


def mosaic(trial: Trial) -> Tensor:
    """Validation images side by side, (3, 1024, 2048), normalised each for itself."""
    height, width = MOSAIC_HW
    result, y, x, low = torch.zeros(3, height, width), 0, 0, 0
    images = [network_input(s.image, trial.recipe.normalization) for s in spread(trial.val, 24)]
    for n in range(1000):
        image = images[n % len(images)][:, : height - y, : width - x]
        result[:, y : y + image.shape[1], x : x + image.shape[2]] = image
        low, x = max(low, y + image.shape[1]), x + image.shape[2]
        if x >= width:
            y, x = low, 0
        if y >= height:
            break
    return result


def costs(
    method: ModuleType, net: nn.Module, settings: Any, scene: Scene, image: Tensor, rounds: int
) -> dict[str, float]:
    """Median seconds of each part, and the bytes of the loss; ``image``: the mosaic."""
    job = loss_job(method, net, scene)
    memory = peak_bytes(job)
    seconds: dict[str, list[float]] = {"loss": [], "network": [], "grouping": []}
    for _ in range(rounds):
        took = {"loss": _timed(job)[0]}
        took["network"], maps = _timed(lambda: predicted(method, net.eval(), image))
        if not seconds["grouping"]:
            _grouping(method, maps, settings)
        took["grouping"] = _grouping(method, maps, settings)
        for part, value in took.items():
            seconds[part].append(value)
        del maps
    return {part: statistics.median(v) for part, v in seconds.items()} | {"memory": memory}


def _grouping(method: ModuleType, maps: Any, settings: Any) -> float:
    """Seconds, ``LONGEST`` where it takes longer."""
    try:
        with at_most(LONGEST):
            return _timed(lambda: method.group(maps, settings))[0]
    except TimeoutError:
        return LONGEST


def _timed(job: Callable[[], Any]) -> tuple[float, Any]:
    device = torch.device("cpu")
    began = clock(device)
    result = job()
    return clock(device) - began, result


def peak_bytes(job: Callable[[], None]) -> int:
    """What the loss and its gradient need above the maps (above the network, of a detector)."""
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    job()
    return status("VmHWM") - before
