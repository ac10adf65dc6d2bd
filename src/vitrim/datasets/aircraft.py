"""FGVC-Aircraft."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item

_PLURAL = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}


@DATASETS.register("aircraft")
class Aircraft(Listed):
    """FGVC-Aircraft 2013b: 10,000 photographs of 100 variants of aircraft (Maji et al., arXiv:1306.5151).

    The papers do not use the official train and val lists: ``val`` is the tail of each class of ``trainval``. CSV files of the
    papers (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: ``fgvc-aircraft-2013b``, its ``data``, or the folder that holds it.
        shots: train on the first so many images of each class (papers: 1, 2, 4, 8).
        level: of the labels: variant (100 classes), family (70) or manufacturer (30).
    """

    origin = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ (non-commercial research)"
    expected: ClassVar = {"classes": 100, "train": 5267, "val": 1400, "trainval": 6667, "test": 3333}
    layout = """fgvc-aircraft-2013b/data/
  variants.txt                   one class a line, in the order of the labels
  images_variant_trainval.txt    IMAGE VARIANT
  images_variant_test.txt        IMAGE VARIANT
  images/0034309.jpg             (families.txt, images_family_*.txt and so on for other levels)"""
    needs = ("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt", "images")
    homes = ("", "data", "fgvc-aircraft-2013b/data")
    images = "images"

    def __init__(self, *, root: str, shots: int | None = None, level: str = "variant") -> None:
        super().__init__(root=root, shots=shots)
        if level not in _PLURAL:
            raise ValueError(f"level is one of {', '.join(_PLURAL)}; got '{level}'")
        self.level = level
        if level != "variant":
            classes = {"family": 70, "manufacturer": 30}[level]
            self.expect({"classes": classes, "test": 3333} | ({"trainval": 6667} if shots is None else {}))

    def official(self, part: str) -> list[Item]:
        index = {name: i for i, name in enumerate(self._names())}
        return [Item(f"images/{image}.jpg", index[name]) for image, name in self.rows(f"images_{self.level}_{part}.txt")]

    def official_classes(self) -> list[str]:
        return self._names()

    def _names(self) -> list[str]:
        return [row[0] for row in self.rows(f"{_PLURAL[self.level]}.txt", fields=1)]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Aircraft:
        names = {"variant": ("707-320", "727-200", "A300B4", "Tu-134"), "family": ("Boeing 707", "Boeing 727", "A300", "Tu-134")}
        names["manufacturer"] = ("Boeing", "Boeing", "Airbus", "Tupolev")
        home = "fgvc-aircraft-2013b/data/"
        rows = [(training, label, f"{1000 * n + 37 * label:07d}") for training, label, n in _fake.labels()]
        for _, label, image in rows:
            _fake.place(root, f"{home}images/{image}.jpg", label)
        for level, plural in _PLURAL.items():
            _fake.write(root, f"{home}{plural}.txt", dict.fromkeys(names[level]))
            for part, flag in (("trainval", True), ("test", False)):
                lines = [f"{image} {names[level][label]}" for training, label, image in rows if training is flag]
                _fake.write(root, f"{home}images_{level}_{part}.txt", lines)
        return cls(root=str(root), **settings)
