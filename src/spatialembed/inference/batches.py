"""Images of one size that go through the network together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from torch import Tensor


class HasImage(Protocol):
    """An image on its way; None where it failed."""

    @property
    def image(self) -> Tensor | None: ...  # (3, H, W)


T = TypeVar("T", bound=HasImage)


def batches(items: Iterable[T], most: int, pixels: int) -> Iterator[list[T]]:
    """Runs of neighbours of one size, at most ``most`` and ``pixels``; a failed item is alone."""
    run: list[T] = []
    for item in items:
        if run and not (len(run) < most and _fits(item, run, pixels)):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _fits(item: HasImage, run: list[T], pixels: int) -> bool:
    image, other = item.image, run[0].image
    if image is None or other is None or image.shape != other.shape:
        return False
    return (len(run) + 1) * image.shape[1] * image.shape[2] <= pixels
