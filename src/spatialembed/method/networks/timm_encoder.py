"""Any pyramid of timm as the encoder, by name: ``timm:resnet18``, the decoders those of ``lite``.

timm (Apache-2.0, the extra ``timm``) has some thousand convolutional networks; those whose maps
halve from stride 2 or 4 downwards fit. Maps that an encoder lacks at strides 1 and 2 come from one
convolution each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from spatialembed.errors import MODEL, USAGE, SpatialEmbedError, require
from spatialembed.method.networks.lite import DETAIL, ConvNorm
from spatialembed.types import TIMM

HALF = 16
"""Channels at stride 2 where the encoder begins at stride 4."""


class TimmEncoder(nn.Module):
    """(B, 3, H, W) in [0, 1] -> maps at strides 1, 2, 4 ... ``stride``, sides multiples of that.

    Attributes: ``channels`` of the maps from stride 2 on.

    Raises SpatialEmbedError (exit 2): ``missing_extra``; ``bad_setting`` for a name that timm does
    not know, or a network without such maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name.removeprefix(TIMM)
        self.body = _body(self.name, pretrained=False)
        info: Any = self.body.feature_info
        strides = info.reduction()
        halving = all(2 * fine == coarse for fine, coarse in pairwise(strides))
        if len(strides) < 2 or strides[0] not in {2, 4} or not halving:
            raise _unfit(name, f"its maps have strides {strides}, which do not halve from 2 or 4")
        self.stride = strides[-1]
        self.second = ConvNorm(3, HALF, 3, stride=2) if strides[0] == 4 else None
        self.channels = ((HALF,) if self.second else ()) + tuple(info.channels())
        self.detail = ConvNorm(3, DETAIL, 3)
        facts = _facts(self.name)
        for of, values in (("mean", facts.mean), ("std", facts.std)):
            self.register_buffer(of, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = (images - self.mean) / self.std
        half = () if self.second is None else (self.second(x),)
        return (self.detail(x), *half, *self.body(x))

    def load_pretrained(self) -> None:
        """Put the weights that timm publishes into the encoder, in place; downloaded once.

        Raises SpatialEmbedError ``no_weights`` (exit 4) where they cannot be had.
        """
        try:
            self.body.load_state_dict(_body(self.name, pretrained=True).state_dict())
        except (OSError, RuntimeError) as error:  # no network, or no weights of that name
            raise SpatialEmbedError(
                "no_weights",
                f"{TIMM}{self.name}: no weights to start from: {error}",
                "leave out pretrained, or run once where the weights can be downloaded",
                MODEL,
            ) from error


def weights_name(name: str) -> str:
    """Name and licence of the weights that timm publishes for a network."""
    facts = _facts(name.removeprefix(TIMM))
    return f"timm {name.removeprefix(TIMM)}.{facts.tag}, {facts.license or 'licence not stated'}"


def _body(name: str, *, pretrained: bool) -> nn.Module:
    require("timm", "timm", f"the network {TIMM}{name}")
    import timm

    try:
        body = timm.create_model(name, features_only=True, pretrained=pretrained)
    except (RuntimeError, AttributeError, AssertionError) as error:
        if pretrained:
            raise
        raise _unfit(name, str(error)) from error
    assert isinstance(body, nn.Module)
    return body


def _facts(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(name)


def _unfit(name: str, why: str) -> SpatialEmbedError:
    return SpatialEmbedError(
        "bad_setting",
        f"network {TIMM}{name.removeprefix(TIMM)}: {why}",
        "give a network of timm.list_models() whose maps halve from stride 2 or 4 on, resnet18 say",
        USAGE,
    )
