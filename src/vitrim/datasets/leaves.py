"""The ultra-fine-grained leaf sets: Cotton80, SoyLocal, SoyGene, SoyGlobal, SoyAgeing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, DataError, Item

_ORIGIN = "https://maxwell.ict.griffith.edu.au/cvipl/UFG_dataset.html (research; Yu et al., ICCV 2021)"
_SUFFIXES = (".png", ".jpg", ".jpeg")
_STAGES = ("R1", "R3", "R4", "R5", "R6")


def _named_or_listed(self: Listed, part: str) -> list[Item]:
    """Items from ``anno/SPLIT.txt`` where it exists, else from names ``CLASS_NUMBER_SPLIT.png``."""
    split = "train" if part == "trainval" else part
    if (self.folder / self.home / f"anno/{split}.txt").exists():
        return _listed(self, split)
    folder = _folder_of_names(self)
    return [Item(path, label) for path, label, name in _named(self.folder / self.home, folder) if name == split]


def _named_or_listed_needs(self: Listed) -> Sequence[str]:
    if self.tables is not None or (self.folder / self.home / "anno").exists():
        return Listed.required(self)
    return [self.home + _folder_of_names(self)]


def _numbers(self: Listed) -> list[str]:
    """Names of the classes: the cultivars are anonymous, the sets number them from 1."""
    return [str(i + 1) for i in range(1 + max(int(str(item.target)) for item in self.official("trainval")))]


def _listed(self: Listed, split: str, below: str = "") -> list[Item]:
    """Items of ``anno/SPLIT.txt`` in a folder below ``home``; class - 1 is the label."""
    return [Item(f"{below}images/{path}", int(label) - 1) for path, label in self.rows(f"{below}anno/{split}.txt")]


def _folder_of_names(self: Listed) -> str:
    return next((s for s in (self.images, "images") if (self.folder / self.home / s).is_dir()), self.images)


def _named(home: Path, folder: str) -> list[tuple[str, int, str]]:
    """Path below ``home``, label and split of each image named ``CLASS_NUMBER_SPLIT.png``, by class and number."""
    if not (home / folder).is_dir():
        raise DataError(f"there is no folder '{home / folder}' of leaf images; obtain it from {_ORIGIN}")
    found: list[tuple[int, int, str, str]] = []
    for file in (home / folder).iterdir():
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."):
            match = re.fullmatch(r"(\d+)_(\d+)_(train|test)", file.stem.lower())
            if match is None:
                raise DataError(
                    f"'{file}' is not named CLASS_NUMBER_SPLIT{file.suffix}, as in 1_2_train.png; rename or remove it"
                )
            found.append((int(match[1]), int(match[2]), match[3], file.name))
    return [(f"{folder}/{name}", number - 1, split) for number, _, split, name in sorted(found)]


@DATASETS.register("cotton")
class Cotton(Listed):
    """Cotton80: leaves of 80 cultivars of cotton, 480 images (Yu et al., ICCV 2021); three training images a class.

    Labels and split come from ``anno`` where it exists, else from the file names, whose class counts from 1. CSV files of the
    papers (``train_val.csv``, ``test.csv``, ...) in the root win.

    Args:
        root: folder of ``cotton_square_new``, or ``COTTON`` with ``anno`` and ``images``.
        shots: train on the first so many images of each class.
    """

    origin = _ORIGIN
    expected: ClassVar = {"classes": 80, "train": 160, "val": 80, "trainval": 240, "test": 240}
    layout = """cotton/
  cotton_square_new/CLASS_NUMBER_SPLIT.png       1_2_train.png: class from 1, train or test
or
  anno/train.txt, anno/test.txt                  NAME CLASS (from 1)
  images/"""
    needs = ("anno/train.txt", "anno/test.txt", "images")
    homes = ("", "COTTON")
    images = "cotton_square_new"
    official = _named_or_listed
    official_classes = _numbers
    required = _named_or_listed_needs

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Cotton:
        _fake_names(root, "cotton_square_new")
        return cls(root=str(root), **settings)


@DATASETS.register("soylocal")
class SoyLocal(Listed):
    """SoyCultivarLocal: leaves of 200 cultivars of soybean, 1,200 images (Yu et al., ICCV 2021).

    Labels and split come from ``anno`` where it exists, else from the file names, whose class counts from 1. CSV files of the
    papers (``train_val.csv``, ``test.csv``, ...) in the root win.

    Args:
        root: folder of ``soybean200_square``, or ``soybean200`` with ``anno`` and ``images``.
        shots: train on the first so many images of each class.
    """

    origin = _ORIGIN
    expected: ClassVar = {"classes": 200, "train": 400, "val": 200, "trainval": 600, "test": 600}
    layout = """soylocal/
  soybean200_square/CLASS_NUMBER_SPLIT.png       1_2_train.png: class from 1, train or test
or
  anno/train.txt, anno/test.txt                  NAME CLASS (from 1)
  images/"""
    needs = ("anno/train.txt", "anno/test.txt", "images")
    homes = ("", "soybean200")
    images = "soybean200_square"
    official = _named_or_listed
    official_classes = _numbers
    required = _named_or_listed_needs

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> SoyLocal:
        _fake_names(root, "soybean200_square")
        return cls(root=str(root), **settings)


@DATASETS.register("soyglobal")
class SoyGlobal(Listed):
    """SoyCultivarGlobal: leaves of 1,938 cultivars of soybean, 11,628 images (Yu et al., ICCV 2021).

    Labels and split come from ``anno`` where it exists, else from the file names, whose class counts from 1. CSV files of the
    papers (``train_val.csv``, ``test.csv``, ...) in the root win.

    Args:
        root: folder of ``soybean2000`` (images named by class, number and split), or one with ``anno`` and ``images``.
        shots: train on the first so many images of each class.
    """

    origin = _ORIGIN
    expected: ClassVar = {"classes": 1938, "train": 3876, "val": 1938, "trainval": 5814, "test": 5814}
    layout = """soyglobal/
  soybean2000/CLASS_NUMBER_SPLIT.png             1_2_train.png: class from 1, train or test
or
  anno/train.txt, anno/test.txt                  NAME CLASS (from 1)
  images/"""
    needs = ("anno/train.txt", "anno/test.txt", "images")
    homes = ("", "soybean2000")
    images = "soybean2000"
    official = _named_or_listed
    official_classes = _numbers
    required = _named_or_listed_needs

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> SoyGlobal:
        _fake_names(root, "soybean2000")
        return cls(root=str(root), **settings)


@DATASETS.register("soygene")
class SoyGene(Listed):
    """SoyCultivarGene: leaves of 1,110 cultivars of soybean, 23,906 images (Yu et al., ICCV 2021).

    CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win over ``anno``.

    Args:
        root: folder of ``anno`` and ``images``.
        shots: train on the first so many images of each class (papers: 1, 2, 4, 8).
    """

    origin = _ORIGIN
    expected: ClassVar = {"classes": 1110, "train": 9562, "val": 3201, "trainval": 12763, "test": 11143}
    layout = """soygene/
  anno/train.txt, anno/test.txt    NAME CLASS (from 1)
  images/"""
    needs = ("anno/train.txt", "anno/test.txt", "images")
    homes = ("", "soybeangene", "soybean_gene")
    images = "images"
    official_classes = _numbers

    def official(self, part: str) -> list[Item]:
        return _listed(self, "train" if part == "trainval" else part)

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> SoyGene:
        _fake_lists(root)
        return cls(root=str(root), **settings)


@DATASETS.register("soyageing")
class SoyAgeing(Listed):
    """SoyCultivarAgeing: leaves of 198 cultivars of soybean at five stages of growth, 9,900 images (Yu et al., ICCV 2021).

    Without a stage all five are joined in order; ``val``, the last fifth of each class, then holds images of R6 alone, as in
    the papers. CSV files of the papers in the root win: ``train_val.csv``, ``test.csv``, ..., with a stage ``train_val_R1.csv``
    and so on.

    Args:
        root: folder of ``R1``, ``R3``, ``R4``, ``R5``, ``R6``.
        shots: train on the first so many images of each class.
        stage: one of R1, R3, R4, R5, R6 (there is no R2), or null for all.
    """

    origin = _ORIGIN
    expected: ClassVar = {"classes": 198, "train": 3960, "val": 990, "trainval": 4950, "test": 4950}
    layout = """soyageing/
  R1/anno/train.txt, R1/anno/test.txt    NAME CLASS (from 1)
  R1/images/                             likewise R3, R4, R5, R6"""
    needs = ("R1/anno/train.txt",)
    official_classes = _numbers

    def __init__(self, *, root: str, shots: int | None = None, stage: str | None = None) -> None:
        super().__init__(root=root, shots=shots)
        if stage is not None and stage not in _STAGES:
            raise ValueError(f"stage is one of {', '.join(_STAGES)}, or null for all; got '{stage}'")
        self.stage = stage
        if stage is not None:
            # A fifth of each part: every stage has five training and five test images of each class.
            self.expect({k: n if k == "classes" else n // 5 for k, n in self.expected.items()})

    @property
    def suffix(self) -> str:
        return f"_{self.stage}" if self.stage else ""

    def required(self) -> list[str]:
        if self.tables is not None:
            return list(super().required())
        return [f"{self.home}{s}/{name}" for s in self._stages() for name in ("anno/train.txt", "anno/test.txt", "images")]

    def official(self, part: str) -> list[Item]:
        split = "train" if part == "trainval" else part
        return [item for stage in self._stages() for item in _listed(self, split, f"{stage}/")]

    def _stages(self) -> tuple[str, ...]:
        return (self.stage,) if self.stage else _STAGES

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> SoyAgeing:
        for stage in _STAGES:
            _fake_lists(root, f"{stage}/", train=5)
        return cls(root=str(root), **settings)


def _fake_names(root: Path, folder: str) -> None:
    for training, label, n in _fake.labels():
        _fake.place(root, f"{folder}/{label + 1}_{n}_{'train' if training else 'test'}.png", label)


def _fake_lists(root: Path, below: str = "", train: int = _fake.TRAIN) -> None:
    lines: dict[bool, list[str]] = {True: [], False: []}
    for training, label, n in _fake.labels(train):
        name = f"{label + 1}_{n}.JPG"
        lines[training].append(f"{name} {label + 1}")
        _fake.place(root, f"{below}images/{name}", label)
    _fake.write(root, f"{below}anno/train.txt", lines[True])
    _fake.write(root, f"{below}anno/test.txt", lines[False])
