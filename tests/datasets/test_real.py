"""The real sets, where they are: VITRIM_DATA names the folder that holds plantvillage15 and sign_digits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vitrim.datasets.base import DATASETS, DataSet

DATA = Path(os.environ.get("VITRIM_DATA", "/nonexistent"))
FASHION = Path(DATASETS.get("fashion")().root)

REAL = [
    pytest.param(f"plantvillage(root={str(DATA / 'plantvillage15')!r})", DATA / "plantvillage15", (128, 128), id="plantvillage"),
    pytest.param(
        f"plantvillage(root={str(DATA / 'plantvillage15')!r}, size=32)", DATA / "plantvillage15", (32, 32), id="plantvillage-32"
    ),
    pytest.param(f"sign_digits(root={str(DATA / 'sign_digits')!r})", DATA / "sign_digits", (100, 100), id="sign_digits"),
    pytest.param("fashion", FASHION, (28, 28), id="fashion"),
]


def there(root: Path) -> None:
    if not root.is_dir():
        pytest.skip(f"{root.name} is not on this machine (VITRIM_DATA)")


@pytest.mark.parametrize(("spec", "root", "size"), REAL)
def test_counts_classes_and_pictures(spec: str, root: Path, size: tuple[int, int]) -> None:
    there(root)
    data: DataSet = DATASETS.build(spec)
    counts = {split: len(data.items(split)) for split in data.split_names()}
    assert {"classes": len(data.classes), **counts} == dict(data.expected)
    assert data.missing([item for split in ("trainval", "test") for item in data.items(split)]) == []
    paths = {split: {item.path for item in data.items(split)} for split in counts}
    assert not paths["trainval"] & paths["test"]
    for split in ("train", "val", "test"):
        for item in data.items(split)[:: max(1, counts[split] // 20)]:
            image = data.read(item)
            assert (image.mode, image.size) == ("RGB", size)
            assert np.asarray(image).std() > 5


def test_both_sizes_of_plantvillage_show_the_same() -> None:
    there(DATA / "plantvillage15")
    large, small = (DATASETS.build(f"plantvillage(root={str(DATA / 'plantvillage15')!r}, size={n})") for n in (128, 32))
    assert large.items("test") == small.items("test")
    for item in large.items("test")[::100]:
        difference = np.asarray(large.read(item).reduce(4), dtype=float) - np.asarray(small.read(item), dtype=float)
        assert np.abs(difference).mean() < 3


def test_fashion_is_the_one_that_is_embedded() -> None:
    there(FASHION)
    from vitrim.data.embedded import fashion

    data = DATASETS.build("fashion")
    ours = {np.asarray(data.read(item))[..., 0].tobytes(): item.target for item in data.items("test")}
    embedded = fashion(200)
    for pixels, label in zip(embedded.pixels, embedded.labels.tolist(), strict=True):
        assert ours[pixels.tobytes()] == label
    assert data.classes[9] == "Ankle boot"
