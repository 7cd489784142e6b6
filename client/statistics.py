"""The requests that each model of a server answered, and where their time went, by Triton's statistics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

# Requests, executions (batches) and nanoseconds by kind, of one model; a Counter can be subtracted.
Spent = Counter[str]
TOTAL, STEPS = "success", ("queue", "compute_input", "compute_infer", "compute_output")  # kinds, as Triton names them


def spent_by_model(answers: Iterable[dict[str, Any]]) -> dict[str, Spent]:
    """The requests and time of each model since it was loaded, over its versions and all servers; ``answers`` are
    theirs to ``get_inference_statistics``."""
    models: dict[str, Spent] = defaultdict(Counter)
    for version in (version for answer in answers for version in answer.get("model_stats", [])):
        # int64 comes as text, and what is 0 not at all.
        kinds = version.get("inference_stats", {})
        counts = {"requests": kinds.get(TOTAL, {}).get("count", 0), "executions": version.get("execution_count", 0)}
        counts |= {kind: kinds.get(kind, {}).get("ns", 0) for kind in (TOTAL, *STEPS)}
        models[version["name"]].update({name: int(count) for name, count in counts.items()})
    return models
