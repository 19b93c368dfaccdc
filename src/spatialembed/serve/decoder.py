"""Image bytes to pixels in a process of its own, with a limit on its memory and its time.

``Decoder`` stands in the model's process and starts the other one again when it has died of a file.
The child imports no torch, so that it is there in a third of a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
import warnings
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from spatialembed.errors import INPUT, RESOURCE, SpatialEmbedError
from spatialembed.serve import pipe

MEMORY = 1 << 30
"""Bytes that decoding may take beyond those of the process itself."""
SECONDS = 20
"""Of processor time for one file."""


class Picture(NamedTuple):
    """An image as it was read."""

    pixels: np.ndarray  # (H, W) or (H, W, 3), uint8, uint16 or float32
    pixel_um: tuple[float, float] | None
    warnings: list[str]


class Decoder:
    """The child's end in the model's process."""

    def __init__(self, folder: Path) -> None:
        self.command = [sys.executable, "-m", __spec__.name, str(folder)]
        self._start()

    def _start(self) -> None:
        self.child = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def __call__(
        self,
        data: pipe.Bytes,
        max_pixels: int,
        name: str = "image",
        channel: int | str | None = None,
    ) -> Picture:
        """Pixels of a file; max_pixels: width x height, by its header; name: for faults; channel:
        that of the model, which is read where the file has it.

        Raises SpatialEmbedError: those of ``read_image``; ``not_decodable`` (exit 3) of a file that
        killed its process.
        """
        if self.child.poll() is not None:  # killed while it had nothing to do
            self._start()
        try:
            asked = {"most": max_pixels, "name": name, "channel": channel}
            pipe.write(cast(RawIOBase, self.child.stdin), asked, data)
            meta, pixels = pipe.read(cast(RawIOBase, self.child.stdout))
        except (EOFError, BrokenPipeError):
            self.child.kill()
            self.child.wait()
            self._start()
            what = "the image cannot be decoded in the memory and time allowed"
            raise SpatialEmbedError("not_decodable", what, "save it as a plain PNG") from None
        if "error" in meta:
            raise SpatialEmbedError(**meta["error"])
        um = meta["pixel_um"]
        array = np.frombuffer(pixels, meta["dtype"]).reshape(meta["shape"])
        return Picture(array, None if um is None else (um[0], um[1]), meta["warnings"])


def fault(error: SpatialEmbedError) -> dict[str, Any]:
    """The error as JSON; ``SpatialEmbedError(**fault)`` is it again."""
    return {
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
    }


def _limit_memory() -> None:
    """Linux: address space of now and ``MEMORY`` more; elsewhere the limit on pixels has to do."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def _limit_time() -> None:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    spent = int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + 1 + SECONDS, hard))


def _decode(path: Path, max_pixels: int, channel: int | str | None) -> tuple[pipe.Meta, pipe.Bytes]:
    from spatialembed.images.channels import Preferred
    from spatialembed.images.pixel_size import pixel_size
    from spatialembed.images.read import ImageWarning, read_image

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wanted = None if channel is None else Preferred(channel)
        pixels = read_image(path, max_pixels=max_pixels, channel=wanted)
        um = pixel_size(path)
    said = [str(w.message) for w in caught if issubclass(w.category, ImageWarning)]
    meta = {"shape": pixels.shape, "dtype": pixels.dtype.str, "pixel_um": um, "warnings": said}
    return meta, pixels.reshape(-1).view(np.uint8).data


def main(folder: str) -> None:
    """The child: a file in, pixels or an error out, until the model's process has gone."""
    source, sink = pipe.ends()
    path = Path(folder) / "image"
    from spatialembed.images import channels, pixel_size, read  # noqa: F401  before memory is limited

    _limit_memory()
    while True:
        try:
            asked, data = pipe.read(source)
        except EOFError:
            return
        _limit_time()
        try:
            path.write_bytes(data)
            del data
            answer = _decode(path, asked["most"], asked["channel"])
        except SpatialEmbedError as error:
            told = fault(error)
            told["message"] = told["message"].replace(str(path), asked["name"])
            answer = {"error": told}, b""
        except MemoryError:
            what = "the image needs more memory than decoding may take"
            answer = {"error": fault(SpatialEmbedError("too_large", what, "", RESOURCE))}, b""
        except Exception:
            traceback.print_exc()
            what = "the image cannot be decoded"
            answer = {"error": fault(SpatialEmbedError("not_decodable", what, "", INPUT))}, b""
        finally:
            path.unlink(missing_ok=True)  # nobody's image stays on the disk
        pipe.write(sink, *answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
