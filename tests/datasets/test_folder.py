"""Folders of class folders, with split folders and without."""

import pytest

from vitrim.core.registry import SpecError
from vitrim.datasets.base import DATASETS, DataError


def build(root, settings=""):
    return DATASETS.build(f"folder(root='{root}'{settings})")


@pytest.fixture
def root(tmp_path):
    DATASETS.get("folder").fake(tmp_path)
    return tmp_path


def counts(dataset):
    return {split: len(dataset.items(split)) for split in dataset.split_names()}


def test_split_folders(root):
    made = build(root)
    assert made.classes == ["a", "b", "c", "d"]
    assert counts(made) == {"train": 40, "val": 16, "trainval": 56, "test": 16}
    assert made.items("test")[4].path == "test/b/test00.png"
    assert made.items("test")[4].target == 1


def test_one_folder_of_classes_is_cut_at_the_end_of_each_class(root):
    made = build(root / "train")
    assert counts(made) == {"train": 32, "val": 8, "trainval": 40}
    assert [item.path for item in made.items("val")][:3] == ["a/train08.png", "a/train09.png", "b/train08.png"]
    thirds = build(root / "train", ", val=0.25, test=0.2")
    assert counts(thirds) == {"train": 24, "val": 8, "trainval": 32, "test": 8}
    assert {i.path for s in ("train", "val", "test") for i in thirds.items(s)} == {i.path for i in made.items("trainval")}


def test_a_share_next_to_split_folders(root):
    made = build(root, ", val=0.5")
    assert counts(made) == {"train": 20, "val": 20, "trainval": 40, "test": 16}


def test_names_of_split_folders(root):
    (root / "val").rename(root / "valid")
    assert counts(build(root))["val"] == 16
    (root / "valid").rename(root / "dev")
    assert build(root).split_names() == ["train", "test"]
    assert counts(build(root, ", val=dev"))["val"] == 16
    with pytest.raises(DataError, match=r"'.*holdout' does not exist"):
        build(root, ", val=holdout").items("val")


def test_classes_are_those_of_training(root):
    (root / "train" / "c").rename(root / "train" / "cc")
    with pytest.raises(DataError, match=r"'.*test/c' is none of the 4 classes of the training part; did you mean 'cc'\?"):
        build(root).items("test")


def test_other_files_are_left_alone(root):
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "train" / "a" / "._train00.png").write_bytes(b"left by an archiver")
    (root / "train" / "b" / "deep").mkdir()
    (root / "train" / "b" / "train00.png").rename(root / "train" / "b" / "deep" / "TRAIN00.PNG")
    (root / "train" / ".cache").mkdir()
    made = build(root)
    assert len(made.items("train")) == 40
    assert made.classes == ["a", "b", "c", "d"]


def test_settings_that_make_no_sense(root):
    with pytest.raises(SpecError, match=r"val is the name of a folder or a share between 0 and 1; got 1.5"):
        build(root, ", val=1.5")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"'.*empty' has no class folders; put the images of each class into a folder"):
        build(root / "empty").items("train")
