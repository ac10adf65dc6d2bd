"""Moeimouto: faces of anime characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("moe")
class Moe(Listed):
    """Moeimouto: faces of 173 anime characters, 14,397 pictures, normalised by mean and standard deviation 0.5 in the papers.

    The download has one folder for each character and no split, so the CSV files of the papers (``class_id,dir``) are needed.

    Args:
        root: folder of the CSV files and ``data``.
        shots: train on the first so many images of each class.
    """

    origin = "https://www.kaggle.com/datasets/mylesoneill/tagged-anime-illustrations (moeimouto-faces), CSV files of the papers"
    expected: ClassVar = {"classes": 173, "train": 9098, "val": 2356, "trainval": 11454, "test": 2943}
    layout = """moe/
  train_val.csv, test.csv, train.csv, val.csv    class_id,dir with dir below data/
  data/000_hatsune_miku/*.png"""
    needs = ("train_val.csv", "test.csv", "data")
    homes = ("", "moe")
    images = "data"

    def official(self, part: str) -> list[Item]:
        self.file(self.needs[part == "test"])  # the CSV files are the only split there is
        return []

    def official_classes(self) -> list[str]:
        self.file(self.needs[0])
        return []

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Moe:
        rows: dict[str, list[str]] = {name: ["class_id,dir"] for name in ("train", "val", "train_val", "test")}
        for training, label, n in _fake.labels():
            path = f"{label:03d}_fake_{'abcd'[label]}/face_{10 * n}_{label}.png"
            for name in ("train_val", "train" if n <= 8 else "val") if training else ("test",):
                rows[name].append(f"{label},{path}")
            _fake.place(root, f"data/{path}", label)
        for name, lines in rows.items():
            _fake.write(root, f"{name}.csv", lines)
        return cls(root=str(root), **settings)
