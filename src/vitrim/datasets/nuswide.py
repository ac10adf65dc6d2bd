"""NUS-WIDE as a multi-label set."""

from __future__ import annotations

import ast
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vitrim.datasets import _fake
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item
from vitrim.datasets.splits import read_rows

_LIST = "nus_wid_data.csv"


@DATASETS.register("nuswide")
class NusWide(DataSet):
    """NUS-WIDE, multi-label: which of 81 concepts a photograph from Flickr shows (Chua et al., CIVR 2009).

    Reads the list of the ASL project (Ridnik et al., ICCV 2021); the classes are its label words, sorted. Its val part, on which
    papers report, is ``test``; ``val`` is the last tenth of its train part, for choosing settings.

    Args:
        root: folder of the list and the images.
    """

    multilabel = True
    origin = "https://github.com/Alibaba-MIIL/ASL (list and images; research, pictures belong to their authors)"
    expected: ClassVar = {"classes": 81}
    layout = """nuswide/
  nus_wid_data.csv     path,label,split: images/0001.jpg,"['clouds', 'sky']",train (or val)
  images/*.jpg"""

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "trainval", "test")

    def required(self) -> list[str]:
        return [_LIST]

    def load(self, split: str) -> list[Item]:
        index = {name: i for i, name in enumerate(self.classes)}
        wanted = "val" if split == "test" else "train"
        rows = [(path, labels) for path, labels, part in self._rows if part == wanted]
        items = [Item(path, tuple(sorted({index[label] for label in labels}))) for path, labels in rows]
        cut = len(items) - len(items) // 10
        return {"train": items[:cut], "val": items[cut:]}.get(split, items)

    def load_classes(self) -> list[str]:
        return sorted({label for _, labels, _ in self._rows for label in labels})

    @cached_property
    def _rows(self) -> list[tuple[str, list[str], str]]:
        """Path below the root, labels and part of each line."""
        file = self.folder / _LIST
        if not file.is_file():
            raise DataError(f"nuswide: '{file}' does not exist; obtain it from {self.origin}")
        header, rows = read_rows(file, ["label"])
        # Copies of the list differ in the names of these columns, not in their order.
        path = next((i for i, h in enumerate(header) if h in ("path", "filepath", "filename")), 0)
        part = next((i for i, h in enumerate(header) if h in ("split", "split_name")), len(header) - 1)
        label = header.index("label")
        first = rows[0][path].strip() if rows else ""
        below = "" if (self.folder / first).exists() or not (self.folder / "images" / first).exists() else "images/"
        return [(below + row[path].strip().replace("\\", "/"), _words(row[label], file), row[part].strip()) for row in rows]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> NusWide:
        words = ["sky", "animal", "water", "person"]  # not in alphabetical order
        order = sorted(words)
        lines = ["path,label,split"]
        for split, count in (("train", 40), ("val", 16)):
            for n in range(count):
                present = list(dict.fromkeys([words[n % 4], words[(n // 4) % 4]]))
                path = f"images/{split}_{n:04d}.jpg"
                _fake.save(root, path, _fake.draw_several(path, [order.index(word) for word in present])[0])
                lines.append(f'{path},"{present}",{split}')
        _fake.write(root, _LIST, lines)
        return cls(root=str(root), **settings)


def _words(cell: str, file: Path) -> list[str]:
    """The labels in a cell such as ``['clouds', 'sky']``."""
    try:
        words = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError):
        words = None
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise DataError(f"nuswide: '{file}' has the label '{cell}'; write a list of words such as ['clouds', 'sky']")
    return [str(word) for word in words]
