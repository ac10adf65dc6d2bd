"""ImageNet-1K (ILSVRC 2012)."""

from __future__ import annotations

import csv
import os
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake, _mat
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, DataError, Item

_TRUTHS = ("LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt", "val.txt")


@DATASETS.register("imagenet")
class ImageNet(Listed):
    """ImageNet-1K: 1,000 classes, 1.28 million training photographs (Russakovsky et al., IJCV 2015).

    The official validation part, on which papers report, is ``test``; ``val`` is the last 5 % of each class of the training part,
    for choosing settings. Classes are the synset folders in alphabetical order. Validation images may lie in synset folders or
    flat, with their labels in ``LOC_val_solution.csv`` (Kaggle), ``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``
    (development kit) or ``val.txt`` (``NAME INDEX``), beside them or in the root. CSV files of the papers in the root win.

    Args:
        root: folder of ``train`` and ``val``, or the one above ``ILSVRC/Data/CLS-LOC``.
        shots: train on the first so many images of each class.
    """

    origin = "https://image-net.org/download.php or Kaggle's imagenet-object-localization-challenge (non-commercial research)"
    expected: ClassVar = {"classes": 1000, "trainval": 1281167, "test": 50000}
    layout = """imagenet/                            (or imagenet/ILSVRC/Data/CLS-LOC/)
  train/n01440764/n01440764_10026.JPEG
  val/n01440764/ILSVRC2012_val_00000293.JPEG
or
  val/ILSVRC2012_val_00000001.JPEG   with LOC_val_solution.csv, or
                                     ILSVRC2012_validation_ground_truth.txt and meta.mat, or val.txt"""
    needs = ("train", "val")
    homes = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
    share = 0.95

    def official(self, part: str) -> list[Item]:
        index = {synset: i for i, synset in enumerate(self._synsets)}
        if part == "trainval":
            return self._in_folders("train", index)
        if any(entry.is_dir() for entry in _entries(self.file(f"{self.home}val"))):
            return self._in_folders("val", index)
        truth = self._truth(index)
        names = sorted(
            e.name for e in _entries(self.folder / self.home / "val") if e.name.upper().endswith((".JPEG", ".JPG", ".PNG"))
        )
        unknown = next((name for name in names if Path(name).stem not in truth), None)
        if unknown is not None:
            raise DataError(
                f"imagenet: the list of labels says nothing of 'val/{unknown}'; use the complete list or remove the image"
            )
        return [Item(f"val/{name}", truth[Path(name).stem]) for name in names]

    def official_classes(self) -> list[str]:
        from timm.data.imagenet_info import ImageNetInfo  # timm knows the names of the synsets; the folders do not

        info = ImageNetInfo()
        known = set(info.label_names())
        return [info.label_name_to_description(s, detailed=False) if s in known else s for s in self._synsets]

    @cached_property
    def _synsets(self) -> list[str]:
        train = self.file(f"{self.home}train")
        found = sorted(entry.name for entry in _entries(train) if entry.is_dir() and not entry.name.startswith("."))
        if not found:
            raise DataError(
                f"imagenet: '{train}' has no synset folders such as n01440764; unpack the archive of each class into one"
            )
        return found

    def _in_folders(self, part: str, index: dict[str, int]) -> list[Item]:
        base = self.file(self.home + part)
        strange = sorted(e.name for e in _entries(base) if e.is_dir() and e.name not in index and not e.name.startswith("."))
        if strange:
            raise DataError(
                f"imagenet: '{base / strange[0]}' is a class that '{self.home}train' has not; complete train or remove it"
            )
        items: list[Item] = []
        for synset, label in index.items():
            if (base / synset).is_dir():  # an absent one is a class without images, which the check of the set tells
                names = sorted(e.name for e in _entries(base / synset) if e.name.upper().endswith((".JPEG", ".JPG", ".PNG")))
                items += [Item(f"{part}/{synset}/{name}", label) for name in names]
        return items

    def _truth(self, index: dict[str, int]) -> dict[str, int]:
        """Label of each validation image by its name without suffix."""
        places = [
            self.folder / self.home,
            self.folder,
            self.folder / "ILSVRC2012_devkit_t12/data",
            self.folder / self.home / "val",
        ]
        path = next((p / name for name in _TRUTHS for p in places if (p / name).is_file()), None)
        if path is None:
            raise DataError(
                f"imagenet: '{self.folder / self.home / 'val'}' holds images without class folders; "
                f"put one of {', '.join(_TRUTHS)} into '{self.folder}' (from {self.origin})"
            )
        if path.name == _TRUTHS[0]:
            return self.parse(path.name, lambda: _kaggle(path, index))
        if path.name == _TRUTHS[1]:
            return self.parse(path.name, lambda: _development_kit(path, index))
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return self.parse(path.name, lambda: {Path(name).stem: int(label) for name, label in rows})

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> ImageNet:
        synsets = ("n01440764", "n02123045", "n03445777", "n07753592")
        for training, label, n in _fake.labels(train=20):
            name = f"{synsets[label]}_{n}" if training else f"ILSVRC2012_val_{4 * n + label:08d}"
            _fake.place(root, f"{'train' if training else 'val'}/{synsets[label]}/{name}.JPEG", label)
        return cls(root=str(root), **settings)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    # A class folder has a thousand files: scandir knows which are folders without asking for each.
    with os.scandir(folder) as entries:
        return list(entries)


def _kaggle(path: Path, index: dict[str, int]) -> dict[str, int]:
    with path.open(newline="", encoding="utf-8") as file:
        # Several boxes of one class follow each other: "n03995372 85 1 499 272 n03995372 ..."
        return {row["ImageId"]: index[row["PredictionString"].split()[0]] for row in csv.DictReader(file)}


def _development_kit(path: Path, index: dict[str, int]) -> dict[str, int]:
    """The kit numbers its classes in an order of its own, which only ``meta.mat`` maps to synsets."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise DataError(f"imagenet: '{path}' needs 'meta.mat' of the development kit beside it")
    synsets = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in _mat.read(meta, "synsets")[0]}
    numbers = path.read_text(encoding="utf-8").split()
    return {f"ILSVRC2012_val_{i:08d}": index[synsets[int(number)]] for i, number in enumerate(numbers, 1)}
