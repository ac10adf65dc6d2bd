"""Runs as the rows of one table: columns, SQL filter, order, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from vitrim.experiments.runs import Row


def columns_of(rows: Sequence[Row]) -> list[str]:
    """All columns of the rows, in order of first appearance; the note last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name != "note"] + ["note"] * ("note" in names)


def chosen_columns(rows: Sequence[Row], recipe_keys: Iterable[str]) -> list[str]:
    """Columns for a terminal: what differs between the runs, and what was measured; columns without a value are left out."""
    keys = set(recipe_keys)
    shown: list[str] = []
    for name in columns_of(rows):
        values = {repr(row.get(name)) for row in rows}
        if name in ("run", "state") or (values != {"None"} and values != {"''"} and (name not in keys or len(values) > 1)):
            shown.append(name)
    return shown


def where(rows: Sequence[Row], expression: str) -> list[Row]:
    """The rows for which an SQL expression holds, with the columns of :func:`columns_of` (case does not matter).

    Raises:
        ValueError: for a wrong expression, or when duckdb is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError("--where needs duckdb: pip install 'vitrim[experiments]'") from error
    if not rows:
        return []
    names = columns_of(rows)
    types = {name: _type(row.get(name) for row in rows) for name in names}
    declared = ", ".join(f"{_quoted(name)} {kind}" for name, kind in types.items())
    picked = ", ".join(f"(r ->> '$.{json.dumps(name)}')::{kind} AS {_quoted(name)}" for name, kind in types.items())
    lines = [json.dumps({n: row.get(n) if types[n] != "VARCHAR" else _text(row.get(n)) for n in names}) for row in rows]
    with duckdb.connect(config={"enable_external_access": "false"}) as base:
        base.execute(f"CREATE TABLE runs (number BIGINT, {declared})")
        # One list of JSON texts: a thousand single inserts would take seconds.
        base.execute(
            f"INSERT INTO runs SELECT n, {picked} FROM (SELECT unnest(range(len($r))) AS n, unnest($r)::JSON AS r)", {"r": lines}
        )
        try:
            # On a line of its own, so that a comment in it cannot swallow the bracket.
            found = base.execute(f"SELECT number FROM runs WHERE (\n{expression}\n) ORDER BY number").fetchall()
        except duckdb.Error as error:
            reason = str(error).split("\n\nLINE")[0].split("\n")[0]
            raise ValueError(f"--where {expression!r}: {reason}; columns: {', '.join(names)}") from error
    return [rows[number] for (number,) in found]


def in_order(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Rows sorted by columns, ``-`` before a name for the largest first; rows without a value come last.

    Raises:
        ValueError: for a column that no run has.
    """
    known = columns_of(rows)
    found = list(rows)
    for key in reversed(keys):
        name = key.lstrip("-")
        if rows and name not in known:
            raise ValueError(f"--sort {key}: no such column; there are: {', '.join(known)}")
        with_value = [row for row in found if row.get(name) is not None]
        numeric = all(isinstance(row[name], int | float) for row in with_value)
        with_value.sort(key=lambda row: row[name] if numeric else str(row[name]), reverse=key.startswith("-"))
        found = with_value + [row for row in found if row.get(name) is None]
    return found


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The rows as CSV, numbers in full."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows({name: _text(row.get(name)) for name in columns} for row in rows)
    return out.getvalue()


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _type(values: Iterable[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "BOOLEAN"
    if kinds == {int}:
        return "BIGINT"
    return "DOUBLE" if kinds and kinds <= {int, float} else "VARCHAR"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
