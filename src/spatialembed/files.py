"""Files: the one atomic write, either the old file or the whole new one; arrays; locked folders."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import shutil
import sys
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from spatialembed.errors import RESOURCE, USAGE, SpatialEmbedError

logger = logging.getLogger("spatialembed")

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of ``flock`` on file systems that have none: Lustre and NFS, as they are mounted."""

BROKEN_ARRAYS = (
    OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError,
)  # fmt: skip
"""What numpy raises on a missing or damaged .npy or .npz; memory: on a header that promises it."""
IN_MEMORY = 1 << 24
"""Bytes of a ``Growing`` text that are kept in memory."""


def check_writable(folder: Path, remedy: str = "choose another folder by --out") -> None:
    """Before hours of work: make the folder, and a file in it that is removed at once.

    Raises SpatialEmbedError ``not_writable`` (exit 2).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        a_file = isinstance(error, FileExistsError)
        what = f"{folder}: {'is a file, not a folder' if a_file else error.strerror}"
        raise SpatialEmbedError("not_writable", what, remedy, USAGE) from error


def free_name(parent: Path, stem: str) -> str:
    """``stem``, or with the first number that makes it new: no run lands in another's folder."""
    taken = set(os.listdir(parent)) if parent.is_dir() else set()
    names = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
    return next(name for name in names if name not in taken)


def new_folder(parent: Path, stem: str) -> Path:
    """Make the folder of ``free_name``: of two runs at once, each gets its own.

    Raises SpatialEmbedError ``not_writable`` (exit 2).
    """
    check_writable(parent)
    while True:
        folder = parent / free_name(parent, stem)
        with suppress(FileExistsError):  # somebody was quicker
            folder.mkdir()
            return folder


@contextmanager
def locked(folder: Path, remedy: str = "wait for it, or choose another --out") -> Iterator[None]:
    """Hold a folder; a second holder is refused. The lock dies with its process, killed or not.

    Where the file system has no locks, a logged warning says so and nothing is held.

    Raises SpatialEmbedError ``not_writable`` or ``run_locked`` (both exit 2).
    """
    check_writable(folder)
    with _held(folder / ".lock") as held:
        if held is False:
            what = f"{folder}: another run is writing here"
            raise SpatialEmbedError("run_locked", what, remedy, USAGE)
        if isinstance(held, OSError):
            logger.warning(
                "%s: the file system has no locks (%s): nothing keeps a second run from writing "
                "here", folder, held.strerror,
            )  # fmt: skip
        yield


@contextmanager
def _held(path: Path) -> Iterator[bool | OSError]:
    """Hold a file that is made for it: whether that went well, or why there are no locks here."""
    handle = path.open("w")
    held: bool | OSError = False
    try:
        # Of a file that its holder has just removed, the lock holds nobody off.
        while (held := _lock(handle.fileno())) is True and not _is_open_as(path, handle.fileno()):
            handle.close()
            handle = path.open("w")
        yield held
    finally:
        if held is not False:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()
        handle.close()


def _lock(descriptor: int) -> bool | OSError:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in NO_LOCKS:
            raise
        return error
    return True


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether the file of this name is the one that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def mapped_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """A new array in a file of its own, mapped: it costs no memory that is not backed by the file.

    Its room is taken from the disk at once: a write into a hole on a full disk kills the process.
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
    with a dot and keeps the suffix, since writers choose their format by it. It belongs to
    ``path``, so that what a killed process left is removed by the next that writes that file.

    Raises SpatialEmbedError ``disk_full`` (exit 5) where the disk or quota is full.
    """
    target = Path(path)
    with disk_full_is_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target) as temporary:
            try:
                yield temporary
                flush(temporary)
                os.replace(temporary, target)
                flush(target.parent)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A path that nobody else writes to: the one of ``target`` where its lock can be held."""
    own = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]  # a name may have 255 bytes
    with ExitStack() as stack:
        held: bool | OSError = False
        with suppress(OSError):  # which the writer meets again, and names
            held = stack.enter_context(_held(target.with_name(f".{own}.lock")))
        path = target.with_name(f".{own if held is True else uuid.uuid4().hex}{target.suffix}")
        path.unlink(missing_ok=True)
        yield path


@contextmanager
def disk_full_is_named(target: Path) -> Iterator[None]:
    """Raise SpatialEmbedError ``disk_full`` (exit 5) where the disk or quota is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SpatialEmbedError(
            "disk_full",
            f"{target}: no space left on the disk",
            "free some space; what was there before is intact",
            RESOURCE,
        ) from error


class Growing:
    """Text that only grows, for a file to be: above 16 MB it lies on the disk, not in memory.

    What lies on the disk has no name, so nothing is left of it after a kill.
    """

    def __init__(self, target: Path) -> None:
        """target: the file that it is for, in whose folder it lies."""
        self.target = target
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(target.parent))  # noqa: SIM115

    def append(self, text: str) -> None:
        """Names that are no UTF-8 keep their bytes. Raises SpatialEmbedError ``disk_full``."""
        with disk_full_is_named(self.target):
            self._file.write(text.encode("utf-8", "surrogateescape"))

    def copy(self, to: IO[bytes]) -> None:
        """Write all of it."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, to, 1 << 20)  # which leaves it at its end


def flush(path: Path) -> None:
    """Force a file or folder entry to disk (fsync); file systems without fsync are left alone."""
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
