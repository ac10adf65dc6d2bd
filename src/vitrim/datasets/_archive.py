"""Sets that come as one tar file of images beside a CSV of labels and splits."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrim.datasets import _fake
from vitrim.datasets.base import DataError, DataSet, Item
from vitrim.datasets.splits import read_rows


class Archived(DataSet):
    """``labels.csv`` with the columns ``file``, ``label`` and ``split``, and ``images.tar`` (or the same files, unpacked).

    Images are read at their place in the tar file, which must be uncompressed; nothing is unpacked.
    """

    def required(self) -> list[str]:
        return ["labels.csv"] if self._unpacked() else ["labels.csv", "images.tar"]

    def load(self, split: str) -> list[Item]:
        return [Item(path, label) for path, label, part, _ in self._rows if part == split]

    def load_classes(self) -> list[str]:
        names = {label: name for _, label, _, name in self._rows}
        return [names.get(i, str(i)) for i in range(1 + max(names, default=-1))]

    def raw(self, item: Item) -> bytes:
        if self._unpacked():
            return super().raw(item)
        place = self._places.get(item.path)
        if place is None:
            raise DataError(f"{self.spec_name}: '{self.folder / 'images.tar'}' holds no '{item.path}'; obtain it again")
        # Opened for each image: a handle that is shared with worker processes would share its position too.
        with (self.folder / "images.tar").open("rb") as file:
            file.seek(place[0])
            return file.read(place[1])

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return super().missing(items) if self._unpacked() else [item for item in items if item.path not in self._places]

    def _unpacked(self) -> bool:
        """Whether the files of the tar lie in the root themselves."""
        if (self.folder / "images.tar").exists() or not (self.folder / "labels.csv").exists():
            return False
        return any((self.folder / path).is_file() for path, _, _, _ in self._rows[:10])

    @cached_property
    def _rows(self) -> list[tuple[str, int, str, str]]:
        """File, label, split and class name of each image."""
        path = self._given("labels.csv")
        header, rows = read_rows(path, ["file", "label", "split"])
        file, label, split = (header.index(name) for name in ("file", "label", "split"))
        name = header.index("class") if "class" in header else label
        strange = next((row for row in rows if not row[label].isdecimal()), None)
        if strange is not None:
            raise DataError(f"{self.spec_name}: '{path}' has the label '{strange[label]}' for '{strange[file]}'; obtain it again")
        return [(row[file], int(row[label]), row[split], row[name].replace("__", ": ").replace("_", " ")) for row in rows]

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Offset and size in bytes of each image in the tar file."""
        path = self._given("images.tar")
        try:
            with tarfile.open(path, "r:") as tar:
                return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
        except tarfile.TarError as error:
            raise DataError(f"{self.spec_name}: '{path}' is no complete tar file ({error}); obtain it again") from error

    def _given(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise DataError(f"{self.spec_name}: '{path}' does not exist; obtain it from {self.origin}")
        return path


def fake_archive(root: Path, classes: list[str], side: int, columns: str, row: str) -> list[tuple[str, int, str]]:
    """Write ``labels.csv`` and ``images.tar`` of a twin.

    Args:
        root: folder to write to.
        classes: names of the folders, sorted.
        side: of the images, in pixels.
        columns: the header of the CSV.
        row: a line of the CSV with the fields file, label, class, split and number in braces.

    Returns:
        File, label and split of each image, in the order of the CSV.
    """
    rows: list[tuple[str, int, str]] = []
    lines = [columns]
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "images.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for _, label, n in _fake.labels(train=12, classes=len(classes)):
            split = "test" if n > 12 else "val" if n > 8 else "train"
            path = f"{classes[label]}/{n:03d}.jpg"
            rows.append((path, label, split))
            lines.append(row.format(file=path, label=label, **{"class": classes[label]}, split=split, number=len(rows)))
            _add(tar, path, label, len(classes), side)
    _fake.write(root, "labels.csv", lines)
    return rows


def _add(tar: tarfile.TarFile, path: str, label: int, classes: int, side: int) -> None:
    content = io.BytesIO()
    options: dict[str, Any] = {"quality": 92}
    _fake.draw(path, label, classes, (side, side)).save(content, "JPEG", **options)
    info = tarfile.TarInfo(path)  # time 0 and no owner: equal on every machine
    info.size = content.tell()
    content.seek(0)
    tar.addfile(info, content)
