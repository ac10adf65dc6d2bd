"""PlantVillage, a subset of 15 classes with splits that keep near-duplicates together."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vitrim.datasets import _fake
from vitrim.datasets._archive import Archived, fake_archive
from vitrim.datasets.base import DATASETS, DataError, Item


@DATASETS.register("plantvillage")
class PlantVillage(Archived):
    """PlantVillage-15: leaves of pepper, potato and tomato, 15 diseases and healthy states, 3,512 photographs.

    A subset of PlantVillage (Hughes and Salathe, arXiv:1511.08060; Mohanty et al., Frontiers in Plant Science 2016) with splits
    of its own, in which no group of near-duplicates spans two splits.

    Args:
        root: folder of ``labels.csv``, ``images.tar`` and ``images_32.npz``.
        size: side of the images in pixels: 128 reads the tar file, 32 the npz file.
    """

    origin = "the plantvillage15 folder beside the project (from https://github.com/spMohanty/PlantVillage-Dataset, CC BY-SA 3.0)"
    expected: ClassVar = {"classes": 15, "train": 2283, "val": 351, "trainval": 2634, "test": 878}
    layout = """plantvillage15/
  labels.csv       file,label,class,split,group,source_file
  images.tar       CLASS/000.jpg, 128 x 128, uncompressed tar
  images_32.npz    images (N, 32, 32, 3) uint8, labels, split, classes, in the order of labels.csv"""

    def __init__(self, *, root: str, size: int = 128) -> None:
        super().__init__(root=root)
        if size not in (128, 32):
            raise ValueError(f"size is 128 or 32; got {size}")
        self.size = size

    def required(self) -> list[str]:
        return super().required() if self.size == 128 else ["labels.csv", "images_32.npz"]

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return super().missing(items) if self.size == 128 else [item for item in items if item.path not in self._order]

    def raw(self, item: Item) -> bytes:
        if self.size == 128:
            return super().raw(item)
        content = io.BytesIO()
        self.read(item).save(content, "PNG")
        return content.getvalue()

    def read(self, item: Item) -> Image.Image:
        return super().read(item) if self.size == 128 else Image.fromarray(self._pixels[self._order[item.path]])

    @cached_property
    def _order(self) -> dict[str, int]:
        return {path: i for i, (path, _, _, _) in enumerate(self._rows)}

    @cached_property
    def _pixels(self) -> np.ndarray:
        """``(N, 32, 32, 3)`` uint8, in the order of ``labels.csv``."""
        path = self._given("images_32.npz")
        try:
            with np.load(path, allow_pickle=False) as data:
                pixels, labels = data["images"], data["labels"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"plantvillage: '{path}' is damaged ({error}); obtain it again") from error
        if labels.tolist() != [label for _, label, _, _ in self._rows]:
            raise DataError(f"plantvillage: '{path}' and 'labels.csv' differ in labels; obtain both again")
        return pixels

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> PlantVillage:
        classes = ["pepper_bell__bacterial_spot", "pepper_bell__healthy", "potato__late_blight", "tomato__leaf_mold"]
        row = "{file},{label},{class},{split},{number},fake {number}.JPG"
        rows = fake_archive(root, classes, 128, "file,label,class,split,group,source_file", row)
        images = [
            _fake.draw(path, label, len(classes), (128, 128)).resize((32, 32), Image.Resampling.BOX) for path, label, _ in rows
        ]
        arrays = {
            "images": np.stack([np.asarray(image) for image in images]),
            "labels": np.array([label for _, label, _ in rows]),
            "split": np.array([split for _, _, split in rows]),
            "classes": np.array(classes),
        }
        with zipfile.ZipFile(root / "images_32.npz", "w") as archive:
            for name, array in arrays.items():  # numpy.savez would write the time of day
                content = io.BytesIO()
                np.save(content, array)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
        return cls(root=str(root), **settings)
