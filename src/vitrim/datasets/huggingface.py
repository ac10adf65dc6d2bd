"""Data sets of the Hugging Face hub, and local parquet files or image folders in its layouts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrim.datasets._fake import CLASSES, TEST, TRAIN, draw
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item
from vitrim.datasets.splits import carve


@DATASETS.register("hf")
class HuggingFace(DataSet):
    """A data set read by the library ``datasets`` (``pip install vitrim[train]``).

    Args:
        root: a local folder: parquet or Arrow files, an image folder, or what ``save_to_disk`` wrote; with ``name`` the folder
            for downloads.
        name: of a data set of the hub, such as ``uoft-cs/cifar100``.
        config: configuration of a data set that has several.
        revision: branch, tag or commit on the hub, so that results can be repeated.
        image: column of the images.
        label: column of the labels: class labels, integers or names; for multi-label sets a list of them.
        train: name of the training split.
        val: name of the validation split, or a share cut off the end of each class of ``train``.
        test: name of the test split, or a share of ``train``.
        multilabel: the label column holds lists.
    """

    origin = "https://huggingface.co/datasets"
    layout = """\
ROOT/*.parquet           columns image and label; or the layouts of load_dataset("ROOT") and load_from_disk("ROOT")
or name=OWNER/NAME       downloaded from the hub"""

    def __init__(
        self,
        *,
        root: str = "",
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        image: str = "image",
        label: str = "label",
        train: str = "train",
        val: str | float | None = "validation",
        test: str | float | None = "test",
        multilabel: bool = False,
    ) -> None:
        super().__init__(root=root)
        if not root and not name:
            raise ValueError("give root=FOLDER for files on this machine, or name=OWNER/NAME for the hub")
        for key, value in (("val", val), ("test", test)):
            if not isinstance(value, str | None) and not 0 < value < 1:
                raise ValueError(f"{key} is the name of a split or a share between 0 and 1; got {value}")
        self.name, self.config, self.revision = name, config, revision
        self.image, self.label = image, label
        self.train, self.val, self.test = train, val, test
        # A property of each set, where other families have it in their class.
        self.multilabel = multilabel  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *(n for n in ("val", "test") if isinstance(s := getattr(self, n), float) or s in self._tables))

    def load(self, split: str) -> list[Item]:
        source = self.train if split == "train" else getattr(self, split)
        shares = {n: s for n in ("val", "test") if isinstance(s := getattr(self, n), float)}
        if isinstance(source, str) and not (split == "train" and shares):
            return self._rows(source)
        return carve(self._rows(self.train), split, **shares)

    def load_classes(self) -> list[str]:
        feature: Any = self._table(self.train).features[self.label]
        feature = getattr(feature, "feature", feature)  # of a list
        if names := getattr(feature, "names", None):
            return list(names)
        values = {value for row in self._labels(self.train) for value in row}
        if all(isinstance(value, int) for value in values):
            return [str(i) for i in range(max(values, default=-1) + 1)]
        return sorted(map(str, values))

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return []

    def raw(self, item: Item) -> bytes:
        split, _, row = item.path.rpartition("/")
        cell: Any = self._table(split)[int(row)][self.image]
        if cell["bytes"] is not None:
            return cell["bytes"]
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"hf: '{cell['path']}' of '{item.path}' cannot be read ({error.strerror or error})") from error

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> HuggingFace:
        library = _library()
        opened = cls(root=str(root), **settings)
        feature: Any = library.ClassLabel(names=[f"class {i}" for i in range(CLASSES)])
        if opened.multilabel:
            feature = library.List(feature)
        root.mkdir(parents=True, exist_ok=True)
        for split, count in (("train", TRAIN), ("val", TEST), ("test", TEST)):
            source = getattr(opened, split)
            if isinstance(source, str):
                names = [(label, f"{source}/{label}/{n}") for label in range(CLASSES) for n in range(count)]
                columns = {
                    opened.image: [draw(name, label) for label, name in names],
                    opened.label: [[label] if opened.multilabel else label for label, _ in names],
                }
                features = library.Features({opened.image: library.Image(), opened.label: feature})
                table = library.Dataset.from_dict(columns, features=features)
                table.to_parquet(str(root / f"{source}-00000-of-00001.parquet"))
        return opened

    @cached_property
    def _tables(self) -> Any:
        """The splits by name, images left encoded."""
        library = _library()
        folder = str(self.folder)
        if self.name is None and not self.folder.is_dir():
            raise DataError(f"hf: '{folder}' is no folder; give the folder of the files, or name=OWNER/NAME for the hub")
        try:
            if self.name is not None:
                found = library.load_dataset(self.name, self.config, revision=self.revision, cache_dir=self.root or None)
            elif (self.folder / "dataset_dict.json").is_file() or (self.folder / "state.json").is_file():
                found = library.load_from_disk(folder)
            else:
                found = library.load_dataset(folder, self.config)
        except Exception as error:  # of the hub, the file system, or pyarrow
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"hf: '{self.name or folder}' cannot be loaded ({what}); check name and config") from error
        tables = found if isinstance(found, dict) else {self.train: found}
        return {split: self._encoded(table, split) for split, table in tables.items()}

    def _encoded(self, table: Any, split: str) -> Any:
        for column in (self.image, self.label):
            if column not in table.column_names:
                raise DataError(f"hf: split '{split}' has no column '{column}'; it has: {', '.join(table.column_names)}")
        if type(table.features[self.image]).__name__ != "Image":
            raise DataError(f"hf: column '{self.image}' does not hold images; image=COLUMN names the one that does")
        return table.cast_column(self.image, _library().Image(decode=False))

    def _table(self, split: str) -> Any:
        if split not in self._tables:
            raise DataError(f"hf: no split '{split}'; train=, val= and test= name those there are: {', '.join(self._tables)}")
        return self._tables[split]

    def _rows(self, split: str) -> list[Item]:
        index = {name: i for i, name in enumerate(self.classes)}
        items: list[Item] = []
        for row, values in enumerate(self._labels(split)):
            # Class labels and integers are indices; the hub writes -1 where labels are kept secret.
            targets = [value if isinstance(value, int) else index.get(str(value), -1) for value in values]
            items.append(Item(f"{split}/{row}", tuple(sorted(set(targets))) if self.multilabel else targets[0]))
        return items

    def _labels(self, split: str) -> list[list[Any]]:
        """The labels of every row, as lists."""
        cells = self._table(split)[self.label][:]
        lists = bool(cells) and isinstance(cells[0], list)
        if lists != self.multilabel and cells:
            have, remedy = ("lists", "write multilabel=true") if lists else ("single labels", "leave multilabel out")
            raise DataError(f"hf: column '{self.label}' holds {have}; {remedy}")
        return [cell if lists else [cell] for cell in cells]


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("hf needs the library datasets: pip install vitrim[train]") from error
    return datasets
