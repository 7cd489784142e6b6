"""The gateway's log, as lines for people or as JSON. Each line has the request that it is of, and never its text."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from uvicorn.config import LOGGING_CONFIG

from client.gateway.correlation import REQUEST

LOG = logging.getLogger("uvicorn.error")
ACCESS = "uvicorn.access"
SELDOM_S = 10.0


class Seldom:
    """Warns at most once in ten seconds, of what others can bring about as often as they like."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next, self._kept_back = clock, 0.0, 0

    def warn(self, message: str) -> None:
        if self._clock() < self._next:
            self._kept_back += 1
            return
        more = f" ({self._kept_back} lines like this were left out before)" if self._kept_back else ""
        LOG.warning("%s%s", message, more)
        self._next, self._kept_back = self._clock() + SELDOM_S, 0


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.name == ACCESS and isinstance(record.args, tuple) and len(record.args) == 5:
            told |= zip(("client", "method", "path", "http_version", "status"), record.args, strict=True)
        if (request := REQUEST.get()) is not None:
            told |= request.told()
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def configuration(log_format: str) -> dict[str, Any]:
    """The ``log_config`` of uvicorn."""
    config = copy.deepcopy(LOGGING_CONFIG)
    if log_format == "json":
        config["formatters"] = {name: {"()": Json} for name in config["formatters"]}
    else:
        for formatter in config["formatters"].values():
            formatter["fmt"] += "%(of_request)s"
    config["filters"] = {"of_request": {"()": lambda: _complete}}
    for handler in config["handlers"].values():
        handler["filters"] = ["of_request"]
    return config


def _complete(record: logging.LogRecord) -> bool:
    """Add the request. Of an access line's address keep the path: parameters, which no route has, may be text."""
    request = REQUEST.get()
    told = {} if request is None else request.told()
    record.of_request = "".join(f" {name}={value}" for name, value in told.items())
    if record.name == ACCESS and isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, address, *rest = record.args
        record.args = (client, method, str(address).partition("?")[0], *rest)
    return True
