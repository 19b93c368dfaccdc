"""Short forms of ``benchmarks/soak.py`` and ``chaos.py``: nothing is left open, no kill is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.inference.predictor import load

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import chaos

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts as Linux does")


@pytest.mark.slow
def test_descriptors_and_threads_stay_as_many() -> None:
    predictor = load("shapes", device="cpu", engine="torch", precision="float32")
    rng = np.random.default_rng(0)

    def pass_some() -> tuple[int, int]:
        images = (rng.integers(0, 40, rng.integers(1, 80, 2), np.uint8) for _ in range(12))
        assert len(list(predictor.map(images, batch=3))) == 12
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    first = pass_some()
    assert [pass_some() for _ in range(3)] == [first] * 3


SHAPES = """
import numpy as np, torch
from torch.backends import mkldnn
from spatialembed import load
predictor = load("shapes", device="cpu", engine="torch", precision="float32")
sides = range(40, 200, 16)
images = [np.zeros((height, width), np.uint8) for height in sides for width in sides]
for image in images:
    predictor(image)
with mkldnn.verbose(mkldnn.VERBOSE_ON_CREATION):
    for image in images:
        predictor(image)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["", "4096"])
def test_convolutions_of_few_shapes_are_kept(kept: str) -> None:
    """oneDNN tells what it prepares once more, unless the user has asked for room for all."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    others = {name: value for name, value in os.environ.items() if name not in names}
    env = others | {"OMP_NUM_THREADS": "1"} | (dict.fromkeys(names, kept) if kept else {})
    done = subprocess.run(
        [sys.executable, "-c", SHAPES], env=env, capture_output=True, text=True, check=True
    )
    assert "onednn_verbose" in done.stdout
    assert ("create:cache_miss" in done.stdout) == (not kept)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.7, 0.95])
def test_a_killed_prediction_is_completed(tmp_path: Path, share: float) -> None:
    data = tmp_path / "data"
    write_folder(SyntheticDataset("shapes", (64, 64), 4, seed=1), data, progress=False)
    code, seconds, text = chaos.run(chaos.command("predict", data, tmp_path / "whole"))
    assert code == 0, text
    expected = chaos.results("predict", tmp_path / "whole")
    assert len(expected) > 8
    after = share * seconds
    row = chaos.trial("predict", data, tmp_path / "killed", after, expected, exactly=True)
    assert row["faults"] == []
