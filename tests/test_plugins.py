"""The macro in ImageJ itself; the script of QuPath in Groovy, on a stand-in of QuPath's calls.

The command that both of them start is a stand-in too: it keeps its words, which have to be those of
``spatialembed predict``, and hands over results of labels that are known.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.draw import disk

from served import until
from spatialembed.command.arguments import parse
from spatialembed.command.options import PredictOptions
from spatialembed.images.write import write_png
from spatialembed.results import objects_csv
from spatialembed.results.measurements import measure
from spatialembed.results.objects_csv import ObjectTable
from spatialembed.results.outline_files import write_geojson, write_imagej
from spatialembed.types import Instances

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"
IJ_JAR = Path("/usr/share/java/ij.jar")  # of Debian's package imagej
WAIT_S = 240


def known() -> Instances:
    """A disc, a ring, an object in two parts, and one of a single pixel, in 60 x 80 px."""
    labels = np.zeros((60, 80), np.int32)
    labels[disk((20, 20), 10)] = 1
    labels[disk((30, 55), 14)] = 2
    labels[disk((30, 55), 6)] = 0
    labels[45:50, 3:9] = labels[52:58, 12:20] = 3
    labels[59, 79] = 4
    scores = np.array([0.99, 0.9, 0.8, 0.7], np.float32)
    return Instances(labels, scores, np.array([0, 1, 0, 1]), ("cell", "debris"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What ``predict`` would write, by the names that both plugins ask for."""
    folder, found = tmp_path / "results", known()
    write_imagej(folder / "image_rois.zip", found)
    write_geojson(folder / "region.geojson", found)
    table = ObjectTable(folder / "objects.csv")
    pixels = np.zeros(found.labels.shape, np.uint8)
    table.append(objects_csv.rows("image.tif", found, measure(found.labels, 4, pixels)))
    table.write()
    (folder / ".spatialembed-results").write_text("")
    return folder


@pytest.fixture
def command(tmp_path: Path, results: Path) -> Path:
    """The program in place of ``spatialembed``; its words are kept in words.txt, a line each."""
    program = tmp_path / "with space, as C:\\new" / "spatialembed"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$@" > '{tmp_path}/words.txt'
cp "$2" '{tmp_path}/sent.tif'
echo 'info at work' >&2
[ "$4" = nuclei ] || {{ echo "error no_model: $4" >&2; exit 4; }}
mkdir -p "$6" && cp '{results}'/.spatialembed-results '{results}'/* "$6"
"""
    )
    program.chmod(0o755)
    return program


def asked(folder: Path) -> PredictOptions:
    """The settings that the words of the command mean."""
    words = (folder / "words.txt").read_text().splitlines()
    assert words[0] == "predict"
    return parse(PredictOptions, words[1:], verb="predict", help="", positional="sources")


def run(words: list[str], **more: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=WAIT_S, env=os.environ | more, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- ImageJ

PROBE = """
setBatchMode(false);
open("{image}");
if ("{box}" != "") {{ b = split("{box}", " "); makeRectangle(b[0], b[1], b[2], b[3]); }}
runMacro("{macro}", "command={command}\\nmodel=nuclei\\nstart=0.8");
said = getTitle() + "\\n" + nImages + "\\n" + Table.size("spatialembed") + "\\n";
for (i = 0; i < roiManager("count"); i++) {{
    roiManager("select", i);
    getSelectionBounds(x, y, width, height);
    said += Roi.getName + " " + getValue("Area") + " " + Table.get("area", i, "spatialembed")
        + " " + x + " " + y + " " + width + " " + height + "\\n";
}}
File.saveString(said, "{answer}.part");
done = File.rename("{answer}.part", "{answer}");
"""


@pytest.mark.parametrize("box", [None, (100, 50, 80, 60)], ids=["whole", "selection"])
def test_macro_in_imagej(
    tmp_path: Path, command: Path, box: tuple[int, int, int, int] | None
) -> None:
    if not IJ_JAR.is_file() or not shutil.which("java"):
        pytest.skip("no ImageJ: apt-get install imagej")
    if not shutil.which("xvfb-run"):
        pytest.skip("no display for ImageJ: apt-get install xvfb xauth")
    found = known()
    size_hw = (200, 240) if box else found.labels.shape
    pixels = (np.arange(size_hw[0] * size_hw[1]) % 251).astype(np.uint8).reshape(size_hw)
    image = write_png(tmp_path / "cells.png", pixels)
    answer, probe = tmp_path / "answer.txt", tmp_path / "probe.ijm"
    names = {"image": image, "answer": answer}
    names["command"] = str(command).replace("\\", "\\\\")
    names["box"] = " ".join(map(str, box or ()))
    names["macro"] = PLUGINS / "imagej" / "spatialembed.ijm"
    probe.write_text(PROBE.format(**names))
    java = ["java", f"-Djava.io.tmpdir={tmp_path}", f"-Duser.home={tmp_path}"]
    words = ["xvfb-run", "-a", *java, "-cp", str(IJ_JAR), "ij.ImageJ", "-macro", str(probe)]
    program = subprocess.Popen(words, start_new_session=True)
    try:
        until(answer.is_file)
    finally:  # with its display, which would stay; it has no way to end itself without asking
        os.killpg(program.pid, signal.SIGTERM)
        program.wait()
    title, images, rows, *rois = answer.read_text().splitlines()
    assert (title, images, rows) == ("cells.png", "1", "4")
    left, top = box[:2] if box else (0, 0)
    wanted = [
        [label, area, area, x1 + left, y1 + top, x2 - x1, y2 - y1]
        for label, (area, (x1, y1, x2, y2)) in enumerate(
            zip(found.areas.tolist(), found.boxes.tolist(), strict=True), start=1
        )
    ]
    assert [[int(float(word)) for word in roi.split()] for roi in rois] == wanted
    options = asked(tmp_path)
    assert (options.model, options.start, options.diameter) == ("nuclei", 0.8, None)
    assert options.out.endswith("found")
    assert not list(tmp_path.glob("spatialembed-*"))  # it tidies up


# --- QuPath

STAND_IN = {
    "qupath/lib/regions/RegionRequest.groovy": """
package qupath.lib.regions
class RegionRequest {
    int x, y
    static createInstance(String path, double downsample, roi) {
        new RegionRequest(x: roi.left, y: roi.top)
    }
}
""",
    "qupath/lib/io/PathIO.groovy": """
package qupath.lib.io
import groovy.json.JsonSlurper
class PathIO {
    static readObjects(java.nio.file.Path path) {
        new JsonSlurper().parse(path.toFile()).features.collect { feature ->
            def points = feature.geometry.coordinates.flatten().collate(2)
            def middle = { axis -> points.collect { it[axis] }.with { (min() + max()) / 2 } }
            def roi = [centroidX: middle(0), centroidY: middle(1)]
            new Expando(feature: feature, getROI: { roi })
        }
    }
}
""",
    "stand_in.groovy": """
import groovy.json.JsonOutput
def (script, image, answer) = args
def children = []
def roi = new Expando(left: 1000, top: 500, contains: { x, y -> x < 1150 })
def region = new Expando(
    isAnnotation: { true }, hasROI: { true }, getROI: { roi }, getDisplayedName: { 'region' },
    addChildObjects: { children.addAll(it) })
def other = new Expando(isAnnotation: { false })
def binding = new Binding(
    args: args.drop(3),
    getSelectedObjects: { [region, other] },
    getCurrentServer: { new Expando(getPath: { 'image' }) },
    writeImageRegion: { server, request, path -> new File(path).bytes = new File(image).bytes },
    fireHierarchyUpdate: { new File(answer).text = JsonOutput.toJson(children*.feature) })
new GroovyShell(getClass().classLoader, binding).evaluate(new File(script))
""",
}


@pytest.fixture
def qupath(tmp_path: Path) -> list[str]:
    """The words that start the script in Groovy, up to its settings."""
    groovy, java = shutil.which("groovy"), shutil.which("java")
    if not groovy or not java:
        pytest.skip("no Groovy: apt-get install groovy")
    folder = tmp_path / "stand_in"
    for name, text in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    image = write_png(tmp_path / "region.png", np.full((60, 80), 7, np.uint8))
    script = PLUGINS / "qupath" / "spatialembed.groovy"
    start = [groovy, "-cp", str(folder), str(folder / "stand_in.groovy")]
    return [*start, str(script), str(image), str(tmp_path / "answer.json")]


def in_groovy(words: list[str]) -> str:
    java = Path(str(shutil.which("java"))).resolve().parent.parent
    return run(words, JAVA_HOME=str(java))


def moved(geometry: Any, scale: float, left: float, top: float) -> Any:
    if isinstance(geometry[0], list):
        return [moved(part, scale, left, top) for part in geometry]
    return [geometry[0] * scale + left, geometry[1] * scale + top]


def wanted(results: Path) -> list[dict[str, Any]]:
    """The features of the first three objects, where the region lies; the last is outside of it."""
    features = json.loads((results / "region.geojson").read_text())["features"]
    for feature in features:
        del feature["id"]
        geometry = feature["geometry"]
        geometry["coordinates"] = moved(geometry["coordinates"], 2, 1000, 500)
    return features[:3]


def test_script_of_qupath_by_the_command(
    qupath: list[str], tmp_path: Path, results: Path, command: Path
) -> None:
    said = in_groovy([*qupath, f"command={command}", "downsample=2", "diameter=30", "channel=2"])
    assert "3 objects in region" in said
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer == wanted(results)
    assert [f["geometry"]["type"] for f in answer] == ["Polygon", "Polygon", "MultiPolygon"]
    box = answer[2]["geometry"]["coordinates"][0][0]  # a golden one: 6 x 5 px at (3, 45)
    assert sorted(map(tuple, box[:-1])) == [(1006, 590), (1006, 600), (1018, 590), (1018, 600)]
    assert answer[1]["properties"]["objectType"] == "detection"
    assert answer[1]["properties"]["classification"]["name"] == "debris"
    assert answer[1]["properties"]["measurements"] == {"label": 2, "score": 0.9}
    options = asked(tmp_path)
    assert (options.model, options.diameter, options.format) == ("nuclei", "30", "geojson")
    assert options.channel == 2
    assert (tmp_path / "sent.tif").read_bytes() == (tmp_path / "region.png").read_bytes()


@pytest.fixture
def served(results: Path) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers the GeoJSON, and what was sent to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write((results / "region.geojson").read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    server.server_close()
    thread.join()


def test_script_of_qupath_by_a_server(
    qupath: list[str], tmp_path: Path, results: Path, served: tuple[str, list[Any]]
) -> None:
    url, got = served
    in_groovy([*qupath, f"server={url}", "downsample=2"])
    assert json.loads((tmp_path / "answer.json").read_text()) == wanted(results)
    sent = (tmp_path / "region.png").read_bytes()
    assert got == [("/v1/models/nuclei/instances?format=geojson", "image/tiff", sent)]
