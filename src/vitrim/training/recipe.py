"""A recipe: everything that decides a training run, as flat keys."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitrim.training.checks import check_recipe
from vitrim.training.values import boolean, from_text, interval, set_inside, whole


@dataclass
class Recipe:
    """The settings of a training run; None is off, or chosen by the run as said.

    Attributes:
        model: ``timm/NAME(settings)``, ``fashion`` or ``vit``, as for ``vitrim bench --model``.
        weights: safetensors file to start from; the head may be of another data set, the position embeddings of another size.
        method: spec of a reduction method, such as ``evit``.
        schedule: spec of the schedule of the method.
        cache: spec of a cross-layer cache, such as ``clc(num_clr=1)``.
        head: spec of a head that replaces the model's own, such as ``cla``.
        recognise: spec of a fine-grained recogniser around the model, such as ``transfg(stride=12)``; it has its own head and
            loss, and ``tune``, ``method`` and ``cache`` go on the model inside.
        tune: spec of a parameter-efficient tuning method, or several joined by ``+``, such as ``ila(plus=2)``.
        tune_train: parts of the model itself that are trained besides, with ``tune``; a recogniser's own parts always are.
        tune_recompute: compute hidden layers of MLPs again in the backward pass, with ``tune``: less memory, a little slower.
        data: spec of a data set, such as ``cub(root='data/cub')``.
        fake: train on the tiny fake twin of the data set.
        train_split: split to learn from.
        eval_split: split to report on.
        transform: spec of the images' transforms.
        task: ``classify`` or ``multilabel``; by the data set when None.
        epochs: length of the training that the schedule of the learning rate knows.
        cooldown_epochs: epochs after that, at the last learning rate.
        batch_size: images of one forward pass of one process.
        accumulate: forward passes of one step of the optimiser.
        lr_normalizer: the learning rate times total batch / this number; as it stands when None.
        optimizer: spec of the optimiser with the learning rate.
        lr_schedule: spec of the schedule of the learning rate.
        backbone_lr_scale: factor on the learning rate of what was there before the head and the reduction.
        freeze_epochs: epochs in which the backbone rests.
        layer_decay: factor on the learning rate from block to block, downwards.
        clip: largest norm of the gradient.
        freeze: ``backbone`` trains the head and what the reduction adds, ``attention_only`` the attention layers too.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off.
        mix: how images are mixed, ``timm`` or ``ila``.
        mix_prob: share of batches that are mixed.
        mix_switch: share of mixed batches that take CutMix when both are on.
        smoothing: label smoothing.
        drop: dropout.
        drop_path: stochastic depth.
        ema: decay of the moving average of the weights.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        repeats: appearances of each image of a batch under other augmentations.
        distill: spec of a distillation from ``teacher``, ``soft(...)`` or ``hard(...)``.
        teacher: model to learn from, as ``model``.
        teacher_weights: its safetensors file.
        cls_weight: DynamicViT: weight of the classification loss.
        ratio_weight: DynamicViT: weight of the loss on the share of tokens that stay.
        cls_distill_weight: DynamicViT with a teacher: weight of the distance of predictions.
        token_distill_weight: DynamicViT with a teacher: weight of the distance of tokens.
        mse_token: DynamicViT with a teacher: tokens are compared by mean squared error, otherwise by divergence.
        group_lasso: weight of the group lasso on the classifier; off when None.
        loss: spec of a loss such as ``bce`` or ``focal(gamma=2)``; the task's own when None.
        gradients: write ``gradients.csv``, the record of gradient stability.
        seed: of everything random.
        workers: processes that load data, per training process; by the number of cores when None.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every: epochs between checkpoints, or steps as in ``200 steps``.
        keep_checkpoints: number of checkpoints that stay.
        log: loggers besides ``jsonl``, which is always there.
        skip_unreadable: replace unreadable images by the next one, and count them, instead of stopping.
        check: what is looked at before the first step: ``lists`` of files and labels, ``images`` too, or ``auto``, which decodes
            the images of sets of up to 20,000.
        threads: CPU threads of the model; PyTorch's choice when None.
    """

    model: str = "timm/vit_tiny_patch16_224"
    weights: str | None = None
    method: str | None = None
    schedule: str = "keep(rate=0.5, at=[3, 6, 9])"
    cache: str | None = None
    head: str | None = None
    recognise: str | None = None
    tune: str | None = None
    tune_train: list[str] = field(default_factory=lambda: ["head", "class_token"])
    tune_recompute: bool = False
    data: str = ""
    fake: bool = False
    train_split: str = "train"
    eval_split: str = "val"
    transform: str = "weak(size=224)"
    task: str | None = None
    epochs: int = 30
    cooldown_epochs: int = 0
    batch_size: int = 64
    accumulate: int = 1
    lr_normalizer: float | None = None
    optimizer: str = "adamw(lr=5e-4, weight_decay=0.05)"
    lr_schedule: str = "cosine(warmup_epochs=5)"
    backbone_lr_scale: float = 1.0
    freeze_epochs: int = 0
    layer_decay: float | None = None
    clip: float | None = None
    freeze: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: str = "timm"
    mix_prob: float = 1.0
    mix_switch: float = 0.5
    smoothing: float = 0.0
    drop: float = 0.0
    drop_path: float = 0.0
    ema: float | None = None
    precision: str = "fp32"
    repeats: int = 1
    distill: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    cls_weight: float = 1.0
    ratio_weight: float = 2.0
    cls_distill_weight: float = 0.5
    token_distill_weight: float = 0.5
    mse_token: bool = True
    group_lasso: float | None = None
    loss: str | None = None
    gradients: bool = False
    seed: int = 0
    workers: int | None = None
    eval_every: int = 1
    checkpoint_every: str = "1"
    keep_checkpoints: int = 2
    log: list[str] = field(default_factory=lambda: ["jsonl"])
    skip_unreadable: bool = False
    check: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, kind in _types().items():
            setattr(self, name, _coerce(name, getattr(self, name), kind))
        check_recipe(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """A recipe from keys and values, and from the command line's ``key=text`` pairs, which win.

        A key with a dot sets one setting inside a spec: ``schedule.rate`` with ``0.25`` makes ``keep(rate=0.25, ...)``.

        Raises:
            ValueError: for an unknown key or a value that the key does not take, in one line that names the nearest.
        """
        merged: dict[str, Any] = {}
        inside: dict[str, Any] = {}
        for key, value in values.items():
            if "." in str(key):
                inside[str(key)] = value
            else:
                merged[_known(str(key))] = value
        for key, text in (overrides or {}).items():
            if "." in key:
                inside[key] = text
            else:
                merged[_known(key)] = from_text(text)
        for key, text in inside.items():
            name, setting = key.split(".", 1)
            name = _known(name)
            text_now = merged.get(name, _default(name))
            if not isinstance(text_now, str):
                raise ValueError(
                    f"recipe: --{key} sets a setting of '{name}', which is {text_now}; give the whole spec: --{name} SPEC"
                )
            merged[name] = set_inside(text_now, setting.replace("-", "_"), text)
        return cls(**merged)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
        """A recipe from a YAML file, and from the command line.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when it is no YAML of flat keys, or for an unknown key or value.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"recipe: '{path}' does not exist; give a YAML file such as recipes/smoke.yaml")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}" if mark is not None else "somewhere"
            problem = getattr(error, "problem", None) or "cannot be read"
            raise ValueError(f"recipe: '{path}', {where}: {problem}; write one 'key: value' a line") from error
        if not isinstance(values, dict):
            raise ValueError(f"recipe: '{path}' holds no keys; write one 'key: value' a line, such as 'data: cub(root=data)'")
        return cls.from_mapping(values, overrides)

    def to_yaml(self) -> str:
        """All keys, in the order of the documentation; ``from_yaml`` reads it back to an equal recipe."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, width=10_000, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """All keys with plain values."""
        return dataclasses.asdict(self)

    @property
    def total_epochs(self) -> int:
        """Epochs with the cool-down."""
        return self.epochs + self.cooldown_epochs

    def checkpoint_steps(self, steps_per_epoch: int) -> int:
        """Steps of the optimiser between two checkpoints."""
        count, in_steps = interval(self.checkpoint_every)
        return count if in_steps else count * steps_per_epoch


@functools.cache
def _types() -> dict[str, Any]:
    hints = typing.get_type_hints(Recipe)
    return {f.name: hints[f.name] for f in dataclasses.fields(Recipe)}


def _default(name: str) -> Any:
    found = next(f for f in dataclasses.fields(Recipe) if f.name == name)
    return found.default if found.default is not dataclasses.MISSING else found.default_factory()  # pyright: ignore


def _known(key: str) -> str:
    """The key as the recipe writes it; hyphens count as underscores."""
    plain = key.replace("-", "_")
    names = list(_types())
    if plain in names:
        return plain
    near = difflib.get_close_matches(plain, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise ValueError(f"recipe: unknown key '{key}'; {hint}")


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """The value in the type of its key; text such as ``1e-3``, which YAML takes for a word, becomes the number."""
    options = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    if value is None or (isinstance(value, str) and value.strip().lower() in ("null", "none") and type(None) in options):
        if type(None) in options:
            return None
        raise ValueError(f"recipe: '{name}' cannot be null; leave it out for {_default(name)!r}")
    plain = next((o for o in options if o is not type(None)), kind)
    if typing.get_origin(plain) is list:
        entries: list[Any] = value if isinstance(value, list) else [v.strip() for v in str(value).split(",")]
        return [str(v) for v in entries if str(v)]
    try:
        if plain is bool:
            return boolean(value)
        if plain is int:
            return whole(value)
        if plain is float:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
    except (TypeError, ValueError):
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        raise ValueError(f"recipe: '{name}' is {words[plain]}; got {value!r}") from None
    if isinstance(value, dict | list):
        raise ValueError(f"recipe: '{name}' is a line of text, such as {_default(name)!r}; got {value!r}")
    return str(value).strip()
