"""Every golden case of a known kind, from the repository or from the directory that VITRIM_GOLDEN names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.parity import clca, components, golden, heatmaps, models, recognition, recognition_heads, scripts, similarity, tuning


def runner(case: dict[str, Any]) -> Any:
    """What runs a case; None for kinds not implemented yet."""
    for kind in (recognition, recognition_heads, tuning, clca, similarity, heatmaps, scripts):
        if kind.known(case):
            return kind.run
    if case["kind"] == "component":
        return components.run if components.find(case) else None
    if case["official_repo"] not in models.REPOSITORIES:
        return None
    return {"model": models.run, "model_train": models.run_training}.get(case["kind"])


@pytest.mark.filterwarnings("ignore:.*cannot remove so many tokens")  # ToMe at 0.25, as published
@pytest.mark.parametrize("case", golden.cases(), ids=lambda c: c["id"])
def test_golden(case: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    run = runner(case)
    if run is None:
        pytest.skip(f"{case['kind']} '{case['id']}' is of a kind that is not implemented yet")
    torch.set_num_threads(1)
    outcome = run(case)
    record_property("case", case["id"])
    record_property("difference", outcome.difference)
    record_property("decisions", outcome.decisions)
    assert not outcome.problems, outcome.problems[:8]
