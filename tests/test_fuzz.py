"""The short form of ``benchmarks/fuzz.py``: 60 damaged files of each kind, always the same ones."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import fuzz

RUNS = {"facts": 10, "weights": 4}
"""Of the targets that load a network each time; of the others 60."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    with warnings.catch_warnings(action="ignore"):
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_value_or_a_refusal(target: str) -> None:
    draw = random.Random(target)
    for _ in range(RUNS.get(target, 60)):
        fuzz.tried(target, fuzz.mutated(draw.choice(fuzz.corpus(target)), draw))


@pytest.mark.parametrize(
    "target",
    ["png", "tiff", "windows", "zarr", "classes", "index", "facts", "yaml", "coco", "cityscapes"],
)
def test_the_corpus_is_valid(target: str) -> None:
    """Else mutations of it would all be refused at the first look."""
    assert all(fuzz.tried(target, content) for content in fuzz.corpus(target))


def test_a_chunk_of_two_gigabytes_makes_no_room_for_them() -> None:
    """Found by it: reading n bytes of a file makes room for n at once."""
    resource = pytest.importorskip("resource")
    content = fuzz.pictures("PNG")[0]
    at = content.index(b"IDAT") - 4
    damaged = content[:at] + b"\x7f\xff\xff\xff" + content[at + 4 :]
    before = resource.getrlimit(resource.RLIMIT_AS)
    fuzz.bounded()
    try:
        assert not fuzz.tried("png", damaged)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
