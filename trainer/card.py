"""Write a checkpoint's model card again, with what trainer.evaluate measured, and push the checkpoint to a hub.

    python -m trainer.evaluate --data test.jsonl --systems bm25 runs/student --output table.json
    python -m trainer.card --model runs/student --results table.json --license apache-2.0
    python -m trainer.card --model runs/student --push_to_hub true --hub_model_id acme/student

Every stage writes the card of its result. Additions by hand are kept, metadata except measures and text below its
comment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.addresses import shown
from trainer.checkpoints.card import write_card
from trainer.checkpoints.hub import Push
from trainer.checkpoints.load import ADAPTER_FILE, CheckpointError, load_encoder
from trainer.checkpoints.record import are_texts, read_record, write_record
from trainer.command import command, parse
from trainer.data.records import DataError


@dataclass
class CardArguments:
    """The checkpoint, what was measured, and where it goes."""

    model: str = field(metadata={"help": "Checkpoint directory."})
    results: list[str] = field(default_factory=list, metadata={"help": "Tables that trainer.evaluate --output wrote."})
    system: str | None = field(
        default=None, metadata={"help": "Name of the checkpoint in the tables; by default it is known by its path."}
    )
    license: str | None = field(default=None, metadata={"help": "Licence, by its name on the hub."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the checkpoint with its card."})
    hub_model_id: str | None = field(default=None, metadata={"help": "OWNER/NAME on the hub."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Whether a new repository is private."})
    hub_token: str | None = field(default=None, metadata={"help": "Token; by default that of hf auth login."})
    hub_revision: str | None = field(default=None, metadata={"help": "Branch of the repository."})


@command
def main(argv: Sequence[str] | None = None) -> None:
    (arguments,) = parse(argv, CardArguments)
    push, directory = Push.of(arguments), Path(arguments.model)
    if push and (directory / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{directory}: an adapter is not pushed; merge it first, with trainer.merge")
    load_encoder(arguments.model)
    rows = [_row_of(directory, table, arguments.system) for table in arguments.results]
    record = read_record(directory)
    if rows:
        known = {_judged(row): row for row in (*record.get("evaluations", ()), *rows)}
        record["evaluations"] = [*known.values()]
    write_card(directory, record, push.repo_id if push else directory.absolute().name, arguments.license)
    if rows:
        write_record(directory, record)
    print(push.checkpoint(directory) if push else shown(f"{directory}: its card is written"))


def _row_of(directory: Path, table: str, system: str | None) -> dict[str, Any]:
    """The row of the checkpoint in a table of ``trainer.evaluate``. Raises DataError where there is none."""
    try:
        rows = json.loads(Path(table).read_text(encoding="utf-8"))
        names = [row["system"] for row in rows]
        ours = [row for row in rows if (row["system"] == system if system else _is(row["source"], directory))]
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{table}: not a table of trainer.evaluate: {error!r}") from error
    if len(ours) != 1:
        found = f"{len(ours)} of its systems are {system or directory}"
        raise DataError(f"{table}: {found}; name one of {names} by --system")
    if wrong := _wrong(ours[0]):
        raise DataError(f"{table}: not a table of trainer.evaluate, by {', '.join(wrong)} of {ours[0]['system']}")
    return dict(ours[0])


def _wrong(row: dict[str, Any]) -> list[str]:
    """The parts that a card shows and that are not what ``trainer.evaluate`` writes."""
    intervals = sorted(name for name in row if name.endswith("_interval"))
    kinds: dict[str, Any] = {name.removesuffix("_interval"): float | int | None for name in intervals}
    kinds |= {"queries": int, "candidates": str | None, "depth": int | None, "qrels": str | None}
    wrong = [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]
    wrong += [] if are_texts(row.get("data")) else ["data"]
    return wrong + [name for name in intervals if not _is_interval(row[name])]


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(bound, float | int | None) for bound in value)


def _is(source: str, directory: Path) -> bool:
    return Path(source).resolve() == directory.resolve()


def _judged(row: dict[str, Any]) -> str:
    """The files that judged a row. A later evaluation by the same replaces it."""
    return json.dumps([row.get(name) for name in ("data", "candidates", "depth", "qrels")])


if __name__ == "__main__":
    sys.exit(main())
