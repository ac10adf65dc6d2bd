"""The splits of the papers: heads and tails of classes in file order."""

import csv

import pytest

from vitrim.datasets.base import DataError, Item
from vitrim.datasets.splits import carve, data_split, first_of_each_class, head_and_tail, split_csv


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write(path, ids, extra=False):
    lines = [["class_id", "dir", *(["width"] if extra else [])]] + [
        [i, f"{i}/{n}.jpg", *(["7"] if extra else [])] for n, i in enumerate(ids)
    ]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return path


def test_heads_and_tails_class_by_class():
    head, tail = head_and_tail([1, 0, 1, 0, 1, 0, 0], 0.5)
    assert (head, tail) == ([1, 3, 0], [5, 6, 2, 4])
    assert head_and_tail([1, 0, 1, 0, 1, 0, 0], 0.5, cap=1) == ([1, 0], [5, 6, 2, 4])


@pytest.mark.parametrize("n", range(1, 40))
def test_floor_of_the_share(n):
    """The published rule, and exact where floating point falls below a whole number."""
    assert len(head_and_tail([0] * n, 0.8)[0]) == n * 8 // 10
    assert len(head_and_tail([0] * n, 0.29)[0]) == n * 29 // 100
    assert len(head_and_tail([0] * 100, 0.29)[0]) == 29


def test_shares_and_caps_are_checked():
    with pytest.raises(ValueError, match=r"a share is a number from 0 to 1; got 1.2"):
        head_and_tail([0], 1.2)
    with pytest.raises(ValueError, match=r"1 or more; got 0"):
        head_and_tail([0], 0.5, 0)


def test_items():
    items = [Item(f"{c}{n}", c) for n in range(5) for c in (1, 0)]
    train, val = data_split(items, 0.8)
    assert [i.path for i in train] == ["00", "01", "02", "03", "10", "11", "12", "13"]
    assert [i.path for i in val] == ["04", "14"]
    assert [i.path for i in first_of_each_class(items, 2)] == ["00", "01", "10", "11"]
    parts = {s: {i.path for i in carve(items, s, val=0.25, test=0.2)} for s in ("train", "val", "trainval", "test")}
    assert parts["test"] == {"04", "14"}
    assert parts["val"] == {"03", "13"}
    assert parts["trainval"] == parts["train"] | parts["val"]
    assert len(parts["train"]) == 6


def test_multilabel_items_are_one_group():
    items = [Item(str(n), (n % 3, 3)) for n in range(10)]
    assert [i.path for i in data_split(items, 0.8)[1]] == ["8", "9"]


def test_csv_is_split_as_published(tmp_path):
    file = write(tmp_path / "trainval.csv", [1, 0, 0, 1, 0, 0, 0, 1], extra=True)
    done = split_csv(file, train_percent=0.8)
    assert rows(done.train)[0] == ["class_id", "dir", "width"]
    assert [r[1] for r in rows(done.train)[1:]] == ["0/1.jpg", "0/2.jpg", "0/4.jpg", "0/5.jpg", "1/0.jpg", "1/3.jpg"]
    assert [r[1] for r in rows(done.test)[1:]] == ["0/6.jpg", "1/7.jpg"]
    assert (done.train.name, done.test.name, done.train_rows, done.test_rows, done.classes) == ("train.csv", "val.csv", 6, 2, 2)
    split_csv(file, train_percent=0.8)  # again gives the same and is no conflict


def test_few_shot_leaves_other_files_alone(tmp_path):
    """The published script wrote an empty second file over val.csv here."""
    file = write(tmp_path / "train_val.csv", [0, 1] * 4)
    (tmp_path / "val.csv").write_text("precious\n")
    done = split_csv(file, train_percent=1.0, max_images_per_class=2, save_name_train="train_val_2")
    assert done.test is None
    assert [r[1] for r in rows(tmp_path / "train_val_2.csv")[1:]] == ["0/0.jpg", "0/2.jpg", "1/1.jpg", "1/3.jpg"]
    assert (tmp_path / "val.csv").read_text() == "precious\n"


def test_ids_with_gaps_and_names(tmp_path):
    done = split_csv(write(tmp_path / "all.csv", [10, 10, 9, 9, 200, 200]), train_percent=0.5)
    assert [r[0] for r in rows(done.train)[1:]] == ["9", "10", "200"]
    done = split_csv(write(tmp_path / "names.csv", ["oak", "oak", "ash", "ash"]), train_percent=0.5, overwrite=True)
    assert [r[0] for r in rows(done.train)[1:]] == ["ash", "oak"]


def test_nothing_is_lost(tmp_path):
    file = write(tmp_path / "train.csv", [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"'.*train.csv' is the file that is split; choose another --save-name-train"):
        split_csv(file)
    (tmp_path / "val.csv").write_text("precious\n")
    with pytest.raises(DataError, match=r"'.*val.csv' exists with other content; choose another name, or --overwrite"):
        split_csv(file, save_name_train="part", train_percent=0.5)
    assert not (tmp_path / "part.csv").exists()
    with pytest.raises(DataError, match=r"both files would be"):
        split_csv(file, save_name_train="x", save_name_test="x", train_percent=0.5)
    with pytest.raises(DataError, match=r"leaves no rows for the first file"):
        split_csv(file, train_percent=0.1)
    with pytest.raises(DataError, match=r"does not exist; give the path of a CSV"):
        split_csv(tmp_path / "none.csv")
