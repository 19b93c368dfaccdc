"""Ground-truth sampling (Neven et al. 2019): instances from true centres and bandwidths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spatialembed.method import geometry
from spatialembed.method.ambiguity import strips
from spatialembed.method.cluster import float32_maps, name_of, names_of_classes, on_device_of
from spatialembed.options import ClusterOptions
from spatialembed.types import Embeddings, Instances, Target


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
    from spatialembed.method.kernels.candidates import check_finite  # numba: see ``cluster``

    reach = ClusterOptions(membership=membership).reach
    names = names_of_classes(prediction, class_names)
    results = []
    for b, (maps, target) in enumerate(zip(float32_maps(prediction), targets, strict=True)):
        offset, log_precision, seed = (m.numpy() for m in maps)
        check_finite(offset, log_precision, seed, name_of(b))
        true = torch.where(target.ignore, -1, target.labels).cpu().flatten().numpy()
        embedding = geometry.embed(maps.offset).flatten(1).numpy()
        raw = log_precision.reshape(len(log_precision), -1)
        nearest = _nearest_truth(embedding, raw, true, reach)
        kept, number = np.unique(np.append(0, nearest), return_inverse=True)  # 0 comes first
        labels = torch.from_numpy(number[1:].astype(np.int32)).view(target.labels.shape)
        classes = target.classes.cpu()[torch.from_numpy(kept[1:]).long() - 1]
        instances = Instances(labels, torch.ones(len(classes)), classes, names)
        results.append(on_device_of(prediction, instances))
    return results


def _nearest_truth(e: np.ndarray, raw: np.ndarray, true: np.ndarray, reach: float) -> np.ndarray:
    """The true instance of the least exponent below ``reach`` at each pixel, (H*W,) int32, 0 none.

    e (2, H*W), raw log-precision (S, H*W), true labels (H*W,), -1 ignored.
    """
    count = np.bincount(np.maximum(true, 0))
    count[0] = 0
    there = np.flatnonzero(count)

    def means(values: np.ndarray) -> np.ndarray:
        sums = np.stack([np.bincount(np.maximum(true, 0), v, len(count)) for v in values])
        return (sums[:, there] / count[there]).astype(np.float32)

    valid = np.flatnonzero(true >= 0)
    valid = valid[np.argsort(e[0, valid], kind="stable")]
    least = np.full(len(valid), np.float32(reach))
    owner = np.zeros(len(valid), np.int32)
    p = geometry.precision(torch.from_numpy(means(raw))).numpy()
    # A little wider than the margin: rounding in d must not lose a member.
    half = 1.001 * np.sqrt(reach / p[0].astype(np.float64))
    for k, strip, d in strips(e[:, valid], means(e), p, half):
        nearer = d < least[strip]
        least[strip][nearer] = d[nearer]
        owner[strip][nearer] = there[k]
    nearest = np.zeros(len(true), np.int32)
    nearest[valid] = owner
    return nearest
