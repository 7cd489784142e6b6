"""A drawn log of any size, in bounded memory: pages of ten results, clicked by a position-based model.

It has what ``trainer.prepare`` must take out: rows given twice, rows that are wrong, robots, sessions that cannot be,
documents without a text or with that of another one, queries typed in several forms. A page's query is drawn by Zipf's
law, and its documents are ten of its query's fourteen, in a place that changes. No two queries resemble each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

RESULTS, CANDIDATES, PAGES_OF_SESSION = 10, 14, 5
ROWS, TEXTS = 1_000_000, 100_000  # of a file
WORDS = 20_000
ROBOT_PAGES, ODD = 200, 50  # of each file: pages of one robot, sessions that cannot be, and rows that are wrong
DWELL_S = 40.0
LOOKED_AT = 1 / np.arange(1, RESULTS + 1) ** 0.8
MAPPING = """[log]
files = ["impressions/*.parquet"]

[log.columns]
session = "session"
time = "time"
query = "query"
document = "doc_id"
position = "position"
click = "click"
dwell = "dwell_s"
click_time = "click_time"

[documents]
files = ["documents/*.parquet"]
columns = { document = "doc_id", title = "title", summary = "summary" }
"""
Numbers = npt.NDArray[np.int64]
SYLLABLES = [f"{first}{second}" for first in "bcdfghjklmnprstvwz" for second in "aeiou"]


def write_log(folder: Path, impressions: int, seed: int = 0, rows_of_file: int = ROWS) -> None:
    """Make ``folder`` with ``log.toml``, ``propensities.tsv``, and Parquet files of impressions and of texts."""
    (folder / "impressions").mkdir(parents=True)
    (folder / "documents").mkdir()
    (folder / "log.toml").write_text(MAPPING, encoding="utf-8")
    shares = [f"{place}\t{share:.6f}\n" for place, share in enumerate(LOOKED_AT, 1)]
    (folder / "propensities.tsv").write_text("".join(shares), encoding="utf-8")
    draw = np.random.default_rng([seed, 0])
    parts = np.array(SYLLABLES)[draw.integers(0, len(SYLLABLES), (WORDS, 4))]
    words = pa.array(sorted({"".join(each[: 1 + place % 4]) for place, each in enumerate(parts)}))
    documents = max(2 * CANDIDATES, impressions // 20)
    queries = _queries(words, max(10, impressions // 40), draw)
    for number, first in enumerate(range(0, documents, TEXTS)):
        texts = _texts(words, first, min(documents, first + TEXTS), np.random.default_rng([seed, 1, number]))
        pq.write_table(texts, folder / "documents" / f"{number:04}.parquet")
    for number, first in enumerate(range(0, impressions, rows_of_file)):
        rows = min(rows_of_file, impressions - first)
        table = _impressions(queries, documents, number, rows, np.random.default_rng([seed, 2, number]))
        pq.write_table(table, folder / "impressions" / f"{number:04}.parquet")


def _queries(words: pa.Array, count: int, draw: np.random.Generator) -> pa.Array:
    """One to three words, and one that no other query has."""
    own = pa.array(["".join(SYLLABLES[int(place)] for place in _digits(number)) for number in range(count)])
    return pc.binary_join_element_wise(_joined(words, draw.integers(1, 4, count), draw), own, " ")


def _digits(number: int) -> Numbers:
    """Five syllables, in an order that has the near numbers far from each other."""
    places = (number * 2_654_435_761 % 90**5) // 90 ** np.arange(5) % 90
    return np.asarray(places, dtype=np.int64)


def _joined(words: pa.Array, lengths: Numbers, draw: np.random.Generator) -> pa.Array:
    """Texts of so many words each, drawn by Zipf's law."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    taken = words.take(pa.array(_zipf(len(words), int(ends[-1]), draw)))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), taken), " ")


def _zipf(kinds: int, count: int, draw: np.random.Generator) -> Numbers:
    """Numbers below ``kinds``, of which n + 1 is about half as frequent as n / 2."""
    return (kinds ** draw.random(count)).astype(np.int64) - 1


def _texts(words: pa.Array, first: int, last: int, draw: np.random.Generator) -> pa.Table:
    """30 documents of a thousand have the text of the one before, 20 a word more than it, and one has none."""
    numbers, kind = np.arange(first, last), draw.random(last - first)
    before = pa.array(np.maximum(0, np.arange(last - first) - (kind < 0.05)))
    titles, summaries = (_joined(words, draw.integers(*ends, last - first), draw) for ends in ((4, 9), (25, 45)))
    longer = pc.binary_join_element_wise(summaries.take(before), "more", " ")
    table = pa.table({
        "doc_id": _named("d", numbers), "title": titles.take(before),
        "summary": pc.if_else(pa.array((kind >= 0.03) & (kind < 0.05)), longer, summaries.take(before)),
    })  # fmt: skip
    return table.filter(pa.array(kind < 0.999))


def _named(letter: str, numbers: Numbers) -> pa.Array:
    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")


def _impressions(queries: pa.Array, documents: int, file: int, rows: int, draw: np.random.Generator) -> pa.Table:
    copies = rows // 1000
    pages = -(-(rows - copies) // RESULTS)
    session = np.arange(pages) // PAGES_OF_SESSION
    session[:ROBOT_PAGES] = 0
    query = _zipf(len(queries), pages, draw)
    time = 1_700_000_000 + file * 86_400 + draw.integers(0, 80_000, pages // PAGES_OF_SESSION + 1)[session]
    time += np.arange(pages) % PAGES_OF_SESSION * 60
    time[ROBOT_PAGES + PAGES_OF_SESSION :: PAGES_OF_SESSION][:ODD] += 2 * 86_400
    typed = queries.take(pa.array(query))
    forms = typed, pc.utf8_capitalize(typed), pc.replace_substring(typed, " ", "  "), pc.utf8_upper(typed)
    typed = pc.choose(pa.array(draw.choice(4, pages, p=[0.8, 0.1, 0.06, 0.04])), *forms)

    page, place = np.divmod(np.arange(rows - copies), RESULTS)
    candidate = query[page] * CANDIDATES + (draw.integers(0, CANDIDATES, pages)[page] + place) % CANDIDATES
    document = candidate * 2_654_435_761 % 2**32 * documents >> 32
    appeal = 0.02 + 0.5 * (candidate * 40_503 % 65_536 / 65_536) ** 4
    clicked = draw.random(len(page)) < LOOKED_AT[place] * appeal
    after = np.where(draw.random(len(page)) < ODD / len(page), -5, 5 + draw.integers(0, 60, len(page)))
    dwell, no_click = draw.exponential(DWELL_S, len(page)).round(1), pa.array(~clicked)
    position = place + 1
    position[draw.integers(0, len(page), ODD)] = 0
    table = pa.table({
        "session": _named(f"s{file}-", session[page]), "time": pa.array(time[page]),
        "query": typed.take(pa.array(page)), "doc_id": _named("d", document), "position": pa.array(position),
        "click": pa.array(clicked.astype(np.int64)),
        "dwell_s": pc.if_else(no_click, None, pa.array(dwell)),
        "click_time": pc.if_else(no_click, None, pa.array(time[page] + after)),
    })  # fmt: skip
    return pa.concat_tables([table, table.take(pa.array(draw.integers(0, len(table), copies)))]) if copies else table
