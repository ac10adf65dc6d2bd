"""CSV files of paths and labels: the contract of the papers, names, several labels, and mistakes."""

import pytest
import torch

from vitrim.core.registry import SpecError
from vitrim.datasets.base import DATASETS, DataError


def build(root, settings=""):
    return DATASETS.build(f"csv(root='{root}'{settings})")


def write(root, name, *lines):
    (root / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_the_contract_of_the_papers(tmp_path):
    write(tmp_path, "train.csv", "class_id,dir", "1,b/1.jpg", "0,a/1.jpg", "2,c/1.jpg")
    write(tmp_path, "test.csv", "dir,width,class_id", "a/2.jpg,100,0")
    made = build(tmp_path, ", images=photos")
    assert made.split_names() == ["train", "test"]
    assert made.classes == ["0", "1", "2"]
    assert [(i.path, i.target) for i in made.items("train")] == [
        ("photos/b/1.jpg", 1),
        ("photos/a/1.jpg", 0),
        ("photos/c/1.jpg", 2),
    ]
    assert [(i.path, i.target) for i in made.items("test")] == [("photos/a/2.jpg", 0)]
    write(tmp_path, "classid_classname.csv", "class_id,class_name", "0,ash", "1,birch", "2,cedar")
    assert build(tmp_path).classes == ["ash", "birch", "cedar"]


def test_numbers_are_kept_and_not_renumbered(tmp_path):
    write(tmp_path, "train.csv", "class_id,dir", "0,a.jpg", "3.0,b.jpg", "-1,c.jpg")
    made = build(tmp_path)
    assert made.classes == ["0", "1", "2", "3"]
    assert [i.target for i in made.items("train")] == [0, 3, -1]
    write(tmp_path, "train.csv", "class_id,dir", "99999999,a.jpg")
    with pytest.raises(DataError, match="has the class id 99999999; number classes from 0"):
        _ = build(tmp_path).classes


def test_names_as_labels(tmp_path):
    write(tmp_path, "list.csv", "file,species", *(f"{s}{n}.jpg,{s}" for s in ("oak", "ash") for n in range(5)))
    made = build(tmp_path, ", train=list.csv, val=0.2, test=0.2, path=file, label=species")
    assert made.classes == ["ash", "oak"]
    assert [i.path for i in made.items("test")] == ["ash4.jpg", "oak4.jpg"]
    assert {i.path: i.target for i in made.items("val")} == {"ash3.jpg": 0, "oak3.jpg": 1}
    assert len(made.items("train")) == 6
    write(tmp_path, "val.csv", "file,species", "x.jpg,oak", "y.jpg,oka")
    with pytest.raises(DataError, match=r"val.csv' image 2 has the label 'oka', none of the 2 classes .*; did you mean 'oak'\?"):
        build(tmp_path, ", train=list.csv, path=file, label=species").items("val")


@pytest.mark.parametrize("cells", [("0;2", "1", ""), ('"[0, 2]"', "[1]", "[]")])
def test_several_labels_in_a_cell(tmp_path, cells):
    write(tmp_path, "train.csv", "class_id,dir", *(f"{cell},{n}.jpg" for n, cell in enumerate(cells)))
    made = build(tmp_path, ", multilabel=true")
    assert made.multilabel
    assert [i.target for i in made.items("train")] == [(0, 2), (1,), ()]
    assert made.classes == ["0", "1", "2"]


def test_a_column_for_each_label(tmp_path):
    made = DATASETS.get("csv").fake(tmp_path, label=["cat", "dog", "hen", "cow"], images="photos")
    assert made.multilabel
    assert made.classes == ["cat", "dog", "hen", "cow"]
    image, target = made.split("train")[2]
    assert image.mode == "RGB"
    assert torch.equal(target, torch.tensor([1.0, 0, 1, 0]))
    write(tmp_path, "train.csv", "cat,dog,dir", "0,yes,1.jpg")
    with pytest.raises(DataError, match="image 1 has 'yes' in column 'dog'; 0 or 1 is expected"):
        build(tmp_path, ", label=[cat, dog]").items("train")


def test_trainval_of_its_own(tmp_path):
    write(tmp_path, "train.csv", "class_id,dir", "0,a.jpg")
    write(tmp_path, "val.csv", "class_id,dir", "0,b.jpg")
    assert [i.path for i in build(tmp_path).items("trainval")] == ["a.jpg", "b.jpg"]
    write(tmp_path, "train_val.csv", "class_id,dir", "0,b.jpg", "0,a.jpg")
    assert [i.path for i in build(tmp_path, ", trainval=train_val.csv").items("trainval")] == ["b.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        (["label,dir", "0,a.jpg"], "", "has no column 'class_id'; its first line has: label, dir"),
        (["class_id,dir", "0"], "", "line 2 has 1 of 2 cells; complete or remove it"),
        (["class_id,dir", '"[1, 2]",a.jpg'], "", r"has the label '\[1, 2\]'; write multilabel=true"),
        (["class_id,dir", ",a.jpg"], "", "image 1 has the label ''; complete or remove the line"),
        (["class_id,dir"], "", "has no rows; add lines such as 0,cat/1.jpg"),
        (["class_id,dir", "0,a.jpg"], ", val=other.csv", "other.csv' does not exist"),
    ],
)
def test_mistakes_are_told(tmp_path, lines, settings, message):
    write(tmp_path, "train.csv", *lines)
    made = build(tmp_path, settings)
    with pytest.raises(DataError, match=message):
        made.items("val" if settings else "train")


def test_what_spreadsheets_write(tmp_path):
    (tmp_path / "train.csv").write_bytes("\ufeffclass_id,dir\r\n0,.\\a\\b.jpg\r\n\r\n1,./c.jpg\r\n".encode())
    assert [(i.path, i.target) for i in build(tmp_path).items("train")] == [("a/b.jpg", 0), ("c.jpg", 1)]
    (tmp_path / "train.csv").write_bytes("class_id,dir\n0,fl\u00fcgel.jpg\n".encode("latin-1"))
    with pytest.raises(DataError, match="is no CSV in UTF-8"):
        build(tmp_path).items("train")


def test_shares_are_between_0_and_1(tmp_path):
    with pytest.raises(SpecError, match="test is a CSV file or a share between 0 and 1; got 2"):
        build(tmp_path, ", test=2")
