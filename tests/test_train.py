"""Training on tiny generated scenes: bits, kills, faults. One process has one thread here."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

import multiprocess_gradients
from spatialembed.command import main
from spatialembed.data.folder import open_folder
from spatialembed.errors import SpatialEmbedError
from spatialembed.files import locked
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.images.write import write_png
from spatialembed.inference import model_file
from spatialembed.inference.predictor import load
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.loss import LossTerms
from spatialembed.training import callbacks, run_folder, train, validation
from spatialembed.training import step as training_module
from spatialembed.training.loader import Crops
from spatialembed.training.options import StageOptions, TrainOptions

SMALL = StageOptions(crop=32, epochs=2, batch=2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_folder(SyntheticDataset("shapes", (48, 48), 6, seed=1), folder, progress=False)
    return folder


def options(scenes: Path, out: Path, **changes: Any) -> TrainOptions:
    settings = {
        "data": str(scenes),
        "out": str(out),
        "name": "run",
        "stage1": SMALL,
        "device": "cpu",
        "precision": "float32",
        "workers": 0,
        "validate_every": 1,
    }
    return TrainOptions(**(settings | changes))


def weights(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return run_folder.read_checkpoint(run_folder.checkpoint_path(run, epoch))["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="session")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, not to be written to."""
    torch.set_num_threads(1)
    return train.train(options(scenes, tmp_path_factory.mktemp("trained")))


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    for name in ("config.yaml", "metrics.csv", "curves.png", "model/model.safetensors"):
        assert (trained / name).stat().st_size > 0
    assert len(list((trained / "samples").glob("*.png"))) > 0
    assert list((trained / "tensorboard").glob("events*"))
    _, info = model_file.load(trained / "model")
    assert info.class_names == ("object",)
    assert info.training["epochs"] in (1, 2)
    assert "/" not in str(info.training)  # no path of the machine
    rows = run_folder.History(trained).rows
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["total"]) and 0 <= row["val_ap"] <= 1 for row in rows)


def test_tensorboard_counts_epochs(trained: Path) -> None:
    """Lightning's own counting, in steps, would put two axes under one curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    for name in ("total", "instance", "seed", "lr", "val_ap"):
        assert [event.step for event in events.Scalars(name)] == [1, 2], name


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-19"])
@pytest.mark.parametrize("workers", [0, 2])
def test_same_seed_same_bits(
    fault: str, workers: int, scenes: Path, trained: Path, tmp_path: Path
) -> None:
    run = train.train(options(scenes, tmp_path, workers=workers))
    assert same(weights(run, 2), weights(trained, 2))


@pytest.mark.slow
def test_other_seed_other_bits(scenes: Path, trained: Path, tmp_path: Path) -> None:
    run = train.train(options(scenes, tmp_path, seed=1))
    assert not same(weights(run, 2), weights(trained, 2))


def command(scenes: Path, out: Path, *more: str) -> list[str]:
    words = f"train --data {scenes} --out {out} --name run --device cpu --precision float32"
    words += " --stage1.crop 32 --stage1.epochs 3 --stage1.batch 2 --stage1.crops 24 --workers 0"
    return [sys.executable, "-m", "spatialembed", *words.split(), *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-07"])
def test_killed_and_resumed_is_bit_equal(fault: str, scenes: Path, tmp_path: Path) -> None:
    unbroken = start(command(scenes, tmp_path / "whole"))
    broken = start(command(scenes, tmp_path / "broken"))
    run = tmp_path / "broken" / "run"
    wait_for(run_folder.checkpoint_path(run, 1), broken)
    time.sleep(0.3)  # into the second epoch
    broken.kill()
    broken.communicate()
    assert not run_folder.checkpoint_path(run, 3).exists()
    resumed = start([sys.executable, "-m", "spatialembed", "train", "--resume", str(run)])
    assert unbroken.wait(300) == 0, unbroken.communicate()
    assert resumed.wait(300) == 0, resumed.communicate()
    for process in (unbroken, resumed):
        process.communicate()
    whole = tmp_path / "whole" / "run"
    assert same(weights(run, 3), weights(whole, 3))
    assert same(model_file.load(run / "model")[0].state_dict(),
                model_file.load(whole / "model")[0].state_dict())  # fmt: skip
    drop = {"hours"}
    kept = [{k: v for k, v in r.items() if k not in drop} for r in run_folder.History(run).rows]
    assert kept == run_folder.History(whole).rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, id="TRN-09-SIGTERM"),
        pytest.param(signal.SIGINT, 130, id="TRN-09-SIGINT"),
    ],
)
def test_signals_save_and_leave(number: int, code: int, scenes: Path, tmp_path: Path) -> None:
    process = start(command(scenes, tmp_path))
    run = tmp_path / "run"
    wait_for(run_folder.checkpoint_path(run, 1), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert run_folder.last_good_checkpoint(run).name >= "epoch-0001.ckpt"


@pytest.mark.slow
def test_sigterm_in_validation_is_heard_after_it(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = validation.mean_ap

    def score(*args: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(validation, "mean_ap", score)
    with pytest.raises(train.Interrupted) as caught:
        train.train(options(scenes, tmp_path))
    assert caught.value.exit_code == 143
    assert run_folder.last_good_checkpoint(tmp_path / "run").name == "epoch-0001.ckpt"


def test_a_signal_that_kills_the_loaders_too_is_no_fault(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `timeout` sends it, to the whole group."""
    real = Crops.__getitem__

    def die(self: Crops, i: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getppid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, i)

    monkeypatch.setattr(Crops, "__getitem__", die)
    with pytest.raises(train.Interrupted):
        train.train(options(scenes, tmp_path, workers=1))


class _Strategy:
    """Of two processes, the other says yes."""

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        return decision if all else True


def test_processes_stop_together() -> None:
    """One whose own time is not up, or that heard no signal, would wait for the others for ever."""
    trainer: Any = SimpleNamespace(strategy=_Strategy(), should_stop=False)
    limits = callbacks.Limits(None, [])
    with pytest.raises(train.Interrupted):
        limits.on_train_epoch_end(trainer, None)
    limits._leave_after_signal = lambda _: None  # type: ignore[method-assign]
    limits.on_train_batch_end(trainer)
    assert trainer.should_stop


def broken_loss(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """The loss is NaN at the steps whose numbers are in ``bad``."""
    real, step = training_module.spatial_embedding_loss, iter(range(1000))

    def loss(*args: Any, **kwargs: Any) -> LossTerms:
        terms = real(*args, **kwargs)
        return terms._replace(seed=terms.seed * float("nan")) if next(step) in bad else terms

    monkeypatch.setattr(training_module, "spatial_embedding_loss", loss)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-01"])
def test_one_nan_is_skipped_and_named(
    fault: str,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken_loss(monkeypatch, {1})
    with caplog.at_level(logging.WARNING, "spatialembed"):
        run = train.train(options(scenes, tmp_path))
    skipped = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(skipped) == 1
    assert "scene" in skipped[0] or "shapes" in skipped[0]  # the names of the samples
    assert run_folder.History(run).rows[0]["skipped"] == 1
    assert all(torch.isfinite(w).all() for w in weights(run, 2).values())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-01"])
def test_nan_in_the_network_does_not_stay_in_it(
    fault: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass of a skipped step must leave no NaN in the batch-norm statistics."""
    real, crop = Crops.__getitem__, iter(range(1000))

    def spoiled(self: Crops, i: int) -> Any:
        image, *rest = real(self, i)
        return (image * float("nan") if next(crop) == 0 else image, *rest)

    monkeypatch.setattr(Crops, "__getitem__", spoiled)
    run = train.train(options(scenes, tmp_path, stage1=StageOptions(32, 1, 2)))
    assert run_folder.History(run).rows[0]["skipped"] == 1
    assert all(torch.isfinite(w).all() for w in weights(run, 1).values())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-02"])
def test_five_nans_stop_the_run(
    fault: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_loss(monkeypatch, set(range(2, 100)))
    with pytest.raises(SpatialEmbedError, match=r"diverged.*epoch-\d{4}\.ckpt") as caught:
        train.train(options(scenes, tmp_path, stage1=StageOptions(32, 9, 2)))
    assert caught.value.exit_code == 4


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-04"])
@pytest.mark.parametrize("stage", [StageOptions(32, 1, 64), StageOptions(32, 1, 1, crops=1)])
def test_batches_of_any_size(fault: str, stage: StageOptions, scenes: Path, tmp_path: Path) -> None:
    run = train.train(options(scenes, tmp_path, stage1=stage))
    assert run_folder.checkpoint_path(run, 1).exists()


@pytest.mark.parametrize("fault", ["TRN-04"])
def test_too_few_images_are_refused(fault: str, tmp_path: Path) -> None:
    write_folder(SyntheticDataset("shapes", (32, 32), 1), tmp_path / "one", progress=False)
    with pytest.raises(SpatialEmbedError, match="bad_split"):
        train.train(options(tmp_path / "one", tmp_path))


def test_what_only_the_data_show_is_refused_before_the_first_step(
    scenes: Path, tmp_path: Path
) -> None:
    few = StageOptions(32, 1, 2, crops=1)
    for changes, said in (
        ({"foreground_weight": [1.0, 2.0, 3.0]}, "3 values of foreground_weight for 1 classes"),
        ({"stage1": few, "devices": 2}, "1 crops an epoch for 2 devices"),
    ):
        with pytest.raises(SpatialEmbedError, match=said) as caught:
            train.train(options(scenes, tmp_path / said[:1], **changes))
        assert caught.value.exit_code == 2


def in_parts(scenes: Path, folder: Path) -> Path:
    """The scenes as train/ and val/."""
    for part in ("train", "val"):
        shutil.copytree(scenes, folder / part)
    return folder


@pytest.mark.parametrize("fault", ["LBL-03"])
def test_a_bad_validation_image_is_found_first(fault: str, scenes: Path, tmp_path: Path) -> None:
    data = in_parts(scenes, tmp_path / "data")
    mask = sorted((data / "val" / "masks").iterdir())[-1]
    write_png(mask, np.ones((48, 47), np.uint16))
    with pytest.raises(SpatialEmbedError, match=r"size_mismatch.*val"):
        train.train(options(data, tmp_path))
    assert not run_folder.has_checkpoints(tmp_path / "run")


def test_no_object_to_learn_from_is_refused(scenes: Path, tmp_path: Path) -> None:
    data = in_parts(scenes, tmp_path / "data")
    masks = sorted((data / "train" / "masks").iterdir())
    for mask in masks:
        write_png(mask, np.zeros((48, 48), np.uint16))
    with pytest.raises(SpatialEmbedError, match="no object in the training images") as caught:
        train.train(options(data, tmp_path))
    assert (caught.value.code, caught.value.exit_code) == ("no_objects", 3)
    assert not (tmp_path / "run").exists()
    write_png(masks[-1], np.eye(48, dtype=np.uint16))  # one is enough, beside background
    train.open_split(options(data, tmp_path))


def test_processes_wait_longer_than_any_validation(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one validates alone; torch would end the others after 10 or 30 minutes."""
    timeouts = []

    def strategy(*, timeout: timedelta) -> None:
        timeouts.append(timeout)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "DDPStrategy", strategy)
    with pytest.raises(KeyboardInterrupt):
        train.train(options(scenes, tmp_path, devices=2))
    # Gloo counts milliseconds in 32 bits.
    assert timedelta(days=1) < timeouts[0] < timedelta(milliseconds=2**31)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["LBL-13"])
def test_validation_without_objects_keeps_the_last_model(
    fault: str,
    scenes: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = in_parts(scenes, tmp_path / "data")
    for mask in (data / "val" / "masks").iterdir():
        write_png(mask, np.zeros((48, 48), np.uint16))
    run = train.train(options(data, tmp_path))
    assert "no object in the validation images" in caplog.text
    _, info = model_file.load(run / "model")
    assert info.training["epochs"] == 2
    assert info.training["validation_ap"] is None
    assert (info.thresholds.start, info.thresholds.foreground) == (0.9, 0.5)  # not tuned
    main.train(TrainOptions(resume=str(run), workers=0))
    assert f"the last model is {run}/model" in capsys.readouterr().out


@pytest.mark.slow
def test_a_clock_that_jumps_back_changes_nothing(
    scenes: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the end nor the learning rate of a limited run goes by the time of day."""
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run = train.train(options(scenes, tmp_path, max_time=1e6))
    rates = [row["lr"] for row in run_folder.History(run).rows]
    assert rates == pytest.approx([row["lr"] for row in run_folder.History(trained).rows])
    assert 0 <= model_file.load(run / "model")[1].training["hours"] < 1


@pytest.mark.slow
def test_two_classes_from_table_to_table(scenes: Path, tmp_path: Path) -> None:
    """classes.csv -> network with two seed maps -> model file -> instances with class names."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    lines = ["image,id,class"]
    dataset = open_folder(data)
    for name, sample in zip(dataset.names, (dataset[i] for i in range(len(dataset))), strict=True):
        ids = range(1, len(sample.target.classes) + 1)
        lines += [f"{name},{k},{('round', 'angular')[k % 2]}" for k in ids]
    (data / "classes.csv").write_text("\n".join(lines))
    one = StageOptions(32, 1, 2)
    run = train.train(options(data, tmp_path, stage1=one, foreground_weight=[10.0, 5.0]))
    assert weights(run, 1)["net.decoders.1.output_conv.weight"].shape[1] == 2
    predictor = load(run / "model", device="cpu")
    assert predictor.info.class_names == ("angular", "round")
    found = predictor(dataset[0].image, foreground=0.05, start=0.05, min_pixels=1)
    assert len(found) > 0
    assert found.class_names == ("angular", "round")
    assert set(found.classes) <= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-10"])
def test_full_disk_leaves_the_old_checkpoint(
    fault: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".ckpt" and run_folder.checkpoint_path(tmp_path / "run", 1).exists():
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SpatialEmbedError, match="disk_full") as caught:
        train.train(options(scenes, tmp_path))
    assert caught.value.exit_code == 5
    assert run_folder.last_good_checkpoint(tmp_path / "run").name == "epoch-0001.ckpt"


@pytest.mark.parametrize("fault", ["TRN-11"])
def test_read_only_output_is_found_first(
    fault: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_run", lambda *_: pytest.fail("the run began"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", Path("/proc")):
        with pytest.raises(SpatialEmbedError, match="not_writable"):
            train.train(options(scenes, out))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-12"])
def test_killed_loader_is_an_error(
    fault: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Crops.__getitem__

    def die(self: Crops, i: int) -> Any:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, i)

    monkeypatch.setattr(Crops, "__getitem__", die)
    with pytest.raises(SpatialEmbedError, match="worker_killed") as caught:
        train.train(options(scenes, tmp_path, workers=1))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("fault", ["TRN-16"])
def test_second_run_in_a_folder_is_refused(fault: str, scenes: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(SpatialEmbedError, match="run_locked"):
        train.train(options(scenes, tmp_path))
    (tmp_path / "run" / "config.yaml").write_text("")
    with pytest.raises(SpatialEmbedError, match="run_exists"):
        train.train(options(scenes, tmp_path))


def damaged(run: Path, how: str) -> Path:
    path = run_folder.checkpoint_path(run, 2)
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1000])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [pytest.param(h, id=f"CKP-02-{h}") for h in ("truncated", "empty", "flipped")]
)
def test_damaged_checkpoint_falls_back_loudly(
    how: str, scenes: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train.train(options(scenes, tmp_path))
    damaged(run, how)
    assert run_folder.last_good_checkpoint(run) == run_folder.checkpoint_path(run, 1)
    assert "damaged" in caplog.text
    if how == "truncated":
        train.train(TrainOptions(resume=str(run), workers=0))
        assert same(weights(run, 2), weights(trained, 2))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["TRN-07"])
def test_killed_before_the_first_checkpoint_begins_again(
    fault: str, scenes: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_folder.write_settings(run, asdict(options(scenes, tmp_path)))
    train.train(TrainOptions(resume=str(run), workers=0))
    assert same(weights(run, 2), weights(trained, 2))


def test_resuming_a_finished_run_changes_nothing(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    train.train(TrainOptions(resume=str(run), workers=0))
    assert (run / "metrics.csv").read_text() == (trained / "metrics.csv").read_text()
    for name in ("model.safetensors", "model.json"):
        assert (run / "model" / name).read_bytes() == (trained / "model" / name).read_bytes()


def test_the_best_model_is_not_forgotten(trained: Path, tmp_path: Path) -> None:
    """That of an epoch cut short by --max-time, which no checkpoint knows of."""
    net, info = model_file.load(trained / "model")
    facts = info.training | {"validation_ap": 0.75}
    model_file.save(tmp_path / "model", net, replace(info, training=facts))
    options = TrainOptions(data="x")
    setup: Any = SimpleNamespace(run=tmp_path, options=options)
    module = training_module.TrainingModule(setup, net)
    module.on_load_checkpoint({"best_ap": 0.5, "seconds": 0.0})
    assert module.best_ap == 0.75
    module.on_load_checkpoint({"best_ap": 0.8, "seconds": 0.0})
    assert module.best_ap == 0.8


def test_the_bar_counts_the_steps_of_both_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second stage of smaller batches has more steps an epoch."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    bar = callbacks.Bar([2, 2, 8])
    bar.on_train_start(SimpleNamespace(current_epoch=2), None)  # type: ignore[arg-type]
    bar.on_train_end()
    assert "4/12" in re.sub(r"\x1b\[[0-9;?]*\w", "", capsys.readouterr().out)


def test_devices_from_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert train._devices(torch.device("cpu"), 3) == 3
    assert train._devices(torch.device("cuda"), 2) == [0, 1]
    assert train._devices(torch.device("cuda:1"), 1) == [1]
    for device, count in (("cuda:1", 2), ("cuda", 3), ("mps", 2)):
        with pytest.raises(SpatialEmbedError, match="no_device"):
            train._devices(torch.device(device), count)


@pytest.mark.slow
def test_max_time_ends_with_a_model(scenes: Path, tmp_path: Path) -> None:
    long = StageOptions(32, 500, 2)
    run = train.train(options(scenes, tmp_path, stage1=long, validate_every=100, max_time=0.0))
    assert model_file.load(run / "model")[1].training["epochs"] == 1
    assert not run_folder.checkpoint_path(run, 1).exists()  # a cut epoch is not one to go on from


@pytest.mark.slow
def test_second_stage_freezes_batch_norm(scenes: Path, trained: Path, tmp_path: Path) -> None:
    frozen = StageOptions(40, 1, 2, lr=5e-5, freeze_batchnorm=True)
    run = train.train(options(scenes, tmp_path, stage2=frozen))
    before, after = weights(trained, 2), weights(run, 3)
    statistics = [k for k in before if "running_" in k]
    assert statistics
    assert all(torch.equal(before[k], after[k]) for k in statistics)
    assert not torch.equal(
        before["net.encoder.layers.0.conv.weight"], after["net.encoder.layers.0.conv.weight"]
    )


@pytest.mark.slow
def test_init_starts_from_a_model(
    scenes: Path, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = StageOptions(32, 1, 2, lr=1e-12, freeze_batchnorm=True)
    given, _ = model_file.load(trained / "model")
    changes = {"init": str(trained / "model"), "stage1": still, "scale": 1.5}
    run = train.train(options(scenes, tmp_path, **changes))
    assert "scale of" in caplog.text  # it was trained at another
    after = weights(run, 1)
    for name, tensor in given.state_dict().items():
        torch.testing.assert_close(after["net." + name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_all_images_are_trained_on_where_none_are_held_out(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, info = model_file.load("shapes")
    chosen = replace(info.thresholds, start=0.625, membership=0.375, min_pixels=1)
    start = model_file.save(tmp_path / "start", net, replace(info, thresholds=chosen))
    given = {"init": str(start), "normalization": info.normalization, "val_fraction": 0.0}
    run = train.train(options(scenes, tmp_path, **given))
    assert "no validation images: the last model is kept" in caplog.text
    net, info = model_file.load(run / "model")
    facts = info.training
    assert [facts[name] for name in ("images", "validation_images", "epochs")] == [6, 0, 2]
    assert facts["validation_ap"] is None
    last = weights(run, 2)
    assert all(torch.equal(value, last["net." + k]) for k, value in net.state_dict().items())
    assert info.thresholds == chosen
    assert info.calibration is not None
    assert info.calibration == model_file.load("shapes")[1].calibration
    assert info.split is not None
    assert all(info.split.saw(open_folder(scenes)))


def test_all_images_are_not_asked_for_where_some_are_named_for_validation(
    scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*holds validation images"):
        train.train(options(scenes, tmp_path, val_fraction=0.0, val_data=str(scenes)))
    parts = tmp_path / "parts"
    for part in ("train", "val"):
        shutil.copytree(scenes, parts / part)
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*parts holds validation images"):
        train.train(options(parts, tmp_path, val_fraction=0.0))


@pytest.mark.parametrize("fault", ["CKP-04"])
def test_init_from_another_network_is_refused(
    fault: str, scenes: Path, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpatialEmbedError, match=r"model_mismatch.*elliptical True"):
        train.train(options(scenes, tmp_path, init=str(trained / "model"), elliptical=False))


def test_learning_rate_falls_in_each_stage() -> None:
    o = TrainOptions(
        data="x", stage1=StageOptions(epochs=10, lr=1.0), stage2=StageOptions(epochs=5, lr=0.1),
        warmup=2,
    )  # fmt: skip
    rates = [o.lr(e) for e in range(15)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[2] == pytest.approx(0.8**0.9)
    assert rates[9] == pytest.approx(0.1**0.9)
    assert rates[10] == pytest.approx(0.1)
    assert rates[14] == pytest.approx(0.1 * 0.2**0.9)


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path: Path) -> None:
    alone = multiprocess_gradients.gradients(1, tmp_path)
    shared = multiprocess_gradients.gradients(2, tmp_path)
    for name, gradient in alone.items():
        torch.testing.assert_close(shared[name], gradient, rtol=2e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_devices_2_trains(scenes: Path, tmp_path: Path) -> None:
    process = start(command(scenes, tmp_path, "--devices", "2", "--stage1.epochs", "1"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert model_file.load(tmp_path / "run" / "model")[1].thresholds != ClusterOptions()


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [("time", 0), ("SIGTERM", 143)])
def test_two_processes_stop_together(stop: str, code: int, scenes: Path, tmp_path: Path) -> None:
    limit = ["--max-time", "0.1"] if stop == "time" else []
    process = start(command(scenes, tmp_path, "--devices=2", "--stage1.epochs=999", *limit))
    run = tmp_path / "run"
    if stop == "SIGTERM":
        wait_for(run_folder.checkpoint_path(run, 1), process)
        process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert run_folder.has_checkpoints(run)
    assert (run / "model").is_dir() == (stop == "time")
