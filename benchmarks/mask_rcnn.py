"""torchvision's Mask R-CNN (ResNet-50, FPN) beside ours, end to end on one image.

    python benchmarks/mask_rcnn.py --engine compiled

Random weights, and no threshold on scores, so that it gives its 100 detections with their masks at
the size of the image, as it does on a full street. Ours segments a field of about 100 nuclei.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from end_to_end import at_pixel_size, label, loaded
from report import Table, finish
from scenes import scene_image

from spatialembed.bench import in_turns, ratio

DETECTIONS = 100


class MaskRcnn:
    """Array (H, W, 3) uint8 in, masks (N, H, W) bool out."""

    def __init__(self, size_hw: tuple[int, int], device: torch.device) -> None:
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        torch.manual_seed(0)
        self.device = device
        self.net = (
            maskrcnn_resnet50_fpn(
                weights=None,
                weights_backbone=None,
                num_classes=9,  # background and the eight of Cityscapes
                box_detections_per_img=DETECTIONS,
                box_score_thresh=0.0,
                box_nms_thresh=1.0,  # random boxes overlap; none may be lost
                min_size=min(size_hw),
                max_size=max(size_hw),
            )
            .eval()
            .to(device)
        )

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255
        return self.net([tensor])[0]["masks"][:, 0] > 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--size", nargs=2, type=int, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    height, width = options.size
    image = np.repeat(scene_image(height, width, DETECTIONS)[..., None], 3, axis=2)
    theirs = MaskRcnn((height, width), torch.device("cpu"))
    detections = len(theirs(image))
    with tempfile.TemporaryDirectory() as folder:
        ours = loaded(at_pixel_size("nuclei", Path(folder) / "model"), options.engine, None)
        objects = len(ours(image))
        jobs = {"Mask R-CNN": partial(theirs, image), "ours": partial(ours, image)}
        seconds = in_turns(jobs, options.rounds)
    name = label(ours)
    found = [f"{detections} detections, {objects} objects"]
    finish(
        "mask_rcnn",
        [
            Table(
                f"Mask R-CNN R50-FPN (float32) beside ours ({name}), {width} x {height} px",
                ["", "Mask R-CNN / ours"],
                [
                    ["time, end to end", str(ratio(seconds["Mask R-CNN"], seconds["ours"]))],
                    ["found", *found],
                ],
            )
        ],
        facts={"seconds": seconds},
    )


if __name__ == "__main__":
    main()
