"""The builders of the engines in ``engines.table``; one is imported when it is used."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod

from engines.arguments import BuildArguments
from engines.job import Job
from engines.records import BuiltEngine
from engines.table import ENGINES, Engine


class Builder(ABC):
    """Builds one engine of the table. Making it raises EngineError where the engine's library is not installed."""

    @abstractmethod
    def __init__(self, engine: Engine) -> None: ...

    def check(self, arguments: BuildArguments) -> None:  # noqa: B027
        """Raise EngineError for arguments that could only fail after a long build."""

    @abstractmethod
    def build(self, job: Job) -> BuiltEngine:
        """Write the engine's files, and open it as the server will. Raises EngineError."""


def builder_for(arguments: BuildArguments) -> Builder:
    """The builder that was asked for, which has what it needs here. Raises EngineError."""
    engine = ENGINES[arguments.engine]
    module, _, name = engine.builder.partition(".")
    builder: Builder = getattr(importlib.import_module(f"engines.builders.{module}"), name)(engine)
    builder.check(arguments)
    return builder
