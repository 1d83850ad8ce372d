"""A Hub on the loopback interface: what huggingface_hub needs of the Hub's HTTP protocol, and a log.

Repositories are dictionaries in memory.  What is to go wrong, a test says with :attr:`LoopbackHub.fault`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<action>preupload|commit|revision)/(?P<revision>[^/]+)"
)

# What huggingface_hub asks on its own account, once a day, whoever uses it: answered with 404, not logged.
HOUSEKEEPING = {"/api/agent-harnesses"}


class Repository:
    """Commits, each a dictionary of files; ``refs`` name some of them."""

    def __init__(self, private: str = "") -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.token = private  # the token that a private repository asks for
        self.gated = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        digest = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[digest] = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        self.refs[ref] = digest
        return digest


class LoopbackHub:
    """The server; use as a context manager.

    Attributes:
        log: (method, path) of each request, in order.
        authorizations: the Authorization header of each request.
        fault: called as ``fault(handler, method, file, body)`` before a file is sent; True: it has answered.
        etag: of a file's content.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.log: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.created: list[dict] = []
        self.fault: Callable[[Handler, str, str, bytes], bool] = lambda *_: False
        self.etag: Callable[[str, bytes], str | None] = lambda file, body: hashlib.sha256(body).hexdigest()

    def __enter__(self) -> LoopbackHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def repository(self, name: str, **options: str) -> Repository:
        return self.repositories.setdefault(name, Repository(**options))

    def count(self, method: str, ending: str) -> int:
        """How many requests of this method had a path with this ending."""
        return sum(verb == method and path.endswith(ending) for verb, path in self.log)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silence: the log is a list."""

    def _begin(self) -> LoopbackHub:
        hub: LoopbackHub = self.server.hub  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        if path not in HOUSEKEEPING:
            hub.log.append((self.command, path))
            hub.authorizations.append(self.headers.get("Authorization"))
        return hub

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a response; underscores in header names stand for hyphens."""
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        hub = self._begin()
        path = urlsplit(self.path).path
        if match := RESOLVE.fullmatch(path):
            self._file(hub, match["repo"], unquote(match["revision"]), match["file"])
        elif match := API.fullmatch(path):
            self._json({"id": match["repo"], "sha": hub.repositories[match["repo"]].refs[match["revision"]]})
        else:
            self.answer(200 if path == "/" else 404)

    do_HEAD = do_GET

    def _file(self, hub: LoopbackHub, name: str, revision: str, file: str) -> None:
        repository = hub.repositories.get(name)
        if (
            repository is None
            or self.headers.get("Authorization") != (f"Bearer {repository.token}") != "Bearer "
        ):
            return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if repository.gated:
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        if file not in repository.commits[commit]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        body = repository.commits[commit][file]
        if hub.fault(self, self.command, file, body):
            return None
        return self.send_file(body, commit, hub.etag(file, body))

    def send_file(self, body: bytes, commit: str, etag: str | None) -> None:
        """The content with the Hub's headers, or the rest of it if a range is asked for."""
        headers = {"X_Repo_Commit": commit, **({"ETag": f'"{etag}"'} if etag else {})}
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(ranged[1])
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, body[start:], **headers)
        return self.answer(200, body, **headers)

    def do_POST(self) -> None:
        hub = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            payload = json.loads(body)
            name = f"{payload['organization']}/{payload['name']}"
            hub.created.append(payload)
            known = name in hub.repositories
            hub.repository(name)
            return self._json({"url": f"{hub.url}/{name}"}, 409 if known else 200)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        match = API.fullmatch(path)
        if match is None:
            return self.answer(404)
        repository = hub.repositories[match["repo"]]
        if match["action"] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            regular = [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self._json({"files": regular})
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = repository.commit(files, match["revision"])
        return self._json({"commitUrl": f"{hub.url}/{match['repo']}/commit/{commit}", "commitOid": commit})
