"""Datasets of ir_datasets as records: queries with the candidates of their first stage and all judged documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TEXTS = ("text", "body", "abstract", "summary")  # fields that datasets keep their documents' texts in


def ir_datasets_records(dataset_id: str) -> Iterator[dict[str, Any]]:
    """A record for each query that has candidates: its scored documents in their order, then other judged ones.

    Labels are the qrels' grades. Raises LookupError for an unknown id, a dataset without queries, documents or
    candidates, and a candidate whose text is not there.
    """
    import ir_datasets  # not before: most data are files, and it takes half a second

    try:
        dataset = ir_datasets.load(dataset_id)
    except KeyError:
        raise LookupError("ir_datasets knows no such dataset") from None
    if not (dataset.has_queries() and dataset.has_docs() and (dataset.has_qrels() or dataset.has_scoreddocs())):
        raise LookupError("the dataset needs queries, documents, and qrels or scoreddocs")
    grades: dict[str, dict[str, int]] = dataset.qrels_dict() if dataset.has_qrels() else {}
    candidates = _candidates(dataset, grades)
    store = dataset.docs_store()
    for query in dataset.queries_iter():
        if doc_ids := candidates.get(query.query_id):
            judged, texts = grades.get(query.query_id, {}), store.get_many(doc_ids)
            documents = [_document(query.query_id, doc_id, texts, judged.get(doc_id)) for doc_id in doc_ids]
            yield {"query_id": query.query_id, "query": query.default_text(), "documents": documents}


def _candidates(dataset: Any, grades: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    candidates: dict[str, dict[str, None]] = {}
    for pair in dataset.scoreddocs_iter() if dataset.has_scoreddocs() else ():
        candidates.setdefault(pair.query_id, {})[pair.doc_id] = None
    for query_id, judged in grades.items():
        candidates.setdefault(query_id, {}).update(dict.fromkeys(judged))
    return {query_id: list(doc_ids) for query_id, doc_ids in candidates.items()}


def _document(query_id: str, doc_id: str, texts: dict[str, Any], grade: int | None) -> dict[str, Any]:
    if doc_id not in texts:
        raise LookupError(f"document {doc_id!r} of query {query_id!r} is not in the collection")
    document = texts[doc_id]
    field = next((name for name in TEXTS if hasattr(document, name)), None)
    summary = document.default_text() if field is None else getattr(document, field)
    return {"doc_id": doc_id, "title": getattr(document, "title", ""), "summary": summary, "label": grade}
