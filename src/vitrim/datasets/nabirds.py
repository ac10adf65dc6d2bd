"""NABirds: North American birds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID
from zlib import crc32

from vitrim.datasets import _fake
from vitrim.datasets._listed import Listed
from vitrim.datasets.base import DATASETS, Item


@DATASETS.register("nabirds")
class NABirds(Listed):
    """NABirds: 555 visual categories of 400 species, 48,562 photographs (Van Horn et al., CVPR 2015).

    ``classes.txt`` lists 1,011 nodes of a hierarchy; the classes are those that images carry, in ascending order of their
    numbers. CSV files of the papers (``train_val.csv``, ``test.csv``, ...) in the root win over the set's own lists.

    Args:
        root: ``nabirds`` or the folder that holds it.
        shots: train on the first so many images of each class.
    """

    origin = "https://dl.allaboutbirds.org/nabirds (non-commercial research; terms of the Cornell Lab of Ornithology)"
    expected: ClassVar = {"classes": 555, "train": 18957, "val": 4972, "trainval": 23929, "test": 24633}
    layout = """nabirds/
  images.txt               IMAGE_ID PATH
  image_class_labels.txt   IMAGE_ID NODE
  train_test_split.txt     IMAGE_ID 1 (training) or 0 (test)
  classes.txt              NODE NAME (1,011 nodes)
  hierarchy.txt            CHILD PARENT (not needed to classify)
  images/0817/*.jpg"""
    needs = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images")
    homes = ("", "nabirds")
    images = "images"

    def official(self, part: str) -> list[Item]:
        label = {key: int(value) for key, value in self.rows("image_class_labels.txt")}
        index = {node: i for i, node in enumerate(sorted(set(label.values())))}
        wanted = "1" if part == "trainval" else "0"
        chosen = {key for key, flag in self.rows("train_test_split.txt") if flag == wanted}
        return [Item(f"images/{path}", index[label[key]]) for key, path in self.rows("images.txt") if key in chosen]

    def official_classes(self) -> list[str]:
        names = {int(node): name for node, name in self.rows("classes.txt")}
        return [names[node] for node in sorted({int(value) for _, value in self.rows("image_class_labels.txt")})]

    def parents(self) -> dict[int, int]:
        """The hierarchy: parent of each node that has one, by the numbers of ``classes.txt``."""
        return self.parse("hierarchy.txt", lambda: {int(child): int(parent) for child, parent in self.rows("hierarchy.txt")})

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> NABirds:
        nodes = (817, 299, 1010, 446)  # raw numbers, neither contiguous nor in order; 9 and 0 are inner nodes
        home = "nabirds/"
        rows: list[tuple[str, bool, int, str]] = []
        for training, label, n in _fake.labels():
            key = str(UUID(bytes=b"".join(crc32(f"{label}/{n}/{k}".encode()).to_bytes(4, "big") for k in range(4))))
            rows.append((key, training, nodes[label], f"{nodes[label]:04d}/{key.replace('-', '')}.jpg"))
        rank = {node: i for i, node in enumerate(sorted(nodes))}
        for _, _, node, path in rows:
            _fake.place(root, f"{home}images/{path}", rank[node])
        _fake.write(root, f"{home}images.txt", [f"{row[0]} {row[3]}" for row in rows])
        _fake.write(root, f"{home}image_class_labels.txt", [f"{row[0]} {row[2]}" for row in rows])
        _fake.write(root, f"{home}train_test_split.txt", [f"{row[0]} {int(row[1])}" for row in rows])
        _fake.write(root, f"{home}classes.txt", ["0 Birds", "9 Ducks", *(f"{node} Fake Duck (Plumage {node})" for node in nodes)])
        _fake.write(root, f"{home}hierarchy.txt", ["9 0", *(f"{node} 9" for node in nodes)])
        return cls(root=str(root), **settings)
