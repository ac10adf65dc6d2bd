"""What is evaluated: a run, a weights file of one, or any model on any data set, with the reduction of one's choice."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vitrim.core.attach import DEFAULT_SCHEDULE, reduce
from vitrim.core.reduction import Reduction
from vitrim.core.registry import spec
from vitrim.data.models import LoadedModel, load_model
from vitrim.datasets.base import DATASETS, DataSet
from vitrim.datasets.transforms import TRANSFORMS
from vitrim.recognition.base import backbone_of
from vitrim.tasks import TASKS, Task
from vitrim.training.build import build_dataset, load_run
from vitrim.training.folder import RunFolder

NONE = ("none", "dense")


@dataclass
class Subject:
    """A model and the images it is evaluated on.

    Attributes:
        model: in evaluation mode, reduced as it is to be evaluated.
        dataset: the data set.
        split: its split.
        transform: from an image to a tensor.
        task: what is measured.
        what: what it is, for the record: model, weights, method, schedule, cache, head, data, split, transform, and of runs
            recognise and tune where they are used.
        folder: where results go by default; None for what is not of a run.
        labels: the model's class for each class of the data set, where they are not the same.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        skip: leave unreadable images out.
        notes: what the user should know, a line each.
    """

    model: nn.Module
    dataset: DataSet
    split: str
    transform: Callable[[Image.Image], Tensor]
    task: Task
    what: dict[str, Any]
    folder: Path | None = None
    labels: list[int] | None = None
    precision: str = "fp32"
    skip: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Changes:
    """What differs from the model as it was made; None leaves it.

    Attributes:
        method: spec of another method, or ``none``.
        schedule: spec of another schedule.
        data: spec of another data set, or another place of the same one.
        split: the split.
        transform: spec of other transforms.
        precision: of the forward pass.
        task: ``classify`` or ``multilabel``.
        ema: take the moving average of the weights.
    """

    method: str | None = None
    schedule: str | None = None
    data: str | None = None
    split: str | None = None
    transform: str | None = None
    precision: str | None = None
    task: str | None = None
    ema: bool = False


def of_run(run: Path, changes: Changes, device: torch.device) -> Subject:
    """A run's folder, or a weights file that a run wrote, as it was trained or with another reduction.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when the run is not finished, or the data set has other classes.
    """
    changes = replace(changes, ema=changes.ema or run.name == "ema.safetensors")
    loaded = load_run(run, which="ema" if changes.ema else "final", device=device)
    recipe = loaded.recipe
    dataset = loaded.dataset if changes.data is None else build_dataset(replace(recipe, data=changes.data, fake=False))
    task = _task(dataset, changes.task or recipe.task)
    if len(dataset.classes) != len(loaded.classes):
        raise ValueError(
            f"the model was trained on {len(loaded.classes)} classes, '{spec(dataset)}' has {len(dataset.classes)}; give its own "
            "data set with --data"
        )
    notes = []
    if dataset.classes != loaded.classes:
        notes.append("the classes of the data set are called otherwise than in training; they are taken in the same order")
    if changes.method is not None or changes.schedule is not None:
        notes += reduce_again(loaded.model, recipe.method, recipe.schedule, changes)
    transform = loaded.transform if changes.transform is None else TRANSFORMS.build(changes.transform)
    inside = (run / "config.yaml").is_file() or (run.parent / "config.yaml").is_file()
    folder = _place(run if run.is_dir() else run.parent, changes) if inside else None
    split, data = changes.split or recipe.eval_split, changes.data or (f"{recipe.data} (fake)" if recipe.fake else recipe.data)
    what = {
        "model": recipe.model, "weights": _weights(run, changes), **_reduction(loaded.model, changes.schedule or recipe.schedule),
        "data": data, "split": split, "transform": spec(transform),
        **{key: value for key in ("recognise", "tune") if (value := getattr(recipe, key)) is not None},
    }  # fmt: skip
    return Subject(
        loaded.model, dataset, split, transform.eval(), task, what, folder, precision=changes.precision or recipe.precision,
        skip=recipe.skip_unreadable, notes=notes,
    )  # fmt: skip


def of_model(name: str, weights: Path | None, changes: Changes, device: torch.device) -> Subject:
    """A model by name on a data set; the embedded model has images of its own.

    Raises:
        SpecError: for an unknown model, data set or method.
        ValueError: without a data set, or when the classes do not fit.
    """
    if changes.data is None and name.partition("(")[0].strip() == "fashion":
        changes = replace(changes, data="embedded")
    if changes.data is None:
        raise ValueError("--model needs images; give a data set such as --data \"folder(root='DIR')\" (vitrim data list)")
    if changes.ema:
        raise ValueError("--ema is for runs; give the weights themselves with --weights FILE.safetensors")
    loaded = load_model(name, weights, device=device)
    dataset = DATASETS.build(changes.data)
    transform: Any = loaded.transform if changes.transform is None else TRANSFORMS.build(changes.transform)
    notes = ["the weights are random: accuracies mean nothing"] if loaded.random else []
    labels = _labels(loaded, dataset)
    if changes.method not in (None, *NONE):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            reduction = reduce(loaded.model, changes.method or "none", changes.schedule or DEFAULT_SCHEDULE)
            untrained = not reduction.load_learned(loaded.reduction)
        notes += [str(w.message) for w in said]
        if untrained:
            notes.append(f"the learned part of {reduction.method} is untrained: accuracies mean nothing")
    split = changes.split or ("val" if "val" in dataset.splits else dataset.splits[-1])
    what = {
        "model": name, "weights": None if weights is None else str(weights), **_reduction(loaded.model, changes.schedule),
        "data": changes.data, "split": split, "transform": "the model's own" if changes.transform is None else spec(transform),
    }  # fmt: skip
    call = transform if changes.transform is None else transform.eval()
    return Subject(
        loaded.model, dataset, split, call, _task(dataset, changes.task), what, labels=labels,
        precision=changes.precision or "fp32", notes=notes,
    )  # fmt: skip


def reduce_again(model: nn.Module, method: str | None, schedule: str, changes: Changes) -> list[str]:
    """Give a trained model another reduction; its cache and head stay, and learned parts where they fit.

    Returns:
        What the user should know about it.
    """
    vit = backbone_of(model)
    before: Any = getattr(vit, "reduction", None)
    learned: Mapping[str, Tensor] = {} if before is None else {k: v.clone() for k, v in before.state_dict().items()}
    cache, head, seed = (None, None, 0) if before is None else (before.cache, before.head, before.seed)
    if before is not None:
        before.detach()
    wanted = changes.method or method or "none"
    wanted = "none" if wanted in NONE else wanted
    if wanted == "none" and cache is None and head is None:
        return []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        after = reduce(
            vit, wanted, changes.schedule or schedule, seed=seed, cache=None if cache is None else spec(cache),
            head=None if head is None else spec(head),
        )  # fmt: skip
    own = after.state_dict()
    fitting = {k: v for k, v in learned.items() if k in own and own[k].shape == v.shape}
    after.load_state_dict(fitting, strict=False)
    after.train(model.training)
    notes = [str(w.message) for w in said]
    left = [name for name in own if name not in fitting]
    if left:
        some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        notes.append(f"not trained with this reduction, at initial values: {some}; accuracies mean little")
    return notes


def dense_twin(model: nn.Module) -> nn.Module | None:
    """The same model without its reduction, sharing the weights; None when it is dense itself."""
    if not isinstance(getattr(backbone_of(model), "reduction", None), Reduction):
        return None
    tensors = [*model.parameters(), *model.buffers()]
    twin: Any = copy.deepcopy(model, {id(t): t for t in tensors})
    # Detaching wakes parameters that the head has put to sleep, and they are shared.
    asleep = [p for p in model.parameters() if not p.requires_grad]
    backbone_of(twin).reduction.detach()
    for parameter in asleep:
        parameter.requires_grad_(False)
    return twin


def _task(dataset: DataSet, name: str | None) -> Task:
    task: Task = TASKS.build(name or ("multilabel" if dataset.multilabel else "classify"))
    if dataset.multilabel != (task.targets == "labels"):
        fitting = "multilabel" if dataset.multilabel else "classify"
        raise ValueError(f"task '{task.name}' does not fit the data set '{spec(dataset)}'; take {fitting}")
    return task


def _labels(loaded: LoadedModel, dataset: DataSet) -> list[int] | None:
    """The model's class for each of the data set's: by name where every one is known, by position where there are as many."""
    count = getattr(loaded.model, "num_classes", None)
    if all(name in loaded.class_index for name in dataset.classes) and loaded.class_index:
        labels = [loaded.class_index[name] for name in dataset.classes]
        return None if labels == list(range(count or 0)) else labels
    if count is not None and count != len(dataset.classes):
        raise ValueError(
            f"the model has {count} classes, '{spec(dataset)}' has {len(dataset.classes)}, and their names do not tell which "
            "is which; train a head for them first (vitrim train)"
        )
    return None


def _reduction(model: nn.Module, schedule: str | None) -> dict[str, str | None]:
    """What the model is reduced by; the schedule as it was given, because one that says ``keep`` alone does not tell much."""
    reduction = getattr(backbone_of(model), "reduction", None)
    if not isinstance(reduction, Reduction):
        return dict.fromkeys(("method", "schedule", "cache", "head"))
    none = reduction.method == "none"
    return {
        "method": None if none else reduction.method, "schedule": None if none else spec(schedule or reduction.schedule),
        "cache": None if reduction.cache is None else spec(reduction.cache),
        "head": None if reduction.head is None else spec(reduction.head),
    }  # fmt: skip


def _weights(run: Path, changes: Changes) -> str:
    return (
        str(run)
        if run.is_file() and run.name not in ("model.safetensors", "ema.safetensors")
        else "ema"
        if changes.ema
        else "final"
    )


def _place(run: Path, changes: Changes) -> Path:
    """The run itself for the model as it was trained; a folder below for everything else, so that reports stay right."""
    recipe = RunFolder(run).recipe()
    parts = [
        text for text, was in ((changes.method, recipe.method), (changes.schedule, recipe.schedule)) if text not in (None, was)
    ]
    parts += ["ema"] if changes.ema else []
    parts += [text for text in (changes.data, changes.transform) if text is not None]
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part or "").strip("-") for part in parts)
    return run / "evaluations" / name[:120] if parts else run
