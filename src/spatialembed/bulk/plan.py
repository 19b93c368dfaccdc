"""The plan: a sorted list cut into fixed shards, with all that the results follow from.

plan.json         the fingerprint, and for each list (the first, then one an --append) its hash,
                  its number of images and shards, and where in its file each shard begins
inputs-000.jsonl  the first list: root and name of each image
part-000123-of-004000.jsonl   rows of shard 123; shards of an appended list count on

An engine carries numbers of shards only. Who does a shard, when and how often changes no byte.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

import msgspec

from spatialembed.bulk.sources import Input, refuse_collisions
from spatialembed.bulk.store import Bucket, Folder
from spatialembed.errors import USAGE, SpatialEmbedError

PLAN = "plan.json"


@dataclass(frozen=True)
class List:
    """One list of inputs."""

    sha256: str
    images: int
    offsets: list[int]  # in bytes, where each shard begins, and the end


@dataclass
class Plan:
    """What is to be done, and by which settings."""

    fingerprint: dict[str, Any]
    shard: int  # images of each, but for the last one of a list
    lists: list[List] = field(default_factory=list)

    @property
    def shards(self) -> int:
        """How many there are."""
        return sum(len(each.offsets) - 1 for each in self.lists)

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(each.images for each in self.lists)

    def part(self, number: int) -> str:
        """Name of the files of a shard, without suffix."""
        total = 0
        for each in self.lists:
            total += len(each.offsets) - 1
            if number < total:
                return f"part-{number:06d}-of-{total:06d}"
        raise IndexError(number)

    def inputs(self, store: Folder | Bucket, number: int) -> list[Input]:
        """The images of a shard."""
        first = 0
        for i, each in enumerate(self.lists):
            at = number - first
            if at < len(each.offsets) - 1:
                start, end = each.offsets[at : at + 2]
                return _parsed(_file(i), store.read(_file(i), start, end))
            first += len(each.offsets) - 1
        raise IndexError(number)

    def inputs_of_all(self, store: Folder | Bucket) -> Iterator[Input]:
        """The images of all lists. Raises SpatialEmbedError ``bad_plan`` (exit 2)."""
        for i, each in enumerate(self.lists):
            try:
                content = store.read(_file(i))
            except FileNotFoundError:
                _unreadable(_file(i), "missing")
            if hashlib.sha256(content).hexdigest() != each.sha256:
                _unreadable(_file(i), "not as it was written")
            yield from _parsed(_file(i), content)

    def add(self, store: Folder | Bucket, images: Sequence[Input]) -> None:
        """Plan more images: put their list, then the plan with it.

        Raises SpatialEmbedError ``plan_changed`` where another driver of a bucket was quicker.
        """
        lines, offsets = io.BytesIO(), [0]
        for start in range(0, len(images), self.shard):
            for image in images[start : start + self.shard]:
                lines.write(json.dumps([image.root, image.name]).encode() + b"\n")
            offsets.append(lines.tell())
        content = lines.getvalue()
        _put_once(store, _file(len(self.lists)), content)
        self.lists.append(List(hashlib.sha256(content).hexdigest(), len(images), offsets))
        text = json.dumps({"version": 1, **asdict(self)}, indent=1).encode()
        if len(self.lists) == 1:
            _put_once(store, PLAN, text)
        else:
            store.put(PLAN, text)


def _file(number: int) -> str:
    return f"inputs-{number:03d}.jsonl"


def _put_once(store: Folder | Bucket, name: str, content: bytes) -> None:
    """Of two drivers that plan in a bucket at once, one does, unless they plan the same."""
    if not store.put_new(name, content) and store.read(name) != content:
        what = f"{name}: another driver has put other inputs or settings there"
        remedy = f"choose another --out; if that driver died before it had a plan, remove {name}"
        raise SpatialEmbedError("plan_changed", what, remedy, USAGE)


def _parsed(file: str, content: bytes) -> list[Input]:
    try:
        pairs = msgspec.convert(list(map(json.loads, content.splitlines())), list[tuple[str, str]])
    except (msgspec.ValidationError, ValueError, RecursionError):
        _unreadable(file, "not as it was written")
    return [Input(name, root) for root, name in pairs]


def _unreadable(file: str, what: str) -> NoReturn:
    raise SpatialEmbedError("bad_plan", f"{file}: {what}", "choose another --out", USAGE)


def read_plan(store: Folder | Bucket) -> Plan | None:
    """The plan in a store; None: there is none.

    Raises SpatialEmbedError ``bad_plan`` (exit 2).
    """
    try:
        content = store.read(PLAN)
    except FileNotFoundError:
        return None
    try:
        facts = json.loads(content)
        plan = msgspec.convert(facts, Plan)
    except (msgspec.ValidationError, ValueError, RecursionError):
        _unreadable(PLAN, "not readable by this version")
    rising = all(a <= b for each in plan.lists for a, b in pairwise([0, *each.offsets]))
    whole = all(each.offsets and each.images >= 0 for each in plan.lists)
    if facts.get("version") != 1 or plan.shard < 1 or not (rising and whole):
        _unreadable(PLAN, "not readable by this version")
    return plan


def refuse_changes(plan: Plan, now: Mapping[str, Any]) -> None:
    """now: what results follow from here, or a part of it.

    Raises SpatialEmbedError ``plan_changed`` (exit 2), naming all that is not as it was.
    """
    then = {**plan.fingerprint, "shard": plan.shard}
    changed = [
        f"{name} {json.dumps(then.get(name))} -> {json.dumps(now[name])}"
        for name in sorted(now)
        if now[name] != then.get(name)
    ]
    if changed:
        what = f"not as it was begun: {', '.join(changed)}"
        remedy = "continue as it was begun, on machines that are alike, or choose another --out"
        raise SpatialEmbedError("plan_changed", what, remedy, USAGE)


def make_or_check(
    store: Folder | Bucket,
    images: Sequence[Input],
    fingerprint: Mapping[str, Any],
    shard: int,
    append: bool,
) -> Plan:
    """The plan of the store, made or extended if need be.

    Raises SpatialEmbedError ``plan_changed`` (exit 2), see ``refuse_changes``; of
    ``refuse_collisions`` for appended images.
    """
    plan = read_plan(store)
    if plan is None:
        plan = Plan(dict(fingerprint), shard)
        plan.add(store, images)
        return plan
    refuse_changes(plan, {**fingerprint, "shard": shard})
    known = set(plan.inputs_of_all(store))
    new = [image for image in images if image not in known]
    gone = len(known) + len(new) - len(images)
    if append and new:
        refuse_collisions([*known, *new])
        plan.add(store, new)
    elif new or (gone and not append):
        what = f"the inputs are others: {len(new)} are new, {gone} are missing"
        remedy = "add new ones by --append, or choose another --out"
        raise SpatialEmbedError("plan_changed", what, remedy, USAGE)
    return plan
