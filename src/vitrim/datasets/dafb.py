"""DAF:re, anime characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("dafb")
class DafB(Listed):
    """DAF:re: pictures of 3,263 anime characters, or their faces alone (Rios et al., arXiv:2101.08674).

    The papers normalise by mean and standard deviation 0.5.
    The download's own lists are CSV files of the form ``class_id,dir``. Where no ``train_val.csv`` and no ``val.csv`` exist,
    ``trainval`` is ``train.csv`` (as in the papers), and ``train`` and ``val`` cut it.

    Args:
        root: folder of the CSV files and the images.
        shots: train on the first so many images of each class.
        faces: read the cropped faces (``daf`` in the papers) instead of the whole pictures (``dafb``).
    """

    origin = "https://github.com/arkel23/Danbooru2018AnimeCharacterRecognitionDataset_Revamped (research)"
    expected: ClassVar = {"classes": 3263, "trainval": 72586, "test": 94440}
    layout = """daf/
  train.csv, test.csv        class_id,dir with dir below fullMin256/ (val.csv and train_val.csv are optional)
  classid_classname.csv      class_id,class_name (optional)
  fullMin256/                with faces=true: faces/"""
    needs = ("train.csv", "test.csv")
    homes = ("", "daf")
    images = "fullMin256"

    def __init__(self, *, root: str, shots: int | None = None, faces: bool = False) -> None:
        super().__init__(root=root, shots=shots)
        self.faces = faces
        if faces:
            self.images = "faces"

    def official(self, part: str) -> list[Item]:
        self.file(self.needs[part == "test"])  # the CSV files are the set's own lists; without them there is only this error
        return []

    def official_classes(self) -> list[str]:
        self.file(self.needs[0])
        return []

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> DafB:
        opened = cls(root=str(root), **settings)
        rows: dict[bool, list[str]] = {True: ["class_id,dir"], False: ["class_id,dir"]}
        for training, label, n in _fake.labels():
            path = f"{n:04d}/{1000 * n + label}.jpg"
            rows[training].append(f"{label},{path}")
            _fake.place(root, f"{opened.images}/{path}", label)
        _fake.write(root, "train.csv", rows[True])
        _fake.write(root, "test.csv", rows[False])
        names = [f"{i},fake_character_{i}" for i in range(_fake.CLASSES)]
        _fake.write(root, "classid_classname.csv", ["class_id,class_name", *names])
        return opened
