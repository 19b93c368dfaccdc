"""Find the objects of an image with an exported model: onnxruntime and numpy, no torch.

spatialembed export --model nuclei --out nuclei.onnx
python examples/onnx_minimal.py nuclei.onnx IMAGE [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from spatialembed.images.read import read_image
from spatialembed.method.kernels import cpu
from spatialembed.options import ClusterOptions
from spatialembed.results.labels import write_labels


def main(model: str, image: str, folder: str = ".") -> None:
    """Write the label image of ``image`` into ``folder`` and print how many objects it has."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    facts = {key: json.loads(value) for key, value in entries.items()}

    rgb = network_input(read_image(image), facts["normalization"])  # (3, H, W)
    maps = session.run(["offset", "log_precision", "seed"], {"image": rgb[None]})
    offset, log_precision, seed = (m[0] for m in maps)  # (2, H, W), (S, H, W), (C, H, W)

    found = cpu.cluster(offset, log_precision, seed, ClusterOptions(**facts["thresholds"]))
    path = write_labels(Path(folder, Path(image).stem), found.labels)  # 16-bit PNG
    print(f"{len(found.scores)} objects: {path}")


def network_input(pixels: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """(H, W) or (H, W, 3) as read -> (3, H, W) float32, RGB in [0, 1] or by percentiles.

    The other kinds of normalisation are in the file. The noise floor, for images with next to no
    objects, is left out: see docs/recipe.md.
    """
    largest = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    image = pixels.astype(np.float32) / np.float32(largest)
    channels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)  # (1 or 3, H, W)
    if how["kind"] == "percentile":
        channels = np.stack([by_percentiles(c, how["low"], how["high"]) for c in channels])
        channels = channels if how["ceiling"] is None else np.minimum(channels, how["ceiling"])
    return np.ascontiguousarray(np.broadcast_to(channels, (3, *image.shape[:2])))


def by_percentiles(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) float32, percentile ``low`` at 0 and ``high`` at 1; a constant channel is 0."""
    bottom, top = np.percentile(channel, (low, high))
    if top <= bottom:  # a few small objects on a clean ground
        bottom, top = channel.min(), channel.max()
    bottom, top = np.float32(bottom), np.float32(top)
    return (channel - bottom) / max(top - bottom, np.float32(1e-20))


if __name__ == "__main__":
    main(*sys.argv[1:])
