"""VTAB-1k: nineteen tasks with 1,000 training images each."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from vitrim.datasets import _fake
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item

#: folder, number of classes and of test images of each task
TASKS = {
    "caltech101": ("caltech101", 102, 6084),
    "cifar100": ("cifar", 100, 10000),
    "dtd": ("dtd", 47, 1880),
    "oxfordflower": ("oxford_flowers102", 102, 6149),
    "oxfordpet": ("oxford_iiit_pet", 37, 3669),
    "svhn": ("svhn", 10, 26032),
    "sun397": ("sun397", 397, 21750),
    "patchcamelyon": ("patch_camelyon", 2, 32768),
    "eurosat": ("eurosat", 10, 5400),
    "resisc45": ("resisc45", 45, 6300),
    "diabeticretinopathy": ("diabetic_retinopathy", 5, 42670),
    "clevrcount": ("clevr_count", 8, 15000),
    "clevrdist": ("clevr_dist", 6, 15000),
    "dmlab": ("dmlab", 6, 22735),
    "kitti": ("kitti", 4, 711),
    "dspritesloc": ("dsprites_loc", 16, 73728),
    "dspritesori": ("dsprites_ori", 16, 73728),
    "smallnorbazi": ("smallnorb_azi", 18, 12150),
    "smallnorbele": ("smallnorb_ele", 9, 12150),
}
_LISTS = {"train": "train800.txt", "val": "val200.txt", "trainval": "train800val200.txt", "test": "test.txt"}


@DATASETS.register("vtab")
class Vtab(DataSet):
    """VTAB-1k: 800 training and 200 validation images of each of 19 tasks (Zhai et al., arXiv:1910.04867).

    Reads the lists of images that the literature on parameter-efficient tuning shares. Classes have numbers, no names.

    Args:
        root: ``vtab-1k``, the folder that holds it, or the folder of the task.
        task: name of the task, such as ``dtd``, or of its folder, such as ``oxford_flowers102``.
    """

    origin = "https://github.com/dongzelian/SSF (vtab-1k archive; licences of the nineteen sets)"
    layout = """vtab-1k/dtd/                   (a folder for each task)
  train800.txt, val200.txt, train800val200.txt, test.txt    PATH CLASS (from 0)
  images/"""

    def __init__(self, *, root: str, task: str = "caltech101") -> None:
        super().__init__(root=root)
        name = next((key for key, (folder, _, _) in TASKS.items() if task in (key, folder)), None)
        if name is None:
            raise ValueError(f"task is one of {', '.join(TASKS)}; got '{task}'")
        self.task = name
        counts = {"classes": TASKS[name][1], "train": 800, "val": 200, "trainval": 1000, "test": TASKS[name][2]}
        self.expected = counts  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(_LISTS)

    def required(self) -> list[str]:
        return [self.home + name for name in _LISTS.values()]

    def load(self, split: str) -> list[Item]:
        path = self.folder / self.home / _LISTS[split]
        if not path.is_file():
            raise DataError(f"vtab: '{path}' does not exist; obtain it from {self.origin}")
        items: list[Item] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, _, label = line.strip().rpartition(" ")
            if line.strip() and not (name and label.isdecimal()):
                raise DataError(f"vtab: '{path}' line {number}: PATH CLASS expected, got '{line.strip()}'; obtain it again")
            if name:
                items.append(Item(self.home + name.strip(), int(label)))
        return items

    def load_classes(self) -> list[str]:
        # A thousand images need not show all of 397 classes; the test images do.
        items = [*self.items("trainval"), *self.items("test")]
        return [str(i) for i in range(1 + max((int(str(item.target)) for item in items), default=-1))]

    @cached_property
    def home(self) -> str:
        """Where below the root the lists lie: empty, or a path that ends with a slash."""
        folder = TASKS[self.task][0]
        for home in (f"{folder}/", f"vtab-1k/{folder}/", ""):
            if (self.folder / home / _LISTS["test"]).exists():
                return home
        return f"{folder}/"

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> Vtab:
        opened = cls(root=str(root), **settings)
        home = f"vtab-1k/{TASKS[opened.task][0]}/"
        classes = min(_fake.CLASSES, TASKS[opened.task][1])
        lines: dict[str, list[str]] = {name: [] for name in _LISTS}
        for training, label, n in _fake.labels(train=12, classes=classes):
            path = f"images/{'trainval' if training else 'test'}/{100 * label + n:06d}.{'jpg' if n % 2 else 'png'}"
            _fake.place(root, home + path, label, classes)
            for name in ("trainval", "train" if n <= 8 else "val") if training else ("test",):
                lines[name].append(f"{path} {label}")
        for name, rows in lines.items():
            _fake.write(root, home + _LISTS[name], rows)
        return cls(root=str(root), **settings)
