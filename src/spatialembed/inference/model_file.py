"""Model files: a folder of ``model.safetensors`` (weights) and ``model.json`` (all else).

Nothing of them is ever unpickled. Two files cannot be renamed as one, and yet a save that is
stopped anywhere leaves a model that loads:

    step                        model.json   pending   weights   loads as
    before                      old                    old       old
    1 write model.pending.json  old          new       old       old
    2 write model.safetensors   old          new       new       new: its hash fits
    3 rename pending to json    new                    new       new
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from spatialembed.data.splitting import SplitRecord
from spatialembed.errors import MODEL, SpatialEmbedError
from spatialembed.files import atomic_write
from spatialembed.images.channels import Preferred
from spatialembed.inference.bundled import (
    CARD,
    FACTS,
    LARGEST,
    WEIGHTS,
    bundled_folder,
    bundled_models,
    summary_of,
)
from spatialembed.inference.hub import HUB, hub_folder
from spatialembed.inference.model_json import bad_model, check_keys, parse_fields, parse_json, typed
from spatialembed.method.calibration import Calibration
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Network, Normalization, is_network

if TYPE_CHECKING:
    from importlib.abc import Traversable  # elsewhere in later Pythons

PENDING = "model.pending.json"
FORMAT_VERSION = 2
"""Version 2 names the network, and of the normalisation its noise floor and ceiling. What a reader
of version 1 would understand is still written as that."""
CHANNEL = "channel"
"""Name of the fact of the training that says which channel was read."""
_KEYS = {
    "format_version", "network", "class_names", "normalization", "scale", "thresholds", "training",
    "weights_sha256",
}  # fmt: skip
_OPTIONAL_KEYS = {"calibration", "split", "diameter"}


@dataclass(frozen=True)
class ModelInfo:
    """A model's description, beside its weights."""

    class_names: tuple[str, ...]  # one a seed map, in order
    elliptical: bool  # S = 2 bandwidths a pixel
    normalization: Normalization
    thresholds: ClusterOptions
    scale: float = 1.0  # images are resized by this before the network, and the maps back
    training: dict[str, Any] = field(default_factory=dict)  # JSON: data, hours, figure, licence ...
    calibration: Calibration | None = None  # how good objects are expected to be
    network: Network = "erfnet"
    diameter: Literal["auto", "native"] = "native"  # scale of an image where none is asked for
    weights_sha256: str = field(default="", compare=False)  # of the file it was read from
    split: SplitRecord | None = None  # which images it was trained on

    @property
    def channel(self) -> Preferred | None:
        """The channel that it was trained on, where one was named."""
        known = self.training.get(CHANNEL)
        return Preferred(known) if isinstance(known, (int, str)) else None


def save(
    folder: str | Path, net: SpatialEmbeddingNet, info: ModelInfo, *, half: bool = False
) -> Path:
    """Write a model folder; stopped anywhere, the folder loads as the old or the new model.

    Args:
        folder: Where to write; made if need be.
        net: The network.
        info: Its description.
        half: Store kernels as float16, half the size; vectors (biases, batch-norm) stay float32,
            since a running variance can lie outside the range of float16.

    Returns:
        The folder.

    Raises:
        SpatialEmbedError: ``bad_model`` where info and network disagree or a weight is NaN or
            infinite; ``disk_full``.
    """
    folder = Path(folder)
    state = {name: _stored(tensor, half) for name, tensor in net.state_dict().items()}
    _check_finite(state, str(folder))
    weights = safetensors.torch.save(state)
    told = (info.network, info.elliptical, len(info.class_names))
    if told != (net.network, net.elliptical, net.num_classes):
        raise bad_model(
            "ModelInfo",
            f"{info.network}, elliptical is {info.elliptical}, of {len(info.class_names)} classes, "
            f"the network is {net.network}, {net.elliptical}, of {net.num_classes}",
        )
    return _write(folder, weights, info)


def save_as(model: str | Path, folder: str | Path, info: ModelInfo) -> Path:
    """Write the weights of a model, byte for byte, with ``info`` into a folder, maybe its own.

    info: what ``load(model)`` gave, with other thresholds, calibration or training facts.
    Raises as ``load`` and ``save`` do.
    """
    weights = _read(_find(model).joinpath(WEIGHTS), LARGEST[WEIGHTS])
    return _write(Path(folder), weights, info)


def _write(folder: Path, weights: bytes, info: ModelInfo) -> Path:
    """The three steps of a save."""
    facts = _facts(info, hashlib.sha256(weights).hexdigest())
    _parse(parse_json(facts, str(folder)), str(folder))  # what would not load is not written
    _finish_interrupted(folder)
    with atomic_write(folder / PENDING) as path:
        path.write_bytes(facts)
    with atomic_write(folder / WEIGHTS) as path:
        path.write_bytes(weights)
    os.replace(folder / PENDING, folder / FACTS)
    return folder


def load(path: str | Path) -> tuple[SpatialEmbeddingNet, ModelInfo]:
    """Read a model.

    Args:
        path: A bundled name, a model folder, or one of the two files inside it. A string that is a
            bundled name means that model; write ``./nuclei`` for a folder of that name. One of the
            form ``hf://OWNER/NAME@REVISION`` is fetched from the hub, see ``inference.hub``.

    Returns:
        The network in evaluation mode, float32, on the CPU; and its description.

    Raises:
        SpatialEmbedError: (exit 4) ``no_model``, ``bad_model``, ``model_version``,
            ``model_mismatch`` (weights of another network than model.json describes), ``no_hub``;
            (exit 2) ``bad_setting``, ``missing_extra``.
    """
    folder = _find(path)
    weights = _read(folder.joinpath(WEIGHTS), LARGEST[WEIGHTS])
    sha256 = hashlib.sha256(weights).hexdigest()
    info = replace(_parse(_matching_facts(folder, sha256), str(folder)), weights_sha256=sha256)
    state = _parse_weights(weights, f"{folder}/{WEIGHTS}")
    with torch.device("meta"):  # draws no random numbers and fills no memory
        net = SpatialEmbeddingNet(len(info.class_names), info.elliptical, info.network)
    difference = state_difference(net.state_dict(), state)
    if difference:
        raise SpatialEmbedError(
            "model_mismatch",
            f"{folder}: the weights are not those of the network in {FACTS} "
            f"({info.network}, {len(info.class_names)} classes, elliptical {info.elliptical}): "
            f"{difference}",
            "use the two files of one save",
            MODEL,
        )
    _check_finite(state, f"{folder}/{WEIGHTS}")
    net.load_state_dict(state, assign=True)
    return net.eval(), info


def card_of(path: str | Path) -> str:
    """The text of a model's card; empty if there is none. path: as of ``load``, and its errors."""
    card = _find(path).joinpath(CARD)
    return _read(card, LARGEST[CARD]).decode("utf-8", "replace") if card.is_file() else ""


# Writing


def _stored(tensor: Tensor, half: bool) -> Tensor:
    """The tensor as it is written: contiguous, on the CPU, float16 where asked and harmless."""
    tensor = tensor.detach().cpu().contiguous()
    largest = torch.finfo(torch.float16).max
    if half and tensor.dim() >= 2 and bool(tensor.abs().max() <= largest):
        return tensor.half()
    return tensor


def _facts(info: ModelInfo, sha256: str) -> bytes:
    """The contents of model.json: numpy's scalars as numbers, NaN as null."""
    how, normalization = info.normalization, asdict(info.normalization)
    network: dict[str, Any] = {"num_classes": len(info.class_names), "elliptical": info.elliptical}
    plain = info.network == "erfnet" and how.noise_floor == 0 and how.ceiling is None
    if plain:
        del normalization["noise_floor"], normalization["ceiling"]
    else:
        network["name"] = info.network
    facts = {
        "format_version": 1 if plain else FORMAT_VERSION,
        "network": network,
        "class_names": info.class_names,
        "normalization": normalization,
        "scale": info.scale,
        "thresholds": info.thresholds,
        "training": info.training,
        "weights_sha256": sha256,
    }
    if info.diameter != "native":
        facts["diameter"] = info.diameter
    if info.calibration is not None:
        facts["calibration"] = info.calibration
    if info.split is not None:
        facts["split"] = info.split.to_json()
    encoded = msgspec.json.encode(facts, enc_hook=lambda number: number.item())
    return msgspec.json.format(encoded) + b"\n"


def _finish_interrupted(folder: Path) -> None:
    """Do step 3 of an earlier save that was stopped before it, lest step 1 overwrite its facts."""
    pending, weights = folder / PENDING, folder / WEIGHTS
    if pending.is_file() and weights.is_file():
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        if sha256.encode() in pending.read_bytes():
            os.replace(pending, folder / FACTS)


# Reading: every byte is untrusted


def _find(path: str | Path) -> Traversable:
    """The folder of a model; a bundled one may lie inside a zip."""
    names = bundled_models()
    if isinstance(path, str) and path in names:
        return bundled_folder(path)
    if isinstance(path, str) and path.startswith(HUB):
        return hub_folder(path)
    place = Path(path)
    folder = place.parent if place.name in (WEIGHTS, FACTS) and not place.is_dir() else place
    if folder.joinpath(WEIGHTS).is_file():
        return folder
    if folder.exists() and not folder.is_dir():
        raise SpatialEmbedError(
            "bad_model",
            f"{folder}: not a model file; a model is a folder with {WEIGHTS} and {FACTS}",
            "name the folder, or read the released checkpoint with `spatialembed convert`",
            MODEL,
        )
    raise SpatialEmbedError(
        "no_model",
        f"{path}: neither a bundled model nor a folder with {WEIGHTS}",
        f"bundled models: {', '.join(names) or 'none'}; of the hub: hf://OWNER/NAME@REVISION",
        MODEL,
    )


def _read(file: Traversable, limit: int) -> bytes:
    """Contents of a regular file of at most ``limit`` bytes."""
    if not file.is_file():
        raise bad_model(str(file), "not a regular file, or missing")
    try:
        data = bytearray()
        with file.open("rb") as stream:  # in blocks: read(n) makes room for n bytes at once
            while len(data) <= limit and (block := stream.read(1 << 20)):
                data += block
    except OSError as error:
        raise bad_model(str(file), f"cannot be read: {error.strerror}") from error
    if not data:
        raise bad_model(str(file), "empty")
    if len(data) > limit:
        raise bad_model(str(file), f"longer than {limit} bytes")
    return bytes(data)


def _matching_facts(folder: Traversable, sha256: str) -> dict[str, Any]:
    """Facts of these very weights: model.json, or the pending one of a save stopped at step 2."""
    found = []
    for name in (FACTS, PENDING):
        file = folder.joinpath(name)
        if not file.is_file():
            continue
        facts = parse_json(_read(file, LARGEST[FACTS]), str(file))
        _check_version(facts, str(file))
        if facts.get("weights_sha256") == sha256:
            return facts
        found.append(name)
    if not found:
        raise bad_model(str(folder), f"{FACTS} is missing")
    raise bad_model(
        f"{folder}/{WEIGHTS}",
        f"damaged, or of another save: its SHA-256 is {sha256[:12]}..., not that of {found[0]}",
    )


def _check_version(facts: dict[str, Any], where: str) -> None:
    """Before all else, since a newer file may be laid out in another way."""
    version = facts.get("format_version")
    if type(version) is not int or version < 1:
        raise bad_model(where, f"format_version is {version!r}, not a positive integer")
    if version > FORMAT_VERSION:
        raise SpatialEmbedError(
            "model_version",
            f"{where}: format version {version}; this program reads up to {FORMAT_VERSION}",
            "install a newer spatialembed",
            MODEL,
        )


def _parse(facts: dict[str, Any], where: str) -> ModelInfo:
    """Facts of model.json, every key and type checked."""
    check_keys(facts, _KEYS, where, optional=_OPTIONAL_KEYS)
    network = facts["network"]
    check_keys(network, {"num_classes", "elliptical"}, f"{where}: network", optional={"name"})
    name = typed(network.get("name", "erfnet"), str, f"{where}: network: name")
    if not is_network(name):
        raise bad_model(where, f"network: name is {name!r}")
    names, training, elliptical = facts["class_names"], facts["training"], network["elliptical"]
    _check_names(names, network["num_classes"], where)
    if type(elliptical) is not bool:
        raise bad_model(where, f"elliptical is {elliptical!r}, not true or false")
    if not isinstance(training, dict):
        raise bad_model(where, "training is not an object")
    scale = typed(facts["scale"], float, f"{where}: scale")
    if not 1 / 16 <= scale <= 16:
        raise bad_model(where, f"scale is {scale}, not between 1/16 and 16")
    normalization = facts["normalization"]
    if isinstance(normalization, dict):  # what files of version 1 do not name was not there
        facts["normalization"] = {"noise_floor": 0.0, "ceiling": None} | normalization
    diameter = typed(
        facts.get("diameter", "native"), Literal["auto", "native"], f"{where}: diameter"
    )
    calibrated = facts.get("calibration") is not None
    try:
        split = SplitRecord.from_json(facts["split"]) if facts.get("split") is not None else None
    except ValueError as error:
        raise bad_model(where, f"split: {error}") from error
    return ModelInfo(
        tuple(names),
        elliptical,
        parse_fields(Normalization, facts, "normalization", where),
        parse_fields(ClusterOptions, facts, "thresholds", where),
        scale,
        training,
        parse_fields(Calibration, facts, "calibration", where) if calibrated else None,
        name,
        diameter,
        split=split,
    )


def _check_names(names: Any, number: Any, where: str) -> None:
    """Class names are printed: no control characters, which a terminal would obey."""
    if not isinstance(names, list) or not names:
        raise bad_model(where, "class_names is not a list of at least one name")
    for name in names:
        if not (isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()):
            raise bad_model(
                where, f"class name {str(name)[:100]!r} is not a line of printable text"
            )
    if len(set(names)) != len(names):
        raise bad_model(where, "a class name stands twice")
    if type(number) is not int or number != len(names):
        raise bad_model(where, f"num_classes is {number!r}, but there are {len(names)} class names")


def _parse_weights(data: bytes, where: str) -> dict[str, Tensor]:
    """Tensors by name, floating ones as float32."""
    try:
        state = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise bad_model(where, f"not a safetensors file: {error}") from error
    for name, tensor in state.items():
        if not tensor.is_floating_point() and tensor.dtype != torch.int64:
            raise bad_model(where, f"{name} holds {tensor.dtype}")
    # Copied: what safetensors returns shares the memory of the bytes.
    return {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else torch.int64, copy=True)
        for name, tensor in state.items()
    }


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    if name := first_not_finite(state):
        raise bad_model(where, f"{name} holds NaN or infinite weights")


def first_not_finite(state: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that holds NaN or infinity; empty if none does."""
    return next((name for name, tensor in state.items() if not tensor.isfinite().all()), "")


def state_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """What names and shapes differ, in a line; empty if none do."""
    found = [f"{name} is missing" for name in ours if name not in theirs]
    found += [f"{name} is not known" for name in theirs if name not in ours]
    found += [
        f"{name} is {tuple(theirs[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in ours.items()
        if name in theirs and tensor.shape != theirs[name].shape
    ]
    more = [f"and {len(found) - 4} more"] * (len(found) > 4)
    return "; ".join(found[:4] + more)


def summary(path: str | Path) -> str:
    """First sentence of the card of a model, by name or folder; empty where there is none.

    Raises SpatialEmbedError ``no_model``, ``bad_model``; of the hub those of ``hub_folder``.
    """
    return summary_of(_find(path))
