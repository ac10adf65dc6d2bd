"""Oxford 102 Flowers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitrim.datasets import _fake, _mat
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item

_PARTS = {"train": ("trnid",), "val": ("valid",), "trainval": ("trnid", "valid"), "test": ("tstid",)}


@DATASETS.register("flowers")
class Flowers(Listed):
    """Oxford 102 Flowers: 8,189 photographs (Nilsback and Zisserman, ICVGIP 2008), with its official validation part.

    CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: folder of the two lists and ``jpg``.
        shots: train on the first so many images of each class.
    """

    origin = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (research; pictures belong to their authors)"
    expected: ClassVar = {"classes": 102, "train": 1020, "val": 1020, "trainval": 2040, "test": 6149}
    layout = """flowers/
  imagelabels.mat   labels (from 1) of the images by number
  setid.mat         trnid, valid, tstid: numbers of the images
  jpg/image_00001.jpg"""
    needs = ("setid.mat", "imagelabels.mat", "jpg")
    homes = ("", "flowers-102")
    images = "jpg"

    def official(self, part: str) -> list[Item]:
        labels = _mat.read(self.file(f"{self.home}imagelabels.mat"), "labels")[0]
        chosen = _mat.read(self.file(f"{self.home}setid.mat"), *_PARTS[part])
        return [Item(f"jpg/image_{int(n):05d}.jpg", int(labels[int(n) - 1]) - 1) for numbers in chosen for n in numbers]

    def official_val(self) -> tuple[list[Item], list[Item]]:
        return self.parse("setid.mat", lambda: (self.official("train"), self.official("val")))

    def official_classes(self) -> list[str]:
        from torchvision.datasets import Flowers102  # the download holds no names

        count = max(int(label) for label in _mat.read(self.file(f"{self.home}imagelabels.mat"), "labels")[0])
        names: list[str] = list(getattr(Flowers102, "classes", ()))
        return names[:count] if len(names) >= count else [str(i + 1) for i in range(count)]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Flowers:
        from scipy.io import savemat

        parts: dict[str, list[int]] = {"trnid": [], "valid": [], "tstid": []}
        labels: list[int] = []
        for number, (_, label, n) in enumerate(_fake.labels(train=8, test=6), 1):
            parts["trnid" if n <= 4 else "valid" if n <= 8 else "tstid"].append(number)
            labels.append(label + 1)
            _fake.place(root, f"jpg/image_{number:05d}.jpg", label)
        savemat(root / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
        savemat(root / "setid.mat", {key: np.array([numbers], dtype=np.uint16) for key, numbers in parts.items()})
        for name in ("imagelabels.mat", "setid.mat"):
            _fake.strip_date(root / name)
        return cls(root=str(root), **settings)
