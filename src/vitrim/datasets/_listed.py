"""What sets with official lists share: four splits, few-shot subsets, and the CSV files of the papers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar, TypeVar

from vitrim.datasets.base import DataError, DataSet, Item
from vitrim.datasets.splits import data_split, first_of_each_class, read_rows

V = TypeVar("V")


class Listed(DataSet):
    """A single-label set that comes with lists of its training and its test images.

    ``trainval`` is the official training part, ``test`` the official test part; ``train`` and ``val`` cut the former: of each
    class the first ``share`` in file order, and the rest. With ``train.csv``, ``train_val.csv`` or ``test.csv`` of the papers
    (columns ``class_id,dir``) in the root or beside the set's own lists, these decide alone and no other list is read.

    Args:
        root: folder of the set, or the folder above that an archive unpacks into.
        shots: train on the first so many images of each class (papers: 1, 2, 4, 8), from ``train_val_SHOTS.csv`` where it
            lies; ``val`` and ``test`` stay whole.
    """

    #: files and folders of the original download, below ``home``; the first one tells where ``home`` is
    needs: ClassVar[tuple[str, ...]] = ()
    #: where below the root an archive may have been unpacked
    homes: ClassVar[tuple[str, ...]] = ("",)
    #: folder of the images, below the lists
    images: str = ""
    #: share of a class's training images that ``train`` keeps when ``val`` is cut off
    share: ClassVar[float] = 0.8

    def __init__(self, *, root: str, shots: int | None = None) -> None:
        super().__init__(root=root)
        if shots is not None and shots < 1:
            raise ValueError(f"shots is a number of images of each class, 1 or more; got {shots}")
        self.shots = shots
        if shots is not None:
            self.expect({k: v for k, v in self.expected.items() if k in ("classes", "val", "test")})

    @abstractmethod
    def official(self, part: str) -> list[Item]:
        """Read the items of ``"trainval"`` or ``"test"`` from the set's own lists; paths are relative to ``home``.

        Raises:
            DataError: when lists are missing or damaged.
        """

    @abstractmethod
    def official_classes(self) -> list[str]:
        """Read the names of the classes from the set's own files."""

    def official_val(self) -> tuple[list[Item], list[Item]] | None:
        """Official train and val parts, where the papers use them; ``None`` cuts ``trainval``."""
        return None

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "trainval", "test")

    @property
    def suffix(self) -> str:
        """What follows the names of the CSV files, such as ``_R1``."""
        return ""

    @cached_property
    def home(self) -> str:
        """Where below the root the lists lie: empty, or a path that ends with a slash."""
        found = next((h for h in self.homes if (self.folder / h / self.needs[0]).exists()), "")
        return f"{found}/" if found else ""

    @cached_property
    def tables(self) -> str | None:
        """Where below the root the CSV files of the papers lie (empty or with a slash at the end); None without them."""
        for place in dict.fromkeys(["", self.home, *(f"{h}/" for h in self.homes if h)]):
            if any((self.folder / place / f"{name}{self.suffix}.csv").is_file() for name in ("train_val", "train", "test")):
                return place
        return None

    def required(self) -> Sequence[str]:
        if self.tables is None:
            return [self.home + name for name in self.needs]
        whole, train, test = (f"{self.tables}{name}{self.suffix}.csv" for name in ("train_val", "train", "test"))
        return [train if (self.folder / train).exists() and not (self.folder / whole).exists() else whole, test]

    def file(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            what = f"'{path}' does not exist" if self.folder.is_dir() else f"there is no folder '{self.folder}'"
            raise DataError(f"{self.spec_name}: {what}; obtain it from {self.origin}")
        return path

    def rows(self, name: str, fields: int = 2) -> list[list[str]]:
        """Lines of a text list below ``home``, cut at white space; the last of ``fields`` takes the rest of the line.

        Raises:
            DataError: for a missing file, one that is no text, or a line with too few fields, with its number.
        """
        path = self.file(self.home + name)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.spec_name}: '{path}' is no text file; obtain it again from {self.origin}") from error
        found: list[list[str]] = []
        for number, line in enumerate(lines, 1):
            parts = line.strip().split(None, fields - 1)
            if parts and len(parts) < fields:
                raise DataError(f"{self.spec_name}: '{path}' line {number}: {fields} fields expected, got '{line.strip()}'")
            if parts:
                found.append(parts)
        return found

    def parse(self, names: str, read: Callable[[], V]) -> V:
        """Run ``read``, which joins the lists ``names``; whatever does not fit is their damage."""
        try:
            return read()
        except DataError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{self.spec_name}: {names} in '{self.folder / self.home}' are damaged or do not fit together "
                f"({type(error).__name__}: {error}); obtain them again from {self.origin}"
            ) from error

    def load(self, split: str) -> list[Item]:
        if split == "test":
            return self._part("test") or []
        if split == "val":
            return self._cut[1]
        if self.shots is None:
            return self._whole if split == "trainval" else self._cut[0]
        few = self._csv(f"train_val_{self.shots}") or first_of_each_class(self._whole, self.shots)
        if split == "trainval":
            return few
        # In classes of a handful of images the first ones may reach into the tail that val is: never train on those.
        held_out = {item.path for item in self._cut[1]}
        return [item for item in few if item.path not in held_out]

    def load_classes(self) -> list[str]:
        if self.tables is None:
            return self.parse(self._lists, self.official_classes)
        items = [*self._whole, *(self._csv("test") or [])]
        count = 1 + max((_index(item) for item in items), default=-1)
        return self._named(count) or _folders(items, count) or [str(i) for i in range(count)]

    @property
    def _lists(self) -> str:
        return ", ".join(name for name in self.needs if "." in name) or self.needs[0]

    @cached_property
    def _whole(self) -> list[Item]:
        return self._part("trainval") or []

    @cached_property
    def _cut(self) -> tuple[list[Item], list[Item]]:
        """``train`` and ``val``, without few-shot."""
        if self.tables is not None:
            train, val = self._csv("train"), self._csv("val")
            if train is not None and val is not None:
                return train, val
        elif (official := self.official_val()) is not None:
            return self._placed(official[0]), self._placed(official[1])
        return data_split(self._whole, self.share)

    def _part(self, part: str) -> list[Item] | None:
        if self.tables is None:
            return self._placed(self.parse(self._lists, lambda: self.official(part)))
        if part == "test":
            return self._csv("test", needed=True)
        whole = self._csv("train_val")
        if whole is not None:
            return whole
        return [*(self._csv("train", needed=True) or []), *(self._csv("val") or [])]

    def _placed(self, items: list[Item]) -> list[Item]:
        return [Item(self.home + i.path, i.target) for i in items] if self.home else items

    def _csv(self, name: str, *, needed: bool = False) -> list[Item] | None:
        """Items of one CSV file of the papers, or None when it does not exist."""
        if self.tables is None:
            return None
        path = self.folder / self.tables / f"{name}{self.suffix}.csv"
        if not path.is_file():
            if needed:
                raise DataError(
                    f"{self.spec_name}: '{path}' does not exist, but other CSV files of the papers do and decide alone; "
                    "add it, or move them away to use the set's own lists"
                )
            return None
        prefix = self.tables + self.images
        prefix = f"{prefix}/" if self.images and (self.folder / prefix).is_dir() else self.tables
        return [Item(prefix + str(PurePosixPath(name)), label) for label, name in read_table(path, "dir")]

    def _named(self, count: int) -> list[str] | None:
        """Names from ``classid_classname.csv``, else from the set's own files where they lie there too."""
        path = self.folder / (self.tables or "") / "classid_classname.csv"
        try:
            given = path.is_file()
            names = [name for _, name in sorted(read_table(path, "class_name"))] if given else self.official_classes()
        except (DataError, NotImplementedError, KeyError, IndexError, ValueError, TypeError):
            return None
        return names if len(names) == count else None


def read_table(path: Path, text: str) -> list[tuple[int, str]]:
    """Class and text of each row of a CSV file with the columns ``class_id`` and ``text``.

    Raises:
        DataError: for missing columns or a class that is no whole number from 0.
    """
    header, rows = read_rows(path, ["class_id", text])
    number, name = header.index("class_id"), header.index(text)
    strange = next((row for row in rows if not row[number].strip().isdecimal()), None)
    if strange is not None:
        raise DataError(f"'{path}' has the class_id '{strange[number]}' for '{strange[name]}'; number the classes from 0")
    return [(int(row[number]), row[name].strip()) for row in rows]


def _index(item: Item) -> int:
    return item.target if isinstance(item.target, int) else max(item.target, default=-1)


def _folders(items: list[Item], count: int) -> list[str] | None:
    """Names of the folders of the images, when each class has one of its own."""
    folders: dict[int, set[str]] = {}
    for item in items:
        folders.setdefault(_index(item), set()).add(PurePosixPath(item.path).parent.name)
    names = [next(iter(folders[i])) for i in range(count) if len(folders.get(i, ())) == 1]
    return names if len(set(names)) == count else None
