"""The one atomic write: a file is either the old one or the whole new one, at any moment."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spatialembed.errors import RESOURCE, SpatialEmbedError


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
