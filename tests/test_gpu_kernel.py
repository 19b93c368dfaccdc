"""The GPU kernel, interpreted on the processor, against the plain clustering; and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu_scenes
from plain_cluster import cluster_plain
from spatialembed.method.cluster import ClusterOptions, _cluster_on_gpu, cluster

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch alone")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the kernel finds in each scene."""
    out = tmp_path_factory.mktemp("gpu") / "found.pt"
    command = [sys.executable, str(Path(gpu_scenes.__file__)), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"})
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(gpu_scenes.scenes()) - set(gpu_scenes.GIVEN_UP)))
def test_equals_the_plain_way(name: str, results: dict[str, Any]) -> None:
    truth = cluster_plain(gpu_scenes.scenes()[name], ClusterOptions(**gpu_scenes.RULES))
    for (labels, scores, classes), expected in zip(results[name], truth, strict=True):
        torch.testing.assert_close(labels, expected.labels, rtol=0, atol=0)
        torch.testing.assert_close(scores, expected.scores, rtol=0, atol=0)
        torch.testing.assert_close(classes, expected.classes, rtol=0, atol=0)


def test_scenes_show_something(results: dict[str, Any]) -> None:
    """Overlaps between classes, rejected rounds and many groups do occur."""
    assert [len(scores) for _, scores, _ in results["batch"]] != [0, 0, 0]
    assert set(results["classes"][0][2].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", gpu_scenes.GIVEN_UP)
def test_leaves_to_the_processor(name: str, results: dict[str, Any]) -> None:
    """Values that are no numbers, and what would take quadratic time."""
    assert results[name] is None


def test_compiles_and_rounds_as_the_processor_does() -> None:
    """For an H100 or H200, without one: no multiplication is fused with an addition."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spatialembed.method.kernels import gpu

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


def test_runs_on_the_device_of_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which need not be that of the maps."""
    from spatialembed.method.kernels import gpu

    steps: list[str] = []

    @contextmanager
    def device_of(maps: torch.Tensor) -> Iterator[None]:
        steps.append("enter")
        yield
        steps.append("leave")

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(gpu, "cluster", lambda *maps, **options: steps.append("launch"))
    maps = gpu_scenes.scenes()["disks"]
    assert _cluster_on_gpu(maps, ClusterOptions(), ("object",)) is None
    assert steps == ["enter", "launch", "leave"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(set(gpu_scenes.scenes()) - {"not a number"}))
def test_equals_the_plain_way_on_a_gpu(name: str) -> None:
    maps, options = gpu_scenes.scenes()[name], ClusterOptions(**gpu_scenes.RULES)
    found = cluster(type(maps)(*(m.cuda() for m in maps)), options)
    for mine, expected in zip(found, cluster_plain(maps, options), strict=True):
        assert torch.equal(mine.labels.cpu(), expected.labels)
        assert torch.equal(mine.scores.cpu(), expected.scores)
        assert torch.equal(mine.classes.cpu(), expected.classes)
