"""To ``supervision.Detections``, for the annotators, trackers and tools of that library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialembed.errors import missing_extra
from spatialembed.method.labels import encode_instances
from spatialembed.types import Instances

if TYPE_CHECKING:
    from supervision import Detections


def to_detections(instances: Instances, *, compact: bool = False) -> Detections:
    """Convert to ``supervision.Detections``, objects in the same order.

    Args:
        instances: Of one image, N objects.
        compact: Store masks as run lengths of each box, for many objects in a large image, instead
            of (N, H, W) bool.

    Returns:
        ``xyxy`` float32 in px, x2 and y2 exclusive; ``mask``; ``data`` with ``class_name``,
        ``label`` (the value in the label image) and, of a calibrated model, ``expected_iou``.

    Raises:
        SpatialEmbedError: ``missing_extra`` (exit 2).
    """
    try:
        import supervision
        from supervision.detection.compact_mask import CompactMask
    except ImportError as error:
        raise missing_extra("supervision", "supervision", "making Detections") from error
    found = instances.numpy()
    number, labels, boxes = len(found), found.labels, found.boxes
    names = found.class_names or tuple(map(str, range(int(found.classes.max(initial=0)) + 1)))
    data = {
        "class_name": np.array([names[c] for c in found.classes], dtype=str),
        "label": np.arange(1, number + 1),
    }
    if found.expected_iou is not None:
        data["expected_iou"] = found.expected_iou
    if compact:
        last = boxes - np.array([0, 0, 1, 1])  # the library's boxes of masks end with the pixel
        masks = CompactMask.from_coco_rle(encode_instances(labels, number), last, labels.shape)
    else:
        masks = labels == np.arange(1, number + 1)[:, None, None]  # (N, H, W)
    return supervision.Detections(
        xyxy=boxes.astype(np.float32),
        mask=masks,
        confidence=found.scores.astype(np.float32),
        class_id=found.classes.astype(int),
        data=data,
    )
