"""Runs of ``spatialembed bulk`` in processes of their own, and the hash of what they leave."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from spatialembed.generated.nuclei_and_shapes import SyntheticDataset

FAULTS = Path(__file__).parent / "bulk_faults"
SETTINGS = (
    "--model", "shapes", "--device", "cpu", "--engine", "torch", "--precision", "float32",
)  # fmt: skip
WAIT_S = 300.0
"""A machine under load takes long to import torch."""


def write_images(folder: Path, number: int, poison: int = 0, broken: int = 0) -> Path:
    """Generated images of 64 px; besides some that kill who opens them, and some that are none."""
    folder.mkdir(parents=True)
    data = SyntheticDataset("shapes", (64, 64), number, seed=3)
    for i in range(number):
        Image.fromarray(data[i].image).save(folder / f"{i:04d}.png")
    for i in range(poison):
        (folder / f"{i * 7 + 2:04d}_poison.png").write_bytes((folder / "0000.png").read_bytes())
    for i in range(broken):
        (folder / f"{i * 5 + 1:04d}_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


def start(
    source: Path | str,
    out: Path | str,
    *flags: str,
    doings: Path | None = None,
    within: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """A driver; doings: where its sockets and those of its workers are noted; within: a command
    that runs the one behind it."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")])
    settings |= {} if doings is None else {"BULK_DOINGS": str(doings)}
    words = [sys.executable, "-m", "spatialembed", "bulk", str(source), "--out", str(out)]
    return subprocess.Popen(
        [*within, *words, *SETTINGS, *flags],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code, and all that it said."""
    said, _ = process.communicate(timeout=WAIT_S)
    return process.returncode, said.decode("utf-8", "replace")


def tree(out: Path) -> dict[str, str]:
    """Hash of each file; all of them, so that what is left over shows."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def wait_for(what: Callable[[], object], seconds: float = WAIT_S) -> None:
    """Until something holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it does not come to that"
        time.sleep(0.05)


def processes(out: Path | str) -> list[int]:
    """Workers, and their processes for single images, of the runs into a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has ended
                continue
            if "spatialembed.bulk.worker" in words and str(out) in words[-2] and state != "Z":
                found.append(int(entry.name))
    return found
