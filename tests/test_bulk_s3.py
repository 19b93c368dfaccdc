"""Bulk prediction from bucket to bucket, through a proxy that breaks one request in three."""

from __future__ import annotations

import http.client
import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from known_predictor import known, scene
from spatialembed.bulk import shard
from spatialembed.bulk.merge import merge
from spatialembed.bulk.plan import make_or_check
from spatialembed.bulk.sources import list_inputs
from spatialembed.bulk.store import WORK, Bucket, open_store
from spatialembed.errors import SpatialEmbedError

FAULTS = ("", "", "503", "", "", "reset", "", "", "stall")
STALL_S = float(os.environ.get("SPATIALEMBED_TEST_STALL", "1"))
"""Seconds. With 30 the client gives a request up, and asks again; the test then takes minutes."""


def proxy(port: int, counts: dict[str, int]) -> ThreadingHTTPServer:
    """Passes requests on; of each nine one is refused, one does its work and then resets."""
    turn = itertools.cycle(FAULTS)

    class Passing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def passed(self) -> None:
            fault = next(turn)
            counts[fault] = counts.get(fault, 0) + 1
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault == "503":
                self.send_error(503)
                self.close_connection = True
                return
            if fault == "stall":
                time.sleep(STALL_S)
            inner = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            inner.request(self.command, self.path, body, dict(self.headers))
            answer = inner.getresponse()
            content = answer.read()
            if fault == "reset":  # the put took effect, and nobody learns of it
                self.close_connection = True
                self.connection.close()
                return
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = answer.headers["Content-Length"] if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = passed

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Passing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, int]]]:
    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    counts: dict[str, int] = {}
    _, port = s3.get_host_and_port()
    passing = proxy(port, counts)
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{passing.server_address[1]}"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ):
        monkeypatch.setenv(name, value)
    inner = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    inner.request("PUT", "/all")
    assert inner.getresponse().status == 200
    yield "s3://all", counts
    passing.shutdown()
    passing.server_close()
    s3.stop()


def worker(out: str) -> shard.Worker:
    return shard.Worker(
        {
            "out": out, "device": "cpu", "engine": "torch", "precision": "float32", "threads": 1,
            "model": "", "diameter": None, "channel": None, "max_pixels": 1 << 28,
            "labels": "tar", "thresholds": {}, "images": 7, "no_progress": 1.0,
        }
    )  # fmt: skip


def results(out: str, source: str) -> dict[str, bytes]:
    """Parts and tables of a run in this process."""
    store = open_store(out)
    facts = worker(out).facts()["fingerprint"]
    plan = make_or_check(store, list_inputs([source], out), facts, 2, append=False)
    for number in range(plan.shards):
        worker(out).shard(number)
        worker(out).shard(number)  # another one, which finds it done
    merge(store, plan, parquet=True)
    store.tidy()
    names = set(store.names())
    assert not [name for name in names if name.startswith(WORK)]
    return {name: store.read(name) for name in names if name.startswith(("part", "obj", "inst"))}


@pytest.mark.slow
def test_a_bucket_holds_the_same_bytes(
    tmp_path: Path, bucket: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "load_for", lambda *_: known())
    url, counts = bucket
    store = Bucket(f"{url}/in")
    for i in range(5):
        path = tmp_path / "in" / f"d{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(i)).save(path)
        store.put(f"d{i % 2}/{i}.png", path.read_bytes())
    want = results(str(tmp_path / "out"), str(tmp_path / "in"))
    begun = time.monotonic()
    assert results(f"{url}/out", f"{url}/in") == want
    assert time.monotonic() - begun < 120 + counts["stall"] * 2 * STALL_S
    assert {"503", "reset", "stall"} <= set(counts)
    with pytest.raises(SpatialEmbedError, match="shard_differs"):
        worker(f"{url}/out")._put_once("part-000000-of-000003.tar", b"other bits")


def test_of_many_that_put_one_name_into_a_bucket_one_wins(
    bucket: tuple[str, dict[str, int]],
) -> None:
    """Also where the winner's answer was lost, and it asks again."""
    store = Bucket(f"{bucket[0]}/race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.put_new("x", b"%d" % i), range(8)))
    assert sum(won) == 1
    assert store.read("x") == b"%d" % won.index(True)
    assert obstore.head(store.store, "x")["size"] == 1


def test_a_bucket_that_is_not_there_is_said(
    bucket: tuple[str, dict[str, int]], tmp_path: Path
) -> None:
    with pytest.raises(SpatialEmbedError, match="store_failed"):
        list_inputs([f"{bucket[0]}-not/in"], str(tmp_path))
    with pytest.raises(SpatialEmbedError, match="no_images"):
        list_inputs([f"{bucket[0]}/nothing"], str(tmp_path))
