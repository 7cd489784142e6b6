"""``trainer.prepare``'s work in Polars, with its streaming engine."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from bench.preparation.workers import rules


def main() -> None:
    arguments = rules.given()
    documents = texts(arguments.log)
    kept = documents.select("doc_id", document=pl.col("doc_id").min().over("title", "summary"))
    log = cleaned(arguments.log).join(kept, on="doc_id").drop("doc_id")
    queries = grouped(log)
    log = log.join(queries.select("query", "query_id"), on="query").drop("query")
    pairs = weighed(log, rules.weights(arguments.log))
    splits = queries.group_by("query_id").agg(pl.col("split").first(), pl.col("text").first())
    pairs = pairs.join(splits, on="query_id")
    for name, split in rules.LOGS.items():
        chosen = pairs.filter((pl.col("split") == name) & (pl.col("clicks") > 0))
        write(chosen, documents, ["clicks"], arguments.output_dir / f"{split}.jsonl")
    place = pl.struct(-pl.col("shown"), "document").rank("ordinal").over("query_id")
    pool = pairs.filter(pl.col("split") == "train").filter(place <= rules.CANDIDATES)
    write(pool, documents, [], arguments.output_dir / "pool.jsonl")


def texts(folder: Path) -> pl.DataFrame:
    """One text an id: the most frequent, the first in the alphabet of equals."""
    counted = pl.scan_parquet(folder / "documents" / "*.parquet").group_by("doc_id", "title", "summary").len()
    best = counted.sort("len", "title", "summary", descending=[True, False, False])
    return best.unique("doc_id", keep="first", maintain_order=True).drop("len").collect(engine="streaming")


def cleaned(folder: Path) -> pl.DataFrame:
    """The rows that are right and there once, of sessions that can be."""
    named = pl.all_horizontal(pl.col(name).str.strip_chars() != "" for name in ("session", "query", "doc_id"))
    right = named & pl.col("time").is_not_null() & (pl.col("position") >= 1) & (pl.col("click") >= 0)
    log = pl.scan_parquet(folder / "impressions" / "*.parquet").filter(right)
    rows = log.unique(["session", "time", "query", "doc_id", "position"], keep="any").collect(engine="streaming")
    clicks = pl.col("click").sum()
    wrong = (
        (pl.col("click_time") < pl.col("time")).any()
        | (clicks > pl.len())
        | (pl.col("time").max() - pl.col("time").min() > rules.SESSION_S)
        | (pl.col("query").n_unique() > rules.SESSION_QUERIES)
        | (clicks > rules.SESSION_CLICKS)
    )
    robots = rows.lazy().group_by("session").agg(wrong=wrong).filter("wrong").collect(engine="streaming")
    return rows.join(robots, on="session", how="anti").drop("session", "time", "click_time")


def grouped(log: pl.DataFrame) -> pl.DataFrame:
    """The forms of each query, with its id, its split, and the form that was typed most often."""
    typed = log.group_by("query").len()
    typed = typed.with_columns(form=pl.col("query").map_elements(rules.form, return_dtype=pl.String))
    typed = typed.with_columns(key=pl.col("form").map_elements(str.casefold, return_dtype=pl.String))
    forms = typed.group_by("key", "form").agg(pl.col("len").sum()).sort("len", "form", descending=[True, False])
    keys = forms.unique("key", keep="first", maintain_order=True).select("key", text="form")
    keys = keys.with_columns(
        query_id=pl.col("key").map_elements(rules.query_id, return_dtype=pl.String),
        split=pl.col("key").map_elements(rules.split, return_dtype=pl.String),
    )
    return typed.join(keys, on="key").select("query", "query_id", "split", "text")


def weighed(log: pl.DataFrame, weights: dict[int, float]) -> pl.DataFrame:
    """The pairs: how often shown, and the weight of satisfied clicks."""
    satisfied = pl.col("dwell_s").is_null() | (pl.col("dwell_s") >= rules.MIN_DWELL_S)
    weight = pl.col("position").replace_strict(weights, return_dtype=pl.Float64)
    clicks = (pl.col("click").clip(upper_bound=1) * weight).filter(satisfied).sum().round(4)
    pairs = log.lazy().group_by("query_id", "document").agg(shown=pl.len().cast(pl.Int64), clicks=clicks)
    return pairs.collect(engine="streaming")


def write(pairs: pl.DataFrame, documents: pl.DataFrame, more: list[str], path: Path) -> None:
    shown = pairs.join(documents, left_on="document", right_on="doc_id").sort("query_id", "document")
    record = pl.struct(pl.col("document").alias("doc_id"), "title", "summary", *more).alias("documents")
    queries = shown.group_by("query_id", pl.col("text").alias("query"), maintain_order=True).agg(record)
    queries.write_ndjson(path)


if __name__ == "__main__":
    main()
