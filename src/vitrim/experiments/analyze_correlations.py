"""Does similarity go with accuracy? Rank correlations over pairs, group by group, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitrim.analysis.correlation import corrected, correlate
from vitrim.experiments.analyze_pairs import By
from vitrim.experiments.analyze_tables import FAMILIES, Rows, finite

VERSION = 1  # of the correlations; results of another version are not used again
LEAST = 4  # pairs: with fewer, no rank correlation can be told from chance
ALL = "all pairs"
# What a measure is called when the two runs of a pair change places.
_TURNED = {
    "homogeneity": "completeness", "completeness": "homogeneity", "pwcca": "pwcca_ba", "pwcca_ba": "pwcca", "kl12": "kl21",
    "kl21": "kl12",
}  # fmt: skip
_ONE_WAY = ("ioa", "adjusted_ioa", "purity")  # of which the other way round is not measured


@dataclass(frozen=True)
class Column:
    """A measure at a block, over the pairs of a group.

    Attributes:
        family: one of :data:`FAMILIES`.
        block: the block; None for maps.
        measure: its name.
        x: values of the measure.
        y: differences in accuracy.
        runs: A and B of each pair.
    """

    family: str
    block: int | None
    measure: str
    x: list[float]
    y: list[float]
    runs: list[tuple[str, str]]

    @property
    def enough(self) -> bool:
        """Whether there are pairs enough, of different values."""
        return len(self.x) >= LEAST and len(set(self.x)) > 1 and len(set(self.y)) > 1


def columns_of_group(tables: Mapping[str, Rows], by: By) -> dict[str, list[Column]]:
    """What is correlated, by group: each measure at each block, with the differences in accuracy of the pairs that have it.

    ``rate`` and ``capacity``: groups as :func:`select_pairs` makes them, differences A minus B. ``method``: one group for each
    run, which is A, against all others; over all pairs, of which none is A, the difference counts without its sign. Nothing for
    ``dataset``: accuracies on two data sets have no difference.

    Args:
        tables: rows of :func:`pair_rows` by family.
        by: what the runs of a pair differ in.
    """
    if by == "dataset":
        return {}
    # A dense model is compared at every rate: one group for each of them, as for all others.
    where: dict[str, set[str]] = {}
    for row in (row for family in FAMILIES for row in tables[family]):
        for end in ("a", "b"):
            where.setdefault(row[end], set()).add(row["group"])
    found: dict[str, dict[tuple[str, Any, str], Column]] = {}
    for family in FAMILIES:
        for row in tables[family]:
            value = row["mean"] if "mean" in row else row["value"]
            for group, measure, change in _places(row, by, where):
                if value is None or change is None:
                    continue
                empty = Column(family, row.get("block"), measure, [], [], [])
                column = found.setdefault(group, {}).setdefault((family, row.get("block"), measure), empty)
                column.x.append(value)
                column.y.append(change)
                column.runs.append((row["a"], row["b"]))
    kept = {group: [column for column in columns.values() if column.enough] for group, columns in found.items()}
    return {group: columns for group, columns in kept.items() if columns}


def correlate_columns(columns: Sequence[Mapping[str, Any]], resamples: int, seed: int = 0) -> dict[str, Any]:
    """Spearman and Kendall correlation of each column, with 95% intervals and p-values.

    Runs are drawn, not pairs: all pairs of a run share its features and its accuracy.

    Args:
        columns: each a :class:`Column` as a dictionary.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        ``rows``: family, block, measure, and the fields of :class:`Correlation`; None for what is not a number.
    """
    rows: Rows = []
    for column in columns:
        runs = [tuple(pair) for pair in column["runs"]]
        # Where one run is in all pairs, each of them has another partner: drawing pairs is drawing runs.
        shared = set[str].intersection(*(set(pair) for pair in runs))
        result = correlate(column["x"], column["y"], groups=None if shared else runs, resamples=resamples, seed=seed)
        numbers = {key: value if isinstance(value, int) else finite(value) for key, value in asdict(result).items()}
        rows.append({"family": column["family"], "block": column["block"], "measure": column["measure"], **numbers})
    return {"rows": rows}


def correlation_rows(groups: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Rows:
    """The rows of all groups, p-values corrected for their number by Holm's method and Benjamini and Hochberg's.

    Two families: the rows over all pairs, which are the question, and those of all single groups together, which say where an
    answer comes from. One family of both would let hundreds of rows of single groups hide every answer.
    """
    rows: Rows = [
        {"group": group, **row}
        for group, one in zip(groups, found, strict=True)
        for row in one["rows"]
        if row["spearman"] is not None
    ]
    for family in ([row for row in rows if (row["group"] == ALL) == whole] for whole in (True, False)):
        for name in ("spearman", "kendall"):
            values = [float("nan") if row[f"{name}_p"] is None else row[f"{name}_p"] for row in family]
            for method in ("holm", "bh"):
                for row, value in zip(family, corrected(values, method), strict=True):
                    row[f"{name}_p_{method}"] = finite(float(value))
    return rows


def _places(row: Mapping[str, Any], by: By, where: Mapping[str, set[str]]) -> list[tuple[str, str, float | None]]:
    """Where a row counts: group, measure, difference."""
    change, measure, group = row["difference"], str(row["measure"]), str(row["group"])
    if by != "method":
        return [(group, measure, change), (ALL, measure, change)]
    a, b = (str(row[end]) if len(where[row[end]]) == 1 else f"{row[end]}, {group}" for end in ("a", "b"))
    places = [(a, measure, change), (ALL, measure, None if change is None else abs(change))]
    if measure not in _ONE_WAY:
        places.append((b, _TURNED.get(measure, measure), None if change is None else -change))
    return places


def strongest(rows: Rows, count: int = 5) -> Rows:
    """The strongest correlations over all pairs, those that hold after the correction first."""
    found = [row for row in rows if row["group"] == ALL]
    return sorted(found, key=lambda row: (not holds(row), -abs(row["spearman"])))[:count]


def holds(row: Mapping[str, Any]) -> bool:
    """Whether a correlation differs from none at the level of 5% after Holm's correction."""
    return row["spearman_p_holm"] is not None and row["spearman_p_holm"] < 0.05
