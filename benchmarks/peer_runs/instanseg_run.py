"""InstanSeg trained by its own function; run by ``peers.py`` in an environment of its own.

    python instanseg_run.py DATA OUT SECONDS

Its defaults: U-Net of widths 32 to 256, batches of 3 tiles of 256 px, flips and turns, Adam at
1e-3, the losses of its hot start for the first 10,000 tiles. Epochs are so much shorter than its
1000 tiles that about eight fit; the weights of the best one on validation tiles, from the sixth on.
Thresholds from some validation images by its own search.
"""

import json
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from instanseg.scripts.train import instanseg_training
from instanseg.utils import AI_utils
from instanseg.utils.augmentations import Augmentations
from instanseg.utils.loss.instanseg_loss import InstanSeg
from instanseg.utils.model_loader import load_model
from instanseg.utils.tiling import _instanseg_padding, _recover_padding
from tifffile import imread, imwrite
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils import data as torch_data

SECONDS_A_TILE = 12  # of the training, for a tile of an epoch: on one thread eight epochs fit
HOT = 10_000  # tiles
CHOOSING = 10  # validation images for the thresholds
SEARCHES = 10


class Spent(Exception):
    """The training has had its processor time."""


class Budget:
    """Ends the training after a step; validation does not count."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps = seconds, 0
        self.validate = AI_utils.test_epoch
        AI_utils.test_epoch = self.validated
        register_optimizer_step_post_hook(self.stepped)

    def validated(self, *args: object, **options: object) -> tuple:
        began = time.process_time()
        result = self.validate(*args, **options)
        self.seconds += time.process_time() - began
        return result

    def stepped(self, *_: object) -> None:
        self.steps += 1
        if time.process_time() > self.seconds:
            raise Spent


class InProcess(torch_data.DataLoader):
    """Makes the tiles in this process, whose time is counted; InstanSeg asks for other ones."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options | {"num_workers": 0, "persistent_workers": False})


def pairs(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    paths = sorted(folder.glob("images/*.tif"))
    return [(imread(p), imread(folder / "masks" / p.name).astype(np.int32)) for p in paths]


def items(folder: Path) -> list[dict]:
    about = {"parent_dataset": "nuclei", "image_modality": "Fluorescence", "pixel_size": None}
    return [about | {"image": image, "nucleus_masks": mask} for image, mask in pairs(folder)]


def trained(data: Path, out: Path, seconds: float) -> int:
    """Train into ``out``/model; returns the steps."""
    budget = Budget(seconds)
    epoch = max(30, int(seconds / SECONDS_A_TILE))
    torch_data.DataLoader = InProcess
    sys.argv = sys.argv[:1]  # which InstanSeg would parse
    with suppress(Spent):
        instanseg_training(
            {"Train": items(data / "train"), "Validation": items(data / "val")},
            source_dataset="[nuclei]", output_path=str(out), experiment_str="model",
            length_of_epoch=epoch, num_epochs=100_000, hotstart_training=HOT // epoch,
            device="cpu", on_cluster=True, rng_seed=1,
        )  # fmt: skip
    return budget.steps


@torch.inference_mode()
def labels(image: torch.Tensor, model: torch.nn.Module, postprocess: partial) -> np.ndarray:
    padded, pad = _instanseg_padding(image, min_dim=32)
    output = _recover_padding(model(padded[None]), pad).squeeze(0)
    return postprocess(output).squeeze().numpy()


def main() -> None:
    data, out, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    steps = trained(data, out, seconds)
    model, facts = load_model(folder="model", path=str(out))
    model.eval()
    method = InstanSeg(device="cpu", n_sigma=facts["n_sigma"], window_size=facts["window_size"])
    method.initialize_pixel_classifier(model)
    augmentations = Augmentations(dim_in=facts["dim_in"], shape=None)

    def prepared(image: np.ndarray, mask: np.ndarray | None = None) -> tuple:
        tensors = augmentations.to_tensor(image, mask, normalize=True)
        return augmentations.duplicate_grayscale_channels(*tensors)

    val = pairs(data / "val")
    some = [prepared(*val[i]) for i in np.linspace(0, len(val) - 1, CHOOSING).astype(int)]
    thresholds = AI_utils.optimize_hyperparameters(
        model, method.postprocessing, val_images=[image for image, _ in some],
        val_labels=[mask for _, mask in some], max_evals=SEARCHES, device="cpu",
        show_progressbar=False,
    )  # fmt: skip
    # An image with more seeds than 2000, InstanSeg's own limit, comes back empty.
    postprocess = partial(method.postprocessing, **thresholds)
    for path in sorted((data / "test" / "images").glob("*.tif")):
        found = labels(prepared(imread(path))[0], model, postprocess)
        imwrite(out / "labels" / path.name, found.astype(np.uint16))
    (out / "facts.json").write_text(json.dumps({"steps": steps, "thresholds": thresholds}))


if __name__ == "__main__":
    main()
