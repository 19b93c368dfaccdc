"""All that is timed on a GPU, in one command of less than ten minutes.

    python benchmarks/gpu.py

Frames a second at 1024 x 2048 px, batch 1, with the image on the device; each stage; clustering of
100 objects; the loss; a folder; a training step; Mask R-CNN. Without a CUDA device it says so.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import loss as loss_benchmark
import numpy as np
import torch
from end_to_end import at_pixel_size
from mask_rcnn import DETECTIONS, MaskRcnn
from report import Table, finish, percent
from scenes import scene, scene_image

from spatialembed.command.bench import in_turns, ratio
from spatialembed.inference.predictor import Predictor, load
from spatialembed.method.cluster import cluster
from spatialembed.method.normalization import network_input
from spatialembed.types import Embeddings, Target

SIZE = (1024, 2048)
ROUNDS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", default=["torch", "compiled"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return
    image = np.repeat(scene_image(*SIZE, 100)[..., None], 3, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        model = at_pixel_size("nuclei", Path(folder) / "model")
        ours = {name: load(model, engine=name, device="cuda") for name in options.engines}
        tables = [frames(ours, image), clustering(), losses(), mask_rcnn(ours, image)]
    finish("gpu", tables)
    for script in ("training_step.py", "folder.py"):
        words = [sys.executable, str(Path(__file__).with_name(script)), "--device", "cuda"]
        words += ["--size", "1024", "--images", "48"] if script == "folder.py" else []
        subprocess.run(words, check=True)


def frames(ours: dict[str, Predictor], image: np.ndarray) -> Table:
    """Image on the device in, instances on the device out; and array in, arrays out."""
    rows = []
    for predictor in ours.values():
        info = predictor.info
        images = network_input(image, info.normalization)[None].to("cuda")
        maps = predictor.engine(images)

        def whole(p: Predictor = predictor, images: torch.Tensor = images) -> object:
            return cluster(p.engine(images), p.settings, p.info.class_names)

        jobs: dict[str, Callable[[], object]] = {
            "all": whole,
            "network": partial(predictor.engine, images),
            "cluster": partial(cluster, maps, info.thresholds, info.class_names),
            "host": partial(predictor, image),
        }
        seconds = in_turns(jobs, ROUNDS)
        ms = {job: 1000 * statistics.median(times) for job, times in seconds.items()}
        slowest = 1000 * max(seconds["all"])
        rows.append(
            [
                f"{predictor.engine.name} {predictor.engine.precision}",
                f"{1000 / ms['all']:.0f}",
                f"{ms['all']:.2f} (to {slowest:.2f})",
                f"{ms['network']:.2f}",
                f"{ms['cluster']:.2f}",
                percent(ms["network"] / ms["all"]),
                f"{ms['host']:.2f}",
            ]
        )
    columns = ["engine", "frames/s", "ms", "network ms", "cluster ms", "network", "from host ms"]
    return Table(
        f"{SIZE[1]} x {SIZE[0]} px, batch 1, on {torch.cuda.get_device_name()}", columns, rows
    )


def clustering() -> Table:
    """On the device, held to be what the CPU finds."""
    rows = []
    for count in (10, 100, 1000, 10_000):
        host = scene(*SIZE, count)
        maps = Embeddings(*(m.cuda() for m in host))
        found, truth = cluster(maps)[0], cluster(host)[0]
        assert torch.equal(found.labels.cpu(), truth.labels), f"{count} objects: labels differ"
        times = in_turns({"cluster": partial(cluster, maps)}, ROUNDS)["cluster"]
        rows.append(
            [str(len(found)), f"{1000 * statistics.median(times):.2f}", f"{1000 * max(times):.2f}"]
        )
    return Table("Clustering at 1024 x 2048 px", ["objects", "ms", "slowest ms"], rows)


def losses() -> Table:
    """Loss at 1024 x 1024 px with 60 instances, forward and backward."""
    host, target = loss_benchmark.training_scene(1024, 60)
    maps = Embeddings(*(m.detach().cuda().requires_grad_() for m in host))
    target = Target(target.labels.cuda(), target.classes.cuda(), target.ignore.cuda())
    jobs, peaks = {}, {}
    for name, way in (("plain", plain_on(target)), ("ours", loss_benchmark.ours)):
        jobs[name] = partial(loss_benchmark.step, way, maps, target)
        for tensor in maps:
            tensor.grad = None  # of the way before: its memory would be used again unseen
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        jobs[name]()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    seconds = in_turns(jobs, 10)
    rows = [
        ["time, ms", *(f"{1000 * statistics.median(seconds[n]):.2f}" for n in jobs)],
        ["peak memory, MB", *(f"{peaks[n] / 1e6:.0f}" for n in jobs)],
        ["plain / ours", str(ratio(seconds["plain"], seconds["ours"])), ""],
    ]
    return Table("Loss, forward and backward", ["", *jobs], rows)


def plain_on(target: Target) -> Callable[[Embeddings, Target], torch.Tensor]:
    """The plain loss with the coordinates it makes on the device of the target."""

    def loss(maps: Embeddings, truth: Target) -> torch.Tensor:
        with torch.device(target.labels.device):
            return loss_benchmark.plain_loss(maps, truth)

    return loss


def mask_rcnn(ours: dict[str, Predictor], image: np.ndarray) -> Table:
    theirs = MaskRcnn(SIZE, torch.device("cuda"))
    jobs: dict[str, Callable[[], object]] = {"Mask R-CNN": partial(theirs, image)}
    jobs |= {name: partial(predictor, image) for name, predictor in ours.items()}
    seconds = in_turns(jobs, 20)
    rows = [
        [
            name,
            f"{1000 * statistics.median(times):.1f}",
            str(ratio(seconds["Mask R-CNN"], times)),
        ]
        for name, times in seconds.items()
    ]
    title = f"Mask R-CNN with {DETECTIONS} detections, array in and out"
    return Table(title, ["way", "ms", "times faster"], rows)


if __name__ == "__main__":
    main()
