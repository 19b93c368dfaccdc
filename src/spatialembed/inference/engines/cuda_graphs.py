"""CUDA graphs: the launches of a run recorded once for each shape, and replayed.

The network is about 130 small kernels; launched one by one they cost the processor more time than
the GPU spends on a single image. ``torch.compile(mode="reduce-overhead")`` would record them too,
and is not used: a folder of many sizes records without bound (it only warns from 8 shapes on), and
its recordings belong to a thread. Called from another one it asserted until torch 2.13 (pytorch
issue 123177), and records all of them anew since.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
from torch import Tensor

from spatialembed.inference.engines.folded import Run
from spatialembed.types import Embeddings

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
