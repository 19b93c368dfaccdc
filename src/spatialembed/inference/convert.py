"""The car checkpoint that the paper's authors released, as a model folder of ours.

It is a pickle, from outside: torch's restricted unpickler reads the weights, and nothing else of
it is made or called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatialembed.errors import INPUT, MODEL, SpatialEmbedError
from spatialembed.inference.model_file import ModelInfo, first_not_finite, save, state_difference
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Normalization


def convert(file: str | Path, out: str | Path) -> Path:
    """Convert the car checkpoint that the paper's authors released.

    Nothing of the file is executed, and all but its weights is dropped. Every name and shape must
    be ours, except ``encoder.output_conv``, which no result depends on. The released grid step is 1
    / 1023, 0.1 % off ours, which is left as it is.

    Args:
        file: The checkpoint.
        out: Model folder to write.

    Returns:
        The folder.

    Raises:
        SpatialEmbedError: ``not_found`` (exit 3), ``bad_checkpoint`` (exit 4).
    """
    file = Path(file)
    if not file.is_file():
        raise SpatialEmbedError("not_found", f"{file}: no such file", "check the path", INPUT)
    state = _released_state(_load_weights_only(file), file)
    net = _fitting_net(state, file)
    net.load_state_dict(state)
    number = net.num_classes
    names = ("car",) if number == 1 else tuple(f"class_{i + 1}" for i in range(number))
    training = {
        "source": "converted from the released checkpoint",
        "licence": "CC BY-NC 4.0, non-commercial",
        "note": "trained with a grid step of 1/1023 unit; here it is 1/1024, 0.1 % less",
    }
    info = ModelInfo(
        names, net.elliptical, Normalization("none"), ClusterOptions(), training=training
    )
    return save(out, net, info)


class _Discarded:
    """Stands in for the numpy objects among a checkpoint's metrics; keeps and calls nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_NUMPY_NAMES = (
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


def _load_weights_only(file: Path) -> Any:
    """Contents of a file by torch's restricted unpickler, numpy objects as placeholders."""
    stand_ins: list[Any] = [(_Discarded, name) for name in _NUMPY_NAMES]
    try:
        # Opened here: given a path, torch picks a reader by its suffix.
        with file.open("rb") as stream, torch.serialization.safe_globals(stand_ins):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the damage makes torch and the unpickler raise
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0].partition("Weights only load failed")[0][:200]  # torch advises to run it
        what = "not readable as weights alone" + (f": {reason}" if reason else "")
        raise _bad_checkpoint(file, what) from error


def _bad_checkpoint(file: Path, what: str) -> SpatialEmbedError:
    return SpatialEmbedError(
        "bad_checkpoint",
        f"{file}: {what}",
        "give the car checkpoint as the paper's authors released it",
        MODEL,
    )


def _released_state(contents: Any, file: Path) -> dict[str, Tensor]:
    """Our names and float32 tensors of ``model_state_dict``, without what is not used."""
    state = contents.get("model_state_dict") if isinstance(contents, dict) else None
    if not isinstance(state, dict) or not state:
        raise _bad_checkpoint(file, "holds no model_state_dict")
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise _bad_checkpoint(file, "model_state_dict holds more than named tensors")
    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in named.items()
        if not name.startswith("encoder.output_conv.")
    }


def _fitting_net(state: dict[str, Tensor], file: Path) -> SpatialEmbeddingNet:
    """A network of the outputs that the two decoders have; its names and shapes are the file's.

    Batch counters that an old file lacks are added: they matter to no result.
    """
    heads = [state.get(f"decoders.{i}.output_conv.weight") for i in (0, 1)]
    outputs = [0 if head is None or head.dim() != 4 else head.shape[1] for head in heads]
    if outputs[0] not in (3, 4) or not 1 <= outputs[1] <= 1000:
        raise _bad_checkpoint(
            file,
            f"its decoders have {outputs[0]} and {outputs[1]} outputs, expected 3 or 4 and >= 1",
        )
    net = SpatialEmbeddingNet(outputs[1], elliptical=outputs[0] == 4)
    for name, tensor in net.state_dict().items():
        if name.endswith(".num_batches_tracked"):
            state.setdefault(name, tensor)
    difference = state_difference(net.state_dict(), state)
    if difference:
        raise _bad_checkpoint(file, f"names or shapes differ: {difference}")
    if name := first_not_finite(state):
        raise _bad_checkpoint(file, f"{name} holds NaN or infinite weights")
    return net
