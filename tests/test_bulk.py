"""Bulk prediction inside one process: plan, shards, marks, rows; with a predictor of known answer.

Each promise has its negative control: with its guard switched off, the check does fail.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from bulk_runs import tree
from known_predictor import known, scene
from spatialembed import bulk
from spatialembed.bulk import merge as merging
from spatialembed.bulk import shard
from spatialembed.bulk import store as storing
from spatialembed.bulk.ledger import MOST_ENDS, Ledger
from spatialembed.bulk.merge import merge
from spatialembed.bulk.plan import Plan, make_or_check, read_plan
from spatialembed.bulk.process import Died
from spatialembed.bulk.sources import Input, list_inputs
from spatialembed.bulk.store import Folder
from spatialembed.bulk.todo import Todo
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import list_images
from spatialembed.inference.predict_folder import predict_folder

NAMES = ("a.png", "b/c.png", "b.png", "deep/er/x.png", "poison.png", "z.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(i)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "load_for", lambda *_: known())


def planned(images: Path, out: Path, size: int = 3, **changed: Any) -> tuple[Folder, Plan]:
    store = Folder(out)
    inputs = list_inputs([str(images)], str(out))
    return store, make_or_check(store, inputs, facts(out) | changed, size, append=False)


def worker(out: Path, labels: str = "tar") -> shard.Worker:
    return shard.Worker(
        {
            "out": str(out), "device": "cpu", "engine": "torch", "precision": "float32",
            "threads": 1, "model": "", "diameter": None, "channel": None,
            "max_pixels": 1 << 28, "labels": labels,
            "thresholds": {}, "images": 7, "no_progress": 1.0,
        }
    )  # fmt: skip


def facts(out: Path, labels: str = "tar") -> dict[str, Any]:
    return worker(out, labels).facts()["fingerprint"]


class OfItself:
    """The process for single images as a part of this one; it dies of poison, as told."""

    opened: list[str]

    def __init__(self, settings: Any) -> None:
        self.worker = shard.Worker(settings)

    def facts(self) -> dict[str, Any]:
        return {}

    def ask(self, question: dict[str, Any], limit: float) -> Any:
        image = Input(*question["image"])
        OfItself.opened.append(image.name)
        if image.name == "poison.png":
            raise Died(-9)
        return self.worker.alone(image)

    def close(self) -> None:
        pass


@pytest.fixture
def singly(monkeypatch: pytest.MonkeyPatch) -> type[OfItself]:
    monkeypatch.setattr(shard, "Process", OfItself)
    OfItself.opened = []
    return OfItself


# ----------------------------------------------------------------------------- sources and plan


def test_inputs_come_in_the_order_of_predict(images: Path) -> None:
    found = [image.name for image in list_inputs([str(images)], "out")]
    assert found == [name + path.suffix for path, name in list_images([images])]


def test_lists_folders_and_globs_name_the_same_images(images: Path, tmp_path: Path) -> None:
    want = list_inputs([str(images)], "out")
    names = [image.name for image in want]
    (images / "list.txt").write_text("\n".join([*names, "", names[0]]))
    (images / "list.csv").write_text("id,path\n" + "".join(f"1,{name}\n" for name in names))
    parquet.write_table(pyarrow.table({"image": names}), images / "list.parquet")
    for source in ("list.txt", "list.csv", "list.parquet", "**/*.png"):
        assert list_inputs([str(images / source)], "out") == want
    assert list_inputs([images.as_uri()], "out") == want
    (tmp_path / "far.txt").write_text("".join(f"{images / name}\n" for name in names))
    assert [i.path for i in list_inputs([str(tmp_path / "far.txt")], "out")] == [
        image.path for image in want
    ]
    (images / "list.txt").write_text("\r\n".join(names), encoding="utf-8-sig")  # as of Windows
    assert list_inputs([str(images / "list.txt")], "out") == want
    for name in (".", "//[a.png", "s3:a.png"):  # each fails as an image
        (tmp_path / "odd.txt").write_text(f"{name}\n")
        found = list_inputs([str(tmp_path / "odd.txt")], "out")
        assert [image.name for image in found] == [name.lstrip("/")]
    with pytest.raises(SpatialEmbedError, match="store_failed"):
        list_inputs(["s3://[x/y"], "out")
    for text in ("a,b\n1,2\n", 'image\n"a.png\n' + "b.png\n" * 30_000):
        (tmp_path / "odd.csv").write_text(text)
        with pytest.raises(SpatialEmbedError, match="bad_list"):
            list_inputs([str(tmp_path / "odd.csv")], "out")


def test_two_images_of_one_stem_are_refused(images: Path) -> None:
    (images / "a.jpg").write_bytes(b"")
    with pytest.raises(SpatialEmbedError, match="name_collision") as caught:
        list_inputs([str(images)], "out")
    assert "a.jpg" in str(caught.value)
    assert "a.png" in str(caught.value)


def test_a_name_without_room_for_that_of_its_labels_fails_alone(
    images: Path, tmp_path: Path
) -> None:
    """Found by trying: the error of the system ended every run at this shard."""
    long = "n" * 251 + ".png"
    Image.fromarray(scene(1)).save(images / long)
    store, plan = planned(images, tmp_path / "loose", 100, labels="loose")
    worker(tmp_path / "loose", "loose").shard(0)
    assert merge(store, plan, parquet=False).failed == 2
    failed = list(csv.DictReader((tmp_path / "loose" / "failed.csv").open()))
    assert {row["image"]: row["code"] for row in failed}[long] == "long_name"
    assert len(list((tmp_path / "loose" / "labels").rglob("*.png"))) == 6
    store, plan = planned(images, tmp_path / "tar", 100)
    worker(tmp_path / "tar").shard(0)
    assert merge(store, plan, parquet=False).failed == 1


def test_names_that_are_no_utf8(images: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(scene(1)).save(images / name)
    store, plan = planned(images, tmp_path / "out", 100)
    assert name in [image.name for image in plan.inputs(store, 0)]
    worker(tmp_path / "out").shard(0)
    merge(store, plan, parquet=True)
    table = (tmp_path / "out" / "objects.csv").read_bytes()
    assert b'"caf\xe9.png"' in table


def test_shards_are_fixed(images: Path, tmp_path: Path) -> None:
    store, plan = planned(images, tmp_path / "out")
    want = list_inputs([str(images)], "out")
    assert plan.shards == 3
    assert [plan.inputs(store, n) for n in range(3)] == [want[:3], want[3:6], want[6:]]
    assert plan.part(1) == "part-000001-of-000003"
    assert read_plan(store) == plan


def test_a_changed_fingerprint_is_refused_by_name(images: Path, tmp_path: Path) -> None:
    planned(images, tmp_path / "out")
    with pytest.raises(
        SpatialEmbedError, match=r"plan_changed.*thresholds.start 0.9\d* -> 0.8"
    ) as it:
        planned(images, tmp_path / "out", **{"thresholds.start": 0.8})
    assert it.value.exit_code == 2
    with pytest.raises(SpatialEmbedError, match="shard 3 -> 4"):
        planned(images, tmp_path / "out", 4)


def test_a_worker_on_another_machine_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cluster the driver has seen one machine: each worker holds itself to the plan."""
    store, _ = planned(images, tmp_path / "out", 100)
    monkeypatch.setattr(shard.platform, "machine", lambda: "abacus")
    with pytest.raises(SpatialEmbedError, match=r"plan_changed.*unit .* -> .*abacus") as caught:
        worker(tmp_path / "out").shard(0)
    assert caught.value.exit_code == 2
    assert not [name for name in store.names() if name.startswith("part-")]


def test_of_two_drivers_that_plan_at_once_one_is_refused(images: Path, tmp_path: Path) -> None:
    """In a bucket nothing is locked: both may have found no plan."""
    out = tmp_path / "out"
    store, inputs = Folder(out), list_inputs([str(images)], str(out))
    Plan(facts(out), 3).add(store, inputs)
    before = tree(out)
    Plan(facts(out), 3).add(store, inputs)  # the same: no harm
    for shard_size, some in ((2, inputs), (3, inputs[1:])):
        with pytest.raises(SpatialEmbedError, match="plan_changed"):
            Plan(facts(out), shard_size).add(store, some)
    assert tree(out) == before


def test_new_inputs_need_append_and_leave_the_others_alone(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    store, plan = planned(images, out)
    for number in range(3):
        worker(out).shard(number)
    before = tree(out)
    Image.fromarray(scene(9)).save(images / "new.png")
    with pytest.raises(SpatialEmbedError, match="1 are new, 0 are missing"):
        planned(images, out)
    more = make_or_check(store, list_inputs([str(images)], "out"), facts(out), 3, append=True)
    assert more.part(3) == "part-000003-of-000004"
    assert [image.name for image in more.inputs(store, 3)] == ["new.png"]
    assert [more.part(n) for n in range(3)] == [plan.part(n) for n in range(3)]
    worker(out).shard(3)
    after = tree(out)
    assert {name for name in before if before[name] != after[name]} == {"plan.json"}
    assert planned(images, out)[1] == more  # it continues without the flag
    assert merge(store, more, parquet=False).images == 7


# ------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("size", [1, 3, 100])
def test_tables_are_those_of_predict(images: Path, tmp_path: Path, size: int) -> None:
    store, plan = planned(images, tmp_path / "out", size)
    for number in range(plan.shards):
        worker(tmp_path / "out").shard(number)
    tally = merge(store, plan, parquet=True)
    result = predict_folder(known(), [images], tmp_path / "predict", progress=False)
    for name in ("objects.csv", "instances.json"):
        want = (tmp_path / "predict" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == want
    assert (tally.images, tally.objects, tally.failed) == (6, result.objects, 1)
    with (tmp_path / "out" / "failed.csv").open() as file:
        failed = list(csv.DictReader(file))
    assert [(row["image"], row["code"]) for row in failed] == [
        (path.name, error.code)
        for path, error in result.failed  # type: ignore[union-attr]
    ]
    table = parquet.read_table(tmp_path / "out" / "objects.parquet").to_pylist()
    with (tmp_path / "out" / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table) == result.objects
    for row, typed in zip(rows, table, strict=True):
        for name, cell in row.items():
            assert cell == "" if typed[name] is None else type(typed[name])(cell) == typed[name]


def test_label_images_are_those_of_predict(images: Path, tmp_path: Path) -> None:
    predict_folder(known(), [images], tmp_path / "predict", progress=False)
    _, plan = planned(images, tmp_path / "tar", 100)
    worker(tmp_path / "tar").shard(0)
    planned(images, tmp_path / "loose", 100, labels="loose")
    worker(tmp_path / "loose", "loose").shard(0)
    with tarfile.open(tmp_path / "tar" / f"{plan.part(0)}.tar") as tar:
        members = {member.name: member for member in tar}
        assert len(members) == 6
        for name, member in members.items():
            want = (tmp_path / "predict" / name).read_bytes()
            content = tar.extractfile(member)
            assert content is not None
            assert content.read() == want == (tmp_path / "loose" / "labels" / name).read_bytes()
            assert (member.mtime, member.uid, member.uname) == (0, 0, "")


def test_a_part_with_a_row_too_few_is_refused(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = planned(images, tmp_path / "out", 100)
    worker(tmp_path / "out").shard(0)
    part = tmp_path / "out" / f"{plan.part(0)}.jsonl"
    whole = part.read_text().splitlines(keepends=True)
    for lines in (whole[:-1], [*whole[:-1], whole[1]], []):
        part.write_text("".join(lines))
        with pytest.raises(SpatialEmbedError, match="rows_missing"):
            merge(store, plan, parquet=False)
    part.write_text("".join(whole))
    labels = part.with_suffix(".tar")
    labels.rename(tmp_path / "gone")
    with pytest.raises(SpatialEmbedError, match=r"rows_missing.*\.tar"):
        merge(store, plan, parquet=False)
    labels.write_bytes((tmp_path / "gone").read_bytes()[:-512])
    with pytest.raises(SpatialEmbedError, match=r"rows_missing.*\.tar, are \d+ bytes of"):
        merge(store, plan, parquet=False)
    labels.unlink()
    part.unlink()
    store.tidy()  # as a run does in the end
    worker(tmp_path / "out").shard(0)
    assert labels.read_bytes() == (tmp_path / "gone").read_bytes()
    assert part.read_text() == "".join(whole)
    part.write_text("".join(whole[:-1]))

    def unchecked(store: Folder, plan: Plan, number: int) -> Iterator[Any]:
        rows = map(json.loads, part.read_text().splitlines()[1:])
        yield from msgspec.convert(list(rows), list[merging._Row])

    monkeypatch.setattr(merging, "rows_of", unchecked)
    assert merge(store, plan, parquet=False).images == 5  # of 6: nobody would notice


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "\xff", '{"image": 1}', '{"image": "a.png", "entry": {"image": 3}}', "[" * 9999],
)
def test_a_part_that_is_damaged_is_named(images: Path, tmp_path: Path, line: str) -> None:
    store, plan = planned(images, tmp_path / "out", 100)
    worker(tmp_path / "out").shard(0)
    part = tmp_path / "out" / f"{plan.part(0)}.jsonl"
    whole = part.read_bytes().splitlines()
    for at in (0, 1):
        lines = [line.encode("latin-1") if i == at else given for i, given in enumerate(whole)]
        part.write_bytes(b"\n".join(lines))
        with pytest.raises(SpatialEmbedError, match=f"rows_missing: {part.name}"):
            merge(store, plan, parquet=True)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("plan.json", lambda text: "5"),
        ("plan.json", lambda text: "[" * 9999),
        ("plan.json", lambda text: text.replace('"shard": 3', '"shard": 0')),
        ("plan.json", lambda text: text.replace('"version": 1', '"version": 2')),
        ("plan.json", lambda text: json.dumps({**json.loads(text), "lists": [3]})),
        ("plan.json", lambda text: re.sub(r'"offsets": \[\s*0', '"offsets": [9999999', text)),
        ("inputs-000.jsonl", lambda text: "{}\n" + text),
        ("inputs-000.jsonl", lambda text: text.replace("a.png", "c.png")),
        ("inputs-000.jsonl", None),
    ],
)
def test_a_plan_that_is_damaged_is_named(
    images: Path, tmp_path: Path, file: str, change: Callable[[str], str] | None
) -> None:
    planned(images, tmp_path / "out")
    damaged = tmp_path / "out" / file
    if change is None:
        damaged.unlink()
    else:
        damaged.write_text(change(damaged.read_text()))
    with pytest.raises(SpatialEmbedError, match=f"bad_plan: {file}") as caught:
        planned(images, tmp_path / "out")
    assert caught.value.exit_code == 2


def test_the_public_call_names_a_wrong_setting(images: Path, tmp_path: Path) -> None:
    options = bulk.BulkOptions([str(images)], str(tmp_path / "out"), "shapes", shard=0)
    with pytest.raises(SpatialEmbedError, match="shard is 0") as caught:
        bulk.run(options)
    assert caught.value.exit_code == 2
    assert not hasattr(bulk, "nothing")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------- who is first, is first


def test_of_many_that_put_one_name_one_wins(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: store.put_new("x", b"%d" % i), range(16)))
    assert sum(won) == 1
    assert (tmp_path / "x").read_bytes() == b"%d" % won.index(True)
    store.tidy()
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_worker_that_wakes_up_late_changes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """It was stopped with its rows in hand, which are of another machine; and tidied up after."""
    out = tmp_path / "out"
    store, plan = planned(images, out, 100)
    late = worker(out)
    stopped = list(late.made(plan.inputs(store, 0)))
    stopped[0] = stopped[0]._replace(content=b"other bits")
    worker(out).shard(0)
    store.tidy()
    before = tree(out)
    if not guarded:
        monkeypatch.setattr(Folder, "put_new", lambda *it: (Folder.put(*it), True)[1])
        late._put(plan.part(0), stopped)
        assert tree(out) != before
        return
    with pytest.raises(SpatialEmbedError, match="shard_differs"):
        late._put(plan.part(0), stopped)
    assert late.shard(0)["images"] == 7
    assert tree(out) == before


def test_a_name_is_on_the_disk_before_its_put_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark is worth nothing if a machine that goes down takes it along: each folder is synced."""
    synced, store = [], Folder(tmp_path / "out")
    monkeypatch.setattr(storing, "flush", lambda path: synced.append((path, path.exists())))
    store.put_new("a/b/mark", b"x")
    assert synced == [(tmp_path / "out" / below, True) for below in ("a/b", "a", "")]
    synced.clear()
    store.put("plan.json", b"x")
    assert synced == [(tmp_path / "out", True)]


def test_a_put_that_is_tidied_away_under_the_hand_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, link, calls = Folder(tmp_path), os.link, []

    def slow(*it: Any) -> None:
        calls.append(it)
        if len(calls) == 1:
            store.tidy()
        link(*it)

    monkeypatch.setattr(os, "link", slow)
    assert store.put_new("x", b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert len(calls) == 2


# ---------------------------------------------------------------------------------------- poison


def test_poison_fails_alone_and_its_mates_are_as_ever(
    images: Path, tmp_path: Path, singly: type[OfItself]
) -> None:
    clean, out = tmp_path / "clean", tmp_path / "out"
    _, plan = planned(images, clean, 100)
    worker(clean).shard(0)
    store, _ = planned(images, out, 100)
    Ledger(store, plan.part(0)).begin()  # an attempt before, of which nobody knows the end
    worker(out).shard(0)
    assert singly.opened.count("poison.png") == 2
    assert max(map(singly.opened.count, set(singly.opened) - {"poison.png"})) == 1
    one, other = (
        [json.loads(line) for line in (folder / f"{plan.part(0)}.jsonl").open()][1:]
        for folder in (clean, out)
    )
    for want, row in zip(one, other, strict=True):
        if row["image"] == "poison.png":
            assert row["error"][0] == "killed"
        else:
            assert row == want
    assert merge(store, plan, parquet=False).failed == 2


def test_without_the_ledger_poison_has_no_end(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, singly: type[OfItself]
) -> None:
    """The negative control: each attempt is a first one, and ends at the image."""
    store, plan = planned(images, tmp_path / "out", 100)
    monkeypatch.setattr(Ledger, "begin", lambda _: False)

    def dying(*_: object) -> None:
        raise KeyboardInterrupt  # as a process ends, for a test in one process

    monkeypatch.setattr(shard.Worker, "_made", dying)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            worker(tmp_path / "out").shard(0)
    assert not store.has(f"{plan.part(0)}.jsonl")


def test_an_image_that_takes_everything_down_fails_in_the_end(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, singly: type[OfItself]
) -> None:
    """Nobody is left to see it die: attempts in a row that end at one image are counted."""
    store, plan = planned(images, tmp_path / "out", 100)
    ask = OfItself.ask

    def down(self: OfItself, question: Any, limit: float) -> Any:
        if question["image"].name == "poison.png":
            raise KeyboardInterrupt
        return ask(self, question, limit)

    monkeypatch.setattr(OfItself, "ask", down)
    Ledger(store, plan.part(0)).begin()
    for _ in range(MOST_ENDS):
        with pytest.raises(KeyboardInterrupt):
            worker(tmp_path / "out").shard(0)
    worker(tmp_path / "out").shard(0)
    rows = [json.loads(line) for line in (tmp_path / "out" / f"{plan.part(0)}.jsonl").open()][1:]
    assert {row["image"]: row["error"][0] for row in rows if "error" in row} == {
        "broken.png": "not_an_image",
        "poison.png": "killed",
    }


def test_memory_that_is_short_for_a_moment_fails_no_image(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, singly: type[OfItself]
) -> None:
    clean, out = tmp_path / "clean", tmp_path / "out"
    monkeypatch.setattr(
        OfItself, "ask", lambda self, q, limit: self.worker.alone(Input(*q["image"]))
    )
    _, plan = planned(images, clean, 100)
    worker(clean).shard(0)
    planned(images, out, 100)
    measure, calls = shard.measure, []

    def short(*it: Any) -> Any:
        calls.append(it)
        if len(calls) in (2, 4):
            raise MemoryError
        return measure(*it)

    monkeypatch.setattr(shard, "measure", short)
    worker(out).shard(0)
    name = f"{plan.part(0)}.jsonl"
    assert (out / name).read_bytes() == (clean / name).read_bytes()


# ------------------------------------------------------------------------------------ the queue


def test_every_shard_is_handed_out_until_it_is_done() -> None:
    todo = Todo(range(3), late_s=1e9)
    assert [todo.take(wait=False) for _ in range(4)] == [0, 1, 2, None]
    todo.back(1)
    assert todo.take(wait=False) == 1
    assert [todo.done(n) for n in (0, 1, 1)] == [True, True, False]
    assert (todo.left, todo.begun) == (1, [2])
    todo.done(2)
    assert todo.take(wait=True) is None


def test_a_shard_that_takes_too_long_is_handed_out_once_more() -> None:
    todo = Todo([7], late_s=-1)
    assert [todo.take(wait=False) for _ in range(2)] == [7, 7]
    assert [todo.done(7), todo.done(7)] == [True, False]


def test_the_tar_does_not_depend_on_the_day() -> None:
    content = shard._tar([("a/b_labels.png", b"x" * 700), ("c" * 200, b"")])
    assert content == shard._tar([("a/b_labels.png", b"x" * 700), ("c" * 200, b"")])
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        assert [member.name for member in tar] == ["a/b_labels.png", "c" * 200]
    assert np.frombuffer(content, np.uint8).size % 512 == 0
