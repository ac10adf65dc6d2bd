"""Runs that tune a frozen model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.small import recipe
from vitrim.training.build import load_run
from vitrim.training.loop import train
from vitrim.training.recipe import Recipe


@pytest.mark.parametrize("spec", ["ila(plus=2, at=[1])", "lora(r=2) + vpt(length=2)", "vqt(length=2)", "h2t"])
def test_a_tuned_run_trains_the_tuning_alone_and_comes_back(spec: str, tmp_path: Path) -> None:
    start = train(recipe(epochs=0), tmp_path / "dense")
    weights = str(tmp_path / "dense" / "model.safetensors")
    summary = train(recipe(weights=weights, tune=spec, epochs=1), tmp_path / "run")
    before, after = load_file(weights), load_file(tmp_path / "run" / "model.safetensors")
    frozen = [n for n in before if not n.startswith("head.") and n != "cls_token"]
    assert all(torch.equal(before[n], after[n]) for n in frozen)
    assert any(n.startswith("tuning.") for n in after)
    assert summary["trainable"] < 0.6 * start["parameters"]
    loaded = load_run(tmp_path / "run")
    assert loaded.model.tuning.spec == loaded.recipe.tune
    state = loaded.model.state_dict()
    assert all(torch.equal(state[n], tensor) for n, tensor in after.items())


def test_with_a_reduction_and_a_cache(tmp_path: Path) -> None:
    options = {
        "tune": "adapter(dim=2)",
        "method": "evit",
        "schedule": "keep(rate=0.5, at=[1, 2])",
        "cache": "clc(num_clr=1)",
        "head": "cla",
    }
    summary = train(recipe(**options, epochs=1), tmp_path / "run")
    assert summary["state"] == "finished"
    names = load_file(tmp_path / "run" / "model.safetensors").keys()
    assert {"tuning.adapter.mlp.0.down.weight", "reduction.cache.clr"} <= names


def test_wrong_recipes_are_told() -> None:
    with pytest.raises(ValueError, match="recipe: 'tune': unknown tuning method 'adaptr'"):
        recipe(tune="adaptr")
    with pytest.raises(ValueError, match="leave 'freeze' out"):
        recipe(tune="adapter", freeze="backbone")
    assert Recipe.from_mapping({"tune": "ila( plus = 2 )+vpt( length=100 )"}).tune == "ila(plus=2) + vpt"
