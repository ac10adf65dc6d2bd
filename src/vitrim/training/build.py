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
from vitrim.data.finetune import fit_into, model_to_train
from vitrim.data.weights import Weights, read_weights
from vitrim.datasets.base import DATASETS, DataSet
from vitrim.datasets.transforms import TRANSFORMS, Transform
from vitrim.recognition.base import Recogniser, backbone_of, recognise
from vitrim.training.folder import RunFolder
from vitrim.training.recipe import Recipe
from vitrim.training.seeds import seed_everything

_INSIDE = "vit."  # where a recogniser keeps its backbone


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

    What is not loaded is initialised from the recipe's seed. Of a recogniser, what is tuned and reduced is the vision
    transformer inside, ``model.vit``: tuning and reduction are found there.

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
    weights = read_weights(recipe.weights) if pretrained and recipe.weights else None
    recognised = weights is not None and any(name.startswith(_INSIDE) for name in weights.state)
    given = recipe.weights if (pretrained and not recognised) or recipe.model.startswith("vit") else None
    model, told = model_to_train(
        recipe.model, 0 if recipe.recognise else len(classes), given, image_size=transform.size,
        random_weights=not pretrained or recognised, **options,
    )  # fmt: skip
    if recipe.recognise is not None:
        model = recognise(model, recipe.recognise, classes=len(classes))
    if weights is not None and recognised:
        told = _start_recogniser(model, weights, recipe.model)
        weights = _inside(weights)
    for name, module in _add(recipe, backbone_of(model)).items():
        if weights is not None:
            told += _take_over(module, name, weights.tuning if name == "tuning" else weights.reduction)
    if notes is not None:
        notes.extend(told)
    freeze(model, recipe.freeze)
    return model.train()


def _add(recipe: Recipe, vit: nn.Module) -> dict[str, nn.Module]:
    """Tune and reduce a model; what that adds to it, by name."""
    added: dict[str, nn.Module] = {}
    if recipe.tune is not None:
        added["tuning"] = _tune(recipe, recipe.tune, vit)
    if recipe.method is not None or recipe.cache is not None or recipe.head is not None:
        added["reduction"] = reduce(
            vit, recipe.method or "none", recipe.schedule, seed=recipe.seed, cache=recipe.cache, head=recipe.head
        )
    return added


def _tune(recipe: Recipe, method: str, vit: nn.Module) -> nn.Module:
    """Tune a model; methods with a classifier cannot go into a recogniser."""
    if recipe.recognise is None:
        return tune(vit, method, train=recipe.tune_train, recompute=recipe.tune_recompute)
    inside = f"recipe: '{method}' works on the model inside of '{recipe.recognise}', which has the only classifier"
    try:
        tuning = tune(vit, method, train=recipe.tune_train, recompute=recipe.tune_recompute)
    except SpecError as error:
        raise SpecError(f"{inside}: {error}") from error
    if tuning.head is not None:
        raise SpecError(f"{inside}; take a tuning method without one, such as adapter")
    return tuning


def _inside(weights: Weights) -> Weights:
    """The part of a recogniser's file that is the vision transformer inside."""
    state = {name.removeprefix(_INSIDE): t for name, t in weights.state.items() if name.startswith(_INSIDE)}
    tuning, reduction = (
        {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        for prefix in ("tuning.", "reduction.")
    )
    plain = {name: t for name, t in state.items() if not name.startswith(("tuning.", "reduction."))}
    return Weights(weights.path, plain, reduction, weights.metadata, tuning)


def _start_recogniser(model: nn.Module, weights: Weights, name: str) -> list[str]:
    """Start from the file of a recogniser: the backbone must fit, of the recogniser's own parts those are taken that do."""
    if not isinstance(model, Recogniser):
        raise ValueError(
            f"weights: '{weights.path}' is of a recogniser (its names start with '{_INSIDE}'); give 'recognise' as in its run"
        )
    told = fit_into(model.vit, _inside(weights), name)
    return told + _take_over(model, "recogniser", {n: t for n, t in weights.state.items() if not n.startswith(_INSIDE)})


def _take_over(module: nn.Module, name: str, learned: dict[str, Any]) -> list[str]:
    """Load the tensors that fit; what to tell the user about it."""
    own = module.state_dict()
    fitting = {k: v for k, v in learned.items() if k in own and own[k].shape == v.shape}
    module.load_state_dict(fitting, strict=False)
    return [f"{len(fitting)} tensors of the {name} taken from the file"] if fitting else []


@torch.no_grad()
def try_out(model: nn.Module, transform: Transform) -> None:
    """Show a recogniser one image: it says in its first forward pass which reduction or tuning it cannot work with.

    Raises:
        ValueError: with what it says.
    """
    if not isinstance(model, Recogniser) or not (hasattr(model.vit, "reduction") or hasattr(model.vit, "tuning")):
        return
    like = next(model.parameters())
    try:
        model.eval()(like.new_zeros(1, len(transform.mean), transform.size, transform.size))
    except RuntimeError as error:
        raise ValueError(f"recipe: {error}") from error
    finally:
        model.train()


def freeze(model: nn.Module, what: str | None) -> None:
    """Let only a part of the model learn.

    Args:
        model: the model.
        what: ``backbone`` leaves the head and all that a reduction added; ``attention_only`` the attention layers and the
            position embeddings as well; None everything. A recogniser's own parts always learn.
    """
    if what is None:
        return
    if isinstance(model, Recogniser):
        freeze(model.vit, what)
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
