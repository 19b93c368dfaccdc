"""Running a network on normalised images of any size: device, precision, scale, turns averaged.

How maps of a resized image become maps of the image; s = new side / side, pixel centres at
half-integers (``align_corners=False``)::

    position   X = (x + 1/2) s - 1/2              of image position x in the resized image
    embedding  e = (X + O + 1/2) / s - 1/2
                 = x + O / s                      so offset        o = O / s
    exponent   P (E - C)^2 = P s^2 (e - c)^2      so log-precision r = R + ln(s^2) / 10
    example    s = 2: an offset of 30 px is one of 15 px, R = 0.6 (margin 42 px) is r = 0.74 (21 px)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.errors import RESOURCE, USAGE, SpatialEmbedError
from spatialembed.geometry import LOG_SCALE
from spatialembed.model import SpatialEmbeddingNet
from spatialembed.types import Embeddings

logger = logging.getLogger("spatialembed")

Precision = Literal["float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")


class TorchEngine:
    """A network ready to run; it takes ``net`` over: moved to the device, in evaluation mode.

    precision: of the convolutions; the maps are float32 either way. scale: images are resized by it
    before the network, and the maps back to the image's size.
    """

    def __init__(
        self,
        net: SpatialEmbeddingNet,
        *,
        device: torch.device,
        precision: Precision = "float32",
        scale: float = 1.0,
    ) -> None:
        # channels_last: oneDNN and cuDNN convolve it without copying.
        self.net = net.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.precision = precision
        self.scale = scale

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Embeddings:
        """images (B, 3, H, W) float32, normalised, any size -> Embeddings (B, ., H, W) float32.

        Raises SpatialEmbedError ``out_of_memory`` (exit 5).
        """
        size = images.shape[-2:]
        with _memory_is_named(images, self.device), _reproducible(self.device), self._autocast():
            images = images.to(self.device)
            if self.scale == 1:
                return self._run(images)
            return map_back(self._run(resize(images, self._scaled(size))), size)

    def _scaled(self, size: torch.Size) -> tuple[int, int]:
        height, width = (max(1, round(side * self.scale)) for side in size)
        return height, width

    def _run(self, images: Tensor) -> Embeddings:
        maps = self.net(images.contiguous(memory_format=torch.channels_last))
        return Embeddings(*(m.float() for m in maps))

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, (B, C, H, W) -> (B, C, *size), with the antialias filter where a side shrinks."""
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return F.interpolate(images, size, mode="bilinear", antialias=shrinks)


def map_back(maps: Embeddings, size: tuple[int, int] | torch.Size) -> Embeddings:
    """Maps (B, ., H', W') of a resized image as maps (B, ., H, W) = ``size`` of the image itself.

    The seeds are averaged over the pixels that became one; offsets and log-precisions are
    interpolated without that wider filter, which would mix those of touching instances.
    """
    height, width = size
    s_x, s_y = maps.offset.shape[-1] / width, maps.offset.shape[-2] / height
    offset, log_precision = (
        F.interpolate(m, (height, width), mode="bilinear")
        for m in (maps.offset, maps.log_precision)
    )  # (B, 2, H, W), (B, S, H, W)
    by_axis = torch.tensor((s_x, s_y)).to(offset).view(1, 2, 1, 1)
    gain = 2 * by_axis.log() / LOG_SCALE
    if log_precision.shape[1] == 1:  # for both axes: the geometric mean of their scales
        gain = gain.mean(dim=1, keepdim=True)
    return Embeddings(
        offset / by_axis, log_precision + gain, resize(maps.seed, (height, width)).clamp(0, 1)
    )


def average_over_turns(run: Callable[[Tensor], Embeddings], images: Tensor) -> Embeddings:
    """Test-time augmentation: mean of the maps over the 8 turns and flips of images (B, 3, H, W).

    Offsets are vectors and turn with the image; elliptical log-precisions swap on quarter turns.
    """
    total: list[Tensor] = []
    for flip in (False, True):
        for quarters in range(4):
            maps = turn_back(run(turn(images, quarters, flip)), quarters, flip)
            total = [a + b for a, b in zip(total, maps, strict=True)] if total else list(maps)
    return Embeddings(*(t / 8 for t in total))


def turn(images: Tensor, quarters: int, flip: bool) -> Tensor:
    """Images (..., H, W), mirrored left to right if ``flip``, turned left ``quarters`` times."""
    return torch.rot90(images.flip(-1) if flip else images, quarters, (-2, -1))


def turn_back(maps: Embeddings, quarters: int, flip: bool) -> Embeddings:
    """Maps of ``turn(images, quarters, flip)`` as maps of the images."""
    for _ in range(quarters):
        maps = _quarter_back(maps)
    if not flip:
        return maps
    offset, log_precision, seed = (m.flip(-1) for m in maps)
    return Embeddings(offset * offset.new_tensor((-1, 1)).view(2, 1, 1), log_precision, seed)


def _quarter_back(maps: Embeddings) -> Embeddings:
    """A quarter turn to the right: the vector (x, y) becomes (-y, x), y pointing down."""
    offset, log_precision, seed = (torch.rot90(m, -1, (-2, -1)) for m in maps)
    x, y = offset.unbind(-3)
    return Embeddings(torch.stack((-y, x), dim=-3), log_precision.flip(-3), seed)


def resolve_device(name: str) -> torch.device:
    """The device of a torch name ("cpu", "cuda:1", "mps"), or "auto": CUDA, else MPS, else CPU.

    With "auto", a GPU that is there but fails a trial is skipped with a logged warning.
    Raises SpatialEmbedError (exit 2): ``unknown_device``; ``no_device`` where a named one fails.
    """
    if name != "auto":
        device = _parse_device(name)
        fault = _fault(device)
        if fault:
            remedy = "use device auto or cpu"
            raise SpatialEmbedError("no_device", f"{name}: {fault}", remedy, USAGE)
        return device
    for present, kind in (
        (torch.cuda.is_available(), "cuda"),
        (torch.backends.mps.is_available(), "mps"),
    ):
        fault = _fault(torch.device(kind)) if present else ""
        if present and not fault:
            return torch.device(kind)
        if fault:
            logger.warning("device %s is there but fails: %s; falling back", kind, fault)
    logger.info("no GPU that torch can use: running on the CPU")
    return torch.device("cpu")


def _parse_device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise SpatialEmbedError(
            "unknown_device", f"{name!r} is no device", "use auto, cpu, cuda, cuda:N or mps", USAGE
        ) from error


def _fault(device: torch.device) -> str:
    """Why a small convolution fails there, in a line; empty if it does not."""
    try:
        F.conv2d(torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def resolve_precision(name: str, device: torch.device) -> Precision:
    """ "auto": bfloat16 where the device computes in it, else float32; or the one that is named.

    Raises SpatialEmbedError ``unknown_precision`` (exit 2).
    """
    if name not in PRECISIONS:
        raise SpatialEmbedError(
            "unknown_precision", f"{name!r} is no precision", f"use {', '.join(PRECISIONS)}", USAGE
        )
    if name == "auto":
        return "bfloat16" if _computes_bfloat16(device) else "float32"
    return "bfloat16" if name == "bfloat16" else "float32"


def _computes_bfloat16(device: torch.device) -> bool:
    """In hardware: emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()  # AMX machines have it too
    return False


@contextmanager
def _memory_is_named(images: Tensor, device: torch.device) -> Iterator[None]:
    """An allocation that fails, on any device, as our own error."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in text:
            raise
        batch, _, height, width = images.shape
        raise SpatialEmbedError(
            "out_of_memory",
            f"no memory left for {batch} image(s) of {width} x {height} px on {device}",
            "use a smaller batch, a smaller image, or device cpu",
            RESOURCE,
        ) from error


def _reproducible(device: torch.device) -> AbstractContextManager[object]:
    """cuDNN picks by time otherwise, and may add in another order at each run."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
