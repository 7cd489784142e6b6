"""The process of one system: it answers the bench's questions, one line of JSON each. Standard library only.

    {"ask": "scores", "pairs": [[query, [text, ..]], ..]}    ->  {"scores": [[..], ..]}
    {"ask": "use", "option": {..}}                           ->  {}
    {"ask": "load", "cell": {..}, "seed": 0, "hot": false}   ->  the fields of a Sample
    {"ask": "call", "name": .., "arguments": {..}}           ->  what the system's own method of that name returns

A question that fails is answered ``{"error": "Type: message"}``, and the next may follow.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from bench.serving.cells import Cell, Option
from bench.serving.load import Score, measure
from bench.serving.traffic import Traffic, load


class System(Protocol):
    """The interface of a worker's module."""

    versions: dict[str, str]

    def connect(self) -> Score:
        """A caller's connection, made in the thread that uses it."""

    def use(self, option: Option) -> None:
        """Take other settings."""


Open = Callable[[dict[str, Any]], AbstractContextManager[System]]


def main(open_system: Open) -> None:
    """A worker's command: ``SETUP.json``, a file with ``traffic`` (a file) and whatever the system needs."""
    setup = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Libraries print; the bench reads the real standard output.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        with open_system(setup) as system:
            serve(system, Traffic(load(Path(setup["traffic"]))), sys.stdin, answers)


def serve(system: System, traffic: Traffic, questions: TextIO, answers: TextIO) -> None:
    """Report that the system is ready, and answer until the questions end."""
    _say(answers, {"versions": system.versions})
    for line in questions:
        try:
            answer = _answer(system, traffic, json.loads(line))
        except Exception as error:  # whatever a library raises is the bench's to report
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answers, answer)


def _answer(system: System, traffic: Traffic, question: dict[str, Any]) -> dict[str, Any]:
    if question["ask"] == "scores":
        score = system.connect()
        found = [score(query, tuple(texts)) for query, texts in question["pairs"]]
        return {"scores": [[float(value) for value in values] for values in found]}
    if question["ask"] == "use":
        system.use(question["option"])
        return {}
    if question["ask"] == "load":
        cell = Cell(**question["cell"])
        if question["hot"]:  # what comes again in the cell comes for the first time here
            system.connect()(traffic.queries[0], tuple(traffic.hot))
        requests = traffic.requests(cell.documents, cell.repeated, question["seed"])
        return asdict(measure(system.connect, requests, cell))
    called: dict[str, Any] = getattr(system, question["name"])(traffic, **question["arguments"])
    return called


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
