"""Facts of single families: orders of labels, splits of the papers, formats with variants, CSV files that win, few-shot."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from vitrim.core.registry import SpecError, spec
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item


def fake(name: str, root: Path, **settings: Any) -> Any:
    return DATASETS.get(name).fake(root, **settings)


def reopen(data: DataSet, **settings: Any) -> Any:
    return type(data)(root=data.root, **settings)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ---- cutting training into train and val, few-shot, CSV files


def test_val_is_the_tail_of_each_class_in_file_order(tmp_path: Path) -> None:
    data = fake("cub", tmp_path)
    for label in range(4):
        whole = [item for item in data.items("trainval") if item.target == label]
        assert [item for item in data.items("train") if item.target == label] == whole[:8]
        assert [item for item in data.items("val") if item.target == label] == whole[8:]


def test_food_trains_on_the_first_fifth(tmp_path: Path) -> None:
    data = fake("food", tmp_path)
    assert (len(data.items("train")), len(data.items("val"))) == (16, 64)
    assert data.expected["train"] * 4 == data.expected["val"]


@pytest.mark.parametrize("shots", [1, 2, 4, 8])
def test_shots_are_the_first_of_each_class(tmp_path: Path, shots: int) -> None:
    data = fake("soygene", tmp_path, shots=shots)
    full = reopen(data)
    first = [i for label in range(4) for i in [i for i in full.items("trainval") if i.target == label][:shots]]
    assert data.items("trainval") == first == data.items("train")
    assert data.items("val") == full.items("val")
    assert data.items("test") == full.items("test")
    assert spec(data) == f"soygene(root={str(tmp_path)!r}, shots={shots})"
    assert "trainval" not in data.expected
    assert full.expected["trainval"] == 12763


def test_shots_never_train_on_val(tmp_path: Path) -> None:
    data = fake("cub", tmp_path, shots=9)  # of 10 images, 2 are val
    assert len(data.items("trainval")) == 36
    assert len(data.items("train")) == 32
    with pytest.raises(SpecError, match="1 or more; got 0"):
        DATASETS.build(f"cub(root={str(tmp_path)!r}, shots=0)")


def test_csv_files_of_the_papers_win(tmp_path: Path) -> None:
    data = fake("cub", tmp_path)
    home = tmp_path / "CUB_200_2011"
    names = [item.path.removeprefix("CUB_200_2011/images/") for item in data.items("trainval")]
    write(home / "train_val.csv", "class_id,dir", *(f"{i % 3},{name}" for i, name in enumerate(names)))
    write(home / "train_val_1.csv", "class_id,dir", f"2,{names[5]}", f"0,{names[6]}", f"1,{names[7]}")
    write(home / "test.csv", "class_id,dir", f"1,{names[0]}")
    for root in (tmp_path, home):
        paper = type(data)(root=str(root))
        assert [item.target for item in paper.items("trainval")] == [i % 3 for i in range(40)]
        assert len(paper.items("train")) == 11 + 10 + 10  # of 14 + 13 + 13
        assert len(paper.items("test")) == 1
        assert len(paper.classes) == 3
        assert paper.read(paper.items("test")[0]).mode == "RGB"
    few = reopen(data, shots=1)
    assert [item.target for item in few.items("trainval")] == [2, 0, 1]
    (home / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test.csv' does not exist, but other CSV files"):
        reopen(data).items("test")


def test_csv_files_give_train_and_val_and_names(tmp_path: Path) -> None:
    data = fake("moe", tmp_path)
    rows = list(csv.DictReader((tmp_path / "val.csv").read_text().splitlines()))
    assert [(item.path, item.target) for item in data.items("val")] == [(f"data/{r['dir']}", int(r["class_id"])) for r in rows]
    assert data.classes == ["000_fake_a", "001_fake_b", "002_fake_c", "003_fake_d"]
    write(tmp_path / "classid_classname.csv", "class_id,class_name", "1,Mio", "0,Rin", "3,Yui", "2,Miku")
    assert reopen(data).classes == ["Rin", "Mio", "Miku", "Yui"]
    write(tmp_path / "val.csv", "class_id,dir", "one,a.png")
    with pytest.raises(DataError, match="class_id 'one'"):
        reopen(data).items("val")


def test_a_line_that_is_no_pair_is_told_by_number(tmp_path: Path) -> None:
    data = fake("cub", tmp_path)
    path = tmp_path / "CUB_200_2011/image_class_labels.txt"
    path.write_text(path.read_text().replace("3 1\n", "3\n", 1))
    with pytest.raises(DataError, match=r"image_class_labels.txt' line 3: 2 fields"):
        reopen(data).items("test")
    path.write_text(path.read_text().replace("\n3\n", "\n"))
    with pytest.raises(DataError, match=r"fit together \(KeyError: '3'\)"):
        reopen(data).items("trainval")


# ---- fine-grained families


def test_nabirds_orders_labels_by_their_numbers(tmp_path: Path) -> None:
    data = fake("nabirds", tmp_path)
    assert data.classes == [f"Fake Duck (Plumage {n})" for n in (299, 446, 817, 1010)]  # by text, 1010 would come first
    label = {Path(item.path).parent.name: item.target for item in data.items("test")}
    assert label == {"0299": 0, "0446": 1, "0817": 2, "1010": 3}
    assert data.parents() == {9: 0, 817: 9, 299: 9, 1010: 9, 446: 9}


def test_aircraft_has_three_levels_in_the_order_of_their_lists(tmp_path: Path) -> None:
    data = fake("aircraft", tmp_path, level="manufacturer")
    assert data.classes == ["Boeing", "Airbus", "Tupolev"]
    assert sum(item.target == 0 for item in data.items("test")) == 8
    assert data.expected == {"classes": 30, "trainval": 6667, "test": 3333}
    assert reopen(data).classes[2] == "A300B4"
    for root in ("fgvc-aircraft-2013b", "fgvc-aircraft-2013b/data"):
        inside = type(data)(root=str(tmp_path / root))
        assert inside.missing(inside.items("test")) == []
    with pytest.raises(SpecError, match="level is one of variant, family, manufacturer"):
        DATASETS.build("aircraft(root=x, level=wing)")


def test_cars_reads_the_devkit_too(tmp_path: Path) -> None:
    names = np.array(["Fake Sedan 2012", "Fake Coupe 2011"], dtype=object)[None]
    (tmp_path / "devkit").mkdir()
    savemat(tmp_path / "devkit/cars_meta.mat", {"class_names": names})
    kinds = [("bbox_x1", object), ("class", object), ("fname", object)]
    for file, labels in (("devkit/cars_train_annos.mat", [2, 1, 2, 1]), ("cars_test_annos_withlabels.mat", [1, 2])):
        table = np.empty((1, len(labels)), dtype=kinds)
        for i, label in enumerate(labels):
            table[0, i] = (1, label, f"{i + 1:05d}.jpg")
        savemat(tmp_path / file, {"annotations": table})
    data = DATASETS.build(f"cars(root={str(tmp_path)!r})")
    assert data.classes == ["Fake Sedan 2012", "Fake Coupe 2011"]
    assert data.items("trainval")[0] == Item("cars_train/00001.jpg", 1)
    assert [item.target for item in data.items("test")] == [0, 1]
    (tmp_path / "devkit/cars_meta.mat").write_bytes(b"no matrix")
    with pytest.raises(DataError, match="no readable MATLAB file"):
        _ = reopen(data).classes


def test_flowers_uses_the_official_val(tmp_path: Path) -> None:
    data = fake("flowers", tmp_path)
    assert [item.path for item in data.items("train")[:5]] == [f"jpg/image_{n:05d}.jpg" for n in (1, 2, 3, 4, 15)]
    assert [item.path for item in data.items("val")[:2]] == ["jpg/image_00005.jpg", "jpg/image_00006.jpg"]
    assert data.items("trainval") == data.items("train") + data.items("val")


def test_vegfru_joins_the_official_parts_and_cuts_anew(tmp_path: Path) -> None:
    data = fake("vegfru", tmp_path)
    assert len(data.items("trainval")) == 4 * 15
    assert len(data.items("train")) == 4 * 12
    assert data.classes[3] == "Persimmon"


def test_inat_reports_on_the_official_val(tmp_path: Path) -> None:
    data = fake("inat17", tmp_path)
    listed = json.loads((tmp_path / "val2017.json").read_text())
    assert [item.path for item in data.items("test")] == [image["file_name"] for image in listed["images"]]
    (tmp_path / "val2017.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"val2017.json' is no complete JSON"):
        reopen(data).items("test")


def test_dafb_trains_on_train_csv_and_has_two_crops(tmp_path: Path) -> None:
    data = fake("dafb", tmp_path, faces=True)
    assert len(data.items("trainval")) == len((tmp_path / "train.csv").read_text().split()) - 1
    assert data.items("test")[0].path.startswith("faces/")
    assert spec(data).endswith("faces=True)")
    assert reopen(data).missing(reopen(data).items("test")) == reopen(data).items("test")  # these are in faces, not in fullMin256


# ---- leaves


@pytest.mark.parametrize(
    ("name", "folder"), [("cotton", "cotton_square_new"), ("soylocal", "soybean200_square"), ("soyglobal", "soybean2000")]
)
def test_names_of_leaves_hold_class_and_split(tmp_path: Path, name: str, folder: str) -> None:
    data = fake(name, tmp_path)
    for split in ("trainval", "test"):
        for item in data.items(split):
            label, _, part = Path(item.path).stem.split("_")
            assert item.target == int(label) - 1
            assert part == ("train" if split == "trainval" else "test")
    # Ten comes after nine: what is first decides on the split and on few-shot subsets.
    assert [Path(item.path).stem for item in data.items("trainval")[8:11]] == ["1_9_train", "1_10_train", "2_1_train"]
    (tmp_path / folder / "notes.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"is not named CLASS_NUMBER_SPLIT.png"):
        reopen(data).items("test")


def test_leaves_with_lists_use_these(tmp_path: Path) -> None:
    write(tmp_path / "COTTON/anno/train.txt", "b.png 2", "a.png 1", "c.png 3")
    write(tmp_path / "COTTON/anno/test.txt", "d.png 3")
    data = DATASETS.build(f"cotton(root={str(tmp_path)!r})")
    assert data.items("trainval") == [
        Item("COTTON/images/b.png", 1),
        Item("COTTON/images/a.png", 0),
        Item("COTTON/images/c.png", 2),
    ]
    assert data.items("test") == [Item("COTTON/images/d.png", 2)]


def test_val_of_soyageing_is_the_last_stage(tmp_path: Path) -> None:
    data = fake("soyageing", tmp_path)
    assert {item.path.split("/")[0] for item in data.items("val")} == {"R6"}
    assert {item.path.split("/")[0] for item in data.items("train")} == {"R1", "R3", "R4", "R5"}
    third = reopen(data, stage="R3")
    assert {item.path.split("/")[0] for split in ("trainval", "test") for item in third.items(split)} == {"R3"}
    assert third.expected == {"classes": 198, "train": 792, "val": 198, "trainval": 990, "test": 990}
    write(tmp_path / "train_val_R3.csv", "class_id,dir", "0,R3/images/1_1.JPG")
    assert reopen(data, stage="R3").items("trainval") == [Item("R3/images/1_1.JPG", 0)]
    assert len(reopen(data).items("trainval")) == 100
    with pytest.raises(SpecError, match="stage is one of R1, R3, R4, R5, R6"):
        DATASETS.build("soyageing(root=x, stage=R2)")
