"""Load, abuse, starve and end a server on loopback, and say how it took it.

    python benchmarks/serve.py [--full] [--only load,equal,...] [--model shapes] [--leak]
                               [--json PATH]

The short form takes a few minutes; ``--full`` takes an hour, half of it the soak:

    load      20 times what it can do: only 200 and 503; how soon it refuses; how much it still does
    equal     bytes equal to ``predict``, at concurrency 1 and 32
    slow      sockets that send or take slowly: closed at the deadline; others hardly notice
    fuzz      broken requests: no process dies, /healthz stays quick
    leavers   clients that leave: the next request does not wait for their work
    soak      memory, descriptors, threads, processes after many rounds of all kinds of requests
    drain     20 requests that wait and 20 that are arriving at SIGTERM: none is lost

The client of ``load`` is a process of its own that does little; its processor time, that of the
process that listens and that of the model are told apart. All share the machine: the model has all
cores but one, which is for the process that listens and for the client. ``--leak`` plants a leak,
which ``soak`` has to find: the exit code is 1 where memory, descriptors, threads or processes grow.
Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import spatialembed
from spatialembed.command.bench import machine
from spatialembed.inference.predictor import load
from spatialembed.results.labels import write_labels

QUEUE, RECEIVE_S = 8, 5.0
MOST_GROWTH = {"bytes": 1 << 24, "model bytes": 1 << 24}
"""In a soak; of descriptors, threads and processes none."""
LEAK = """
import sys
from spatialembed.command.main import main
from spatialembed.serve.gate import Gate
kept, check = [], Gate.check
def leaking(gate, scope):
    kept.append(bytes(range(256)) * 1024)
    check(gate, scope)
Gate.check = leaking
sys.exit(main(sys.argv[1:]))
"""
SAME = {"engine": "torch", "precision": "float32", "threads": max(1, (os.cpu_count() or 1) - 1)}


class Answer(NamedTuple):
    """status: 0 where there was none."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Server:
    """``spatialembed serve`` in a process of its own."""

    def __init__(self, model: str, queue: int = QUEUE, leak: bool = False) -> None:
        flags = [word for name, value in SAME.items() for word in (f"--{name}", str(value))]
        limits = ["--queue", str(queue), "--receive", str(RECEIVE_S), "--port", "0"]
        self.model = model
        self.process = subprocess.Popen(
            [
                sys.executable,
                *(["-c", LEAK] if leak else ["-m", "spatialembed"]),
                "serve",
                "--model",
                model,
                *limits,
                *flags,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2].partition("/")[0])

    async def ready(self) -> None:
        """Until it is."""
        while (await self.get("/readyz")).status != 200:
            await asyncio.sleep(0.2)

    async def get(self, path: str) -> Answer:
        """Of a path."""
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def request(self, image: bytes, query: str = "") -> bytes:
        """That posts an image."""
        head = f"POST /v1/models/{self.model}/instances?{query} HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
        return head.encode() + image

    async def post(self, image: bytes, query: str = "") -> Answer:
        """An image."""
        return await self.ask(self.request(image, query))

    async def ask(self, data: bytes, wait: float = 120.0, pause: float = 0.0) -> Answer:
        """One request on a connection of its own; pause: s before its last byte."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(wait):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    if pause:
                        writer.write(data[:-1])
                        await asyncio.sleep(pause)
                        data = data[-1:]
                    writer.write(data)
                    await writer.drain()
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    status, *lines = head.split("\r\n")
                    pairs = (line.partition(": ") for line in lines if line)
                    headers = {name.lower(): value for name, _, value in pairs}
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return Answer(0, {}, b"", time.monotonic() - begun)
        return Answer(int(status.split()[1]), headers, body, time.monotonic() - begun)

    def state(self) -> dict[str, int]:
        """Of the event loop: bytes of memory, descriptors, threads; and all processes below it."""
        proc = Path(f"/proc/{self.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        return {
            "bytes": pages * os.sysconf("SC_PAGESIZE"),
            "descriptors": len(os.listdir(proc / "fd")),
            "threads": len(os.listdir(proc / "task")),
            "processes": len(_below(self.process.pid)),
        }

    def model_process(self) -> int:
        """Its id."""
        return _below(self.process.pid)[0]

    def model_bytes(self) -> int:
        """Memory of the model's process."""
        pages = Path(f"/proc/{self.model_process()}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")


def processor_seconds(process: int) -> float:
    """That it has used."""
    used = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def _below(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    found = [int(word) for word in text.split()]
    return [*found, *(p for child in found for p in _below(child))]


def picture(seed: int, side: int = 96) -> bytes:
    """A part of an example, with noise of its own."""
    data = (resources.files(spatialembed) / "serve" / "examples" / "3.png").read_bytes()
    with Image.open(io.BytesIO(data)) as whole:
        array = np.asarray(whole.convert("L"))
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, array.shape[0] - side), rng.integers(0, array.shape[1] - side)
    stream = io.BytesIO()
    noisy = array[y : y + side, x : x + side] // 2 + rng.integers(0, 9, (side, side), np.uint8)
    Image.fromarray(noisy.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def percentile(seconds: list[float], percent: float) -> float:
    """ms."""
    return round(1000 * float(np.percentile(seconds, percent)), 1) if seconds else 0.0


async def closed(server: Server, clients: int, seconds: float) -> list[Answer]:
    """So many clients, each asking again as soon as it is answered."""
    end, image = time.monotonic() + seconds, picture(0)

    async def client() -> list[Answer]:
        answers = []
        while time.monotonic() < end:
            answers.append(await server.post(image))
        return answers

    return [a for answers in await asyncio.gather(*(client() for _ in range(clients)))
            for a in answers]  # fmt: skip


class Sent(NamedTuple):
    """A request of ``flood``; status: 0 where there was none."""

    status: int
    may_retry: bool
    seconds: float


def flood(port: int, data: bytes, rate: float, seconds: float) -> tuple[list[Sent], float, float]:
    """Send requests at a rate, whatever comes back; also returns the seconds and processor seconds.

    Sockets and nothing above them: a client that is slower than the server would measure itself.
    """
    poll, answers, sent = select.epoll(), list[Sent](), 0
    live: dict[int, tuple[socket.socket, float, bytearray]] = {}
    begun, used = time.monotonic(), time.process_time()
    while (passed := time.monotonic() - begun) < seconds or live:
        while passed < seconds and sent < rate * passed:
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            poll.register(one, select.EPOLLOUT)
            live[one.fileno()] = one, time.monotonic(), bytearray()
            sent += 1
        for number, event in poll.poll(0.002):
            one, since, got = live[number]
            try:
                if event & select.EPOLLOUT:
                    one.send(data)  # of a few kB: the kernel takes it as a whole
                    poll.modify(number, select.EPOLLIN)
                    continue
                part = one.recv(1 << 16)
            except OSError:
                part = b""
            got += part
            head, end, body = bytes(got).lower().partition(b"\r\n\r\n")
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if not part or (end and len(body) >= int(length)):
                status = int(head[9:12]) if end else 0
                answers.append(Sent(status, b"retry-after" in head, time.monotonic() - since))
                poll.unregister(number)
                live.pop(number)
                one.close()
    return answers, time.monotonic() - begun, time.process_time() - used


async def overload(server: Server, full: bool) -> dict[str, Any]:
    """20 times what it can do."""
    seconds, image = 60.0 if full else 10.0, picture(0)
    alone = [a.seconds for a in await closed(server, 1, 3)]
    service = float(np.median(alone))
    peak = sum(a.status == 200 for a in await closed(server, QUEUE, seconds / 2)) / (seconds / 2)
    listening, model = server.process.pid, server.model_process()
    before = server.state()["bytes"], server.model_bytes()
    used = processor_seconds(listening), processor_seconds(model)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        work = pool.submit(flood, server.port, server.request(image), 20 * peak, seconds)
        answers, took, client = await asyncio.wrap_future(work)
    spent = processor_seconds(listening) - used[0], processor_seconds(model) - used[1]
    fine = [a for a in answers if a.status == 200]
    refused = [a for a in answers if a.status == 503]
    await asyncio.sleep(1)
    return {
        "requests": len(answers),
        "statuses": dict(Counter(a.status for a in answers)),
        "service ms": round(1000 * service, 1),
        "peak per s": round(peak, 1),
        "goodput / peak": round(len(fine) / took / peak, 2),
        "refused p50 ms": percentile([a.seconds for a in refused], 50),
        "refused p99 ms": percentile([a.seconds for a in refused], 99),
        "all with Retry-After": all(a.may_retry for a in refused),
        "accepted p99 / ((queue + 1) x service)": round(
            percentile([a.seconds for a in fine], 99) / 1000 / ((QUEUE + 1) * service), 2
        ),
        "a second later / service": round((await server.post(image)).seconds / service, 2),
        "listening MB more": round((server.state()["bytes"] - before[0]) / 1e6, 1),
        "model MB more": round((server.model_bytes() - before[1]) / 1e6, 1),
        "processor ms a request, client": round(1000 * client / len(answers), 2),
        "processor ms a request, listening": round(1000 * spent[0] / len(answers), 2),
        "processor ms an image, model": round(1000 * spent[1] / max(1, len(fine)), 1),
        "cores in use": round((client + sum(spent)) / took, 2),
    }


async def equal(server: Server, full: bool) -> dict[str, Any]:
    """Bytes of label images."""
    number = 200 if full else 24
    predictor = load(server.model, device="cpu", **SAME)
    images, wanted = [picture(seed) for seed in range(number)], []
    with tempfile.TemporaryDirectory() as folder:
        for image in images:
            (Path(folder) / "a.png").write_bytes(image)
            found = predictor(Path(folder) / "a.png")
            wanted.append(write_labels(Path(folder) / "a", found.labels).read_bytes())
    report: dict[str, Any] = {"images": number}
    for clients in (1, 32):
        room = asyncio.Semaphore(clients)

        async def one(image: bytes, room: asyncio.Semaphore = room) -> bytes:
            async with room:
                while (answer := await server.post(image, "format=labels")).status == 503:
                    await asyncio.sleep(0.05)
                return answer.body

        got = await asyncio.gather(*(one(image) for image in images))
        report[f"different at {clients}"] = sum(a != b for a, b in zip(got, wanted, strict=True))
    return report


async def slow(server: Server, full: bool) -> dict[str, Any]:
    """Sockets of four kinds, held open; meanwhile usual requests."""
    number = 500 if full else 100
    head = f"POST /v1/models/{server.model}/instances HTTP/1.1\r\nHost: localhost\r\n".encode()
    begun_so = [b"", head, head + b"Content-Type: image/png\r\nContent-Length: 99\r\n\r\nx",
                b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200]  # fmt: skip

    async def hold(data: bytes) -> float:
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(data)
        if len(data) > 1000:  # who asks and does not read sees the end only by writing
            while time.monotonic() - begun < 6 * RECEIVE_S:
                await asyncio.sleep(0.2)
                writer.write(b"G")
                if writer.transport.is_closing():
                    break
        else:
            try:
                while await reader.read(1 << 16):
                    pass
            except OSError:
                pass
        writer.transport.abort()
        return time.monotonic() - begun

    usual = [a.seconds for a in await closed(server, 1, RECEIVE_S - 1.5)]
    held = [asyncio.create_task(hold(begun_so[i % 4])) for i in range(number)]
    await asyncio.sleep(1)  # until all are connected
    beside = [a.seconds for a in await closed(server, 1, RECEIVE_S - 1.5)]
    times = await asyncio.gather(*held)
    return {
        "sockets": number,
        "closed after s at most": round(max(times), 1),
        "deadline s": RECEIVE_S,
        "usual p99 ms": percentile(usual, 99),
        "beside them p99 ms": percentile(beside, 99),
    }


async def fuzz(server: Server, full: bool) -> dict[str, Any]:
    """Requests with bytes changed, dropped, doubled and cut."""
    number, rng = 50_000 if full else 1500, random.Random(0)
    before = _below(server.process.pid)
    image = picture(0)
    head = f"POST /v1/models/{server.model}/instances?start=0.9 HTTP/1.1\r\nHost: localhost\r\n"
    seeds = [
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"{head}Content-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image,
        f"{head}Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"%x\r\n" % len(image) + image + b"\r\n0\r\n\r\n",
    ]  # fmt: skip
    statuses: Counter[int] = Counter()
    health = []

    async def client(count: int) -> None:
        for _ in range(count):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(1, 8)):
                at = int(len(data) * rng.random() ** 3)  # rather in the head
                data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
            statuses[(await server.ask(bytes(data), wait=0.3)).status] += 1

    clients = asyncio.gather(*(client(number // 16) for _ in range(16)))
    while not clients.done():
        health.append((await server.get("/healthz")).seconds)
        await asyncio.sleep(0.05)
    await clients
    return {
        "requests": sum(statuses.values()),
        "statuses (0: none in 0.3 s)": dict(statuses),
        "processes that died": len(set(before) - set(_below(server.process.pid))),
        "health p99 ms": percentile(health, 99),
    }


async def leavers(server: Server, full: bool) -> dict[str, Any]:
    """Clients that send an image and go."""
    number, image = 1000 if full else 100, picture(0)
    usual = float(np.median([a.seconds for a in await closed(server, 1, 3)]))
    head = f"POST /v1/models/{server.model}/instances HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    for _ in range(number):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + image)
        await writer.drain()
        writer.close()
    taken = await server.get("/healthz")  # comes after them: all have been read
    await asyncio.sleep(2 * usual)  # the one that was at the model
    after = await server.post(image)
    return {
        "leavers": number,
        "read after ms": round(1000 * taken.seconds, 1),
        "next": after.status,
        "next / usual": round(after.seconds / usual, 2),
    }


async def soak(server: Server, full: bool) -> dict[str, Any]:
    """One thing after the other; the first fifth of the time warms up."""
    seconds = 1800.0 if full else 45.0
    begun, rng, states, done = time.monotonic(), random.Random(0), [], 0
    while (passed := time.monotonic() - begun) < seconds:
        image = picture(done, rng.randrange(40, 200))
        query = f"keep=1&format={rng.choice(['json', 'labels', 'csv', 'geojson', 'overlay'])}"
        await server.post(image, query if rng.random() < 0.5 else "")
        await server.post(image[: len(image) // 2])
        await server.ask(b"GET / HTTP/1.1\nHost: a\n\n")
        done += 1
        if passed > seconds / 5:
            states.append(server.state() | {"model bytes": server.model_bytes()})
    first, last = states[: len(states) // 3], states[-(len(states) // 3) :]
    grown = {
        key: int(np.median([s[key] for s in last]) - np.median([s[key] for s in first]))
        for key in states[0]
    }
    leaks = [key for key, more in grown.items() if more > MOST_GROWTH.get(key, 0)]
    more = {f"{key} more": value for key, value in grown.items()}
    return {"minutes": round(seconds / 60, 1), "rounds": done, **more, "leaks": leaks}


async def drain(server: Server, full: bool) -> dict[str, Any]:
    """A server of its own, with room for all."""
    ending = Server(server.model, queue=64)
    try:
        await ending.ready()
        request, model = ending.request(picture(0, 200)), ending.model_process()
        os.kill(model, signal.SIGSTOP)  # so that none is done before the signal
        waiting = [asyncio.create_task(ending.ask(request)) for _ in range(20)]
        while b'accepted{model="%s"} 20.0' % server.model.encode() not in (
            (await ending.get("/metrics")).body
        ):
            await asyncio.sleep(0.1)
        arriving = [asyncio.create_task(ending.ask(request, pause=3)) for _ in range(20)]
        await asyncio.sleep(2)
        ending.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        new = await ending.get("/readyz")
        os.kill(model, signal.SIGCONT)
        return {
            "answers to those waiting": dict(Counter([(await a).status for a in waiting])),
            "answers to those arriving": dict(Counter([(await a).status for a in arriving])),
            "a new one": new.status,
            "exit code": await asyncio.to_thread(ending.process.wait, 60),
        }
    finally:
        ending.process.terminate()


PARTS: dict[str, Callable[[Server, bool], Awaitable[dict[str, Any]]]] = {
    "load": overload, "equal": equal, "slow": slow, "fuzz": fuzz, "leavers": leavers,
    "soak": soak, "drain": drain,
}  # fmt: skip


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """The parts, one after the other, with one server."""
    report: dict[str, Any] = {"machine": machine(), "model": given.model}
    server = Server(given.model, leak=given.leak)
    try:
        await server.ready()
        for name in given.only.split(","):
            report[name] = await PARTS[name](server, given.full)
            print(name, json.dumps(report[name]), flush=True)
    finally:
        server.process.terminate()
    return report


def main() -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    report = asyncio.run(run(given))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(report.get("soak", {}).get("leaks")))


if __name__ == "__main__":
    sys.exit(main())
