"""Stanford Dogs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitrim.datasets import _fake, _mat
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("dogs")
class Dogs(Listed):
    """Stanford Dogs: 20,580 photographs of 120 breeds, taken from ImageNet (Khosla et al., FGVC 2011).

    Models pretrained on ImageNet-1K have seen most test images with their breeds. CSV files of the papers (``train_val.csv``,
    ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: folder that holds ``Images`` and the lists, in itself or in ``lists``.
        shots: train on the first so many images of each class.
    """

    origin = "http://vision.stanford.edu/aditya86/ImageNetDogs/ (images.tar and lists.tar; terms of ImageNet)"
    expected: ClassVar = {"classes": 120, "train": 9600, "val": 2400, "trainval": 12000, "test": 8580}
    layout = """dogs/
  train_list.mat, test_list.mat   file_list (PATH below Images), labels (from 1); also in lists/
  Images/n02085620-Chihuahua/n02085620_10074.jpg"""
    needs = ("Images",)
    homes = ("", "dogs")
    images = "Images"

    def required(self) -> list[str]:
        return list(super().required()) + ([] if self.tables is not None else [self._list("trainval"), self._list("test")])

    def official(self, part: str) -> list[Item]:
        files, labels = _mat.read(self.file(self._list(part)), "file_list", "labels")
        return [Item(f"Images/{path}", int(label) - 1) for path, label in zip(files, labels, strict=True)]

    def official_classes(self) -> list[str]:
        names = {int(str(item.target)): item.path.split("/")[1] for item in self.official("trainval")}
        return [names[i].split("-", 1)[-1].replace("_", " ") for i in range(len(names))]

    def _list(self, part: str) -> str:
        """Where below the root the list of a part lies."""
        name = "train_list.mat" if part == "trainval" else "test_list.mat"
        folder = "lists/" if (self.folder / self.home / "lists" / name).exists() else ""
        return f"{self.home}{folder}{name}"

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Dogs:
        from scipy.io import savemat

        breeds = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog", "n02086079-Pekinese")
        for name, part in (("train_list.mat", True), ("test_list.mat", False)):
            rows = [
                (label, f"{breeds[label]}/{breeds[label][:9]}_{n}.jpg")
                for training, label, n in _fake.labels()
                if training is part
            ]
            for label, path in rows:
                _fake.place(root, f"Images/{path}", label)
            files = np.array([[path] for _, path in rows], dtype=object)
            annotations = np.array([[path.removesuffix(".jpg")] for _, path in rows], dtype=object)
            classes = np.array([[label + 1] for label, _ in rows], dtype=np.uint8)
            savemat(root / name, {"file_list": files, "annotation_list": annotations, "labels": classes})
            _fake.strip_date(root / name)
        return cls(root=str(root), **settings)
