"""Sets that timm's readers open: folders and tar files."""

import tarfile

import pytest

from vitrim.core.registry import SpecError
from vitrim.datasets.base import DATASETS, DataError


def test_folders(tmp_path):
    made = DATASETS.get("timm").fake(tmp_path)
    assert made.split_names() == ["train", "val", "trainval", "test"]
    assert made.classes == ["a", "b", "c", "d"]
    image, target = made.split("test")[6]
    assert image.mode == "RGB"
    assert target == 1


def test_tar_files_give_the_same(tmp_path):
    folders = DATASETS.get("timm").fake(tmp_path / "folders")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("train", "validation"):
        with tarfile.open(packed / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / "folders" / name, arcname=".")
    tars = DATASETS.build(f"timm(root='{packed}')")
    assert tars.split_names() == ["train", "val", "trainval"]
    assert tars.classes == folders.classes
    assert [i.target for i in tars.items("val")] == [i.target for i in folders.items("val")]
    assert tars.split("val")[9][0].tobytes() == folders.split("val")[9][0].tobytes()


def test_a_class_that_a_split_lacks_keeps_the_numbers(tmp_path):
    made = DATASETS.get("timm").fake(tmp_path)
    for file in (tmp_path / "test" / "a").iterdir():
        file.unlink()
    assert {i.target for i in made.items("test")} == {1, 2, 3}


def test_what_it_does_not_take(tmp_path):
    with pytest.raises(SpecError, match=r"timm's reader 'tfds' has no random access; use wds\(root=...\) or hf\(name=...\)"):
        DATASETS.build("timm(root=x, name=tfds/mnist)")
    with pytest.raises(DataError, match=r"there is no folder '.*/train' and no 'train.tar' beside it; check root"):
        DATASETS.build(f"timm(root='{tmp_path}')").items("train")
