"""The settings of each verb of the command line: a dataclass, whose docstrings are its --help.

Those of training are in ``training.options``. This file imports no torch, so
that ``--help`` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spatialembed.options import DataOptions, DeviceOptions, PartOptions


@dataclass(frozen=True)
class ModelsOptions:
    """Settings of ``spatialembed models``: none."""


@dataclass(frozen=True)
class DemoOptions:
    """Settings of ``spatialembed demo``."""

    out: str = "demo"
    """Folder of the results."""
    train: bool = False
    """Train a small model of shapes from scratch instead; about five minutes on two cores."""
    seed: int = 0
    """Seed of the generated pictures and of the training."""


@dataclass(frozen=True)
class EvaluateOptions(PartOptions, DeviceOptions):
    """Settings of ``spatialembed evaluate``."""

    model: str
    """Bundled name, model folder, a file inside one, or hf://OWNER/NAME@REVISION of the hub."""
    metric: Literal["ap", "cityscapes", "coco"] = "ap"
    """ap: AP of label images, TP / (TP + FP + FN) at IoU .50 to .90; cityscapes: AP of that
    benchmark; coco: mask AP as COCO defines it, for any data."""
    max_dets: int = 100
    """Detections of a class in an image that the metric coco counts, the best ones."""
    sampling: Literal["seed", "truth"] = "seed"
    """seed: as in prediction; truth: from true centres and bandwidths, without the seed map, at the
    scale that the model names also where diameter is auto."""
    diameter: str | None = None
    """As in predict: px, auto or native; null: as the model says."""
    out: str | None = None
    """Folder of report.json, and of worst.html (ap) or the benchmark's files (cityscapes); null:
    runs/evaluate/ and the name of the data, numbered."""


@dataclass(frozen=True)
class TuneOptions(PartOptions, DeviceOptions):
    """Settings of ``spatialembed tune``."""

    model: str
    """Bundled name, model folder, a file inside one, or hf://OWNER/NAME@REVISION of the hub."""
    out: str | None = None
    """Model folder to write; null: the model's own. A bundled model needs one."""
    report: str | None = None
    """Folder of tuning.png, tuning.csv and tuning.json; null: runs/tune/ and the name of the data,
    numbered."""


@dataclass(frozen=True)
class PredictOptions(DeviceOptions):
    """Settings of ``spatialembed predict``; a threshold that is null is the model's own."""

    sources: list[str]
    """Image files, folders, and globs in quotes."""
    model: str
    """Bundled name, model folder, a file inside one, or hf://OWNER/NAME@REVISION of the hub."""
    out: str
    """Folder of the results."""
    format: str = "labels,overlay,csv,coco"
    """Formats to write, with commas between: labels (NAME_labels.png, 16 bit; above 65,535
    objects a 32-bit TIFF), tiff (labels as TIFF instead), overlay (NAME_overlay.png), csv
    (objects.csv of all images), coco (instances.json of all images), geojson (NAME.geojson for
    QuPath), imagej (NAME_rois.zip for ImageJ), cityscapes (cityscapes/ with upload.zip for the
    benchmark)."""
    simplify: float = 0.0
    """Px by which outlines of geojson and imagej may depart from the pixel edges; 0 is exact."""
    augment: bool = False
    """Average over the eight turns and flips, at eight times the cost."""
    sheet: bool = False
    """Write contact sheets as well: sheet.jpg, and sheet_2.jpg and so on from 49 images on."""
    report: bool = False
    """Write report.html as well: numbers, plots, the worst and the best, links to the overlays."""
    ambiguity: bool = False
    """Write NAME_ambiguity.png as well: 255 times how near each pixel came to another answer."""
    pages: Literal["first", "all"] = "first"
    """For a TIFF of several pages: the first page, or each as an image NAME_p0001 and so on."""
    max_pixels: int = 1 << 28
    """Images of more pixels are predicted by tiles; pages of --pages all, and images of more
    bytes than 8-bit RGB of that many pixels, are refused."""
    diameter: str | None = None
    """Diameter of the objects in px: images are scaled so that the network sees them as large as
    those it was trained on; auto: each image is tried at smaller scales too, and the best is
    kept; native: the scale of the model; null: as the model says. Tiled images: native."""
    channel: int | str | None = None
    """Channel of the images that is read: its number from 1, its name (OME, ImageJ, OME-Zarr), max
    or sum of all; all: colours as they are; null: as the model was trained."""
    batch: int = 8
    """Images of one size that go through the network together."""
    scale: float = 1.0
    """Factor in (0, 1] to reduce images by; results are enlarged again. Quicker on huge images."""
    memory: float = 3.0
    """Process memory in GB; an image that needs more goes through the network tile by tile."""
    tile: int | None = None
    """Side of the tiles in px; larger images are tiled. null: as large as the memory allows."""
    context: int = 128
    """Pixels around a tile that the network sees as well, as it sees them; 624 is exact, or 224 of
    the network lite."""
    tiled_labels: Literal["tiff", "zarr"] = "tiff"
    """Label file of a tiled image: a tiled TIFF or an OME-Zarr."""
    foreground: float | None = None
    """A pixel takes part if its seed is above this."""
    start: float | None = None
    """A pixel can start an instance if its seed is at least this."""
    membership: float | None = None
    """A pixel belongs to a seed if its phi is above this."""
    min_pixels: int | None = None
    """An instance has more pixels of the image than this, whatever --scale. The model's own counts
    pixels of the reduced image, where objects have the size that it was tuned for."""
    min_free: float | None = None
    """More than this share of an instance's pixels must not belong to a better one."""
    max_instances: int | None = None
    """Stop after this many instances in an image."""


@dataclass(frozen=True)
class BenchOptions:
    """Settings of ``spatialembed bench``."""

    model: str = "nuclei"
    """Bundled name, model folder, a file inside one, or hf://OWNER/NAME@REVISION of the hub."""
    sizes: str = "256,512"
    """Images to time, height x width in px, as 1024x2048, or one side of squares, with commas
    between."""
    engines: str = "torch:float32,torch,onnxruntime,openvino"
    """As in predict, with a precision after a colon; those not installed are left out. compiled
    is available too, and takes a minute longer."""
    rounds: int = 3
    """Runs of each stage after a first one."""
    out: str = "runs/bench"
    """Folder of bench.json."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """Processor threads; null leaves it to torch."""


@dataclass(frozen=True)
class DoctorOptions(DataOptions):
    """Settings of ``spatialembed doctor``."""

    data: str
    """Folder of images/ and masks/, flat or under train/, val/ and test/."""
    out: str | None = None
    """Folder of the page, the report and the settings to train with; null: runs/doctor/NAME."""
    timing: bool = True
    """Time some training steps, to tell how long the recommended training takes here."""


@dataclass(frozen=True)
class ExportOptions:
    """Settings of ``spatialembed export``."""

    model: str
    """Bundled name, model folder, a file inside one, or hf://OWNER/NAME@REVISION of the hub."""
    out: str
    """File to write, such as nuclei.onnx, or nuclei.zip of bioimageio."""
    format: Literal["onnx", "bioimageio"] = "onnx"
    """Of the file: onnx, opset 18; bioimageio: a package of bioimage.io, the maps as ONNX and the
    clustering in numpy."""
    precision: Literal["float32", "float16"] = "float32"
    """Of weights and convolutions; geometry, input and output are always float32."""
    check: bool = False
    """Compare maps and instances with torch at five sizes, and write FILE.check.json; of onnx."""
    sample: str | None = None
    """Image of the test tensors of bioimageio, of which the middle is taken; null: a picture of the
    package."""


@dataclass(frozen=True)
class ConvertOptions:
    """Settings of ``spatialembed convert``."""

    file: str
    """Car checkpoint that the authors of the paper released; nothing in it is executed."""
    out: str
    """Model folder to write."""


@dataclass(frozen=True)
class LayoutOptions:
    """Settings of ``spatialembed data convert``."""

    source: str
    """File or folder of labelme, YOLO segmentation, CVAT for images, Label Studio or COCO, or of
    folders with a mask file for each object."""
    out: str
    """Folder of images/, masks/ and classes.csv to write, or of train/, val/ and test/ where the
    source has such parts."""
    kind: Literal["labelme", "yolo", "cvat", "label-studio", "one-mask-each", "coco"] | None = None
    """The layout; null: found out."""
    images: str | None = None
    """Folder of the images; null: beside the annotations."""
    max_pixels: int = 1 << 28
    """Refuse images of more pixels, or of more bytes than 8-bit RGB of that many pixels."""


@dataclass(frozen=True)
class ScenesOptions:
    """Settings of ``spatialembed data scenes``."""

    out: str
    """Folder of images/ and masks/ to write."""
    kind: Literal["nuclei", "shapes"] = "nuclei"
    """Fluorescence fields of nuclei, or grey photographs of plain shapes."""
    images: int = 100
    """Number of images."""
    size: str = "256"
    """Height x width in px, as 520x696, or one side of squares."""
    seed: int = 0
    """Image i follows from (seed, i)."""


@dataclass(frozen=True)
class StreetsOptions:
    """Settings of ``spatialembed data streets``."""

    out: str
    """Folder to write in the layout of Cityscapes: leftImg8bit/ and gtFine/, train and val."""
    images: int = 100
    """Number of images; a fifth of them is val."""
    size: str = "1024x2048"
    """Height x width in px."""
    seed: int = 0
    """Image i follows from (seed, i)."""
