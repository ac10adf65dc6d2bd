"""Your own images by CSV files: a path and a label on each line, one file for each split."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrim.datasets._fake import CLASSES, TEST, TRAIN, draw_several, place, save
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item
from vitrim.datasets.splits import carve, read_rows

_NAMES = "classid_classname.csv"
_MOST_CLASSES = 1_000_000


@DATASETS.register("csv")
class CsvList(DataSet):
    """Images listed in CSV files with a header, ``dir`` the path and ``class_id`` the label; the format of the CLCA and ILA sets.

    Labels are numbers from 0, or names; names are numbered in alphabetical order. The classes are those of the training rows.
    A file ``classid_classname.csv`` (``class_id,class_name``) in the root gives names to numbers.

    Args:
        root: folder of the CSV files.
        train: the CSV of the training images.
        val: a CSV, or a share cut off the end of each class of ``train``; no validation part when the file does not exist.
        test: a CSV, or a share of ``train``; no test part when the file does not exist.
        trainval: a CSV; by default ``train`` and ``val`` together.
        images: folder of the images below the root, that paths in the CSV are relative to.
        path: column of the paths.
        label: column of the labels; for multi-label sets also several columns of zeros and ones, one for each class.
        multilabel: the label column holds several labels: ``[1, 3]`` or ``1;3``.
        separator: between the labels of a multi-label cell.
    """

    origin = "your own images"
    layout = """\
ROOT/train.csv     class_id,dir       one line for each image; names instead of numbers are possible
                   0,a/1.jpg
ROOT/val.csv       the same; optional, or val=0.2 cuts a share off the end of each class
ROOT/test.csv      the same; optional
ROOT/IMAGES/...    the images, with images=IMAGES; beside the CSV files without"""

    def __init__(
        self,
        *,
        root: str,
        train: str = "train.csv",
        val: str | float | None = "val.csv",
        test: str | float | None = "test.csv",
        trainval: str | None = None,
        images: str = "",
        path: str = "dir",
        label: str | Sequence[str] = "class_id",
        multilabel: bool = False,
        separator: str = ";",
    ) -> None:
        super().__init__(root=root)
        for name, value in (("val", val), ("test", test)):
            if not isinstance(value, str | None) and not 0 < value < 1:
                raise ValueError(f"{name} is a CSV file or a share between 0 and 1; got {value}")
        self.train, self.val, self.test, self.trainval = train, val, test, trainval
        self.images, self.path, self.label, self.separator = images, path, label, separator
        # A property of each list, where other sets have it in their class.
        self.multilabel = multilabel or not isinstance(label, str)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def splits(self) -> tuple[str, ...]:
        given = {"val": self.val, "trainval": self.trainval, "test": self.test}
        return ("train", *(name for name, source in given.items() if self._exists(name, source)))

    def required(self) -> Sequence[str]:
        named = [s for n, s in (("val", self.val), ("test", self.test)) if isinstance(s, str) and s != f"{n}.csv"]
        return [self.train, *named, *([self.trainval] if self.trainval else []), *([self.images] if self.images else [])]

    def load(self, split: str) -> list[Item]:
        source = self.train if split == "train" else getattr(self, split)
        shares = {n: s for n in ("val", "test") if isinstance(s := getattr(self, n), float)}
        if isinstance(source, str) and not (split == "train" and shares):
            return self._read(source)
        return carve(self._read(self.train), split, **shares)

    def load_classes(self) -> list[str]:
        if not isinstance(self.label, str):
            return list(self.label)
        # As in the papers the training rows decide, so that a wrong label elsewhere is seen and does not make a class.
        sources = [self.train, *([self.trainval] if self.trainval else [])]
        labels = {label for source in sources for _, labels in self._rows(source) for label in labels}
        if not labels:
            raise DataError(f"csv: '{self.folder / self.train}' has no rows; add lines such as 0,cat/1.jpg")
        if not all(_is_number(label) for label in labels):
            return sorted(labels)
        # Numbers are not remapped: a gap is a class without images, which `vitrim data check` tells.
        names = self._names_of_numbers()
        highest = max(*names, *(int(label) for label in labels), 0)
        if highest > _MOST_CLASSES:
            raise DataError(f"csv: '{self.folder / self.train}' has the class id {highest}; number classes from 0")
        return [names.get(i, str(i)) for i in range(highest + 1)]

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> CsvList:
        opened = cls(root=str(root), **settings)
        folder = f"{opened.images}/" if opened.images else ""
        for split, count in (("train", TRAIN), ("val", TEST), ("test", TEST)):
            source = opened.train if split == "train" else getattr(opened, split)
            if not isinstance(source, str):
                continue
            rows: list[list[str]] = []
            for label in range(CLASSES):
                for number in range(count):
                    name = f"{'abcdefgh'[label]}/{split}{number:02d}.png"
                    present = sorted({label, number % CLASSES}) if opened.multilabel else [label]
                    if opened.multilabel:
                        save(root, folder + name, draw_several(name, present)[0])
                    else:
                        place(root, folder + name, label)
                    rows.append([*opened._cells(present), name])
            (root / source).parent.mkdir(parents=True, exist_ok=True)
            with (root / source).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([[*opened._label_columns(), opened.path], *rows])
        return opened

    def _label_columns(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else list(self.label)

    def _cells(self, present: list[int]) -> list[str]:
        """The label columns of a row of the fake twin."""
        if isinstance(self.label, str):
            return [self.separator.join(map(str, present))]
        return [str(int(i in present)) for i in range(len(self.label))]

    def _exists(self, name: str, source: str | float | None) -> bool:
        # A file that was asked for by another name than the default must be there: its absence is an error, not a missing split.
        return source is not None and (source != f"{name}.csv" or (self.folder / f"{name}.csv").is_file())

    def _read(self, source: str) -> list[Item]:
        index = {name: i for i, name in enumerate(self.classes)}
        numbers = {str(i): i for i in range(len(index))}
        items: list[Item] = []
        strange: list[tuple[int, str]] = []
        for number, (path, labels) in enumerate(self._rows(source), start=1):
            found: list[int] = []
            for label in labels:
                if label in index and self._named:
                    found.append(index[label])
                elif not self._named and _is_number(label):
                    found.append(numbers[label] if label in numbers else int(label))
                else:
                    strange.append((number, label))
            items.append(Item(path, tuple(sorted(set(found))) if self.multilabel else (found or [0])[0]))
        if strange:
            raise DataError(self._unknown(source, strange, list(index)))
        return items

    @cached_property
    def _named(self) -> bool:
        """Whether the labels of the files are names, and not numbers."""
        if not isinstance(self.label, str):
            return True
        return not all(_is_number(label) for _, labels in self._rows(self.train) for label in labels)

    def _unknown(self, source: str, strange: list[tuple[int, str]], known: list[str]) -> str:
        row, label = strange[0]
        near = difflib.get_close_matches(label, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "correct them, or add training images of that class"
        others = f" and {len(strange) - 1} others" if len(strange) > 1 else ""
        where = f"'{self.folder / source}' image {row}"
        return f"csv: {where} has the label '{label}'{others}, none of the {len(known)} classes of the training images; {hint}"

    def _rows(self, source: str) -> list[tuple[str, list[str]]]:
        """Path below the root and labels of each line."""
        if source in self._cache:
            return self._cache[source]
        columns = self._label_columns()
        header, rows = read_rows(self.file(source), [*columns, self.path])
        at, path = [header.index(c) for c in columns], header.index(self.path)
        prefix = f"{self.images.strip('/')}/" if self.images.strip("/") else ""
        parse = self._one_label if isinstance(self.label, str) else self._columns
        found = [
            (prefix + row[path].strip().replace("\\", "/").removeprefix("./"), parse([row[i].strip() for i in at], source, n))
            for n, row in enumerate(rows, start=1)
        ]
        self._cache[source] = found
        return found

    def _one_label(self, cells: list[str], source: str, row: int) -> list[str]:
        cell = cells[0]
        if self.multilabel:
            found = cell[1:-1].split(",") if cell.startswith("[") else cell.split(self.separator)
            return [_plain(label) for part in found if (label := part.strip(" \t'\""))]
        if not cell or cell.startswith("["):
            remedy = "write multilabel=true" if cell else "complete or remove the line"
            raise DataError(f"csv: '{self.folder / source}' image {row} has the label '{cell}'; {remedy}")
        return [_plain(cell)]

    def _columns(self, cells: list[str], source: str, row: int) -> list[str]:
        present: list[str] = []
        for name, cell in zip(self.label, cells, strict=True):
            if cell not in ("0", "1", "0.0", "1.0"):
                raise DataError(f"csv: '{self.folder / source}' image {row} has '{cell}' in column '{name}'; 0 or 1 is expected")
            if cell.startswith("1"):
                present.append(name)
        return present

    @cached_property
    def _cache(self) -> dict[str, list[tuple[str, list[str]]]]:
        return {}

    def _names_of_numbers(self) -> dict[int, str]:
        file = self.folder / _NAMES
        if not file.is_file():
            return {}
        header, rows = read_rows(file, ["class_id", "class_name"])
        number, name = header.index("class_id"), header.index("class_name")
        return {int(row[number]): row[name].strip() for row in rows if _is_number(row[number].strip())}


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _plain(label: str) -> str:
    """A whole number that a spreadsheet wrote as ``3.0`` is 3."""
    whole = label.removesuffix(".0")
    return whole if _is_number(whole) else label
