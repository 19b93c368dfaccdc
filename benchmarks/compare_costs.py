"""What a method costs: its loss, its grouping and its prediction, timed in turns with the others.

    loss       forward and backward of the loss alone, on the maps of the trained network, of a
               field of 60 nuclei at 1024 x 1024; of a detector with its network, since it cannot do
               without
    memory     the peak of resident memory that this adds, in a process of its own (Linux)
    grouping   from maps to instances at 1024 x 2048, on a mosaic of validation images
    network    the maps of that mosaic

Processor time, all threads together, the median of the rounds: other loads do not count. Of several
rounds the first is left out: what is compiled at first use is compiled then.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from compare_runs import Plan, at_most, method_of, network_of, predicted, predicts_maps, spread
from loss import status
from race import clock
from race_data import Trial
from torch import Tensor, nn

from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.method.normalization import network_input
from spatialembed.types import Target

LOSS_PX, OBJECTS = 1024, 60
MOSAIC_HW = (1024, 2048)
LONGEST = 120.0
"""Seconds of grouping, after which it is given up."""


def loaded(name: str, num_classes: int, network: str, state: Path) -> nn.Module:
    """The network of a finished run."""
    net = network_of(method_of(name), num_classes, network, 0)
    net.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["net"])
    return net.eval()


def loss_scene() -> tuple[Tensor, Target]:
    """Image (3, H, W) in [0, 1] with the truth, on which losses are timed."""
    sample = nuclei_field(LOSS_PX, LOSS_PX, seed=0, count=OBJECTS)
    image = torch.from_numpy(np.asarray(sample.image, np.float32) / sample.image.max())
    return image.expand(3, -1, -1).contiguous(), sample.target


def loss_job(method: ModuleType, net: nn.Module) -> Callable[[], None]:
    """Forward and backward of the loss of the scene."""
    image, target = loss_scene()
    if not predicts_maps(method):
        net.train()
        return lambda: method.loss(net, image[None], [target]).total().backward()
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


def costs(trial: Trial, plan: Plan, runs: Mapping[str, dict[str, Any]], rounds: int) -> Any:
    """Median seconds of each method by name; ``runs``: figures of a run, with its state file."""
    image, jobs = mosaic(trial), {}
    seconds: dict[str, dict[str, list[float]]] = {}
    for name, run in runs.items():
        method = method_of(name)
        net = loaded(name, len(trial.recipe.classes), plan.network, Path(run["state"]))
        settings = method.Settings(**run["settings"])
        jobs[name] = (method, net, settings)
        seconds[name] = {"loss": [], "network": [], "grouping": []}
    for n in range(rounds + (rounds > 1)):
        for name, (method, net, settings) in jobs.items():
            took: dict[str, float] = {}
            job = loss_job(method, net)
            took["loss"], _ = _timed(job)
            took["network"], maps = _timed(lambda m=method, k=net: predicted(m, k, image))
            took["grouping"] = _grouping(method, maps, settings)
            if n or rounds == 1:
                for part, value in took.items():
                    seconds[name][part].append(value)
            del maps, job
    return {
        name: {part: statistics.median(values) for part, values in parts.items()}
        for name, parts in seconds.items()
    }


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


# ---------------------------------------------------------------- memory


def memory_of(name: str, classes: int, network: str, state: Path) -> int:
    """Bytes, measured in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), name, str(classes), network, str(state)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_bytes(name: str, classes: int, network: str, state: Path) -> int:
    """What the loss and its gradient need above the maps (above the network, of a detector)."""
    import ctypes

    method = method_of(name)
    job = loss_job(method, loaded(name, classes, network, state))
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    job()
    return status("VmHWM") - before


if __name__ == "__main__":
    print(peak_bytes(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
