"""Where the network runs, and in which precision: names of settings to what the machine has."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spatialembed.errors import RESOURCE, USAGE, SpatialEmbedError
from spatialembed.method.normalization import levels_of_counts, noise_of, normalize, to_tensor
from spatialembed.types import Normalization

Precision = Literal["float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")
logger = logging.getLogger("spatialembed")


def resolve_device(name: str) -> torch.device:
    """The device of a torch name ("cpu", "cuda:1", "mps"), or "auto": CUDA, else MPS, else CPU.

    With "auto", a GPU that is there but fails a trial is skipped with a logged warning.
    Raises SpatialEmbedError (exit 2): ``unknown_device``; ``no_device`` where a named one fails.
    """
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            what, remedy = f"{name!r} is not a device", "use auto, cpu, cuda, cuda:N or mps"
            raise SpatialEmbedError("unknown_device", what, remedy, USAGE) from error
        if fault := _fault(device):
            remedy = "use device auto or cpu"
            raise SpatialEmbedError("no_device", f"{name}: {fault}", remedy, USAGE)
        return device
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for kind in (kind for kind, present in there.items() if present):
        if not (fault := _fault(torch.device(kind))):
            return torch.device(kind)
        logger.warning("device %s exists but fails: %s; falling back", kind, fault)
    logger.info("no GPU that torch can use: running on the CPU")
    return torch.device("cpu")


def _fault(device: torch.device) -> str:
    """Why a small convolution fails there, in a line; empty if it does not."""
    try:
        F.conv2d(torch.ones(1, 1, 3, 3, device=device), torch.ones(1, 1, 3, 3, device=device)).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return first_line(error)
    return ""


def resolve_precision(name: str, device: torch.device) -> Precision:
    """ "auto": bfloat16 where the device computes in it, else float32; or the one that is named.

    Raises SpatialEmbedError ``unknown_precision`` (exit 2).
    """
    if name not in PRECISIONS:
        what, remedy = f"{name!r} is not a precision", f"use {', '.join(PRECISIONS)}"
        raise SpatialEmbedError("unknown_precision", what, remedy, USAGE)
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
def memory_is_named(shape: Sequence[int], device: torch.device) -> Iterator[None]:
    """An allocation that fails, for images (B, C, H, W), by any library on any device, as our own.

    Raises SpatialEmbedError ``out_of_memory`` (exit 5).
    """
    try:
        yield
    except RuntimeError as error:
        known = any(text in str(error) for text in ("allocate memory", "bad_alloc"))
        if not isinstance(error, torch.OutOfMemoryError) and not known:
            raise
        batch, _, height, width = shape
        raise SpatialEmbedError(
            "out_of_memory",
            f"no memory left for {batch} image(s) of {height} x {width} px on {device}",
            "use a smaller batch, a smaller image, or device cpu",
            RESOURCE,
        ) from error


def first_line(error: BaseException) -> str:
    """What is wrong, in a line; foreign errors can be pages long."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def device_input(image: np.ndarray, how: Normalization, device: torch.device) -> Tensor:
    """``network_input`` of (H, W) or (H, W, 3) uint8, (3, H, W) float32 on ``device``, bit for bit.

    A quarter of the bytes cross over, and the processor does not touch the pixels: they are counted
    and looked up on the device; the table of 256 levels is made here.

    Raises SpatialEmbedError ``out_of_memory`` (exit 5).
    """
    height, width = image.shape[:2]
    with memory_is_named((1, 3, height, width), device):
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        channels = pixels.reshape(height * width, -1).T.int()  # (C, P), C = 1 or 3
        values = to_tensor(np.arange(256, dtype=np.uint8)[None])[: len(channels)]  # (C, 1, 256)
        levels = None
        if how.kind == "percentile":
            counts = torch.stack([torch.bincount(c, minlength=256) for c in channels])  # (C, 256)
            counted = counts.cpu().numpy()
            levels = levels_of_counts(counted, values[0, 0].numpy(), how, noise_of(image, how))
        table = normalize(values.contiguous(), how, levels)[:, 0].to(device)  # (C or 3, 256)
        rows = zip(table, channels.expand(len(table), -1), strict=True)
        looked_up = torch.stack([row.index_select(0, channel) for row, channel in rows])
    return looked_up.view(-1, height, width).expand(3, -1, -1)
