"""The model at work in a process of its own: questions in, answers out, see ``serve.pipe``.

A process, not a thread: loading PyTorch and compiling hold the interpreter for a second at a time,
in which napari would stand still, and a process can be ended in the middle of the network.

    detect   the pixels are the body   -> progress, warnings, then found or failed
    again    other thresholds, on the maps that are kept      -> found or failed

The body of ``found`` is the label image, int32, and behind it the table as JSON.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from io import RawIOBase
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np

from spatialembed.console import listening
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.diameter import Seen
from spatialembed.inference.predictor import Predictor, load
from spatialembed.inference.tiling import TiledEngine, TileOptions
from spatialembed.options import ClusterOptions
from spatialembed.results.data_frames import columns_of
from spatialembed.serve import pipe
from spatialembed.types import Instances

Send = Callable[..., None]


class Model:
    """A loaded model, and the picture and maps that the last question was about."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loaded: tuple[tuple[Any, ...], Predictor] | None = None
        self._predictor: Predictor | None = None  # with the tiles of the last question
        self._seen: Seen | None = None
        self._pixels = np.zeros((0, 0))

    def answer(self, asked: pipe.Meta, body: pipe.Bytes) -> None:
        """Send the answer to a question. Foreseen faults and others are answers too."""
        try:
            options, found = getattr(self, f"_{asked['do']}")(asked, body)
            self._send_found(found, options, asked)
        except SpatialEmbedError as error:
            self._send({"kind": "failed", "text": str(error)})
        except MemoryError:
            self._send(
                {"kind": "failed", "text": "out_of_memory: no memory left (try less memory)"}
            )
        except Exception:
            self._send({"kind": "failed", "text": traceback.format_exc()})

    def _detect(self, asked: pipe.Meta, body: pipe.Bytes) -> tuple[ClusterOptions, Instances]:
        self._seen = None
        self._send({"kind": "stage", "text": "loading the model"})
        loaded = self._load(asked["model"], asked["diameter"])
        tiles = TileOptions(memory=asked["memory"], tile=asked["tile"])
        engine = TiledEngine(loaded.engine, loaded.info.network, tiles, self._advance)
        self._predictor = copy.copy(loaded)
        self._predictor.engine = engine
        if engine.takes_tiles(*asked["shape"][:2]):
            self._predictor.diameter = "native"  # as ``predict`` does it: tiles have one scale
        self._send({"kind": "stage", "text": "network"})
        self._pixels = np.frombuffer(body, asked["dtype"]).reshape(asked["shape"])
        options = self._predictor.options(**asked["thresholds"])
        self._seen = self._predictor.seen(self._pixels, options, augment=asked["augment"])
        return options, self._seen.instances

    def _again(self, asked: pipe.Meta, _: pipe.Bytes) -> tuple[ClusterOptions, Instances]:
        assert self._predictor is not None
        assert self._seen is not None, "a question about maps that are not there"
        options = self._predictor.options(**asked["thresholds"])
        return options, self._predictor.again(self._seen, options)

    def _load(self, model: str, diameter: str | float | None) -> Predictor:
        key = model, diameter
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = key, load(model, diameter=diameter)
        return self._loaded[1]

    def _advance(self, share: float) -> None:
        self._send({"kind": "progress", "share": share})

    def _send_found(self, found: Instances, options: ClusterOptions, asked: pipe.Meta) -> None:
        micrometres = asked["pixel_um"]
        table = columns_of(found, self._pixels, tuple(micrometres) if micrometres else None)
        labels = np.ascontiguousarray(found.labels, np.int32)
        facts = {
            "kind": "found",
            "shape": labels.shape,
            "objects": len(found),
            "truncated": found.truncated,
            "thresholds": asdict(options),
            "seconds": time.perf_counter() - asked["begun"],
        }
        self._send(facts, labels.tobytes() + msgspec.json.encode(table))


def _questions(source: RawIOBase) -> SimpleQueue[tuple[pipe.Meta, pipe.Bytes]]:
    """Read on while the model works, and end the process in the middle of that without napari."""
    read: SimpleQueue[tuple[pipe.Meta, pipe.Bytes]] = SimpleQueue()

    def go_on() -> None:
        try:
            while True:
                read.put(pipe.read(source))
        finally:
            os._exit(0)  # its end of the pipe was closed, by its end or by that of the widget

    threading.Thread(target=go_on, daemon=True).start()
    return read


def main() -> None:
    """Answer until napari has gone."""
    source, sink = pipe.ends()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for napari

    def send(meta: pipe.Meta, body: pipe.Bytes = b"") -> None:
        pipe.write(sink, meta, body)

    def warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
        send({"kind": "warning", "text": f"{message}"})

    def take(level: str, text: str) -> None:
        if level in ("warning", "error"):
            send({"kind": "warning", "text": text})

    warnings.showwarning = warn  # type: ignore[assignment]
    questions = _questions(source)
    try:
        with listening(take, alone=True):
            model = Model(send)
            while True:
                question, body = questions.get()
                model.answer(question | {"begun": time.perf_counter()}, body)
    except BrokenPipeError:
        return


if __name__ == "__main__":
    main()
