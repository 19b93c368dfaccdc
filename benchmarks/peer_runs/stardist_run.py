"""StarDist 2D trained as its example shows; run by ``peers.py`` in an environment of its own.

    python stardist_run.py DATA OUT SECONDS

U-Net, 32 rays, grid of 2, epochs of 100 steps of 4 patches of 256 px, flips, turns and changes of
intensity, the learning rate halved on a plateau; both thresholds from the validation images.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from keras.callbacks import Callback
from stardist import fill_label_holes
from stardist.models import Config2D, StarDist2D
from tifffile import imread, imwrite

RANDOM = np.random.default_rng(0)


class Budget(Callback):
    """Ends the training when the process has had its processor time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.steps = seconds, 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.steps += 1
        if time.process_time() > self.seconds:
            self.model.stop_training = True


def images(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: normalize(imread(p), 1, 99.8) for p in sorted(folder.glob("images/*.tif"))}


def masks(folder: Path) -> list[np.ndarray]:
    return [fill_label_holes(imread(p)) for p in sorted(folder.glob("masks/*.tif"))]


def augmented(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The augmenter of StarDist's example: flips and turns, intensity, a little noise."""
    turns = RANDOM.integers(4)
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if RANDOM.random() < 0.5:
        image, mask = image[::-1], mask[::-1]
    image = image * RANDOM.uniform(0.6, 2) + RANDOM.uniform(-0.2, 0.2)
    return image + 0.02 * RANDOM.uniform() * RANDOM.normal(size=image.shape), mask


def main() -> None:
    data, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(0)
    pairs = {part: (list(images(data / part).values()), masks(data / part))
             for part in ("train", "val")}  # fmt: skip
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=1, train_patch_size=(256, 256),
                      train_batch_size=4, train_epochs=10_000, train_steps_per_epoch=100,
                      train_tensorboard=False)  # fmt: skip
    model = StarDist2D(config, name="model", basedir=str(out))
    model.prepare_for_training()
    budget = Budget(seconds)
    model.callbacks.append(budget)
    model.train(*pairs["train"], validation_data=pairs["val"], augmenter=augmented)
    model.optimize_thresholds(*pairs["val"])
    for name, image in images(data / "test").items():
        imwrite(out / "labels" / f"{name}.tif", model.predict_instances(image)[0].astype(np.uint16))
    facts = {"steps": budget.steps, "thresholds": model.thresholds}
    (out / "facts.json").write_text(json.dumps(facts, default=float))


if __name__ == "__main__":
    main()
