"""A model as one file that other programs run: ONNX, from the image to the maps.

    image -> normalised -> resized by scale -> padded -> network -> cropped -> maps of its size
             \\______ onnx_frame ______/       \\______ onnx_graph _____/       onnx_frame

Input ``image``: (B, 3, H, W) float32, RGB in [0, 1], any size; integers are divided by the largest
value of their type. A normalisation by percentiles looks at the whole image and stays outside: such
a file takes the image normalised, and its metadata say how. Outputs: the fields of ``Embeddings``,
float32. ``metadata`` holds what clustering needs, so that the file is enough.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from spatialembed import __version__
from spatialembed.console import console
from spatialembed.errors import USAGE, SpatialEmbedError, missing_extra
from spatialembed.export.check import LIMITS, SIZES, Comparison, OnnxFile, compare
from spatialembed.export.frame import framed
from spatialembed.export.int8 import Accuracy, judge, open_int8_images, quantized
from spatialembed.files import atomic_write, check_writable
from spatialembed.inference.engine import TorchEngine
from spatialembed.inference.engines.folded import FoldedNet
from spatialembed.inference.engines.onnx_graph import to_onnx
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method.geometry import LOG_LIMIT, LOG_SCALE
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import UNIT, Embeddings

if TYPE_CHECKING:
    from onnx import ModelProto

Precision = Literal["float32", "float16"]
_T = TypeVar("_T")
FORMAT_VERSION = 1
"""Of the metadata; raised where a reader of an older one would be misled."""
_EXAMPLE = (2, 3, 37, 50)  # no multiples of 8, so that the padding is part of the graph


def export_onnx(
    predictor: Predictor,
    path: str | Path,
    *,
    precision: Precision = "float32",
    int8: Sequence[np.ndarray] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Path:
    """Write a model as one ONNX file, opset 18.

    Args:
        predictor: A model whose engine keeps its network, as "torch" does.
        path: File to write, ending in .onnx.
        precision: Of weights and convolutions. With "float16" the output layers, the activations
            and all geometry stay float32, since neither the coordinates of a wide image nor exp(10
            r) fit.
        int8: Images as read, (H, W) or (H, W, 3), to calibrate 8-bit convolutions on; None: no
            8-bit convolutions.
        progress: Called after each of these images.

    Returns:
        The path.

    Raises:
        SpatialEmbedError: ``bad_setting``, ``not_writable``, ``missing_extra`` (exit 2, before
            anything is computed); ``disk_full`` (exit 5).
    """
    _check_settings(predictor, precision, int8 is not None)
    path = _writable(Path(path))
    network = _network(predictor, precision)
    if int8 is not None:
        network = quantized(network, int8, predictor.info, progress)
    return _write(_whole(network, predictor.info, precision if int8 is None else "int8"), path)


def metadata(info: ModelInfo, precision: str) -> dict[str, Any]:
    """The file's description of itself beside the graph; each value is written as JSON."""
    percentile = info.normalization.kind == "percentile"
    range_ = "normalised as in normalization" if percentile else "in [0, 1]"
    return {
        "format_version": FORMAT_VERSION,
        "class_names": list(info.class_names),  # one a seed map, in order
        "thresholds": asdict(info.thresholds),  # of the clustering, as ``ClusterOptions``
        "normalization": asdict(info.normalization),
        "normalization_inside": not percentile,  # or the caller's to do
        "scale": info.scale,  # magnification at which the network sees the image, inside
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


def _check_settings(predictor: Predictor, precision: str, int8: bool) -> None:
    """Refuse before anything is computed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise missing_extra(package, "export", "export to ONNX")
    choices = get_args(Precision)
    if precision not in choices:
        raise _refused(f"precision {precision!r}", f"use {' or '.join(choices)}")
    if int8 and precision != "float32":
        raise _refused(f"int8 and precision {precision} together", "leave one of them out")
    _net(predictor)


def _refused(what: str, remedy: str) -> SpatialEmbedError:
    return SpatialEmbedError("bad_setting", what, remedy, USAGE)


def _writable(path: Path) -> Path:
    """``path``, once it is known that such a file can be written: a model takes a while."""
    remedy = "choose another file by --out"
    if path.is_dir():
        raise SpatialEmbedError("not_writable", f"{path}: is a folder", remedy, USAGE)
    if path.suffix.lower() != ".onnx":
        raise _refused(f"--out {path}: the file will be ONNX", "give it a name that ends in .onnx")
    check_writable(path.parent, remedy)
    return path


def _network(predictor: Predictor, precision: str) -> ModelProto:
    """The graph from normalised images to maps, on the CPU whatever the device."""
    dtype = torch.float16 if precision == "float16" else torch.float32
    net = FoldedNet(_copy(_net(predictor)), dtype).eval()
    return to_onnx(net, torch.rand(_EXAMPLE), outputs=Embeddings._fields)


def _net(predictor: Predictor) -> SpatialEmbeddingNet:
    """The network that the engine was made from, wherever it is."""
    net = getattr(predictor.engine, "net", None)
    if not isinstance(net, SpatialEmbeddingNet):
        raise _refused("a predictor without its network", "load the model with engine torch")
    return net


def _copy(net: SpatialEmbeddingNet) -> SpatialEmbeddingNet:
    """On the CPU whatever the device, float32."""
    return copy.deepcopy(net).to("cpu", torch.float32)


def _whole(network: ModelProto, info: ModelInfo, precision: str) -> ModelProto:
    """The checked model around the graph of a network, with its metadata."""
    import onnx

    model = framed(network, info.normalization, info.scale)
    model.producer_name, model.producer_version = "spatialembed", __version__
    model.graph.name = "spatialembed"
    entries = metadata(info, precision)
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
    model.graph.input[0].doc_string = str(entries["input"])
    onnx.checker.check_model(model, full_check=True)
    return model


def _write(model: ModelProto, path: Path) -> Path:
    """One file: weights are below 10 MB, far from the 2 GB that ONNX parts at."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


# ---------------------------------------------------------------- the verb


@dataclass(frozen=True)
class ExportReport:
    """What became of an export."""

    path: Path
    precision: str
    licence: str  # of the weights
    accuracy: Accuracy | None = None  # of an 8-bit export, where the images have masks
    comparisons: tuple[Comparison, ...] = ()  # against torch, on request

    @property
    def checked(self) -> Path:
        """Where ``write`` puts the numbers."""
        return self.path.with_name(f"{self.path.name}.check.json")

    @property
    def passed(self) -> bool:
        """Whether all that was compared is within LIMITS; 8 bits have none."""
        limits = LIMITS.get(self.precision)
        return limits is None or all(row.within(limits) for row in self.comparisons)

    def lines(self) -> list[str]:
        """The report, for the terminal."""
        size = self.path.stat().st_size / 1e6
        lines = [f"{self.path}: {self.precision}, {size:.1f} MB; {self.licence}"]
        if self.accuracy is not None:
            images, plain, eight, speedup = self.accuracy
            lines.append(
                f"AP on {images} images: float32 {plain:.4f}, int8 {eight:.4f} "
                f"({eight - plain:+.4f}); int8 is {speedup:.2f} times as fast here"
            )
        if self.comparisons:
            verdict = "agrees with torch" if self.passed else "DIFFERS from torch"
            if self.precision not in LIMITS:
                verdict = "compared with torch, without limits in 8 bits"
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
        limits = LIMITS.get(self.precision)
        facts = {
            "file": self.path.name,
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "spatialembed": __version__,
            "torch": torch.__version__,
            "precision": self.precision,
            "limits": None if limits is None else limits._asdict(),
            "passed": None if limits is None else self.passed,
            "comparisons": [asdict(row) for row in self.comparisons],
            "int8": None if self.accuracy is None else self.accuracy._asdict(),
        }
        with atomic_write(self.checked) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return self.checked


def export(
    predictor: Predictor,
    path: str | Path,
    *,
    precision: Precision = "float32",
    int8: str | Path | None = None,
    check: bool = False,
    progress: bool = True,
) -> ExportReport:
    """``export_onnx``, then a report on the file.

    int8: folder of images to calibrate 8-bit convolutions on; where it has images/ and masks/, the
    AP of both files on the images that were not used is in the report. check: compare maps and
    instances with torch in float32 at five sizes. progress: bars on stderr.

    Raises SpatialEmbedError as ``export_onnx`` and the reading of images do.
    """
    _check_settings(predictor, precision, int8 is not None)
    path, info = _writable(Path(path)), predictor.info
    images = None if int8 is None else open_int8_images(int8)
    accuracy, comparisons = None, list[Comparison]()
    with _steps(enabled=progress) as step:
        network = step("network to ONNX", 1, lambda _: _network(predictor, precision))
        model = whole = _whole(network, info, precision)
        if images is not None:
            pixels = images.calibration
            eight = step(
                "calibrate", len(pixels), lambda one: quantized(network, pixels, info, one)
            )
            model = _whole(eight, info, "int8")
        exported = OnnxFile(_write(model, path))
        if images is not None and (judged := images.judged) is not None:
            plain = OnnxFile(whole.SerializeToString())
            accuracy = step(
                "compare AP", len(judged), lambda one: judge(plain, exported, judged, info, one)
            )
        if check:
            torch_engine = TorchEngine(
                _net(predictor), device=torch.device("cpu"), scale=info.scale
            )
            comparisons = step(
                "check", len(SIZES), lambda one: compare(torch_engine, exported, info, one)
            )
    licence = f"licence of the weights: {exported.metadata['licence']}"
    report = ExportReport(path, exported.precision, licence, accuracy, tuple(comparisons))
    if check or accuracy is not None:
        report.write()
    return report


@contextmanager
def _steps(*, enabled: bool) -> Iterator[Callable[..., Any]]:
    """Bars on stderr: ``step(name, length, work)`` gives what ``work(advance)`` gives."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console(), disable=not enabled) as bars:

        def step(name: str, length: int, work: Callable[[Callable[[], None]], _T]) -> _T:
            task = bars.add_task(name, total=length)
            result = work(lambda: bars.advance(task))
            bars.update(task, completed=length)
            return result

        yield step
