"""Lists in options become cells, each once, with a name that stays."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from vitrim.experiments.cells import Cell, expand, read_cells, substitute, write_cells
from vitrim.experiments.grid import read_groups, read_options, split_values
from vitrim.experiments.sweep import resolve_recipe

SMOKE = "model: timm/vit_tiny_patch16_224\ndata: cub(root=data)\nepochs: 2\n"


def plain(base: Any, options: Any) -> dict[str, Any]:
    return {key: None if value == "null" else value for key, value in {**base, **options}.items()}


def grid(recipe: Path, *words: str, recorded: list[Cell] | None = None, resolve: Any = plain) -> list[Cell]:
    return expand(read_groups(recipe, read_options(words)), recorded or [], resolve, recipe.stem)


@pytest.fixture
def smoke(tmp_path: Path) -> Path:
    path = tmp_path / "smoke.yaml"
    path.write_text(SMOKE)
    return path


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["evit,topk"], ["evit", "topk"]),
        (["evit", "topk, tome"], ["evit", "topk", "tome"]),
        (["keep(rate=0.5, at=[3, 6]), keep(rate=0.7)"], ["keep(rate=0.5, at=[3, 6])", "keep(rate=0.7)"]),
        (["[jsonl, wandb]", "[jsonl]"], [["jsonl", "wandb"], ["jsonl"]]),
        (["cub(root='a,b')", "'x,y'"], ["cub(root='a,b')", "x,y"]),
        (["{dense}/model.safetensors"], ["{dense}/model.safetensors"]),
        (["-1"], ["-1"]),
    ],
)
def test_values(texts: list[str], values: list[Any]) -> None:
    assert split_values(texts) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "keep(rate=0.5"], "is open"),
        (["--method", "evit,,topk"], "is empty"),
        (["--method"], "needs a value"),
        (["evit"], "belongs to no option"),
        (["--seed", "0", "--seed", "1"], "stands twice"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_options(words)


def test_every_combination_with_names_from_what_varies(smoke: Path) -> None:
    words = [
        "--method",
        "evit,topk",
        "--schedule",
        "keep(rate=0.7, at=[3])",
        "keep(rate=0.5, at=[3])",
        "--seed",
        "0",
        "1",
        "--epochs",
        "9",
    ]
    found = grid(smoke, *words)
    assert [cell.name for cell in found] == [
        f"{m}-rate{r}-seed{s}" for m in ("evit", "topk") for r in (0.7, 0.5) for s in (0, 1)
    ]  # fmt: skip
    assert found[2].options == {
        "model": "timm/vit_tiny_patch16_224", "data": "cub(root=data)", "epochs": "9", "method": "evit",
        "schedule": "keep(rate=0.5, at=[3])", "seed": "0",
    }  # fmt: skip
    assert [cell.name for cell in grid(smoke)] == ["smoke"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--method", "null", "atc", "atc(linkage=complete)"], ["dense", "atc", "atc-complete"]),
        (["--optimizer", "adamw(lr=1e-3)", "sgd(lr=0.01)"], ["adamw", "sgd"]),
        (["--optimizer", "adamw(lr=1e-3)", "adamw(lr=1e-4)"], ["lr0.001", "lr0.0001"]),
        (["--cache", "null", "clc(num_clr=1)"], ["nocache", "clc"]),
        (["--schedule", "keep(rate=0.5)", "r(n=13)"], ["keep", "r"]),
        (["--model", "timm/deit_tiny_patch16_224(pretrained=false)", "fashion"], ["deit_tiny_patch16_224", "fashion"]),
        (["--weights", "a/b.safetensors", "null"], ["b.safetensors", "noweights"]),
        (["--mixup", "0", "0.8"], ["mixup0", "mixup0.8"]),
        (["--log", "[jsonl]", "[jsonl, wandb]"], ["smoke", "smoke"]),
    ],
)
def test_names(smoke: Path, words: list[str], names: list[str]) -> None:
    found = [cell.name for cell in grid(smoke, *words)]
    assert found == list(dict.fromkeys(names))  # how a run is logged makes no other run


def test_names_are_unique_and_do_not_depend_on_order(smoke: Path) -> None:
    """Values that only differ in signs which a file name cannot have."""
    texts = ["a/x y", "a/x:y", "b/x y"]
    found = {str(c.options["data"]): c.name for c in grid(smoke, "--data", *texts)}
    assert len(set(found.values())) == 3
    shuffled = random.Random(0).sample(texts, 3)
    again = {str(c.options["data"]): c.name for c in grid(smoke, "--data", *shuffled)}
    assert set(again) == set(found)
    for name in again.values():
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


def test_names_stay_when_the_sweep_grows(smoke: Path, tmp_path: Path) -> None:
    first = grid(smoke, "--method", "evit,topk")
    assert [c.name for c in first] == ["evit", "topk"]
    write_cells(first, tmp_path / "sweep.yaml")
    recorded = read_cells(tmp_path / "sweep.yaml")
    assert recorded == first
    grown = grid(
        smoke,
        "--method",
        "evit,topk",
        "--epochs",
        "2",
        "5",
        recorded=recorded,
        resolve=lambda b, o: {**b, **o, "epochs": int(o.get("epochs", 2))},
    )
    assert [c.name for c in grown] == ["evit", "evit-epochs5", "topk", "topk-epochs5"]


def test_sweep_file(tmp_path: Path, smoke: Path) -> None:
    (tmp_path / "leaves.yaml").write_text(
        """
base: smoke.yaml
cells:
  dense:
    epochs: 40
    seed: [0, 1]
grid:
  weights: "{dense}/model.safetensors"
  method: [evit, "atc(linkage=complete)"]
  schedule: ["keep(rate=0.5)", "keep(rate=0.1)"]
  clca:
    off: {}
    on: {cache: "clc(num_clr=1)", head: cla}
  seed: [0, 1]
"""
    )
    found = grid(tmp_path / "leaves.yaml")
    names = [cell.name for cell in found]
    assert len(set(names)) == len(found) == 2 + 16
    assert names[:3] == ["dense-seed0", "dense-seed1", "evit-rate0.5-noclca-seed0"]
    by_name = {cell.name: cell for cell in found}
    cell = by_name["atc-rate0.1-clca-seed1"]
    assert cell.needs == ["dense-seed1"], "the dense cell of the same seed"
    assert cell.options["head"] == "cla"
    assert substitute(cell.options, Path("S"))["weights"] == "S/dense-seed1/model.safetensors"
    assert len(grid(tmp_path / "leaves.yaml", "--seed", "0", "--epochs", "1")) == 9
    write_cells(found, tmp_path / "sweep.yaml")
    assert read_cells(tmp_path / "sweep.yaml") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {weights: '{dense}/x'}", "'{dense}' names no cell"),
        ("cells: {a: {weights: '{b}/x'}, b: {weights: '{a}/x'}}", "in a circle: a, b"),
        ("cells: {a: {lr: [1, 2]}}\ngrid: {weights: '{a}/x', lr: 3}", "2 cells of 'a' fit"),
        ("grid: {method: []}", "no values"),
        ("grid: {method: evit}\nepochs: 3", "unknown key 'epochs'"),
        ("grid: {clca: {on: cla}}", "sets no options"),
        ("cells: {a: 3}", "no mapping of options"),
        ("[1, 2]", "holds no options"),
        ("a: [", "no YAML"),
    ],
)
def test_wrong_sweep_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        grid(tmp_path / "s.yaml")


def test_recipes_are_checked_before_anything_runs(smoke: Path) -> None:
    found = grid(smoke, "--method", "null,evit", "--schedule.rate", "0.7", "0.5", resolve=resolve_recipe)
    assert [cell.name for cell in found] == ["dense", "evit-rate0.7", "evit-rate0.5"], "the dense model has no schedule"
    assert found[2].options["epochs"] == 2
    with pytest.raises(ValueError, match="did you mean 'method'"):
        grid(smoke, "--metod", "evit", resolve=resolve_recipe)
    with pytest.raises(ValueError, match="did you mean 'evit'"):
        grid(smoke, "--method", "topk,evitt", resolve=resolve_recipe)
