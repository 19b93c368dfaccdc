"""Objects of other sizes: AP of the held-out nuclei enlarged and reduced, native and auto.

    python benchmarks/diameters.py --data DATA/nuclei [--model nuclei] [--images 20]

Images are resized bicubically, labels by the nearest pixel; images whose objects would have a
median below 8 px are left out. Each row: factor, AP (IoU .50 to .90) of ``--diameter native`` and
``auto``, and how many times as long auto took.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from spatialembed.data.folder import open_folder
from spatialembed.data.splitting import split_dataset
from spatialembed.evaluation.threshold_sweep import mean_ap
from spatialembed.inference.predictor import Predictor, load
from spatialembed.types import Sample

LEAST_PX = 8


def resized(sample: Sample, factor: float) -> Sample:
    """Image and truth at ``factor`` times their size."""
    if factor == 1:
        return sample
    image = np.atleast_3d(sample.image)
    top = np.iinfo(image.dtype).max
    size = [round(side * factor) for side in image.shape[:2]]
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, size, mode="bicubic", antialias=factor < 1).clamp(0, top)
    labels = F.interpolate(sample.target.labels[None, None].float(), size, mode="nearest-exact")
    ignore = F.interpolate(sample.target.ignore[None, None].float(), size, mode="nearest-exact")
    target = replace(sample.target, labels=labels[0, 0].int(), ignore=ignore[0, 0] > 0)
    back = pixels[0].permute(1, 2, 0).round().numpy().astype(image.dtype)
    return replace(sample, image=back.squeeze(), target=target)


def large_enough(sample: Sample, factor: float) -> bool:
    """Whether the objects' median diameter keeps ``LEAST_PX``."""
    areas = np.bincount(sample.target.labels.numpy().ravel())[1:]
    areas = areas[areas > 0]
    return bool(len(areas)) and float(np.median(np.sqrt(areas * 4 / np.pi))) * factor >= LEAST_PX


def scored(predictor: Predictor, samples: list[Sample]) -> tuple[float, float]:
    """Mean AP, and seconds."""
    began = time.perf_counter()
    found = [predictor(sample.image) for sample in samples]
    took = time.perf_counter() - began
    return float(np.nanmean([mean_ap(f, s, 1) for f, s in zip(found, samples, strict=True)])), took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--images", default=20, type=int)
    parser.add_argument("--factors", default="1,0.5,2,4")
    given = parser.parse_args()
    _, held_out = split_dataset(open_folder(given.data), group_by="mosaic")
    step = max(1, len(held_out) // given.images)
    samples = [held_out[i] for i in range(0, len(held_out), step)][: given.images]
    native = load(given.model, device="cpu", engine="torch")
    auto = load(given.model, device="cpu", engine="torch", diameter="auto")
    native(samples[0].image)  # compiles the clustering
    print("| enlarged by | images | native | auto | time of auto |")
    print("| --- | --- | --- | --- | --- |")
    for factor in map(float, given.factors.split(",")):
        these = [resized(s, factor) for s in samples if large_enough(s, factor)]
        (before, short), (now, long) = scored(native, these), scored(auto, these)
        print(
            f"| {factor:g} | {len(these)} | {before:.3f} | {now:.3f} | {long / short:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
