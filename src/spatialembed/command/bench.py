"""How fast this machine is, stage by stage and engine by engine: ``spatialembed bench``.

What is compared is run in turns, round by round, in one process, so that whatever else the machine
does slows all alike; a ratio is the median over the rounds, its spread the least and the most.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from spatialembed.concurrency import usable
from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.images.read import read_pixels
from spatialembed.images.write import write_png
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.cluster import cluster
from spatialembed.method.normalization import network_input
from spatialembed.results.folder import ResultFolder

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger("spatialembed")

Job = Callable[[], object]
PACKAGES = ("torch", "numba", "numpy", "pillow", "onnxruntime", "openvino", "triton")
FLAGS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
NETWORK = "network"


# ---------------------------------------------------------------- measuring


class Ratio(NamedTuple):
    """How many times longer one job takes than another, over the rounds that ran both."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def in_turns(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round; all jobs run once a round, after one run to warm up."""
    for job in jobs.values():
        job()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            seconds[name].append(timed(job)[0])
    return seconds


def timed(job: Job) -> tuple[float, Any]:
    """Seconds that a job takes, until the GPU is done too, and what it returns."""
    _wait_for_gpu()
    began = time.perf_counter()
    result = job()
    _wait_for_gpu()
    return time.perf_counter() - began, result


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Of the seconds of two jobs that ran in turns, round by round."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def machine() -> dict[str, Any]:
    """What the times depend on, for the file beside them."""
    able = torch.cpu.get_capabilities()
    packages = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "processor": able.get("cpu_name") or platform.processor() or platform.machine(),
        "cores": usable(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if able.get(flag)],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


# ---------------------------------------------------------------- stages of prediction


@dataclass(frozen=True)
class Row:
    """A stage at a size: the seconds of each round, and how it compares with the first engine."""

    size: str  # "512x512", height first
    stage: str
    seconds: list[float]
    faster: Ratio | None = None  # than the network in the first engine


@dataclass(frozen=True)
class BenchReport:
    """What ``bench`` found on this machine."""

    model: str
    machine: dict[str, Any]
    rows: list[Row]
    starts: dict[str, float]  # seconds of each engine until its first maps: loading, compilation

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        table = Table(title=f"{self.model} on {self.machine['gpu'] or self.machine['processor']}")
        for name in ("size", "stage", "ms", "least", "most", "times faster", "start s"):
            table.add_column(name, justify="left" if name in ("size", "stage") else "right")
        for row in self.rows:
            numbers = [statistics.median(row.seconds), min(row.seconds), max(row.seconds)]
            first = self.starts.get(row.stage.removeprefix(f"{NETWORK} "))
            table.add_row(
                row.size,
                row.stage,
                *(f"{1000 * s:.1f}" for s in numbers),
                str(row.faster) if row.faster else "",
                f"{first:.1f}" if first is not None and row.size == self.rows[0].size else "",
            )
        return table

    def write(self, out: str | Path) -> Path:
        """Write ``bench.json`` into a folder; returns its path. Raises ``disk_full``."""
        path = Path(out) / "bench.json"
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def bench(
    model: str | Path = "nuclei",
    *,
    sizes: Sequence[tuple[int, int]] = ((256, 256), (512, 512)),
    engines: Sequence[str] = ("torch:float32", "torch"),
    rounds: int = 3,
    device: str = "auto",
    threads: int | None = None,
) -> BenchReport:
    """Time every stage of prediction on this machine: reading, network, clustering, writing.

    model: as ``load`` takes it. sizes: (height, width) px of generated fields of nuclei. engines:
    names as ``load`` takes them, each with a precision after a colon if not "auto"; one that is
    not installed is left out with a warning. Others are compared with the first one.

    Raises SpatialEmbedError: of ``load``; ``bad_setting`` (exit 2) for less than one round.
    """
    if rounds < 1:
        raise SpatialEmbedError("bad_setting", f"rounds is {rounds}", "give 1 or more", USAGE)
    predictors: dict[str, Predictor] = {}
    starts: dict[str, float] = {}
    rows: list[Row] = []
    image = _image(*sizes[0])
    for name in engines:
        start = partial(_start, model, name, device, threads, image)
        try:
            starts[name], predictors[name] = timed(start)
        except SpatialEmbedError as error:
            if error.code != "missing_extra":
                raise
            logger.warning("engine %s is left out: %s", name, error)
    if not predictors:
        raise SpatialEmbedError("no_engine", "none of the engines is installed", "add torch", USAGE)
    with tempfile.TemporaryDirectory() as folder:
        for height, width in sizes:
            jobs = _stages(predictors, _image(height, width), Path(folder))
            seconds = in_turns(jobs, rounds)
            first, *others = (stage for stage in seconds if stage.startswith(NETWORK))
            for stage, times in seconds.items():
                faster = ratio(seconds[first], times) if stage in others else None
                rows.append(Row(f"{height}x{width}", stage, times, faster))
    return BenchReport(str(model), machine(), rows, starts)


def _start(
    model: str | Path, name: str, device: str, threads: int | None, image: np.ndarray
) -> Predictor:
    """A predictor of "engine" or "engine:precision" that has seen an image."""
    engine, _, how = name.partition(":")
    predictor = load(model, engine=engine, precision=how or "auto", device=device, threads=threads)
    predictor.embeddings(image)
    return predictor


def _image(height: int, width: int) -> np.ndarray:
    """A field of nuclei (height, width, 3) uint8."""
    return np.repeat(nuclei_field(height, width, seed=0).image[..., None], 3, axis=2)


def _stages(predictors: Mapping[str, Predictor], image: np.ndarray, folder: Path) -> dict[str, Job]:
    """What is timed, by its name."""
    first = next(iter(predictors.values()))
    path = write_png(folder / "image.png", image)
    images = network_input(image, first.info.normalization)[None].to(first.device)
    maps = first.engine(images)
    found = first(image)

    def write() -> None:
        with ResultFolder(folder / "results", first.info.class_names) as results:
            results.add("image.png", image, found)

    return {
        "read": lambda: read_pixels(path),
        "normalise": lambda: network_input(image, first.info.normalization),
        **{f"{NETWORK} {name}": partial(p.engine, images) for name, p in predictors.items()},
        "cluster": lambda: cluster(maps, first.settings, first.info.class_names),
        "write": write,
    }
