"""Bulk prediction in processes of its own that are killed: the same bytes, nothing left, no end."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from bulk_runs import finished, processes, start, tree, wait_for, write_images

pytestmark = pytest.mark.slow
SHARD = ("--shard", "3")
PARTS = "part-*.jsonl"


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def test_the_same_bytes_whoever_dies(tmp_path: Path) -> None:
    """One worker unbroken, beside two of which some die, and their driver; with bad images."""
    images = write_images(tmp_path / "in", 16, poison=1, broken=2)
    whole, out, doings = tmp_path / "whole", tmp_path / "out", tmp_path / "doings"
    driver = start(images, whole, *SHARD, "--workers", "1", doings=doings)
    code, said = finished(driver)
    assert code == 6, said
    with (whole / "failed.csv").open() as file:
        failed = {row["image"]: row["code"] for row in csv.DictReader(file)}
    assert sorted(failed.values()) == ["killed", "truncated", "truncated"]
    assert failed["0002_poison.png"] == "killed"
    noted = [line.split(maxsplit=1) for line in doings.read_text().splitlines()]
    assert not [what for _, what in noted if what.startswith("socket") or "'ray'" in what]
    importers = {int(process) for process, what in noted if "'torch'" in what}
    assert importers, "the workers are not seen"
    assert driver.pid not in importers
    chance, ends = random.Random(5), 0
    driver = start(images, out, *SHARD, "--workers", "2")
    for part in range(1, 4):
        wait_for(lambda: len(list(out.glob(PARTS))) >= part or driver.poll() is not None)  # noqa: B023
        for worker in processes(out)[: chance.choice([1, 2])]:
            kill(worker)
            ends += 1
        if part == 2:
            kill(driver.pid)
            driver.communicate()
            wait_for(lambda: not processes(out), 120)  # nobody has to end them
            driver = start(images, out, *SHARD, "--workers", "2")
    code, said = finished(driver)
    assert code == 6, said
    assert ends
    assert tree(out) == tree(whole)  # with nothing left over
    assert processes(out) == []


def test_stopped_by_sigterm_it_continues(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 12)
    out = tmp_path / "out"
    driver = start(images, out, *SHARD, "--workers", "1")
    wait_for(lambda: list(out.glob(PARTS)) or driver.poll() is not None)
    second = start(images, out, *SHARD)
    code, said = finished(second)
    assert (code, "run_locked" in said) in {(2, True), (0, False)}, said  # the first may be done
    driver.send_signal(signal.SIGTERM)
    code, said = finished(driver)
    assert code in (143, 0), said
    assert processes(out) == []
    if code == 143:
        ledger = out / ".bulk" / "ledger"
        begun = [path.name for path in ledger.glob("*/attempt-*") if path.is_file()]
        done = [path.stem for path in out.glob(PARTS)]
        assert len(begun) <= len(done)  # what was stopped on purpose is not suspect
    code, said = finished(start(images, out, *SHARD, "--workers", "2"))
    assert code == 0, said
    again = tmp_path / "again"
    shutil.copytree(out, again)
    for path in (*again.glob("part-000001*"), again / "objects.csv"):
        path.unlink()
    code, said = finished(start(images, again, *SHARD, "--workers", "1"))
    assert code == 0, said
    assert tree(again) == tree(out)


def test_a_shard_that_never_ends_is_said(tmp_path: Path) -> None:
    """Its worker is stopped: the run ends with a name, and what was stopped with it."""
    images = write_images(tmp_path / "in", 2)
    out = tmp_path / "out"
    flags = ("--workers", "1", "--no-progress", "0.1")
    driver = start(images, out, *flags)
    wait_for(lambda: (out / "plan.json").exists() or driver.poll() is not None)
    for worker in processes(out):
        os.kill(worker, signal.SIGSTOP)
    code, said = finished(driver)
    assert code in (5, 0), said
    assert code == 0 or "no_progress" in said
    assert processes(out) == []


def test_wrong_settings_end_before_the_work(tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 1)
    for flags, code in ((("--shard", "0"), 2), (("--engine", "none"), 2), (("--model", "no"), 4)):
        driver = start(images, tmp_path / "out", *flags)
        assert finished(driver)[0] == code
    assert isinstance(driver, subprocess.Popen)
    assert list((tmp_path / "out").glob("part-*")) == []
