"""``trainer.prepare``'s work in pandas, whose strings are Arrow's."""

from __future__ import annotations

import json
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pandas as pd

from bench.preparation.workers import rules


def main() -> None:
    arguments = rules.given()
    documents = texts(arguments.log)
    first = documents.groupby(["title", "summary"], sort=False)["doc_id"].transform("min")
    kept = pd.DataFrame({"doc_id": documents["doc_id"], "document": first})
    log = cleaned(arguments.log).merge(kept, on="doc_id").drop(columns="doc_id")
    queries = grouped(log)
    log = log.merge(queries[["query", "query_id"]], on="query").drop(columns="query")
    pairs = weighed(log, rules.weights(arguments.log))
    del log
    pairs = pairs.merge(queries.drop(columns="query").drop_duplicates("query_id"), on="query_id")
    for name, split in rules.LOGS.items():
        chosen = pairs[(pairs["split"] == name) & (pairs["clicks"] > 0)]
        write(chosen, documents, ["clicks"], arguments.output_dir / f"{split}.jsonl")
    train = pairs[pairs["split"] == "train"].sort_values(["shown", "document"], ascending=[False, True])
    pool = train[train.groupby("query_id", sort=False).cumcount() < rules.CANDIDATES]
    write(pool, documents, [], arguments.output_dir / "pool.jsonl")


def texts(folder: Path) -> pd.DataFrame:
    """One text an id: the most frequent, the first in the alphabet of equals."""
    rows = pd.read_parquet(folder / "documents")
    counted = rows.groupby(["doc_id", "title", "summary"], sort=False).size().reset_index(name="n")
    best = counted.sort_values(["n", "title", "summary"], ascending=[False, True, True])
    return best.drop_duplicates("doc_id").drop(columns="n")


def cleaned(folder: Path) -> pd.DataFrame:
    """The rows that are right and there once, of sessions that can be."""
    log = pd.read_parquet(folder / "impressions")
    right = log["time"].notna() & (log["position"] >= 1) & (log["click"] >= 0)
    for name in ("session", "query", "doc_id"):
        right &= log[name].str.strip() != ""
    log = log[right].drop_duplicates(["session", "time", "query", "doc_id", "position"])
    log["early"] = log["click_time"] < log["time"]
    sessions = log.groupby("session", sort=False)
    by = sessions.agg(early=("early", "any"), clicks=("click", "sum"), rows=("click", "size"), first=("time", "min"),
                      last=("time", "max"), queries=("query", "nunique"))  # fmt: skip
    wrong = by["early"] | (by["clicks"] > by["rows"]) | (by["last"] - by["first"] > rules.SESSION_S)
    wrong |= (by["queries"] > rules.SESSION_QUERIES) | (by["clicks"] > rules.SESSION_CLICKS)
    return log[~log["session"].isin(by.index[wrong])].drop(columns=["session", "time", "click_time", "early"])


def grouped(log: pd.DataFrame) -> pd.DataFrame:
    """The forms of each query, with its id, its split, and the form that was typed most often."""
    typed = log["query"].value_counts().rename_axis("query").reset_index(name="n")
    typed["form"] = typed["query"].map(rules.form)
    typed["key"] = typed["form"].map(str.casefold)
    forms = typed.groupby(["key", "form"], sort=False)["n"].sum().reset_index()
    keys = forms.sort_values(["n", "form"], ascending=[False, True]).drop_duplicates("key")
    keys = keys[["key", "form"]].rename(columns={"form": "text"})
    keys["query_id"], keys["split"] = keys["key"].map(rules.query_id), keys["key"].map(rules.split)
    return typed.merge(keys, on="key")[["query", "query_id", "split", "text"]]


def weighed(log: pd.DataFrame, weights: dict[int, float]) -> pd.DataFrame:
    """The pairs: how often shown, and the weight of satisfied clicks."""
    satisfied = log["dwell_s"].isna() | (log["dwell_s"] >= rules.MIN_DWELL_S)
    log = log.assign(clicks=log["click"].clip(upper=1) * log["position"].map(weights) * satisfied)
    pairs = log.groupby(["query_id", "document"], sort=False).agg(shown=("clicks", "size"), clicks=("clicks", "sum"))
    return pairs.round({"clicks": 4}).reset_index()


def write(pairs: pd.DataFrame, documents: pd.DataFrame, more: list[str], path: Path) -> None:
    rows = pairs.merge(documents, left_on="document", right_on="doc_id").sort_values(["query_id", "document"])
    columns = ["doc_id", "title", "summary", *more]
    with path.open("w", encoding="utf-8") as file:
        values = zip(*(rows[name] for name in ("query_id", "text", *columns)), strict=True)
        for (query_id, query), group in groupby(values, key=itemgetter(0, 1)):
            found = [dict(zip(columns, row[2:], strict=True)) for row in group]
            record = {"query_id": query_id, "query": query, "documents": found}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
