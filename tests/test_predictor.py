"""From any image to instances, one or many; faults stay with their image."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import spatialembed
from known_predictor import INFO, GreyLevels, known, scene
from spatialembed.concurrency import helpers, prefetch
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import predictor as predictor_module
from spatialembed.inference.engine import torch_engine
from spatialembed.inference.model_file import ModelInfo, save
from spatialembed.inference.predictor import Predictor
from spatialembed.method.calibration import Calibration
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Embeddings, Instances, Normalization

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def random_net() -> SpatialEmbeddingNet:
    """A network that finds a lot, of no meaning."""
    torch.manual_seed(4)
    net = SpatialEmbeddingNet(2)
    for decoder in net.decoders:
        torch.nn.init.normal_(decoder.output_conv.weight, std=0.5)
    torch.nn.init.constant_(net.decoders[1].output_conv.bias, 2.0)
    return net


def random_predictor(net: SpatialEmbeddingNet, **changes: Any) -> Predictor:
    info = ModelInfo(
        ("a", "b"), True, Normalization(), ClusterOptions(start=0.6, min_pixels=3, min_free=0.2)
    )
    return Predictor(torch_engine(net, device=CPU, **changes), info)


def same(a: Instances, b: Instances) -> bool:
    return all(
        np.array_equal(x, y)
        for x, y in ((a.labels, b.labels), (a.scores, b.scores), (a.classes, b.classes))
    )


def refused(code: str, predictor: Predictor, image: Any, exit_code: int = 3) -> str:
    with pytest.raises(SpatialEmbedError) as caught:
        predictor(image)
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.remedy
    return str(caught.value)


# One image


def test_finds_what_is_there() -> None:
    image = scene(0)
    found = known()(image)
    expected = np.zeros(image.shape, np.int32)
    for i, level in enumerate((160, 110, 60)):
        expected[image == level] = i + 1
    assert np.array_equal(found.labels, expected)
    assert found.labels.dtype == np.int32
    assert found.scores == pytest.approx([0.9 + v / 255 / 20 for v in (160, 110, 60)])
    assert found.class_names == ("thing",)


def test_path_pillow_and_array_give_the_same(tmp_path: Path) -> None:
    image = Image.fromarray(scene(0))
    image.save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), image):
        assert same(known()(given), known()(scene(0)))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_types_of_arrays(kind: type, channels: int) -> None:
    image = scene(0)
    largest = {np.uint8: 1, np.uint16: 257}.get(kind, 1 / 255)
    given = (image * np.float64(largest)).astype(kind)
    if channels == 3:
        given = np.stack([given] * 3, axis=-1)
    assert np.array_equal(known()(given).labels, known()(image).labels)


def test_strides_do_not_matter() -> None:
    image = scene(0)
    assert same(known()(np.asfortranarray(image)), known()(image))
    assert np.array_equal(known()(image[::-1]).labels, known()(image).labels[::-1])


@pytest.mark.parametrize(
    ("image", "code", "said"),
    [
        pytest.param(np.zeros((4, 5, 2), np.uint8), "bad_channels", "2 channels", id="IMG-24 two"),
        pytest.param(np.zeros((4, 5, 4), np.uint8), "bad_channels", "4 channels", id="IMG-24 four"),
        pytest.param(np.zeros((3, 4, 5), np.uint8), "bad_channels", "(3, 4, 5)", id="IMG-24 first"),
        pytest.param(np.zeros((4, 5, 1), np.uint8), "bad_channels", "1 channels", id="IMG-24 one"),
        pytest.param(np.zeros((2, 4, 5, 3)), "bad_image", "(2, 4, 5, 3)", id="batch"),
        pytest.param(np.zeros(7), "bad_image", "(7,)", id="row"),
        pytest.param(np.zeros((0, 5)), "empty_image", "(0, 5)", id="IMG-10 empty"),
        pytest.param(np.full((2, 2), np.nan), "non_finite", "4 pixels", id="IMG-20 nan"),
        pytest.param(np.full((2, 2), np.inf), "non_finite", "4 pixels", id="IMG-20 inf"),
        pytest.param(np.zeros((4, 5), np.int64), "bad_dtype", "int64", id="IMG-19 int64"),
        pytest.param(np.zeros((4, 5), bool), "bad_dtype", "bool", id="bool"),
        pytest.param(np.full((4, 5), 255.0), "value_range", "255", id="IMG-19 float above 1"),
        pytest.param(np.full((4, 5), -0.5), "value_range", "-0.5", id="IMG-19 float below 0"),
        pytest.param([[1, 2]], "bad_image", "list", id="list"),
        pytest.param(None, "bad_image", "NoneType", id="none"),
    ],
)
def test_what_is_no_image(image: Any, code: str, said: str) -> None:
    assert said in refused(code, known(), image)


def test_percentiles_take_floats_of_any_range(random_net: SpatialEmbeddingNet) -> None:
    predictor = random_predictor(random_net)
    image = np.random.default_rng(0).random((16, 16))
    found = predictor(1000 * image - 300)
    assert found.labels.shape == (16, 16)
    assert len(found) > 0


@pytest.mark.parametrize("level", [pytest.param(v, id=f"IMG-25 {v}") for v in (0, 77, 255)])
def test_constant_image(random_net: SpatialEmbeddingNet, level: int) -> None:
    maps = random_predictor(random_net).embeddings(np.full((9, 10), level, np.uint8))
    assert all(bool(m.isfinite().all()) for m in maps)


@pytest.mark.parametrize("size", [pytest.param((8, 9), id="INF-01"), (1, 1), (40, 3)])
def test_nothing_there(size: tuple[int, int]) -> None:
    found = known()(np.zeros(size, np.uint8))
    assert len(found) == 0
    assert found.labels.shape == size
    assert found.boxes.shape == (0, 4)


SIZES = [(n, n) for n in range(1, 34)] + [(1, 33), (33, 1), (8, 17), (31, 2), (1, 2100), (2056, 8)]
STRIPS = [pytest.param(s, id=f"IMG-16 {s[0]}x{s[1]}") for s in ((1, 1), (7, 7), (1, 20_000))]


@pytest.mark.parametrize(
    "size", [*(pytest.param(s, id=f"INF-08 {s[0]}x{s[1]}") for s in SIZES), *STRIPS]
)
def test_every_size(random_net: SpatialEmbeddingNet, size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    predictor = random_predictor(random_net)
    found = predictor(image)
    assert found.labels.shape == size
    assert found.labels.max(initial=0) == len(found)
    assert (found.areas > 0).all()
    assert [m.shape[-2:] for m in predictor.embeddings(image)] == [size] * 3


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_padding_makes_no_instance(scale: float) -> None:
    """One instance everywhere: it holds the image's pixels, and none beside them."""
    net = SpatialEmbeddingNet(1)
    with torch.no_grad():
        net.decoders[0].output_conv.bias[2:] = 0.2  # margin 313 px
        net.decoders[1].output_conv.weight.zero_()
        net.decoders[1].output_conv.bias[:] = 5.0
    info = ModelInfo(("all",), True, Normalization(), ClusterOptions(min_pixels=0))
    found = Predictor(torch_engine(net, device=CPU, scale=scale), info)(scene(0, (33, 41)))
    assert found.areas.tolist() == [33 * 41]


def test_thresholds() -> None:
    image, predictor = scene(0), known()
    assert len(predictor(image)) == 3
    assert len(predictor(image, min_pixels=40)) == 0
    assert len(predictor(image, start=0.92)) == 2
    assert len(predictor(image, foreground=0.92, start=0.92)) == 2
    assert len(predictor(image, membership=0.999999)) == 3
    limited = predictor(image, max_instances=1)
    assert (len(limited), limited.truncated) == (1, True)
    assert predictor.settings == ClusterOptions(min_pixels=0)
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*start"):
        predictor(image, start=1.5)


def test_embeddings_are_those_of_the_engine() -> None:
    maps = known().embeddings(scene(0))
    expected = GreyLevels()(torch.from_numpy(scene(0) / np.float32(255)).expand(1, 3, 32, 40))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_augment_runs_eight_times_and_keeps_a_sure_answer() -> None:
    predictor = known()
    found = predictor(scene(0), augment=True)
    assert predictor.engine.batches == [1] * 8  # type: ignore[attr-defined]
    assert np.array_equal(found.labels, known()(scene(0)).labels)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", id="INF-10 bfloat16")])
def test_same_bytes_same_result(random_net: SpatialEmbeddingNet, precision: str) -> None:
    predictor = random_predictor(random_net, precision=precision)
    images = [np.random.default_rng(i).integers(0, 256, (24, 24), np.uint8) for i in range(3)]
    first = [predictor(image) for image in images]
    assert sum(map(len, first)) > 0
    again = [predictor(image) for image in reversed(images)]
    assert all(same(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_the_network_once_and_questions_often() -> None:
    calibration = Calibration((0.9, 1.0), (0.2, 0.7), objects=500, error=0.01, error_of_score=0.1)
    predictor = known(replace(INFO, calibration=calibration))
    maps = predictor.embeddings(scene(0))
    for thresholds in ({}, {"min_pixels": 40}, {"start": 0.92, "foreground": 0.92}):
        found = predictor.instances(maps, **thresholds)
        whole = known(predictor.info)(scene(0), **thresholds)
        assert same(found, whole)
        assert np.array_equal(found.expected_iou, whole.expected_iou)
    assert predictor.engine.batches == [1]  # type: ignore[attr-defined]
    two = Embeddings(*(torch.cat((m, m)) for m in maps))
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*2 images"):
        predictor.instances(two)


# Many images


def test_map_is_the_call_in_order() -> None:
    images = [scene(i, (32, 40) if i % 4 else (30, 44)) for i in range(9)]
    predictor = known()
    found = list(predictor.map(images, batch=2, options=predictor.options(min_pixels=3)))
    assert all(same(a, known()(b)) for a, b in zip(found, images, strict=True))
    assert predictor.engine.batches == [1, 2, 1, 1, 2, 1, 1]  # type: ignore[attr-defined]


def test_map_batched_equals_single(random_net: SpatialEmbeddingNet) -> None:
    predictor = random_predictor(random_net)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, 20), np.uint8) for _ in range(5)]
    found = list(predictor.map(images, batch=3))
    assert sum(map(len, found)) > 5
    for one, image in zip(found, images, strict=True):
        alone = predictor(image)
        assert np.array_equal(one.labels, alone.labels)
        np.testing.assert_allclose(one.scores, alone.scores, rtol=1e-5)


def test_batches_hold_a_limited_number_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "BATCH_PIXELS", 3 * 32 * 40)
    predictor = known()
    assert len(list(predictor.map([scene(0)] * 7))) == 7
    assert predictor.engine.batches == [3, 3, 1]  # type: ignore[attr-defined]


def test_map_reads_ahead_in_a_thread_but_not_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless source is fine, and leaving early ends the threads."""
    threads, drawn = set(), []

    def endless() -> Iterator[np.ndarray]:
        i = 0
        while True:
            drawn.append(i)
            yield scene(i % 3)
            i += 1

    def spy(image: Any, **_: int) -> np.ndarray:
        threads.add(threading.current_thread())
        return image

    monkeypatch.setattr(predictor_module, "read_pixels", spy)
    results = known().map(endless(), batch=2)
    assert len(list(islice(results, 5))) == 5
    # a batch is clustered, one is collected, and readers are a batch and their number ahead
    assert len(drawn) <= 5 + 3 * 2 + helpers() + 1
    results.close()  # type: ignore[attr-defined]
    assert threading.main_thread() not in threads
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_work_ahead_is_handed_out_in_order_and_bounded() -> None:
    begun: list[int] = []
    drawn: list[int] = []
    gate = threading.Event()

    def items() -> Iterator[int]:
        for i in range(100):
            drawn.append(i)
            yield i

    def work(i: int) -> int:
        begun.append(i)
        if i:  # the first one tells how many may follow
            gate.wait(20)
        return i

    results = prefetch(work, items(), threads=2, room=lambda _: 3)
    assert next(results) == 0
    assert begun == [0]
    second = threading.Thread(target=next, args=(results,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert sorted(begun) == [0, 1, 2]  # two threads work
    assert drawn == [0, 1, 2, 3, 4]  # one is waited for, and there is room for three
    gate.set()
    second.join(20)
    assert list(results) == list(range(2, 100))


@pytest.mark.parametrize("at_fault", ["work", "items"])
def test_a_fault_of_work_ahead_comes_in_its_turn(at_fault: str) -> None:
    def items() -> Iterator[int]:
        yield from range(6)
        if at_fault == "items":
            raise KeyboardInterrupt
        yield 6

    def work(i: int) -> int:
        if i == 6:
            raise KeyboardInterrupt
        return i

    results = prefetch(work, items(), threads=3, room=lambda _: 4)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(KeyboardInterrupt):
        next(results)


def test_who_stops_early_does_not_wait_for_work_ahead() -> None:
    """Who drops the results in a cycle stops in any thread that collects garbage, holding locks."""
    begun, gate = threading.Event(), threading.Event()

    def work(i: int) -> int:
        if i == 2:
            begun.set()
            gate.wait(60)
        return i

    results = prefetch(work, range(9), threads=1, room=lambda _: 2)
    assert [next(results), next(results)] == [0, 1]
    assert begun.wait(20)
    stops = threading.Thread(target=results.close, daemon=True)
    stops.start()
    stops.join(20)
    stopped = not stops.is_alive()
    gate.set()
    assert stopped
    assert list(results) == []


def test_map_of_nothing_and_bad_batch() -> None:
    assert list(known().map([])) == []
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*batch"):
        known().map([], batch=0)
    with pytest.raises(SpatialEmbedError, match=r"bad_setting.*start"):
        known().options(start=2)


def test_map_raises_at_its_turn(tmp_path: Path) -> None:
    results = known().map([scene(0), tmp_path / "none.png", scene(1)])
    assert len(next(results)) == 3
    with pytest.raises(SpatialEmbedError, match="not_found"):
        next(results)


@pytest.mark.parametrize("batch", [1, 8])
def test_memory_that_runs_out_is_named(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    cluster = predictor_module.cluster

    def greedy(maps: Embeddings, *settings: Any) -> list[Instances]:
        if (maps.seed > 0.94).any():  # the brightest image, alone or with others
            raise MemoryError
        return cluster(maps, *settings)

    monkeypatch.setattr(predictor_module, "cluster", greedy)
    outcomes = list(known().outcomes([scene(0), scene(0) + np.uint8(90), scene(1)], batch=batch))
    assert [o.error.code if o.error else "" for o in outcomes] == ["", "out_of_memory", ""]
    assert outcomes[1].error is not None
    assert outcomes[1].error.exit_code == 5


def test_failed_image_fails_alone(tmp_path: Path) -> None:
    images = [scene(0), tmp_path / "none.png", scene(1), np.zeros((2, 2, 7)), scene(2)]
    outcomes = list(known().outcomes(images))
    assert [o.error.code if o.error else "" for o in outcomes] == [
        "", "not_found", "", "bad_channels", "",
    ]  # fmt: skip
    for i in (0, 2, 4):
        assert outcomes[i].instances is not None
        assert same(outcomes[i].instances, known()(images[i]))
        assert outcomes[i].pixels is images[i] or np.array_equal(outcomes[i].pixels, images[i])


class Poisoned(GreyLevels):
    """NaN in the maps of images with the grey level 13."""

    def __call__(self, images: Tensor) -> Embeddings:
        maps = super().__call__(images)
        bad = (images[:, 0] * 255).round().eq(13).flatten(1).any(1)
        maps.seed[bad, 0, 0, 0] = torch.nan
        return maps


def test_maps_that_are_not_finite_fail_alone() -> None:
    bad = scene(0)
    bad[0, 0] = 13
    predictor = Predictor(Poisoned(), INFO)  # type: ignore[arg-type]
    outcomes = list(predictor.outcomes([scene(0), bad, scene(1)]))
    codes = [o.error.code if o.error else "" for o in outcomes]
    assert codes == ["", "non_finite_output", ""]
    assert same(outcomes[2].instances, known()(scene(1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["INF-03"])
def test_maps_that_are_not_finite_are_refused(fault: str) -> None:
    refused("non_finite_output", Predictor(Poisoned(), INFO), np.full((4, 4), 13, np.uint8), 4)  # type: ignore[arg-type]


# Loading


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, random_net: SpatialEmbeddingNet) -> Path:
    info = ModelInfo(("a", "b"), True, Normalization(), ClusterOptions(start=0.7), scale=1.5)
    return save(tmp_path_factory.mktemp("models") / "m", random_net, info)


def test_load(model: Path) -> None:
    predictor = spatialembed.load(model, device="cpu", precision="float32")
    assert isinstance(predictor, spatialembed.Predictor)
    assert predictor.info.class_names == ("a", "b")
    assert predictor.settings == ClusterOptions(start=0.7)
    assert predictor.device == CPU
    assert (predictor.engine.scale, predictor.engine.precision) == (1.5, "float32")
    assert predictor(scene(0)).labels.shape == (32, 40)


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ({"engine": "onnx"}, "unknown_engine"),
        ({"device": "tpu9"}, "unknown_device"),
        ({"precision": "int8"}, "unknown_precision"),
        ({"threads": 0}, "bad_threads"),
    ],
)
def test_settings_of_load(model: Path, setting: dict[str, Any], code: str) -> None:
    with pytest.raises(SpatialEmbedError) as caught:
        predictor_module.load(model, **setting)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_threads(model: Path) -> None:
    before = torch.get_num_threads()
    try:
        predictor_module.load(model, device="cpu", threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_every_path_says_the_expected_iou() -> None:
    """Grey levels are the seeds, one an object, so that the mean seed is the score."""
    calibration = Calibration((0.9, 1.0), (0.2, 0.7), objects=500, error=0.01, error_of_score=0.1)
    predictor = known(replace(INFO, calibration=calibration))
    images = [scene(0), scene(20)]
    for image, found in zip(images, predictor.map(images), strict=True):
        assert found.expected_iou is not None
        np.testing.assert_allclose(found.expected_iou, 0.2 + 5 * (found.scores - 0.9), atol=1e-6)
        assert np.array_equal(found.expected_iou, predictor(image).expected_iou)
    assert known()(images[0]).expected_iou is None
