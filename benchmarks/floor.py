"""How fast a network could be on this machine: its operations and bytes at the rates measured here.

The floor of a stage is the larger of operations / matrix rate and bytes / bandwidth. Operations are
those of the convolutions (a multiplication and an addition are two); bytes those of every
convolution reading its input and writing its output once, as if nothing were kept in a cache.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 5


def operations(net: nn.Module, height: int, width: int) -> int:
    """Of one image (height, width)."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(torch.zeros(1, 3, height, width))
    return counter.get_total_flops()


def traffic(net: nn.Module, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that the convolutions read and write for one image."""
    total = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += inputs[0].numel() + output.numel()

    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        net(torch.zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    return total * torch.empty((), dtype=dtype).element_size()


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Operations a second of a product of square matrices, the best of a few."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b, device)


def bandwidth(device: torch.device, mebibytes: int = 256) -> float:
    """Bytes a second that a copy reads and writes, the best of a few."""
    source = torch.ones(mebibytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best(lambda: target.copy_(source), device)


def _best(job, device: torch.device) -> float:  # type: ignore[no-untyped-def]
    seconds = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def seconds(net: nn.Module, size_hw: tuple[int, int], dtype: torch.dtype, device: torch.device):  # type: ignore[no-untyped-def]
    """The floor: seconds by operations, and seconds by bytes, for one image on a device."""
    net = net.to("cpu", torch.float32)
    by_operations = operations(net, *size_hw) / matrix_rate(dtype, device)
    by_bytes = traffic(net, *size_hw, dtype) / bandwidth(device)
    return by_operations, by_bytes
