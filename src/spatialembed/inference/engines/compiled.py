"""The network compiled by torch (Inductor): convolutions, additions and activations fused.

Height and width stay open: one program serves every size, so that a folder of many sizes is not
compiled again and again. On the CPU the weights are constants of the program (frozen), laid out
once as oneDNN wants them. On CUDA a batch of one and larger ones have a program each, and the
launches of a shape are recorded once as a CUDA graph and replayed: the network is about 130 small
kernels, and to launch them one by one costs the processor more time than the GPU spends on a single
image. ``torch.compile(mode="reduce-overhead")`` would record them too, and is not used: a folder of
many sizes records without bound (it only warns from 8 shapes on), and its recordings belong to a
thread. Called from another one it asserted until torch 2.13 (pytorch issue 123177), and records all
of them anew since.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from spatialembed.inference.engines.folded import FoldedCore, Run
from spatialembed.types import Embeddings

EXAMPLE_HW = (512, 1024)
"""What is compiled first; loops are shared among threads as suits this size, and any other runs."""
LEAST_SIDE = 128
"""px. Smaller images run as they are: torch would compile anew for sides of 1 inside the network,
and for maps so small that its library convolves them in another way."""
MOST_SHAPES = 8
"""Shapes recorded; each keeps the memory of its maps. Others run without."""
WARM_UP = 3
"""Runs before recording: libraries choose their kernels and allocate in the first ones."""


class Recording(NamedTuple):
    """A graph with the tensors that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    maps: Embeddings


class Recorded:
    """``run`` replayed; images on the GPU -> maps of one's own, which no later call overwrites."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recordings: dict[torch.Size, Recording] = {}
        self.free = threading.Lock()  # a recording has one set of tensors

    def __call__(self, images: Tensor) -> Embeddings:
        with self.free:
            recording = self.recordings.get(images.shape)
            if recording is None:
                if len(self.recordings) == MOST_SHAPES:
                    return self.run(images)
                recording = self.recordings[images.shape] = _record(self.run, images)
            recording.images.copy_(images)
            recording.graph.replay()
            return Embeddings(*(m.clone() for m in recording.maps))


def _record(run: Run, images: Tensor) -> Recording:
    held = images.clone()  # keeps the layout
    side = torch.cuda.Stream(images.device)
    side.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(held)
    torch.cuda.current_stream(images.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads, which read and cluster, may allocate meanwhile.
    mode = "thread_local"
    with torch.cuda.device(images.device), torch.cuda.graph(graph, capture_error_mode=mode):
        maps = run(held)
    return Recording(graph, held, maps)


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
    # Whole programs that torch keeps on disk are found again without a look at the processor: made
    # for AVX-512 and compiled anew for AVX2, as on nodes with one home, their maps are noise. What
    # it keeps of their parts knows the compiler's flags.
    program = torch.compile(core, dynamic=True, options={"freezing": True, "fx_graph_cache": False})

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
