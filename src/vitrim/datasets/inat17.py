"""iNaturalist 2017."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, DataError, Item


@DATASETS.register("inat17")
class INat17(Listed):
    """iNaturalist 2017: 5,089 species, 675,170 labelled photographs, long-tailed (Van Horn et al., CVPR 2018).

    The official validation part is ``test``, because the labels of the official test part were never published; ``val`` is the
    tail of each class of the training part. CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win.

    Args:
        root: folder of the JSON files and ``train_val_images``.
        shots: train on the first so many images of each class.
    """

    origin = "https://github.com/visipedia/inat_comp/tree/master/2017 (non-commercial research and education)"
    expected: ClassVar = {"classes": 5089, "trainval": 579184, "test": 95986}
    layout = """inat17/
  train2017.json, val2017.json      images (id, file_name), annotations (image_id, category_id), categories (id, name)
  train_val_images/Aves/Ardea alba/*.jpg"""
    needs = ("train2017.json", "val2017.json", "train_val_images")
    images = "train_val_images"

    def official(self, part: str) -> list[Item]:
        name = "train2017.json" if part == "trainval" else "val2017.json"
        content = self._json(name)
        return self.parse(name, lambda: self._items_of(content))

    def official_classes(self) -> list[str]:
        return [c["name"] for c in sorted(self._json("train2017.json")["categories"], key=lambda c: c["id"])]

    def _items_of(self, content: dict[str, Any]) -> list[Item]:
        index = {number: i for i, number in enumerate(sorted(c["id"] for c in content["categories"]))}
        label = {a["image_id"]: index[a["category_id"]] for a in content["annotations"]}
        return [Item(i["file_name"], label[i["id"]]) for i in content["images"]]

    def _json(self, name: str) -> dict[str, Any]:
        path = self.file(self.home + name)
        try:
            with path.open(encoding="utf-8") as file:
                return json.load(file)
        except ValueError as error:
            raise DataError(f"{self.spec_name}: '{path}' is no complete JSON file ({error}); obtain it again") from error

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> INat17:
        kinds = ("Aves/Fake ardea", "Aves/Fake columba", "Insecta/Fake apis", "Plantae/Fake rosa")
        categories = [{"id": i, "name": k.split("/")[1], "supercategory": k.split("/")[0]} for i, k in enumerate(kinds)]
        for name, part in (("train2017.json", True), ("val2017.json", False)):
            rows = [(1000 * label + n, label) for training, label, n in _fake.labels() if training is part]
            images = [{"id": key, "file_name": f"train_val_images/{kinds[label]}/{key:08x}.jpg"} for key, label in rows]
            for image, (_, label) in zip(images, rows, strict=True):
                _fake.place(root, str(image["file_name"]), label)
            annotations = [{"id": key, "image_id": key, "category_id": label} for key, label in rows]
            _fake.write(root, name, [json.dumps({"images": images, "annotations": annotations, "categories": categories})])
        return cls(root=str(root), **settings)
