"""Normalising images on the device of the network, where 8-bit pixels cross over as they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spatialembed.inference.device import memory_is_named
from spatialembed.method.normalization import levels_of_counts, noise_of, normalize, to_tensor
from spatialembed.types import Normalization


def device_input(image: np.ndarray, how: Normalization, device: torch.device) -> Tensor:
    """``network_input`` of (H, W) or (H, W, 3) uint8, (3, H, W) float32 on ``device``, bit for bit.

    A quarter of the bytes cross over, and the processor does not touch the pixels: they are counted
    and looked up on the device; the table of 256 levels is made here.

    Raises SpatialEmbedError ``out_of_memory`` (exit 5).
    """
    height, width = image.shape[:2]
    with memory_is_named((1, 3, height, width), device):
        pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
        channels = pixels.reshape(height * width, -1).T.int()  # (C, P), C = 1 or 3
        values = to_tensor(np.arange(256, dtype=np.uint8)[None])[: len(channels)]  # (C, 1, 256)
        levels = None
        if how.kind == "percentile":
            counts = torch.stack([torch.bincount(c, minlength=256) for c in channels])  # (C, 256)
            counted = counts.cpu().numpy()
            levels = levels_of_counts(counted, values[0, 0].numpy(), how, noise_of(image, how))
        table = normalize(values.contiguous(), how, levels)[:, 0].to(device)  # (C or 3, 256)
        rows = zip(table, channels.expand(len(table), -1), strict=True)
        looked_up = torch.stack([row.index_select(0, channel) for row, channel in rows])
    return looked_up.view(-1, height, width).expand(3, -1, -1)
