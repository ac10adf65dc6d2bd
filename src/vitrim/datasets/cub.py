"""Caltech-UCSD Birds-200-2011."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("cub")
class Cub(Listed):
    """CUB-200-2011: 200 species of birds, 11,788 photographs (Wah et al., Caltech CNS-TR-2011-001).

    CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: ``CUB_200_2011`` or the folder that holds it.
        shots: train on the first so many images of each class (papers: 1, 2, 4, 8).
    """

    origin = "https://www.vision.caltech.edu/datasets/cub_200_2011/ (non-commercial research and education)"
    expected: ClassVar = {"classes": 200, "train": 4794, "val": 1200, "trainval": 5994, "test": 5794}
    layout = """CUB_200_2011/
  images.txt               IMAGE_ID PATH
  image_class_labels.txt   IMAGE_ID CLASS_ID (from 1)
  train_test_split.txt     IMAGE_ID 1 (training) or 0 (test)
  classes.txt              CLASS_ID NAME
  images/001.Black_footed_Albatross/*.jpg"""
    needs = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images")
    homes = ("", "CUB_200_2011")
    images = "images"

    def official(self, part: str) -> list[Item]:
        label = {key: int(value) - 1 for key, value in self.rows("image_class_labels.txt")}
        wanted = "1" if part == "trainval" else "0"
        chosen = {key for key, flag in self.rows("train_test_split.txt") if flag == wanted}
        return [Item(f"images/{path}", label[key]) for key, path in self.rows("images.txt") if key in chosen]

    def official_classes(self) -> list[str]:
        rows = sorted(self.rows("classes.txt"), key=lambda row: int(row[0]))
        return [name.split(".", 1)[-1].replace("_", " ") for _, name in rows]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Cub:
        names = [f"{i + 1:03d}.{bird}" for i, bird in enumerate(("Red_Fake", "Green_Fake", "Cyan_Fake", "Violet_Fake"))]
        home = "CUB_200_2011/"
        # The real lists mix training and test images within a class.
        rows = [(training, label, f"{names[label]}/Fake_{n:04d}.jpg") for training, label, n in _fake.labels()]
        for _, label, path in rows:
            _fake.place(root, f"{home}images/{path}", label)
        _fake.write(root, f"{home}images.txt", [f"{i} {row[2]}" for i, row in enumerate(rows, 1)])
        _fake.write(root, f"{home}image_class_labels.txt", [f"{i} {row[1] + 1}" for i, row in enumerate(rows, 1)])
        _fake.write(root, f"{home}train_test_split.txt", [f"{i} {int(row[0])}" for i, row in enumerate(rows, 1)])
        _fake.write(root, f"{home}classes.txt", [f"{i} {name}" for i, name in enumerate(names, 1)])
        return cls(root=str(root), **settings)
