"""Both stages on tiny generated streets: resuming, weights of classes, the AP that chooses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ideal_maps import Oracle, ideal_maps
from spatialembed.command import main
from spatialembed.command.arguments import parse
from spatialembed.data.cityscapes import open_cityscapes
from spatialembed.data.cityscapes_ids import IDS
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation.cityscapes_ap import average_precision, overlaps
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.generated.streets import write_streets
from spatialembed.images.write import write_png
from spatialembed.inference import model_file
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.training import callbacks, run_folder, setup, step, train
from spatialembed.training.instance_index import instance_index
from spatialembed.training.options import StageOptions, TrainOptions
from spatialembed.training.validation import cityscapes_ids, validate
from spatialembed.types import Normalization, Target


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, 5, (64, 128), seed=2)
    return folder


def smoke(streets: Path, out: Path) -> TrainOptions:
    """The smoke settings, smaller still."""
    words = f"--config smoke --data {streets} --out {out} --name run --stage1.crop 32"
    words += " --stage2.crop 64 --stage1.crops 4 --stage1.batch 2 --stage2.crops 2"
    words += " --workers 0 --device cpu --precision float32 --val-fraction 0.2"
    return parse(TrainOptions, words.split(), verb="train", help="")


@pytest.fixture(scope="module")
def trained(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two stages of two epochs."""
    torch.set_num_threads(1)
    return train.train(smoke(streets, tmp_path_factory.mktemp("whole")))


def state(run: Path, epoch: int) -> dict[str, Any]:
    return run_folder.read_checkpoint(run_folder.checkpoint_path(run, epoch))


@pytest.mark.slow
def test_stopped_in_each_stage_and_between_them_is_bit_equal(
    streets: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = callbacks.Limits.on_train_epoch_end

    def leave(self: callbacks.Limits, trainer: Any, *_: Any) -> None:
        left(self, trainer)
        raise callbacks.Interrupted(15)

    monkeypatch.setattr(callbacks.Limits, "on_train_epoch_end", leave)
    options = smoke(streets, tmp_path)
    for done in (1, 2, 3):  # in the first stage, at the border, in the second
        with pytest.raises(callbacks.Interrupted):
            train.train(options)
        assert run_folder.last_good_checkpoint(tmp_path / "run").name == f"epoch-{done:04d}.ckpt"
        options = TrainOptions(resume=str(tmp_path / "run"), workers=0)
    monkeypatch.setattr(callbacks.Limits, "on_train_epoch_end", left)
    train.train(options)
    whole, broken = state(trained, 4), state(tmp_path / "run", 4)
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(broken["state_dict"][name], tensor), name
    moments = [s["optimizer_states"][0]["state"] for s in (whole, broken)]
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])
    assert run_folder.History(tmp_path / "run").rows == run_folder.History(trained).rows


@pytest.mark.slow
def test_a_run_of_two_stages(streets: Path, trained: Path) -> None:
    rows = run_folder.History(trained).rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["lr"] == pytest.approx(5e-4 * 0.5**0.9)
    assert rows[2]["lr"] == 5e-5
    statistics = [k for k in state(trained, 3)["state_dict"] if "running_" in k]
    third, fourth = (state(trained, epoch)["state_dict"] for epoch in (3, 4))
    assert statistics
    assert all(torch.equal(third[k], fourth[k]) for k in statistics)  # frozen
    assert third["net.decoders.1.output_conv.weight"].shape[1] == 8
    _, info = model_file.load(trained / "model")
    assert info.class_names == tuple(IDS)
    assert info.thresholds == ClusterOptions(min_pixels=8)  # as published, not tuned
    assert info.training["validation_metric"] == "cityscapes"
    kept: Any = train.open_split(smoke(streets, trained.parent))[0]
    weights = instance_index(kept, progress=False).enet_weights()
    assert info.training["foreground_weight"] == pytest.approx(weights, abs=1e-3)


@pytest.mark.slow
def test_weights_are_told_and_used(
    streets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    real = step.spatial_embedding_loss

    def loss(*args: Any, **kwargs: Any) -> Any:
        used.append(kwargs["foreground_weight"])
        return real(*args, **kwargs)

    monkeypatch.setattr(step, "spatial_embedding_loss", loss)
    options = smoke(streets, tmp_path)
    stages = {"stage1": replace(options.stage1, epochs=1), "stage2": StageOptions(epochs=0)}
    with caplog.at_level("INFO", "spatialembed"):
        run = train.train(replace(options, classes="car,person", **stages))
    facts = model_file.load(run / "model")[1].training
    assert used == [facts["foreground_weight"]] * 2
    person, car = facts["foreground_weight"]
    assert f"person {person:.1f}, car {car:.1f}" in caplog.text


@pytest.mark.slow
def test_classes_without_object_are_named(
    streets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = smoke(streets, tmp_path)
    images: Any = train.open_split(options)[0]
    first = next(i for i in range(len(images)) if 0 < len(images.truth(i).classes.unique()) < 8)
    there = images.truth(first).classes.tolist()
    setup._index(options, images.subset([first]))
    absent = ", ".join(name for c, name in enumerate(images.class_names) if c not in there)
    assert caplog.messages == [f"classes without object in the training images: {absent}"]


# ---------------------------------------------------------------- the AP that chooses


def setup_of(dataset: Any, metric: str, run: Path, engine: Any = None) -> Any:
    """What ``validate`` asks of a set-up; an engine that sees the truth by default."""
    truths = (dataset.truth(i) for i in range(len(dataset)))
    engine = engine or Oracle(truths, len(dataset.class_names))
    return SimpleNamespace(
        val=dataset,
        options=SimpleNamespace(val_metric=metric),
        run=run,
        engine=lambda _: engine,
        normalization=Normalization("none"),
        base=ClusterOptions(min_pixels=0),
    )


class Lossy:
    """Ideal maps that miss every third instance."""

    def __init__(self, truths: list[Target]) -> None:
        self.truths = iter(truths)

    def __call__(self, images: torch.Tensor) -> Any:
        maps = ideal_maps(truth := next(self.truths), 8)
        for k in range(1, len(truth.classes) + 1, 3):
            maps.seed[0, :, truth.labels == k] = 0
        return maps


def quiet(_: str) -> None:
    pass


NET: Any = SimpleNamespace(train=lambda: None)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Streets in which some objects have a hundred pixels."""
    folder = tmp_path_factory.mktemp("large")
    write_streets(folder, 4, (160, 320), seed=8)
    return open_cityscapes(folder)


def test_figures_of_the_benchmark(large: Any, tmp_path: Path) -> None:
    truths = [large.truth(i) for i in range(len(large))]
    perfect = validate(setup_of(large, "cityscapes", tmp_path), NET, 1, quiet)
    assert set(perfect.values()) == {1.0}
    figures = validate(setup_of(large, "cityscapes", tmp_path, Lossy(truths)), NET, 1, quiet)
    tables = []
    engine = Lossy(truths)
    for i in range(len(large)):
        found = cluster(engine(torch.zeros(0)), ClusterOptions(min_pixels=0), large.class_names)[0]
        tables.append(overlaps(large.instance_ids(i), found.numpy(), large.class_names))
    ap = average_precision(tables, large.class_names)
    assert 0 < figures["val_ap"] < 1
    assert figures["val_ap"] == pytest.approx(np.nanmean(ap), abs=1e-12)
    assert figures["val_ap50"] == pytest.approx(np.nanmean(ap[:, 0]), abs=1e-12)
    by_class = {k: v for k, v in figures.items() if k not in ("val_ap", "val_ap50")}
    present = {
        n: row.mean() for n, row in zip(large.class_names, ap, strict=True) if row[0] == row[0]
    }
    assert by_class == pytest.approx({f"val_ap_{n}": v for n, v in present.items()})


def test_figures_of_labels_differ(large: Any, tmp_path: Path) -> None:
    figures = validate(setup_of(large, "label", tmp_path), NET, 1, quiet)
    assert figures == {"val_ap": 1.0}


def test_truth_as_ids() -> None:
    labels = torch.tensor([[0, 1, 2], [3, 0, 3]], dtype=torch.int32)
    ignore = torch.tensor([[False, False, False], [False, True, False]])
    target = Target(labels, torch.tensor([1, 0, 1]), ignore)
    ids = cityscapes_ids(target, ("car", "bicycle"))
    assert ids.tolist() == [[7, 33000, 26000], [33001, 0, 33001]]
    many = torch.arange(1, 1002, dtype=torch.int32)[None]
    crowd = Target(many, torch.zeros(1001, dtype=torch.int64), many == 0)
    with pytest.raises(SpatialEmbedError, match=r"too_many_objects.*1001 instances of car"):
        cityscapes_ids(crowd, ("car",))


def test_a_folder_without_ids_is_scored_by_its_truth(large: Any, tmp_path: Path) -> None:
    class Plain:
        names, class_names, truth = large.names, large.class_names, large.truth

        def __len__(self) -> int:
            return len(large)

        def __getitem__(self, i: int) -> Any:
            return large[i]

    figures = validate(setup_of(Plain(), "cityscapes", tmp_path), NET, 1, quiet)
    assert set(figures.values()) == {1.0}
    assert figures.keys() == validate(setup_of(large, "cityscapes", tmp_path), NET, 1, quiet).keys()


# ---------------------------------------------------------------- refusals


def test_what_the_data_cannot_give_is_refused_first(streets: Path, tmp_path: Path) -> None:
    write_folder(SyntheticDataset("shapes", (32, 32), 4), tmp_path / "data", progress=False)
    plain = TrainOptions(
        data=str(tmp_path / "data"), out=str(tmp_path), device="cpu", val_metric="cityscapes"
    )
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*the class 'object'") as caught:
        train.train(plain)
    assert caught.value.exit_code == 2
    shutil.copytree(streets, tmp_path / "bare")
    bare = open_cityscapes(tmp_path / "bare")
    for i in range(len(bare)):
        ids = np.full(bare.instance_ids(i).shape, 7, np.uint16)
        write_png(bare.ids_path(i), ids)
    with pytest.raises(SpatialEmbedError, match="no_objects") as caught:
        train.train(smoke(tmp_path / "bare", tmp_path))
    assert caught.value.exit_code == 3
    assert not run_folder.has_checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_the_smoke_settings_run_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "streets", "--images=6", "--size=128x256", "--out", str(tmp_path / "streets")]
    assert main.main(words) == 0
    words = ["train", str(tmp_path / "streets"), "--config", "smoke", "--device", "cpu"]
    assert main.main([*words, "--out", str(tmp_path), "--name", "run"]) == 0
    rows = run_folder.History(tmp_path / "run").rows
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["total"] < rows[0]["total"]
    assert "weights of the seed foreground" in capsys.readouterr().err
