"""The rows that the published comparison scripts wrote: kept patches, clusters, token statistics, class features."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.parity import agreement, golden, heatmaps
from tests.parity.models import Outcome
from tests.parity.similarity import PUBLISHED as FEATURES


def known(case: dict[str, Any]) -> bool:
    """Whether this file runs the case."""
    return case["id"] == "metrics_scripts"


def run(case: dict[str, Any]) -> Outcome:
    """Compare every table of the case."""
    out = Outcome()
    recorded = json.loads((golden.root() / case["file"]).read_text())
    agreement.compare(recorded, out)
    heatmaps.token_statistics(case, out)
    class_features(recorded, case, out)
    return out


def class_features(recorded: dict[str, Any], case: dict[str, Any], out: Outcome) -> None:
    """Compare the similarities of class features; matrices are recorded as (features, images)."""
    arrays = np.load(golden.root() / case["file"].replace(".json", "_cls_features.npz"))
    names = {agreement.name_of(run): run["Name"] for run in recorded["runs"]}
    seen: set[tuple[str, str]] = set()
    for row in recorded["expected"]["cls_features"]:
        pair = (names[row["Model A"]], names[row["Model B"]])
        # The published script writes what it found from A to B into the row from B to A as well.
        pair = pair[::-1] if pair[::-1] in seen else pair
        seen.add(pair)
        for block in (3, 6, 9, 11):
            a, b = (arrays[f"{name}/{block}"].T for name in pair)
            for column, measure in FEATURES.items():
                if f"{block}-{column}" in row:
                    what = f"{row['Model A']} {row['Model B']} {block}-{column}"
                    out.number(what, measure(a, b), row[f"{block}-{column}"], 1e-9, case["rtol_suggested"])
