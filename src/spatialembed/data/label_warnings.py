"""Say, before training or scoring, where masks seem to hold no instances; see ``label_checks``."""

from __future__ import annotations

import logging

from spatialembed.data.dataset import FileDataset
from spatialembed.data.folder import FolderDataset
from spatialembed.data.label_checks import label_facts, label_faults
from spatialembed.errors import SpatialEmbedError

logger = logging.getLogger("spatialembed")

LOOKED_AT = 32
"""Masks that are looked at, evenly over the data set: most faults are of half of them or none."""
SIDE = 1024
"""Of a larger mask its corner of this side is looked at, px."""


def warn_of_labels(dataset: FileDataset) -> None:
    """Log a warning for each reason why the masks of a folder seem to hold no instances.

    Other layouts say themselves what is an instance. A mask that cannot be read is left to whoever
    needs it.
    """
    if not isinstance(dataset, FolderDataset) or not len(dataset):
        return
    step = -(-len(dataset) // LOOKED_AT)
    places = range(0, len(dataset), step)
    facts = []
    for i in places:
        try:
            facts.append(label_facts(dataset.mask_ids(i)[:SIDE, :SIDE]))
        except SpatialEmbedError:
            return
    for fault in label_faults(facts):
        first = dataset.names[places[fault.masks[0]]]
        logger.warning(
            "%s: %s (of %d looked at, the first: %s); %s",
            fault.code,
            fault.message,
            len(facts),
            first,
            fault.remedy,
        )
