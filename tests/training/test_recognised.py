"""Runs that train a fine-grained recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from tests.training.small import MODEL, recipe
from vitrim.experiments.evaluate import Settings, evaluate
from vitrim.experiments.subject import Changes, of_run
from vitrim.experiments.tracing import TraceOptions
from vitrim.tasks.base import TASKS
from vitrim.training.build import build_model, load_run
from vitrim.training.loop import Run, train
from vitrim.training.objective import make_objective
from vitrim.training.optim import layer_scales, parameter_groups
from vitrim.training.recipe import Recipe

CLASSES = ["a", "b", "c"]
SPECS = [
    "transfg(contrast=0.1)",
    "ffvt(tokens=3)",
    "ramstrans(top=3)",
    "glsim(top=3, aux=cls)",
    "cal(maps=4)",
    "simtrans(hidden=8, width=16)",
]
CPU = torch.device("cpu")


def built(spec: str, **values: Any) -> Any:
    return build_model(recipe(recognise=spec, **values), CLASSES)


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_learns_and_comes_back(spec: str, tmp_path: Path) -> None:
    summary = train(recipe(recognise=spec, epochs=1, ema=0.5, gradients=True, layer_decay=0.7, clip=1.0), tmp_path / "run")
    assert summary["state"] == "finished"
    assert summary["gflops"] > 0
    assert summary["parameters"] == summary["trainable"]
    rows = (tmp_path / "run/gradients.csv").read_text().splitlines()[1:]
    assert len(rows) == summary["steps"]
    for which in ("final", "ema"):
        loaded = load_run(tmp_path / "run", which=which)
        file = load_file(tmp_path / "run" / ("model.safetensors" if which == "final" else "ema.safetensors"))
        state = loaded.model.state_dict()
        assert state.keys() == file.keys()
        assert all(torch.equal(state[n], tensor) for n, tensor in file.items())
    values = evaluate(of_run(tmp_path / "run", Changes(), CPU), None, Settings(rounds=0))
    assert values["recognise"] == loaded.recipe.recognise
    assert values["loss"] == pytest.approx(summary["last"]["model"]["loss"], abs=1e-5)
    before = build_model(loaded.recipe, loaded.classes).state_dict()
    assert [n for n, _ in loaded.model.named_parameters() if torch.equal(before[n], state[n])] == []


def test_the_loss_is_that_of_the_recogniser() -> None:
    model = built("transfg(contrast=0.5)")
    nn.init.normal_(model.head.weight)
    objective = make_objective(recipe(smoothing=0.1), TASKS.build("classify"), model, 3, CPU)
    images, targets = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    found, right = objective(
        objective.module, images, targets, place=0, rank=0, autocast=lambda: torch.autocast("cpu", enabled=False)
    )
    wanted, logits = model.loss(images, targets, lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1))
    assert found.item() == pytest.approx(wanted.item())
    assert found > F.cross_entropy(logits, targets, label_smoothing=0.1) + 0.01
    assert right == (logits.argmax(-1) == targets).sum()


def test_tuned_and_reduced_inside(tmp_path: Path) -> None:
    options = {"tune": "adapter(dim=2)", "method": "sit", "schedule": "keep(rate=0.5, at=[2])"}
    summary = train(recipe(recognise="glsim(top=3)", **options, epochs=1), tmp_path / "run")
    names = load_file(tmp_path / "run" / "model.safetensors").keys()
    assert "vit.tuning.adapter.mlp.0.down.weight" in names
    assert any(n.startswith("vit.reduction.") for n in names)
    loaded = load_run(tmp_path / "run")
    assert loaded.model.vit.tuning.spec == loaded.recipe.tune
    assert loaded.model.vit.reduction.method == "sit"
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in trained if n.startswith("vit.")} == {"tuning", "reduction", "cls_token"}
    assert {n.split(".")[0] for n in trained} == {"vit", "anchor_token", "aggregator", "norm", "head"}
    assert summary["trainable"] == sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    # evaluated with another method, and timed against the unreduced recogniser
    values = evaluate(of_run(tmp_path / "run", Changes(method="topk"), CPU), None, Settings(rounds=1, batch_size=8))
    assert values["method"] == "topk"
    assert values["gflops"] < values["dense_gflops"]


def test_with_a_cache(tmp_path: Path) -> None:
    options = {"method": "topk", "schedule": "keep(rate=0.5, at=[1, 2])", "cache": "clc(num_clr=1)"}
    train(recipe(recognise="glsim(top=3)", **options, epochs=1), tmp_path / "run")
    assert "vit.reduction.cache.clr" in load_file(tmp_path / "run" / "model.safetensors")


def test_starts_from_published_weights_and_from_another_recogniser(tmp_path: Path) -> None:
    train(recipe(epochs=0), tmp_path / "dense")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    notes: list[str] = []
    start = recipe(weights=str(tmp_path / "dense" / "model.safetensors"), recognise="ffvt(tokens=3)", tune="adapter(dim=2)")
    model = build_model(start, CLASSES, notes=notes)
    assert all(torch.equal(p, dense[n]) for n, p in model.vit.named_parameters() if not n.startswith("tuning."))
    assert len(notes) == 1
    assert "dropped: the new one starts from its initial values" in notes[0]
    train(recipe(recognise="ffvt(tokens=3)", tune="adapter(dim=2)", epochs=1), tmp_path / "run")
    learned = load_file(tmp_path / "run" / "model.safetensors")
    again = recipe(weights=str(tmp_path / "run" / "model.safetensors"), recognise="ffvt(tokens=3)", tune="adapter(dim=2)", seed=3)
    notes.clear()
    state = build_model(again, CLASSES, notes=notes).state_dict()
    assert {n for n in state if n not in learned or not torch.equal(state[n], learned[n])} == {"head.weight", "head.bias"}
    assert any("tensors of the recogniser taken from the file" in note for note in notes)
    assert any("tensors of the tuning taken from the file" in note for note in notes)
    with pytest.raises(ValueError, match=r"is of a recogniser .*; give 'recognise' as in its run"):
        build_model(recipe(weights=str(tmp_path / "run" / "model.safetensors")), CLASSES)


@pytest.mark.parametrize("spec", SPECS)
def test_a_frozen_backbone_leaves_the_recogniser(spec: str) -> None:
    for options in ({"freeze": "backbone"}, {"tune": "linear", "tune_train": []}):
        model = built(spec, **options)
        assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} <= set(model.trained)
        assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("vit."))
    trained = {n for n, p in built(spec, freeze="attention_only").named_parameters() if p.requires_grad}
    assert "vit.blocks.0.attn.qkv.weight" in trained
    assert "vit.blocks.0.mlp.fc1.weight" not in trained


def test_groups_and_layers() -> None:
    plain, model = build_model(recipe(), CLASSES), built("transfg")
    scales, known = layer_scales(model, 0.5), layer_scales(plain, 0.5)
    # the added block counts as the head; there is one block fewer below it
    assert {scales[n] for n in scales if not n.startswith("vit.")} == {1.0}
    assert scales["vit.patch_embed.proj.weight"] == 2 * known["patch_embed.proj.weight"]
    assert scales["vit.blocks.2.attn.qkv.weight"] == 0.5
    for text in ("glsim", "cal"):
        scales = layer_scales(built(text), 0.5)
        inside = {n.removeprefix("vit."): s for n, s in scales.items() if n.startswith("vit.")}
        assert inside == {n: s for n, s in known.items() if not n.startswith("head.")}
    groups = {n: g for g in parameter_groups(built("glsim"), lr=1.0, backbone_lr_scale=0.1) for n in g["param_names"]}
    assert groups["aggregator.attn.qkv.weight"]["lr"] == groups["head.weight"]["lr"] == groups["anchor_token"]["lr"] == 1.0
    assert groups["vit.blocks.0.norm1.weight"]["lr"] == groups["vit.blocks.0.attn.qkv.weight"]["lr"] == 0.1
    assert groups["anchor_token"]["weight_decay"] == groups["vit.cls_token"]["weight_decay"] == 0
    assert groups["aggregator.attn.qkv.weight"]["weight_decay"] > 0


def test_chance_in_the_forward_pass_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "recognise": "cal(maps=4)",
        "drop": 0.1,
        "ema": 0.9,
        "epochs": 2,
        "checkpoint_every": "2 steps",
        "accumulate": 2,
        "batch_size": 4,
    }
    train(recipe(**options), tmp_path / "whole")
    step = Run._step

    def broken(self: Run, parts: list[Any]) -> None:
        if self.session.step == 5:
            raise MemoryError
        step(self, parts)

    monkeypatch.setattr(Run, "_step", broken)
    with pytest.raises(MemoryError):
        train(recipe(**options), tmp_path / "parts")
    monkeypatch.undo()
    train(recipe(**options), tmp_path / "parts", resume=True)
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert {"centres", "head.norm.running_var"} <= one.keys()
        assert [n for n in one if not torch.equal(one[n], other[n])] == []


def test_the_recipe_on_the_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/recognition.md").read_text()
    lines = page.split("```yaml\n")[1].split("```")[0]
    assert Recipe.from_mapping(yaml.safe_load(lines)).recognise == "glsim"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recognise": "tranfg"}, "'recognise': unknown recogniser 'tranfg'; did you mean 'transfg'"),
        ({"recognise": "transfg(stide=12)"}, "'recognise': .*stide"),
        ({"recognise": "transfg(stride=0)"}, "'recognise': .*: stride is a number of pixels"),
        ({"recognise": "ffvt", "head": "cla"}, "'ffvt' has a classifier of its own; leave 'head' out"),
        ({"recognise": "ffvt", "distill": "soft", "teacher": MODEL}, "leave 'distill' and 'teacher' out"),
        ({"recognise": "ffvt", "method": "dynamicvit"}, "take another 'method'"),
        ({"recognise": "cal", "mixup": 0.2}, "the loss of 'cal' compares classes .*; set mixup and cutmix to 0"),
        ({"recognise": "transfg(contrast=0.1)", "cutmix": 0.2}, "set mixup and cutmix to 0"),
        ({"recognise": "glsim(aux=cont)", "task": "multilabel"}, "take another recogniser for several labels"),
    ],
)
def test_wrong_recipes_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"recipe: .*{message}"):
        recipe(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"recognise": "transfg", "method": "topk", "schedule": "keep(rate=0.5, at=[1])"},
            "transfg multiplies the attention of all blocks",
        ),
        ({"recognise": "ramstrans", "tune": "vpt(length=2)"}, "ramstrans multiplies the attention of all blocks"),
        ({"recognise": "ffvt", "tune": "h2t"}, "'h2t' works on the model inside of 'ffvt', which has the only classifier"),
        ({"recognise": "ffvt", "tune": "vqt(length=2)"}, "which has the only classifier"),
        ({"recognise": "ffvt", "model": "timm/resnet10t(pretrained=false)"}, "recognisers work on the VisionTransformer of timm"),
        ({"recognise": "cal", "data": "coco"}, "compares classes .* several labels"),
    ],
)
def test_what_cannot_work_stops_before_anything_is_written(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(recipe(**values, check="lists"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mixing_goes_with_losses_of_single_images(tmp_path: Path) -> None:
    assert train(recipe(recognise="ffvt(tokens=3)", mixup=0.5, epochs=1), tmp_path / "run")["state"] == "finished"


def test_no_trace_of_several_passes(tmp_path: Path) -> None:
    train(recipe(recognise="ramstrans(top=3)", epochs=0), tmp_path / "run")
    with pytest.raises(ValueError, match="not a recogniser; leave --trace out"):
        evaluate(of_run(tmp_path / "run", Changes(), CPU), tmp_path, Settings(trace=TraceOptions()))
