"""A driver in one network and its worker in another, with nothing between them but a cable.

The network of a namespace is its own, so whatever passes goes by address over the pair of veth
devices; a process that bound to loopback, or was looked for there, would not be found.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from bulk_runs import finished, start, tree, wait_for, write_images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]
HEAD, NODE, PORT = "10.213.0.1", "10.213.0.2", "6390"
TOKEN = "a" * 64


class Networks(NamedTuple):
    """Commands that run another one in the network of the head, and of the node."""

    head: tuple[str, ...]
    node: tuple[str, ...]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def networks() -> Iterator[Networks]:
    """Two, joined; skips where they cannot be made."""
    names = [f"spatialembed-{side}-{os.getpid()}" for side in "ab"]
    ends = [f"se{side}{os.getpid()}" for side in "ab"]
    with ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "delete", name)
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for name, end, address in zip(names, ends, (HEAD, NODE), strict=True):
                ip("link", "set", end, "netns", name)
                ip("-n", name, "address", "add", f"{address}/24", "dev", end)
                ip("-n", name, "link", "set", end, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.skip(f"no network namespaces can be made here: {said}")
        yield Networks(*(("ip", "netns", "exec", name) for name in names))


@contextmanager
def ray_node(within: tuple[str, ...], *words: str) -> Iterator[subprocess.Popen[bytes]]:
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
    process = subprocess.Popen([*within, *ray], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def joined(networks: Networks) -> bool:
    """Whether the head knows two nodes."""
    ask = f"import ray; ray.init('{HEAD}:{PORT}', logging_level='error'); print(len(ray.nodes()))"
    said = subprocess.run(
        [*networks.node, sys.executable, "-c", ask], check=False, capture_output=True, text=True
    )
    return said.stdout.strip() == "2"


def test_a_worker_in_another_network_is_reached_by_address_and_token(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    images = write_images(tmp_path / "in", 8)
    code, said = finished(start(images, tmp_path / "whole", "--shard", "2", "--workers", "1"))
    assert code == 0, said
    # A short path: there are sockets in it, whose names are at most 107 bytes long.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as rooms:
        head = ("--head", "--port", PORT, "--node-ip-address", HEAD, "--num-cpus", "1",
                "--include-dashboard", "false", "--temp-dir", rooms)  # fmt: skip
        node = ("--address", f"{HEAD}:{PORT}", "--node-ip-address", NODE, "--num-cpus", "0")
        with ray_node(networks.head, *head), ray_node(networks.node, *node):
            wait_for(lambda: joined(networks))
            flags = ("--shard", "2", "--on", f"{HEAD}:{PORT}")
            out = tmp_path / "out"
            code, said = finished(start(images, out, *flags, within=networks.node))
            assert code == 0, said
            assert tree(out) == tree(tmp_path / "whole")
            monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
            code, said = finished(start(images, tmp_path / "no", *flags, within=networks.node))
            assert (code, "no_ray" in said) == (5, True), said
