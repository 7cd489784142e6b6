"""Locust's page: a tab with documents a second, and a form whose faults are told where they were typed."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import flask

from client.errors import DisRankerError
from loadtest._traffic import ANSWER_BYTES

KEY = "documents"
COLUMNS = {"name": "Name", "documents": "Documents", "documents_per_second": "Documents/s"}
START, STATISTICS = "/swarm", "/stats/requests"


def extend_page(environment: Any, check: Callable[[Namespace], object]) -> None:
    """``check`` raises ValueError or DisRankerError for options of the form that make no sense."""
    app, shown = environment.web_ui.app, environment.web_ui.template_args
    structure = [{"key": key, "title": title} for key, title in COLUMNS.items()]
    shown |= {"extended_tabs": [{"key": KEY, "title": "Documents"}]}
    shown |= {"extended_tables": [{"key": KEY, "structure": structure}]}

    @app.before_request
    def refuse() -> Any:
        if not (flask.request.method == "POST" and flask.request.path.endswith(START)):
            return None
        try:
            check(_with_form(environment.parsed_options, flask.request.form))
        except (ValueError, DisRankerError) as error:
            return flask.jsonify({"success": False, "message": str(error), "host": environment.host})
        return None

    @app.after_request
    def add_documents(response: Any) -> Any:
        if flask.request.path.endswith(STATISTICS) and response.is_json:
            stats = environment.runner.stats
            rows = [_row(entry) for entry in (*stats.entries.values(), stats.total)]
            response.set_data(json.dumps({**response.json, "extended_stats": [{"key": KEY, "data": rows}]}))
        return response


def documents_per_second(entry: Any) -> float:
    """Over the time of the run. An answer is counted in bytes, of which each document has the same number."""
    seconds = (entry.last_request_timestamp or 0) - entry.start_time
    return float(entry.total_content_length / ANSWER_BYTES / seconds) if seconds > 0 else 0.0


def _row(entry: Any) -> dict[str, object]:
    documents = entry.total_content_length // ANSWER_BYTES
    return {"name": entry.name, "documents": documents, "documents_per_second": f"{documents_per_second(entry):.0f}"}


def _with_form(options: Namespace, form: Any) -> Namespace:
    """The options as Locust will change them, those with a default as its type. Raises ValueError."""
    typed = {name: value for name, value in form.items() if isinstance(getattr(options, name, None), str | float | int)}
    return Namespace(**{**vars(options), **{name: type(getattr(options, name))(text) for name, text in typed.items()}})
