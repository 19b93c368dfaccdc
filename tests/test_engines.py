"""Every engine against the network itself, what happens where one is missing, and which is chosen.

The oracle is the network as it was trained, float32, operation by operation.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spatialembed.errors import SpatialEmbedError
from spatialembed.inference import engine as engines
from spatialembed.inference import predictor
from spatialembed.inference.engine import NetworkEngine, build, torch_engine
from spatialembed.inference.engines import compiled
from spatialembed.inference.engines.choice import COSTS, ENGINES, choose
from spatialembed.inference.engines.compiled import Recorded, Recording
from spatialembed.inference.engines.folded import FoldedCore, FoldedNet
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.options import DeviceOptions
from spatialembed.types import Embeddings

CPU = torch.device("cpu")
TOLERANCE = {  # offset in units, log-precision, seed: as docs/engines.md says
    "float32": (1e-5, 1e-5, 1e-5),
    "bfloat16": (0.02, 0.02, 0.02),
}
ABLE = [
    ("torch", "float32"),
    ("torch", "bfloat16"),
    pytest.param(("onnxruntime", "float32"), marks=pytest.mark.slow),  # its export takes long
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
]
SIZES = [(2, 1, 1), (1, 7, 9), (1, 8, 16), (3, 33, 18), (2, 70, 100)]


def trained(elliptical: bool = True) -> SpatialEmbeddingNet:
    """A network whose batch-norms have seen something, some of them with a negative weight."""
    torch.manual_seed(1)
    net = SpatialEmbeddingNet(2, elliptical).eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.weight, 0.8, 0.2)
            nn.init.normal_(layer.bias, std=0.1)
            with torch.no_grad():  # of erfnet.Down: a channel that was pooled, not all below 0
                layer.weight[-1], layer.bias[-1] = -0.5, 0.4
    for decoder in net.decoders:
        nn.init.normal_(decoder.output_conv.weight, std=0.1)
    return net


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(2))


def assert_near(found: Embeddings, expected: Embeddings, precision: str) -> None:
    for a, b, most in zip(found, expected, TOLERANCE[precision], strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=most)


@pytest.fixture(scope="module")
def reference() -> NetworkEngine:
    return torch_engine(trained(), device=CPU)


@pytest.fixture(scope="module", params=ABLE, ids=" ".join)
def started(request: pytest.FixtureRequest) -> NetworkEngine:
    name, precision = request.param
    run = build(trained(), DeviceOptions(engine=name, precision=precision, device="cpu"))
    assert (run.name, run.precision, run.device) == (name, precision, CPU)
    return run


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Folding


@pytest.mark.parametrize("elliptical", [True, False])
def test_folding_is_exact(elliptical: bool) -> None:
    """In float64 the two networks agree but for the last bits, whatever the sign of a gain."""
    net = trained(elliptical).double()
    x = images(2, 3, 33, 50).double()
    with torch.no_grad():
        for a, b in zip(FoldedNet(net, torch.float64)(x), net(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_folding_leaves_the_network_alone() -> None:
    net = trained().train()
    before = copy.deepcopy(net.state_dict())
    build(net, DeviceOptions(engine="torch", precision="bfloat16", device="cpu"))(
        images(1, 3, 16, 16)
    )
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_no_batch_norm_is_left() -> None:
    assert not [m for m in FoldedNet(trained()).modules() if isinstance(m, nn.BatchNorm2d)]


# Engines against the network


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_are_those_of_the_network(
    started: NetworkEngine, reference: NetworkEngine, size: tuple[int, int, int]
) -> None:
    x = images(size[0], 3, *size[1:])
    assert_near(started(x), reference(x), started.precision)


def test_maps_of_a_scaled_model(started: NetworkEngine) -> None:
    x = images(1, 3, 21, 30)
    scaled = NetworkEngine(
        started.run, net=started.net, name="", device=CPU, precision=started.precision, scale=1.5
    )
    expected = torch_engine(trained(), device=CPU, scale=1.5)(x)
    assert_near(scaled(x), expected, started.precision)


def test_bfloat16_rounds_the_network_and_not_the_maps(
    started: NetworkEngine, reference: NetworkEngine
) -> None:
    x = images(1, 3, 64, 64)
    for found, exact in zip(started(x), reference(x), strict=True):
        assert (found.bfloat16().float() == found).float().mean() < 0.2
        assert torch.allclose(found, exact, rtol=0, atol=1e-5) == (started.precision == "float32")


def test_later_calls_leave_maps_alone(started: NetworkEngine) -> None:
    first = started(images(1, 3, 40, 24))
    kept = [m.clone() for m in first]
    started(torch.zeros(1, 3, 40, 24))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_same_input_same_bits(started: NetworkEngine) -> None:
    x = images(2, 3, 40, 24)
    assert all(torch.equal(a, b) for a, b in zip(started(x), started(x), strict=True))


def test_a_view_is_read_as_what_it_shows(started: NetworkEngine, reference: NetworkEngine) -> None:
    """Grey images come as one channel repeated without memory of its own; turned ones as views."""
    x = images(1, 1, 40, 24).expand(1, 3, 40, 24).rot90(1, (-2, -1))
    assert_near(started(x), reference(x), started.precision)


@pytest.mark.slow
@pytest.mark.skipif(bool(compiled.missing_compiler(CPU)), reason="needs a C++ compiler")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_once_for_all_sizes(reference: NetworkEngine, precision: str) -> None:
    torch.compiler.reset()
    run = build(trained(), DeviceOptions(engine="compiled", precision=precision, device="cpu"))
    assert run.name == "compiled"
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in [*SIZES, (1, 128, 128), (1, 130, 300), (3, 129, 170), (1, 200, 200)]:
            x = images(size[0], 3, *size[1:])
            assert_near(run(x), reference(x), precision)


COMPILED = """
import torch
from spatialembed.inference.engines.compiled import compiled_run
from spatialembed.types import Embeddings

class Core(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    def forward(self, images):
        return Embeddings(*torch.tanh(self.conv(images)).split((2, 2, 1), 1))

torch.manual_seed(0)
core, x = Core(), torch.rand(1, 3, 128, 130)
with torch.inference_mode():
    for a, b in zip(compiled_run(core, torch.device("cpu"))(x), core(x)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(compiled.missing_compiler(CPU)), reason="needs a C++ compiler")
def test_what_was_compiled_for_another_processor_is_not_taken(tmp_path: Path) -> None:
    """Machines that share a home share what torch keeps there."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("needs AVX-512, to pass for one without")
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for capability in ("AVX512", "AVX2"):
        done = subprocess.run(
            [sys.executable, "-c", COMPILED],
            env={**env, "ATEN_CPU_CAPABILITY": capability.lower()},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.stdout == f"{capability}\n", done.stderr


# What is missing


def test_out_of_memory_is_named(started: NetworkEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> Embeddings:
        raise RuntimeError("std::bad_alloc")

    monkeypatch.setattr(started, "run", fail)
    with pytest.raises(SpatialEmbedError, match=r"out_of_memory.*2 image\(s\) of 4 x 5 px"):
        started(images(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("engine", "package", "extra"),
    [
        ("onnxruntime", "onnxruntime", "export"),
        ("onnxruntime", "onnxscript", "export"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, engine: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpatialEmbedError, match=rf"missing_extra: .*{package}.*\[{extra}\]"):
        build(trained(), DeviceOptions(engine=engine, device="cpu"))
    assert engine not in engines._there(CPU)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "compiled" not in engines._there(CPU)
    run = build(trained(), DeviceOptions(engine="compiled", device="cpu", precision="float32"))
    assert run.name == "torch"
    assert "no-such-compiler is not installed; using torch" in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_an_engine_that_fails_gives_way(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reference: NetworkEngine,
    named: bool,
) -> None:
    def fail(core: FoldedCore, threads: int, *, bfloat16: bool) -> None:
        raise ValueError("no such plugin\nand a page of detail")

    monkeypatch.setattr(engines, "openvino_run", fail)
    monkeypatch.setattr(engines, "choose", lambda *_: "openvino")
    with caplog.at_level(logging.INFO, "spatialembed"):
        run = build(
            trained(), DeviceOptions(engine="openvino" if named else "auto", precision="float32")
        )
    assert run.name == "torch"
    assert [record.levelname for record in caplog.records][-2:] == ["WARNING", "INFO"]
    assert "openvino does not start: no such plugin; using torch" in caplog.text
    assert "page of detail" not in caplog.text
    x = images(1, 3, 20, 20)
    assert_near(run(x), reference(x), "float32")


def test_auto_goes_on_without_a_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that seemed to be there, and is not whole."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(engines, "choose", lambda *_: "openvino")
    assert build(trained(), DeviceOptions(device="cpu")).name == "torch"
    assert "openvino does not start" in caplog.text


# Settings


def test_load_tells_the_length_as_the_network_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nuclei model sees images at twice their size."""
    lengths = []

    def choose(
        kind: str, precision: str, there: set[str], length: float, threads: int, network: str
    ) -> str:
        assert network == "lite"
        lengths.append(length)
        return "torch"

    monkeypatch.setattr(engines, "choose", choose)
    predictor.load("nuclei", device="cpu", pixels=3e6)
    predictor.load("nuclei", device="cpu")
    assert lengths == [12, None]


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("unknown_engine", {"engine": "tensorrt"}),
        ("unknown_precision", {"precision": "float64"}),
        ("unknown_device", {"device": "gpu"}),
        ("bad_threads", {"threads": 0}),
        ("no_precision", {"engine": "onnxruntime", "precision": "bfloat16"}),
        ("no_device", {"engine": "openvino", "device": "meta"}),
        ("no_device", {"engine": "compiled", "device": "meta"}),
    ],
)
def test_refused_settings(
    monkeypatch: pytest.MonkeyPatch, code: str, settings: dict[str, object]
) -> None:
    if settings.get("device") == "meta":  # stands for a GPU that works
        monkeypatch.setattr(engines, "resolve_device", torch.device)
    with pytest.raises(SpatialEmbedError) as caught:
        build(trained(), DeviceOptions(**settings))  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_threads_are_those_asked_for(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given_threads = []
    monkeypatch.setattr(
        engines, "openvino_run", lambda core, threads, **_: given_threads.append(threads) or core
    )
    build(trained(), DeviceOptions(engine="openvino", threads=3))
    assert (torch.get_num_threads(), given_threads) == (3, [3])


def test_precision_follows_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" takes bfloat16 where the processor has it, which onnxruntime cannot use."""
    monkeypatch.setattr("spatialembed.inference.device._computes_bfloat16", lambda _: True)
    assert engines._precision_of("openvino", "auto", CPU) == "bfloat16"
    assert engines._precision_of("onnxruntime", "auto", CPU) == "float32"
    assert engines._precision_of("onnxruntime", "float32", CPU) == "float32"


# Choice


@pytest.mark.parametrize(
    ("kind", "precision", "there", "megapixels", "chosen"),
    [
        ("cpu", "bfloat16", ENGINES, 0.1, "torch"),
        ("cpu", "bfloat16", ENGINES, None, "torch"),
        ("cpu", "bfloat16", ENGINES, 1e5, "compiled"),
        ("cpu", "bfloat16", ("torch", "openvino", "onnxruntime"), 1e5, "torch"),
        ("cpu", "float32", ENGINES, 0.1, "torch"),
        ("cpu", "float32", ENGINES, 1e5, "openvino"),
        ("cpu", "float32", ("torch", "onnxruntime"), 1e5, "onnxruntime"),
        ("cpu", "float32", ("torch", "compiled"), 1e5, "compiled"),
        ("cpu", "float32", ("torch", "compiled"), None, "torch"),
        ("cpu", "float32", ("torch",), 1e5, "torch"),
        ("cuda", "bfloat16", ENGINES, None, "torch"),
        ("cuda", "bfloat16", ENGINES, 1e6, "compiled"),
        ("mps", "float32", ENGINES, 1e6, "torch"),
    ],
)
def test_choice(
    kind: str, precision: str, there: tuple[str, ...], megapixels: float | None, chosen: str
) -> None:
    assert choose(kind, precision, there, megapixels) == chosen


def test_more_threads_make_a_start_dearer() -> None:
    """Half the time a megapixel: the compiler pays from twice as many on."""
    costs = COSTS["cpu", "bfloat16"]
    even = costs["compiled"].start / (costs["torch"].megapixel - costs["compiled"].megapixel)
    there = ("torch", "compiled")
    for threads, megapixels, chosen in (
        (2, 1.1 * even, "compiled"),
        (4, 1.1 * even, "torch"),
        (4, 2.1 * even, "compiled"),
    ):
        assert choose("cpu", "bfloat16", there, megapixels, threads) == chosen


def test_a_lighter_network_pays_for_a_start_later() -> None:
    costs = COSTS["cpu", "float32"]
    even = costs["openvino"].start / (costs["torch"].megapixel - costs["openvino"].megapixel)
    there = ("torch", "openvino")
    assert choose("cpu", "float32", there, 1.1 * even) == "openvino"
    assert choose("cpu", "float32", there, 1.1 * even, network="lite") == "torch"
    assert choose("cpu", "float32", there, 10 * even, network="lite") == "openvino"


@given(
    st.sampled_from(sorted(COSTS)),
    st.sets(st.sampled_from(ENGINES)).map(lambda names: names | {"torch"}),
    st.floats(0, 1e7),
    st.floats(0, 1e7),
)
def test_no_other_engine_ends_earlier(
    where: tuple[str, str], there: set[str], megapixels: float, more: float
) -> None:
    costs = COSTS[where]
    chosen = choose(*where, there, megapixels)
    assert chosen in there
    for name in there & set(costs):
        assert costs[chosen].start + megapixels * costs[chosen].megapixel <= (
            costs[name].start + megapixels * costs[name].megapixel
        )
    later = choose(*where, there, megapixels + more)
    assert costs[later].megapixel <= costs[chosen].megapixel


# CUDA graphs, with a recording that a CPU can make


class Replayed:
    """Stands for a CUDA graph: it runs again on the same tensors."""

    def __init__(self, run: compiled.Run, held: Tensor, maps: Embeddings) -> None:
        self.run, self.held, self.maps = run, held, maps

    def replay(self) -> None:
        for kept, new in zip(self.maps, self.run(self.held), strict=True):
            kept.copy_(new)


def record(run: compiled.Run, x: Tensor) -> Recording:
    held = x.clone()
    maps = run(held)
    return Recording(Replayed(run, held, maps), held, maps)  # type: ignore[arg-type]


def grey_levels(x: Tensor) -> Embeddings:
    return Embeddings(x[:, :2] * 2, x[:, 1:] + 1, x[:, :1] / 2)


def test_replays_give_maps_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_record", record)
    run = Recorded(grey_levels)
    inputs = [images(1, 3, 4, 5) * i for i in range(1, 4)]
    found = [run(x) for x in inputs]
    for x, maps in zip(inputs, found, strict=True):
        for a, b in zip(maps, grey_levels(x), strict=True):
            assert torch.equal(a, b)
    assert len(run.recordings) == 1


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_record", record)
    run = Recorded(grey_levels)
    for width in range(1, 2 * compiled.MOST_SHAPES):
        x = images(1, 3, 2, width)
        assert torch.equal(run(x).seed, x[:, :1] / 2)
    assert len(run.recordings) == compiled.MOST_SHAPES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["torch", "compiled"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_engines_on_cuda(reference: NetworkEngine, name: str, precision: str) -> None:
    run = build(trained(), DeviceOptions(engine=name, precision=precision, device="cuda"))
    assert run.name == name
    for size in [(1, 70, 100), (1, 70, 100), (2, 128, 64), (1, 33, 18)]:
        x = images(size[0], 3, *size[1:])
        first = Embeddings(*(m.cpu() for m in run(x)))
        assert_near(first, reference(x), precision)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(first, run(x), strict=True))


# What a native library leaves in the threads that use it


STACKS = """
import ctypes, faulthandler, gc, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import torch
from spatialembed.inference.engines.onnx import onnxruntime_run
from spatialembed.inference.engines.openvino_engine import openvino_run

class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def stack_is_there():
    now = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    spans = (line.split()[0].split("-") for line in open("/proc/self/maps"))
    return now.sp is None or any(int(a, 16) <= now.sp < int(b, 16) for a, b in spans)

class Net(torch.nn.Module):
    def forward(self, x):
        return x[:, :2] * 2, x + 1, x * 3

class Main:
    def submit(self, work):
        work()
        return self
    def result(self): pass

runs = []
start = {
    "openvino": lambda: runs.append(openvino_run(Net(), 1, bfloat16=False)),
    "onnxruntime": lambda: runs.append(onnxruntime_run(Net(), 1)),
}[sys.argv[1]]
use = lambda: runs[-1](torch.rand(1, 3, 16, 16))
let_go = lambda: (runs.clear(), gc.collect())
heard = []
faulthandler.enable()
faulthandler.dump_traceback_later(240, exit=True)
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
threads = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
for first, second in ((Main(), threads[0]), (threads[0], threads[1]), (threads[1], Main())):
    for thread, work in ((first, start), (first, use), (second, use), (second, let_go)):
        thread.submit(work).result()
    assert stack_is_there(), "of the main thread"
    assert all(thread.submit(stack_is_there).result() for thread in threads)
idents = [thread.submit(threading.get_ident).result() for thread in threads]
for ident in (threading.get_ident(), *idents):
    signal.pthread_kill(ident, signal.SIGUSR1)
    while not heard: time.sleep(0.001)  # CPython looks again for a signal of another thread
    heard.clear()
print("alive")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_an_engine_let_go_anywhere_leaves_signal_stacks_whole(name: str) -> None:
    """A thread whose alternate signal stack was unmapped dies of the next signal, silently."""
    pytest.importorskip(name)
    command = [sys.executable, "-c", STACKS, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
