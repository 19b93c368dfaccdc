"""From the network's maps to instances: greedy clustering (Neven et al. 2019), two equal ways.

    candidates   pixels with seed > foreground
    seed         the free candidate of the highest seed (ties: lowest linear index), if >= start
    exponent     d = px dx^2 + py dy^2 from the seed's embedding, with the seed's own precision
    members      candidates with phi = exp(-d) > membership, taken ones too
    instance     members > min_pixels and free members > min_free * members; score = the seed
    taken        all members, whether they make an instance or not
    owner        of a pixel: its instance of the highest score (ties: lower class, then order found)

Both ways are equal to the last bit, at any number of threads. Embeddings are one float32 addition;
a precision is rounded once from float64, so that libraries agree on it; both ways compare d, in one
order of operations, with float32(-log(membership)), and never phi, whose exp differs between
libraries; seeds are compared with float32 thresholds. On a GPU ``kernels.gpu`` plays the same
rounds, many at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.method import geometry
from spatialembed.types import Embeddings, Instances, Target


@dataclass(frozen=True)
class ClusterOptions:
    """Thresholds of the clustering; they belong to a model and travel in its file."""

    foreground: float = 0.5
    """A pixel takes part if its seed is above this, in [0, 1)."""
    start: float = 0.9
    """A pixel can start an instance if its seed is at least this, in [0, 1]."""
    membership: float = 0.5
    """A pixel belongs to a seed if its phi is above this, in (0, 1); 0.5 is the margin."""
    min_pixels: int = 128
    """An instance has more members than this, overlaps included; 128 at Cityscapes size."""
    min_free: float = 0.5
    """More than this share of the members must be free, in [0, 1)."""
    max_instances: int | None = None
    """Stop after so many instances, the best ones, and report it as truncated; null: no limit."""

    def __post_init__(self) -> None:
        below_one = "at least 0 and below 1"
        limited = self.max_instances is None or _is_count(self.max_instances, 1)
        for name, wanted, fine in (
            ("foreground", below_one, 0 <= _number(self.foreground) < 1),
            ("start", "from 0 to 1", 0 <= _number(self.start) <= 1),
            ("membership", "above 0 and below 1", 0 < _number(self.membership) < 1),
            ("min_pixels", "a whole number, 0 to 2^31 - 1", _is_count(self.min_pixels, 0)),
            ("min_free", below_one, 0 <= _number(self.min_free) < 1),
            ("max_instances", "a whole number, 1 to 2^31 - 1, or none", limited),
        ):
            _check(name, getattr(self, name), wanted, fine)


def _number(value: object) -> float:
    """The value of a number; NaN, which is in no range, of anything else."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _is_count(value: object, least: int) -> bool:
    """A whole number that fits the kernels, which count in 32 bits."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and least <= int(value) < 1 << 31  # type: ignore[call-overload]


def _check(name: str, value: object, wanted: str, fine: bool) -> None:
    if not fine:
        raise SpatialEmbedError(
            "bad_setting", f"{name}: {value!r} is not {wanted}", f"set {name} {wanted}", USAGE
        )


def cluster(
    prediction: Embeddings,
    options: ClusterOptions = ClusterOptions(),
    class_names: tuple[str, ...] | None = None,
) -> list[Instances]:
    """Instances of each image of a batch, in time linear in the pixels (Neven et al. 2019).

    Args:
        prediction: Maps of B images, any float type, on any device.
        options: The thresholds.
        class_names: One for each of the C seed maps; None: "object" for one, else "class 0", "class
            1"...

    Returns:
        B results, torch tensors on the device of the maps; labels 1..N by descending score (ties:
        lower class, then order of detection). With ``max_instances`` a class stops after that many
        while free seeds remain, and the best of all classes are kept: either sets ``truncated``.

    Raises:
        SpatialEmbedError: ``non_finite_output`` (exit 4) for NaN or infinity in the maps;
            ``bad_setting`` (exit 2) for a wrong number of names.
    """
    from spatialembed.method.kernels import (
        cpu,  # numba: 0.4 s, and not needed to import the package
    )

    names = _class_names(prediction, class_names)
    if prediction.seed.is_cuda and options.max_instances is None:
        on_gpu = _cluster_on_gpu(prediction, options, names)
        if on_gpu is not None:
            return on_gpu
    results = []
    for b, maps in enumerate(_float32_maps(prediction)):
        offset, log_precision, seed = (m.numpy() for m in maps)
        found = cpu.cluster(
            offset,
            log_precision,
            seed,
            foreground=options.foreground,
            start=options.start,
            membership=options.membership,
            min_pixels=options.min_pixels,
            min_free=options.min_free,
            max_instances=options.max_instances,
            threads=torch.get_num_threads(),
            name=_name(b),
        )
        labels, scores, classes = map(torch.from_numpy, (found.labels, found.scores, found.classes))
        instances = Instances(labels, scores, classes, names, found.truncated)
        results.append(_on_device_of(prediction, instances))
    return results


def _cluster_on_gpu(
    prediction: Embeddings, options: ClusterOptions, names: tuple[str, ...]
) -> list[Instances] | None:
    """``cluster`` where the maps lie; None for batches that are left to the processor.

    That is: no Triton, values that are not finite, and candidates that would take the GPU far more
    than linear time.
    """
    try:
        from spatialembed.method.kernels import gpu
    except ModuleNotFoundError:
        return None
    maps = Embeddings(*(m.detach().float().contiguous() for m in prediction))
    if not torch.stack([m.isfinite().all() for m in maps]).all():
        return None
    with torch.cuda.device_of(maps.seed):  # Triton launches on the current device, whatever it gets
        found = gpu.cluster(
            geometry.embed(maps.offset),
            geometry.precision(maps.log_precision.double()).float(),
            maps.seed,
            foreground=options.foreground,
            start=options.start,
            reach=_reach(options.membership),
            min_pixels=options.min_pixels,
            min_free=options.min_free,
        )
    if found is None:
        return None
    parts = zip(found.labels, found.scores, found.classes, strict=True)
    return [Instances(*part, names) for part in parts]


def cluster_plain(
    prediction: Embeddings,
    options: ClusterOptions = ClusterOptions(),
    class_names: tuple[str, ...] | None = None,
) -> list[Instances]:
    """``cluster`` as the paper reads: a round looks at all candidates. For tests, benchmarks."""
    names = _class_names(prediction, class_names)
    results = []
    for b, maps in enumerate(_float32_maps(prediction)):
        _check_finite(b, maps)
        embedding, seed = geometry.embed(maps.offset), maps.seed
        proposals: list[tuple[float, int, Tensor]] = []
        truncated = False
        for c in range(len(seed)):
            found, stopped = _greedy(embedding, maps.log_precision, seed[c], options)
            proposals += [(score, c, members) for score, members in found]
            truncated |= stopped
        instances = _one_owner(proposals, seed.shape[1:], options.max_instances)
        instances = replace(
            instances, class_names=names, truncated=truncated or instances.truncated
        )
        results.append(_on_device_of(prediction, instances))
    return results


def _greedy(
    embedding: Tensor, log_precision: Tensor, seed: Tensor, options: ClusterOptions
) -> tuple[list[tuple[float, Tensor]], bool]:
    """The rounds of one class: score and members (linear indices) of each; whether it stopped."""
    pixel = (seed > _float32(options.foreground)).flatten().nonzero()[:, 0]  # (P,)
    e = embedding.flatten(1)[:, pixel]  # (2, P)
    r = log_precision.flatten(1)[:, pixel]  # (S, P)
    s = seed.flatten()[pixel]  # (P,)
    free = torch.ones_like(s, dtype=torch.bool)
    found: list[tuple[float, Tensor]] = []
    while free.any():
        k = int(torch.where(free, s, -1).argmax())  # the first of equal ones
        if s[k] < _float32(options.start):
            break
        if len(found) == options.max_instances:
            return found, True
        precision = geometry.precision(r[:, k].double()).float()  # (S,)
        member = _exponent(e, e[:, k], precision) < _reach(options.membership)
        n, n_free = int(member.sum()), int((member & free).sum())
        if n > options.min_pixels and n_free > options.min_free * n:
            found.append((float(s[k]), pixel[member]))
        free &= ~member
    return found, False


def _one_owner(
    proposals: list[tuple[float, int, Tensor]], size_hw: torch.Size, most: int | None
) -> Instances:
    """Settle overlaps of proposals (score, class, members) in the order found; drop the empty."""
    proposals = sorted(proposals, key=lambda proposal: -proposal[0])  # stable
    labels = torch.zeros(size_hw.numel(), dtype=torch.int32)
    for i in reversed(range(len(proposals))):  # the best comes last, over all others
        labels[proposals[i][2]] = i + 1
    owning = labels[labels > 0].unique().tolist()  # best first
    kept = owning[:most]
    new_label = torch.zeros(len(proposals) + 1, dtype=torch.int32)
    new_label[kept] = torch.arange(1, len(kept) + 1, dtype=torch.int32)
    labels = new_label[labels.long()].view(size_hw)  # (H, W)
    scores = torch.tensor([proposals[i - 1][0] for i in kept], dtype=torch.float32)
    classes = torch.tensor([proposals[i - 1][1] for i in kept], dtype=torch.int64)
    return Instances(labels, scores, classes, truncated=len(kept) < len(owning))


def _exponent(e: Tensor, center: Tensor, precision: Tensor) -> Tensor:
    """d (...) of phi = exp(-d) at embeddings (2, ...) for a centre (2,) and a precision (S,)."""
    dx, dy = e[0] - center[0], e[1] - center[1]
    return precision[0] * dx * dx + precision[-1] * dy * dy


def cluster_with_truth(
    prediction: Embeddings,
    targets: Sequence[Target],
    membership: float = 0.5,
    class_names: tuple[str, ...] | None = None,
) -> list[Instances]:
    """Instances from true centres and bandwidths: ground-truth sampling (Neven et al. 2019).

    Centre: the mean embedding of the true pixels. Bandwidth: exp of their mean raw value. Members:
    all valid pixels with phi > membership; overlaps go to the larger phi (ties: lower number in the
    truth).

    Args:
        prediction: Maps of B images, any float type, on any device.
        targets: B truths.
        membership: Threshold of phi in (0, 1).
        class_names: As of ``cluster``.

    Returns:
        B results on the device of the maps, every score 1, order and classes those of the target. A
        true instance without a valid pixel, or without a pixel of its own in the end, is left out.

    Raises:
        SpatialEmbedError: ``non_finite_output`` (exit 4); ``bad_setting`` (exit 2) for a
            membership outside (0, 1).
    """
    _check("membership", membership, "above 0 and below 1", 0 < _number(membership) < 1)
    names = _class_names(prediction, class_names)
    results = []
    for b, (maps, target) in enumerate(zip(_float32_maps(prediction), targets, strict=True)):
        _check_finite(b, maps)
        true = torch.where(target.ignore, -1, target.labels).cpu().flatten().numpy()
        nearest = _nearest_truth(
            geometry.embed(maps.offset).flatten(1).numpy(),
            maps.log_precision.flatten(1).numpy(),
            true,
            _reach(membership),
        )
        kept, number = np.unique(np.append(0, nearest), return_inverse=True)  # 0 comes first
        labels = torch.from_numpy(number[1:].astype(np.int32)).view(target.labels.shape)
        classes = target.classes.cpu()[torch.from_numpy(kept[1:]).long() - 1]
        instances = Instances(labels, torch.ones(len(classes)), classes, names)
        results.append(_on_device_of(prediction, instances))
    return results


def _nearest_truth(e: np.ndarray, raw: np.ndarray, true: np.ndarray, reach: float) -> np.ndarray:
    """The true instance of the least exponent below ``reach`` at each pixel, (H*W,) int32, 0 none.

    e (2, H*W), raw log-precision (S, H*W), true labels (H*W,), -1 ignored. The pixels are sorted by
    x once, so that an instance looks only at the strip its margin covers; memory is that of a few
    maps, however many instances there are.
    """
    count = np.bincount(np.maximum(true, 0))
    count[0] = 0
    valid = np.flatnonzero(true >= 0)
    valid = valid[np.argsort(e[0, valid], kind="stable")]
    x, y = e[:, valid]
    least = np.full(len(valid), np.float32(reach))
    owner = np.zeros(len(valid), np.int32)
    center = _means(e, true, count).astype(np.float32)
    p = geometry.precision(torch.from_numpy(_means(raw, true, count).astype(np.float32))).numpy()
    # A little wider than the margin: rounding in d must not lose a member.
    half = 1.001 * np.sqrt(reach / p[0].astype(np.float64))
    begins = np.searchsorted(x, center[0] - half, side="left")
    ends = np.searchsorted(x, center[0] + half, side="right")
    for k in np.flatnonzero(count):
        strip = slice(begins[k], ends[k])
        dx, dy = x[strip] - center[0, k], y[strip] - center[1, k]
        d = p[0, k] * dx * dx + p[-1, k] * dy * dy
        nearer = d < least[strip]
        least[strip][nearer] = d[nearer]
        owner[strip][nearer] = k
    nearest = np.zeros(len(true), np.int32)
    nearest[valid] = owner
    return nearest


def _means(values: np.ndarray, labels: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean (D, K + 1) float64 of values (D, P) by label; 0 where a label is not counted."""
    index = np.maximum(labels, 0)
    sums = np.stack([np.bincount(index, v, minlength=len(count)) for v in values])
    return np.where(count > 0, sums / np.maximum(count, 1), 0)


def _float32_maps(prediction: Embeddings) -> Iterator[Embeddings]:
    """The maps of each image without the batch: float32, contiguous, on the CPU."""
    for b in range(len(prediction.seed)):
        yield Embeddings(*(m[b].detach().to("cpu", torch.float32).contiguous() for m in prediction))


def _check_finite(image: int, maps: Embeddings) -> None:
    from spatialembed.method.kernels.candidates import check_finite

    offset, log_precision, seed = (m.numpy() for m in maps)
    check_finite(offset, log_precision, seed, _name(image))


def _name(image: int) -> str:
    return f"image {image} of the batch"


def _float32(threshold: float) -> float:
    return float(np.float32(threshold))


def _reach(membership: float) -> float:
    """The exponent below which phi > membership, rounded to float32."""
    return _float32(-math.log(membership))


def _class_names(prediction: Embeddings, names: tuple[str, ...] | None) -> tuple[str, ...]:
    n = prediction.seed.shape[1]
    if names is None:
        return ("object",) if n == 1 else tuple(f"class {c}" for c in range(n))
    _check("class_names", names, f"{n} names, one for each seed map", len(names) == n)
    return tuple(names)


def _on_device_of(prediction: Embeddings, found: Instances) -> Instances:
    device = prediction.seed.device
    labels, scores, classes = (t.to(device) for t in (found.labels, found.scores, found.classes))
    return replace(found, labels=labels, scores=scores, classes=classes)
