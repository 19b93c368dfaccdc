"""The routes. Nothing here decodes or infers: bytes go to a model's process, and come back."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from spatialembed.errors import USAGE, nearest
from spatialembed.serve.faults import Refused
from spatialembed.serve.formats import FORMATS
from spatialembed.serve.metrics import Metrics
from spatialembed.serve.model import Model
from spatialembed.serve.multipart import one_file

HELD_BYTES = 1 << 29
"""Of all images together that are arriving or waiting."""
LONGEST_NAME = 255
IMAGES = re.compile("/v1/models/([^/]+)/instances")
WILD = {"*/*": "json", "application/*": "json", "image/*": "labels", "text/*": "csv"}
NUMBERS = {
    "foreground": float,
    "start": float,
    "membership": float,
    "min_pixels": int,
    "min_free": float,
    "max_instances": int,
}
STATIC = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript",
          ".png": "image/png", ".json": "application/json"}  # fmt: skip


class Limits(NamedTuple):
    """Of an image."""

    most_bytes: int
    most_pixels: int


class Site:
    """The handlers of the routes over some models."""

    def __init__(self, models: Mapping[str, Model], limits: Limits, metrics: Metrics) -> None:
        self.models, self.limits, self.metrics = models, limits, metrics
        self.held = 0  # bytes of images that are arriving or waiting

    def app(self) -> Starlette:
        """The application, without the gate."""
        one = "/v1/models/{name}"
        kept = one + "/maps/{id}"
        routes = [
            Route("/", _file("static", "index.html")),
            Route("/page.css", _file("static", "page.css")),
            Route("/page.js", _file("static", "page.js")),
            Route("/openapi.json", _file("", "openapi.json")),
            *(Route(f"/examples/{n}.png", _file("examples", f"{n}.png")) for n in (1, 2, 3)),
            Route("/healthz", self.live),
            Route("/readyz", self.ready),
            Route("/metrics", self.measures),
            Route("/v1/models", self.list),
            Route(one + "/instances", self.instances, methods=["POST"]),
            Route(kept + "/instances", self.again),
            Route(kept + "/image", self.picture),
            Route(kept, self.forget, methods=["DELETE"]),
        ]
        handlers: Any = {
            Refused: self._refused,
            ClientDisconnect: self._gone,
            HTTPException: self._http,
            Exception: self._unforeseen,
        }
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False  # a redirect would repeat the Host header
        return app

    def room(self, scope: Scope) -> None:
        """Raises Refused for an image whose model has none; for ``Gate``."""
        wanted = IMAGES.fullmatch(scope["path"])
        if wanted and scope["method"] == "POST" and wanted[1] in self.models:
            self.models[wanted[1]].check_room()

    # --- about the server

    async def live(self, _: Request) -> Response:
        """Whether it runs."""
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        """Whether every model has found in the example what it should, and is there."""
        states = {name: model.state for name, model in self.models.items()}
        fine = all(state == "ready" for state in states.values())
        return JSONResponse({"ready": fine, "models": states}, 200 if fine else 503)

    async def measures(self, _: Request) -> Response:
        """Counters for Prometheus."""
        text = generate_latest(self.metrics.registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    async def list(self, _: Request) -> Response:
        """The models and the limits."""
        models = [
            {"name": name, "state": model.state, **model.facts}
            for name, model in self.models.items()
        ]
        most_bytes, most_pixels = self.limits
        told = {"models": models, "max_bytes": most_bytes, "max_pixels": most_pixels}
        return JSONResponse(told)

    # --- images

    async def instances(self, request: Request) -> Response:
        """The instances of the image in the body."""
        model = self._model(request)
        kind = self._check_head(request)
        asked = _asked(request, more=("keep", "name"))
        body = bytearray()
        try:
            content = await self._content(request, body, kind, asked)
            asked["visitor"] = request.client.host if request.client else ""
            return await self._answered(request, model, {"do": "image", **asked}, content)
        finally:
            self.held -= len(body)

    def _check_head(self, request: Request) -> str:
        """The media type of the body. Raises Refused ``too_large``, ``unsupported_type``."""
        length = request.headers.get("content-length", "0")
        if len(length) > 15 or int(length) > self.limits.most_bytes:
            raise self._too_large()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        known = kind.startswith("image/") or kind == "application/octet-stream"
        if coding != "identity" or not (known or kind == "multipart/form-data"):
            what = f"a body of type {kind or 'unknown'}, coded {coding}"
            raise Refused("unsupported_type", what, "send the image with its type, image/png say")
        return kind

    def _too_large(self) -> Refused:
        what = f"more than {self.limits.most_bytes} bytes"
        return Refused("too_large", what, "send a smaller image")

    async def _content(
        self, request: Request, body: bytearray, kind: str, asked: dict[str, Any]
    ) -> bytearray | memoryview:
        """The file, read into ``body``. Raises Refused ``too_large``, ``busy``."""
        async for chunk in request.stream():
            body += chunk
            self.held += len(chunk)
            if len(body) > self.limits.most_bytes:
                raise self._too_large()
            if self.held > HELD_BYTES:
                raise Refused("busy", "too many images arrive at once", "try again", retry=5)
        if kind != "multipart/form-data":
            return body
        content, name = one_file(request.headers["content-type"], body)
        asked["name"] = request.query_params.get("name") or _base(name) or "image"
        return content

    async def again(self, request: Request) -> Response:
        """The instances of an image that was kept, by other thresholds."""
        return await self._of_kept(request, "again", _asked(request))

    async def picture(self, request: Request) -> Response:
        """A kept image as PNG."""
        return await self._of_kept(request, "picture", {})

    async def forget(self, request: Request) -> Response:
        """Forget a kept image."""
        await self._of_kept(request, "forget", {})
        return Response(status_code=204)

    async def _of_kept(self, request: Request, do: str, asked: dict[str, Any]) -> Response:
        model = self._model(request)
        question = {"do": do, "id": request.path_params["id"], **asked}
        return await self._answered(request, model, question, b"")

    def _model(self, request: Request) -> Model:
        """Raises Refused ``no_such_model``."""
        name = request.path_params["name"]
        if name not in self.models:
            remedy = f"there are {', '.join(self.models)}"
            raise Refused("no_such_model", "no model of that name", remedy)
        return self.models[name]

    async def _answered(
        self, request: Request, model: Model, asked: dict[str, Any], body: Any
    ) -> Response:
        """What the model says, or its fault; who leaves is not waited for."""
        job = model.submit(asked, body)
        leaving = asyncio.ensure_future(_left(request))
        try:
            both: set[asyncio.Future[Any]] = {job.answer, leaving}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not job.answer.done():
                raise ClientDisconnect
            told, content = job.answer.result()
        finally:
            leaving.cancel()
            model.drop(job)
        if "error" in told:
            raise Refused.of(told["error"])
        seconds = {"wait": job.waited, **told.get("seconds", {})}
        self.metrics.answered(model.name, asked["do"], seconds)
        timing = ", ".join(f"{stage};dur={1000 * s:.1f}" for stage, s in seconds.items())
        headers = {"Server-Timing": timing}
        if told.get("maps"):
            headers["Maps"] = told["maps"]
        if "media" in told:
            headers["Content-Type"] = told["media"]
        return Response(content, headers=headers)

    async def _refused(self, _: Request, fault: Any) -> Response:
        self.metrics.refused(fault.code)
        return refusal(fault)

    async def _http(self, _: Request, error: Any) -> Response:
        """Starlette's own 404 and 405."""
        known = error.status_code == 405
        code = "bad_method" if known else "no_such_path"
        answer = refusal(Refused(code, error.detail, "see /openapi.json"))
        answer.headers.update(error.headers or {})
        self.metrics.refused(code)
        return answer

    async def _unforeseen(self, _: Request, __: Exception) -> Response:
        self.metrics.refused("internal")
        return refusal(Refused("internal", "a fault of the server", "see its log"))

    async def _gone(self, _: Request, __: Exception) -> Response:
        """To nobody: the client has left."""
        self.metrics.refused("left")
        return Response(status_code=400)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refusal(fault: Refused) -> Response:
    """The answer."""
    return Response(fault.body, fault.status, fault.headers, "application/json")


def _file(folder: str, name: str) -> Any:
    """Handler of a file in the package, which is read once."""
    path = resources.files("spatialembed").joinpath("serve", *filter(None, [folder, name]))
    content = path.read_bytes() if path.is_file() else None
    media = STATIC["." + name.rpartition(".")[2]]

    async def handler(_: Request) -> Response:
        if content is None:
            raise HTTPException(404)
        headers = {"content-type": media, "cache-control": "no-cache"}
        return Response(content, headers=headers)

    return handler


def _asked(request: Request, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The question in the query and in ``Accept``. Raises Refused ``bad_setting``."""
    query = request.query_params
    known = [*NUMBERS, "format", "polygons", *more]
    for name in query:
        if name not in known or len(query.getlist(name)) > 1:
            best = nearest(name, known)
            what = f"{name[:40]!r} is no parameter, or is given twice"
            remedy = f"the nearest is {best}" if best else f"there are {', '.join(known)}"
            raise _bad_setting(what, remedy)
    flags = {name: query.get(name, "0") for name in ("polygons", "keep")}
    if not set(flags.values()) <= {"0", "1"}:
        raise _bad_setting("polygons and keep are 0 or 1")
    name = query.get("name") or "image"
    if len(name) > LONGEST_NAME:
        raise _bad_setting(f"a name of more than {LONGEST_NAME} characters")
    return {
        "format": _format(request),
        "thresholds": {n: _number(n, query[n], kind) for n, kind in NUMBERS.items() if n in query},
        "name": name,
        **{name: value == "1" for name, value in flags.items()},
    }


def _number(name: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
        if len(text) > 40 or not math.isfinite(value):
            raise ValueError
        return value
    except ValueError:
        raise _bad_setting(
            f"{name} is no {'number' if kind is float else 'whole number'}"
        ) from None


def _bad_setting(what: str, remedy: str = "see /openapi.json") -> Refused:
    return Refused("bad_setting", what, remedy, exit=USAGE)


def _format(request: Request) -> str:
    """By ``?format=``, else by ``Accept``. Raises Refused ``bad_setting``, ``not_acceptable``."""
    if (given := request.query_params.get("format")) is not None:
        if given not in FORMATS:
            raise _bad_setting(f"format {given[:40]!r}", f"there are {', '.join(FORMATS)}")
        return given
    by_media = {media: name for name, media in FORMATS.items() if media} | WILD
    ranges = []
    for part in request.headers.get("accept", "*/*").split(","):
        media, *parameters = (p.strip().lower() for p in part.split(";"))
        weights = [p[2:] for p in parameters if p.startswith("q=")]
        ranges.append((-_weight(weights), media))
    for weight, media in sorted(ranges, key=lambda r: r[0]):
        if weight < 0 and media in by_media:
            return by_media[media]
    remedy = f"there are {', '.join(filter(None, FORMATS.values()))}"
    raise Refused("not_acceptable", "none of the types that Accept names", remedy)


def _weight(texts: list[str]) -> float:
    try:
        return float(texts[0]) if texts else 1.0
    except ValueError:
        return 0.0


def _base(name: str | None) -> str:
    """The last part of a file's name, as browsers and curl send it."""
    return (name or "").replace("\\", "/").rpartition("/")[2][:LONGEST_NAME]
