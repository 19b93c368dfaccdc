"""Files, folders and globs: which images are meant, and under which names results go out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spatialembed.errors import SpatialEmbedError
from spatialembed.images import listing
from spatialembed.images.listing import list_images
from spatialembed.images.read import read_image


def made(path: Path) -> Path:
    path.mkdir()
    return path


def wrote(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """in/b.png, in/a.tif, in/deep/a.png, notes and hidden files."""
    for name in ("b.png", "a.tif", "deep/a.PNG", "notes.txt", ".hidden.png", ".cache/c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "in"


def test_folder_is_mirrored_in_order(tree: Path) -> None:
    assert [(p.relative_to(tree).as_posix(), n) for p, n in list_images([tree])] == [
        ("a.tif", "a"), ("b.png", "b"), ("deep/a.PNG", "deep/a"),
    ]  # fmt: skip


def test_masks_of_a_data_set_are_no_images_to_look_into(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (
        "images/a.png",
        "masks/a.png",
        "val/images/b.png",
        "val/masks/b.png",
        "x/masks/c.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        wrote(tmp_path / name)
    kept = ["images/a", "val/images/b", "x/masks/c"]  # the last stands beside no images
    assert [name for _, name in list_images([tmp_path], quiet=True)] == kept
    assert not caplog.records
    assert [name for _, name in list_images([tmp_path])] == kept
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        str(tmp_path / folder) for folder in ("masks", "val/masks")
    ]
    assert [name for _, name in list_images([tmp_path / "masks"])] == ["a"]  # meant


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["b"]),
        ("[b]*", ["b"]),
        ("*/a.*", ["deep/a"]),
        ("**/a.*", ["a", "deep/a"]),
        ("**/*", ["a", "b", "deep/a"]),
    ],
)
def test_globs(pattern: str, names: list[str], tree: Path) -> None:
    assert [name for _, name in list_images([tree / pattern])] == names


def test_files_come_as_given_and_once(tree: Path) -> None:
    sources = [tree / "b.png", tree / "notes.txt", tree / "a.tif", tree / "b.png"]
    assert [name for _, name in list_images(sources)] == ["b", "notes", "a"]


def test_brackets_in_a_name_are_no_glob(tmp_path: Path) -> None:
    path = wrote(tmp_path / "a[1].png")
    assert list_images([path]) == [(path, "a[1]")]


@pytest.mark.parametrize("pattern", ["", "**/*.png"], ids=["IMG-27", "IMG-27-glob"])
def test_link_loops_are_not_followed(pattern: str, tree: Path) -> None:
    (tree / "deep" / "loop").symlink_to(tree, target_is_directory=True)
    assert all("loop" not in name for _, name in list_images([tree / pattern]))


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_odd_names(tmp_path: Path) -> None:
    """IMG-29: names that are no UTF-8, hold a newline, begin with a dash, or have 255 bytes."""
    names = [os.fsdecode(b"\xff\xfe.png"), "a\nb.png", "-o.png", "x" * 251 + ".png"]
    for name in names:
        wrote(tmp_path / name)
    found = list_images([tmp_path])
    assert sorted(name for _, name in found) == sorted(name[:-4] for name in names)
    assert all(path.is_file() for path, _ in found)


def test_unreadable_folders_are_told_of(
    tree: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IMG-26: a folder that cannot be opened is not passed over in silence."""
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert [name for _, name in list_images([tree])] == ["a", "b"]
    assert "deep: not searched: Permission denied" in caplog.text


def test_names_that_differ_in_case_collide_where_files_do(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote(tree / "B.png")
    assert "B" in [name for _, name in list_images([tree])]
    monkeypatch.setattr(listing, "_FOLDING", True)
    with pytest.raises(SpatialEmbedError, match="name_collision"):
        list_images([tree])


def collision(tree: Path) -> list[Path]:
    other = tree.parent / "other"
    other.mkdir()
    (other / "b.png").write_bytes(b"")
    return [tree, other]


@pytest.mark.parametrize(("code", "make"), [
    pytest.param("name_collision", collision, id="IMG-30"),
    pytest.param("name_collision", lambda t: [wrote(t / "b.tif").parent], id="IMG-30-suffix"),
    pytest.param("no_images", lambda t: [made(t / "none")], id="IMG-33"),
    pytest.param("no_images", lambda t: [t / "*.bmp"], id="IMG-33-glob"),
    pytest.param("no_images", lambda _: [], id="IMG-33-nothing"),
    pytest.param("no_images", lambda t: [t, t / "*.bmp"], id="IMG-33-one-of-two"),
    pytest.param("not_found", lambda t: [t / "gone.png"], id="IMG-26"),
    pytest.param("no_images", lambda t: [t, made(t.parent / "x.png")], id="IMG-26-folder"),
])  # fmt: skip
def test_listing_refused(code: str, make: Callable[[Path], list[Path]], tree: Path) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        list_images(make(tree))
    assert caught.value.code == code
    assert caught.value.remedy


def test_own_outputs_are_not_read_again(tree: Path) -> None:
    """IMG-33: the output folder may lie inside the input folder, but not be it."""
    before = list_images([tree], exclude=tree / "out")
    wrote(made(tree / "out") / "b_overlay.png")
    assert list_images([tree], exclude=tree / "out") == before
    assert list_images([tree / "**/*"], exclude=tree / "out") == before
    assert len(list_images([tree])) == len(before) + 1
    with pytest.raises(SpatialEmbedError, match="output_in_input"):
        list_images([tree], exclude=tree)


@pytest.mark.parametrize("fault", ["IMG-31"])
def test_gone_after_listing(tree: Path, fault: str) -> None:
    """That item fails with its name."""
    (path, _), *_ = list_images([tree])
    path.unlink()
    with pytest.raises(SpatialEmbedError, match="not_found"):
        read_image(path)


def test_results_of_an_earlier_run_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "photos" / "found"
    names = ["a.png", "found/a_labels.png", "found/a_overlay.png", "found/deep/b_ambiguity.png",
             "found/cityscapes/masks/a_0001.png", "found/mine.png", "a_labels.png"]  # fmt: skip
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wrote(path)
    listing.mark_results(out)
    listing.mark_results(out)
    kept = ["a", "a_labels", "found/mine"]  # the second stands in no folder of results
    photos = tmp_path / "photos"
    for sources in ([photos], [photos / "**/*"], [photos, *sorted(out.glob("*.png"))]):
        assert [name for _, name in list_images(sources)] == kept
    assert "4 of 7 images are results of earlier runs, left out" in caplog.text
    with pytest.raises(SpatialEmbedError, match=r"no_images.*1 of 1 images are results"):
        list_images([out / "a_labels.png"])


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a\0/*.png"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    """Found by the fuzzer: errors of Python came out."""
    with pytest.raises(SpatialEmbedError, match="unreadable"):
        list_images([tmp_path / name])
