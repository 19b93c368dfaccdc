"""A model at work in its own process: questions in, answers out, one at a time, see ``serve.pipe``.

``do`` of a question: ``image`` (a file is the body), ``again`` (maps that were kept), ``picture``
(of kept maps, as PNG), ``forget``. A foreseen fault is an answer; so is any other, which is logged.
"""

from __future__ import annotations

import hashlib
import select
import signal
import sys
import time
import traceback
from dataclasses import asdict
from importlib import resources
from io import RawIOBase
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from spatialembed.errors import MODEL, RESOURCE, SpatialEmbedError
from spatialembed.images.read import MAX_PIXELS
from spatialembed.images.write import png_bytes
from spatialembed.inference.model_file import summary
from spatialembed.inference.predictor import load_for
from spatialembed.inference.tiling import TiledEngine
from spatialembed.method.cluster import ClusterOptions
from spatialembed.options import DeviceOptions
from spatialembed.pictures.drawing import display
from spatialembed.serve import pipe
from spatialembed.serve.answers import as_file, as_json
from spatialembed.serve.decoder import Decoder, fault
from spatialembed.serve.formats import FORMATS
from spatialembed.serve.kept import Kept, Shelf
from spatialembed.types import Instances

JOB_PIXELS = 5e7
"""By which ``--engine auto`` chooses among ``SOON``."""
SOON = ("torch", "onnxruntime", "openvino")
"""Engines that start in seconds. One that compiles may take longer than a server waits for it, and
lets a visitor wait when an image has a size of its own."""
FINDS = {"nuclei": 171, "shapes": 177}
"""Objects of the first example by bundled models that are made for such images; within a tenth,
since processors and engines differ by one or two. A broken one finds none, or noise."""
IDLE_S = 30.0
"""Kept maps are looked through for old ones at least so often."""


class Worker:
    """The model, its decoder, and the maps that it keeps."""

    def __init__(self, name: str, path: str, folder: Path, how: DeviceOptions, most: int) -> None:
        """most: px of an image. Raises SpatialEmbedError of ``load``."""
        self.name, self.path, self.folder, self.most = name, path, folder, most
        self.decoder = Decoder(folder)  # starts while the model loads
        self.predictor = load_for(path, how, pixels=JOB_PIXELS, among=SOON)
        network = self.predictor.info.network
        self.predictor.engine = TiledEngine(self.predictor.engine, network)
        self.shelf = Shelf()

    def facts(self) -> pipe.Meta:
        """The model for ``GET /v1/models``, and the hash of what it finds in the first example.

        Every format is made once, so that the first visitor need not wait for compiled code.
        Raises SpatialEmbedError ``self_check`` (exit 4) for a bundled model that finds too few or
        too many objects.
        """
        example = resources.files("spatialembed").joinpath("serve", "examples", "1.png")
        picture = self.decoder(example.read_bytes(), MAX_PIXELS)
        seen = self.predictor.seen(picture.pixels)
        wanted, number = FINDS.get(self.path), len(seen.instances)
        if wanted is not None and abs(number - wanted) > wanted / 10:
            what = f"{self.path} finds {number} objects in the example, not about {wanted}"
            raise SpatialEmbedError("self_check", what, "give --engine torch", MODEL)
        kept = Kept("", "image", picture, seen)
        for form in FORMATS:
            asked = {"format": form, "polygons": True}
            self._made(asked, seen.instances, self.predictor.settings, kept, None)
        info = self.predictor.info
        return {
            "description": summary(self.path),
            "licence": info.training.get("licence"),
            "class_names": info.class_names,
            "thresholds": asdict(info.thresholds),
            "calibrated": info.calibration is not None,
            "weights_sha256": info.weights_sha256,
            "self_check": hashlib.sha256(seen.instances.labels.tobytes()).hexdigest(),
        }

    def answer(self, asked: pipe.Meta, body: pipe.Bytes) -> tuple[pipe.Meta, bytes]:
        """The answer to a question; faults are answers."""
        do = {"image": self.image, "again": self._again, "picture": self._picture}
        try:
            return do.get(asked["do"], self._forget)(asked, body)
        except SpatialEmbedError as caught:
            error = caught
        except MemoryError:
            error = SpatialEmbedError("out_of_memory", "no memory left", "", RESOURCE)
        except Exception:
            traceback.print_exc()
            error = SpatialEmbedError("internal", "a fault of the server", "see its log", RESOURCE)
        return {"error": fault(error)}, b""

    def image(self, asked: pipe.Meta, body: pipe.Bytes) -> tuple[pipe.Meta, bytes]:
        """A file to its instances. Raises SpatialEmbedError of reading and of ``Predictor``."""
        clock = [time.perf_counter()]
        options = self.predictor.options(**asked["thresholds"])
        name, channel = asked.get("name", "image"), self.predictor.channel
        picture = self.decoder(body, self.most, name, channel)
        clock.append(time.perf_counter())
        seen = self.predictor.seen(picture.pixels, options)
        clock.append(time.perf_counter())
        kept = Kept(asked.get("visitor", ""), asked.get("name", "image"), picture, seen)
        key = self.shelf.put(kept) if asked.get("keep") else None
        media, content = self._made(asked, seen.instances, options, kept, key)
        clock.append(time.perf_counter())
        took = (b - a for a, b in pairwise(clock))
        seconds = dict(zip(("decode", "predict", "format"), took, strict=True))
        return {"media": media, "maps": key, "seconds": seconds}, content

    def _kept(self, asked: pipe.Meta) -> Kept:
        kept = self.shelf.get(asked["id"])
        if kept is None:
            raise SpatialEmbedError("maps_gone", "these maps are gone", "send the image again")
        return kept

    def _forget(self, asked: pipe.Meta, _: pipe.Bytes) -> tuple[pipe.Meta, bytes]:
        self.shelf.drop(asked["id"])
        return {}, b""

    def _picture(self, asked: pipe.Meta, _: pipe.Bytes) -> tuple[pipe.Meta, bytes]:
        return {"media": "image/png"}, png_bytes(display(self._kept(asked).picture.pixels))

    def _again(self, asked: pipe.Meta, _: pipe.Bytes) -> tuple[pipe.Meta, bytes]:
        kept, begun = self._kept(asked), time.perf_counter()
        options = self.predictor.options(**asked["thresholds"])
        found = self.predictor.again(kept.seen, options)
        media, content = self._made(asked, found, options, kept, asked["id"])
        seconds = {"again": time.perf_counter() - begun}
        return {"media": media, "maps": asked["id"], "seconds": seconds}, content

    def _made(
        self,
        asked: pipe.Meta,
        found: Instances,
        options: ClusterOptions,
        kept: Kept,
        key: str | None,
    ) -> tuple[str, bytes]:
        if asked["format"] != "json":
            return as_file(asked["format"], found, kept.picture, kept.name, self.folder)
        more = {"warnings": kept.picture.warnings, "maps": key}
        outlined = bool(asked.get("polygons"))
        return as_json(self.name, found, kept.name, outlined, options, more)


def _wait(source: RawIOBase, shelf: Shelf) -> None:
    """Until a question comes; old maps go meanwhile."""
    shelf.expire()  # also where one question follows the other
    while not select.select([source], [], [], IDLE_S)[0]:
        shelf.expire()


def main(text: str) -> None:
    """The process: says what the model is, then answers until the server has gone.

    text: JSON with the arguments of ``Worker``.
    """
    source, sink = pipe.ends()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which drains
    given: dict[str, Any] = msgspec.json.decode(text)
    try:
        how = DeviceOptions(**given["how"])
        worker = Worker(given["name"], given["path"], Path(given["folder"]), how, given["most"])
        pipe.write(sink, {"facts": worker.facts()})
        while True:
            _wait(source, worker.shelf)
            question, body = pipe.read(source)
            reply, content = worker.answer(question, body)
            del body
            pipe.write(sink, reply, content)
    except SpatialEmbedError as error:
        pipe.write(sink, {"error": fault(error)})
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main(sys.argv[1])
