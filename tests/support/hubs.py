"""A real HTTP server of the hub's protocol for pushing a model: repositories, large files by LFS, commits."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_test"


class Hub:
    """The hub keeps ``files`` of all commits by ``repository/path``, the addresses of ``commits``, and how many of them
    each of the ``branches`` has, by ``repository@branch``. ``private`` says of a repository whether it was made so."""

    def __init__(self) -> None:
        self.files, self.commits, self.private = dict[str, bytes](), list[str](), dict[str, bool]()
        self.branches = dict[str, int]()
        self._large = dict[str, bytes]()

    def answer(self, path: str, body: bytes, url: str) -> Any:
        """The JSON that answers a request. Raises LookupError for a branch that is not there, FileExistsError for a new
        one that is."""
        if path.startswith("/lfs/"):
            self._large[path.removeprefix("/lfs/")] = body
            return {}
        if found := re.fullmatch("/api/models/(.+/.+)/(branch|commit|preupload)/(.+)", path):
            repository, verb, revision = found.groups()
            return self._on_branch(repository, verb, revision, body, url)
        asked = json.loads(body)
        if path == "/api/repos/create":
            repository = f"{asked['organization']}/{asked['name']}"
            self.private.setdefault(repository, asked.get("visibility") == "private")
            self.branches.setdefault(f"{repository}@main", 0)
            return {"url": f"{url}/{repository}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        assert path.endswith(".git/info/lfs/objects/batch"), path
        uploads = {each["oid"]: {"upload": {"href": f"{url}/lfs/{each['oid']}"}} for each in asked["objects"]}
        return {"objects": [{**each, "actions": uploads[each["oid"]]} for each in asked["objects"]]}

    def _on_branch(self, repository: str, verb: str, revision: str, body: bytes, url: str) -> dict[str, Any]:
        branch = f"{repository}@{revision}"
        if verb == "branch":
            if branch in self.branches:
                raise FileExistsError(branch)
            self.branches[branch] = 0
            return {}
        if branch not in self.branches:
            raise LookupError(branch)
        if verb == "commit":
            self.branches[branch] += 1
            return self._commit(repository, body, url)
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
        known = zip(names, modes, strict=True)
        return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in known]}

    def _commit(self, repository: str, body: bytes, url: str) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[f"{repository}/{value['path']}"] = self._large[value["oid"]]
        self.commits.append(f"{url}/{repository}/commit/{len(self.commits)}")
        return {"commitUrl": self.commits[-1], "commitOid": str(len(self.commits)), "pullRequestUrl": None}

    def downloaded(self, repository: str, directory: Path) -> Path:
        """The files of a repository, as a download would leave them."""
        for name, content in self.files.items():
            if name.startswith(f"{repository}/"):
                path = directory / name.removeprefix(f"{repository}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        return directory


@contextmanager
def hub_running(hub: Hub) -> Iterator[str]:
    """The hub's address. It answers whoever sends TOKEN."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            allowed = self.headers.get("authorization") == f"Bearer {TOKEN}" or self.path.startswith("/lfs/")
            url = f"http://{self.headers['host']}"
            status, answer = 401, {"error": "Invalid credentials"}
            try:
                if allowed:
                    status, answer = 200, hub.answer(self.path, body, url)
            except LookupError:
                status = 404
            except FileExistsError:
                status = 409
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have the hub's client ask this address, as HF_ENDPOINT does for a process that starts, and upload by LFS."""
    for name, value in (("ENDPOINT", url), ("HF_HUB_DISABLE_XET", True), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(constants, name, value)
