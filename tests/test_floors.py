"""A file imports from lower floors only, never from its own; optional packages have one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "spatialembed"
FLOORS = {
    "types": 0, "errors": 0, "files": 0,
    "geometry": 1, "labels": 1, "lovasz": 1, "near": 1, "erfnet": 1, "kernels": 1,
    "arguments": 1, "ahead": 1, "colour": 1, "terminal": 1, "typed_json": 1, "onnx_graph": 1,
    "device": 1, "captions": 1,
    "model": 2, "loss": 2, "cluster": 2, "tiling": 2, "metrics": 2, "cityscapes_ap": 2,
    "transforms": 2, "render": 2, "calibration": 2, "ambiguity": 2, "engines": 2, "turns": 2,
    "onnx_frame": 2, "rescale": 2, "stages": 2,
    "data": 3, "checkpoint": 3, "engine": 3, "results": 3, "device_input": 3, "settings": 3,
    "runs": 3, "thresholds": 3, "options": 3, "gathered": 3, "official": 3,
    "onnx_check": 4, "onnx_int8": 4, "large": 4, "recommend": 4, "symptoms": 4, "anatomy": 4,
    "views": 4, "predict": 4, "scoring": 4, "training": 4, "convert": 4,
    "evaluate": 5, "bulk": 5, "bench": 5, "export": 5, "doctor": 5, "tune": 5,
    "train": 5,
    "demo": 6,
    "verbs": 7,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
INSIDE = {  # order inside a package; files of one rank do not import each other
    "engines": {
        "folded": 0, "choice": 0,
        "cuda_graphs": 1, "ort": 1, "vino": 1,
        "inductor": 2,
    },
    "kernels": {
        "jit": 0, "threads": 0,
        "hinge": 1, "pixels": 1, "png": 1, "outlines": 1, "candidates": 1,
        "groups": 2,
        "gpu": 3, "rounds": 3,
        "cpu": 4,
    },
    "data": {
        "checks": -2,
        "tiff": -1,
        "decode": 0, "listing": 0, "objects": 0, "silhouettes": 0, "png": 0, "dataset": 0,
        "images": 1, "tables": 1, "scenery": 1, "splitting": 1,
        "folder": 2, "synthetic": 2, "coco": 2, "streets": 2, "large": 2, "cityscapes": 2,
        "pixel_size": 2,
        "instance_index": 2,
        "module": 3, "probe": 3, "selection": 3, "overview": 3,
        "twins": 4,
        "survey": 5,
    },
    "scoring": {"label": 0, "cityscapes": 0, "coco": 0},
    "training": {"setup": 0, "module": 1, "validation": 1, "callbacks": 2},
    "results": {
        "charts": -2, "page": -1, "look": -1, "reliability": -1, "measure": -1,
        "polygons": -1, "cityscapes": -1,
        "geojson": 0, "imagej": 0, "detections": 0, "formats": 0,
        "large": 0, "coco": 0, "labels": 0, "overlay": 0, "table": 0, "report": 0, "tuning": 0,
        "ambiguity_map": 0, "advice": 0, "findings": 0,
        "sheet": 0, "run_page": 0, "gallery": 1,
        "survey_page": 1, "folder": 2, "benchmark": 1,
    },
}  # fmt: skip
ZERO_ALLOWED = {("files", "errors")}  # the atomic write raises the one exception
DOORS = {
    "lightning": {"train", "training.module", "training.callbacks", "data.module"},
    "torchvision": {"transforms"},
    "numba": {"kernels.jit"},
    "triton": {"kernels.gpu"},
    "onnx": {"export", "onnx_graph", "onnx_frame", "onnx_int8"},
    "onnxscript": {"onnx_graph"},
    # onnx_int8: its calibration and quantisation; onnx_check: what runs is the exported file itself
    "onnxruntime": {"engines.ort", "onnx_check", "onnx_int8"},
    "openvino": {"engines.vino"},
    "cityscapesscripts": {"official"},
    "faster_coco_eval": {"official", "data.coco"},
    "pycocotools": set(),
    "zarr": {"data.large", "results.large"},
    "shapely": {"results.polygons"},
    "roifile": {"results.imagej"},
    "supervision": {"results.detections"},
    "tifffile": {"data.tiff", "data.large", "data.pixel_size", "results.labels", "results.large"},
    "PIL": {"data.decode", "data.images", "data.scenery", "data.streets", "render", "captions"},
}
LONGEST = 400  # lines of a file
TORCH_FREE = {
    "__init__", "types", "errors", "files",
    "kernels.jit", "kernels.cpu", "kernels.hinge", "kernels.pixels",
    "kernels.threads", "kernels.candidates", "kernels.groups", "kernels.rounds",
}  # fmt: skip


def modules() -> list[str]:
    paths = sorted(SOURCE.rglob("*.py"))
    names = (".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths)
    return [name for name in names if not name.endswith("__init__")]


def path_of(module: str) -> Path:
    return SOURCE / (module.replace(".", "/") + ".py")


def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(module: str, *, run_time_only: bool = False) -> set[str]:
    """Full names of what a module imports, anywhere in it."""
    found = set()
    todo: list[ast.AST] = [tree_of(module)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if not (run_time_only and is_type_checking(node)):
            todo.extend(ast.iter_child_nodes(node))
    return found


def own(name: str) -> str:
    return name.removeprefix("spatialembed.")


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    top = module.split(".", maxsplit=1)[0]
    assert top in FLOORS, f"{module} has no floor: name it in DESIGN's plan and in FLOORS"
    for name in imports(module):
        if not name.startswith("spatialembed."):
            continue
        other = own(name).split(".")
        if other[0] == "__version__" or (top, other[0]) in ZERO_ALLOWED:
            continue
        if other[0] == top and top in INSIDE:
            mine, its = INSIDE[top][module.split(".")[1]], INSIDE[top][other[1]]
            assert its < mine, f"{module} imports {name} of its own rank or above"
        else:
            assert FLOORS[other[0]] < FLOORS[top], (
                f"{module} imports {name} of its own floor or above"
            )


@pytest.mark.parametrize("module", modules())
def test_doors(module: str) -> None:
    for name in imports(module):
        door = DOORS.get(name.split(".")[0])
        assert door is None or module in door, f"{module} imports {name}; its door is {door}"


@pytest.mark.parametrize("module", modules())
def test_files_are_short(module: str) -> None:
    lines = path_of(module).read_text().count("\n")
    assert lines <= LONGEST, f"{module} has {lines} lines: part it along a seam"


@pytest.mark.parametrize("module", sorted(TORCH_FREE - {"__init__"}))
def test_torch_free(module: str) -> None:
    names = imports(module, run_time_only=True)
    assert not {name for name in names if name.split(".")[0] == "torch"}
    for name in names:
        if name.startswith("spatialembed."):
            assert own(name).split(".")[0] in {"types", "errors", "files", "kernels"}
