"""Food-101."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("food")
class Food(Listed):
    """Food-101: 101,000 photographs of 101 dishes; training labels are noisy by intent (Bossard et al., ECCV 2014).

    As in the papers, ``train`` is the first fifth of each class of ``trainval`` and ``val`` the rest. CSV files of the papers
    (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: ``food-101`` or the folder that holds it.
        shots: train on the first so many images of each class.
    """

    origin = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ (research; pictures belong to their authors)"
    expected: ClassVar = {"classes": 101, "train": 15150, "val": 60600, "trainval": 75750, "test": 25250}
    layout = """food-101/
  meta/classes.txt                     one class a line, in the order of the labels
  meta/train.txt, meta/test.txt        CLASS/NUMBER
  images/apple_pie/1005649.jpg"""
    needs = ("meta/train.txt", "meta/test.txt", "meta/classes.txt", "images")
    homes = ("", "food-101")
    images = "images"
    share = 0.2

    def official(self, part: str) -> list[Item]:
        index = {row[0]: i for i, row in enumerate(self.rows("meta/classes.txt", fields=1))}
        rows = self.rows(f"meta/{'train' if part == 'trainval' else part}.txt", fields=1)
        return [Item(f"images/{row[0]}.jpg", index[row[0].split("/")[0]]) for row in rows]

    def official_classes(self) -> list[str]:
        return [row[0].replace("_", " ") for row in self.rows("meta/classes.txt", fields=1)]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Food:
        dishes = ("apple_pie", "beignets", "ceviche", "tacos")
        home = "food-101/"
        lines: dict[bool, list[str]] = {True: [], False: []}
        for training, label, n in _fake.labels(train=20):
            name = f"{dishes[label]}/{1000 * n + label}"
            lines[training].append(name)
            _fake.place(root, f"{home}images/{name}.jpg", label)
        _fake.write(root, f"{home}meta/train.txt", lines[True])
        _fake.write(root, f"{home}meta/test.txt", lines[False])
        _fake.write(root, f"{home}meta/classes.txt", dishes)
        return cls(root=str(root), **settings)
