"""The command line: a function for each verb, the choice of one, and how it ended.

A verb opens its inputs, hands them to the part that does the work, names the results and returns
an exit code. The parts are imported late: torch takes seconds, and --help needs none.

Exit codes: 0 fine, 2 usage or configuration, 3 input, 4 model or checkpoint, 5 out of disk or
memory, 6 done but some inputs failed, 130 and 143 interrupted and saved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spatialembed import __version__
from spatialembed.bulk.options import BulkOptions
from spatialembed.command.options import (
    BenchOptions,
    ConvertOptions,
    DemoOptions,
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    LayoutOptions,
    ModelsOptions,
    PredictOptions,
    ScenesOptions,
    StreetsOptions,
    TuneOptions,
)
from spatialembed.command.session import (
    escape_output,
    of_system,
    plain_messages,
    stop_on_sigterm,
    tell,
)
from spatialembed.console import console
from spatialembed.errors import MODEL, USAGE, SpatialEmbedError, check, missing_extra, nearest
from spatialembed.files import check_writable, free_name, new_folder
from spatialembed.serve.options import ServeOptions

if TYPE_CHECKING:
    from spatialembed.data.dataset import FileDataset
    from spatialembed.inference.predictor import Predictor
    from spatialembed.training.options import TrainOptions

SOURCES = 20
"""Inputs that the page of a prediction names."""


def demo(options: DemoOptions) -> int:
    """Show the bundled models at work, on a generated field of nuclei and a photograph of coins."""
    from spatialembed.command.demo import demo as run
    from spatialembed.command.demo import train_demo

    out = Path(options.out)
    check_writable(out)
    if options.train:
        name = free_name(out / "runs", "shapes")
        with _resumable(out / "runs" / name):
            train_demo(out, name, seed=options.seed)
    else:
        run(out, seed=options.seed)
    return 0


def doctor(options: DoctorOptions) -> int:
    """Look at a data set before training: faults, plots, samples, settings to train with."""
    from spatialembed.data.open import data_name
    from spatialembed.doctor.doctor import doctor as run
    from spatialembed.doctor.findings import table

    out = options.out or Path("runs", "doctor", data_name(options.data))
    result = run(options.data, out, options, timing=options.timing)
    console(stderr=False).print(table(result.findings))
    if result.advice and result.quick and result.timing:
        print(f"recommended.yaml takes {result.timing.words(result.advice)}")
        print(f"quick.yaml takes {result.timing.words(result.quick)}")
    settings = ", recommended.yaml, quick.yaml" if result.advice else ""
    print(f"{out}: {result.tally}; index.html, report.json{settings}")
    return result.exit_code


def train(options: TrainOptions) -> int:
    """Train a model on images with label masks or COCO annotations."""
    from spatialembed.data.open import data_name
    from spatialembed.inference.model_file import load
    from spatialembed.training.run_folder import rank

    if not options.resume and options.name is None:  # named here, to be told to who interrupts
        options = replace(options, name=free_name(Path(options.out), data_name(options.data)))
    folder = Path(options.resume or Path(options.out) / str(options.name))
    with _resumable(folder):
        from spatialembed.training.train import train as run

        run(options)
    if rank() == 0:  # of several processes that train together, one reports
        validated = load(folder / "model")[1].training.get("validation_ap") is not None
        which = "best" if validated else "last"
        print(f"{folder}: curves.png, samples/, metrics.csv; the {which} model is {folder}/model")
    return 0


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Train; it needs its extra, and a signal may interrupt it until it is resumed."""
    try:
        from spatialembed.training.callbacks import Interrupted
    except ModuleNotFoundError as error:
        if str(error.name).startswith("spatialembed"):
            raise
        raise missing_extra(str(error.name), "train", "training") from error
    try:
        yield
    except Interrupted as stop:
        print(f"interrupted; continue with: spatialembed train --resume {folder}", file=sys.stderr)
        raise SystemExit(stop.exit_code) from stop


def models(_: ModelsOptions) -> int:
    """List the models that can be named: bundled ones, and those in the cache of the hub."""
    from spatialembed.command.models import choices

    print(choices())
    return 0


def evaluate(options: EvaluateOptions) -> int:
    """Score a model on images with masks: AP, F1, PQ; or the AP of Cityscapes or COCO."""
    from spatialembed.evaluation.evaluate import FILES, check_metric
    from spatialembed.evaluation.evaluate import evaluate as run

    dataset = _dataset(options)
    check_metric(options.metric, dataset)
    predictor, dataset = _scorer(options, dataset, options.diameter)
    out = _report_folder(options.out, "evaluate", options.data)
    report = run(
        predictor,
        dataset,
        options.metric,
        sampling=options.sampling,
        max_dets=options.max_dets,
        out=out,
    )
    report.write(out)
    console(stderr=False).print(report.table())
    print(f"{out}: {', '.join(FILES[options.metric])}")
    if not report.objects:
        what = f"{options.data}: no object in {len(dataset)} images that a detection could match"
        raise SpatialEmbedError("no_objects", what, "check the masks with spatialembed doctor")
    return 0


def tune(options: TuneOptions) -> int:
    """Choose a model's thresholds on images with masks, and calibrate it there."""
    from spatialembed.data.open import data_name
    from spatialembed.data.splitting import group_keys
    from spatialembed.evaluation import tune as tuning

    folder = tuning.prepare(options.model, options.out)
    predictor, dataset = _scorer(options, _dataset(options))
    groups = group_keys(dataset, options.group_by) if options.group_by else None
    report = _report_folder(options.report, "tune", options.data)
    result = tuning.tune(predictor, dataset, groups=groups)
    tuning.write_report(result, report)
    tuning.save(result, options.model, folder, data_name(options.data))
    console(stderr=False).print(tuning.table(result))
    new = [("thresholds", result.pays), ("calibration", result.fitted is not None)]
    said = " and ".join(what for what, written in new if written)
    print(f"{folder}: {said or 'only the record of the tuning'} written")
    print(f"{report}: tuning.png, tuning.csv, tuning.json")
    return 0


def _dataset(options: EvaluateOptions | TuneOptions) -> FileDataset:
    """The images to score on: a part of a folder by name, by the split of training, or all."""
    from spatialembed.data.label_checks import check_labels
    from spatialembed.data.open import described, select
    from spatialembed.inference.model_file import load

    record, part = None, options
    try:
        info = load(options.model)[1]
        record = info.split
        if part.channel is None:
            part = replace(part, channel=info.channel)
    except SpatialEmbedError:  # reported when all else is fine, and nothing of its record
        if options.group_by is None:  # which alone means --split val
            part = replace(part, split=options.split or "all")
    dataset = select(part, record)
    check_labels(dataset)
    print(described(options.data, dataset))
    return dataset


def _scorer(
    options: EvaluateOptions | TuneOptions, dataset: FileDataset, diameter: str | None = None
) -> tuple[Predictor, FileDataset]:
    """The model, which takes images of any size, and the data with its classes."""
    from spatialembed.data.open import with_classes_of
    from spatialembed.inference.predict_folder import pixels_of
    from spatialembed.inference.predictor import load_for
    from spatialembed.inference.tiling import TiledEngine

    pixels = pixels_of([dataset.image_path(i) for i in range(len(dataset))])
    predictor = load_for(options.model, options, pixels, diameter, options.channel)
    predictor.engine = TiledEngine(predictor.engine, predictor.info.network)
    return predictor, with_classes_of(predictor.info.class_names, dataset)


def _report_folder(given: str | None, verb: str, data: str) -> Path:
    """The folder that is given, or a new one in runs/, so that no report is overwritten."""
    from spatialembed.data.open import data_name

    if given is None:
        return new_folder(Path("runs", verb), data_name(data))
    check_writable(Path(given))
    return Path(given)


def predict(options: PredictOptions) -> int:
    """Detect the instances in images: label images, overlays, a table, COCO JSON and more."""
    from spatialembed.inference.predict_folder import job_pixels, predict_folder
    from spatialembed.inference.predictor import load_for
    from spatialembed.inference.tiling import TileOptions
    from spatialembed.pictures.html import counted
    from spatialembed.results.formats import chosen

    formats = chosen(options.format)
    tiles = TileOptions(
        options.tile, options.context, options.memory, options.scale, options.tiled_labels
    )
    pixels = job_pixels(options.sources, options.out) * options.scale**2
    pixels *= 8 if options.augment else 1
    predictor = load_for(options.model, options, pixels, options.diameter, options.channel)
    thresholds = predictor.options(
        foreground=options.foreground,
        start=options.start,
        membership=options.membership,
        # In pixels of the image; the model's own counts those that the network sees.
        min_pixels=options.min_pixels and int(options.min_pixels * options.scale**2),
        min_free=options.min_free,
        max_instances=options.max_instances,
    )
    predictor.max_pixels = options.max_pixels
    sources = [str(source) for source in options.sources]
    more = [f"and {len(sources) - SOURCES} more"] * (len(sources) > SOURCES)
    about = {
        "spatialembed": __version__,
        "model": options.model,
        "weights": predictor.info.weights_sha256,
        "engine": predictor.engine.name,
        "precision": predictor.engine.precision,
        "device": predictor.device,
        **asdict(thresholds),
        **{n: getattr(options, n) for n in ("format", "simplify", "augment", "pages", "scale")},
        **({} if predictor.channel is None else {"channel": predictor.channel}),
        "sources": ", ".join(sources[:SOURCES] + more),
    }
    result = predict_folder(
        predictor,
        options.sources,
        options.out,
        pages=options.pages,
        batch=options.batch,
        augment=options.augment,
        options=thresholds,
        ambiguity=options.ambiguity,
        tiles=tiles,
        formats=formats,
        simplify=options.simplify,
        sheet=options.sheet,
        report=about if options.report else None,
    )
    failed = f", {len(result.failed)} failed" if result.failed else ""
    tally = f"{counted(result.objects, 'object')} in {counted(result.images, 'image')}"
    print(f"{result.out}: {tally}{failed}")
    return result.exit_code


def bulk(options: BulkOptions) -> int:
    """Detect the instances in any number of images, on all cores or on Ray; resumable."""
    from spatialembed.bulk import run
    from spatialembed.pictures.html import counted

    result = run(options)
    failed = f", {result.failed} failed, see failed.csv" if result.failed else ""
    tally = f"{counted(result.objects, 'object')} in {counted(result.images, 'image')}"
    print(f"{result.out}: {tally}{failed}")
    return result.exit_code


def export(options: ExportOptions) -> int:
    """Write a model for other programs: as one ONNX file, or as a package of bioimage.io."""
    from spatialembed.export.export import export as run
    from spatialembed.inference.predictor import load

    packaged = options.format == "bioimageio"
    check(not (packaged and options.check), "--check with bioimageio", "it is always checked")
    check(packaged or not options.sample, "--sample with onnx", "give --format bioimageio")
    predictor = load(options.model, device="cpu", engine="torch", precision="float32")
    if packaged:
        return _export_package(options, predictor)
    report = run(predictor, options.out, precision=options.precision, check=options.check)
    if report.comparisons:
        console(stderr=False).print(report.table())
    print("\n".join(report.lines()))
    return 0 if report.passed else MODEL


def _export_package(options: ExportOptions, predictor: Predictor) -> int:
    from spatialembed.export.bioimageio import export_bioimageio
    from spatialembed.inference.model_file import card_of

    report = export_bioimageio(
        predictor,
        options.out,
        name=Path(options.model.partition("@")[0]).name,
        card=card_of(options.model),
        precision=options.precision,
        sample=options.sample,
    )
    print("\n".join(report.lines()))
    return 0 if report.passed else MODEL


def bench(options: BenchOptions) -> int:
    """Time every stage of prediction on this machine, engine by engine."""
    from spatialembed.command.bench import bench as run

    report = run(
        options.model,
        sizes=[_size(size) for size in options.sizes.split(",")],
        engines=options.engines.split(","),
        rounds=options.rounds,
        device=options.device,
        threads=options.threads,
    )
    console(stderr=False).print(report.table())
    print(report.write(options.out))
    return 0


def serve(options: ServeOptions) -> int:
    """Answer images over HTTP, and show a page to drop them on."""
    try:
        from spatialembed.serve.server import serve as run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("spatialembed"):
            raise
        raise missing_extra(str(error.name), "serve", "serving") from error
    return run(options)


def convert(options: ConvertOptions) -> int:
    """Make a model folder of the released car checkpoint."""
    from spatialembed.inference.convert import convert as run
    from spatialembed.inference.model_file import load

    folder = run(options.file, options.out)
    _, info = load(folder)
    licence = info.training["licence"]
    print(f"{folder}: {', '.join(info.class_names)}; licence of the weights: {licence}")
    return 0


def layout(options: LayoutOptions) -> int:
    """Convert data of labelme, YOLO, CVAT, Label Studio and others into images/ and masks/."""
    from spatialembed.data.layouts.convert import convert as run

    found = run(
        options.source,
        options.out,
        kind=options.kind,
        images=options.images,
        max_pixels=options.max_pixels,
    )
    print("\n".join(found.lines()))
    return found.exit_code


def scenes(options: ScenesOptions) -> int:
    """Write generated images with exact masks, to train and test on."""
    from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder

    dataset = SyntheticDataset(options.kind, _size(options.size), options.images, options.seed)
    check_writable(Path(options.out))
    write_folder(dataset, options.out)
    print(f"{options.out}: {len(dataset)} images and masks")
    return 0


def streets(options: StreetsOptions) -> int:
    """Write generated street scenes with exact truth in the layout of Cityscapes."""
    from spatialembed.generated.streets import write_streets

    size_hw = _size(options.size)
    check_writable(Path(options.out))
    write_streets(options.out, options.images, size_hw, options.seed)
    print(f"{options.out}: {options.images} streets in leftImg8bit/ and gtFine/")
    return 0


def _size(text: str) -> tuple[int, int]:
    """(height, width) in px of "520x696" or "256"."""
    height, _, width = text.partition("x")
    sides = height, width or height
    if not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise SpatialEmbedError(
            "bad_setting", f"size is {text}", "give px as 256 or, height first, 520x696", USAGE
        )
    return int(sides[0]), int(sides[1])


# ---------------------------------------------------------------- the choice of a verb


class Verb(NamedTuple):
    """A function, the type of its settings, and which of these are given without a flag."""

    run: Callable[[Any], int]
    settings: Callable[[], type]  # called late: those of training import torch
    positional: str = ""

    @property
    def help(self) -> str:
        """The first words of ``--help``."""
        return str(self.run.__doc__)


def _train_options() -> type:
    from spatialembed.training.options import TrainOptions

    return TrainOptions


VERBS = {
    "demo": Verb(demo, lambda: DemoOptions),
    "models": Verb(models, lambda: ModelsOptions),
    "doctor": Verb(doctor, lambda: DoctorOptions, "data"),
    "train": Verb(train, _train_options),
    "evaluate": Verb(evaluate, lambda: EvaluateOptions),
    "tune": Verb(tune, lambda: TuneOptions),
    "predict": Verb(predict, lambda: PredictOptions, "sources"),
    "bulk": Verb(bulk, lambda: BulkOptions, "sources"),
    "serve": Verb(serve, lambda: ServeOptions),
    "export": Verb(export, lambda: ExportOptions),
    "bench": Verb(bench, lambda: BenchOptions),
    "convert": Verb(convert, lambda: ConvertOptions, "file out"),
    "data convert": Verb(layout, lambda: LayoutOptions, "source"),
    "data scenes": Verb(scenes, lambda: ScenesOptions),
    "data streets": Verb(streets, lambda: StreetsOptions),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the process; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    escape_output()
    with stop_on_sigterm(), plain_messages():
        try:
            code = _dispatch(words)
            sys.stdout.flush()  # a reader that has gone is found here, not at exit
            return code
        except SpatialEmbedError as error:
            return tell(error)
        except BrokenPipeError:  # who read our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (OSError, MemoryError) as error:
            return tell(of_system(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except SystemExit as stop:
            return int(stop.code or 0)


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else USAGE
    if words[0] == "--version":
        print(f"spatialembed {__version__}")
        return 0
    name = next((n for n in VERBS if words[: n.count(" ") + 1] == n.split()), None)
    from spatialembed.command.arguments import parse

    if name is None:
        given = " ".join(word for word in words[:2] if not word.startswith("-"))
        best = nearest(given, list(VERBS))
        if not best and words[0] != "data":  # the second word may be a path
            given = words[0]
            best = nearest(given, list(VERBS))
        remedy = f"the nearest is spatialembed {best}" if best else "see spatialembed --help"
        raise SpatialEmbedError("unknown_verb", f"{given}: no such verb", remedy, USAGE)
    verb = VERBS[name]
    rest = words[name.count(" ") + 1 :]
    options: Any = parse(
        verb.settings(), rest, verb=name, help=verb.help, positional=verb.positional
    )
    return verb.run(options)


def _usage() -> str:
    lines = "\n".join(f"  {name:<13}{verb.help}" for name, verb in VERBS.items())
    return (
        "usage: spatialembed VERB ...\n\nInstance segmentation by spatial embeddings.\n\n"
        f"{lines}\n\nspatialembed VERB --help shows the settings of a verb. --version"
    )
