"""A model as one file that other programs run: ONNX, from the image to the maps.

    image -> normalised -> resized by scale -> padded -> network -> cropped -> maps of its size
             \\________ frame _________/       \\_______ folded ________/         frame

Input ``image``: (B, 3, H, W) float32, RGB in [0, 1], any size; integers are divided by the largest
value of their type. A normalisation by percentiles looks at the whole image and stays outside: such
a file takes the image normalised, and its metadata say how. Outputs: the fields of ``Embeddings``,
float32. ``metadata`` holds what clustering needs, so that the file is enough.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from rich.table import Table

from spatialembed import __version__, errors
from spatialembed.console import Stages
from spatialembed.errors import USAGE, SpatialEmbedError, require
from spatialembed.export.check import LIMITS, SIZES, Comparison, OnnxFile, compare
from spatialembed.export.frame import framed
from spatialembed.files import atomic_write, check_writable
from spatialembed.inference.engine import torch_engine
from spatialembed.inference.engines.folded import FoldedNet
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method.geometry import LOG_LIMIT, LOG_SCALE
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import UNIT

if TYPE_CHECKING:
    from onnx import ModelProto

Precision = Literal["float32", "float16"]
FORMAT_VERSION = 1
"""Of the metadata; raised where a reader of an older one would be misled."""


def export_onnx(
    predictor: Predictor,
    path: str | Path,
    *,
    precision: Precision = "float32",
) -> Path:
    """Write a model as one ONNX file, opset 18.

    Args:
        predictor: A model whose engine keeps its network, as "torch" does.
        path: File to write, ending in .onnx.
        precision: Of weights and convolutions. With "float16" the output layers, the activations
            and all geometry stay float32, since neither the coordinates of a wide image nor exp(10
            r) fit.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``bad_setting``, ``not_writable``, ``missing_extra`` (exit 2, before
            anything is computed); ``disk_full`` (exit 5).
    """
    path = _checked(predictor, path, precision)
    model = _model(predictor, precision)
    with atomic_write(path) as temporary:  # one file: far from the 2 GB that ONNX parts at
        temporary.write_bytes(model.SerializeToString())
    return path


def metadata(info: ModelInfo, precision: str) -> dict[str, Any]:
    """The file's description of itself beside the graph; each value is written as JSON."""
    percentile = info.normalization.kind == "percentile"
    range_ = "normalised as in normalization" if percentile else "in [0, 1]"
    return {
        "format_version": FORMAT_VERSION,
        "network": info.network,
        "class_names": list(info.class_names),  # one a seed map, in order
        "thresholds": asdict(info.thresholds),  # of the clustering, as ``ClusterOptions``
        "normalization": asdict(info.normalization),
        "normalization_inside": not percentile,  # or the caller's to do
        "scale": info.scale,  # magnification at which the network sees the image, inside
        "diameter": info.diameter,  # "auto": the model's own program tries other scales too
        "input": f"image (B, 3, H, W) float32, RGB, {range_}; any size",
        "unit": UNIT,  # px of one coordinate unit
        "elliptical": info.elliptical,  # two bandwidths a pixel, x and y
        "log_scale": LOG_SCALE,  # precision = exp(clamp(log_scale r, -log_limit, log_limit))
        "log_limit": LOG_LIMIT,
        "precision": precision,
        "licence": info.training.get("licence", "not stated"),  # of the weights
        "training": info.training,
        "calibration": None if info.calibration is None else asdict(info.calibration),
    }


# ---------------------------------------------------------------- the graph


def _checked(predictor: Predictor, path: str | Path, precision: str) -> Path:
    """``path``, once all that can be refused beforehand is fine: a model takes a while."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export", "export to ONNX")
    choices, path, remedy = get_args(Precision), Path(path), "choose another file by --out"
    errors.check(precision in choices, f"precision {precision!r}", f"use {' or '.join(choices)}")
    _net(predictor)
    if path.is_dir():
        raise SpatialEmbedError("not_writable", f"{path}: is a folder", remedy, USAGE)
    named = path.suffix.lower() == ".onnx"
    errors.check(named, f"--out {path}: the file will be ONNX", "give it a name that ends in .onnx")
    check_writable(path.parent, remedy)
    return path


def _net(predictor: Predictor) -> SpatialEmbeddingNet:
    """The network that the engine was made from, wherever it is."""
    net: Any = getattr(predictor.engine, "net", None)
    there = isinstance(net, SpatialEmbeddingNet)
    errors.check(there, "a predictor without its network", "load the model with engine torch")
    return net


def _model(predictor: Predictor, precision: str) -> ModelProto:
    """The checked graph from images to maps, on the CPU whatever the device, with metadata."""
    import onnx

    info = predictor.info
    dtype = torch.float16 if precision == "float16" else torch.float32
    net = copy.deepcopy(_net(predictor)).to("cpu", torch.float32)
    model = framed(FoldedNet(net, dtype), info.normalization, info.scale)
    model.producer_name, model.producer_version = "spatialembed", __version__
    model.graph.name = "spatialembed"
    entries = metadata(info, precision)
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    model.graph.input[0].doc_string = str(entries["input"])
    onnx.checker.check_model(model, full_check=True)
    return model


# ---------------------------------------------------------------- the verb


@dataclass(frozen=True)
class ExportReport:
    """What became of an export."""

    path: Path
    precision: str
    licence: str  # of the weights
    comparisons: tuple[Comparison, ...] = ()  # against torch, on request

    @property
    def checked(self) -> Path:
        """Where ``write`` puts the numbers."""
        return self.path.with_name(f"{self.path.name}.check.json")

    @property
    def passed(self) -> bool:
        """Whether all that was compared is within LIMITS."""
        return all(row.within(LIMITS[self.precision]) for row in self.comparisons)

    def lines(self) -> list[str]:
        """The report, for the terminal."""
        size = self.path.stat().st_size / 1e6
        lines = [f"{self.path}: {self.precision}, {size:.1f} MB; {self.licence}"]
        if self.comparisons:
            verdict = "agrees with torch" if self.passed else "DIFFERS from torch"
            lines.append(f"{verdict}; {self.checked.name} has the numbers")
        return lines

    def table(self) -> Table:
        """The comparison with torch, a row for each size, for the terminal."""
        table = Table(title=f"{self.path.name}, {self.precision}, against torch in float32")
        for name in ("size", "batch", "offset px", "log-prec.", "seed", "objects", "other owner"):
            table.add_column(name, justify="right")
        for row in self.comparisons:
            objects = f"{row.instances} of {row.instances_torch}"
            table.add_row(
                f"{row.height} x {row.width}",
                str(row.batch),
                *(f"{value:.1e}" for value in (row.offset_px, row.log_precision, row.seed)),
                objects,
                f"{row.pixels:.2%}",
            )
        return table

    def write(self) -> Path:
        """Write ``<file>.check.json`` beside the file."""
        facts = {
            "file": self.path.name,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "spatialembed": __version__,
            "torch": torch.__version__,
            "precision": self.precision,
            "limits": LIMITS[self.precision]._asdict(),
            "passed": self.passed,
            "comparisons": [asdict(row) for row in self.comparisons],
        }
        with atomic_write(self.checked) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return self.checked


def export(
    predictor: Predictor,
    path: str | Path,
    *,
    precision: Precision = "float32",
    check: bool = False,
    progress: bool = True,
) -> ExportReport:
    """``export_onnx``, then a report on the file.

    check: compare maps and instances with torch in float32 at five sizes. progress: a bar on
    stderr.

    Raises SpatialEmbedError as ``export_onnx``.
    """
    path = _checked(predictor, path, precision)  # before a bar, which would stay above the refusal
    with Stages(progress, "export") as stages:
        stages.begin("network to ONNX", None)
        export_onnx(predictor, path, precision=precision)
        exported, comparisons = OnnxFile(path), list[Comparison]()
        if check:
            stages.begin("check", len(SIZES))
            info, cpu = predictor.info, torch.device("cpu")
            reference = torch_engine(_net(predictor), device=cpu, scale=info.scale)
            comparisons = compare(reference, exported, info, stages.advance)
    licence = f"licence of the weights: {exported.licence}"
    report = ExportReport(path, precision, licence, tuple(comparisons))
    if check:
        report.write()
    return report
