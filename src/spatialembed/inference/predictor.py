"""Any image to instances: ``load`` a model and call it, on one image or on many.

    source -> read_pixels -> normalised -> network -> maps -> cluster -> Instances
              \\___ reading threads ___/   \\_ caller _/      \\_ a thread _/

Of many images, those of one size share a batch, and while the network works on it the next ones are
read and the ones before are clustered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spatialembed.concurrency import helpers, prefetch
from spatialembed.errors import RESOURCE, USAGE, SpatialEmbedError
from spatialembed.images.read import MAX_PIXELS, read_pixels
from spatialembed.inference import model_file
from spatialembed.inference.batches import batches
from spatialembed.inference.device_input import device_input
from spatialembed.inference.diameter import (
    Diameter,
    best_scale,
    parse_diameter,
    rescaled_options,
    suited,
)
from spatialembed.inference.engine import Engine, average_over_turns, build
from spatialembed.inference.model_file import ModelInfo
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


class Seen(NamedTuple):
    """The instances of one image, and the maps that they were found in."""

    instances: Instances
    maps: Embeddings  # (1, ., H, W)
    factor: float  # of the model's scale, at which the network saw the image


def load(
    model: str | Path,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    pixels: float | None = None,
    diameter: str | float | None = None,
) -> Predictor:
    """Load a model, ready to predict.

    Args:
        model: A bundled name ("nuclei"), a model folder, or a file inside one.
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

    Returns:
        The model with its engine started.

    Raises:
        SpatialEmbedError: ``no_model``, ``bad_model``, ``model_version``, ``model_mismatch``
            (exit 4); ``unknown_engine``, ``no_engine``, ``unknown_device``, ``no_device``,
            ``unknown_precision``, ``no_precision``, ``bad_threads``, ``missing_extra``,
            ``bad_setting``, ``no_diameter`` (exit 2).
    """
    options = DeviceOptions(device=device, engine=engine, precision=precision, threads=threads)
    return load_for(model, options, pixels, diameter)


def load_for(
    model: str | Path,
    options: DeviceOptions,
    pixels: float | None = None,
    diameter: str | float | None = None,
) -> Predictor:
    """``load`` with the device settings as one object, as the verbs have them."""
    wanted = None if diameter is None else parse_diameter(diameter)
    net, info = model_file.load(model)
    megapixels = None if pixels is None else pixels * info.scale**2 / 1e6
    run = build(net, options, scale=info.scale, megapixels=megapixels)
    return Predictor(run, info, wanted)


class Predictor:
    """A model that turns images into instances.

    An image is a path, a PIL image, or an array (H, W) or (H, W, 3), RGB, uint8, uint16 or float.
    Floats lie in [0, 1], unless the model normalises by percentiles: then any finite value is
    taken.

    The thresholds (foreground, start, membership, min_pixels, min_free, max_instances) are those of
    ``ClusterOptions``; None stands for the model's own, ``settings``. Files and PIL images of more
    than ``max_pixels`` are refused; the attribute may be set.
    """

    def __init__(self, engine: Engine, info: ModelInfo, diameter: Diameter | None = None) -> None:
        self.engine = engine
        self.info = info
        self.settings = info.thresholds
        self.diameter: Diameter = info.diameter if diameter is None else diameter
        if not isinstance(self.diameter, str):
            self.engine, self.settings = suited(engine, info, info.thresholds, self.diameter)
        self.device = engine.device
        self.max_pixels = MAX_PIXELS

    def __call__(
        self,
        image: Any,
        *,
        augment: bool = False,
        foreground: float | None = None,
        start: float | None = None,
        membership: float | None = None,
        min_pixels: int | None = None,
        min_free: float | None = None,
        max_instances: int | None = None,
    ) -> Instances:
        """Detect the instances of one image.

        The thresholds, from ``foreground`` on, are those of ``ClusterOptions``; None: the model's
        own.

        Args:
            image: A path, a PIL image, or an array (H, W) or (H, W, 3).
            augment: Average the maps over the 8 turns and flips, at 8 times the cost.

        Returns:
            Instances as numpy arrays, labels of the image's size (H, W), by descending score.

        Raises:
            SpatialEmbedError: Those of ``read_image`` for a path; ``bad_image``, ``bad_channels``,
                ``bad_dtype``, ``empty_image``, ``non_finite``, ``value_range`` (exit 3),
                ``bad_setting`` (exit 2), ``non_finite_output`` (exit 4), ``out_of_memory``
                (exit 5).
        """
        options = self.options(
            foreground=foreground,
            start=start,
            membership=membership,
            min_pixels=min_pixels,
            min_free=min_free,
            max_instances=max_instances,
        )
        return self.seen(image, options, augment=augment).instances

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
        prepared = self._prepare(read_pixels(image, max_pixels=self.max_pixels))
        maps = self._maps(prepared[None], augment)
        return self._at_best_scale(prepared, self._find(maps, options)[0], maps, options, augment)

    def again(self, seen: Seen, options: ClusterOptions | None = None) -> Instances:
        """The instances in the maps of ``seen`` by other thresholds; its scale stays.

        Raises:
            SpatialEmbedError: ``non_finite_output`` (exit 4).
        """
        options = options or self.settings
        if options.min_pixels == self.info.thresholds.min_pixels:  # grows as in ``best_scale``
            options = rescaled_options(options, seen.factor)
        return self._find(seen.maps, options)[0]

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
        if batch < 1:
            raise SpatialEmbedError("bad_setting", f"batch is {batch}", "give 1 or more", USAGE)
        outcomes = self._outcomes(
            images, batch, augment, options or self.settings, ambiguity, scale
        )
        return outcomes if scale == 1 else (_enlarged(outcome, scale) for outcome in outcomes)

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
        pixels = read_pixels(image, max_pixels=self.max_pixels)
        return self._maps(self._prepare(pixels)[None], augment)

    def instances(
        self,
        embeddings: Embeddings,
        *,
        foreground: float | None = None,
        start: float | None = None,
        membership: float | None = None,
        min_pixels: int | None = None,
        min_free: float | None = None,
        max_instances: int | None = None,
    ) -> Instances:
        """Detect the instances in the maps of one image: the network once, questions often.

        The thresholds are as of a call, and so is the result, but for ``diameter`` "auto": the
        scale is that of the maps.

        Args:
            embeddings: Maps (1, ., H, W), as ``embeddings`` returns them.

        Raises:
            SpatialEmbedError: ``bad_setting`` (exit 2), also for maps of several images;
                ``non_finite_output`` (exit 4).
        """
        options = self.options(
            foreground=foreground,
            start=start,
            membership=membership,
            min_pixels=min_pixels,
            min_free=min_free,
            max_instances=max_instances,
        )
        if len(embeddings.seed) != 1:
            what = f"maps of {len(embeddings.seed)} images"
            raise SpatialEmbedError("bad_setting", what, "give those of one image", USAGE)
        return self._find(embeddings, options)[0]

    def options(
        self,
        *,
        foreground: float | None = None,
        start: float | None = None,
        membership: float | None = None,
        min_pixels: int | None = None,
        min_free: float | None = None,
        max_instances: int | None = None,
    ) -> ClusterOptions:
        """The model's thresholds with those replaced that are not None."""
        given: dict[str, Any] = {
            "foreground": foreground,
            "start": start,
            "membership": membership,
            "min_pixels": min_pixels,
            "min_free": min_free,
            "max_instances": max_instances,
        }
        return replace(self.settings, **{k: v for k, v in given.items() if v is not None})

    def _outcomes(
        self,
        images: Iterable[Any],
        batch: int,
        augment: bool,
        options: ClusterOptions,
        with_ambiguity: bool,
        scale: float,
    ) -> Iterator[Outcome]:
        readers = helpers()

        def room(item: _Item) -> int:
            pixels = 1 if item.image is None else item.image[0].numel()
            return min(batch + readers, AHEAD_PIXELS // pixels)

        def found(mapped: _Mapped) -> list[Outcome]:
            return self._found(mapped, options, with_ambiguity, augment)

        def item(source: Any) -> _Item:
            return self._item(source, scale)

        read = prefetch(item, images, threads=readers, room=room)
        mapped = self._all_mapped(batches(read, batch, BATCH_PIXELS), augment)
        for outcomes in prefetch(found, mapped, threads=1, room=lambda _: 1):
            yield from outcomes

    def _item(self, source: Any, scale: float = 1.0) -> _Item:
        """Read and normalise one image, reduced by ``scale``; runs in a reading thread."""
        pixels = None
        try:
            pixels = read_pixels(source, max_pixels=self.max_pixels)
            warn_of_noise(pixels, self.info.normalization, source)
            return _Item(source, pixels, self._prepare(_reduced(pixels, scale)), None)
        except SpatialEmbedError as error:
            return _Item(source, pixels, None, error)
        except MemoryError:
            return _Item(source, None, None, _out_of_memory())

    def _all_mapped(self, batches: Iterable[list[_Item]], augment: bool) -> Iterator[_Mapped]:
        """Batches through the network; if one fails, each of its images is tried alone."""
        for items in batches:
            mapped = self._mapped(items, augment)
            if mapped.error is not None and len(items) > 1:
                yield from (self._mapped([item], augment) for item in items)
            else:
                yield mapped

    def _mapped(self, items: list[_Item], augment: bool) -> _Mapped:
        images = [item.image for item in items if item.image is not None]
        if not images:
            return _Mapped(items, None, items[0].error)
        try:
            return _Mapped(items, self._maps(torch.stack(images), augment), None)
        except (SpatialEmbedError, MemoryError) as caught:
            return _Mapped(items, None, _named(caught))

    def _found(
        self, mapped: _Mapped, options: ClusterOptions, with_ambiguity: bool, augment: bool
    ) -> list[Outcome]:
        """Outcomes of a batch; if it fails, each image is tried alone, so that one fails alone."""
        items, maps, error = mapped
        if maps is not None:
            try:
                found = [
                    self._at_best_scale(item.image, instances, _image(maps, b), options, augment)
                    for b, (item, instances) in enumerate(
                        zip(items, self._find(maps, options), strict=True)
                    )
                ]
                doubts = [
                    ambiguity_map(of_image, instances) if with_ambiguity else None
                    for instances, of_image, _ in found
                ]
                return [
                    Outcome(item.source, item.pixels, instances, None, doubt)
                    for item, (instances, *_), doubt in zip(items, found, doubts, strict=True)
                ]
            except (SpatialEmbedError, MemoryError) as caught:
                error = _named(caught)
                if len(items) > 1:
                    alone = (_Mapped([item], _image(maps, b), None) for b, item in enumerate(items))
                    return [self._found(one, options, with_ambiguity, augment)[0] for one in alone]
        return [Outcome(item.source, item.pixels, None, error) for item in items]

    def _find(self, maps: Embeddings, options: ClusterOptions) -> list[Instances]:
        """Instances of each image of a batch, numpy, with their expected IoU if calibrated."""
        found = cluster(maps, options, self.info.class_names)
        return [
            with_expected_iou(instances.numpy(), seed, self.info.calibration)
            for instances, seed in zip(found, maps.seed, strict=True)
        ]

    def _at_best_scale(
        self,
        image: Tensor | None,
        found: Instances,
        maps: Embeddings,
        options: ClusterOptions,
        augment: bool,
    ) -> Seen:
        """These instances of ``image`` and their maps, or those of a scale that suits it better."""
        if self.diameter != "auto" or image is None:
            return Seen(found, maps, 1.0)
        return Seen(*best_scale(self.engine, self.info, image, (found, maps), options, augment))

    def _prepare(self, pixels: np.ndarray) -> Tensor:
        """Network input (3, H, W) float32 of an image as read."""
        if self.device.type == "cuda" and pixels.dtype == np.uint8:
            return device_input(pixels, self.info.normalization, self.device)
        return network_input(pixels, self.info.normalization)

    def _maps(self, images: Tensor, augment: bool) -> Embeddings:
        """images (B, 3, H, W) float32 -> Embeddings (B, ., H, W)."""
        return average_over_turns(self.engine, images) if augment else self.engine(images)


class _Item(NamedTuple):
    """An image on its way: ready for the network, or with the error it met."""

    source: Any
    pixels: np.ndarray | None
    image: Tensor | None  # (3, H, W) float32 normalised
    error: SpatialEmbedError | None


class _Mapped(NamedTuple):
    """A batch that has been through the network, or the error it met there or before."""

    items: list[_Item]
    maps: Embeddings | None  # (B, ., H, W)
    error: SpatialEmbedError | None


def _reduced(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return pixels
    from spatialembed.images.resample import reduced  # scipy

    return reduced(pixels, scale)


def _enlarged(outcome: Outcome, scale: float) -> Outcome:
    """What was found in an image that had been reduced by ``scale``, at the image's own size."""
    if outcome.instances is None or outcome.pixels is None:
        return outcome
    from spatialembed.images.resample import enlarged  # scipy

    size_hw = (outcome.pixels.shape[0], outcome.pixels.shape[1])
    labels = enlarged(outcome.instances.labels, size_hw, scale)
    doubt = outcome.ambiguity
    return outcome._replace(
        instances=replace(outcome.instances, labels=labels),
        ambiguity=None if doubt is None else enlarged(doubt, size_hw, scale),
    )


def _image(maps: Embeddings, b: int) -> Embeddings:
    """One image of a batch, as a batch of one."""
    return Embeddings(*(m[b : b + 1] for m in maps))


def _named(error: SpatialEmbedError | MemoryError) -> SpatialEmbedError:
    return error if isinstance(error, SpatialEmbedError) else _out_of_memory()


def _out_of_memory() -> SpatialEmbedError:
    what, remedy = "no memory left for an image", "use a smaller image or batch"
    return SpatialEmbedError("out_of_memory", what, remedy, RESOURCE)


def _raising(outcomes: Iterator[Outcome]) -> Iterator[Instances]:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.instances is not None
        yield outcome.instances
