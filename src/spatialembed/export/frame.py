"""What stands around the network in an exported file, in the text form of ONNX::

    image -> (x - mean) / std -> resize by scale -> network -> maps of the image's size

The same as ``normalization.normalize``, ``engine.resize`` and ``engine.map_back``. Where a map
grows or is sampled, Resize of ONNX does it. Where one is averaged while it shrinks, the antialias
filter of Resize is not torch's (random seed maps came out 0.05 off in onnxruntime 1.31, and
OpenVINO 2026.4 leaves the filter out). Two matrix products do that, whose weights follow from the
sizes::

    source pixel j -> target pixel i    w_ij = max(0, 1 - |j + 1/2 - (i + 1/2) r| / r)
    r = source side / target side >= 1  each row divided by its sum
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialembed.inference.engines.onnx_graph import OPSET
from spatialembed.method.geometry import LOG_SCALE
from spatialembed.types import Embeddings, Normalization

if TYPE_CHECKING:
    import onnx

INPUT = "image"
_FLOAT, _INT64, _DOUBLE = 1, 7, 11  # types of ONNX
_RESIZE = 'Resize <mode="linear", coordinate_transformation_mode="half_pixel", axes=[2, 3]>'


def framed(network: onnx.ModelProto, normalization: Normalization, scale: float) -> onnx.ModelProto:
    """The graph of a whole model, image (B, 3, H, W) to maps (B, ., H, W), around its network.

    network: one input (B, 3, h, w) float32, normalised; the fields of ``Embeddings`` as outputs,
    float32. scale: as of ``ModelInfo``. The result takes ``image``, float32: RGB in [0, 1], or
    normalised already where the model normalises by percentiles, which stays outside.
    """
    from onnx import compose

    network = compose.add_prefix(network, "network/")
    (entry,) = (value.name for value in network.graph.input)
    maps = [value.name for value in network.graph.output]  # offset, log_precision, seed
    bandwidths, classes = (
        value.type.tensor_type.shape.dim[1].dim_value for value in network.graph.output[1:]
    )
    before = _parsed(_before(normalization, scale), network)
    after = _parsed(_after(scale, bandwidths, classes), network)
    model = compose.merge_models(before, network, [("ready", entry)])
    raw = [f"raw_{name}" for name in Embeddings._fields]
    io_map = [*zip(maps, raw, strict=True), ("image_size", "size")]
    model = compose.merge_models(model, after, io_map)
    del model.opset_import[1:]  # it was listed once for each part
    del model.graph.value_info[:]  # the height and width of the network are not those of the image
    return model


def outside(normalization: Normalization) -> Normalization:
    """The part of a normalisation that the caller of the exported file must do."""
    return normalization if normalization.kind == "percentile" else Normalization("none")


def _parsed(graph: str, like: onnx.ModelProto) -> onnx.ModelProto:
    """A model of a graph in text, of the versions of another one."""
    from onnx import parser

    header = f'<ir_version: {like.ir_version}, opset_import: ["": {OPSET}]>'
    model = parser.parse_model(f"{header}\n{graph}")
    used = {name for node in model.graph.node for name in node.input}
    constants = [c for c in model.graph.initializer if c.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model


def _before(normalization: Normalization, scale: float) -> str:
    """image (B, 3, H, W) -> ready (B, 3, h, w), what the network sees; image_size (2,) = H, W."""
    fixed, mean, std = normalization.kind == "fixed", normalization.mean, normalization.std
    shifted = "x = Sub(image, mean)  normal = Div(x, std)"
    resized = f"""
        size = Cast <to={_DOUBLE}> (image_size)
        scaled = Mul(size, scale)
        rounded = Round(scaled)  # half to even, as Python does
        whole = Cast <to={_INT64}> (rounded)
        network_size = Max(whole, one)
        {_resized("normal", "ready", "image_size", "network_size", shrinks=scale < 1)}"""
    return f"""before
        (float[batch, 3, height, width] {INPUT})
        => (float[batch, 3, network_height, network_width] ready, int64[2] image_size)
        <float[1, 3, 1, 1] mean = {_numbers(mean)}, float[1, 3, 1, 1] std = {_numbers(std)},
         double scale = {{{scale!r}}}, int64 one = {{1}}> {{
        image_size = Shape <start=2, end=4> ({INPUT})
        {shifted if fixed else "normal = Identity(image)"}
        {"ready = Identity(normal)" if scale == 1 else resized}
    }}"""


def _after(scale: float, bandwidths: int, classes: int) -> str:
    """Maps (B, ., h, w) of the network -> those (B, ., H, W) of the image of size (2,) = H, W."""
    return f"""after
        (float[batch, 2, network_height, network_width] raw_offset,
         float[batch, {bandwidths}, network_height, network_width] raw_log_precision,
         float[batch, {classes}, network_height, network_width] raw_seed, int64[2] size)
        => (float[batch, 2, height, width] offset,
            float[batch, {bandwidths}, height, width] log_precision,
            float[batch, {classes}, height, width] seed)
        <int64[2] x_first = {{1, 0}}, int64[4] channels = {{1, 2, 1, 1}},
         float gain_of_log = {{{2 / LOG_SCALE}}}, int64[1] first = {{1}},
         float nought = {{0}}, float unit = {{1}}> {{
        {_kept() if scale == 1 else _mapped_back(bandwidths, shrinks=scale > 1)}
    }}"""


def _kept() -> str:
    return "\n".join(f"{name} = Identity(raw_{name})" for name in Embeddings._fields)


def _mapped_back(bandwidths: int, *, shrinks: bool) -> str:
    """As ``engine.map_back``."""
    return f"""
        map_size = Shape <start=2, end=4> (raw_offset)
        map_sides = Cast <to={_DOUBLE}> (map_size)
        image_sides = Cast <to={_DOUBLE}> (size)
        scale_64 = Div(map_sides, image_sides)
        scale_yx = Cast <to={_FLOAT}> (scale_64)
        scale_xy = Gather(scale_yx, x_first)
        by_axis = Reshape(scale_xy, channels)
        log_scale = Log(by_axis)
        gain_xy = Mul(log_scale, gain_of_log)
        gain = {"Identity(gain_xy)" if bandwidths == 2 else "ReduceMean(gain_xy, first)"}
        sampled_offset = {_RESIZE} (raw_offset, , , size)
        offset = Div(sampled_offset, by_axis)
        sampled_precision = {_RESIZE} (raw_log_precision, , , size)
        log_precision = Add(sampled_precision, gain)
        {_resized("raw_seed", "resized_seed", "map_size", "size", shrinks=shrinks)}
        seed = Clip(resized_seed, nought, unit)"""


def _resized(source: str, target: str, source_size: str, target_size: str, *, shrinks: bool) -> str:
    """As ``engine.resize``: ``target`` of ``target_size`` from ``source``, both (B, ., h, w)."""
    if not shrinks:
        return f"{target} = {_RESIZE} ({source}, , , {target_size})"
    return f"""
        {_weights("rows", 0, source_size, target_size)}
        {_weights("columns", 1, source_size, target_size)}
        flat_columns = Transpose <perm=[1, 0]> (columns)
        rows_averaged = MatMul(rows, {source})
        {target} = MatMul(rows_averaged, flat_columns)"""


def _weights(name: str, axis: int, source_size: str, target_size: str) -> str:
    """``name``: weights (target side, source side) of the antialias filter along an axis."""
    lines = """
        @axis = Constant <value_int={axis}> ()
        @last = Constant <value_ints=[1]> ()
        @0 = Constant <value_float=0.0> ()
        @1 = Constant <value_float=1.0> ()
        @half = Constant <value_float=0.5> ()
        @sources = Gather({source_size}, @axis)
        @source_side = Cast <to={float}> (@sources)
        @targets = Gather({target_size}, @axis)
        @target_side = Cast <to={float}> (@targets)
        @ratio = Div(@source_side, @target_side)
        @j0 = Range(@0, @source_side, @1)
        @j = Add(@j0, @half)
        @i0 = Range(@0, @target_side, @1)
        @i1 = Add(@i0, @half)
        @i2 = Mul(@i1, @ratio)
        @i = Unsqueeze(@i2, @last)
        @apart = Sub(@j, @i)
        @distance = Abs(@apart)
        @share = Div(@distance, @ratio)
        @left = Sub(@1, @share)
        @weight = Relu(@left)
        @sum = ReduceSum(@weight, @last)
        {name} = Div(@weight, @sum)"""
    text = lines.format(
        axis=axis, source_size=source_size, target_size=target_size, name=name, float=_FLOAT
    )
    return text.replace("@", f"{name}_")


def _numbers(values: tuple[float, ...]) -> str:
    return "{" + ", ".join(map(repr, values)) + "}"
