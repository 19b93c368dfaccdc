"""One shard: images in, rows and label images out. The same bytes from whoever does it, and how.

part-000123-of-004000.tar     <name>_labels.png of each image, without times or owners
part-000123-of-004000.jsonl   put last: whoever finds it finds the shard done. A line of facts, then
                              one an image: lines of objects.csv and the entry of instances.json, or
                              the error

Images go through the network one by one: which others share a batch could change the last bits.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from spatialembed import __version__
from spatialembed.bulk.ledger import MOST_DEATHS, Ledger
from spatialembed.bulk.plan import Plan, read_plan, refuse_changes
from spatialembed.bulk.process import Died, Message, Process, started
from spatialembed.bulk.sources import Input
from spatialembed.bulk.store import Bucket, is_url, open_store
from spatialembed.concurrency import helpers, prefetch
from spatialembed.errors import MODEL, SpatialEmbedError
from spatialembed.images.pixel_size import pixel_size
from spatialembed.inference.device import first_line
from spatialembed.inference.predictor import Outcome, load_for
from spatialembed.options import DeviceOptions
from spatialembed.results import coco, objects_csv
from spatialembed.results.labels import label_file
from spatialembed.results.measurements import measure

PACKAGES = (
    "torch", "numpy", "numba", "pillow", "tifffile", "imagecodecs", "onnxruntime", "openvino",
)  # fmt: skip
"""Whose version may change a byte."""
FETCHED = 8
"""Images that are fetched from a bucket at a time."""
LONGEST_NAME = 255
"""Bytes of a file's name, on nearly all file systems."""
USUAL_PIXELS = 1 << 18
"""Of an image, by which an engine is chosen: to read the headers first could kill."""


class Made(NamedTuple):
    """The row of an image, and its label image as name and content."""

    row: dict[str, Any]
    name: str = ""
    content: bytes = b""


class _Suspect(Exception):
    """Something that may be the image's fault or the machine's: the image has to go alone."""


class Worker:
    """A model at work on the shards of one plan."""

    def __init__(self, settings: Message) -> None:
        """Raises SpatialEmbedError of ``predictor.load``."""
        self.settings, self.store = settings, open_store(settings["out"])
        how = DeviceOptions(**{n: settings[n] for n in DeviceOptions.__dataclass_fields__})
        self.predictor = load_for(
            settings["model"],
            how,
            settings["images"] * USUAL_PIXELS,
            settings["diameter"],
            settings["channel"],
        )
        self.predictor.max_pixels = settings["max_pixels"]
        self.options = self.predictor.options(**settings["thresholds"])
        self._child: Process | None = None
        self._plan: Plan | None = None
        self._buckets: dict[str, Bucket] = {}

    def facts(self) -> Message:
        """What results follow from, as the fingerprint has it, and how many GPUs there are."""
        engine = self.predictor.engine
        kind = engine.device.type
        unit = torch.cuda.get_device_name() if kind == "cuda" else platform.machine()
        if kind == "cpu":
            unit += f" {torch.backends.cpu.get_cpu_capability()}"
        diameter = self.predictor.diameter
        fingerprint = {
            "weights": self.predictor.info.weights_sha256,
            "classes": list(self.predictor.info.class_names),
            "engine": engine.name,
            "precision": engine.precision,
            "device": kind,
            "unit": unit,
            "threads": self.settings["threads"],
            "diameter": diameter if isinstance(diameter, str) else float(diameter),
            "channel": self.predictor.channel,
            "max_pixels": self.settings["max_pixels"],
            "labels": self.settings["labels"],
            **{f"thresholds.{name}": value for name, value in asdict(self.options).items()},
            "spatialembed": __version__,
            **{name: _version(name) for name in PACKAGES},
        }
        return {"fingerprint": fingerprint, "gpus": torch.cuda.device_count()}

    def shard(self, number: int) -> Message:
        """Do one, if it is not done. Raises SpatialEmbedError of the store, ``plan_changed``."""
        if self._plan is None or number >= self._plan.shards:
            self._plan = read_plan(self.store)
            assert self._plan is not None
            # Of a cluster, the driver has seen one machine only.
            refuse_changes(self._plan, self.facts()["fingerprint"])
        part, images = self._plan.part(number), self._plan.inputs(self.store, number)
        report = {"shard": number, "images": len(images)}
        if self.store.has(f"{part}.jsonl"):
            return report
        ledger = Ledger(self.store, part)
        careful = ledger.begin()
        made: list[Made] = []
        if not careful:
            try:
                made = list(self.made(images))
            except SpatialEmbedError:  # of the store: none of an image comes here
                raise
            except Exception:
                careful = True
        if careful:
            made = list(self._careful(part, ledger, images))
        if len(made) == len(images):
            self._put(part, made)
        return report

    def made(self, images: Sequence[Input]) -> Iterator[Made]:
        """Rows and label images, in order.

        Raises SpatialEmbedError ``store_failed``; ``_Suspect``, or anything else unforeseen.
        """
        local = prefetch(self._fetched, images, threads=FETCHED, room=lambda _: FETCHED)
        outcomes = self.predictor.outcomes(local, batch=1, options=self.options)
        room = helpers()
        yield from prefetch(self._made, outcomes, threads=room, room=lambda _: 2 * room)

    def _fetched(self, image: Input) -> _Local:
        """An image as a file of this machine. Raises SpatialEmbedError ``store_failed``."""
        if not is_url(image.path):
            return _Local(image, image.path)
        scheme, _, rest = image.path.partition("://")
        root, _, name = rest.partition("/")
        bucket = self._buckets.setdefault(root, Bucket(f"{scheme}://{root}"))
        try:
            content = bucket.read(name)
        except FileNotFoundError:
            return _Local(image, image.path)
        if sys.platform == "linux":  # without a name, nothing is left of it after a kill
            file: Any = tempfile.TemporaryFile()  # noqa: SIM115
            path = f"/proc/self/fd/{file.fileno()}"
        else:
            file = tempfile.NamedTemporaryFile()  # noqa: SIM115
            path = file.name
        file.write(content)
        file.flush()
        return _Local(image, path, file)

    def _made(self, outcome: Outcome) -> Made:
        image, found, error = outcome.source.image, outcome.instances, outcome.error
        if found is None:
            assert error is not None
            if error.code == "out_of_memory":  # perhaps for want of room at this moment
                raise _Suspect(error)
            message = error.message.replace(outcome.source.path, image.path)
            return Made({"image": image.name, "error": [error.code, message]})
        facts = measure(found.labels, len(found), outcome.pixels)
        entry = coco.describe(image.name, found, facts)
        row = {
            "image": image.name,
            "rows": objects_csv.rows(image.name, found, facts, pixel_size(Path(outcome.source))),
            "entry": {"image": entry.image, "objects": list(entry.objects)},
        }
        if self.settings["labels"] == "none":
            return Made(row)
        suffix, content = label_file(found.labels)
        name = f"{image.stem}_labels{suffix}"
        if self.settings["labels"] == "loose" and _too_long(name):  # else no later shard is done
            what = f"{image.path}: the name of its label image is too long; --labels tar takes it"
            return Made({"image": image.name, "error": ["long_name", what]})
        return Made(row, name, content)

    def _put(self, part: str, made: Sequence[Made]) -> None:
        """The files of a shard, that of the rows last."""
        facts: dict[str, Any] = {"part": part, "images": len(made)}
        labels = [(each.name, each.content) for each in made if each.name]
        if self.settings["labels"] == "tar":
            content = _tar(labels)
            self._put_once(f"{part}.tar", content)
            facts |= {"tar": hashlib.sha256(content).hexdigest(), "tar_bytes": len(content)}
        else:
            for name, content in labels:
                self._put_once(f"labels/{name}", content)
        rows = [facts, *(each.row for each in made)]
        lines = [json.dumps(row, separators=(",", ":")) for row in rows]
        self._put_once(f"{part}.jsonl", ("\n".join(lines) + "\n").encode("ascii"))

    def _put_once(self, name: str, content: bytes) -> None:
        if self.store.put_new(name, content) or self.store.read(name) == content:
            return
        what = f"{name}: another process put other bytes there"
        remedy = "use machines that compute alike, or look whether something else writes there"
        raise SpatialEmbedError("shard_differs", what, remedy, MODEL)

    def _careful(self, part: str, ledger: Ledger, images: Sequence[Input]) -> Iterator[Made]:
        """Each image through a process that may die; ends early where the shard is done."""
        for i, image in enumerate(images):
            if self.store.has(f"{part}.jsonl"):
                return
            yield self._alone(ledger, i, image)
        ledger.tried()

    def _alone(self, ledger: Ledger, i: int, image: Input) -> Made:
        fault = ["killed", f"{image.path}: the process ended at this image"]
        deaths = ledger.deaths(i)
        while deaths < MOST_DEATHS:
            child = self._ready_child()
            if not ledger.trying(i):
                break
            try:
                limit = self.settings["no_progress"] * 60 / 2
                reply, content = child.ask({"image": image}, limit=limit)
            except Died:
                self._drop_child()
                ledger.died(i)
                deaths += 1
                continue
            if "suspect" not in reply:
                return Made(reply["row"], reply["name"], content)
            deaths, fault = deaths + 1, reply["suspect"]  # memory may be there a moment later
            self._drop_child()
        return Made({"image": image.name, "error": fault})

    def alone(self, image: Input) -> tuple[Message, bytes]:
        """In the process that may die: the answer of one image."""
        try:
            made = next(self.made([image]))
        except (_Suspect, MemoryError):
            return {"suspect": ["out_of_memory", f"{image.path}: no memory left"]}, b""
        except SpatialEmbedError:  # of a bucket
            raise
        except Exception as error:
            return {"suspect": ["internal", f"{image.path}: {first_line(error)}"]}, b""
        return {"row": made.row, "name": made.name}, made.content

    def _ready_child(self) -> Process:
        """The process for single images; started, if need be."""
        if self._child is None:
            limit = self.settings["no_progress"] * 60
            self._child, _ = started(lambda: Process(self.settings), limit)
        return self._child

    def _drop_child(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None


class _Local(os.PathLike[str]):
    """An image of the plan as a file of this machine, which may be open and have no name."""

    def __init__(self, image: Input, path: str, file: Any = None) -> None:
        self.image, self.path, self._file = image, path, file

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.image.path


def _too_long(name: str) -> bool:
    return any(len(os.fsencode(part)) > LONGEST_NAME for part in name.split("/"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            facts = tarfile.TarInfo(name)  # no time, no owner
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return stream.getvalue()
