"""Bulk prediction on Ray: the bytes of local processes, whatever is lost; who may connect."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bulk_runs import finished, processes, start, tree, wait_for, write_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]
SHARD = ("--shard", "2")
TOKEN = "a" * 64


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in", 16)


@pytest.fixture
def whole(images: Path, tmp_path: Path) -> Path:
    """What local processes make of the images."""
    code, said = finished(start(images, tmp_path / "whole", *SHARD, "--workers", "1"))
    assert code == 0, said
    return tmp_path / "whole"


@contextmanager
def cluster(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("ray_cluster.py")), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answer(process: subprocess.Popen[str], begins: str) -> str:
    """The next line that begins so; Ray has a word between."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(begins):
            return line.removeprefix(begins).strip()
    raise AssertionError("the cluster has ended")


def listening(below: int) -> set[str]:
    """Addresses on which a process and all that it started listen."""
    tables = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                tables[f"socket:[{words[9]}]"] = words[1].partition(":")[0]
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    todo, found = [below], set()
    while todo:
        process = todo.pop()
        todo += parents.get(process, [])
        with suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    found |= {tables[at] for at in [os.readlink(link)] if at in tables}
    return found


def test_a_local_ray_gives_the_same_bytes_and_listens_here_only(
    images: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = start(images, out, *SHARD, "--workers", "2", "--on", "ray")
    wait_for(lambda: list(out.glob("part-*.jsonl")) or driver.poll() is not None)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert listening(driver.pid) <= loopback
    for worker in processes(out):
        os.kill(worker, signal.SIGKILL)
    code, said = finished(driver)
    assert code == 0, said
    assert tree(out) == tree(whole)
    wait_for(lambda: not processes(out), 120)


def test_a_cluster_that_loses_nodes_gives_the_same_bytes(
    images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    out = tmp_path / "out"
    with cluster("2") as ray:
        address = answer(ray, "address ")
        driver = start(images, out, *SHARD, "--on", address)
        wait_for(lambda: list(out.glob("part-*.jsonl")) or driver.poll() is not None)
        assert ray.stdin is not None
        ray.stdin.write("\n")
        ray.stdin.flush()
        answer(ray, "replaced")
        code, said = finished(driver)
        assert code == 0, said
        assert tree(out) == tree(whole)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
        code, said = finished(start(images, tmp_path / "no", *SHARD, "--on", address))
        assert code == 5, said
        assert "no_ray" in said


def test_a_cluster_without_room_is_said(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with cluster("1", "taken") as ray:
        driver = start(images, tmp_path / "out", "--on", answer(ray, "address "))
        begun = time.monotonic()
        code, said = finished(driver)
        assert (code, "no_progress" in said) == (5, True), said
        assert time.monotonic() - begun < 150  # 45 s, and the start of Python and Ray
