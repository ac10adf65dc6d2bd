"""Fashion-MNIST."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vitrim.datasets import _fake
from vitrim.datasets._pixels import PixelSet
from vitrim.datasets.base import DATASETS, DataError, Item
from vitrim.datasets.splits import first_of_each_class

_FILES = {"train": "train", "val": "train", "trainval": "train", "test": "t10k"}


@DATASETS.register("fashion")
class Fashion(PixelSet):
    """Fashion-MNIST: ten kinds of clothes, 70,000 grey images of 28 x 28 (Xiao et al., arXiv:1708.07747).

    ``trainval`` is the official training part, ``val`` its last twelfth (5,000 images), ``train`` the rest.

    Args:
        root: folder of the four IDX files, compressed or not; by default where the Debian package puts them.
        shots: train on the first so many images of each class; ``val`` and ``test`` stay whole.
    """

    origin = "https://github.com/zalandoresearch/fashion-mnist, or: apt install dataset-fashion-mnist (MIT)"
    expected: ClassVar = {"classes": 10, "train": 55000, "val": 5000, "trainval": 60000, "test": 10000}
    layout = """fashion-mnist/
  train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz
  t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz    (or without .gz)"""

    def __init__(self, *, root: str = "/usr/share/datasets/fashion-mnist", shots: int | None = None) -> None:
        super().__init__(root=root)
        if shots is not None and shots < 1:
            raise ValueError(f"shots is a number of images of each class, 1 or more; got {shots}")
        self.shots = shots
        if shots is not None:
            self.expect({"classes": 10, "val": 5000, "test": 10000})

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "trainval", "test")

    def required(self) -> list[str]:
        names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        return [name if (self.folder / name).exists() else f"{name}.gz" for name in names]

    def load(self, split: str) -> list[Item]:
        part = _FILES[split]
        labels = self._read(f"{part}-labels-idx1-ubyte", 1)
        items = [Item(f"{part}/{i:05d}", int(label)) for i, label in enumerate(labels.tolist())]
        cut = len(items) - len(items) // 12
        chosen = {"train": items[:cut], "val": items[cut:]}.get(split, items)
        if self.shots is None or split in ("val", "test"):
            return chosen
        return first_of_each_class(chosen, self.shots)

    def load_classes(self) -> list[str]:
        from torchvision.datasets import FashionMNIST  # the files hold numbers only

        return list(FashionMNIST.classes)

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if int(item.path.split("/")[1]) >= len(self._pixels(item.path.split("/")[0]))]

    def image(self, item: Item) -> Image.Image:
        part, number = item.path.split("/")
        return Image.fromarray(self._pixels(part)[int(number)])

    def _pixels(self, part: str) -> np.ndarray:
        """``(N, 28, 28)`` uint8, read once and kept."""
        if part not in self._cache:
            self._cache[part] = self._read(f"{part}-images-idx3-ubyte", 3)
        return self._cache[part]

    @cached_property
    def _cache(self) -> dict[str, np.ndarray]:
        return {}

    def _read(self, name: str, dimensions: int) -> np.ndarray:
        """An IDX file: two zero bytes, type 8 (unsigned byte), number of dimensions, sizes as big-endian int32, data."""
        path = self.folder / name if (self.folder / name).exists() else self.folder / f"{name}.gz"
        if not path.is_file():
            raise DataError(f"fashion: '{path}' does not exist; obtain it from {self.origin}")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError) as error:
            raise DataError(f"fashion: '{path}' is damaged ({error}); obtain it again") from error
        start = 4 + 4 * dimensions
        shape = np.frombuffer(data[4:start], dtype=">i4").tolist() if len(data) >= start else []
        if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + int(np.prod(shape)):
            raise DataError(f"fashion: '{path}' is no complete IDX file of {dimensions} dimensions; obtain it again")
        return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Fashion:
        settings.setdefault("root", str(root))
        root.mkdir(parents=True, exist_ok=True)
        for part, count in (("train", 120), ("t10k", 40)):
            labels = np.arange(count, dtype=np.uint8) % 10
            images = [_fake.draw(f"{part}/{i}", int(label), 10, (28, 28)).convert("L") for i, label in enumerate(labels)]
            # Grey images: the hue is lost, so each class gets a brightness of its own beside its stripes.
            pixels = np.stack([np.asarray(i, dtype=np.float32) for i in images]) * (0.4 + 0.08 * labels[:, None, None])
            for name, array in (("images-idx3", pixels.clip(0, 255).astype(np.uint8)), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
                (root / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
        return cls(**settings)
