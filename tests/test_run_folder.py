"""The run folder by itself: checkpoints, settings, signals, the processes of one training."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from spatialembed.errors import SpatialEmbedError
from spatialembed.training import run_folder, train
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.types import Normalization

# ---------------------------------------------------------------- names


@pytest.mark.parametrize("fault", ["IMG-29 --out", "IMG-29 --name"])
def test_a_run_lies_where_tensorboard_can_write(fault: str, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    out, name = (tmp_path / odd, "a") if fault.endswith("out") else (tmp_path, odd)
    with pytest.raises(SpatialEmbedError, match=r"bad_setting: .*UTF-8") as caught:
        run_folder.new_run(out, name, "b")
    assert caught.value.exit_code == 2
    assert run_folder.new_run(tmp_path, None, "caf\u00e9") == tmp_path / "caf\u00e9"


# ---------------------------------------------------------------- checkpoints


def test_the_last_two_are_kept_by_number(tmp_path: Path) -> None:
    for epoch in (9998, 9999, 10000, 10001):
        run_folder.save_checkpoint({"epoch": epoch}, run_folder.checkpoint_path(tmp_path, epoch))
    kept = [path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")]
    assert sorted(kept) == ["epoch-10000.ckpt", "epoch-10001.ckpt"]
    assert run_folder.last_good_checkpoint(tmp_path) == run_folder.checkpoint_path(tmp_path, 10001)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    path = run_folder.checkpoint_path(tmp_path, 3)
    run_folder.save_checkpoint({"w": torch.arange(3), "n": 1.5}, path)
    state = run_folder.read_checkpoint(path)
    assert state["w"].tolist() == [0, 1, 2]
    assert state["n"] == 1.5


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("fault", ["CKP-06"])
def test_a_pickle_with_the_right_hash_is_refused(fault: str, tmp_path: Path) -> None:
    path, canary = run_folder.checkpoint_path(tmp_path, 1), tmp_path / "canary"
    path.parent.mkdir()
    for content in (pickle.dumps(_Canary(canary), protocol=2), b"no pickle at all", b""):
        path.write_bytes(content)
        path.with_suffix(".sha256").write_text(hashlib.sha256(content).hexdigest())
        with pytest.raises(SpatialEmbedError, match="bad_checkpoint") as caught:
            run_folder.read_checkpoint(path)
        assert caught.value.exit_code == 4
    with pytest.raises(SpatialEmbedError, match="no_checkpoint"):
        run_folder.last_good_checkpoint(tmp_path)
    assert not canary.exists()


# ---------------------------------------------------------------- metrics


def test_rows_of_repeated_epochs_go_and_columns_grow(tmp_path: Path) -> None:
    history = run_folder.History(tmp_path)
    history.add({"epoch": 1, "total": 2.5})
    history.add({"epoch": 2, "total": 1.5, "val_ap": 0.25})
    again = run_folder.History(tmp_path)
    assert again.rows == history.rows
    again.keep_until(1)
    again.add({"epoch": 2, "total": 1.25})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,total\n1,2.5\n2,1.25\n"


@pytest.mark.filterwarnings("error")
def test_curves_before_the_first_validation(tmp_path: Path) -> None:
    history = run_folder.History(tmp_path)
    history.add({"epoch": 1, "total": 2.5, "lr": 1e-3})
    history.draw()
    assert (tmp_path / "curves.png").stat().st_size > 0


# ---------------------------------------------------------------- settings


ODD = TrainOptions(
    data="2024",
    name="7",
    group_by="1e5",
    out="true",
    init="007",
    foreground_weight=[1.0, 2.5],
    normalization=Normalization("fixed", mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 1e-05)),
    augment=AugmentOptions(zoom=(0.5, 2), flip=False),
    stage1=StageOptions(epochs=3, lr=1e-05, crops=7),
    max_time=0.5,
)


@pytest.mark.parametrize("options", [TrainOptions(data="d"), ODD], ids=["default", "odd"])
def test_settings_round_trip(options: TrainOptions, tmp_path: Path) -> None:
    """Texts that look like numbers stay texts, tuples stay tuples, none stays none."""
    run_folder.write_settings(tmp_path, asdict(options))
    assert train._stored_settings(tmp_path) == options


@pytest.mark.parametrize("content", ["", "- a", "stage1: ["])
def test_no_settings(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SpatialEmbedError, match="no_run"):
        train.train(TrainOptions(resume=str(tmp_path)))


@pytest.mark.parametrize("content", ["data: d\nepochs: 3", "data: d\nscale: big", "scale: -1"])
def test_settings_that_were_changed_for_the_worse(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SpatialEmbedError, match=r"bad_config.*config\.yaml") as caught:
        train.train(TrainOptions(resume=str(tmp_path)))
    assert caught.value.exit_code == 4


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    run_folder.write_settings(tmp_path, asdict(TrainOptions(data="d", center="medoid", devices=2)))
    resume = str(tmp_path)
    moved = TrainOptions(resume=resume, data="elsewhere", devices=1, workers=0, device="cpu")
    went_on = train._settings_to_go_on(tmp_path, moved)
    assert (went_on.data, went_on.device, went_on.workers) == ("elsewhere", "cpu", 0)
    assert (went_on.center, went_on.resume) == ("medoid", None)
    same = TrainOptions(resume=resume, center="medoid")
    assert train._settings_to_go_on(tmp_path, same).devices == 2
    longer = TrainOptions(resume=resume, stage1=StageOptions(epochs=300), scale=2.0)
    with pytest.raises(SpatialEmbedError, match="another scale, stage1") as caught:
        train.train(longer)
    assert caught.value.exit_code == 2


# ---------------------------------------------------------------- signals


def test_signals_are_noted_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with run_folder.noted_signals() as seen:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert sorted(seen) == [signal.SIGINT, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_there_are_no_signals_to_note() -> None:
    found: list[Any] = []

    def work() -> None:
        with run_folder.noted_signals() as seen:
            found.append(seen)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


# ---------------------------------------------------------------- processes


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (run_folder.RUN_VARIABLE, *run_folder.LAUNCHER_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_further_processes_are_told(plain_environment: pytest.MonkeyPatch) -> None:
    with run_folder.announced(Path("r")):
        assert os.environ[run_folder.RUN_VARIABLE] == "r"
        assert run_folder.rank() == 0
        os.environ["LOCAL_RANK"] = "1"  # as Lightning does for a process it starts
        assert run_folder.rank() == 1
    assert not {run_folder.RUN_VARIABLE, *run_folder.LAUNCHER_VARIABLES} & set(os.environ)


def test_a_foreign_launcher_is_refused(plain_environment: pytest.MonkeyPatch) -> None:
    plain_environment.setenv("LOCAL_RANK", "3")
    assert run_folder.rank() == 0  # no process of ours
    with (
        pytest.raises(SpatialEmbedError, match="foreign_launcher"),
        run_folder.announced(Path("r")),
    ):
        pass
    plain_environment.setenv("LOCAL_RANK", "0")
    with run_folder.announced(Path("r")):
        assert "LOCAL_RANK" not in os.environ  # or Lightning would wait for processes from outside
    assert os.environ["LOCAL_RANK"] == "0"
