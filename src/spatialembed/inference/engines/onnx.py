"""An ONNX graph of a torch module, for images of any number and size, and onnxruntime to run it.

It computes in float32, on the CPU: it has no bfloat16 convolutions there.
"""

from __future__ import annotations

import operator
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatialembed.errors import require
from spatialembed.inference.engines.folded import FoldedNet, Run
from spatialembed.types import Embeddings

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

INPUT = "image"
EXAMPLE = (2, 3, 37, 50)
"""No side is a multiple of a stride, so that the padding is part of the graph."""
OPSET = 18
"""What torch writes without converting once more."""
IMAGE_AXES = {0: "batch", 2: "height", 3: "width"}
"""Axes of (B, 3, H, W) that are left open, and what they are called in the graph."""


def to_onnx(module: nn.Module) -> ModelProto:
    """The graph of ``module(image)``: one input, INPUT, and the fields of ``Embeddings``, float32.

    module: in evaluation mode, on the CPU; from images of any size to ``Embeddings``.

    Raises SpatialEmbedError ``missing_extra`` (exit 2) without onnx and onnxscript.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "export", "an ONNX graph")
    import onnx
    import onnxscript

    op: Any = onnxscript.opset18
    double, int64 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64

    def times(x: Any, y: Any) -> Any:
        """A side times a scale in float64, as Python has it; the exporter takes float32."""
        if not isinstance(y, float):
            return op.Mul(x, y)
        scale = op.Constant(value=onnx.helper.make_tensor("scale", double, [], [y]))
        return op.Mul(op.Cast(x, to=double), scale)

    def rounded(x: Any, digits: None) -> Any:
        return op.Cast(op.Round(x), to=int64)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own internals
        program = torch.onnx.export(
            module,
            (torch.rand(EXAMPLE),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(Embeddings._fields),
            dynamic_shapes=(dict.fromkeys(IMAGE_AXES, torch.export.Dim.DYNAMIC),),
            custom_translation_table={operator.mul: times, round: rounded},
        )
    assert program is not None
    graph = program.model_proto
    _name_axes(graph)
    _forget_origin(graph)
    return graph


def _name_axes(graph: ModelProto) -> None:
    """The exporter calls them s53 or by the formula of padding and cropping."""
    for value in (*graph.graph.input, *graph.graph.output):
        sides = value.type.tensor_type.shape.dim
        for axis, name in IMAGE_AXES.items():
            sides[axis].dim_param = name
    del graph.graph.value_info[:]  # shapes in between, in terms of the old names


def _forget_origin(graph: ModelProto) -> None:
    """Stack traces, with the paths of this machine."""
    for part in (
        graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output,
        *graph.graph.initializer, *graph.functions,
    ):  # fmt: skip
        del part.metadata_props[:]


def session(model: bytes | str, threads: int | None, purpose: str) -> InferenceSession:
    """A model, or the path of one, in onnxruntime. threads: None leaves them to it.

    Raises SpatialEmbedError ``missing_extra`` (exit 2), and what onnxruntime raises.
    """
    require("onnxruntime", "export", purpose)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors, which are raised too
    providers = ["CPUExecutionProvider"]
    # Else it tries the same provider once more, and says so on the screen.
    return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)


def maps_of(running: InferenceSession, images: Tensor) -> Embeddings:
    """images (B, 3, H, W) float32 -> maps (B, ., H, W), by a graph of ``to_onnx``."""
    maps = running.run(Embeddings._fields, {INPUT: images.contiguous().numpy()})
    return Embeddings(*map(torch.from_numpy, maps))


def onnxruntime_run(net: FoldedNet, threads: int) -> Run:
    """``net``, of float32, as an onnxruntime session.

    Raises SpatialEmbedError ``missing_extra`` (exit 2).
    """
    require("onnxruntime", "export", "engine onnxruntime")  # before the graph, which takes long
    graph = to_onnx(net).SerializeToString()
    return partial(maps_of, session(graph, threads, "engine onnxruntime"))
