"""Any image to instances: ``load`` a model and call it, on one image or on many.

    source -> read_pixels -> normalised -> network -> maps -> cluster -> Instances
              \\___ reading threads ___/   \\_ caller _/      \\_ a thread _/

Of many images, those of one size share a batch, and while the network works on it the next ones are
read and the ones before are clustered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from spatialembed.concurrency import helpers, prefetch
from spatialembed.errors import RESOURCE, SpatialEmbedError, check, nearest
from spatialembed.images.channels import Channel, parse_channel
from spatialembed.images.read import MAX_PIXELS, read_pixels
from spatialembed.inference import model_file
from spatialembed.inference.device import device_input
from spatialembed.inference.diameter import (
    Diameter,
    Seen,
    best_scale,
    parse_diameter,
    rescaled_options,
    suited,
)
from spatialembed.inference.engine import Engine, build
from spatialembed.inference.engines.choice import ENGINES
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.test_time_augmentation import average_over_turns
from spatialembed.method.ambiguity import ambiguity as ambiguity_map
from spatialembed.method.calibration import with_expected_iou
from spatialembed.method.cluster import ClusterOptions, cluster
from spatialembed.method.noise import warn_of_noise
from spatialembed.method.normalization import network_input
from spatialembed.options import DeviceOptions
from spatialembed.types import Embeddings, Instances

BATCH_PIXELS = 1 << 24
"""A batch holds no more pixels than this (eight Cityscapes images), whatever ``batch`` is."""
AHEAD_PIXELS = 1 << 26
"""No more pixels than this are read ahead: about a gigabyte as the network sees them."""


class Outcome(NamedTuple):
    """What became of one image of many: ``instances``, or the ``error`` that it met."""

    source: Any  # as it was given
    pixels: np.ndarray | None  # as it was read, (H, W) or (H, W, 3); None if it could not be
    instances: Instances | None
    error: SpatialEmbedError | None
    ambiguity: np.ndarray | None = None  # (H, W) float32 in [0, 1], on request


def load(
    model: str | Path,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    pixels: float | None = None,
    diameter: str | float | None = None,
    channel: Channel | None = None,
) -> Predictor:
    """Load a model, ready to predict.

    Args:
        model: A bundled name ("nuclei"), a model folder, a file inside one, or
            "hf://OWNER/NAME@REVISION" of the hub (extra ``hub``).
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": CUDA, else Apple MPS, else the CPU.
        engine: "torch", "compiled", "onnxruntime", "openvino", or "auto": the one expected to
            finish a job of ``pixels`` first.
        precision: Of the convolutions: "float32", "bfloat16", or "auto": bfloat16 where the device
            computes in it.
        threads: Of the network on the CPU, for the whole process; None leaves them.
        pixels: Of all images of the job together; None: unknown, for which an engine that starts at
            once is taken.
        diameter: Of the objects in px; "auto": each image is tried at smaller scales too;
            "native": the scale that the model names (see ``inference.diameter``); None: as the
            model says.
        channel: Of each image, alone: its number from 1, its name, "max" or "sum" of all; "all":
            grey or colours as they are; None: the one that the model was trained on, where an
            image has it.

    Returns:
        The model with its engine started.

    Raises:
        SpatialEmbedError: ``no_model``, ``bad_model``, ``model_version``, ``model_mismatch``,
            ``no_hub`` (exit 4); ``unknown_engine``, ``no_engine``, ``unknown_device``,
            ``no_device``, ``unknown_precision``, ``no_precision``, ``bad_threads``,
            ``missing_extra``, ``bad_setting``, ``no_diameter`` (exit 2).
    """
    options = DeviceOptions(device=device, engine=engine, precision=precision, threads=threads)
    return load_for(model, options, pixels, diameter, channel)


def load_for(
    model: str | Path,
    options: DeviceOptions,
    pixels: float | None = None,
    diameter: str | float | None = None,
    channel: Channel | None = None,
    among: Collection[str] = ENGINES,
) -> Predictor:
    """``load`` with the device settings as one object, as the verbs have them.

    pixels: of all images of the job. among: engines of which "auto" may choose.
    """
    wanted = None if diameter is None else parse_diameter(diameter)
    parse_channel(channel)  # before the work
    net, info = model_file.load(model)
    megapixels = None if pixels is None else pixels * info.scale**2 / 1e6
    run = build(net, options, scale=info.scale, megapixels=megapixels, among=among)
    return Predictor(run, info, wanted, channel)


class Thresholds(TypedDict, total=False):
    """Of the clustering, see ``ClusterOptions``; None, or left out: the model's own."""

    foreground: float | None
    start: float | None
    membership: float | None
    min_pixels: int | None
    min_free: float | None
    max_instances: int | None


class Predictor:
    """A model that turns images into instances.

    An image is a path, a PIL image, or an array (H, W) or (H, W, 3), RGB, uint8, uint16 or float.
    Floats lie in [0, 1], unless the model normalises by percentiles: then any finite value is
    taken. With a channel, arrays are (H, W, C) of any C.

    ``settings`` are the model's thresholds, of which a call may replace some. Files and PIL images
    of more than ``max_pixels`` are refused, and of images that have several channels ``channel`` is
    read; both may be set.
    """

    def __init__(
        self,
        engine: Engine,
        info: ModelInfo,
        diameter: Diameter | None = None,
        channel: Channel | None = None,
    ) -> None:
        self.engine = engine
        self.info = info
        self.settings = info.thresholds
        self.diameter: Diameter = info.diameter if diameter is None else diameter
        if not isinstance(self.diameter, str):
            self.engine, self.settings = suited(engine, info, info.thresholds, self.diameter)
        self.device = engine.device
        self.max_pixels = MAX_PIXELS
        self.channel = info.channel if channel is None else channel

    def __call__(
        self, image: Any, *, augment: bool = False, **thresholds: Unpack[Thresholds]
    ) -> Instances:
        """Detect the instances of one image.

        Args:
            image: A path, a PIL image, or an array (H, W) or (H, W, 3).
            augment: Average the maps over the 8 turns and flips, at 8 times the cost.
            **thresholds: See ``Thresholds``.

        Returns:
            Instances as numpy arrays, labels of the image's size (H, W), by descending score.

        Raises:
            SpatialEmbedError: Those of ``read_image`` for a path; ``bad_image``, ``bad_channels``,
                ``bad_dtype``, ``empty_image``, ``non_finite``, ``value_range`` (exit 3),
                ``bad_setting`` (exit 2), ``non_finite_output`` (exit 4), ``out_of_memory``
                (exit 5).
        """
        return self.seen(image, self.options(**thresholds), augment=augment).instances

    def seen(
        self, image: Any, options: ClusterOptions | None = None, *, augment: bool = False
    ) -> Seen:
        """As a call, with the maps that its instances were found in: for questions that follow.

        Args:
            image: A path, a PIL image, or an array (H, W) or (H, W, 3).
            options: Thresholds; None: the model's own.
            augment: Average the maps over the 8 turns and flips.

        Raises:
            SpatialEmbedError: As a call does.
        """
        options = options or self.settings
        prepared = self._input(self._read(image))
        maps = self._maps(prepared[None], augment)
        found = self._clustered(maps, options)[0]
        return self._at_best_scale(prepared, Seen(found, maps), options, augment)

    def again(self, seen: Seen, options: ClusterOptions | None = None) -> Instances:
        """The instances in the maps of ``seen`` by other thresholds; its scale stays.

        Raises:
            SpatialEmbedError: ``non_finite_output`` (exit 4).
        """
        options = options or self.settings
        if options.min_pixels == self.info.thresholds.min_pixels:  # grows as in ``best_scale``
            options = rescaled_options(options, seen.factor)
        return self._clustered(seen.maps, options)[0]

    def map(
        self,
        images: Iterable[Any],
        *,
        batch: int = 8,
        augment: bool = False,
        options: ClusterOptions | None = None,
    ) -> Iterator[Instances]:
        """Detect the instances of many images, in order.

        The next images are read while one is predicted; neighbours of one size share a batch.

        Args:
            images: Images as a call takes them.
            batch: Most images that go through the network together, 1 or more.
            augment: Average the maps over the 8 turns and flips.
            options: Thresholds, as ``predictor.options(min_pixels=30)``; None: the model's own.

        Returns:
            An iterator over one ``Instances`` per image, each as a call returns it.

        Raises:
            SpatialEmbedError: At the turn of an image, the errors of a call. ``outcomes`` yields
                them instead and continues.
        """
        return _raising(self.outcomes(images, batch=batch, augment=augment, options=options))

    def outcomes(
        self,
        images: Iterable[Any],
        *,
        batch: int = 8,
        augment: bool = False,
        options: ClusterOptions | None = None,
        ambiguity: bool = False,
        scale: float = 1.0,
    ) -> Iterator[Outcome]:
        """Detect the instances of many images; an image that fails yields its error in its place.

        Args:
            images: Images as a call takes them.
            batch: Most images that go through the network together, 1 or more.
            augment: Average the maps over the 8 turns and flips.
            options: Thresholds; None: the model's own.
            ambiguity: Whether each outcome has the map of ``method.ambiguity`` too.
            scale: Factor in (0, 1] by which images are reduced; the instances are enlarged again.
                ``min_pixels`` counts pixels of the reduced image.

        Returns:
            An iterator over one ``Outcome`` per image, in order.

        Raises:
            SpatialEmbedError: ``bad_setting`` (exit 2) for a batch below 1.
        """
        check(batch >= 1, f"batch is {batch}", "give 1 or more")
        job = _Job(self, batch, augment, options or self.settings, ambiguity, scale)
        return job.outcomes(images)

    def embeddings(self, image: Any, *, augment: bool = False) -> Embeddings:
        """Run the network on one image.

        Args:
            image: A path, a PIL image, or an array (H, W) or (H, W, 3).
            augment: Average the maps over the 8 turns and flips.

        Returns:
            The maps, (1, ., H, W) float32 on the model's device, cropped to the image.

        Raises:
            SpatialEmbedError: As a call does.
        """
        return self._maps(self._input(self._read(image))[None], augment)

    def instances(self, embeddings: Embeddings, **thresholds: Unpack[Thresholds]) -> Instances:
        """Detect the instances in the maps of one image: the network once, questions often.

        The result is that of a call, but for ``diameter`` "auto": the scale is that of the maps.

        Args:
            embeddings: Maps (1, ., H, W), as ``embeddings`` returns them.
            **thresholds: See ``Thresholds``.

        Raises:
            SpatialEmbedError: ``bad_setting`` (exit 2), also for maps of several images;
                ``non_finite_output`` (exit 4).
        """
        number = len(embeddings.seed)
        check(number == 1, f"maps of {number} images", "give those of one image")
        return self._clustered(embeddings, self.options(**thresholds))[0]

    def options(self, **thresholds: Unpack[Thresholds]) -> ClusterOptions:
        """The model's thresholds with those replaced that are given and not None.

        Raises SpatialEmbedError ``bad_setting`` (exit 2).
        """
        for name in thresholds:
            like = nearest(name, tuple(Thresholds.__annotations__))
            remedy = f"the nearest is {like}" if like else "see ClusterOptions"
            check(name in Thresholds.__annotations__, f"{name}: no such threshold", remedy)
        given: dict[str, Any] = {k: v for k, v in thresholds.items() if v is not None}
        return replace(self.settings, **given)

    def _read(self, image: Any) -> np.ndarray:
        """Pixels (H, W) or (H, W, 3) of an image as it is given."""
        pixels = read_pixels(image, max_pixels=self.max_pixels, channel=self.channel)
        warn_of_noise(pixels, self.info.normalization, image)
        return pixels

    def _input(self, pixels: np.ndarray) -> Tensor:
        """Network input (3, H, W) float32 of an image as it is read."""
        if self.device.type == "cuda" and pixels.dtype == np.uint8:
            return device_input(pixels, self.info.normalization, self.device)
        return network_input(pixels, self.info.normalization)

    def _maps(self, images: Tensor, augment: bool) -> Embeddings:
        """images (B, 3, H, W) float32 -> Embeddings (B, ., H, W)."""
        return average_over_turns(self.engine, images) if augment else self.engine(images)

    def _clustered(self, maps: Embeddings, options: ClusterOptions) -> list[Instances]:
        """Instances of each image of a batch, numpy, with their expected IoU if calibrated."""
        found = cluster(maps, options, self.info.class_names)
        return [
            with_expected_iou(instances.numpy(), seed, self.info.calibration)
            for instances, seed in zip(found, maps.seed, strict=True)
        ]

    def _at_best_scale(
        self, image: Tensor, native: Seen, options: ClusterOptions, augment: bool
    ) -> Seen:
        """What was found in ``image`` (3, H, W), or is found at a scale that suits it better."""
        if self.diameter != "auto":
            return native
        return best_scale(self.engine, self.info, image, native, options, augment)


class _Item(NamedTuple):
    """An image, ready for the network."""

    source: Any
    pixels: np.ndarray
    image: Tensor  # (3, H, W) float32 normalised


class _Mapped(NamedTuple):
    """A batch that has been through the network."""

    items: list[_Item]
    maps: Embeddings  # (B, ., H, W)


@dataclass(frozen=True)
class _Job:
    """Many images under the settings of ``Predictor.outcomes``; a failed one is its outcome."""

    predictor: Predictor
    batch: int
    augment: bool
    options: ClusterOptions
    ambiguity: bool
    scale: float

    def outcomes(self, images: Iterable[Any]) -> Iterator[Outcome]:
        readers = helpers()

        def room(read: _Item | Outcome) -> int:
            pixels = read.image[0].numel() if isinstance(read, _Item) else 1
            return min(self.batch + readers, AHEAD_PIXELS // pixels)

        read = prefetch(self.read, images, threads=readers, room=room)
        for outcomes in prefetch(self.found, self.mapped(read), threads=1, room=lambda _: 1):
            yield from outcomes

    def read(self, source: Any) -> _Item | Outcome:
        """Read and normalise one image, reduced by ``scale``; runs in a reading thread."""
        pixels = None
        try:
            pixels = self.predictor._read(source)
            image = self.predictor._input(_reduced(pixels, self.scale))
            return _Item(source, pixels, image)
        except (SpatialEmbedError, MemoryError) as error:
            return _failed(source, pixels, error)

    def mapped(self, read: Iterable[_Item | Outcome]) -> Iterator[_Mapped | Outcome]:
        """Runs of neighbours of one size, ``batch`` and BATCH_PIXELS at most, with their maps."""
        run: list[_Item] = []
        for item in read:
            if run and not (isinstance(item, _Item) and self.fits(item, run)):
                yield from self.run(run)
                run = []
            if isinstance(item, Outcome):
                yield item
            else:
                run.append(item)
        if run:
            yield from self.run(run)

    def fits(self, item: _Item, run: list[_Item]) -> bool:
        pixels = (len(run) + 1) * item.image[0].numel()
        alike = item.image.shape == run[0].image.shape
        return alike and len(run) < self.batch and pixels <= BATCH_PIXELS

    def run(self, items: list[_Item]) -> Iterator[_Mapped | Outcome]:
        """A batch through the network; if it fails, each of its images is tried alone."""
        try:
            images = torch.stack([item.image for item in items])
            maps = self.predictor._maps(images, self.augment)
        except (SpatialEmbedError, MemoryError) as error:
            if len(items) == 1:
                yield _failed(*items[0][:2], error)
            else:
                for item in items:
                    yield from self.run([item])
        else:
            yield _Mapped(items, maps)

    def found(self, batch: _Mapped | Outcome) -> list[Outcome]:
        """Outcomes of a batch; if it fails, each image is tried alone, so that one fails alone."""
        if isinstance(batch, Outcome):
            return [batch]
        items, maps = batch
        alone = [Embeddings(*(m[b : b + 1] for m in maps)) for b in range(len(items))]
        try:
            found = self.predictor._clustered(maps, self.options)
            return [self.outcome(*each) for each in zip(items, found, alone, strict=True)]
        except (SpatialEmbedError, MemoryError) as error:
            if len(items) == 1:
                return [_failed(*items[0][:2], error)]
            return [self.found(_Mapped([i], m))[0] for i, m in zip(items, alone, strict=True)]

    def outcome(self, item: _Item, found: Instances, maps: Embeddings) -> Outcome:
        """What was found, at the size of the image as it was read."""
        predictor, size_hw = self.predictor, item.pixels.shape[:2]
        native = Seen(found, maps)
        found, maps, _ = predictor._at_best_scale(item.image, native, self.options, self.augment)
        doubt = ambiguity_map(maps, found) if self.ambiguity else None
        if self.scale != 1:
            from spatialembed.images.resample import enlarged  # scipy

            found = replace(found, labels=enlarged(found.labels, size_hw, self.scale))
            doubt = None if doubt is None else enlarged(doubt, size_hw, self.scale)
        return Outcome(item.source, item.pixels, found, None, doubt)


def _reduced(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return pixels
    from spatialembed.images.resample import reduced  # scipy

    return reduced(pixels, scale)


def _failed(
    source: Any, pixels: np.ndarray | None, error: SpatialEmbedError | MemoryError
) -> Outcome:
    if isinstance(error, MemoryError):
        what, remedy = "no memory left for an image", "use a smaller image or batch"
        error = SpatialEmbedError("out_of_memory", what, remedy, RESOURCE)
    return Outcome(source, pixels, None, error)


def _raising(outcomes: Iterator[Outcome]) -> Iterator[Instances]:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.instances is not None
        yield outcome.instances
