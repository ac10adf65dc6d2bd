"""Every family's fake twin: it loads, is what its lists say, is the same twice, can be learned, and its absence is told."""

from __future__ import annotations

import hashlib
import pickle
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from vitrim.core.registry import parse_spec
from vitrim.datasets.base import DATASETS, DataError, DataSet
from vitrim.datasets.check import check

SINGLE = [
    "aircraft",
    "cars",
    "cotton",
    "cub",
    "dafb",
    "dogs",
    "fashion",
    "flowers",
    "food",
    "imagenet",
    "inat17",
    "moe",
    "nabirds",
    "pets",
    "plantvillage",
    "sign_digits",
    "soyageing",
    "soygene",
    "soyglobal",
    "soylocal",
    "vegfru",
    "vtab",
]
MULTI = ["coco", "nuswide"]
SPECS = [
    *((name, "") for name in SINGLE + MULTI),
    ("aircraft", "level=family"),
    ("coco", "year=2017"),
    ("dafb", "faces=true"),
    ("plantvillage", "size=32"),
    ("soyageing", "stage=R4"),
    ("vtab", "task=patch_camelyon"),
]
KEPT = TemporaryDirectory(prefix="vitrim-families-", ignore_cleanup_errors=True)


def twin(name: str, settings: str = "") -> DataSet:
    return made(f"{name}({settings})")


@cache
def made(spec: str) -> DataSet:
    root = Path(KEPT.name) / spec
    root.mkdir()
    name, _, settings = parse_spec(spec)
    return DATASETS.get(name).fake(root, **settings)


@pytest.mark.parametrize(("name", "settings"), SPECS)
def test_loads_with_contiguous_classes_in_every_split(name: str, settings: str) -> None:
    data = twin(name, settings)
    classes = set(range(len(data.classes)))
    assert len(set(data.classes)) == len(data.classes) >= 2
    assert data.split_names() == ["train", "val", "trainval", "test"]
    for split in ("train", "trainval", "test"):
        found = [t if isinstance(t, tuple) else (t,) for t in data.split(split).targets]
        assert {i for t in found for i in t} == classes
        assert data.multilabel == isinstance(data.items(split)[0].target, tuple)
    paths = {split: {item.path for item in data.items(split)} for split in data.split_names()}
    assert all(len(paths[split]) == len(data.items(split)) > 0 for split in paths)
    assert not paths["train"] & paths["val"]
    assert not paths["trainval"] & paths["test"]
    assert paths["train"] | paths["val"] == paths["trainval"]


@pytest.mark.parametrize(("name", "settings"), SPECS)
def test_is_sound_but_for_the_published_counts(name: str, settings: str) -> None:
    report = check(twin(name, settings), workers=0)
    # The counts of a twin are not the published ones, which shows that these are compared at all; nothing else is wrong.
    assert {p.kind for p in report.problems} <= {"counts", "classes"}, report.text()
    assert report.decoded == sum(report.counts[split] for split in ("trainval", "test"))


@pytest.mark.parametrize("name", SINGLE + MULTI)
def test_is_written_the_same_twice(name: str, tmp_path: Path) -> None:
    first = Path(twin(name).root)
    type(twin(name)).fake(tmp_path)
    assert digest(first) == digest(tmp_path)


@pytest.mark.parametrize("name", SINGLE + MULTI)
def test_reads_rgb_and_survives_pickling(name: str) -> None:
    data = pickle.loads(pickle.dumps(twin(name)))
    image, target = data.split("test")[0]
    assert image.mode == "RGB"
    assert min(image.size) >= 28
    assert data.raw(data.items("test")[0])[:2] in (b"\xff\xd8", b"\x89P")
    if data.multilabel:
        assert target.shape == (len(data.classes),)
        assert sorted(target.nonzero().flatten().tolist()) == list(data.items("test")[0].target)
    else:
        assert target == data.items("test")[0].target


@pytest.mark.parametrize("name", SINGLE)
def test_can_be_learned(name: str) -> None:
    """The nearest class mean of 8 x 8 thumbnails knows nearly all test images: a small network will too."""
    data = twin(name)

    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = [(np.asarray(image.resize((8, 8)), dtype=float).ravel(), target) for image, target in data.split(split)]
        return np.stack([r[0] for r in rows]), np.array([r[1] for r in rows])

    x, y = features("trainval")
    means = np.stack([x[y == i].mean(0) for i in range(len(data.classes))])
    x, y = features("test")
    guess = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guess == y).mean() > 0.9


@pytest.mark.parametrize("name", SINGLE + MULTI)
def test_a_missing_list_is_told_with_its_place_and_origin(name: str, tmp_path: Path) -> None:
    data = DATASETS.get(name)(root=str(tmp_path))
    wanted = data.required()[0]
    assert wanted
    reads = [lambda: data.items("trainval"), lambda: data.items("test"), lambda: data.classes]
    for read in reads[:2] if name == "fashion" else reads:  # the names of its classes are known without files
        with pytest.raises(DataError, match=str(tmp_path)) as error:
            read()
        assert data.origin.split(" (")[0] in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted({*SINGLE, *MULTI} - {"cotton", "imagenet", "soyglobal", "soylocal"}))
def test_an_empty_list_is_an_error_or_an_empty_split(name: str, tmp_path: Path) -> None:
    """A list cut off by a broken download never ends in a bare KeyError."""
    data = type(twin(name)).fake(tmp_path)
    for file in data.required():
        path = tmp_path / file
        if path.is_file():
            path.write_bytes(b"")
    for split in ("trainval", "test"):
        try:
            items = data.items(split)
        except DataError:
            items = []
        assert items == []


@pytest.mark.parametrize("name", SINGLE + MULTI)
def test_says_where_it_comes_from_and_how_it_lies(name: str) -> None:
    data = twin(name)
    assert data.origin
    assert "\n" in data.layout
    assert data.expected["classes"] > 1
    counts = data.expected
    if {"train", "val", "trainval"} <= set(counts):
        assert counts["train"] + counts["val"] == counts["trainval"]


def digest(root: Path) -> str:
    total = hashlib.blake2b()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return total.hexdigest()
