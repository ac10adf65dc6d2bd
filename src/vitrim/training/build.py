"""From a recipe to its parts: data set, transform, model; and from a run's folder back to its model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vitrim.core.attach import reduce, tune
from vitrim.core.registry import SpecError, parse_spec
from vitrim.data.finetune import model_to_train
from vitrim.data.weights import read_weights
from vitrim.datasets.base import DATASETS, DataSet
from vitrim.datasets.transforms import TRANSFORMS, Transform
from vitrim.training.folder import RunFolder
from vitrim.training.recipe import Recipe
from vitrim.training.seeds import seed_everything


@dataclass
class LoadedRun:
    """A trained model with what it was trained on.

    Attributes:
        model: in evaluation mode, reduced as it was trained.
        recipe: of the run.
        transform: of the images.
        folder: of the run; of the weights file, when only that was given.
        classes: names of the classes, by index.
    """

    model: nn.Module
    recipe: Recipe
    transform: Transform
    folder: Path
    classes: list[str]

    @cached_property
    def dataset(self) -> DataSet:
        """The data set, opened on first use: a model can be used where its data is not."""
        return build_dataset(self.recipe)


def build_dataset(recipe: Recipe) -> DataSet:
    """The data set of a recipe; with ``fake`` its tiny twin, written to the user's cache on first use.

    Raises:
        SpecError: for an unknown data set or setting.
        ValueError: when the recipe names none.
    """
    if not recipe.data:
        raise ValueError("recipe: 'data' names no data set; give one such as --data \"folder(root='DIR')\" (vitrim data list)")
    if not recipe.fake:
        return DATASETS.build(recipe.data)
    name, _, settings = parse_spec(recipe.data)
    settings.pop("root", None)
    cls: Any = DATASETS.get(name)
    place = _cache() / f"{name}-{blake2b(repr(sorted(settings.items())).encode(), digest_size=6).hexdigest()}"
    if not place.is_dir():
        # Several processes of a run may write it at once: the first complete one counts.
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=place.parent))
        try:
            cls.fake(scratch, **settings)
            scratch.rename(place)
        except OSError:
            if not place.is_dir():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return cls(root=str(place), **settings)


def build_transform(recipe: Recipe) -> Transform:
    """The transforms of a recipe.

    Raises:
        SpecError: for an unknown transform or setting.
    """
    return TRANSFORMS.build(recipe.transform)


def build_model(
    recipe: Recipe, classes: Sequence[str], *, pretrained: bool = True, notes: list[str] | None = None
) -> nn.Module:  # fmt: skip
    """The model of a recipe in training mode: weights loaded, head fitted, tuned, tokens reduced, parts frozen.

    What is not loaded is initialised from the recipe's seed.

    Args:
        recipe: the recipe.
        classes: names of the classes.
        pretrained: load weights; False where a checkpoint follows.
        notes: gets what a user should know about the weights, a line each.

    Raises:
        SpecError: for an unknown model, method or setting.
        ValueError: when weights do not fit or cannot be had.
    """
    seed_everything(recipe.seed, "model")
    transform = build_transform(recipe)
    options = {
        "drop_rate": recipe.drop or None,
        "drop_path_rate": recipe.drop_path or None,
        "in_chans": len(transform.mean) if len(transform.mean) != 3 else None,
    }
    given = recipe.weights if pretrained or recipe.model.startswith("vit") else None
    model, told = model_to_train(
        recipe.model, len(classes), given, image_size=transform.size, random_weights=not pretrained, **options
    )
    if notes is not None:
        notes.extend(told)
    added: dict[str, nn.Module] = {}
    if recipe.tune is not None:
        added["tuning"] = tune(model, recipe.tune, train=recipe.tune_train)
    if recipe.method is not None or recipe.cache is not None or recipe.head is not None:
        added["reduction"] = reduce(
            model, recipe.method or "none", recipe.schedule, seed=recipe.seed, cache=recipe.cache, head=recipe.head
        )
    if pretrained and recipe.weights and added:
        weights = read_weights(recipe.weights)
        for name, module in added.items():
            fitting = _fitting(module, weights.tuning if name == "tuning" else weights.reduction)
            module.load_state_dict(fitting, strict=False)
            if fitting and notes is not None:
                notes.append(f"{len(fitting)} tensors of the {name} taken from the file")
    freeze(model, recipe.freeze)
    return model.train()


def freeze(model: nn.Module, what: str | None) -> None:
    """Let only a part of the model learn.

    Args:
        model: the model.
        what: ``backbone`` leaves the head and all that a reduction added; ``attention_only`` the attention layers and the
            position embeddings as well; None everything.
    """
    if what is None:
        return
    classifier: Any = getattr(model, "get_classifier", None)
    found: Any = classifier() if callable(classifier) else None
    head = {id(p) for p in found.parameters()} if isinstance(found, nn.Module) else set[int]()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        learns = id(parameter) in head or parts[0] in ("reduction", "head", "head_dist")
        if what == "attention_only":
            learns = learns or "attn" in parts or parts[-1] == "pos_embed"
        parameter.requires_grad_(learns)


def load_run(run: str | Path, *, which: str = "final", device: str | torch.device = "cpu") -> LoadedRun:
    """A trained model from the folder of its run, or from a weights file that a run wrote.

    Args:
        run: ``RUN`` or ``RUN/model.safetensors``.
        which: ``final`` or ``ema``, the moving average.
        device: where the model goes.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when the run is not finished, or the file was not written by a run.
    """
    if which not in ("final", "ema"):
        raise ValueError(f"which is 'final' or 'ema'; got '{which}'")
    path = Path(run)
    if path.is_dir():
        folder = RunFolder(path)
        recipe = folder.recipe()
        path = folder.weights if which == "final" else folder.ema
        if not path.is_file():
            if which == "ema" and recipe.ema is None:
                raise ValueError(
                    f"run '{run}' keeps no moving average of its weights; train with --ema 0.9998, or use which='final'"
                )
            raise FileNotFoundError(f"run '{run}' is not finished (no {path.name}); go on with: vitrim train --resume {run}")
    weights = read_weights(path)
    if "recipe" not in weights.metadata or "classes" not in weights.metadata:
        raise ValueError(f"'{path}' was not written by vitrim train: its recipe is not in it; name the model and use --weights")
    recipe = Recipe.from_mapping(yaml.safe_load(weights.metadata["recipe"]))
    classes = [str(c) for c in yaml.safe_load(weights.metadata["classes"])]
    model = build_model(recipe, classes, pretrained=False)
    state = {**weights.state, **{f"reduction.{k}": v for k, v in weights.reduction.items()}}
    state |= {f"tuning.{k}": v for k, v in weights.tuning.items()}
    model.load_state_dict(state)
    return LoadedRun(model.eval().to(device), recipe, build_transform(recipe), path.parent, classes)


def _fitting(module: nn.Module, learned: dict[str, Any]) -> dict[str, Any]:
    own = module.state_dict()
    return {k: v for k, v in learned.items() if k in own and own[k].shape == v.shape}


def _cache() -> Path:
    """Where fake data sets lie; a folder of the user's, or a temporary one where the home cannot be written."""
    import vitrim

    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    for place in (base, Path(tempfile.gettempdir())):
        folder = place / "vitrim" / f"fake-{vitrim.__version__}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
        except OSError:
            continue
    raise SpecError("no folder for fake data can be written; set XDG_CACHE_HOME to one")
