"""The impressions that each rule dropped, with an example; these counts add up."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainer.preparation.engine import Engine


@dataclass(frozen=True)
class Entry:
    """A rule, the number that it concerns, and the first of them."""

    rule: str
    count: int
    example: str


@dataclass
class Ledger:
    """Rules that drop impressions, in their order, and notes of what was put together or left out elsewhere."""

    engine: Engine
    dropped: list[Entry] = field(default_factory=list)
    notes: list[Entry] = field(default_factory=list)

    def drop(self, rule: str, condition: str, example: str = "place") -> None:
        """Drop the impressions for which a condition holds."""
        if self._enter(self.dropped, rule, f"FROM impressions WHERE {condition}", example, "sum(n)"):
            self.engine.run(f"DELETE FROM impressions WHERE {condition}")

    def note(self, rule: str, rows: str, example: str) -> None:
        """Count the ``rows``, which begin with FROM."""
        self._enter(self.notes, rule, rows, example)

    def _enter(self, entries: list[Entry], rule: str, rows: str, example: str, number: str = "count(*)") -> bool:
        ((count, first),) = self.engine.run(f"SELECT {number}, min({example}) {rows}")
        if count:
            entries.append(Entry(rule, int(count), str(first)))
        return bool(count)

    def summary(self) -> str:
        """One line with the number of each rule and note."""
        entries = [*self.dropped, *self.notes]
        return "; ".join(f"{each.count:,} {each.rule}" for each in entries) or "nothing was dropped"
