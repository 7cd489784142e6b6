"""The growth of our cost with the length of the pairs and with the size of the groups, in numbers and as a picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.report import Spread, picture
from bench.training.job import Group, Job, Outcome, Shape
from bench.training.material import single_token_words
from bench.training.rounds import Progress, System, run
from trainer.checkpoints.load import load_encoder

MEANS = (32, 64, 128, 256, 512)  # tokens of a pair
SIZES = (2, 4, 8, 16, 32, 64, 128)  # documents of a group
MEAN_OF_SIZES, SIZE_OF_MEANS = 32, 16
TOKENS = 4096  # of a step, in every point
SHAPES = [(mean, SIZE_OF_MEANS) for mean in MEANS] + [(MEAN_OF_SIZES, size) for size in SIZES if size != SIZE_OF_MEANS]
QUERY_WORDS, FIXED = 4, 3  # tokens of a pair: of the query, and beside both texts


@dataclass(frozen=True)
class Point:
    """One measurement. Its spread is over the steps of one run."""

    mean_tokens: float
    documents: int
    tokens_per_second: Spread
    pairs_per_second: Spread


def groups_of_length(
    words: Sequence[str], mean: int, documents: int, count: int, longest: int, draw: random.Random
) -> tuple[Group, ...]:
    """Groups whose pairs have ``mean`` tokens on average, uniformly up to half of it more or less, at most ``longest``.

    Every word must be one token.
    """
    half = min(mean // 2, longest - mean)
    groups = []
    for _ in range(count):
        lengths = [mean + draw.randint(-half, half) for _ in range(documents)]
        texts = (" ".join(draw.choices(words, k=length - FIXED - QUERY_WORDS)) for length in lengths)
        query = " ".join(draw.choices(words, k=QUERY_WORDS))
        groups.append(Group(query, tuple(texts), tuple(draw.gauss(0.0, 1.0) for _ in lengths)))
    return tuple(groups)


def measure(system: System, checkpoint: str, steps: int, threads: int, progress: Progress) -> list[Point]:
    """A point for each shape of SHAPES."""
    words, points = single_token_words(checkpoint), []
    longest = load_encoder(checkpoint)[0].config.max_pair_tokens
    for mean, documents in SHAPES:
        queries = max(1, TOKENS // (mean * documents))
        job = Job(checkpoint, (), Shape(queries, queries), steps)
        count = queries * (job.warm_up + steps + 1)
        groups = groups_of_length(words, mean, documents, count, longest, random.Random(0))
        points.append(_point(run(system, replace(job, groups=groups), threads), groups, queries, job.warm_up))
        progress()
    return points


def _point(outcome: Outcome, groups: Sequence[Group], queries: int, warm_up: int) -> Point:
    documents, tokens = len(groups[0].documents), []
    for step, _ in enumerate(outcome.step_seconds, start=warm_up):
        texts = [text for group in groups[step * queries : (step + 1) * queries] for text in group.documents]
        tokens.append(sum(FIXED + QUERY_WORDS + len(text.split()) for text in texts))
    return Point(
        sum(tokens) / (queries * documents * len(tokens)),
        documents,
        Spread.of([count / seconds for count, seconds in zip(tokens, outcome.step_seconds, strict=True)]),
        Spread.of([queries * documents / seconds for seconds in outcome.step_seconds]),
    )


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Tokens and pairs a second over the mean length and over the size of a group, as a PNG."""
    by_length = [point for point in points if point.documents == SIZE_OF_MEANS]
    by_size = sorted(
        (point for point in points if abs(point.mean_tokens - MEAN_OF_SIZES) < MEAN_OF_SIZES / 4),
        key=lambda point: point.documents,
    )
    with picture(path, title, (9, 5.5)) as figure:
        axes = figure.subplots(2, 2, sharex="col", sharey="row")
        lengths, sizes = [point.mean_tokens for point in by_length], [float(point.documents) for point in by_size]
        _column(axes[:, 0], by_length, lengths, f"mean tokens of a pair (groups of {SIZE_OF_MEANS})")
        _column(axes[:, 1], by_size, sizes, f"documents of a group (mean {MEAN_OF_SIZES} tokens)")
        for ax in axes.flat:  # once all is drawn: a limit that is set early would not grow with the other column
            ax.set_ylim(bottom=0)


def _column(axes: Any, points: Sequence[Point], places: Sequence[float], label: str) -> None:
    spreads = {
        "tokens per second": [point.tokens_per_second for point in points],
        "pairs per second": [point.pairs_per_second for point in points],
    }
    for ax, (name, values) in zip(axes, spreads.items(), strict=True):
        ax.plot(places, [value.median for value in values], marker="o")
        ax.fill_between(places, [value.low for value in values], [value.high for value in values], alpha=0.2)
        ax.set_xscale("log", base=2)
        ax.set_xticks(places, [f"{place:.0f}" for place in places])
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel(label)
