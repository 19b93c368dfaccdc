"""Weights to start a training from: those of another model, maybe of other classes."""

from __future__ import annotations

import logging

from spatialembed.errors import MODEL, SpatialEmbedError
from spatialembed.inference import model_file
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.types import Normalization

logger = logging.getLogger("spatialembed")

SEED_OUTPUT = "decoders.1.output_conv."
"""The layer whose outputs are the classes."""


def start_from(
    net: SpatialEmbeddingNet, model: str, normalization: Normalization, scale: float
) -> None:
    """Put the weights of ``model``, a bundled name or a folder, into ``net``, in place.

    The layer that tells classes stays as it is where their number differs. Warns where the model
    sees images otherwise than ``normalization`` and ``scale`` say.

    Raises SpatialEmbedError (exit 4) ``model_mismatch`` for a model of another network, and those
    of ``model_file.load``.
    """
    source, info = model_file.load(model)
    if (source.network, source.elliptical) != (net.network, net.elliptical):
        raise SpatialEmbedError(
            "model_mismatch",
            f"{model}: network {source.network}, elliptical {source.elliptical}; "
            f"this training: network {net.network}, elliptical {net.elliptical}",
            "start from a model of the same network, or set network and elliptical as it has them",
            MODEL,
        )
    for name, ours in (("normalization", normalization), ("scale", scale)):
        theirs = getattr(info, name)
        if theirs != ours:
            logger.warning(
                "%s of %s is %s, of this training %s (set %s as it has it, unless meant)",
                name,
                model,
                theirs,
                ours,
                name,
            )
    state = source.state_dict()
    if source.num_classes != net.num_classes:
        logger.warning(
            "%s tells %d classes, this training %d: the layer that tells them starts anew",
            model,
            source.num_classes,
            net.num_classes,
        )
        own = net.state_dict()
        state |= {name: own[name] for name in own if name.startswith(SEED_OUTPUT)}
    net.load_state_dict(state)
