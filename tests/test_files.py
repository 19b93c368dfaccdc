"""The atomic write: at any moment the old file or the whole new one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spatialembed import files
from spatialembed.console import Stages
from spatialembed.errors import SpatialEmbedError, missing_extra
from spatialembed.files import atomic_write, check_writable, locked, new_folder


def test_writes_a_new_file_into_new_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.txt"
    with atomic_write(target) as path:
        path.write_text("new")
        assert not target.exists()
        assert path.parent == target.parent  # a rename across disks is not atomic
        assert path.suffix == ".txt"
        assert path.name.startswith(".")
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["c.txt"]


def test_replaces_a_file_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    with atomic_write(str(target)) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def fail_halfway(target: Path, error: BaseException) -> None:
    with atomic_write(target) as path:
        path.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    with pytest.raises(type(error)):
        fail_halfway(target, error)
    assert os.listdir(tmp_path) == ["c.txt"]
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT], ids=["TRN-10 disk", "TRN-10 quota"]
)
def test_a_full_disk_is_named_and_the_old_file_is_intact(tmp_path: Path, number: int) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    with pytest.raises(SpatialEmbedError) as caught:
        fail_halfway(target, OSError(number, os.strerror(number)))
    assert (caught.value.code, caught.value.exit_code) == ("disk_full", 5)
    assert str(target) in caught.value.message
    assert os.listdir(tmp_path) == ["c.txt"]
    assert target.read_text() == "old"


def test_other_errors_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "c.txt"):
        pass  # nothing was written to the temporary path
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="no kill -9")
def test_killed_while_writing_the_old_file_is_intact(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from spatialembed.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as path:\n"
        "    path.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    with atomic_write(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["c.txt"]  # what the killed one left is gone


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    with atomic_write(target) as first:
        first.write_text("first")
        with atomic_write(target) as second:
            assert second != first
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["c.txt"]


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"

    def write(i: int) -> None:
        with atomic_write(target) as path:
            path.write_text(f"{i}" * 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    said = target.read_text()
    assert said == said[: len(said) // 100] * 100
    assert os.listdir(tmp_path) == ["c.txt"]


def test_an_error_is_one_line_with_its_remedy() -> None:
    error = SpatialEmbedError("bad_thing", "a.png: it is bad", "make it good")
    assert str(error) == "bad_thing: a.png: it is bad (make it good)"
    assert error.exit_code == 3
    assert str(SpatialEmbedError("bad_thing", "a.png: it is bad")) == "bad_thing: a.png: it is bad"


def test_a_missing_extra_names_what_to_install() -> None:
    error = missing_extra("lightning", "train", "training")
    assert (error.code, error.exit_code) == ("missing_extra", 2)
    assert error.remedy == "pip install 'spatialembed[train]'"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpatialEmbedError, match=r"not_writable.*\(choose another file\)") as caught:
        check_writable(tmp_path / place, "choose another file")
    assert caught.value.exit_code == 2


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not os.listdir(tmp_path / "a" / "b")


def test_a_locked_folder_is_refused_until_it_is_free(tmp_path: Path) -> None:
    with locked(tmp_path):
        for _ in range(2):
            with pytest.raises(SpatialEmbedError, match="run_locked"), locked(tmp_path):
                pass
    assert not os.listdir(tmp_path)
    (tmp_path / ".lock").touch()  # of a process that was killed
    with locked(tmp_path):
        pass


def test_a_lock_on_a_file_that_was_removed_holds_nobody_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the holder before may have removed the file."""
    real, removed = files._lock, []

    def late(descriptor: int) -> bool | OSError:
        if not removed:
            (tmp_path / ".lock").unlink()
            removed.append(True)
        return real(descriptor)

    monkeypatch.setattr(files, "_lock", late)
    with locked(tmp_path):
        monkeypatch.setattr(files, "_lock", real)
        with pytest.raises(SpatialEmbedError, match="run_locked"), locked(tmp_path):
            pass


@pytest.mark.skipif(os.name == "nt", reason="no flock")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_the_work_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lustre, and NFS as it is mounted now and then."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path), atomic_write(tmp_path / "result") as path:
        path.touch()
    assert os.listdir(tmp_path) == ["result"]
    assert f"{tmp_path}: the file system has no locks ({os.strerror(number)})" in caplog.text
    assert len(caplog.records) == 1


def test_new_folders_of_runs_at_once_are_different(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "runs", "cells"), range(16)))
    assert {folder.name for folder in made} == {"cells", *(f"cells-{n}" for n in range(2, 17))}
    assert all(folder.is_dir() for folder in made)


def test_a_stage_without_a_known_end_forgets_that_of_the_one_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Stages(True, "work", stderr=False) as stages:
        stages.begin("first", 123)
        stages.begin("second", None)
    assert "second" in (last := capsys.readouterr().out.splitlines()[-1])
    assert "123" not in last
