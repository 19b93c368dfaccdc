"""torchvision's Mask R-CNN (ResNet-50, FPN) beside ours: trained side by side, or timed only.

    python benchmarks/mask_rcnn.py                      small: 50 minutes of processor time
    python benchmarks/mask_rcnn.py --network lite       ours with the light network
    python benchmarks/mask_rcnn.py --full               until AP no longer rises; for a GPU
    python benchmarks/mask_rcnn.py --engine compiled    times prediction only, without training

Trained, both see the same crops in one process and are scored by the same evaluator along the way
(``race``, ``race_data``); tables and plot become docs/mask_rcnn.md. A part that is finished is not
repeated, and one that was interrupted goes on.

Timed only: random weights, and no threshold on scores, so that Mask R-CNN gives its 100 detections
with their masks at the size of the image, as it does on a full street. Ours segments a field of
about 100 nuclei.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import race_report
import torch
from contestants import contestants, parameters
from end_to_end import at_pixel_size, label, loaded
from race import race
from race_data import FULL, SMALL, Trial, label_figures, nuclei, streets, with_minutes
from report import RESULTS, Table, finish
from scenes import scene_image

from spatialembed.command.bench import in_turns, machine, ratio
from spatialembed.inference.device import resolve_device

DETECTIONS = 100
RUNS = Path(__file__).resolve().parent.parent / "runs" / "mask_rcnn"
TIMED = 3
"""Validation images that are predicted in turns."""
ROUNDS = 5


def main() -> None:
    options = parsed()
    if options.engine:
        prediction_only(options)
    else:
        compare(options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--small", action="store_true", help="the default on a CPU")
    how.add_argument("--full", action="store_true", help="the default on a GPU")
    how.add_argument("--engine", help="time prediction only, ours by this engine")
    parser.add_argument("--data", nargs="+", choices=("streets", "nuclei"))
    parser.add_argument(
        "--weights",
        choices=("none", "imagenet", "coco"),
        default="none",
        help="that Mask R-CNN starts from; torchvision downloads them",
    )
    parser.add_argument(
        "--network",
        choices=("erfnet", "lite"),
        default="erfnet",
        help="of ours; lite starts from ImageNet (the extra pretrained), which Mask R-CNN does not",
    )
    parser.add_argument("--minutes", type=float, help="most training of each, on each data set")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of what is not finished")
    parser.add_argument("--report", action="store_true", help="train nothing, renew the page")
    parser.add_argument("--size", nargs=2, type=int, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


# ---------------------------------------------------------------- trained side by side


def compare(options: argparse.Namespace) -> None:
    """Every part, then tables, plot and page of those that are there."""
    device = resolve_device(options.device)
    full = options.full or (device.type != "cpu" and not options.small)
    size = with_minutes(FULL if full else SMALL, options.minutes)
    ending = "" if options.weights == "none" else f"_{options.weights}"
    ending += "" if options.network == "erfnet" else f"_{options.network}"
    folder = options.runs / f"{size.name}{ending}"
    wanted = options.data or ["nuclei", "streets"]
    if not options.report:
        for name in wanted:
            if not (folder / f"{name}.json").exists():
                trial = (
                    nuclei(size, options.weights, network=options.network)
                    if name == "nuclei"
                    else streets(size, options.runs, options.weights, options.network)
                )
                if trial is None:
                    print("no nuclei: set SPATIALEMBED_DATA to the folder that holds them")
                    continue
                part = trained(trial, folder, device)
                race_report.write_json(folder / f"{name}.json", part)
    paths = [folder / f"{name}.json" for name in wanted]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    if parts:
        report(parts, f"{size.name}{ending}", options)


def trained(trial: Trial, folder: Path, device: torch.device) -> dict[str, Any]:
    """Train both on a data set; what came of it, as JSON."""
    both = contestants(trial.recipe, device)
    state = folder / f"{trial.name}.pt"
    print(f"{trial.name}: {len(trial.train)} training, {len(trial.val)} validation images")
    curves = race(both, trial.train, trial.recipe, trial.schedule, trial.score(), state, device)
    labels = {c.name: label_figures(c, trial) for c in both if trial.name == "nuclei"}
    image = trial.val[0].image
    images = [trial.val[i].image for i in range(min(TIMED, len(trial.val)))]
    jobs = {c.name: partial(_segment_all, c, images) for c in both}
    seconds = in_turns(jobs, ROUNDS)
    part = {
        "name": trial.name,
        "device": device.type,
        "machine": machine(),
        "train_images": len(trial.train),
        "val_images": len(trial.val),
        "crop": trial.schedule.crop,
        "batch": trial.schedule.batch,
        "curves": {name: standing.curve for name, standing in curves.items()},
        "skipped": {name: standing.skipped for name, standing in curves.items()},
        "labels": labels,
        "parameters": {c.name: parameters(c.net) for c in both},
        "prediction": {
            "size": f"{image.shape[0]} x {image.shape[1]}",
            "seconds": {name: [s / len(images) for s in each] for name, each in seconds.items()},
            "ratio": str(ratio(seconds["Mask R-CNN"], seconds["ours"])),
        },
    }
    state.unlink(missing_ok=True)
    return part


def _segment_all(contestant: Any, images: list[np.ndarray]) -> None:
    for image in images:
        contestant.segment(image)


def report(parts: list[dict[str, Any]], size: str, options: argparse.Namespace) -> None:
    """Print the tables; write benchmarks/results/mask_rcnn_SIZE.json, the plot and the page."""
    made = race_report.tables(parts)
    race_report.show(made)
    result = {
        "size": size,
        "command": command(size, options),
        "machine": parts[0]["machine"],
        "parts": parts,
    }
    race_report.write_json(RESULTS / f"mask_rcnn_{size}.json", result)
    docs = race_report.DOCS
    plotted = race_report.plot(parts, docs / "images" / f"mask_rcnn_{size}.png")
    race_report.renew_page(docs / "mask_rcnn.md", result, made)
    print(f"wrote {plotted}, {docs / 'mask_rcnn.md'}")


def command(size: str, options: argparse.Namespace) -> str:
    """What makes these figures again; where its files lie does not matter."""
    words = ["python", "benchmarks/mask_rcnn.py", f"--{size.partition('_')[0]}"]
    words += ["--data", *options.data] if options.data else []
    words += ["--weights", options.weights] if options.weights != "none" else []
    words += ["--network", options.network] if options.network != "erfnet" else []
    words += ["--minutes", f"{options.minutes:g}"] if options.minutes else []
    return " ".join(words)


# ---------------------------------------------------------------- timed only


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


def prediction_only(options: argparse.Namespace) -> None:
    """Seconds of both on one image, in turns."""
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
                f"Mask R-CNN R50-FPN (float32) beside ours ({name}), {height} x {width} px",
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
