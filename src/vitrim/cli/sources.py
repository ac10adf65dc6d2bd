"""What is drawn: trained runs, or a model by name, with their images."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrim.core.attach import reduced
from vitrim.core.backbone import find_backbone
from vitrim.core.reduction import Reduction
from vitrim.core.registry import METHODS, SCHEDULES, spec
from vitrim.data.embedded import balanced, fashion
from vitrim.data.images import open_image
from vitrim.data.models import LoadedModel, load_model, unnormalise
from vitrim.datasets.base import DATASETS, DataSet
from vitrim.datasets.transforms import TRANSFORMS
from vitrim.experiments.features import Gallery, of_subject, of_tensors
from vitrim.experiments.subject import NONE, Changes, Subject, reduce_again
from vitrim.recognition.base import backbone_of
from vitrim.tasks import TASKS
from vitrim.training.build import build_dataset, load_run


@dataclass
class Source:
    """A model, and how it takes and gives back images.

    Attributes:
        name: of the model or the run.
        model: in evaluation mode, reduced where it is of a run that was trained so; of a recogniser the transformer inside.
        transform: from an image to ``(C, H, W)``.
        picture: back to ``(H, W, 3)`` uint8.
        method: spec of the method that it was trained with; None for a model by name.
        schedule: its schedule.
        label: what it was trained with, in a word.
        learned: learned parts of methods that came with the model.
        run: whether it is of a run.
        dataset: opens the data set; None where there is none.
        split: of the data set.
        embedded: whether the images that come with vitrim fit.
        notes: what the user should know, a line each.
        untrained: methods whose own parameters are random.
    """

    name: str
    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    picture: Callable[[Tensor], np.ndarray]
    method: str | None = None
    schedule: str | None = None
    label: str = "none"
    learned: dict[str, Tensor] = field(default_factory=dict)
    run: bool = False
    dataset: Callable[[], DataSet] | None = None
    split: str = "val"
    embedded: bool = False
    notes: list[str] = field(default_factory=list)
    untrained: set[str] = field(default_factory=set)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(find_backbone(self.model).blocks(self.model))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ValueError: when the model does not tell.
        """
        grid = find_backbone(self.model).layout(self.model).grid
        if grid is None:
            raise ValueError(
                f"the patch grid of {type(self.model).__name__} is not known, so there is nothing to draw on; try another model"
            )
        return grid

    @contextmanager
    def reduced(self, method: str | None, schedule: str | None, seed: int = 0) -> Generator[tuple[nn.Module, Reduction]]:
        """The model under a reduction, None being that of the run; yields it, and what runs its blocks.

        Raises:
            SpecError: for a method or schedule that cannot work on the model.
            ValueError: for a run that reduces nothing.
        """
        if self.run:
            yield self._again(method, schedule)
            return
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with reduced(self.model, method or "none", schedule or "keep", seed=seed) as reduction:
                if not reduction.load_learned(self.learned):
                    self.untrained.add(reduction.method)
                    self.note(f"{reduction.method}: its learned part is untrained; the picture says nothing about the method")
                for warning in said:
                    self.note(str(warning.message))
                yield self.model, reduction

    def _again(self, method: str | None, schedule: str | None) -> tuple[nn.Module, Reduction]:
        # A copy that shares the weights: another reduction would lose what the first one has learned.
        twin: Any = copy.deepcopy(self.model, {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]})
        if method is not None or schedule is not None:
            for note in reduce_again(twin, self.method, self.schedule or "keep", Changes(method, schedule)):
                self.note(note)
        found: Any = getattr(twin, "reduction", None)
        if not isinstance(found, Reduction):
            try:
                found = twin.tuning.engine
            except (AttributeError, RuntimeError):  # not tuned, or not between the blocks
                raise ValueError(f"'{self.name}' was trained without reduction; name a method with --methods") from None
        return twin, found

    def note(self, text: str) -> None:
        """Remember what the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def gallery(self, files: Sequence[Path] | None, count: int) -> tuple[Gallery, list[str]]:
        """Images and their names: the files, or ``count`` of the data set, or of those that come with vitrim.

        Raises:
            ValueError: for a file that is no image, or when there are no images.
        """
        if files:
            images = torch.stack([self.transform(_open(file)) for file in files])
            return self._of_tensors(images), [file.name for file in files]
        if self.dataset is not None:
            dataset = self.dataset()
            task = TASKS.build("multilabel" if dataset.multilabel else "classify")
            subject = Subject(self.model, dataset, self.split, self.transform, task, {})
            gallery = of_subject(subject, count or None, self.picture)
            items = dataset.items(self.split)
            return gallery, [items[i * len(items) // gallery.count].path for i in range(gallery.count)]
        if not self.embedded:
            raise ValueError(f"no images come with model '{self.name}'; give --image FILE or --data NAME")
        data = fashion()
        # The classes whose shapes are told apart at a glance come first.
        chosen = _first(data.labels) if count and count <= len(_SHOWN) else balanced(data.labels.tolist(), count or len(data))
        chosen = chosen[: count or None]
        return self._of_tensors(data.images[chosen]), [data.classes[int(data.labels[i])] for i in chosen]

    def _of_tensors(self, images: Tensor) -> Gallery:
        gallery = of_tensors(_Bare(self.model), images, [0] * len(images), [""], {})  # pyright: ignore[reportArgumentType]
        gallery.picture = self.picture
        return gallery


_SHOWN = (8, 5, 7, 3, 1)  # bag, sandal, sneaker, dress, trouser


@dataclass(frozen=True)
class _Bare:
    """As much of a loaded model as a gallery asks for."""

    model: nn.Module

    def unnormalise(self, image: Tensor) -> np.ndarray:
        raise NotImplementedError


def of_runs(
    runs: Sequence[Path], data: str | None, split: str | None, transform: str | None, device: torch.device
) -> list[Source]:  # fmt: skip
    """Runs, by their folders or weights files.

    Raises:
        FileNotFoundError: when there is no such run.
        ValueError: when it is not finished.
    """
    found: list[Source] = []
    for run in runs:
        if not run.exists():
            raise FileNotFoundError(f"'{run}' does not exist; give the folder of a run, or its model.safetensors")
        if run.is_dir() and not (run / "config.yaml").is_file():
            raise FileNotFoundError(f"'{run}' holds no run (no config.yaml); give the folder that vitrim train wrote")
        loaded = load_run(run, device=device)
        recipe = loaded.recipe if data is None else replace(loaded.recipe, data=data, fake=False)
        steps: Any = loaded.transform if transform is None else TRANSFORMS.build(transform)
        name, label = run.name if run.is_dir() else run.parent.name, recipe.tune or "none"
        source = Source(
            name, backbone_of(loaded.model), steps.eval(), partial(unnormalise, mean=steps.mean, std=steps.std),
            recipe.method, recipe.schedule,
            plain_name(recipe.method) if recipe.method else label, run=True, dataset=_opener(recipe),
            split=split or recipe.eval_split,
        )  # fmt: skip
        found.append(source)
    return found


def of_name(
    name: str, weights: Path | None, random_weights: bool, data: str | None, split: str | None, transform: str | None,
    device: torch.device,
) -> Source:  # fmt: skip
    """A model by name.

    Raises:
        SpecError: for an unknown model, data set or transform.
        ValueError: when weights do not fit or cannot be had.
    """
    loaded = load_model(name, weights, device=device, random_weights=random_weights)
    steps: Any = None if transform is None else TRANSFORMS.build(transform)
    return Source(
        loaded.name, loaded.model, loaded.transform if steps is None else steps.eval(),
        loaded.unnormalise if steps is None else partial(unnormalise, mean=steps.mean, std=steps.std), learned=loaded.reduction,
        dataset=None if data is None else lambda: DATASETS.build(data), split=split or "val", embedded=_embedded(loaded),
        notes=["the weights are random: the picture says nothing about the model"] if loaded.random else [],
    )  # fmt: skip


def check(methods: Sequence[str], schedules: Sequence[str]) -> None:
    """Read the specs before anything is computed.

    Raises:
        SpecError: for an unknown method, schedule or setting.
    """
    for method in methods:
        if method not in NONE:
            METHODS.build(method)
    for schedule in schedules:
        SCHEDULES.build(schedule)


def plain_name(method: str) -> str:
    """The spec as tables have it."""
    return method if method in NONE else spec(method)


def _opener(recipe: Any) -> Callable[[], DataSet]:
    return lambda: build_dataset(recipe)


def _embedded(loaded: LoadedModel) -> bool:
    return loaded.input_size == (1, 28, 28) and loaded.classes is not None and loaded.classes == fashion(10).classes


def _first(labels: Tensor) -> list[int]:
    return [int((labels == label).nonzero()[0]) for label in _SHOWN]


def _open(file: Path) -> Image.Image:
    try:
        return open_image(file)
    except ValueError as error:
        raise ValueError(f"image: '{file}': {error}; give a JPEG, PNG or WebP file") from error
