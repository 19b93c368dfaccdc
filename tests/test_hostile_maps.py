"""Hostile maps through the public clustering: one result, whichever way; no access out of bounds.

That time grows with the pixels is held by ``test_cluster`` in steps and measured in seconds by
``benchmarks/hostile.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hostile_maps import KINDS, hostile_maps
from plain_cluster import cluster_plain
from spatialembed.method.cluster import ClusterOptions, cluster


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (40, 40)], ids=str)
def test_both_ways_agree(kind: str, size: tuple[int, int]) -> None:
    for options in (ClusterOptions(min_pixels=0), ClusterOptions(min_pixels=3, start=0.7)):
        ours, plain = (
            way(hostile_maps(kind, *size), options)[0] for way in (cluster, cluster_plain)
        )
        assert torch.equal(ours.labels, plain.labels)
        assert torch.equal(ours.scores, plain.scores)
        assert ours.labels.shape == size


@pytest.mark.slow
def test_within_bounds(tmp_path: Path) -> None:
    """numba checks no index unless told to; its kernels are compiled anew, so into a new cache."""
    code = (
        "from hostile_maps import KINDS, hostile_maps\n"
        "from spatialembed.method.cluster import ClusterOptions, cluster\n"
        "for kind in KINDS:\n"
        "    cluster(hostile_maps(kind, 24, 31), ClusterOptions(min_pixels=0))\n"
        "print('all', len(KINDS))\n"
    )
    settings = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    settings["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"all {len(KINDS)}\n", done.stderr
