"""Whatever timm's readers read: folders, tar files, and sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrim.datasets._fake import CLASSES, TEST, TRAIN, place
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item

_STREAMS = ("tfds", "hfids", "wds")


@DATASETS.register("timm")
class TimmReader(DataSet):
    """A data set as timm's ``create_reader`` opens it.

    Args:
        root: folder with a sub-folder or a tar file for each split; of the downloads for ``hfds/``.
        name: ``hfds/OWNER/NAME``; empty for folders and tar files. Readers of streams (``tfds/``, ``wds/``) are not taken.
        train: name of the training split.
        val: name of the validation split.
        test: name of the test split.
        class_map: timm's class map, a text file below the root: names of the classes in order.
    """

    origin = "see timm.data"
    layout = """\
ROOT/train/CLASS/...      or ROOT/train.tar with CLASS/... inside
ROOT/validation/CLASS/...
ROOT/test/CLASS/...       optional"""

    def __init__(
        self,
        *,
        root: str = "",
        name: str = "",
        train: str = "train",
        val: str | None = "validation",
        test: str | None = "test",
        class_map: str = "",
    ) -> None:
        super().__init__(root=root)
        kind = name.partition("/")[0].lower()
        if kind in _STREAMS:
            raise ValueError(f"timm's reader '{kind}' has no random access; use wds(root=...) or hf(name=...)")
        if not root and not name:
            raise ValueError("give root=FOLDER for files, or name=hfds/OWNER/NAME")
        self.name, self.train, self.val, self.test, self.class_map = name, train, val, test, class_map

    @property
    def splits(self) -> tuple[str, ...]:
        given = {"val": self.val, "test": self.test}
        if self.name:
            # Only a download could tell which splits there are.
            return ("train", *(n for n, s in given.items() if s))
        return ("train", *(n for n, s in given.items() if s and self._place(s) is not None))

    def load(self, split: str) -> list[Item]:
        reader = self._reader(split)
        if self.name:
            return [Item(f"{split}/{i}", int(target)) for i, target in enumerate(reader.dataset[reader.label_key][:])]
        # The reader of tar files keeps targets apart, the one of folders beside the paths.
        targets = reader.targets if hasattr(reader, "targets") else [target for _, target in reader.samples]
        return [Item(f"{split}/{i}", int(target)) for i, target in enumerate(targets)]

    def load_classes(self) -> list[str]:
        reader = self._reader("train")
        if self.name:
            feature: Any = reader.dataset.features[reader.label_key]
            names = getattr(feature, "names", None)
            return list(names) if names else [str(i) for i in range(max(reader.dataset[reader.label_key][:]) + 1)]
        index: dict[str, int] = getattr(reader, "class_to_idx", None) or reader.class_name_to_idx
        by_number = {i: name for name, i in index.items()}
        return [by_number.get(i, str(i)) for i in range(max(by_number) + 1)]

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return []

    def raw(self, item: Item) -> bytes:
        split, _, row = item.path.rpartition("/")
        reader = self._reader(split)
        try:
            if hasattr(reader, "tar_state"):
                return _from_tar(Path(reader.root), reader.samples[int(row)])
            with reader[int(row)][0] as opened:
                return opened.read()
        except OSError as error:
            name = reader.filename(int(row))
            raise DataError(f"timm: '{name}' of '{split}' cannot be read ({error.strerror or error})") from error

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> TimmReader:
        opened = cls(root=str(root), **settings)
        for split, count in ((opened.train, TRAIN), (opened.val, TEST), (opened.test, TEST)):
            for label in range(CLASSES if split else 0):
                for number in range(count):
                    place(root, f"{split}/{'abcdefgh'[label]}/{number:02d}.png", label)
        return opened

    def _place(self, source: str) -> Path | None:
        """The folder or tar file of a split."""
        folder = self.folder / source
        tar = folder.with_name(folder.name + ".tar")
        return folder if folder.is_dir() else tar if tar.is_file() else None

    def _reader(self, split: str) -> Any:
        if split not in self._readers:
            self._readers[split] = self._open(split)
        return self._readers[split]

    def _open(self, split: str) -> Any:
        from timm.data.readers.reader_factory import create_reader  # seconds to import; a list of the data sets does without

        source: str = getattr(self, split)
        options: dict[str, Any] = {"class_map": str(self.folder / self.class_map)} if self.class_map else {}
        # Without this, every split would number its own folders.
        if not self.name and not self.class_map and split != "train":
            options["class_map"] = {name: i for i, name in enumerate(self.classes)}
        place = str(self.folder) if self.name else self._place(source)
        if place is None:
            raise DataError(f"timm: there is no folder '{self.folder / source}' and no '{source}.tar' beside it; check root")
        try:
            return create_reader(self.name, root=str(place) if self.root else None, split=source, **options)
        except Exception as error:  # of the hub, the file system, or an assertion
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            remedy = f"check the name, or write {split}=none where there is no such split"
            raise DataError(f"timm: split '{source}' of '{self.name or place}' cannot be opened ({what}); {remedy}") from error

    @cached_property
    def _readers(self) -> dict[str, Any]:
        return {}


def _from_tar(path: Path, sample: Any) -> bytes:
    """A member of a tar file, or of a tar file in it.

    timm keeps the file open, and loader workers that inherit it would move each other's position.
    """
    member, _, inner = sample
    with path.open("rb") as file:
        file.seek(member.offset_data + (inner.offset_data if inner is not None else 0))
        return file.read(member.size)
