"""A run folder: its lock, its settings, its checkpoints with hashes, its metrics and curves.

runs/train/NAME/config.yaml      the resolved settings
                metrics.csv      a row an epoch
                curves.png
                samples/         pictures of validation images
                checkpoints/     epoch-0007.ckpt + .sha256, the last two
                model/           the best model so far
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from spatialembed.errors import MODEL, RESOURCE, USAGE, SpatialEmbedError, check
from spatialembed.files import atomic_write, free_name

logger = logging.getLogger("spatialembed")

KEPT_CHECKPOINTS = 2
"""The last one, and one to fall back on where that is damaged."""
RUN_VARIABLE = "SPATIALEMBED_RUN"
"""Tells the further processes of a training which folder the first one has opened."""
LAUNCHER_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables by which Lightning recognises the processes that it started."""


def checkpoint_path(folder: Path, epochs_done: int) -> Path:
    """Where the run ``folder`` keeps its state after so many epochs."""
    return folder / "checkpoints" / f"epoch-{epochs_done:04d}.ckpt"


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain data with their hash beside them, then drop all but the last two.

    The hash goes first: stopped between the two writes, the new name has a hash and no file, and
    resuming takes the one before. Raises SpatialEmbedError ``disk_full`` (exit 5).
    """
    buffer = io.BytesIO()  # torch.save reports a full disk as something else
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    with atomic_write(_hash_path(path)) as temporary:
        temporary.write_text(hashlib.sha256(content).hexdigest() + "\n")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    for old in _checkpoints(path.parent)[:-KEPT_CHECKPOINTS]:
        old.unlink()
        _hash_path(old).unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their epochs; as text, epoch 10000 would stand before 9999."""
    return sorted(folder.glob("epoch-*.ckpt"), key=lambda path: (len(path.name), path.name))


def _hash_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ``save_checkpoint``; nothing in it is executed.

    Raises SpatialEmbedError ``bad_checkpoint`` (exit 4) where the bytes are not those written.
    """
    content = path.read_bytes()
    try:
        expected = _hash_path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        expected = ""
    if hashlib.sha256(content).hexdigest() != expected:
        size = len(content)
        raise _bad(path, f"truncated or damaged ({size} bytes, the hash beside it differs)")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise _bad(path, f"not written by a training: {str(error).partition('. ')[0]}") from error


def _bad(path: Path, why: str) -> SpatialEmbedError:
    remedy = "remove it; --resume takes the one before"
    return SpatialEmbedError("bad_checkpoint", f"{path}: {why}", remedy, MODEL)


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has come to save one, damaged or not."""
    return bool(_checkpoints(folder / "checkpoints"))


def last_good_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run whose hash fits; damaged ones are skipped, loudly.

    Raises SpatialEmbedError ``no_checkpoint`` (exit 4).
    """
    for path in reversed(_checkpoints(folder / "checkpoints")):
        try:
            read_checkpoint(path)
        except SpatialEmbedError as error:
            logger.warning("%s; falling back to the checkpoint before it", error)
        else:
            return path
    raise SpatialEmbedError(
        "no_checkpoint",
        f"{folder}: no checkpoint to resume from",
        "give the folder of a run, runs/train/NAME",
        MODEL,
    )


class History:
    """Rows of metrics.csv, one an epoch; rewritten as a whole, since the columns can grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        path = folder / "metrics.csv"
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [
                    {k: int(v) if v.isdigit() else float(v) for k, v in row.items() if v}
                    for row in csv.DictReader(file)
                ]

    def keep_until(self, epochs_done: int) -> None:
        """Forget epochs that a resumed run is about to repeat."""
        self.rows = [row for row in self.rows if row["epoch"] <= epochs_done]

    def add(self, row: Mapping[str, float]) -> None:
        """Append the figures of an epoch and write the file anew; new figures get a column."""
        self.rows.append(dict(row))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with atomic_write(self.folder / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def draw(self) -> None:
        """Write curves.png: losses, validation AP and learning rate over the epochs."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 3.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharex=True)
        for key in ("total", "instance", "smoothness", "seed"):
            self._line(left, key)
        left.set(title="training losses (weighted)", xlabel="epoch", yscale="log")
        for key in ("val_ap", "val_ap50"):  # the second of the benchmark only
            self._line(middle, key, marker="o")
        middle.set(title="validation AP", xlabel="epoch", ylim=(0, 1))
        self._line(right, "lr")
        right.set(title="learning rate", xlabel="epoch", ylim=(0, None))
        for axes in (left, middle, right):
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            if axes.lines:  # no AP before the first validation
                axes.legend(frameon=False)
        with atomic_write(self.folder / "curves.png") as path:
            figure.savefig(path, dpi=110)

    def _line(self, axes: Any, key: str, marker: str = "") -> None:
        points = [(row["epoch"], row[key]) for row in self.rows if key in row]
        if points:
            marker = marker or ("o" if len(points) == 1 else "")  # a line of one point is none
            axes.plot(*zip(*points, strict=True), label=key, marker=marker, markersize=3)


def new_run(out: Path, name: str | None, stem: str) -> Path:
    """The folder of a new run: a name that is given must be new, one that is made up is.

    Raises SpatialEmbedError: run_exists, bad_setting (exit 2).
    """
    run = out / (name or free_name(out, stem))
    check(
        os.fsencode(run).decode("utf-8", "replace") == str(run),
        f"{run}: a name that is not UTF-8, which TensorBoard cannot write to",
        "choose another --out or --name",
    )
    if (run / "config.yaml").exists():
        raise SpatialEmbedError(
            "run_exists",
            f"{run}: a run of this name exists",
            f"continue it with --resume {run}, or choose another --name",
            USAGE,
        )
    return run


def write_settings(run: Path, settings: Mapping[str, Any]) -> None:
    """Write the resolved settings of a run as ``config.yaml``."""
    plain = json.loads(json.dumps(settings))  # tuples as lists, which is what YAML has
    with atomic_write(run / "config.yaml") as path:
        path.write_text(yaml.safe_dump(plain, sort_keys=False))


def read_settings(run: Path) -> dict[str, Any]:
    """What ``write_settings`` wrote. Raises SpatialEmbedError ``no_run`` (exit 4)."""
    fault = SpatialEmbedError(
        "no_run",
        f"{run}: no settings of a run in it",
        "give the folder of a run, runs/train/NAME",
        MODEL,
    )
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise fault from error
    if not isinstance(settings, dict):
        raise fault
    return settings


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM only leave their number in the list, to be read between two steps."""
    seen: list[int] = []
    before = note_signals(seen)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note_signals(seen: list[int]) -> dict[int, Any]:
    """Let SIGINT and SIGTERM leave their number in ``seen``; returns the handlers before.

    Python hears signals in its main thread only; in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    def note(number: int, _: FrameType | None) -> None:
        seen.append(number)

    return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}


# ---------------------------------------------------------------- several processes


def rank() -> int:
    """Number of this process among those that train together; 0 is the one that was called."""
    return int(os.environ.get("LOCAL_RANK", "0")) if RUN_VARIABLE in os.environ else 0


@contextmanager
def announced(run: Path) -> Iterator[None]:
    """Tell the further processes of --devices, started as this one was, which run they belong to.

    Raises SpatialEmbedError ``foreign_launcher`` (exit 2): a launcher's processes each train alone.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        raise SpatialEmbedError(
            "foreign_launcher",
            f"LOCAL_RANK is {os.environ['LOCAL_RANK']}: a launcher has started several processes",
            "start one, and give --devices N; it starts the others",
            USAGE,
        )
    before = {name: os.environ.pop(name, None) for name in LAUNCHER_VARIABLES}
    os.environ[RUN_VARIABLE] = str(run)
    try:
        yield
    finally:
        del os.environ[RUN_VARIABLE]
        for name, value in before.items():  # or a second run would not start its processes
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def memory_fault(error: BaseException) -> SpatialEmbedError | None:
    """Our error for a failed allocation or a killed loader process, None for anything else."""
    text = str(error)
    if "allocate memory" in text or "out of memory" in text.lower():
        return SpatialEmbedError(
            "out_of_memory",
            "no memory left for a training step",
            "make stage1.batch or stage1.crop smaller; the last epoch is saved",
            RESOURCE,
        )
    if "DataLoader worker" in text:
        return SpatialEmbedError(
            "worker_killed",
            "a loader process was killed, most often for lack of memory",
            "set --workers 0 or a smaller crop and continue with --resume",
            RESOURCE,
        )
    return None
