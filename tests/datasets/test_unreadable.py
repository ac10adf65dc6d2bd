"""Damaged images in training: an error, or counted and replaced, always in the same way."""

import pytest
from torch.utils.data import DataLoader

from vitrim.datasets.base import DATASETS, DataError
from vitrim.datasets.unreadable import Readable, readable


@pytest.fixture
def made(tmp_path):
    made = DATASETS.get("folder").fake(tmp_path)
    for number in (3, 4, 39):
        (tmp_path / made.items("train")[number].path).write_bytes(b"no image")
    return made


def test_an_error_by_default(made):
    split = readable(made.split("train"))
    with pytest.raises(DataError, match=r"folder: '.*train03.png': no image"):
        split[3]


def test_the_next_readable_image_stands_in(made):
    split = readable(made.split("train"), skip_unreadable=True)
    assert isinstance(split, Readable)
    assert len(split) == 40
    plain = made.split("train")
    for index, instead in ((3, 5), (4, 5), (39, 0), (7, 7)):
        assert split[index][0].tobytes() == plain[instead][0].tobytes()
        assert split[index][1] == plain[instead][1]
    assert split.unreadable == 3
    assert split.report() == (
        "train: 3 unreadable images replaced by the next readable one: train/a/train03.png, train/a/train04.png, "
        "train/d/train09.png"
    )
    assert split.targets == plain.targets
    assert (split.name, split.dataset) == ("train", made)


def test_what_workers_find_is_counted(made):
    split = readable(made.split("train"), skip_unreadable=True)
    assert split.report() == ""
    rows = [target for batch in DataLoader(split, batch_size=8, num_workers=2, collate_fn=list) for _, target in batch]
    assert len(rows) == 40
    assert split.unreadable == 3


def test_nothing_readable(made):
    for item in made.items("val"):
        (made.folder / item.path).write_bytes(b"")
    split = readable(made.split("val"), skip_unreadable=True)
    with pytest.raises(DataError, match="none of the 16 images of 'val' can be read; vitrim data check tells more"):
        split[2]
