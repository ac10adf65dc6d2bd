"""What a data set is: classes, items of each split, images read on demand."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitrim.core.registry import Registry
from vitrim.data.images import open_image

DATASETS = Registry("data set", "vitrim.datasets", families=True)

SPLITS = ("train", "val", "trainval", "test")


class DataError(ValueError):
    """Something is wrong with the user's files; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a data set.

    Attributes:
        path: of the image relative to the data set's root, with forward slashes; for sets without image files, the name by
            which the set finds it.
        target: class index, or for multi-label sets the indices of the present classes.
    """

    path: str
    target: int | tuple[int, ...]


class DataSet(ABC):
    """A labelled set of images on disk.

    A child registers itself by ``@DATASETS.register("name")``, gives ``layout`` and ``origin``, says its ``splits``, and
    implements ``load`` and ``load_classes``; constructor arguments are keyword-only settings, ``root`` first. Nothing is read by
    the constructor.

    Args:
        root: folder of the set.
    """

    spec_name: ClassVar[str]
    multilabel: ClassVar[bool] = False
    #: where the set is obtained, and its licence in words
    origin: ClassVar[str] = ""
    #: published counts under the keys classes, train, val, trainval, test
    expected: ClassVar[Mapping[str, int]] = {}
    #: the folder structure, as text for people
    layout: ClassVar[str] = ""

    def __init__(self, *, root: str) -> None:
        self.root = str(root)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that ``load`` knows; ``trainval`` need not be among them where ``train`` and ``val`` are."""
        return ("train", "val", "test")

    def expect(self, counts: dict[str, int]) -> None:
        """Replace the published counts, for settings that change them."""
        self.expected = counts  # pyright: ignore[reportAttributeAccessIssue]

    @abstractmethod
    def load(self, split: str) -> list[Item]:
        """Read the items of one of ``splits`` from the set's own annotation files; called once for each.

        Raises:
            DataError: when annotations are missing or damaged.
        """

    @abstractmethod
    def load_classes(self) -> list[str]:
        """Read the names of the classes, by index; called once."""

    def required(self) -> Sequence[str]:
        """Files and folders that must exist below the root."""
        return ()

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> DataSet:  # noqa: ARG003 - the signature of the children
        """Write a tiny deterministic twin of the same folder structure, with images in every split, and open it."""
        raise DataError(f"{cls.spec_name} has no fake twin; use fake data of another set, such as folder")

    @property
    def local(self) -> bool:
        """Whether items can be listed and images read in any order; not so for streams from other machines."""
        return True

    @property
    def folder(self) -> Path:
        """The root as a path, ``~`` resolved."""
        return Path(self.root).expanduser()

    def file(self, name: str) -> Path:
        """The path of a file or folder that must exist below the root.

        Raises:
            DataError: when it does not, with the command that tells what a complete set looks like.
        """
        path = self.folder / name
        if not path.exists():
            what = path if self.folder.is_dir() else self.folder
            raise DataError(
                f"{self.spec_name}: '{what}' does not exist; what is missing and where to get it: "
                f"vitrim data check {self.spec_name} --root {self.root}"
            )
        return path

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return self.load_classes()

    def items(self, split: str) -> list[Item]:
        """All images of a split, in the order of the set's own files.

        Raises:
            ValueError: for a split that this set does not have, with those it has.
            DataError: when annotations are missing or damaged.
        """
        if split not in self._items:
            if split in self.splits:
                self._items[split] = self.load(split)
            elif split == "trainval" and {"train", "val"} <= set(self.splits):
                self._items[split] = self.items("train") + self.items("val")
            else:
                raise ValueError(f"{self.spec_name} has no split '{split}'; it has: {', '.join(self.split_names())}")
        return self._items[split]

    def split_names(self) -> list[str]:
        """The splits that ``items`` takes, in the order train, val, trainval, test."""
        joined = {"trainval"} if {"train", "val"} <= set(self.splits) else set[str]()
        names = {*self.splits, *joined}
        return [s for s in SPLITS if s in names] + sorted(names - set(SPLITS))

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those of the items whose files do not exist; sets that do not keep one file for each image override this."""
        there: dict[str, set[str]] = {}
        gone = []
        for item in items:
            # One listing per folder: asking for a million files one by one takes minutes on network file systems.
            parent, _, name = item.path.rpartition("/")
            if parent not in there:
                folder = self.folder / parent
                there[parent] = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208 - names are enough
            if name not in there[parent]:
                gone.append(item)
        return gone

    def raw(self, item: Item) -> bytes:
        """The encoded image, as it lies on disk.

        Raises:
            DataError: when there is no such file.
        """
        path = self.folder / item.path
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.spec_name}: '{path}' cannot be read ({error.strerror or error})") from error

    def read(self, item: Item) -> Image.Image:
        """The image, upright and in RGB.

        Raises:
            DataError: naming the file, when it is missing, no image, or damaged.
        """
        data = self.raw(item)
        try:
            return open_image(data)
        except ValueError as error:
            raise DataError(f"{self.spec_name}: '{self.folder / item.path}': {error}") from error

    def split(self, name: str) -> Split:
        """A split as a dataset of PyTorch."""
        return Split(self, name)

    @cached_property
    def _items(self) -> dict[str, list[Item]]:
        return {}


class Split(Dataset[tuple[Image.Image, Any]]):
    """Images of one split: ``split[i]`` is ``(image, target)``.

    The target is a class index, or for multi-label sets a float32 vector with ones at the present classes.

    Attributes:
        dataset: the set.
        name: of the split.
    """

    def __init__(self, dataset: DataSet, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.items = dataset.items(name)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | Tensor]:
        item = self.items[index]
        return self.dataset.read(item), encode(item.target, len(self.dataset.classes) if self.dataset.multilabel else 0)

    @property
    def targets(self) -> list[int | tuple[int, ...]]:
        """The targets, without reading images."""
        return [item.target for item in self.items]


def encode(target: int | tuple[int, ...], classes: int) -> int | Tensor:
    """The target as a loss takes it: a class index as it is, present classes as ``(classes,)`` float32 zeros and ones."""
    if isinstance(target, int):
        return target
    present = torch.zeros(classes)
    present[list(target)] = 1.0
    return present
