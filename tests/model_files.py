"""Networks, and files that would do harm, for the tests of what is read from disk."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spatialembed.method.model import SpatialEmbeddingNet


def new_net(seed: int = 0, classes: int = 2, elliptical: bool = True) -> SpatialEmbeddingNet:
    """A network whose every parameter and buffer is random."""
    torch.manual_seed(seed)
    net = SpatialEmbeddingNet(classes, elliptical)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.01, 0.2)
    return net


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.canary),)


def plain_pickle(bomb: Bomb, file: Path) -> None:
    file.write_bytes(pickle.dumps(bomb))


def torch_zip(bomb: Bomb, file: Path) -> None:
    torch.save({"model_state_dict": {}, "logger_data": bomb}, file)


def torch_legacy(bomb: Bomb, file: Path) -> None:
    torch.save({"model_state_dict": bomb}, file, _use_new_zipfile_serialization=False)


WRITERS = [
    pytest.param(w, id=f"CKP-06 {w.__name__}") for w in (plain_pickle, torch_zip, torch_legacy)
]
