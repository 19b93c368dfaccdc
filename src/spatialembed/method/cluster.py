"""From the network's maps to instances: greedy clustering (Neven et al. 2019).

    candidates   pixels with seed > foreground
    seed         the free candidate of the highest seed (ties: lowest linear index), if >= start
    exponent     d = px dx^2 + py dy^2 from the seed's embedding, with the seed's own precision
    members      candidates with phi = exp(-d) > membership, taken ones too
    instance     members > min_pixels and free members > min_free * members; score = the seed
    taken        all members, whether they make an instance or not
    owner        of a pixel: its instance of the highest score (ties: lower class, then order found)

``kernels.cpu`` plays these rounds in linear time, and on a GPU ``kernels.gpu`` many at once; both
are equal to the plain loop, tests/plain_cluster.py, to the last bit, at any number of threads. So
embeddings are one float32 addition; a precision is rounded once from float64, on which libraries
agree; d is compared, in one order of operations, with float32(-log(membership)), and never phi,
whose exp differs between libraries; seeds are compared with float32 thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

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
            offset, log_precision, seed, options, threads=torch.get_num_threads(), name=name_of(b)
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


def float32_maps(prediction: Embeddings) -> Iterator[Embeddings]:
    """The maps of each image without the batch: float32, contiguous, on the CPU."""
    for b in range(len(prediction.seed)):
        yield Embeddings(*(m[b].detach().to("cpu", torch.float32).contiguous() for m in prediction))


def name_of(image: int) -> str:
    """An image in messages."""
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
