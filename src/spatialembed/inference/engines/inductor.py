"""The network compiled by torch (Inductor): convolutions, additions and activations fused.

Height and width stay open: one program serves every size, so that a folder of many sizes is not
compiled again and again. On the CPU the weights are constants of the program (frozen), laid out
once as oneDNN wants them. On CUDA a batch of one and larger ones have a program each, and their
launches are recorded (see ``cuda_graphs``).
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

import torch
from torch import Tensor

from spatialembed.inference.engines.cuda_graphs import Recorded
from spatialembed.inference.engines.folded import FoldedCore, Run
from spatialembed.types import Embeddings

EXAMPLE_HW = (512, 1024)
"""What is compiled first; loops are shared among threads as suits this size, and any other runs."""
LEAST_SIDE = 128
"""px. Smaller images run as they are: torch would compile anew for sides of 1 inside the network,
and for maps so small that its library convolves them in another way."""


def missing_compiler(device: torch.device) -> str:
    """The name of the compiler that is needed on ``device`` and not there; empty if it is."""
    if device.type == "cuda":
        return "" if find_spec("triton") else "triton"
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX") or default
    return "" if shutil.which(name) else name


def compiled_run(core: FoldedCore, device: torch.device) -> Run:
    """``core`` compiled for ``device``, where it lies; compiles now, so that a fault shows here."""
    missing = missing_compiler(device)
    if missing:
        raise RuntimeError(f"{missing} is not installed")
    run = _on_cuda(core) if device.type == "cuda" else _on_cpu(core)
    with torch.inference_mode():
        run(torch.zeros(1, 3, *EXAMPLE_HW, device=device))
    return run


def _on_cpu(core: FoldedCore) -> Run:
    program = torch.compile(core, dynamic=True, options={"freezing": True})

    def run(images: Tensor) -> Embeddings:
        if min(images.shape[-2:]) < LEAST_SIDE:
            return core(images)
        # A copy: made here, it is always of one layout and kind, else each would be compiled for.
        # One by one: a batch of 1 and one of more would be two programs.
        maps = [program(x.clone(memory_format=torch.channels_last)) for x in images.split(1)]
        return maps[0] if len(maps) == 1 else Embeddings(*map(torch.cat, zip(*maps, strict=True)))

    return run


def _on_cuda(core: FoldedCore) -> Run:
    program = Recorded(torch.compile(core, dynamic=True))

    def run(images: Tensor) -> Embeddings:
        if min(images.shape[-2:]) < LEAST_SIDE:
            return core(images)
        return program(images.clone(memory_format=torch.channels_last))

    return run
