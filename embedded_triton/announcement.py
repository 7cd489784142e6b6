"""The lines that are printed when Triton starts: the engines that it loads, and where it answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from embedded_triton.checks import address_of, models_of, repositories_of, spelled
from model_repository.student.served import served_versions

URLS = {"grpc": ("gRPC", "{}"), "http": ("HTTP", "http://{}"), "metrics": ("metrics", "http://{}/metrics")}


def loading(arguments: Sequence[str]) -> str:
    """A line for each engine; for a repository without one, its path."""
    engines = [line for model, config in models_of(arguments) for line in _engines(model, config)]
    return "\n".join(f"loading  {each}" for each in engines or map(str, repositories_of(arguments)))


def serving(arguments: Sequence[str]) -> str:
    """A line for each endpoint."""
    found = ((name, url, address_of(arguments, endpoint)) for endpoint, (name, url) in URLS.items())
    return "\n".join(f"{name:9}{url.format(spelled(*address))}" for name, url, address in found if address)


def _engines(model: Path, config: Path) -> Iterator[str]:
    for version in served_versions(model, config):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a model of somebody else's
            manifest = json.loads((model / str(version) / "manifest.json").read_text(encoding="utf-8"))
            yield f"{model.name}, version {version}: {manifest['engine']} in {manifest['precision']}"
