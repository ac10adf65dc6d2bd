"""COCO as a multi-label set."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrim.datasets import _fake
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item

#: upper limits of the area of small and of medium objects, in square pixels
AREAS = (32**2, 96**2)


@DATASETS.register("coco")
class Coco(DataSet):
    """COCO 2014, multi-label: which of 80 categories an image shows (Lin et al., ECCV 2014).

    Reads the instance annotations; boxes and masks are not used. Only images with annotations count, in the order of their first
    annotation, and the classes are the categories in the order of the file. The official val part, on which papers report, is
    ``test``; ``val`` is the last tenth of the training part, for choosing settings.

    Args:
        root: folder of ``annotations`` and the folders of images.
        year: of the release, 2014 or 2017.
    """

    multilabel = True
    origin = "https://cocodataset.org/#download (annotations CC BY 4.0; pictures belong to their authors)"
    expected: ClassVar = {"classes": 80, "trainval": 82081, "test": 40137}
    layout = """coco/
  annotations/instances_train2014.json, instances_val2014.json
  train2014/COCO_train2014_000000000009.jpg
  val2014/COCO_val2014_000000000042.jpg"""

    def __init__(self, *, root: str, year: int = 2014) -> None:
        super().__init__(root=root)
        if year not in (2014, 2017):
            raise ValueError(f"year is 2014 or 2017; got {year}")
        self.year = year
        if year == 2017:
            self.expected = {"classes": 80, "trainval": 117266, "test": 4952}  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "trainval", "test")

    def required(self) -> list[str]:
        parts = [f"{part}{self.year}" for part in ("train", "val")]
        return [*(f"annotations/instances_{part}.json" for part in parts), *parts]

    def load(self, split: str) -> list[Item]:
        items = [
            Item(path, tuple(sorted(set(labels)))) for path, labels, _ in self._objects("val" if split == "test" else "train")
        ]
        cut = len(items) - len(items) // 10
        return {"train": items[:cut], "val": items[cut:]}.get(split, items)

    def load_classes(self) -> list[str]:
        return [name for _, name in self._categories]

    def areas(self, split: str) -> Tensor:
        """Presence by the area of the objects, in the order of ``items``.

        Returns:
            ``(images, 3, classes)`` int64 of zeros and ones; rows: areas below 32², below 96², and larger, in square pixels.
        """
        objects = self._objects("val" if split == "test" else "train")
        chosen = {item.path for item in self.items(split)}
        rows = [(labels, sizes) for path, labels, sizes in objects if path in chosen]
        target = torch.zeros(len(rows), 3, len(self.classes), dtype=torch.int64)
        for i, (labels, sizes) in enumerate(rows):
            for label, size in zip(labels, sizes, strict=True):
                target[i, sum(size >= limit for limit in AREAS), label] = 1
        return target

    @cached_property
    def _categories(self) -> list[tuple[int, str]]:
        return self._read("train")[0]

    def _objects(self, part: str) -> list[tuple[str, list[int], list[float]]]:
        """Path, labels and areas of the objects of each annotated image."""
        categories, images = self._read(part)
        if [c[0] for c in categories] != [c[0] for c in self._categories]:
            raise DataError(
                f"coco: the annotations of {part}{self.year} and train{self.year} differ in categories; obtain both again"
            )
        return images

    def _read(self, part: str) -> tuple[list[tuple[int, str]], list[tuple[str, list[int], list[float]]]]:
        if part not in self._cache:
            name = f"annotations/instances_{part}{self.year}.json"
            path = self.folder / name
            if not path.is_file():
                raise DataError(f"coco: '{path}' does not exist; obtain it from {self.origin}")
            try:
                with path.open(encoding="utf-8") as file:
                    # Outlines are nine tenths of the file: dropped while it is parsed, they do not fill the memory.
                    content = json.load(file, object_hook=_without_outline)
                self._cache[part] = _parse(content, f"{part}{self.year}")
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"coco: '{path}' is damaged ({type(error).__name__}: {error}); obtain it again") from error
        return self._cache[part]

    @cached_property
    def _cache(self) -> dict[str, tuple[list[tuple[int, str]], list[tuple[str, list[int], list[float]]]]]:
        return {}

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Coco:
        opened = cls(root=str(root), **settings)
        # Numbers with gaps, as in COCO, and in an order that is neither theirs nor that of the names.
        categories = [
            {"id": i, "name": n, "supercategory": "fake"}
            for i, n in ((1, "person"), (13, "stop sign"), (5, "airplane"), (90, "brush"))
        ]
        numbers = [int(str(c["id"])) for c in categories]
        for part, count in (("train", 40), ("val", 16)):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for n in range(count + 1):
                prefix = f"COCO_{part}2014_" if opened.year == 2014 else ""
                name = f"{prefix}{1000 + n:012d}.jpg"
                present = sorted({n % 4, (n // 4) % 4}) if n < count else []  # the last image has no annotation
                image, boxes = _fake.draw_several(f"{part}/{name}", present)
                _fake.save(root, f"{part}{opened.year}/{name}", image)
                images.append({"id": 1000 + n, "file_name": name, "width": image.width, "height": image.height})
                for label, (x, y, w, h) in zip(present, boxes, strict=True):
                    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                    # Areas spread over the three sizes; those of the drawn boxes would all be small.
                    area = (w * h, 40.0 * 40, 100.0 * 100)[(n + label) % 3]
                    annotations.append(
                        {"id": len(annotations), "image_id": 1000 + n, "category_id": numbers[label], "area": area}
                    )
                    annotations[-1] |= {"bbox": [x, y, w, h], "segmentation": outline, "iscrowd": 0}
            text = json.dumps({"images": images, "annotations": annotations[::-1], "categories": categories})
            _fake.write(root, f"annotations/instances_{part}{opened.year}.json", [text])
        return opened


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _parse(content: dict[str, Any], folder: str) -> tuple[list[tuple[int, str]], list[tuple[str, list[int], list[float]]]]:
    categories = [(int(c["id"]), str(c["name"])) for c in content["categories"]]
    index = {number: i for i, (number, _) in enumerate(categories)}
    objects: dict[int, tuple[list[int], list[float]]] = {}
    for a in content["annotations"]:
        labels, sizes = objects.setdefault(a["image_id"], ([], []))
        labels.append(index[a["category_id"]])
        sizes.append(float(a["area"]))
    names = {i["id"]: i["file_name"] for i in content["images"]}
    return categories, [(f"{folder}/{names[key]}", labels, sizes) for key, (labels, sizes) in objects.items()]
