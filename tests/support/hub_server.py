"""A hub of models on 127.0.0.1, with the routes and headers that huggingface_hub reads, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<view>revision|tree)/(?P<revision>[^/]+))?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class Repository:
    revisions: dict[str, dict[str, bytes]]
    token: str | None = None
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        for name, files in self.revisions.items():
            commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
            if revision in (name, commit):
                return commit
        return None

    def files(self, commit: str) -> dict[str, bytes]:
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """`cuts`: file -> how often its download breaks off; `failures`: "HEAD file", "GET file", "GET" -> status."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    nonsense: bool = False
    url: str = ""

    def downloaded(self) -> list[str]:
        """The files whose contents were sent, in their repository."""
        matches = [RESOLVE.fullmatch(path) for method, path, _ in self.requests if method == "GET"]
        return sorted({match["file"] for match in matches if match})

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path  # still quoted: a slash in a branch's name does not separate folders
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if match is None:  # the library's own requests, such as a daily check for updates
            return self._refuse(404, "", "Not found")
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.hub.requests.append((self.command, unquote(path), headers))
        if self.hub.nonsense:
            return self._send(200, b"<html>log in to this network</html>", {})
        request = {key: value and unquote(value) for key, value in match.groupdict().items()}
        repository = self.hub.repositories.get(request["repo"])
        given = self.headers.get("Authorization")
        if given == "Bearer wrong":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.token and not repository.gated and given != f"Bearer {repository.token}"):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        commit = repository.commit(request["revision"] or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        files, name = repository.files(commit), request.get("file")
        if repository.gated and given != f"Bearer {repository.token}" and name is not None:
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        if name is None:
            listing = {"id": request["repo"], "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            tree = [{"type": "file", "path": file, "size": len(text), "oid": "0"} for file, text in files.items()]
            content = json.dumps(tree if request.get("view") == "tree" else listing).encode()
            return self._send(self.hub.failures.get("GET", 200), content, {})
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if status := self.hub.failures.get(f"{self.command} {name}"):
            return self._refuse(status, "", "")
        return self._file(name, files[name], commit)

    def _file(self, name: str, content: bytes, commit: str) -> None:
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        byte_range = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not byte_range:
            return self._send(200, content, headers, name)
        start = int(byte_range[1])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(206, content[start:], headers, name)

    def _send(self, status: int, content: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.hub.cuts.get(name, 0)
            self.hub.cuts[name] = cut - 1
            self.wfile.write(content[: len(content) // 2] if cut > 0 else content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})


def published(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their paths in a repository."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def closed_port() -> str:
    """The address of a server that is gone."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"
