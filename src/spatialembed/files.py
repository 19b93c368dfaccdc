"""Files: the one atomic write, either the old file or the whole new one; arrays in files."""

from __future__ import annotations

import errno
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from spatialembed.errors import RESOURCE, SpatialEmbedError


def mapped_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """A new array in a file of its own, mapped: it costs no memory that is not backed by the file.

    Its room is taken from the disk at once: a write into a hole that finds none kills the process.
    Raises SpatialEmbedError ``disk_full`` (exit 5).
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.empty(shape, dtype)
    with open(path, "wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise SpatialEmbedError(
                "disk_full",
                f"{path}: no space left on the disk for {size / 1e9:.1f} GB",
                "free some space, or choose another output folder",
                RESOURCE,
            ) from error
    return np.memmap(path, dtype, "r+", shape=shape)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it to ``path``.

    On failure the temporary file is removed and ``path`` is as it was. The temporary name starts
    with a dot and keeps the suffix, since writers choose their format by it.

    Raises SpatialEmbedError ``disk_full`` (exit 5) where the disk or quota is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpatialEmbedError(
                "disk_full",
                f"{target}: no space left on the disk",
                "free some space; what was there before is intact",
                RESOURCE,
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force a file or folder entry to disk (fsync); file systems that cannot say so are let be."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
