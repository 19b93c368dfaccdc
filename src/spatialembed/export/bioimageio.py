"""A model as a package of bioimage.io, a zip that programs of its community run.

    image -> percentiles (scale_range) -> ONNX: the three maps as one tensor
          -> ``bioimageio_cluster.py``, shipped inside, with numpy alone -> objects

Two things cannot be said in that format and are left out: the noise floor of a normalisation, which
shows in images with next to no objects, and the search for a scale (diameter "auto").
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from spatialembed import errors
from spatialembed.errors import MODEL, USAGE, SpatialEmbedError, require
from spatialembed.export.bioimageio_cluster import Clustering
from spatialembed.export.export import Precision, export_onnx, metadata
from spatialembed.export.frame import outside
from spatialembed.files import atomic_write, check_writable
from spatialembed.generated.nuclei_and_shapes import nuclei_field, shapes_scene
from spatialembed.images.read import read_image
from spatialembed.images.write import write_png
from spatialembed.inference.bundled import CARD, summary_of
from spatialembed.inference.engines.onnx import INPUT, OPSET, session
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method.normalization import network_input, to_tensor
from spatialembed.pictures.drawing import display, overlay
from spatialembed.types import Instances

SAMPLE_PX = 256
"""Sides of the image of the test tensors, at most."""
WEIGHTS, SCRIPT, DESCRIPTION = "maps.onnx", "bioimageio_cluster.py", "rdf.yaml"
CITE = {
    "text": "Neven et al.: Instance Segmentation by Jointly Optimizing Spatial Embeddings and "
    "Clustering Bandwidth. CVPR 2019",
    "doi": "10.1109/CVPR.2019.00904",
}
USE = """
## Validation

The test tensors are an image of the package and what this model finds in it: {count} objects. Their
labels are those of spatialembed itself. `spatialembed evaluate` validates the model on images with
label masks; figures, if there are any, stand above.

## Use

Input: one image, R, G and B (grey: three times the same), best in [0, 1], whole: objects are found
all over it, so tiles of it would be numbered anew. Output, by channel, 0 where no object is: the
label 1..N by descending score, the score, the class ({classes}), the expected IoU{known}, then the
network's seed maps. The postprocessing is the file {script} in this package; programs ask before
they run such files. The noise floor of the normalisation and the search for a scale are left out.
"""


@dataclass(frozen=True)
class PackageReport:
    """What became of an export."""

    path: Path
    objects: int  # in the test image
    differing: int  # px of it whose label is not that of ``Predictor``
    licence: str  # of the weights

    @property
    def passed(self) -> bool:
        """Whether the package finds the objects that the model finds."""
        return self.differing == 0

    def lines(self) -> list[str]:
        """The report, for the terminal."""
        size = self.path.stat().st_size / 1e6
        same = "those of torch" if self.passed else f"{self.differing} px DIFFER from torch"
        return [
            f"{self.path}: bioimage.io, {size:.1f} MB; licence of the weights: {self.licence}",
            f"valid; labels of {self.objects} objects in its test image: {same}",
        ]


def export_bioimageio(
    predictor: Predictor,
    path: str | Path,
    *,
    name: str,
    card: str = "",
    precision: Precision = "float32",
    sample: str | Path | None = None,
) -> PackageReport:
    """Write a model as a package of bioimage.io, of format 0.5.10, and validate it.

    Args:
        predictor: A model whose engine keeps its network, as "torch" does.
        path: File to write, ending in .zip.
        name: Of the model.
        card: Text of its card, Markdown.
        precision: As of ``export_onnx``.
        sample: Image file for the test tensors, of which the middle is taken; None: the picture of
            the package in which the model finds most.

    Returns:
        The report.

    Raises:
        SpatialEmbedError: As ``export_onnx``; those of ``read_image``; ``bad_model`` (exit 4) where
            the validator of bioimage.io refuses the model's facts, such as its licence.
    """
    path = _checked(path)
    predictor = Predictor(predictor.engine, predictor.info, "native")
    pixels, found = _test_image(predictor, sample)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _write_weights(predictor, root, precision)
        shutil.copy(str(resources.files("spatialembed") / "export" / SCRIPT), root)
        objects = _write_tensors(predictor.info, root, pixels)
        picture = np.hstack([display(pixels), overlay(pixels, found.labels)])
        write_png(root / "cover.png", picture)
        classes = ", ".join(f"{c} {n}" for c, n in enumerate(predictor.info.class_names))
        known = "" if predictor.info.calibration else " (not known: 0)"
        use = USE.format(count=len(found), classes=classes, known=known, script=SCRIPT)
        (root / CARD).write_text((card or f"# {name}\n") + use, encoding="utf-8")
        facts = _description(predictor.info, root, name, precision)
        with atomic_write(path) as temporary:
            _package(facts, root, temporary)
    differing = int(np.count_nonzero(objects[0, 0] != found.labels))
    licence = str(predictor.info.training.get("licence", "not stated"))
    return PackageReport(path, len(found), differing, licence)


def _checked(path: str | Path) -> Path:
    """The path, once what can be refused beforehand is fine."""
    require("bioimageio", "bioimageio", "a package of bioimage.io")
    path, remedy = Path(path), "choose another file by --out"
    if path.is_dir():
        raise SpatialEmbedError("not_writable", f"{path}: is a folder", remedy, USAGE)
    named = path.suffix.lower() == ".zip"
    errors.check(named, f"--out {path}: the package is a zip", "give it a name that ends in .zip")
    check_writable(path.parent, remedy)
    return path


def _test_image(predictor: Predictor, sample: str | Path | None) -> tuple[np.ndarray, Instances]:
    """Pixels (H, W) or (H, W, 3) uint8 or uint16, and what the model finds in them."""
    candidates = _pictures() if sample is None else iter([_middle(read_image(sample))])
    found = [(pixels, predictor(pixels)) for pixels in candidates]
    return max(found, key=lambda pair: len(pair[1]))


def _pictures() -> Iterator[np.ndarray]:
    """Those of the server's page, and generated ones."""
    examples = resources.files("spatialembed") / "serve" / "examples"
    for number in (1, 2, 3):
        yield _middle(read_image(str(examples / f"{number}.png")))
    for draw in (nuclei_field, shapes_scene):
        yield draw(SAMPLE_PX, SAMPLE_PX, seed=0).image


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The middle square, of SAMPLE_PX at most."""
    side = min(SAMPLE_PX, *pixels.shape[:2])
    top, left = ((whole - side) // 2 for whole in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _write_weights(predictor: Predictor, root: Path, precision: Precision) -> None:
    """The maps as one tensor (B, 4 + C, H, W), of a circular model the precision twice."""
    import onnx

    model = onnx.load(export_onnx(predictor, root / WEIGHTS, precision=precision))
    offset, log_precision, seed = (output.name for output in model.graph.output)
    both = [log_precision] * (1 if predictor.info.elliptical else 2)
    model.graph.node.append(
        onnx.helper.make_node("Concat", [offset, *both, seed], ["maps"], name="maps", axis=1)
    )
    channels = 4 + len(predictor.info.class_names)
    shape: list[str | int | None] = ["batch", channels, "height", "width"]
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("maps", onnx.TensorProto.FLOAT, shape)
    )
    onnx.checker.check_model(model, full_check=True)
    (root / WEIGHTS).write_bytes(model.SerializeToString())


def _write_tensors(info: ModelInfo, root: Path, pixels: np.ndarray) -> np.ndarray:
    """The test tensors, image and objects (1, 4 + C, H, W) float32; returns the second."""
    running = session(str(root / WEIGHTS), None, "a package of bioimage.io")
    seen = network_input(pixels, outside(info.normalization))[None]
    (maps,) = running.run(["maps"], {INPUT: seen.contiguous().numpy()})
    objects = Clustering(**_settings(info))(maps)
    np.save(root / "image.npy", to_tensor(pixels).contiguous().numpy()[None])
    np.save(root / "objects.npy", objects)
    return objects


def _settings(info: ModelInfo) -> dict[str, Any]:
    """Of ``Clustering``."""
    known = info.calibration
    calibrated = {"mean_seeds": list(known.mean_seeds), "ious": list(known.ious)} if known else {}
    return asdict(info.thresholds) | calibrated


def _description(info: ModelInfo, root: Path, name: str, precision: Precision) -> dict[str, Any]:
    """The facts of rdf.yaml."""
    how, licence = info.normalization, str(info.training.get("licence", "not stated"))
    steps: list[dict[str, Any]] = []
    if how.kind == "percentile":
        percentiles = {"min_percentile": how.low, "max_percentile": how.high}
        kwargs = {"axes": ["y", "x"], **percentiles, "eps": 1e-20}  # as ``normalize``
        steps.append({"id": "scale_range", "kwargs": kwargs})
        if how.ceiling is not None:
            steps.append({"id": "clip", "kwargs": {"max": how.ceiling}})
    seeds = [f"seed_{c}" for c in range(len(info.class_names))]
    script = root / SCRIPT
    clustering = {
        "id": "custom",
        "callable": Clustering.__name__,
        "source": SCRIPT,
        "sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
        "kwargs": _settings(info),
    }
    facts = metadata(info, precision)
    facts = {key: facts[key] for key in ("network", "class_names", "scale", "training")}
    return {
        "type": "model",
        "format_version": "0.5.10",
        "name": f"spatialembed {name}",
        "description": summary_of(root) or f"Instances of {', '.join(info.class_names)}.",
        "authors": [{"name": "The spatialembed developers"}],
        "cite": [CITE],
        **({} if licence == "not stated" else {"license": licence.replace(" ", "-")}),
        "documentation": CARD,
        "covers": ["cover.png"],
        "tags": ["instance-segmentation", "2d", "pytorch", "spatialembed", name],
        "inputs": [
            {
                "id": "image",
                "axes": _axes(["red", "green", "blue"], {"min": 32, "step": 1}),
                "data": {"type": "float32"},
                "test_tensor": {"source": "image.npy"},
                "preprocessing": steps,
            }
        ],
        "outputs": [
            {
                "id": "objects",
                "axes": _axes(["label", "score", "class_index", "expected_iou", *seeds], None),
                "data": {"type": "float32"},
                "test_tensor": {"source": "objects.npy"},
                "postprocessing": [clustering],
            }
        ],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": OPSET}},
        "config": {"spatialembed": json.loads(json.dumps(facts))},
    }


def _axes(channels: list[str], size: dict[str, int] | None) -> list[dict[str, Any]]:
    """Of a tensor (batch, channel, y, x); size None: that of the image."""
    first: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "channel_names": channels},
    ]
    of_image = ({"tensor_id": "image", "axis_id": i} for i in ("y", "x"))
    return first + [
        {"type": "space", "id": i, "size": size or of}
        for i, of in zip(("y", "x"), of_image, strict=True)
    ]


def _package(facts: dict[str, Any], root: Path, path: Path) -> None:
    """Validate and write the zip. Raises SpatialEmbedError ``bad_model``."""
    from bioimageio.spec import (
        InvalidDescr,
        ValidationContext,
        build_description,
        save_bioimageio_package,
    )

    context = ValidationContext(root=root, file_name=DESCRIPTION, log_warnings=False)
    described = build_description(facts, context=context)
    if isinstance(described, InvalidDescr):
        reason = " ".join(str(described.get_reason()).split())
        what = f"not valid for bioimage.io: {reason}"
        raise SpatialEmbedError("bad_model", what, "correct model.json, or its card", MODEL)
    save_bioimageio_package(described, output_path=path)
