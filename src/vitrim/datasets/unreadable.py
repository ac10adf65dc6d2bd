"""Training on a set with damaged images: stop, or count them and go on."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitrim.datasets._stream import Stream
from vitrim.datasets.base import DataError, DataSet, Item, Split


def readable(split: Split | Stream, *, skip_unreadable: bool = False) -> Any:
    """A split as training reads it: unreadable images raise DataError, or are skipped and counted when asked.

    Args:
        split: what ``dataset.split(name)`` gave.
        skip_unreadable: put the next readable image in the place of an unreadable one.

    Returns:
        The split itself when nothing is to be skipped, else one with ``unreadable``, the number of skipped images.
    """
    if isinstance(split, Stream):
        split.skip_unreadable = skip_unreadable
        return split
    return Readable(split) if skip_unreadable else split


class Readable(Dataset[tuple[Image.Image, Any]]):
    """A split whose unreadable images are replaced by the next readable one, label and all, always by the same.

    Length and order stay, so that a run with the same files repeats itself. Which images were unreadable is kept in shared
    memory: loader workers write it, the main process reads it.
    """

    def __init__(self, split: Split) -> None:
        self.inner = split
        self.dataset: DataSet = split.dataset
        self.name = split.name
        self._bad = torch.zeros(len(split), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | Tensor]:
        count = len(self)
        for step in range(count):
            at = (index + step) % count
            if self._bad[at]:
                continue
            try:
                return self.inner[at]
            except DataError:
                self._bad[at] = True
        raise DataError(f"none of the {count} images of '{self.name}' can be read; vitrim data check tells more")

    @property
    def items(self) -> list[Item]:
        """The items, unreadable ones included."""
        return self.inner.items

    @property
    def targets(self) -> list[int | tuple[int, ...]]:
        """The targets, those of unreadable images included."""
        return self.inner.targets

    @property
    def unreadable(self) -> int:
        """How many images were found unreadable so far, by this process and its workers."""
        return int(self._bad.sum())

    def report(self) -> str:
        """One line that counts and names unreadable images, or an empty text."""
        names = [self.items[i].path for i in self._bad.nonzero().flatten().tolist()]
        if not names:
            return ""
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"{self.name}: {len(names)} unreadable images replaced by the next readable one: {', '.join(names[:5])}{more}"
