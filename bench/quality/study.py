"""A study as its file declares it: data, steps, variants, systems, collections, comparisons and curves."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.errors import DisRankerError
from trainer.measures.metrics import MEASURE

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
SUFFIX = re.compile(r"\{out\}([\w.]*)")
# One of several parts of data, or all others, by a hash of the query's id: judged.test0of5, judged.train0of5.
PART = re.compile(r"(?P<whole>.+)\.(?P<key>test|train)(?P<number>\d+)of(?P<parts>[1-9]\d*)")
OWN = ("seed", "fold", "out")  # placeholders that the runner fills itself
COMMANDS = ("trainer", "examples", "build_engines", "engines", "client", "bench")
COUNTED = ("pairs", "minutes")  # of a cell, which a curve may be drawn over
# Keys of a collection whose data a step ranks or is judged by; all other data that a step names is trained on.
JUDGED = ("test", "candidates", "qrels")


class StudyError(DisRankerError):
    """A study file that does not say what to do, or data that it cannot be done with."""


class Part(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Collection(Part):
    """Judged queries. Every key is a placeholder in the cells of this collection.

    With ``folds`` the queries of ``test`` are divided, and ``train`` is those of the other folds.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    test: str
    folds: int = Field(1, ge=1)

    def texts(self) -> dict[str, str]:
        return {"test": self.test, **self.__pydantic_extra__}

    def parts(self, number: int) -> dict[str, str]:
        """Both parts of a fold as data that the runner makes, and nothing where there are no folds."""
        names = ("test", "train") if self.folds > 1 else ()
        return {key: f"{{{self.test.strip('{}')}.{key}{number}of{self.folds}}}" for key in names}


class System(Part):
    """A run or score file, as a text with placeholders, and the variants that it is restricted to."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str | list[str]] = Field(init=False)

    run: str

    def options(self, variant: str, known: Mapping[str, str]) -> list[str]:
        chosen = self.__pydantic_extra__.get(variant, list(known))
        return [chosen] if isinstance(chosen, str) else chosen

    def fixes(self, variant: str) -> bool:
        return isinstance(self.__pydantic_extra__.get(variant), str)


class Comparison(Part):
    """Systems, by name or pattern, whose differences from the baseline are reported."""

    baseline: str
    systems: list[str] = ["*"]


class Curve(Part):
    """The first measure over a number of each system: a variant's option, or its pairs or minutes."""

    x: str
    systems: list[str] = ["*"]


class Study(Part):
    """The whole file."""

    title: str
    seeds: list[int] = Field([0], min_length=1)
    measures: list[str] = Field([MEASURE], min_length=1)
    leaks: Literal["refuse", "drop", "report"] = "refuse"
    data: dict[str, str]
    variants: dict[str, dict[str, str]] = {}
    steps: dict[str, str]
    systems: dict[str, System] = Field(min_length=1)
    collections: dict[str, Collection] = Field(min_length=1)
    comparisons: dict[str, Comparison] = Field(min_length=1)
    curves: dict[str, Curve] = {}

    def templates(self) -> Iterator[tuple[str, str]]:
        """Every text with placeholders, and where it stands."""
        yield from ((f"step {name!r}", text) for name, text in self.steps.items())
        yield from ((f"system {name!r}", system.run) for name, system in self.systems.items())
        for name, options in self.variants.items():
            yield from ((f"variant {name!r}", text) for text in options.values())
        for name, collection in self.collections.items():
            yield from ((f"collection {name!r}", text) for text in collection.texts().values())

    def named(self) -> dict[str, list[str]]:
        """Names and patterns of systems, by the place where they stand."""
        found = {f"comparison {name!r}": each.systems for name, each in self.comparisons.items()}
        return found | {f"curve {name!r}": each.systems for name, each in self.curves.items()}

    def keys(self) -> set[str]:
        """The placeholders that collections fill."""
        folded = {"train"} if any(each.folds > 1 for each in self.collections.values()) else set()
        return folded.union(*(each.texts() for each in self.collections.values()))


def read_study(path: Path) -> Study:
    """Raises StudyError, which names the file and the place in it."""
    try:
        study = Study.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        _check(study)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (StudyError, ValueError) as error:  # of TOML, and of bytes that are no text
        raise StudyError(f"{path}: {error}") from error
    return study


def _check(study: Study) -> None:
    names = [*study.data, *study.steps, *study.variants, *study.keys(), *OWN]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"{name!r} is the name of two things, among data, steps, variants and collections' keys")
        if not re.fullmatch(r"[\w-]+", name):
            raise StudyError(f"{name!r}: a name is of letters, digits, _ and -")
    for place, (name, path) in enumerate(study.data.items()):
        part = PART.fullmatch(path[1:-1])
        if path.startswith("{") and not (part and part["whole"] in [*study.data][:place]):
            raise StudyError(f"data {name!r}: {path} is no part of data above it, such as '{{judged.train0of5}}'")
    for where, text in study.templates():
        if unknown := [name for name in PLACEHOLDER.findall(text) if name not in names]:
            raise StudyError(f"{where}: {{{unknown[0]}}} is no data, step, variant or key of a collection")
    for name, text in study.steps.items():
        if not SUFFIX.search(text):
            raise StudyError(f"step {name!r}: its command has no {{out}}, the path of its output")
        module_of(name, text)
    for name, system in study.systems.items():
        for variant in system.__pydantic_extra__:
            known = study.variants.get(variant, {})
            if unknown := [each for each in system.options(variant, known) if each not in known]:
                raise StudyError(f"system {name!r}: {variant} = {unknown[0]!r} is no variant")
    for name, collection in study.collections.items():
        for key in ("test", "qrels"):
            if (named := collection.texts().get(key)) and named[1:-1] not in study.data:
                raise StudyError(f"collection {name!r}: {key} = {named!r} must be data, such as '{{dl19}}'")
        if collection.folds > 1 and "train" in collection.texts():
            raise StudyError(f"collection {name!r}: folds make 'train' out of 'test': leave it out")
    for name, curve in study.curves.items():
        options = study.variants.get(curve.x, {"no variant": ""})
        if curve.x not in COUNTED and (odd := [each for each in options if not each.replace(".", "", 1).isdecimal()]):
            raise StudyError(f"curve {name!r}: x = {curve.x!r} is not one of {COUNTED} or numbers: {odd[0]!r}")


def module_of(step: str, command: str) -> str:
    """The module of ours that a command begins with. Raises StudyError where there is none."""
    try:
        module = shlex.split(command)[0].removesuffix(".py")
        found = importlib.util.find_spec(module) if module.partition(".")[0] in COMMANDS else None
        if found and found.submodule_search_locations:  # a package
            found = importlib.util.find_spec(f"{module}.__main__")
    except (ValueError, ImportError) as error:
        raise StudyError(f"step {step!r}: {error}") from error
    if not found:
        raise StudyError(f"step {step!r}: {module!r} is no command of this project, such as trainer.distill")
    return module
