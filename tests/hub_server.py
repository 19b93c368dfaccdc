"""A stand-in of the Hugging Face hub on this machine: the requests that fetching files makes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """Repositories as commits of files, and names of commits; what was asked is kept.

    commits: by repository and commit; names: by repository and tag or branch.
    """

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], Files] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str]] = []  # method and path
        self.url = ""

    def push(self, repository: str, files: Files, *names: str) -> str:
        """A new commit of a repository, which the names then stand for; returns it."""
        text = repr((repository, sorted(files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[repository, commit] = files
        self.names |= {(repository, name): commit for name in ("main", *names)}
        return commit

    @property
    def fetched(self) -> list[str]:
        """The files whose content was sent."""
        paths = [path for method, path in self.asked if method == "GET" and "/resolve/" in path]
        return [path.rpartition("/")[2] for path in paths]

    def found(self, repository: str, revision: str) -> tuple[str, Files] | str:
        """Commit and files, or the code of the error."""
        if repository in self.gated:
            return "GatedRepo"
        if (repository, "main") not in self.names:
            return "RepoNotFound"
        commit = self.names.get((repository, revision), revision)
        files = self.commits.get((repository, commit))
        return "RevisionNotFound" if files is None else (commit, files)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers at ``url``, a free port of loopback."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
                found = hub.found(match[1], match[2] or "main")
                if isinstance(found, tuple):
                    commit, files = found
                    listed = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
                    facts = {"id": match[1], "sha": commit, "siblings": listed}
                    return self.answer(200, json.dumps(facts).encode())
                return self.fault(found)
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path):
                found = hub.found(match[1], match[2])
                if not isinstance(found, tuple):
                    return self.fault(found)
                commit, files = found
                if match[3] not in files:
                    return self.fault("EntryNotFound")
                content = files[match[3]]
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                return self.answer(200, content, ("X-Repo-Commit", commit), ("ETag", tag))
            return self.answer(404, b"{}")

        do_HEAD = do_GET

        def fault(self, code: str) -> None:
            status = {"GatedRepo": 403, "RepoNotFound": 401}.get(code, 404)
            self.answer(status, b"{}", ("X-Error-Code", code))

        def answer(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(content)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
