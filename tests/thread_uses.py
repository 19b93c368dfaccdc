"""One process that uses a model in every way threads and processes allow; prints what it tried."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset
from spatialembed.inference.predictor import Predictor, load

IMAGES = [SyntheticDataset("shapes", (64, 64), 3, seed=2)[i].image for i in range(3)]


def model(engine: str = "torch") -> Predictor:
    return load("shapes", device="cpu", engine=engine, precision="float32")


def labels(predictor: Predictor) -> list[np.ndarray]:
    return [predictor(image).labels for image in IMAGES]


def alike(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """But for pixels that another order of summation decides."""
    return all((a != b).mean() < 0.01 for a, b in zip(found, expected, strict=True))


def in_child(work: Any, *, seconds: float = 60.0) -> int:
    """Exit code of a forked process: 0 if ``work()`` is true, -1 if it hangs."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    return os.waitstatus_to_exitcode(status)


def child(expected: list[np.ndarray]) -> None:
    """The target of a spawned process."""
    sys.exit(0 if alike(labels(model()), expected) else 2)


class Labels(Dataset[np.ndarray]):
    """Predicts in a loader process, by a model that is loaded there or was loaded before."""

    def __init__(self, predictor: Predictor | None) -> None:
        self.predictor = predictor

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> np.ndarray:
        self.predictor = self.predictor or model()
        return self.predictor(IMAGES[i]).labels


def refused(predictor: Predictor) -> bool:
    """Whether an engine whose threads are lost says so."""
    try:
        labels(predictor)
    except SpatialEmbedError as error:
        return error.code == "forked"
    return False


def main(others: list[str]) -> None:
    done: list[str] = []

    def check(name: str, fine: bool) -> None:
        print(name, "fine" if fine else "WRONG", flush=True)
        done.append(name)

    faulthandler.enable()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    torch.set_num_threads(2)
    check("fork before the first use", in_child(lambda: len(labels(model())) == 3) == 0)
    predictor = model()
    expected = labels(predictor)
    check("fork after use", in_child(lambda: alike(labels(predictor), expected)) == 0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: labels(predictor), range(8)))
    check("8 threads on one", all(alike(one, expected) for one in found))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: labels(model()), range(4)))
    check("4 in one process", all(alike(one, expected) for one in found))
    for threads in (1, 4, 2):
        torch.set_num_threads(threads)
        check(f"set_num_threads {threads}", alike(labels(predictor), expected))
    for given in (None, predictor):
        loader = DataLoader(Labels(given), batch_size=None, num_workers=2, timeout=60)
        rows = [np.asarray(row) for row in loader]
        check(f"loader processes, {'loaded before' if given else 'loaded there'}",
              alike(rows, expected))  # fmt: skip
    process = multiprocessing.get_context("spawn").Process(target=child, args=(expected,))
    process.start()
    process.join(120)
    check("spawn", process.exitcode == 0)
    for engine in others:
        other = model(engine)
        check(f"{engine} as torch", alike(labels(other), expected))
        check(f"{engine} after a fork", in_child(lambda other=other: refused(other)) == 0)
    print("tried", len(done))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(sys.argv[1:])
