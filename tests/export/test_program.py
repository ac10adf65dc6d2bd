"""Programs of torch.export, written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitrim
from tests.export.models import images, short_model
from vitrim.export.program import load_program, save_program, trace

QUICK = ("atc", "ats")
each = [pytest.param(m, marks=() if m in QUICK else pytest.mark.heavy) for m in vitrim.list_methods()]


@pytest.mark.parametrize("method", each)
@pytest.mark.parametrize("dynamic", [False, True])
def test_round_trip(method: str, dynamic: bool, tmp_path: Path) -> None:
    model = short_model(method)
    save_program(trace(model, images()[:1] if dynamic else images(), dynamic), tmp_path / "model.pt2")
    run = load_program(tmp_path / "model.pt2")
    with torch.no_grad():
        for count in (1, 4, 10) if dynamic else (10,):
            torch.testing.assert_close(run(images()[:count]), model(images()[:count]), rtol=0, atol=1e-5)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pt2"):
        load_program(tmp_path / "gone.pt2")
