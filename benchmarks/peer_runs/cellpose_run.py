"""Cellpose 3's residual U-Net from nothing; run by ``peers.py`` in an environment of its own.

    python cellpose_run.py DATA OUT SECONDS

The defaults of its ``train_seg``: AdamW at 0.005, weight decay 1e-5, batches of 8 crops of 224 px,
turns, flips, scales; nuclei brought to 17 px, as its own model of nuclei has it. An epoch is one
batch, and there are as many as fit: its learning rate rises over the first ten of them and, where
more than a hundred fit, falls over the last fifty. In test images the diameter is the mean one of
the training images, as Cellpose has it for a model of one's own without a size model: to fit and
to use that takes longer on one thread than a short training.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from cellpose.dynamics import labels_to_flows
from cellpose.models import CellposeModel
from cellpose.train import train_seg
from tifffile import imread, imwrite
from torch.optim.optimizer import register_optimizer_step_post_hook

DIAMETER = 17.0  # px
BATCH = 8
GREY = [0, 0]


class Spent(Exception):
    """The training has had its processor time."""


class Budget:
    """Ends the training after a step."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ended = seconds, []
        register_optimizer_step_post_hook(self.stepped)

    def stepped(self, *_: object) -> None:
        self.ended.append(time.process_time())
        if self.ended[-1] > self.seconds:
            raise Spent


def images(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: imread(p) for p in sorted(folder.glob("images/*.tif"))}


def trained(train: dict, out: Path, seconds: float) -> tuple[str, int]:
    """File of the model, and its steps."""
    budget = Budget(seconds)

    def run(epochs: int) -> None:
        train_seg(model.net, **train, channels=GREY, n_epochs=epochs, nimg_per_epoch=BATCH,
                  batch_size=BATCH, save_path=out, model_name="model")  # fmt: skip

    torch.manual_seed(0)
    model = CellposeModel(gpu=False, pretrained_model=False, diam_mean=DIAMETER)
    try:
        run(2)  # the first at a learning rate of 0, as Cellpose has it; tells how long one takes
        first, second = budget.ended
        run(2 + int((seconds - second) / (second - first)))
    except Spent:
        pass
    file = out / "models" / "model"
    model.net.save_model(file)
    return str(file), len(budget.ended)


def main() -> None:
    data, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    masks = [imread(p).astype(np.int32) for p in sorted((data / "train" / "masks").glob("*.tif"))]
    train = {
        "train_data": list(images(data / "train").values()),
        "train_labels": labels_to_flows(masks, device=torch.device("cpu")),
    }
    file, steps = trained(train, out, seconds)
    model = CellposeModel(gpu=False, pretrained_model=file)
    for name, image in images(data / "test").items():
        found = model.eval(image, channels=GREY)[0]
        imwrite(out / "labels" / f"{name}.tif", found.astype(np.uint16))
    (out / "facts.json").write_text(json.dumps({"steps": steps}))


if __name__ == "__main__":
    main()
