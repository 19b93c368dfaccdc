"""Short forms of ``benchmarks/soak.py`` and ``chaos.py``: nothing is left open, no kill is seen."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

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
