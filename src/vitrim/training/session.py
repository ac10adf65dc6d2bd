"""Everything a run works with, made from its recipe, on this process's device."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import IterableDataset

from vitrim.datasets.base import DataSet
from vitrim.datasets.transforms import Transform
from vitrim.tasks.base import TASKS, Task
from vitrim.training.build import build_dataset, build_model, build_transform, try_out
from vitrim.training.checkpoint import Checkpoint, WriteError, write_tensors
from vitrim.training.checks import check_classes
from vitrim.training.ema import Ema
from vitrim.training.loader import Batch, Samples, Schedule, Shares, default_workers, make_loader
from vitrim.training.objective import Objective, make_objective
from vitrim.training.optim import build_optimizer, parameter_groups, read_optimizer, scaled_lr
from vitrim.training.optimizer_state import pack_optimizer, unpack_optimizer
from vitrim.training.recipe import Recipe
from vitrim.training.sampler import EpochOrder
from vitrim.training.schedules import LR_SCHEDULES, Length, LRSchedule
from vitrim.training.streaming import StreamSamples, stream_batches, stream_loader

_DECODED = 20_000  # images that are all decoded before a run: a minute on few cores


@dataclass
class Session:
    """The parts of a run.

    Attributes:
        recipe: the recipe.
        accelerator: of Hugging Face accelerate: processes, devices, precision.
        data: the data set.
        transform: of its images.
        task: loss and metrics.
        model: the model itself, whose weights are saved.
        wrapped: the objective's module, as it is called in training.
        optimizer: the optimiser.
        schedule: of the learning rate.
        length: epochs and steps.
        total: steps of the whole run, the cool-down included.
        objective: what is minimised.
        ema: the moving average of the weights, if any.
        notes: what a user should know, a line each.
        step: steps of the optimiser done.
        evaluated: the last step at which the model was evaluated, or -1.
        scores: best and last metrics, by weights.
        skipped: unreadable files so far.
    """

    recipe: Recipe
    accelerator: Any
    data: DataSet
    transform: Transform
    task: Task
    model: nn.Module
    wrapped: nn.Module
    optimizer: Any
    schedule: LRSchedule
    length: Length
    total: int
    objective: Objective
    ema: Ema | None
    notes: list[str]
    step: int = 0
    evaluated: int = -1
    scores: dict[str, Any] | None = None
    skipped: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    @property
    def images_per_step(self) -> int:
        """Images of a step of the optimiser, over all processes."""
        return self.recipe.batch_size * self.recipe.accumulate * self.accelerator.num_processes

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.length.steps_per_epoch

    def note_scores(self, weights: str, numbers: dict[str, float], skipped: int) -> None:
        """Remember the metrics of an evaluation, and which were the best."""
        found = {**numbers, "step": self.step, "epoch": round(self.epoch, 4), "weights": weights}
        scores = self.scores or {"last": {}, "best": None}
        scores["last"][weights] = {**found, **({"skipped": skipped} if skipped else {})}
        if scores["best"] is None or numbers[self.task.score] > scores["best"][self.task.score]:
            scores["best"] = found
        self.scores = scores

    def train_batches(self) -> Iterator[Batch]:
        """Batches of this process from the present step to the end of the run."""
        split, recipe, transform = self.data.split(self.recipe.train_split), self.recipe, self.transform.train()
        world, rank, steps = self.accelerator.num_processes, self.accelerator.process_index, self.length.steps_per_epoch
        if isinstance(split, IterableDataset):
            return stream_batches(
                split, transform, steps=steps, batch=recipe.batch_size, accumulate=recipe.accumulate, first=self.step,
                last=self.total, seed=recipe.seed, process=(rank, world), workers=self._workers(), skip=recipe.skip_unreadable,
                pin=self._pin(),
            )  # fmt: skip
        batches = Schedule(
            _order(recipe, len(split)), steps=steps, batch=recipe.batch_size, accumulate=recipe.accumulate, world=world,
            rank=rank, seed=recipe.seed, first=self.step, last=self.total,
        )  # fmt: skip
        samples = Samples(split, transform, skip=recipe.skip_unreadable, replace=True)
        return iter(make_loader(samples, batches, self._workers(), pin=self._pin()))

    def eval_batches(self) -> Iterable[Batch]:
        """Batches of this process of the split for evaluation, half as large again: no gradients are kept."""
        split, transform, recipe = self.data.split(self.recipe.eval_split), self.transform.eval(), self.recipe
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = max(1, int(1.5 * recipe.batch_size))
        if isinstance(split, IterableDataset):
            stream: Any = split
            stream.batch, stream.process, stream.skip_unreadable = size, (rank, world), recipe.skip_unreadable
            return stream_loader(StreamSamples(stream, transform, rank), size, self._workers(), pin=self._pin())
        batches = Shares(len(split), size, world, rank)
        samples = Samples(split, transform, skip=recipe.skip_unreadable)
        # Starting processes takes longer than reading a few batches.
        return make_loader(samples, batches, self._workers() if len(batches) > 4 else 0, pin=self._pin())

    def capture(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """``(tensors by file, JSON values)`` of a checkpoint. Random numbers need none: they are functions of the step."""
        moments, numbers = pack_optimizer(self.optimizer, self.model)
        tensors: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": moments}
        if self.ema is not None:
            tensors["ema"] = self.ema.state()
        scaler = self.accelerator.scaler
        state = {
            "optimizer": numbers,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "evaluated": self.evaluated,
            "scores": self.scores,
            "skipped": self.skipped,
            "threads": torch.get_num_threads(),
            "fingerprint": self.fingerprint(),
        }
        return tensors, state

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: when the data or the number of images per step are not those of the checkpoint.
        """
        state = checkpoint.state
        for what, now in self.fingerprint().items():
            before = state["fingerprint"][what]
            if before != now:
                raise ValueError(f"the checkpoint was written with another {what} ({before}, now {now}); resume with the same")
        self.model.load_state_dict(checkpoint.tensors["model"])
        unpack_optimizer(self.optimizer, self.model, checkpoint.tensors["optimizer"], state["optimizer"])
        if self.ema is not None:
            self.ema.load(checkpoint.tensors["ema"])
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.evaluated = int(state["step"]), int(state["evaluated"])
        self.scores, self.skipped = state["scores"], int(state["skipped"])

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resumption."""
        return {
            "number of images per step": self.images_per_step,
            "number of training images": count_images(self.data, self.recipe.train_split),
            "list of classes": blake2b(json.dumps(self.data.classes).encode(), digest_size=6).hexdigest(),
        }

    def write_weights(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        """A weights file that says by itself what model it is of."""
        metadata = {
            "format": "pt", "recipe": self.recipe.to_yaml(), "classes": json.dumps(self.data.classes), "step": str(self.step),
            "mean": json.dumps(list(self.transform.mean)), "std": json.dumps(list(self.transform.std)),
        }  # fmt: skip
        try:
            write_tensors(path, tensors, metadata)
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}; free some space, then --resume") from error

    def _workers(self) -> int:
        given = self.recipe.workers
        return default_workers(local_processes()) if given is None else given

    def _pin(self) -> bool:
        return self.accelerator.device.type == "cuda"


def make_session(recipe: Recipe, *, resume: bool = False) -> Session:
    """Build the parts of a run; weights are not loaded when a checkpoint follows.

    Raises:
        ValueError: when something in the recipe does not fit the data or the machine.
    """
    accelerator = make_accelerator(recipe)
    data, transform = build_dataset(recipe), build_transform(recipe)
    task: Task = TASKS.build(recipe.task or ("multilabel" if data.multilabel else "classify"))
    if (recipe.mixup or recipe.cutmix) and not task.mixing:
        raise ValueError("recipe: mixup and cutmix mix one class per image; set both to 0 for a multi-label data set")
    if recipe.recognise is not None and task.targets == "labels":
        check_classes(recipe.recognise, "take another recogniser for several labels, such as ffvt")
    if not resume:
        check_data(recipe, data, accelerator)
    steps = _steps_per_epoch(recipe, data, accelerator.num_processes)
    length = Length(max(recipe.epochs, 1), steps)
    notes: list[str] = []
    model = build_model(recipe, data.classes, pretrained=not resume, notes=notes).to(accelerator.device)
    try_out(model, transform)
    settings = read_optimizer(recipe.optimizer)
    images = recipe.batch_size * recipe.accumulate * accelerator.num_processes
    groups = parameter_groups(
        model, lr=scaled_lr(settings.lr, images, recipe.lr_normalizer), weight_decay=settings.weight_decay,
        backbone_lr_scale=recipe.backbone_lr_scale, freeze_epochs=recipe.freeze_epochs, layer_decay=recipe.layer_decay,
    )  # fmt: skip
    objective = make_objective(recipe, task, model, len(data.classes), accelerator.device)
    ema = Ema(model, recipe.ema) if recipe.ema is not None else None
    wrapped, optimizer = accelerator.prepare(objective.module, build_optimizer(groups, settings))
    schedule: LRSchedule = LR_SCHEDULES.build(recipe.lr_schedule)
    return Session(
        recipe, accelerator, data, transform, task, model, wrapped, optimizer, schedule, length, steps * recipe.total_epochs,
        objective, ema, notes,
    )  # fmt: skip


def make_accelerator(recipe: Recipe) -> Any:
    """The accelerator of a recipe.

    Raises:
        ImportError: when accelerate is not installed.
        ValueError: for a precision that the device does not have.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise ImportError("training needs Hugging Face accelerate; install vitrim[train]") from error
    if not torch.distributed.is_initialized():
        # accelerate keeps the settings of the first run of a process for all later ones.
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
    accelerator: Any = Accelerator(mixed_precision="no" if recipe.precision == "fp32" else recipe.precision)
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("recipe: precision fp16 needs a GPU; use --precision bf16 on a CPU")
    return accelerator


def attention_kernel(accelerator: Any) -> AbstractContextManager[Any]:
    """The attention kernel of a training step; PyTorch's own choice except in bf16 on a CPU.

    There the backward pass of the fused kernel takes several times as long as the plain matrix products (torch 2.13).
    """
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def local_processes() -> int:
    """Training processes on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def count_images(data: DataSet, split: str) -> int:
    """Images of a split, of all processes."""
    found: Any = data.split(split)
    lengths: Any = getattr(found, "lengths", None)  # of the shards of a stream, whose own length is this process's share
    return len(found) if lengths is None else sum(lengths)


def check_data(recipe: Recipe, data: DataSet, accelerator: Any) -> None:
    """Look for what would spoil the run, in the first process, before anything is built.

    Raises:
        DataError: with everything that was found.
    """
    from vitrim.datasets.check import require_sound

    splits = list(dict.fromkeys([recipe.train_split, recipe.eval_split]))
    few = recipe.check == "auto" and not recipe.fake and sum(count_images(data, s) for s in splits) <= _DECODED
    if accelerator.is_main_process:
        # Damaged images are skipped and counted when asked, so they are none of the check's business then.
        require_sound(data, splits, decode=not recipe.skip_unreadable and (few or recipe.check == "images"))
    accelerator.wait_for_everyone()


def _steps_per_epoch(recipe: Recipe, data: DataSet, processes: int) -> int:
    images = recipe.batch_size * recipe.accumulate * processes
    available = count_images(data, recipe.train_split)
    if not isinstance(data.split(recipe.train_split), IterableDataset):
        available = len(_order(recipe, available))
    if available < images:
        parts = f"batch_size {recipe.batch_size} x accumulate {recipe.accumulate} x {processes} processes"
        raise ValueError(
            f"recipe: a step takes {images} images ({parts}), the split '{recipe.train_split}' has {available}; lower batch_size"
        )
    return available // images


def _order(recipe: Recipe, count: int) -> EpochOrder:
    return EpochOrder(count, seed=recipe.seed, repeats=recipe.repeats)
