"""Oxford-IIIT Pet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("pets")
class Pets(Listed):
    """Oxford-IIIT Pet: 7,349 photographs of 37 breeds of cats and dogs (Parkhi et al., CVPR 2012).

    CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: ``oxford-iiit-pet`` or the folder that holds it: the one with ``images`` and ``annotations``.
        shots: train on the first so many images of each class.
    """

    origin = "https://www.robots.ox.ac.uk/~vgg/data/pets/ (CC BY-SA 4.0)"
    expected: ClassVar = {"classes": 37, "train": 2941, "val": 739, "trainval": 3680, "test": 3669}
    layout = """oxford-iiit-pet/
  annotations/trainval.txt   NAME CLASS (from 1) SPECIES BREED
  annotations/test.txt       the same
  images/Abyssinian_100.jpg"""
    needs = ("annotations/trainval.txt", "annotations/test.txt", "images")
    homes = ("", "oxford-iiit-pet")
    images = "images"

    def official(self, part: str) -> list[Item]:
        rows = self.rows(f"annotations/{part}.txt", fields=4)
        return [Item(f"images/{row[0]}.jpg", int(row[1]) - 1) for row in rows if not row[0].startswith("#")]

    def official_classes(self) -> list[str]:
        rows = self.rows("annotations/trainval.txt", fields=4)
        names = {int(row[1]) - 1: row[0].rsplit("_", 1)[0].replace("_", " ") for row in rows if not row[0].startswith("#")}
        return [names[i] for i in range(len(names))]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Pets:
        breeds = ("Abyssinian", "american_bulldog", "Bengal", "yorkshire_terrier")
        home = "oxford-iiit-pet/"
        lines: dict[bool, list[str]] = {True: [], False: []}
        for training, label, n in _fake.labels():
            name = f"{breeds[label]}_{n}"
            lines[training].append(f"{name} {label + 1} {1 if breeds[label][0].isupper() else 2} 1")
            _fake.place(root, f"{home}images/{name}.jpg", label)
        _fake.write(root, f"{home}annotations/trainval.txt", lines[True])
        _fake.write(root, f"{home}annotations/test.txt", lines[False])
        return cls(root=str(root), **settings)
