"""A table on disk that grows by what is measured, and knows what it holds already."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitrim.measure.report import environment

Row = dict[str, Any]

# What a measurement adds to a question, numbers in images per second.
ANSWERS = ("throughput", "median", "low", "high", "ratio", "ratio_low", "ratio_high", "counted_runs", "note")


class Ledger:
    """Rows in ``NAME.json`` and ``NAME.csv`` of a folder, both rewritten whenever a row comes in.

    A row is a question, which is every column but the answers (what is measured, on what, and how), and its answer:

    - ``throughput``: images counted / time elapsed, over all counted runs;
    - ``median``, ``low``, ``high``: median and quartiles of the turns;
    - ``ratio``, ``ratio_low``, ``ratio_high``: how many times faster than the reference in the same turn, median and quartiles;
    - ``counted_runs``: runs that these numbers come from;
    - ``note``: why there are no numbers.

    Args:
        folder: made if there is none.
        name: of the two files.

    Raises:
        ValueError: when there is a file by this name that is no such table.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.json, self.csv = folder / f"{name}.json", folder / f"{name}.csv"
        self._rows: dict[str, Row] = {}
        if self.json.exists():
            try:
                self._rows = {_key(row): row for row in json.loads(self.json.read_text(encoding="utf-8"))["rows"]}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self.json} is no table of this benchmark; move it away, or write to another --out") from error
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def rows(self) -> list[Row]:
        """All rows, those of earlier runs included, in the order in which they were first measured."""
        return list(self._rows.values())

    def find(self, question: Mapping[str, Any]) -> Row | None:
        """The row that answers a question, or None; one without numbers counts as well."""
        return self._rows.get(_key(question))

    def measured(self, question: Mapping[str, Any]) -> bool:
        """Whether there are numbers for the question; what was left out last time may be possible now."""
        row = self.find(question)
        return row is not None and row["throughput"] is not None

    def add(self, rows: Iterable[Row]) -> None:
        """Take in rows in the place of those with the same question, and write both files."""
        self._rows |= {_key(row): row for row in rows}
        found = self.rows
        text = json.dumps({"environment": environment(), "rows": found}, indent=1) + "\n"
        _replace(self.json, text)
        names = list(dict.fromkeys(name for row in found for name in row if name not in ANSWERS))
        out = io.StringIO()
        writer = csv.DictWriter(out, [*names, *ANSWERS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        _replace(self.csv, out.getvalue())


def answer(question: Mapping[str, Any], **values: Any) -> Row:
    """A row: the question, and the answers, None where there are none."""
    return {**question, **dict.fromkeys(ANSWERS), "note": "", **values}


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if name not in ANSWERS}, sort_keys=True)


def _replace(path: Path, text: str) -> None:
    """Write all or nothing: Ctrl-C in the middle leaves the file as it was."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
