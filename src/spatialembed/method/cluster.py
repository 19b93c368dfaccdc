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

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spatialembed.errors import USAGE, SpatialEmbedError
from spatialembed.method import geometry
from spatialembed.options import ClusterOptions
from spatialembed.types import Embeddings, Instances


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
    from spatialembed.method.kernels import cpu  # numba: 0.4 s, not needed to import the package

    names = names_of_classes(prediction, class_names)
    if prediction.seed.is_cuda and options.max_instances is None:
        on_gpu = _cluster_on_gpu(prediction, options, names)
        if on_gpu is not None:
            return on_gpu
    results = []
    for b, maps in enumerate(float32_maps(prediction)):
        offset, log_precision, seed = (m.numpy() for m in maps)
        found = cpu.cluster(
            offset, log_precision, seed, options, threads=torch.get_num_threads(), name=_name(b)
        )
        labels, scores, classes = map(torch.from_numpy, (found.labels, found.scores, found.classes))
        instances = Instances(labels, scores, classes, names, found.truncated)
        results.append(on_device_of(prediction, instances))
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
        precision = geometry.precision(maps.log_precision.double()).float()
        found = gpu.cluster(geometry.embed(maps.offset), precision, maps.seed, options)
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
    names = names_of_classes(prediction, class_names)
    results = []
    for b, maps in enumerate(float32_maps(prediction)):
        check_finite(b, maps)
        embedding = geometry.embed(maps.offset)
        proposals: list[tuple[float, int, Tensor]] = []
        truncated = False
        for c, seed in enumerate(maps.seed):
            found, stopped = _greedy(embedding, maps.log_precision, seed, options)
            proposals += [(score, c, members) for score, members in found]
            truncated |= stopped
        found_by_all = _one_owner(proposals, maps.seed.shape[1:], options.max_instances)
        truncated |= found_by_all.truncated
        instances = replace(found_by_all, class_names=names, truncated=truncated)
        results.append(on_device_of(prediction, instances))
    return results


def _greedy(
    embedding: Tensor, log_precision: Tensor, seed: Tensor, options: ClusterOptions
) -> tuple[list[tuple[float, Tensor]], bool]:
    """The rounds of one class: score and members (linear indices) of each; whether it stopped."""
    foreground, start = float(np.float32(options.foreground)), float(np.float32(options.start))
    pixel = (seed > foreground).flatten().nonzero()[:, 0]  # (P,)
    e = embedding.flatten(1)[:, pixel]  # (2, P)
    r = log_precision.flatten(1)[:, pixel]  # (S, P)
    s = seed.flatten()[pixel]  # (P,)
    free = torch.ones_like(s, dtype=torch.bool)
    found: list[tuple[float, Tensor]] = []
    while free.any():
        k = int(torch.where(free, s, -1).argmax())  # the first of equal ones
        if s[k] < start:
            break
        if len(found) == options.max_instances:
            return found, True
        precision = geometry.precision(r[:, k].double()).float()  # (S,)
        dx, dy = e - e[:, k, None]
        member = precision[0] * dx * dx + precision[-1] * dy * dy < options.reach
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


def float32_maps(prediction: Embeddings) -> Iterator[Embeddings]:
    """The maps of each image without the batch: float32, contiguous, on the CPU."""
    for b in range(len(prediction.seed)):
        yield Embeddings(*(m[b].detach().to("cpu", torch.float32).contiguous() for m in prediction))


def check_finite(image: int, maps: Embeddings) -> None:
    """Raise ``non_finite_output`` for NaN or infinity in the maps of an image of the batch."""
    from spatialembed.method.kernels import candidates

    offset, log_precision, seed = (m.numpy() for m in maps)
    candidates.check_finite(offset, log_precision, seed, _name(image))


def _name(image: int) -> str:
    return f"image {image} of the batch"


def names_of_classes(prediction: Embeddings, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names, one for each seed map; ``bad_setting`` where they are not."""
    n = prediction.seed.shape[1]
    if names is None:
        return ("object",) if n == 1 else tuple(f"class {c}" for c in range(n))
    if len(names) != n:
        wanted = f"{n} names, one for each seed map"
        what = f"class_names: {names!r} is not {wanted}"
        raise SpatialEmbedError("bad_setting", what, f"set class_names {wanted}", USAGE)
    return tuple(names)


def on_device_of(prediction: Embeddings, found: Instances) -> Instances:
    """The instances on the device of the maps."""
    device = prediction.seed.device
    labels, scores, classes = (t.to(device) for t in (found.labels, found.scores, found.classes))
    return replace(found, labels=labels, scores=scores, classes=classes)
