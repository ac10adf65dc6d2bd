"""VegFru: vegetables and fruits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("vegfru")
class VegFru(Listed):
    """VegFru: 160,731 photographs of 200 vegetables and 92 fruits (Hou et al., ICCV 2017).

    ``trainval`` is the official training and validation lists together, which the papers cut anew: ``val`` is the tail of each
    class. CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: folder of ``vegfru_list``, ``veg200_images`` and ``fru92_images`` (these two also in ``images``).
        shots: train on the first so many images of each class.
    """

    origin = "https://github.com/ustc-vim/vegfru (non-commercial research)"
    expected: ClassVar = {"classes": 292, "train": 35040, "val": 8760, "trainval": 43800, "test": 116931}
    layout = """vegfru/
  vegfru_list/vegfru_train.txt, vegfru_val.txt, vegfru_test.txt   PATH CLASS (from 0)
  veg200_images/CLASS/*.jpg, fru92_images/CLASS/*.jpg             (also below images/)"""
    needs = ("vegfru_list/vegfru_train.txt", "vegfru_list/vegfru_val.txt", "vegfru_list/vegfru_test.txt")
    homes = ("", "vegfru")
    images = "images"

    def official(self, part: str) -> list[Item]:
        below = "images/" if (self.folder / self.home / "images/veg200_images").is_dir() else ""
        names = ("train", "val") if part == "trainval" else (part,)
        rows = [row for name in names for row in self.rows(f"vegfru_list/vegfru_{name}.txt")]
        return [Item(below + path, int(label)) for path, label in rows]

    def official_classes(self) -> list[str]:
        names = {int(label): path.split("/")[-2].replace("_", " ") for path, label in self.rows(self.needs[0])}
        return [names[i] for i in range(len(names))]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> VegFru:
        kinds = ("veg200_images/asparagus", "veg200_images/okra", "fru92_images/acerola", "fru92_images/Persimmon")
        lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for training, label, n in _fake.labels(train=15):
            path = f"{kinds[label]}/{'v' if label < 2 else 'f'}_{label + 1:02d}_{n:04d}.jpg"
            lines["test" if not training else "train" if n <= 10 else "val"].append(f"{path} {label}")
            _fake.place(root, path, label)
        for name, rows in lines.items():
            _fake.write(root, f"vegfru_list/vegfru_{name}.txt", rows)
        return cls(root=str(root), **settings)
