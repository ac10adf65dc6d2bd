"""Every recipe and every grid: readable, valid to the last spec, and trainable on the fake twin of its data set."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vitrim
from vitrim.cli.train import read_words
from vitrim.core.registry import CACHES, HEADS
from vitrim.data.finetune import model_to_train
from vitrim.data.models import parse_model
from vitrim.datasets.base import DATASETS
from vitrim.datasets.transforms import TRANSFORMS
from vitrim.experiments.cells import Cell, expand
from vitrim.experiments.grid import read_groups
from vitrim.experiments.sweep import resolve_recipe
from vitrim.training.build import build_dataset, build_model
from vitrim.training.loop import train
from vitrim.training.optim import read_optimizer
from vitrim.training.recipe import Recipe
from vitrim.training.schedules import LR_SCHEDULES

ROOT = Path(__file__).parents[2]
ALL = sorted((ROOT / "recipes").rglob("*.yaml"))
RECIPES = [p for p in ALL if p.parent.name != "sweeps"]
SWEEPS = [p for p in ALL if p.parent.name == "sweeps"]
LARGE = {"clca_reducers.yaml"}
TINY = "timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=8, embed_dim=24, depth=12, num_heads=2)"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a tiny dense ViT for four classes, as teacher and as a start."""
    out = tmp_path_factory.mktemp("dense") / "run"
    base = {"model": TINY, "data": "folder", "fake": True, "transform": "weak(size=32)", "epochs": 1, "batch_size": 16}
    train(Recipe.from_mapping({**base, "workers": 0, "threads": 1}), out)
    return str(out / "model.safetensors")


def commands(text: str) -> list[list[str]]:
    """The words after ``vitrim train`` or ``vitrim sweep`` in each command of a text."""
    joined = re.sub(r"\\\n[#\s]*", " ", text)
    lines = re.findall(r"^\W*(?:vitrim|accelerate launch.* vitrim\.cli\.app) (train|sweep) (recipes/.*)$", joined, re.M)
    return [[verb, *shlex.split(rest, comments=True)] for verb, rest in lines]


def check_command(words: list[str]) -> None:
    """A command names a file that exists and options that it takes."""
    verb, file, *rest = words
    assert (ROOT / file).is_file(), file
    if verb == "train":
        _, keys = read_words([file, *rest])
        assert keys.pop("out").startswith("runs/")
        Recipe.from_yaml(ROOT / file, keys)


def test_families() -> None:
    assert {"which_tokens", "atc", "clca", "ila", "recognition", "leaves", "sweeps"} <= {p.parent.name for p in ALL}


@pytest.mark.parametrize("path", ALL, ids=name)
def test_header(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert path.read_text().startswith("# ")
    found = commands(header)
    assert any(words[1] == f"recipes/{name(path)}" for words in found), "the header has no command for this file"
    for words in found:
        check_command(words)
    if path.parent != ROOT / "recipes":
        assert "to beat" in header.lower() or "docs/results.md" in header
    for other in re.findall(r"\b((?:which_tokens|atc|clca|ila|recognition|leaves|sweeps)/\w+\.yaml)", header):
        assert (ROOT / "recipes" / other).is_file(), other


def test_commands_of_the_documentation() -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    found = commands(text)
    assert len(found) > 10
    for words in found:
        check_command(words)
    for path in ALL:
        assert name(path) in text or path.parent == ROOT / "recipes", f"{name(path)} is not in docs/recipes.md"


def check_specs(recipe: Recipe) -> None:
    """Everything that a run would build from text, without files and weights."""
    LR_SCHEDULES.build(recipe.lr_schedule)
    read_optimizer(recipe.optimizer)
    transform = TRANSFORMS.build(recipe.transform)
    data: Any = DATASETS.build(recipe.data) if not recipe.fake else None
    if data is not None and data.multilabel:
        assert recipe.mixup == recipe.cutmix == 0
    for model in filter(None, (recipe.model, recipe.teacher)):
        check_model(model)
    for registry, text in ((CACHES, recipe.cache), (HEADS, recipe.head)):
        if text is not None:
            registry.build(text)
    assert transform.size > 0


def check_model(text: str) -> None:
    library, key, settings = parse_model(text)
    if library == "timm" and settings.get("pretrained", True):
        assert timm.get_pretrained_cfg(key) is not None, key
        tag = key.partition(".")[2]
        assert not tag or key in timm.list_pretrained(key.partition(".")[0] + "*"), f"timm has no weights '{key}'"


def planned(recipe: Recipe) -> dict[int, int]:
    """Tokens after each reduction of the real model, which is built without memory for its weights."""
    # The fixed patterns look at numbers.
    with torch.device("cpu" if (recipe.method or "").startswith("fixed") else "meta"):
        size = TRANSFORMS.build(recipe.transform).size
        model: Any = model_to_train(recipe.model, 10, None, image_size=size, random_weights=True)[0]
        vitrim.reduce(model, recipe.method or "none", recipe.schedule, cache=recipe.cache, head=recipe.head)
    return model.reduction.plan(model.patch_embed.num_patches)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_resolves(path: Path) -> None:
    recipe = Recipe.from_yaml(path)
    check_specs(recipe)
    assert Recipe.from_mapping(recipe.to_dict()) == recipe
    if recipe.method is not None and recipe.model.startswith("timm/"):
        counts = list(planned(recipe).values())
        assert counts
        assert counts == sorted(counts, reverse=True)


def small(path: Path, dense: str, **more: str) -> Recipe:
    """A recipe for a tiny model and pictures of 32 pixels that makes two steps of all images of the fake twin."""
    settings = {"model": TINY, "transform.size": "32", "fake": "true", "precision": "fp32", "workers": "0", "threads": "1"}
    settings |= {"epochs": "1", "cooldown_epochs": "0", "eval_every": "1"}
    given = Recipe.from_yaml(path)
    if "in_chans=1" in given.model:
        settings["model"] = TINY.replace("img_size", "in_chans=1, img_size")
    elif given.weights is not None:
        settings["weights"] = dense
    if (given.tune or "").startswith("ila"):
        settings["model"] = TINY.replace("patch_size=8", "patch_size=4")  # its grid gets smaller
    if settings["model"] != TINY:
        settings["weights"] = "null"  # those at hand are of three channels
    if given.teacher is not None:
        settings |= {"teacher": TINY, "teacher_weights": dense}
    if given.schedule.startswith("r("):
        settings["schedule.n"] = "1"
    recipe = Recipe.from_yaml(path, {**settings, **more})
    images = len(build_dataset(recipe).split(recipe.train_split))
    size = images // (2 * recipe.accumulate)
    return Recipe.from_yaml(path, {**settings, **more, "batch_size": str(size - size % 2)})


def check_run(recipe: Recipe, out: Path) -> None:
    summary = train(recipe, out)
    assert summary["state"] == "finished"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert any(line["kind"] == "eval" and line["step"] == 2 for line in lines)
    assert (out / "model.safetensors").is_file()
    assert (out / "gradients.csv").is_file() == recipe.gradients


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_two_steps(path: Path, dense: str, tmp_path: Path) -> None:
    check_run(small(path, dense), tmp_path / "run")


@pytest.mark.parametrize(
    ("file", "keys", "trained"),
    [  # the published counts for 200 classes, the class token included where it learns
        ("transfg", {}, 7_242_440),
        ("transfg", {"recognise": "transfg(stride=12)"}, 7_242_440),
        ("ffvt", {}, 7_243_976),
        ("ramstrans", {}, 155_336),
        ("glsim", {}, 7_244_744),
        ("cal", {}, 4_939_840),
        ("heads", {}, 465_480),
        ("heads", {"head": "lrblp"}, 868_616),
        ("heads", {"head": "ifacls", "tune_train": "class_token"}, 156_117),
    ],
)
def test_trained_parameters_of_recognisers(file: str, keys: dict[str, str], trained: int) -> None:
    recipe = Recipe.from_yaml(ROOT / "recipes/recognition" / f"{file}.yaml", keys)
    with torch.device("meta"):
        model = build_model(recipe, [str(i) for i in range(200)], pretrained=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


def cells(path: Path) -> list[Cell]:
    return expand(read_groups(path, {}), [], resolve_recipe, path.stem)


def check_sweep(path: Path) -> list[Cell]:
    found = cells(path)
    said = re.search(r"(\d+) cells", path.read_text())
    assert said is not None, "the header does not say how many cells there are"
    assert int(said[1]) == len(found)
    names = [cell.name for cell in found]
    assert len(set(names)) == len(names)
    assert not any(re.search(r"-[0-9a-f]{6}$", n) for n in names), "names need a hash to differ"
    distinct = {(o["data"], o["model"], o["method"], o["transform"], o["optimizer"]): o for o in (c.options for c in found)}
    for options in distinct.values():
        check_specs(Recipe.from_mapping({**options, "weights": None}))
    return found


@pytest.mark.parametrize("path", [p for p in SWEEPS if p.name not in LARGE], ids=name)
def test_sweep(path: Path) -> None:
    check_sweep(path)


@pytest.mark.heavy
@pytest.mark.parametrize("path", [p for p in SWEEPS if p.name in LARGE], ids=name)
def test_large_sweep(path: Path) -> None:
    check_sweep(path)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.*cannot remove so many tokens")
@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_plans_of_a_sweep(path: Path) -> None:
    """Every model, method, schedule, cache and head of the grids fits together at its real size."""
    found = [c.options for c in cells(path)]
    parts = ("method", "schedule", "cache", "head", "transform")
    distinct = {tuple(o[k] for k in parts): o for o in found} | {o["model"]: o for o in found}
    for options in distinct.values():
        recipe = Recipe.from_mapping({**options, "weights": None})
        if recipe.method is not None or recipe.cache is not None or recipe.head is not None:
            planned(recipe)


@pytest.mark.heavy
@pytest.mark.parametrize("data", ["moe(root=data/moe)", "dafb(root=data/dafb)", "soyageing(root=data/soyageing, stage=R3)"])
def test_other_sets(data: str, dense: str, tmp_path: Path) -> None:
    more = {"data": data, "transform": "medium(size=32, compat=official, stats=half)"}
    check_run(small(ROOT / "recipes/clca/fine_grained.yaml", dense, **more), tmp_path / "run")


@pytest.mark.parametrize("part", ["atc(linkage=single)", "sinkhorn", "ats", "fixed(pattern=l2)"])
def test_methods_of_one_recipe(part: str, dense: str, tmp_path: Path) -> None:
    check_run(small(ROOT / "recipes/which_tokens/imagenet.yaml", dense, method=part), tmp_path / "run")
