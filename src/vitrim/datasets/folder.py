"""Your own images in folders: one sub-folder for each class."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrim.data.images import EXTENSIONS
from vitrim.datasets._fake import CLASSES, TEST, TRAIN, place
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item
from vitrim.datasets.splits import carve

_VAL_NAMES = ("val", "valid", "validation")


@DATASETS.register("folder")
class Folder(DataSet):
    """Images in class folders, within ``train``, ``val`` and ``test`` folders or without.

    Classes are the folder names of the training part in alphabetical order, as torchvision's ImageFolder has them. Where there
    is no folder of a split, a number cuts it off: ``val=0.2`` takes the last fifth of each class, by file name, out of training.

    Args:
        root: the folder.
        train: name of the training folder; without it, the root holds the class folders.
        val: name of the validation folder, or a share of the training images; by default the folder ``val``, ``valid`` or
            ``validation``, and a share of 0.2 when the root holds the class folders.
        test: name of the test folder, or a share of all images; by default the folder ``test``.
    """

    origin = "your own images"
    layout = """\
ROOT/train/CLASS/anything.jpg     class folders within split folders; val/ and test/ are optional
ROOT/val/CLASS/anything.jpg
ROOT/test/CLASS/anything.jpg
or
ROOT/CLASS/anything.jpg           class folders only: val=0.2 and test=0.2 cut shares off the end of each class"""

    def __init__(
        self, *, root: str, train: str = "train", val: str | float | None = None, test: str | float | None = None
    ) -> None:
        super().__init__(root=root)
        for name, value in (("val", val), ("test", test)):
            if not isinstance(value, str | None) and not 0 < value < 1:
                raise ValueError(f"{name} is the name of a folder or a share between 0 and 1; got {value}")
        self.train = train
        self.val = val
        self.test = test

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *(name for name in ("val", "test") if self._source(name) is not None))

    def required(self) -> Sequence[str]:
        named = [value for value in (self.val, self.test) if isinstance(value, str)]
        return [*([self.train] if self.train != "train" or named else []), *named]

    def load_classes(self) -> list[str]:
        base = self._base()
        classes = sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not classes:
            raise DataError(f"folder: '{base}' has no class folders; put the images of each class into a folder of its name")
        return classes

    def load(self, split: str) -> list[Item]:
        source = self._source(split)
        if isinstance(source, str):
            return self._images(self.file(source))
        # Shares come out of the one list of images that there is.
        shares = {name: value for name in ("val", "test") if isinstance(value := self._source(name), float)}
        return carve(self._images(self._base()), split, **shares)

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Folder:
        opened = cls(root=str(root), **settings)
        for split, count in (("train", TRAIN), ("val", TEST), ("test", TEST)):
            source = opened.train if split == "train" else getattr(opened, split)
            for label in range(CLASSES if not isinstance(source, float) else 0):
                for number in range(count):
                    place(root, f"{source or split}/{'abcdefgh'[label]}/{split}{number:02d}.png", label)
        return opened

    def _base(self) -> Path:
        """The folder that holds the class folders of the training part."""
        inside = self.folder / self.train
        return inside if inside.is_dir() else self.file(self.train if self.train != "train" else "")

    def _source(self, split: str) -> str | float | None:
        """Where a split comes from: the name of a folder, a share, or None when there is no such split."""
        within = (self.folder / self.train).is_dir()
        if split == "train":
            cut = any(isinstance(self._source(name), float) for name in ("val", "test"))
            return self.train if within and not cut else None
        value = self.val if split == "val" else self.test
        if value is not None:
            return value
        names = _VAL_NAMES if split == "val" else ("test",)
        found = next((name for name in names if within and (self.folder / name).is_dir()), None)
        return 0.2 if split == "val" and not within else found

    def _images(self, base: Path) -> list[Item]:
        from torchvision.datasets.folder import make_dataset  # seconds to import; a list of the data sets does without

        index = {name: i for i, name in enumerate(self.classes)}
        here = {p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")}
        strange = sorted(here - set(index))
        if strange:
            near = difflib.get_close_matches(strange[0], index, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "rename it, or add training images of that class"
            raise DataError(f"folder: '{base / strange[0]}' is none of the {len(index)} classes of the training part; {hint}")
        found = make_dataset(base, {n: i for n, i in index.items() if n in here}, EXTENSIONS, allow_empty=True)
        # Files such as ._photo.jpg are left behind by archives of macOS and are no images.
        return [
            Item(Path(path).relative_to(self.folder).as_posix(), i) for path, i in found if not Path(path).name.startswith(".")
        ]
