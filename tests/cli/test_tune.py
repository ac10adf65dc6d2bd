"""``vitrim tune``."""

from __future__ import annotations

import json

import pytest

from vitrim.cli.app import main
from vitrim.measure.published import methods

MODEL = "timm/vit_tiny_patch16_224(img_size=64, patch_size=8, embed_dim=24, depth=8, num_heads=2)"


def test_lists_what_each_method_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--list", "--model", MODEL, "--classes", "5"]) == 0
    out = capsys.readouterr().out
    assert "ila(plus=2)" in out
    assert "lora" in out
    assert "100.00%" in out  # full


def test_explains_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "ila"]) == 0
    out = capsys.readouterr().out
    assert "arXiv:2409.11051" in out
    assert "plus=0" in out


def test_counts_one_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "adapter(dim=2) + vpt(length=3)", "--model", MODEL, "--classes", "5", "--train", "head", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["trained"] == 5 * 25 + 16 * (2 * 24 * 2 + 2 + 24) + 3 * 24


def test_prints_the_published_table_beside_ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in methods() if row.name in ("ViT", "TrFG")]
    monkeypatch.setattr("vitrim.cli.tune.methods", lambda: rows)
    assert main(["tune", "--published", "224"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["ViT", "tune", "linear", "1.7", "1.7", "2.7", "154,568", "85,952,456", "17.57", "17.57", "17.56"]
    assert out[2].endswith("[1]")
    assert out[-1].startswith("[1] one row")
    assert main(["tune", "--published", "225"]) == 2


@pytest.mark.parametrize(("name", "message"), [("ilas", "did you mean 'ila'"), ("ila(x=1)", "ila has no setting 'x'")])
def test_wrong_names_in_one_line(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", name, "--model", MODEL]) == 2
    assert message in capsys.readouterr().err
