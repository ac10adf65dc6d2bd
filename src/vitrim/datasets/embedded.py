"""The images that come with vitrim."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vitrim.data.embedded import Labelled, fashion
from vitrim.datasets._pixels import PixelSet
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("embedded")
class Embedded(PixelSet):
    """2,000 photographs of clothes from the test set of Fashion-MNIST, 200 of each class, inside the package.

    There is nothing to learn from, only ``test``: for first steps without any download, with ``--model fashion``.

    Args:
        root: no folder is read.
    """

    origin = "the package itself; from https://github.com/zalandoresearch/fashion-mnist (MIT)"
    expected: ClassVar = {"classes": 10, "test": 2000}
    layout = "no folder:\n  vitrim/assets/fashion_test_2000.npz"

    def __init__(self, *, root: str = "") -> None:
        super().__init__(root=root)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("test",)

    def load(self, split: str) -> list[Item]:
        return [Item(f"{split}/{i:04d}", int(label)) for i, label in enumerate(self._data.labels)]

    def load_classes(self) -> list[str]:
        return self._data.classes

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if int(item.path.split("/")[1]) >= len(self._data)]

    def image(self, item: Item) -> Image.Image:
        return Image.fromarray(self._data.pixels[int(item.path.split("/")[1])])

    @cached_property
    def _data(self) -> Labelled:
        return fashion()

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Embedded:  # noqa: ARG003 - it is small as it is
        return cls(**settings)
