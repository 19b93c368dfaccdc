"""Exported files: the graph against torch, what stands around it, and the command."""

from __future__ import annotations

import errno
import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from known_predictor import known
from spatialembed import __version__
from spatialembed.command.main import main
from spatialembed.errors import SpatialEmbedError
from spatialembed.export import check, export
from spatialembed.export.check import LIMITS, OnnxFile
from spatialembed.export.export import export_onnx
from spatialembed.export.frame import framed, outside
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.inference import model_file
from spatialembed.inference.engine import map_back, resize, torch_engine
from spatialembed.inference.model_file import ModelInfo
from spatialembed.inference.predictor import Predictor
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.method.normalization import network_input, normalize
from spatialembed.types import Embeddings, Normalization

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
SIZES = [(1, 1), (1, 9), (7, 8), (33, 17), (40, 64)]


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(2))


def predictor_of(net: SpatialEmbeddingNet, info: ModelInfo) -> Predictor:
    return Predictor(torch_engine(net, device=CPU, scale=info.scale), info)


def info_of(**changes: Any) -> ModelInfo:
    info = ModelInfo(("a", "b"), False, Normalization("fixed"), ClusterOptions(min_pixels=3))
    return replace(info, **changes)


@pytest.fixture(scope="session")
def nuclei() -> Predictor:
    return predictor_of(*model_file.load("nuclei"))


@pytest.fixture(scope="session")
def nuclei_file(nuclei: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(nuclei, tmp_path_factory.mktemp("export") / "nuclei.onnx")


@pytest.fixture
def quick(nuclei_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the bundled network take the graph that is there: to make one takes seconds."""
    monkeypatch.setattr(export, "_model", lambda *_: onnx.load(nuclei_file))


@pytest.fixture(scope="session")
def half_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float16, circular, two classes, with a normalisation inside."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    return export_onnx(predictor_of(random_net(), info_of()), path, precision="float16")


def random_net() -> SpatialEmbeddingNet:
    torch.manual_seed(3)
    net = SpatialEmbeddingNet(2, elliptical=False)
    for decoder in net.decoders:
        torch.nn.init.normal_(decoder.output_conv.weight, std=0.3)
    return net.eval()


# Around the network


class Stub(torch.nn.Module):
    """A network of no layers: (B, 3, h, w) to maps of as many channels as are asked for."""

    def __init__(self, bandwidths: int) -> None:
        super().__init__()
        self.bandwidths = bandwidths

    def forward(self, x: Tensor) -> Embeddings:
        x = torch.nn.functional.interpolate(x, scale_factor=2.0)[..., ::2, ::2]  # as lite grows
        return Embeddings(torch.tanh(x[:, :2]), x[:, 1 : 1 + self.bandwidths], torch.sigmoid(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "kind", "bandwidths"),
    [
        (1.0, "fixed", 1),
        (2.0, "percentile", 2),
        (0.5, "fixed", 1),
        (0.7, "none", 2),
        (3.0, "none", 1),
    ],
)
def test_frame_is_normalize_resize_and_map_back(scale: float, kind: Any, bandwidths: int) -> None:
    net, how = Stub(bandwidths), Normalization(kind, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    session = onnxruntime.InferenceSession(framed(net, how, scale).SerializeToString())
    for height, width in (*SIZES, (45, 15)):  # 0.7 x 45 is 31.499.. in float64, 31.5 in float32
        rgb = images(2, 3, height, width)
        small = max(1, round(height * scale)), max(1, round(width * scale))
        normal = torch.stack([normalize(image, how) for image in rgb])
        wanted = map_back(net(resize(normal, small)), (height, width))
        given = normal if kind == "percentile" else rgb
        found = session.run(None, {"image": given.numpy()})
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=5e-5)


def test_only_percentiles_are_left_outside() -> None:
    percentile = Normalization("percentile", low=3.0)
    assert outside(percentile) == percentile
    assert outside(Normalization("fixed")).kind == outside(Normalization("none")).kind == "none"


# The file


@pytest.mark.slow
def test_file_is_one_checked_model(nuclei_file: Path) -> None:
    model = onnx.load(nuclei_file, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not any(t.external_data for t in model.graph.initializer)
    assert [p.name for p in nuclei_file.parent.iterdir()] == ["nuclei.onnx"]
    assert (model.producer_name, model.producer_version) == ("spatialembed", __version__)


def test_sides_are_open_and_named(nuclei_file: Path) -> None:
    session = onnxruntime.InferenceSession(nuclei_file)
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("image", "tensor(float)")
    assert entry.shape == ["batch", 3, "height", "width"]
    assert {o.name: o.shape for o in session.get_outputs()} == {
        "offset": ["batch", 2, "height", "width"],
        "log_precision": ["batch", 2, "height", "width"],
        "seed": ["batch", 1, "height", "width"],
    }


def test_file_holds_no_path_and_no_trace(nuclei_file: Path) -> None:
    content = nuclei_file.read_bytes()
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content


def test_metadata_say_what_clustering_needs(nuclei: Predictor, nuclei_file: Path) -> None:
    facts = OnnxFile(nuclei_file).metadata
    info = nuclei.info
    assert facts["format_version"] == 1
    assert tuple(facts["class_names"]) == info.class_names
    assert ClusterOptions(**facts["thresholds"]) == info.thresholds
    assert facts["normalization"]["low"] == info.normalization.low
    assert facts["normalization_inside"] is False
    assert "normalised" in facts["input"]
    assert (facts["scale"], facts["unit"], facts["elliptical"]) == (2.0, 1024, True)
    assert (facts["log_scale"], facts["log_limit"]) == (10, 40)
    assert facts["licence"] == "Apache-2.0"
    assert facts["training"] == info.training
    assert (facts["network"], facts["diameter"]) == (info.network, info.diameter)


def test_network_and_diameter_are_read_back() -> None:
    told = {"precision": '"float32"', "licence": '"MIT"'}
    named = OnnxFile(foreign(**told, network='"lite"', diameter='"auto"'))
    assert (named.network, named.diameter) == ("lite", "auto")
    older = OnnxFile(foreign(**told))
    assert (older.network, older.diameter) == ("erfnet", "native")


def test_licence_of_converted_weights_goes_along() -> None:
    licence = "CC BY-NC 4.0, non-commercial"
    facts = export.metadata(info_of(training={"licence": licence}), "float32")
    assert facts["licence"] == licence
    assert facts["normalization_inside"] is True
    assert "[0, 1]" in facts["input"]
    assert export.metadata(info_of(), "float32")["licence"] == "not stated"


@pytest.mark.parametrize("size", SIZES)
def test_file_is_the_predictor(nuclei: Predictor, nuclei_file: Path, size: tuple[int, int]) -> None:
    batch = images(2, 3, *size)
    wanted, found = nuclei.engine(batch), OnnxFile(nuclei_file, threads=1)(batch)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_openvino_runs_the_file(nuclei: Predictor, nuclei_file: Path) -> None:
    from spatialembed.inference.engines.openvino_engine import the_core

    core = the_core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(nuclei_file), "CPU", settings)
    for size in ((33, 17), (40, 64)):
        batch = images(2, 3, *size)
        found = compiled({"image": batch.numpy()})
        for name, theirs in nuclei.engine(batch)._asdict().items():
            np.testing.assert_allclose(found[name], theirs.numpy(), atol=2e-5)


@pytest.mark.slow
def test_half_is_half_only_inside(half_file: Path) -> None:
    model = onnx.load(half_file)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {single}
    kernels = {t.name: t for t in model.graph.initializer}
    outputs = [n for n in model.graph.node if n.op_type in ("Tanh", "Sigmoid")]
    types = [kernels[n.input[1]].data_type for n in model.graph.node if n.op_type == "Conv"]
    assert len(types) > 80
    assert set(types) == {half}
    assert sorted(n.op_type for n in outputs) == ["Sigmoid", "Tanh"]
    last = [kernels[n.input[1]] for n in model.graph.node if n.op_type == "ConvTranspose"]
    assert sum(t.data_type == single for t in last) == 2  # the output layers
    assert OnnxFile(half_file).precision == "float16"


@pytest.mark.slow
def test_half_is_near_torch(half_file: Path) -> None:
    rgb = images(2, 3, 37, 50)
    normal = torch.stack([normalize(image, Normalization("fixed")) for image in rgb])
    wanted = torch_engine(random_net(), device=CPU)(normal)
    found = OnnxFile(half_file)(rgb)
    gaps = [float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True)]
    assert max(gaps) < 0.01
    assert min(gaps) > 0
    assert found.log_precision.shape == (2, 1, 37, 50)
    assert found.seed.shape == (2, 2, 37, 50)


# Against torch


@pytest.mark.slow
def test_check_passes_on_a_true_export(nuclei: Predictor, nuclei_file: Path) -> None:
    rows = check.compare(nuclei.engine, OnnxFile(nuclei_file), nuclei.info)
    assert [(r.height, r.width, r.batch) for r in rows] == list(check.SIZES)
    assert all(row.within(LIMITS["float32"]) for row in rows)
    assert sum(row.instances_torch for row in rows) > 30
    assert [row.instances for row in rows] == [row.instances_torch for row in rows]


@pytest.mark.parametrize(
    ("map_", "change"), [("offset", 1e-3), ("log_precision", 0.1), ("seed", 0.2)]
)
def test_check_sees_a_wrong_map(map_: str, change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SIZES", ((16, 24, 2),))

    def right(x: Tensor) -> Embeddings:
        return Embeddings(0 * x[:, :2], x[:, :2], (1.1 + x[:, :1]) / 2.2)  # all take part

    def wrong(x: Tensor) -> Embeddings:
        maps = right(x)
        return maps._replace(**{map_: getattr(maps, map_) + change})

    info = info_of(normalization=Normalization("none"))
    (row,) = check.compare(right, wrong, info)  # type: ignore[arg-type]
    assert not any(row.within(limits) for limits in LIMITS.values())
    (row,) = check.compare(right, right, info)  # type: ignore[arg-type]
    assert row.within(LIMITS["float32"])


def test_objects_of_another_order_are_no_difference() -> None:
    wanted = np.array([[1, 1, 0], [2, 2, 0]])
    assert check._moved(np.array([[2, 2, 0], [1, 1, 0]]), wanted) == 0
    assert check._moved(np.array([[2, 2, 2], [1, 0, 0]]), wanted) == 2
    assert check._moved(np.zeros((2, 3), int), wanted) == 4
    ones = np.ones((2, 3), int)
    assert check._moved(0 * ones, ones) == 6
    assert check._moved(ones, ones) == 0


# The command


@pytest.mark.usefixtures("quick")
def test_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "model.onnx"
    words = ["export", "--model", "nuclei", "--out", str(out), "--check"]
    assert main([*words, "--format", "onnx"]) == 0
    printed = capsys.readouterr().out
    assert "Apache-2.0" in printed
    assert "agrees with torch" in printed
    report = json.loads((tmp_path / "new" / "model.onnx.check.json").read_text())
    assert report["passed"] is True
    assert len(report["comparisons"]) == 5
    assert sorted(p.name for p in out.parent.iterdir()) == ["model.onnx", "model.onnx.check.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_file_that_differs_is_told_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(export.LIMITS, "float32", check.Limits(0, 0, 0, 0))
    words = ["export", "--model", "nuclei", "--out", str(tmp_path / "m.onnx"), "--check"]
    assert main(words) == 4
    assert "DIFFERS" in capsys.readouterr().out


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was exported")

    monkeypatch.setattr(export, "_model", refuse)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--out", "m.onnx", "--format", "tflite"], 2, "tflite"),
        (["--out", "file/m.onnx"], 2, "not_writable"),
        (["--out", "."], 2, "not_writable"),
        (["--out", "m.pt"], 2, "ends in .onnx"),
        (["--out", "m.onnx", "--precision", "float64"], 2, "float64"),
    ],
)
def test_refused_in_one_line_before_anything_runs(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["export", "--model", "nuclei", *words]) == code
    lines = capsys.readouterr().err.splitlines()
    (error,) = (line for line in lines if not line.startswith("info "))
    assert error.startswith("error ")
    assert said in error
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("nothing_runs")
def test_an_engine_without_its_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpatialEmbedError, match="engine torch") as caught:
        export_onnx(known(), tmp_path / "m.onnx")
    assert (caught.value.code, caught.value.exit_code) == ("bad_setting", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    package: str, nuclei: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpatialEmbedError, match=rf"{package}.*spatialembed\[export\]") as caught:
        export_onnx(nuclei, tmp_path / "m.onnx")
    assert (caught.value.code, caught.value.exit_code) == ("missing_extra", 2)


@pytest.mark.usefixtures("quick")
def test_a_full_disk_leaves_the_old_file(
    nuclei: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(SpatialEmbedError, match="disk_full"):
            export_onnx(nuclei, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def foreign(entry: str = "image", **metadata: str) -> bytes:
    """A model of somebody else, three outputs named as ours are."""
    ends = [onnx.helper.make_tensor_value_info(n, 1, None) for n in (entry, *Embeddings._fields)]
    nodes = [onnx.helper.make_node("Abs", [entry], [name]) for name in Embeddings._fields]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no model", "m.onnx"),
        (foreign(entry="input"), "not exported by spatialembed"),
        (foreign(), "metadata: 'precision'"),
        (foreign(precision='"float32"', licence="MIT"), "metadata: "),
        (foreign(precision="[" * 100_000), "metadata: "),
        (foreign(precision="float32").replace(b"float32", b"float3\xff"), "codec can't decode"),
    ],
    ids=["text", "other names", "no metadata", "no JSON", "deep", "no UTF-8"],
)
def test_a_file_that_is_no_model_of_ours_is_refused(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SpatialEmbedError) as caught:
        OnnxFile(tmp_path / "m.onnx")
    assert (caught.value.code, caught.value.exit_code) == ("bad_model", 4)
    assert said in caught.value.message
    assert "\n" not in str(caught.value)


# The example


EXAMPLE = ROOT / "examples" / "onnx_minimal.py"


@pytest.mark.slow
def test_example_needs_no_torch_and_finds_the_same(
    nuclei: Predictor, nuclei_file: Path, tmp_path: Path
) -> None:
    field = nuclei_field(120, 97, seed=5).image
    Image.fromarray(field).save(tmp_path / "field.png")
    code = (
        "import runpy, sys\n"
        f"main = runpy.run_path({str(EXAMPLE)!r})['main']\n"
        "main(*sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
    )
    paths = [str(p) for p in (nuclei_file, tmp_path / "field.png", tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = nuclei(field)
    assert len(wanted) > 3
    assert done.stdout.startswith(f"{len(wanted)} objects")
    labels = np.asarray(Image.open(tmp_path / "out" / "field_labels.png"))
    np.testing.assert_array_equal(labels, wanted.labels)


@pytest.mark.parametrize("kind", ["none", "fixed", "percentile"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (1, 1), (30, 20)])
def test_example_normalises_as_the_package_does(
    kind: Any, dtype: Any, shape: tuple[int, ...]
) -> None:
    spec = importlib.util.spec_from_file_location("onnx_minimal", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    pixels = np.random.default_rng(0).random(shape)
    if shape == (30, 20):
        pixels[pixels < pixels.max()] = 0.5  # one speck: the percentiles coincide
    pixels = pixels.astype(dtype) if dtype == np.float32 else (pixels * 200).astype(dtype)
    how = Normalization(kind, ceiling=0.8)
    found = example.network_input(pixels, asdict(how))
    wanted = network_input(pixels, outside(how))
    np.testing.assert_array_equal(found, wanted.numpy())
