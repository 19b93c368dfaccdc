"""Where results lie: a folder, or a bucket through obstore. A file is put whole, and put once.

``put_new`` is what all else rests on: of any number of processes that put a file of one name, the
first one does, and the others find that it is there. A process that was stopped for a day and wakes
up changes nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from spatialembed.errors import INPUT, USAGE, SpatialEmbedError, missing_extra
from spatialembed.files import disk_full_is_named, flush

WORK = ".bulk"
"""Folder below the results of all that is gone in the end: marks of attempts, files in making."""
SCHEMES = ("s3", "gs", "az", "azure", "abfs", "abfss", "gcs")
RETRY_S, REQUEST_S = 300, 60
"""How long a request is repeated, and how long one may take."""
PIECE = 8 << 20
"""Bytes of a multipart upload that are sent at once."""


def is_url(text: str) -> bool:
    """Whether obstore opens it; file:// is a path like others, see ``as_path``."""
    scheme, found, _ = text.partition("://")
    return found != "" and scheme.lower() in SCHEMES


def as_path(text: str) -> str:
    """file:///a/b as /a/b; all others as they are."""
    return unquote(text.removeprefix("file://")) if text.startswith("file://") else text


def open_store(out: str) -> Folder | Bucket:
    """The store of a path or URL. Raises SpatialEmbedError ``missing_extra`` (exit 2)."""
    return Bucket(out) if is_url(out) else Folder(Path(as_path(out)))


class Folder:
    """A folder of a file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self, below: str = "") -> Iterator[str]:
        """Of all files, or of those below a folder, with "/" between."""
        for top, _, names in os.walk(self.root / below):
            yield from (Path(top, name).relative_to(self.root).as_posix() for name in names)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of a file from ``start`` to before ``end``. Raises FileNotFoundError."""
        with (self.root / name).open("rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)

    def put_new(self, name: str, content: bytes) -> bool:
        """Put a file unless there is one of that name; returns whether there was none.

        Raises SpatialEmbedError ``disk_full`` (exit 5).
        """
        target = self.root / name
        while not target.exists():
            # Who tidies up may take the file or its folder away from one that was stopped.
            with suppress(FileNotFoundError), self._written(target, content) as temporary:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                self._keep(target)
                return True
        return False

    def check(self) -> None:
        """Raise SpatialEmbedError ``not_writable`` (exit 2) where ``put_new`` cannot work."""
        try:
            self.put_new(f"{WORK}/check", b"")
        except OSError as error:
            what = f"{self.root}: no hard links there ({error.strerror})"
            raise SpatialEmbedError("not_writable", what, "choose another --out", USAGE) from error

    def put(self, name: str, content: bytes) -> None:
        """Put a file in place of the one that may be there. Raises as ``put_new``."""
        with self._written(self.root / name, content) as temporary:
            os.replace(temporary, self.root / name)
            self._keep(self.root / name)

    def _keep(self, target: Path) -> None:
        """Put its name on the disk too.

        Else the mark of an image that takes down the machine would be gone each time, and the rows
        of a shard could be there without its label images.
        """
        folders = [folder for folder in target.parents if folder.is_relative_to(self.root)]
        for folder in folders:
            with suppress(OSError):  # tidied away meanwhile, or a file system that cannot
                flush(folder)

    @contextmanager
    def _written(self, target: Path, content: bytes) -> Iterator[Path]:
        """The content on the disk, in the folder of work."""
        temporary = self.root / WORK / "new" / uuid.uuid4().hex
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with disk_full_is_named(target):
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def publish(self, name: str, path: Path) -> None:
        """Put a file of the folder of work, in place of the one that may be there."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, self.root / name)
        self._keep(self.root / name)

    def workplace(self) -> Path:
        """A folder for files in making, of this store where it can be."""
        place = self.root / WORK / "merge"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def remove(self, name: str) -> None:
        """Remove a file, where there is one."""
        with suppress(FileNotFoundError):
            (self.root / name).unlink()

    def tidy(self) -> None:
        """Remove the folder of work."""
        shutil.rmtree(self.root / WORK, ignore_errors=True)


class Bucket:
    """A prefix of a bucket. Opened in the process that uses it: obstore does not survive a fork."""

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore import store
            from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
        except ImportError as error:
            raise missing_extra("obstore", "bulk", f"opening {url}") from error
        self.url, self._obstore = url, obstore
        self._exists, self._missing = AlreadyExistsError, (NotFoundError, FileNotFoundError)
        limits: Any = {"timeout": timedelta(seconds=REQUEST_S), "connect_timeout": "10s"}
        if any(os.environ.get(f"{name}_ALLOW_HTTP", "") == "true" for name in ("AWS", "AZURE")):
            limits["allow_http"] = True  # which obstore forgets beside other limits
        retry: Any = {"max_retries": 20, "retry_timeout": timedelta(seconds=RETRY_S)}
        try:
            self.store: Any = store.from_url(url, client_options=limits, retry_config=retry)
        except (BaseError, ValueError) as error:  # the latter of no address at all
            raise _fault(url, error) from error
        self._errors = (BaseError, OSError)

    def names(self, below: str = "") -> Iterator[str]:
        """As of a folder. Raises SpatialEmbedError ``store_failed``."""
        try:
            for some in self._obstore.list(self.store, below or None):
                yield from (each["path"] for each in some)
        except self._errors as error:
            raise _fault(self.url, error) from error

    def has(self, name: str) -> bool:
        """As of a folder. Raises SpatialEmbedError ``store_failed``."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """As of a folder. Raises SpatialEmbedError ``store_failed``."""
        try:
            return int(self._obstore.head(self.store, name)["size"])
        except self._missing:
            return None
        except self._errors as error:
            raise _fault(f"{self.url}/{name}", error) from error

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """As of a folder. Raises FileNotFoundError, SpatialEmbedError ``store_failed``."""
        try:
            if end is None:
                return bytes(self._obstore.get(self.store, name).bytes())[start:]
            return bytes(self._obstore.get_range(self.store, name, start=start, end=end))
        except self._missing as error:
            raise FileNotFoundError(name) from error
        except self._errors as error:
            raise _fault(f"{self.url}/{name}", error) from error

    def put_new(self, name: str, content: bytes) -> bool:
        """As of a folder; a put that is repeated because its answer was lost finds its own file.

        So the same content there counts as put. Raises SpatialEmbedError ``store_failed``.
        """
        try:
            self._obstore.put(self.store, name, content, mode="create", use_multipart=False)
        except self._exists:
            return self.read(name) == content
        except self._errors as error:
            raise _fault(f"{self.url}/{name}", error) from error
        return True

    def put(self, name: str, content: bytes) -> None:
        """As of a folder. Raises SpatialEmbedError ``store_failed``."""
        try:
            self._obstore.put(self.store, name, content)
        except self._errors as error:
            raise _fault(f"{self.url}/{name}", error) from error

    def workplace(self) -> Path:
        """As of a folder: a temporary one of this machine."""
        self._place = tempfile.TemporaryDirectory()  # goes with the store
        return Path(self._place.name)

    def publish(self, name: str, path: Path) -> None:
        """As of a folder. Raises SpatialEmbedError ``store_failed``."""
        try:
            with path.open("rb") as file:
                self._obstore.put(self.store, name, file, chunk_size=PIECE)
        except self._errors as error:
            raise _fault(f"{self.url}/{name}", error) from error

    def remove(self, name: str) -> None:
        """As of a folder."""
        with suppress(*self._errors):
            self._obstore.delete(self.store, name)

    def tidy(self) -> None:
        """As of a folder."""
        for name in list(self.names(WORK)):
            self.remove(name)


def _fault(where: str, error: BaseException) -> SpatialEmbedError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = "check the address and the keys; the same command continues"
    return SpatialEmbedError("store_failed", f"{where}: {said}", remedy, INPUT)
