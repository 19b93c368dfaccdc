"""An ONNX graph of a torch module, for images of any number and size."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatialembed.errors import missing_extra

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
"""What torch writes without converting once more."""
IMAGE_AXES = {0: "batch", 2: "height", 3: "width"}
"""Axes of (B, 3, H, W) that are left open, and what they are called in the graph."""


def to_onnx(
    module: nn.Module,
    example: Tensor,
    *,
    entry: str = "images",
    outputs: Sequence[str],
    axes: Mapping[int, str] = IMAGE_AXES,
) -> ModelProto:
    """The graph of ``module(images)`` with one input, ``entry``, and the named ``outputs``.

    module: in evaluation mode; it returns as many tensors as there are names. example: an input of
    the type and device that the graph is for; its sizes along ``axes`` must be above 1 and, so that
    padding is seen, no multiples of 8; the graph takes any. Each output keeps ``axes`` too.

    Raises SpatialEmbedError ``missing_extra`` (exit 2) without onnx and onnxscript.
    """
    try:
        import onnx
        import onnxscript
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), "export", "an ONNX graph") from error
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
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[entry],
            output_names=list(outputs),
            dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
            custom_translation_table={operator.mul: times, round: rounded},
        )
    assert program is not None
    graph = program.model_proto
    _name_axes(graph, axes)
    _forget_origin(graph)
    return graph


def _name_axes(graph: ModelProto, axes: Mapping[int, str]) -> None:
    """The exporter calls them s53 or by the formula of padding and cropping."""
    for value in (*graph.graph.input, *graph.graph.output):
        sides = value.type.tensor_type.shape.dim
        for axis, name in axes.items():
            sides[axis].dim_param = name
    del graph.graph.value_info[:]  # shapes in between, in terms of the old names


def _forget_origin(graph: ModelProto) -> None:
    """Stack traces, with the paths of this machine."""
    for part in (
        graph, graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output,
        *graph.graph.initializer, *graph.functions,
    ):  # fmt: skip
        del part.metadata_props[:]
