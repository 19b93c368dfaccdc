"""Bulk prediction: the same bytes on every engine, ratios, a plan of a million names, kills.

    python benchmarks/bulk.py demo                  200 images by local processes and by Ray: hashes
    python benchmarks/bulk.py ratios --images 400   seconds and processor seconds beside predict
    python benchmarks/bulk.py plan                  a million names: seconds and memory
    python benchmarks/bulk.py memory --images 200   of a worker, after each of its shards of four
    python benchmarks/bulk.py kills --drivers 20 --workers 100 [--on ray]    kill -9 at random
    python benchmarks/bulk.py nodes --images 2000   Ray on two nodes: one is lost, five times

All print one line of JSON a row. Images have 64 px, the model is shapes, engine torch in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder

ROOT = Path(__file__).parents[1]
CLI = [sys.executable, "-m", "spatialembed"]
SETTINGS = [
    "--model", "shapes", "--device", "cpu", "--engine", "torch", "--precision", "float32",
]  # fmt: skip


def command(verb: str, images: Path, out: Path, *flags: str) -> list[str]:
    return [*CLI, verb, str(images), "--out", str(out), *SETTINGS, *flags]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = subprocess.PIPE
    return subprocess.Popen(
        words, env=settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def run(words: list[str]) -> dict[str, Any]:
    """Seconds, seconds of processors of all its processes, and how it ended."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = start(words)
    said = process.communicate()[0].decode("utf-8", "replace")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode not in (0, 6):
        raise SystemExit(f"exit {process.returncode}: {said[-2000:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.monotonic() - begun, 1), "cpu": round(used, 1)}


def digest(out: Path) -> str:
    """Of all files below a folder with their names: what is left over counts too."""
    total = hashlib.sha256()
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        total.update(path.relative_to(out).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def workers(out: Path) -> list[int]:
    """Processes of ``bulk.worker`` for a folder; those of ``/proc`` alone are seen."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"spatialembed.bulk.worker" in words and str(out).encode() in words[-2]:
                    found.append(int(entry.name))
    return found


def demo(images: Path, room: Path, given: argparse.Namespace) -> int:
    hashes = set()
    for on in ("local", "ray"):
        spent = run(command("bulk", images, room / on, "--on", on, "--shard", "16"))
        hashes.add(digest(room / on))
        print(json.dumps({"on": on, **spent, "hash": digest(room / on)}), flush=True)
    return len(hashes) - 1


def ratios(images: Path, room: Path, given: argparse.Namespace) -> int:
    predict = ["--batch", "1", "--threads", "1", "--format", "labels,csv,coco"]
    runs = {"predict": command("predict", images, room / "predict", *predict)}
    for number in (1, 2):
        flags = ["--workers", str(number), "--shard", "32"]
        runs[f"local {number}"] = command("bulk", images, room / f"local{number}", *flags)
        if given.on == "ray":
            ray = [*flags, "--on", "ray"]
            runs[f"ray {number}"] = command("bulk", images, room / f"ray{number}", *ray)
    for name, words in runs.items():
        print(json.dumps({"run": name, "images": given.images, **run(words)}), flush=True)
    return 0


def plan(_: Path, room: Path, given: argparse.Namespace) -> int:
    """In a process of its own, whose memory is measured."""
    names = room / "names.txt"
    with names.open("w") as file:
        file.writelines(f"plate{i // 3000:04d}/well{i % 3000:04d}.png\n" for i in range(1_000_000))
    text = (
        "import sys, time; from pathlib import Path\n"
        "from spatialembed.bulk import plan, sources, store\n"
        "begun = time.monotonic(); used = time.process_time()\n"
        "images = sources.list_inputs([sys.argv[1]], sys.argv[2])\n"
        "plan.make_or_check(store.Folder(Path(sys.argv[2])), images, {}, 256, False)\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"  # maxrss outlives an exec
        "most = next(int(line.split()[1]) // 1024 for line in lines if 'VmHWM' in line)\n"
        "print(len(images), round(time.monotonic() - begun, 1),\n"
        "      round(time.process_time() - used, 1), most)\n"
    )
    words = [sys.executable, "-c", text, str(names), str(room / "plan")]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    keys = ("names", "seconds", "cpu", "megabytes")
    print(json.dumps(dict(zip(keys, map(float, said), strict=True))))
    return 0


def memory(images: Path, room: Path, given: argparse.Namespace) -> int:
    out, seen = room / "memory", {}
    process = start(command("bulk", images, out, "--workers", "1", "--shard", "4"))
    while process.poll() is None:
        done = len(list(out.glob("part-*.jsonl")))
        for worker in workers(out):
            with suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
                seen[done] = pages * resource.getpagesize() >> 20
        time.sleep(0.05)
    process.communicate()
    shown = {str(n): seen[n] for n in sorted(seen) if n in (1, 2, 5) or n % 10 == 0}
    print(json.dumps({"megabytes after so many shards": shown}))
    return process.returncode or 0


def kills(images: Path, room: Path, given: argparse.Namespace) -> int:
    """Drivers and workers at moments drawn at random; then the hash of an unbroken run."""
    flags = ["--shard", str(given.shard), "--workers", "2"]
    spent = run(command("bulk", images, room / "whole", *flags))
    want, chance = digest(room / "whole"), random.Random(given.seed)
    print(json.dumps({"unbroken": want, **spent}), flush=True)
    flags += ["--on", given.on]
    done = {"drivers": 0, "workers": 0}
    rounds, faults = 0, 0
    while done["drivers"] < given.drivers or done["workers"] < given.workers:
        out = room / "killed"
        shutil.rmtree(out, ignore_errors=True)
        ended, starts = False, 0
        while not ended:
            starts += 1
            process = start(command("bulk", images, out, *flags))
            dies = time.monotonic() + chance.uniform(1, spent["seconds"])
            dies = dies if done["drivers"] < given.drivers else float("inf")
            while process.poll() is None:
                time.sleep(chance.uniform(0.1, given.pause))
                found = workers(out)
                if found and chance.random() < 0.5 and done["workers"] < given.workers:
                    with suppress(ProcessLookupError):
                        os.kill(chance.choice(found), signal.SIGKILL)
                        done["workers"] += 1
                if time.monotonic() > dies:
                    process.kill()
                    done["drivers"] += 1
                    break
            said = process.communicate()[0].decode("utf-8", "replace")
            ended = process.returncode >= 0
        same = process.returncode == 0 and digest(out) == want
        until = time.monotonic() + 120
        while workers(out) and time.monotonic() < until:
            time.sleep(0.5)
        left = len(workers(out))
        rounds, faults = rounds + 1, faults + (not same or left > 0)
        row = {"round": rounds, "starts": starts, **done, "same": same, "left": left}
        print(json.dumps(row), "" if same else said[-3000:], flush=True)
    return 1 if faults else 0


def nodes(images: Path, room: Path, given: argparse.Namespace) -> int:
    """Of two nodes one at a time is lost as without power, and replaced; then the hash."""
    flags = ["--shard", str(given.shard)]
    print(json.dumps(run(command("bulk", images, room / "whole", *flags))), flush=True)
    cluster = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "ray_cluster.py"), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    begun, lost, out = time.monotonic(), [], room / "out"
    try:
        said = next(line for line in cluster.stdout if line.startswith("address "))
        driver = start(command("bulk", images, out, *flags, "--on", said.split()[1]))
        while len(lost) < given.lost and driver.poll() is None:
            before = len(list(out.glob("part-*.jsonl")))
            while len(list(out.glob("part-*.jsonl"))) < before + 4 and driver.poll() is None:
                time.sleep(0.1)
            cluster.stdin.write("\n")
            cluster.stdin.flush()
            next(line for line in cluster.stdout if line.startswith("replaced"))
            lost.append(len(list(out.glob("part-*.jsonl"))))
        words = driver.communicate()[0].decode("utf-8", "replace")
    finally:
        cluster.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            cluster.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(cluster.pid, signal.SIGKILL)
    same = driver.returncode == 0 and digest(out) == digest(room / "whole")
    row = {"nodes lost after so many parts": lost, "exit": driver.returncode, "same": same}
    row["seconds"] = round(time.monotonic() - begun, 1)
    print(json.dumps(row), "" if same else words[-3000:], flush=True)
    return 0 if same and len(lost) == given.lost else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = {f.__name__: f for f in (demo, ratios, plan, memory, kills, nodes)}
    parser.add_argument("what", choices=what)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--on", default="local", choices=("local", "ray"))
    parser.add_argument("--shard", type=int, default=8)
    parser.add_argument("--drivers", type=int, default=20)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--lost", type=int, default=5, help="nodes")
    parser.add_argument("--pause", type=float, default=4.0, help="s between kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        if given.what != "plan":
            scenes = SyntheticDataset("shapes", (64, 64), given.images, seed=1)
            write_folder(scenes, room / "data", progress=False)
        return what[given.what](room / "data" / "images", room, given)


if __name__ == "__main__":
    sys.exit(main())
