"""Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vitrim.datasets import _fake, _mat
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("cars")
class Cars(Listed):
    """Stanford Cars: 16,185 photographs of 196 models of cars (Krause et al., 3dRR 2013).

    Reads the joint list ``cars_annos.mat`` with ``car_ims`` (the form that the papers use) or, where that is missing, the
    devkit with ``cars_train`` and ``cars_test``. CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win.

    Args:
        root: folder of the lists, or the one above.
        shots: train on the first so many images of each class.
    """

    origin = "the original page is gone; mirrors of cars_annos.mat and car_ims.tgz, or of the devkit (non-commercial research)"
    expected: ClassVar = {"classes": 196, "train": 6442, "val": 1702, "trainval": 8144, "test": 8041}
    layout = """cars/
  cars_annos.mat              annotations (relative_im_path, class from 1, test) and class_names
  car_ims/000001.jpg
or
  devkit/cars_meta.mat, devkit/cars_train_annos.mat, cars_test_annos_withlabels.mat (also in devkit/)
  cars_train/00001.jpg, cars_test/00001.jpg"""
    needs = ("cars_annos.mat", "car_ims")
    homes = ("", "cars", "stanford_cars")
    images = "car_ims"

    def official(self, part: str) -> list[Item]:
        if not self._devkit():
            rows = _mat.read(self.file(f"{self.home}cars_annos.mat"), "annotations")[0]
            wanted = int(part == "test")
            return [Item(str(r["relative_im_path"]), int(r["class"]) - 1) for r in rows if int(r["test"]) == wanted]
        name = f"{self._devkit()}/cars_train_annos.mat"
        folder = "cars_train"
        if part == "test":
            name, folder = "cars_test_annos_withlabels.mat", "cars_test"
            if not (self.folder / self.home / name).exists():
                name = f"{self._devkit()}/{name}"
        rows = _mat.read(self.file(self.home + name), "annotations")[0]
        return [Item(f"{folder}/{r['fname']}", int(r["class"]) - 1) for r in rows]

    def official_classes(self) -> list[str]:
        name = f"{self._devkit()}/cars_meta.mat" if self._devkit() else "cars_annos.mat"
        return [str(name) for name in _mat.read(self.file(self.home + name), "class_names")[0]]

    def required(self) -> list[str]:
        if self.tables is not None or not self._devkit():
            return list(super().required())
        return [self.home + name for name in (f"{self._devkit()}/cars_train_annos.mat", "cars_train", "cars_test")]

    def _devkit(self) -> str:
        """The folder of the devkit where it is used, else empty."""
        if (self.folder / self.home / "cars_annos.mat").exists():
            return ""
        return next((d for d in ("devkit", "car_devkit/devkit") if (self.folder / self.home / d / "cars_meta.mat").exists()), "")

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Cars:
        from scipy.io import savemat

        rows = [(f"car_ims/{i:06d}.jpg", label, training) for i, (training, label, _) in enumerate(_fake.labels(), 1)]
        kinds = [
            ("relative_im_path", object),
            *((k, object) for k in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")),
        ]
        table = np.empty((1, len(rows)), dtype=kinds)
        for i, (path, label, training) in enumerate(rows):
            _fake.place(root, path, label)
            table[0, i] = (path, 1, 1, 30, 30, label + 1, int(not training))
        names = np.array(["Fake Sedan 2012", "Fake Coupe 2011", "Fake SUV 2010", "Fake Van 1999"], dtype=object)[None]
        savemat(root / "cars_annos.mat", {"annotations": table, "class_names": names})
        _fake.strip_date(root / "cars_annos.mat")
        return cls(root=str(root), **settings)
