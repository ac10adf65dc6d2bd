"""What a recipe may not say: values out of range, specs that do not exist, parts that exclude each other."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import vitrim.core.schedule  # noqa: F401  # pyright: ignore[reportUnusedImport] (registers the schedules)
from vitrim.core.registry import METHODS, RECOGNISERS, SCHEDULES, TUNERS, SpecError, spec
from vitrim.core.tuning import read_tuners
from vitrim.training.values import interval

if TYPE_CHECKING:
    from vitrim.recognition.base import Recogniser
    from vitrim.training.recipe import Recipe

_CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("classify", "multilabel"),
    "check": ("auto", "images", "lists"),
    "precision": ("fp32", "bf16", "fp16"),
    "freeze": ("backbone", "attention_only"),
    "mix": ("timm", "ila"),
    "log": ("jsonl", "tensorboard", "wandb", "trackio"),
}
# Specs without slashes in them, which are written the same way everywhere; the others stay as the user wrote them.
_CANONICAL = ("method", "schedule", "cache", "head", "recognise", "transform", "optimizer", "lr_schedule", "distill", "loss")
_POSITIVE = (
    "batch_size",
    "accumulate",
    "epochs",
    "eval_every",
    "keep_checkpoints",
    "lr_normalizer",
    "clip",
    "threads",
    "repeats",
)
_NOT_NEGATIVE = (
    "cooldown_epochs", "backbone_lr_scale", "freeze_epochs", "mixup", "cutmix", "workers", "seed", "cls_weight", "ratio_weight",
    "cls_distill_weight", "token_distill_weight",
)  # fmt: skip
_SHARES = ("mix_prob", "mix_switch", "smoothing", "drop", "drop_path", "ema", "layer_decay")


def check_recipe(recipe: Recipe) -> None:
    """Refuse values that no run could use, and write specs the same way everywhere.

    Raises:
        ValueError: in one line that names the remedy.
    """
    for name, choices in _CHOICES.items():
        value = getattr(recipe, name)
        for given in value if isinstance(value, list) else [value]:
            if given is not None and given not in choices:
                near = difflib.get_close_matches(str(given), choices, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"it is one of: {', '.join(choices)}"
                raise ValueError(f"recipe: '{name}' cannot be '{given}'; {hint}")
    for names, least, text in ((_POSITIVE, None, "above 0"), (_NOT_NEGATIVE, 0, "0 or more")):
        for name in names:
            value = getattr(recipe, name)
            zero_epochs = name == "epochs" and value == 0  # only evaluates and writes the model, as off the shelf
            if value is not None and not zero_epochs and (value < 0 or (least is None and value == 0)):
                raise ValueError(f"recipe: '{name}' must be {text}; got {value}")
    for name in _SHARES:
        value = getattr(recipe, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"recipe: '{name}' lies between 0 and 1; got {value}")
    interval(recipe.checkpoint_every)
    for name in _CANONICAL:
        if (value := getattr(recipe, name)) is not None:
            try:
                setattr(recipe, name, spec(value))
            except SpecError as error:
                raise ValueError(f"recipe: '{name}': {error}") from error
    if recipe.method is not None:
        METHODS.build(recipe.method)
    if recipe.tune is not None:
        _check_tune(recipe)
    if recipe.recognise is not None:
        _check_recogniser(recipe, recipe.recognise)
    SCHEDULES.build(recipe.schedule)
    if (recipe.distill is None) != (recipe.teacher is None) and not (recipe.method or "").startswith("dynamicvit"):
        raise ValueError("recipe: 'distill' and 'teacher' go together, as in distill: soft(alpha=0.5) and teacher: timm/NAME")
    if "jsonl" not in recipe.log:
        recipe.log = ["jsonl", *recipe.log]


def _check_tune(recipe: Recipe) -> None:
    if recipe.freeze is not None:
        raise ValueError("recipe: 'tune' says what is trained; leave 'freeze' out, and name parts of the model in 'tune_train'")
    try:
        recipe.tune = " + ".join(spec(tuner) for tuner in read_tuners(recipe.tune, TUNERS))
    except SpecError as error:
        raise ValueError(f"recipe: 'tune': {error}") from error


def _check_recogniser(recipe: Recipe, text: str) -> None:
    """A recogniser has a head and a loss of its own, which not everything goes with."""
    name = read_recogniser(text).spec_name
    if recipe.head is not None:
        raise ValueError(f"recipe: '{name}' has a classifier of its own; leave 'head' out")
    if recipe.distill is not None or recipe.teacher is not None:
        raise ValueError(
            f"recipe: '{name}' has a loss of its own, which no teacher is part of; leave 'distill' and 'teacher' out"
        )
    if (recipe.method or "").startswith("dynamicvit"):
        raise ValueError(f"recipe: dynamicvit has a loss of its own, and so has '{name}'; take another 'method'")
    if recipe.mixup or recipe.cutmix:
        check_classes(text, "set mixup and cutmix to 0")
    if recipe.task == "multilabel":
        check_classes(text, "take another recogniser for several labels, such as ffvt")


def check_classes(recogniser: str, remedy: str) -> None:
    """Refuse a recogniser whose loss needs one class for each image, where there are none.

    Raises:
        ValueError: naming it and the remedy.
    """
    if read_recogniser(recogniser).compares_classes:
        raise ValueError(f"recipe: the loss of '{recogniser}' compares classes and needs one for each image; {remedy}")


def read_recogniser(text: str) -> Recogniser:
    """The recogniser of a spec, without its parameters.

    Raises:
        ValueError: for an unknown one, or a setting that it does not take.
    """
    try:
        return RECOGNISERS.build(text)
    except ValueError as error:
        raise ValueError(f"recipe: 'recognise': {error}") from error
