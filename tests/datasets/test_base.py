"""What every data set shares: splits by name, images on demand, messages that name the remedy."""

import pickle

import pytest
import torch

from vitrim.core.registry import Registry, SpecError, spec
from vitrim.datasets.base import DATASETS, DataError, Item, Split, encode


@pytest.fixture
def made(tmp_path):
    return DATASETS.get("folder").fake(tmp_path)


def test_families_register_names_that_are_not_file_names():
    names = DATASETS.names()
    assert {"csv", "folder", "hf", "timm", "wds"} <= set(names)
    assert not {"base", "splits", "check", "csv_list"} & set(names)
    with pytest.raises(SpecError, match=r"unknown data set 'foldr'; did you mean 'folder'\?"):
        DATASETS.get("foldr")
    with pytest.raises(SpecError, match="csv has no setting 'colour'; it has: root, train"):
        DATASETS.build("csv(root=x, colour=1)")


def test_one_module_may_hold_several_names(tmp_path, monkeypatch):
    package = tmp_path / "shelf_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from vitrim.core.registry import Registry\nTHINGS = Registry('t', __name__, families=True)\n"
    )
    (package / "trees.py").write_text(
        "from shelf_of_tests import THINGS\n@THINGS.register('oak')\nclass Oak: pass\n@THINGS.register('elm')\nclass Elm: pass\n"
    )
    (package / "_bark.py").write_text("raise AssertionError('machinery is not imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert Registry("t", "shelf_of_tests", families=True).names() == []  # entries belong to the registry they are given to
    import shelf_of_tests

    assert shelf_of_tests.THINGS.get("elm").__name__ == "Elm"
    assert shelf_of_tests.THINGS.names() == ["elm", "oak"]


def test_splits_are_lists_of_items_read_once(made):
    assert made.split_names() == ["train", "val", "trainval", "test"]
    assert made.items("train") is made.items("train")
    assert made.items("trainval") == made.items("train") + made.items("val")
    with pytest.raises(ValueError, match="folder has no split 'dev'; it has: train, val, trainval, test"):
        made.items("dev")


def test_a_split_gives_images_and_targets(made):
    split = made.split("val")
    image, target = split[5]
    assert isinstance(split, Split)
    assert image.mode == "RGB"
    assert target == split.targets[5] == split.items[5].target
    assert len(split) == len(made.items("val"))
    again = pickle.loads(pickle.dumps(split))
    assert again[5][0].tobytes() == image.tobytes()
    assert DATASETS.build(spec(made)).items("val") == made.items("val")


def test_targets_as_losses_take_them():
    assert encode(3, 0) == 3
    assert torch.equal(encode((0, 2), 4), torch.tensor([1.0, 0, 1, 0]))
    assert torch.equal(encode((), 2), torch.zeros(2))


def test_unreadable_images_are_named(made):
    item = made.items("train")[0]
    file = made.folder / item.path
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"folder: '.*train00.png': damaged image"):
        made.read(item)
    file.unlink()
    with pytest.raises(DataError, match=r"folder: '.*train00.png' cannot be read \(No such file"):
        made.read(item)
    assert made.missing(made.items("train")) == [item]
    assert made.missing([Item("no/such.png", 0)]) == [Item("no/such.png", 0)]


def test_a_missing_root_says_how_to_learn_more(tmp_path):
    with pytest.raises(DataError, match=r"folder: '.*nowhere' does not exist; .*: vitrim data check folder --root .*nowhere"):
        DATASETS.build(f"folder(root='{tmp_path}/nowhere')").items("train")
