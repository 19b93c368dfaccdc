"""The Lovasz hinge (Yu and Blaschko 2015; Berman et al. 2018): a convex surrogate of 1 - IoU."""

from __future__ import annotations

import torch
from torch import Tensor


def jaccard_steps(own: Tensor, own_before: Tensor, other_before: Tensor, total: Tensor) -> Tensor:
    """Gradient of the Lovasz extension of the Jaccard loss, for errors in descending order.

    own (N,) bool: element is a pixel of the mask; own_before, other_before (N,): how many pixels of
    the mask and of the rest stand before it; total (N,): pixels of the mask. -> (N,) float of
    ``total.dtype``.

    The Jaccard loss after c own and o other pixels is 1 - (G - c) / (G + o). Its steps are written
    out: differences of nearly equal float32 ratios lose all digits in masks of a million pixels.
    """
    union = total + other_before
    return torch.where(own, 1 / union, (total - own_before) / (union * (union + 1)))


def lovasz_hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """Lovasz hinge of one binary mask.

    Args:
        logits: (P,) float, positive for pixels predicted to be in the mask.
        mask: (P,) bool.

    Returns:
        A scalar: 0 for P = 0. An empty mask gives the largest hinge error, as the Jaccard loss of a
        single false pixel against nothing is 1.
    """
    if logits.numel() == 0:
        return logits.sum()
    errors = 1 - logits * (2 * mask.to(logits.dtype) - 1)  # (P,)
    errors, order = errors.sort(descending=True, stable=True)
    own = mask[order]
    own_before = own.cumsum(0) - own.long()
    other_before = torch.arange(len(own), device=own.device) - own_before
    if not mask.any():
        return errors[0].relu()
    total = own.sum().to(logits.dtype)
    steps = jaccard_steps(own, own_before.to(total), other_before.to(total), total)
    return (errors.relu() * steps).sum()
