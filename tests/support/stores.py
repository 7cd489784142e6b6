"""An S3 store in this process, moto's, which can be told to fail."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from werkzeug.serving import WSGIRequestHandler, make_server

from trainer import addresses, stores

BUCKET = "bucket"
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@dataclass
class Store:
    """Requests in whose ``METHOD /path`` the pattern ``fails`` is found are refused: ``times`` of them, behind the
    first ``spare`` ones."""

    address: str = f"s3://{BUCKET}"
    fails: str = ""
    status: str = ""
    times: int = 0
    spare: int = 0

    def refuse(self, fails: str, status: str, times: int = 1000, spare: int = 0) -> None:
        self.fails, self.status, self.times, self.spare = fails, status, times, spare

    def refuses(self, request: str) -> bool:
        if not self.times or not re.search(self.fails, request):
            return False
        if self.spare:
            self.spare -= 1
            return False
        self.times -= 1
        return True

    def around(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
            if self.refuses(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{query}"):
                start(self.status, [("Content-Type", "application/xml")])
                return [ERROR.format(code=self.status.partition(" ")[2].replace(" ", "")).encode()]
            return application(environ, start)

        return answer

    def files(self, key: str = "") -> set[str]:
        """The objects below a key, without it."""
        root = f"{BUCKET}/{key}".rstrip("/")
        found = stores.connected("s3").get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
        return {each.path.removeprefix(f"{root}/") for each in found if each.is_file}


def forget() -> None:
    """Another machine has no mirror yet."""
    shutil.rmtree(addresses.mirror(), ignore_errors=True)


@contextmanager
def store_running(mirror: Path) -> Iterator[Store]:
    """The environment of this process names the store and the mirror, also for the processes that it starts."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        create_backend_app,
    )  # not before: it takes some seconds

    store = Store()
    server = make_server(
        "127.0.0.1", 0, store.around(DomainDispatcherApplication(create_backend_app)), threaded=True,
        request_handler=Quiet,
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "3",
            "DISRANKER_MIRROR": str(mirror),
        }.items():  # fmt: skip
            patch.setenv(name, value)
        stores.connected.cache_clear()
        makes = fs.S3FileSystem(endpoint_override=f"127.0.0.1:{server.port}", scheme="http", allow_bucket_creation=True)
        makes.create_dir(BUCKET)
        yield store
    stores.connected.cache_clear()
    server.shutdown()
