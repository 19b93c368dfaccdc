"""Running a network on normalised images of any size: engine, device, precision, scale, turns.

How maps of a resized image become maps of the image; s = new side / side, pixel centres at
half-integers (``align_corners=False``):

    position   X = (x + 1/2) s - 1/2              of image position x in the resized image
    embedding  e = (X + O + 1/2) / s - 1/2
                 = x + O / s                      so offset        o = O / s
    exponent   P (E - C)^2 = P s^2 (e - c)^2      so log-precision r = R + ln(s^2) / 10
    example    s = 2: an offset of 30 px is one of 15 px, R = 0.6 (margin 42 px) is r = 0.74 (21 px)
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.inference.device import (
    Precision,
    first_line,
    memory_is_named,
    resolve_device,
    resolve_precision,
)
from spatialembed.inference.engines.choice import ENGINES, choose
from spatialembed.inference.engines.compiled import compiled_run, missing_compiler
from spatialembed.inference.engines.folded import FoldedNet, Run, for_torch_on_cpu
from spatialembed.inference.engines.onnx import onnxruntime_run
from spatialembed.inference.engines.openvino_engine import openvino_run
from spatialembed.method.geometry import LOG_SCALE
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.networks.erfnet import pad_to_stride
from spatialembed.options import DeviceOptions
from spatialembed.types import Embeddings

logger = logging.getLogger("spatialembed")

_CUDNN = threading.Lock()
CPU_ONLY = ("onnxruntime", "openvino")
DEVICES = {"compiled": ("cpu", "cuda"), **dict.fromkeys(CPU_ONLY, ("cpu",))}
"""Kinds of device of an engine; torch takes all."""

SHAPES_KEPT = 256
"""Convolutions: enough for several shapes of images; with 128, four of them take a tenth longer."""


class Engine(Protocol):
    """A network ready to run.

    precision: of the convolutions; the maps are float32 either way. scale: images are resized by it
    before the network, and the maps back to the image's size.
    """

    name: str
    device: torch.device
    precision: Precision
    scale: float

    def __call__(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32, normalised, any size -> Embeddings (B, ., H, W) float32."""


class NetworkEngine:
    """A network run by ``run``; made by ``torch_engine`` and ``build``."""

    def __init__(
        self,
        run: Run,
        *,
        net: SpatialEmbeddingNet,
        name: str,
        device: torch.device,
        precision: Precision,
        scale: float,
    ) -> None:
        compute_alone_when_forked()
        self._process = os.getpid()
        self.run = run
        self.net = net  # what it was made from, for export
        self.name = name
        self.device = device
        self.precision = precision
        self.scale = scale

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Embeddings:
        """As ``Engine``. Raises SpatialEmbedError ``out_of_memory`` (exit 5), ``forked``."""
        self._refuse_lost_threads()
        with memory_is_named(images.shape, self.device), _reproducible(self.device):
            images = images.to(self.device)
            if self.scale == 1:
                return self._padded(images)
            height, width = images.shape[-2:]
            seen = max(1, round(height * self.scale)), max(1, round(width * self.scale))
            return map_back(self._padded(resize(images, seen)), (height, width))

    def _refuse_lost_threads(self) -> None:
        """A forked process has the engine but none of its threads: it would wait for ever."""
        if self.name != "torch" and os.getpid() != self._process:
            raise SpatialEmbedError(
                "forked",
                f"engine {self.name} was started before this process was forked",
                "load the model in the new process, or take engine torch",
                USAGE,
            )

    def _padded(self, images: Tensor) -> Embeddings:
        height, width = images.shape[-2:]
        maps = self.run(pad_to_stride(images, self.net.stride))
        return Embeddings(*(m[..., :height, :width] for m in maps))


def torch_engine(
    net: SpatialEmbeddingNet,
    *,
    device: torch.device,
    precision: Precision = "float32",
    scale: float = 1.0,
) -> NetworkEngine:
    """The network as it was trained, operation by operation: the reference of the others.

    ``net`` is taken over: moved to the device, in evaluation mode; later changes of it show.
    """
    # channels_last: oneDNN and cuDNN convolve it without copying.
    net = net.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: Tensor) -> Embeddings:
        rough = precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=rough):
            maps = net(images.contiguous(memory_format=torch.channels_last))
        return Embeddings(*(m.float() for m in maps))

    return NetworkEngine(
        run, net=net, name="torch", device=device, precision=precision, scale=scale
    )


def keep_few_shapes() -> None:
    """Bound the memory for images that each have a shape of their own, on the CPU.

    Torch keeps convolutions prepared for shapes of their input in two caches, oneDNN's and ideep's,
    each of 1,024 entries: some hundred megabytes. The names are read at the first convolution of a
    process. What somebody has set stays.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(SHAPES_KEPT))


@cache
def compute_alone_when_forked() -> None:
    """Let forked processes compute on one thread: those of OpenMP stay behind, and are waited for.

    Once a process; torch's own loader processes do the same.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def build(
    net: SpatialEmbeddingNet,
    options: DeviceOptions = DeviceOptions(),
    *,
    scale: float = 1.0,
    megapixels: float | None = None,
    among: Collection[str] = ENGINES,
) -> NetworkEngine:
    """Start an engine for a network; logs which, and how long it took.

    Args:
        net: The network, which is left as it is.
        options: Engine, one of ENGINES, or "auto": the one expected to finish a job of
            ``megapixels`` first; device and precision, see ``resolve_device`` and
            ``resolve_precision``; threads on the CPU, for the whole process, None leaves them.
        scale: Factor by which images are resized before the network, and maps back after it.
        megapixels: Of all images of the job, as the network sees them; None: unknown.
        among: Engines of which "auto" may choose.

    Returns:
        The engine. One that "auto" chose and that cannot be started gives way to "torch", with a
        logged warning.

    Raises:
        SpatialEmbedError: (exit 2) ``unknown_engine``, ``unknown_device``, ``no_device``,
            ``unknown_precision``, ``bad_threads``; for an engine that is named, ``missing_extra``,
            and ``no_device`` or ``no_precision`` where it lacks the device or precision.
    """
    engine, device = options.engine, options.device
    if engine not in ("auto", *ENGINES):
        remedy = f"use auto, {', '.join(ENGINES)}"
        raise SpatialEmbedError("unknown_engine", f"{engine!r} is not an engine", remedy, USAGE)
    if options.threads is not None:
        if options.threads < 1:
            what = f"threads is {options.threads}"
            raise SpatialEmbedError("bad_threads", what, "give 1 or more", USAGE)
        torch.set_num_threads(options.threads)
    where = resolve_device("cpu" if engine in CPU_ONLY and device == "auto" else device)
    how = _precision_of(engine, options.precision, where)
    _check_device(engine, where)
    name = engine
    if where.type == "cpu":
        keep_few_shapes()
    if engine == "auto":
        threads = torch.get_num_threads()
        name = choose(where.type, how, _there(where) & set(among), megapixels, threads, net.network)
    if name != "torch":
        logger.info("starting engine %s", name)  # some take a while
    began = time.perf_counter()
    try:
        run = _start(name, net, where, how)
    except Exception as error:  # of a compiler or runtime of others: none of its faults is ours
        missing = isinstance(error, SpatialEmbedError) and engine != "auto"
        if missing or name == "torch":
            raise
        logger.warning("engine %s does not start: %s; using torch", name, first_line(error))
        name, run = "torch", _start("torch", net, where, how)
    logger.info("engine %s, %s, %s, %.1f s", name, how, where, time.perf_counter() - began)
    return NetworkEngine(run, net=net, name=name, device=where, precision=how, scale=scale)


def _precision_of(engine: str, precision: str, device: torch.device) -> Precision:
    if engine != "onnxruntime" or precision not in ("auto", "bfloat16"):
        return resolve_precision(precision, device)
    if precision == "auto":
        return "float32"
    what, remedy = "engine onnxruntime computes in float32 only", "use openvino, compiled or torch"
    raise SpatialEmbedError("no_precision", what, remedy, USAGE)


def _check_device(engine: str, device: torch.device) -> None:
    kinds = DEVICES.get(engine, (device.type,))
    if device.type not in kinds:
        what = f"engine {engine} does not run on {device}"
        raise SpatialEmbedError("no_device", what, f"use device {' or '.join(kinds)}", USAGE)


def _there(device: torch.device) -> set[str]:
    """Engines that can be expected to start on the device."""
    needs = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
    found = {name for name, packages in needs.items() if all(map(find_spec, packages))}
    return found | {"torch"} | (set() if missing_compiler(device) else {"compiled"})


def _start(name: str, net: SpatialEmbeddingNet, device: torch.device, precision: Precision) -> Run:
    own_rounding = name in CPU_ONLY  # from float32 weights
    dtype = torch.float32 if own_rounding or precision == "float32" else torch.bfloat16
    folded = FoldedNet(net, dtype).to(device)
    if name == "onnxruntime":
        return onnxruntime_run(folded, torch.get_num_threads())
    if name == "openvino":
        return openvino_run(folded.core, torch.get_num_threads(), bfloat16=precision == "bfloat16")
    if name == "compiled":
        return compiled_run(folded.core, device)
    return for_torch_on_cpu(folded.core) if device.type == "cpu" else folded.core


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, (B, C, H, W) -> (B, C, *size), with the antialias filter where a side shrinks."""
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return F.interpolate(images, list(size), mode="bilinear", antialias=shrinks)


def map_back(
    maps: Embeddings,
    size: Sequence[int],
    average: Callable[[Tensor, Sequence[int]], Tensor] = resize,
) -> Embeddings:
    """Maps (B, ., H', W') of a resized image as maps (B, ., H, W) = ``size`` of the image itself.

    The seeds are averaged, by ``average``, over the pixels that became one; offsets and
    log-precisions are interpolated without that wider filter, which would mix those of touching
    instances. Tensors are made of the sizes, which are symbols while a graph is exported.
    """
    height, width = size
    one = maps.offset.new_ones(1)
    s_x, s_y = one * (maps.offset.shape[-1] / width), one * (maps.offset.shape[-2] / height)
    offset, log_precision = (
        F.interpolate(m, (height, width), mode="bilinear")
        for m in (maps.offset, maps.log_precision)
    )  # (B, 2, H, W), (B, S, H, W)
    by_axis = torch.cat((s_x, s_y)).view(1, 2, 1, 1)
    gain = 2 * by_axis.log() / LOG_SCALE
    if log_precision.shape[1] == 1:  # for both axes: the geometric mean of their scales
        gain = gain.mean(dim=1, keepdim=True)
    seed = average(maps.seed, (height, width)).clamp(0, 1)
    return Embeddings(offset / by_axis, log_precision + gain, seed)


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """cuDNN picks by time otherwise, and may add in another order at each run.

    One thread at a time: the flags are of the process, and each puts back what it found.
    """
    if device.type != "cuda":
        yield
        return
    flags = torch.backends.cudnn.flags
    with _CUDNN, flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
