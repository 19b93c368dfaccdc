"""The GPU kernel, interpreted on the processor, against the plain clustering; and compiled."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpu_scenes
from spatialembed.cluster import ClusterOptions, cluster_plain

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch alone")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the kernel finds in each scene."""
    out = tmp_path_factory.mktemp("gpu") / "found.pt"
    command = [sys.executable, str(Path(gpu_scenes.__file__)), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.mark.parametrize("name", sorted(set(gpu_scenes.scenes()) - {"one place"}))
def test_equals_the_plain_way(name: str, results: dict[str, Any]) -> None:
    labels, scores, classes = results[name]
    truth = cluster_plain(gpu_scenes.scenes()[name], ClusterOptions(**gpu_scenes.RULES))
    for b, expected in enumerate(truth):
        torch.testing.assert_close(labels[b], expected.labels, rtol=0, atol=0)
        torch.testing.assert_close(scores[b], expected.scores, rtol=0, atol=0)
        torch.testing.assert_close(classes[b], expected.classes, rtol=0, atol=0)


def test_scenes_show_something(results: dict[str, Any]) -> None:
    """Overlaps between classes, rejected rounds and many groups do occur."""
    assert [len(s) for s in results["batch"][1]] != [0, 0, 0]
    assert len(results["classes"][1][0]) > 3
    assert len(set(results["classes"][2][0].tolist())) == 3


def test_gives_up_where_time_would_be_quadratic(results: dict[str, Any]) -> None:
    assert results["one place"] is None


def test_compiles_and_rounds_as_the_processor_does() -> None:
    """For an H100 or H200, without one: no multiplication is fused with an addition."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spatialembed.kernels import gpu

    floats = dict.fromkeys(("x", "y", "precision_x", "precision_y"), "*fp32")
    flags = dict.fromkeys(("taken", "owner", "accepted", "gave_up"), "*i32")
    indices = dict.fromkeys(("position", "first", "across", "down", "begins", "cell_start"), "*i64")
    rules = {"share": "*fp64", "columns": "i32", "reach": "fp32", "min_pixels": "i32"}
    types = floats | flags | indices | rules | {"budget": "i64", "BLOCK": "constexpr"}
    signature = {name: types[name] for name in gpu._rounds.arg_names}
    source = ASTSource(gpu._rounds, signature, {"BLOCK": gpu.BLOCK})
    compiled = triton.compile(
        source, GPUTarget("cuda", 90, 32), {"num_warps": 8, "enable_fp_fusion": False}
    )
    assert compiled.asm["cubin"]
    assert "fma.rn.f32" not in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(set(gpu_scenes.scenes()) - {"one place"}))
def test_equals_the_plain_way_on_a_gpu(name: str) -> None:
    from spatialembed.kernels import gpu

    maps = gpu_scenes.scenes()[name]
    found = gpu.cluster(
        *(m.cuda() for m in gpu_scenes.arguments(maps)),
        reach=float(np.float32(math.log(2))),
        **gpu_scenes.RULES,
    )
    assert found is not None
    for b, expected in enumerate(cluster_plain(maps, ClusterOptions(**gpu_scenes.RULES))):
        assert torch.equal(found.labels[b].cpu(), expected.labels)
