"""kill -9 at random moments of predict, tiled predict and train: what an unbroken run would give?

    python benchmarks/chaos.py [--kills 20] [--what predict,tiled,train] [--log runs/chaos.jsonl]

Each trial starts a command, kills it and all that it started at a moment drawn from the time an
unbroken run takes, starts it again (train with --resume) to the end, and compares every result
with that of the unbroken run, bit for bit; besides, nothing temporary may be left. Commands are
forks of this process, which has imported all that they need: most kills would meet the import of
torch. One line a trial goes to the log; with the same log the next call goes on where the last one
stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from spatialembed.command import main
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder

IMPORTED = (
    "training.train", "inference.predict_folder", "inference.predict_large", "evaluation.tune",
    "data.open", "results.outline_files", "results.overlay",
)  # fmt: skip
"""Before a command is forked: else most kills would meet the import of torch."""
CPU = ["--device", "cpu"]
ENGINE = [*CPU, "--engine", "torch", "--precision", "float32"]
STAGE = ["--stage1.epochs", "3", "--stage1.crop", "32", "--stage1.batch", "2"]
LEARN = [*CPU, *STAGE, "--workers", "1", "--validate-every", "1"]
KINDS = ("predict", "tiled", "train")
COMPARED = (".png", ".csv", ".json", ".tif", ".safetensors", ".geojson")


def command(kind: str, data: Path, out: Path, *, again: bool = False) -> list[str]:
    images = str(data / "images")
    predict = ["predict", images, "--model", "shapes", "--out", str(out), *ENGINE]
    if kind == "predict":
        return [*predict, "--batch", "1", "--format", "labels,overlay,csv,coco,geojson"]
    if kind == "tiled":
        return [*predict, "--tile", "32", "--context", "16", "--format", "labels,csv,coco"]
    if again and (out / "run" / "config.yaml").exists():
        return ["train", "--resume", str(out / "run")]
    return ["train", "--data", str(data), "--out", str(out), "--name", "run", *LEARN]


def run(
    words: list[str], kill_after: float | None = None, *, fork: bool = False
) -> tuple[int, float, str]:
    """Exit code, seconds, and the end of what it said; killed with its children if it lives on.

    fork: of this process, which must not have computed with torch; else in a new Python.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        if fork:
            pid = os.fork()
            if pid == 0:
                _become(words, said.fileno())
        else:
            python = [sys.executable, "-m", "spatialembed", *words]
            settings = {**os.environ, "OMP_NUM_THREADS": "1"}
            files = [(os.POSIX_SPAWN_DUP2, said.fileno(), stream) for stream in (1, 2)]
            pid = os.posix_spawn(python[0], python, settings, file_actions=files, setsid=True)
        code = _ended(pid, None if kill_after is None else began + kill_after)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    return code, time.monotonic() - began, text[-2000:]


def _become(words: list[str], output: int) -> NoReturn:
    code = 99
    try:
        os.setsid()
        torch.set_num_threads(1)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        code = main.main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _ended(pid: int, until: float | None) -> int:
    """As ``Popen.returncode``."""
    while until is None or time.monotonic() < until:
        found, status = os.waitpid(pid, 0 if until is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    with suppress(ProcessLookupError):  # a fork that leads no group yet
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def results(kind: str, out: Path) -> dict[str, str]:
    """Hashes of what must not depend on kills; of a training, its weights and thresholds."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or path.suffix not in COMPARED:
            continue
        if kind == "train":
            if path.name == "model.json":
                facts = json.loads(path.read_text())
                facts = {k: facts[k] for k in ("thresholds", "calibration", "split") if k in facts}
                found[name] = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
            elif path.suffix == ".safetensors":
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def left_over(out: Path) -> list[str]:
    """Temporary files, work folders and locks."""
    hidden = (path for path in out.rglob(".*") if path.name != ".spatialembed-results")
    return [str(path.relative_to(out)) for path in hidden]


def trial(
    kind: str,
    data: Path,
    out: Path,
    seconds: float,
    expected: dict[str, str],
    *,
    exactly: bool = False,
    fork: bool = False,
) -> dict[str, Any]:
    """One kill within so many seconds, or exactly then, one run to the end, the faults found."""
    shutil.rmtree(out, ignore_errors=True)
    after = seconds if exactly else random.uniform(0, seconds)
    killed, _, _ = run(command(kind, data, out), after, fork=fork)
    code, _, text = run(command(kind, data, out, again=True), fork=fork)
    found = results(kind, out)
    faults = [f"exit {code}: {text}"] if code else []
    names = expected.keys() | found.keys()
    faults += [f"differs: {name}" for name in names if found.get(name) != expected.get(name)]
    faults += [f"left over: {name}" for name in left_over(out)]
    hit = killed == -signal.SIGKILL
    return {"kind": kind, "after": round(after, 2), "killed": hit, "faults": faults}


def campaign() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind, with those in the log")
    parser.add_argument("--what", default=",".join(KINDS))
    parser.add_argument("--log", type=Path, default=Path("runs/chaos.jsonl"))
    given = parser.parse_args()
    room = given.log.parent / f"{given.log.stem}.work"
    given.log.parent.mkdir(parents=True, exist_ok=True)
    lines = given.log.read_text().splitlines() if given.log.exists() else []
    rows = [json.loads(line) for line in lines]
    data = room / "data"
    for module in IMPORTED:
        importlib.import_module(f"spatialembed.{module}")
    if not data.exists():
        write_folder(SyntheticDataset("shapes", (64, 64), 6, seed=1), data, progress=False)
    for kind in given.what.split(","):
        done = sum(row["killed"] for row in rows if row["kind"] == kind)
        if done >= given.kills:
            continue
        unbroken = room / f"{kind}_unbroken"
        for _ in range(2):  # the first one may compile, and takes many times as long
            shutil.rmtree(unbroken, ignore_errors=True)
            code, seconds, text = run(command(kind, data, unbroken), fork=True)
            if code:
                print(f"{kind}: the unbroken run fails: {text}", file=sys.stderr)
                return 1
        expected = results(kind, unbroken)
        while done < given.kills:
            row = trial(kind, data, room / kind, seconds, expected, fork=True)
            rows.append(row)
            done += row["killed"]
            with given.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(kind, done, row["faults"] or "fine", flush=True)
    faulty = sum(bool(row["faults"]) for row in rows)
    kills = sum(row["killed"] for row in rows)
    print(f"{kills} kills, {faulty} with faults; {given.log}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(campaign())
