"""The builders of the engines in ``engines.table``; one is imported when it is used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from engines.job import BuildArguments, Job
from engines.parity import ParityReport
from engines.records import BuiltEngine
from engines.table import ENGINES


class Builder(ABC):
    """Builds one engine of the table."""

    def check(self, arguments: BuildArguments) -> None:  # noqa: B027
        """Raise EngineError for arguments that could only fail after a long build."""

    def fitting(self) -> tuple[str, ...]:
        """The precisions that may be faster than others on this machine's processor, for ``--engine auto``."""
        return ("fp32",)

    @abstractmethod
    def build(self, job: Job) -> BuiltEngine:
        """Write the engine's files, and open it as the server will. Raises EngineError."""

    def judged(self, job: Job) -> Judged:
        """Build, and compare with the checkpoint. Raises EngineError."""
        built = self.build(job)
        return Judged(job, built, job.yardstick.report(built.run, built.judged))


class Judged(NamedTuple):
    """An engine, and how it compares with its checkpoint."""

    job: Job
    built: BuiltEngine
    report: ParityReport


def builder_for(arguments: BuildArguments) -> Builder:
    """The builder that was asked for, which has what it needs here. Raises EngineError."""
    builder: Builder = ENGINES[arguments.engine].builder_class()()
    builder.check(arguments)
    return builder
