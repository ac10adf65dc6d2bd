"""``vitrim data``: list, check, split, fake, and their exit codes."""

import json
import re

import pytest

from vitrim.cli import app
from vitrim.datasets.base import DATASETS
from vitrim.datasets.check import FAKE_MARK


def vitrim(*arguments):
    return app.main(["data", *map(str, arguments)])


def test_list(capsys):
    assert vitrim("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["name", "classes", "train", "val", "trainval", "test"]
    assert [line.split()[0] for line in lines[1:] if line][:-1] == DATASETS.names()
    cub = next(line for line in lines if line.startswith("cub "))
    assert cub.split()[1:7] == ["200", "4,794", "1,200", "5,994", "5,794", "one"]
    assert vitrim("list", "--json") == 0
    assert [page["name"] for page in json.loads(capsys.readouterr().out)] == DATASETS.names()


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_set_is_explained(capsys, name):
    assert vitrim("list", name) == 0
    out = capsys.readouterr().out
    assert "obtained from: " in out
    assert "layout:\n  " in out
    page = out.split("settings:")[1]
    assert "root=" in page
    assert not re.search(r"\n  \w+=.*\n(?!      \S)", page), "a setting without help"


def test_fake_and_check(capsys, tmp_path):
    assert vitrim("fake", "cub", "--out", tmp_path / "cub") == 0
    assert f"open it with: cub(root='{tmp_path}/cub')" in capsys.readouterr().out
    assert (tmp_path / "cub" / FAKE_MARK).exists()
    assert vitrim("check", "cub", "--root", tmp_path / "cub") == 0
    assert "nothing wrong" in capsys.readouterr().out
    assert vitrim("fake", "cub", "--out", tmp_path / "cub") == 2
    assert "is not empty; give a new folder" in capsys.readouterr().err
    assert vitrim("fake", "csv(multilabel=true, images=photos)", "--out", tmp_path / "own") == 0
    capsys.readouterr()
    assert vitrim("check", "csv(multilabel=true, images=photos)", "--root", tmp_path / "own", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["counts"]["train"] == 40
    assert page["problems"] == []


def test_check_finds_and_says_2(capsys, tmp_path):
    vitrim("fake", "folder", "--out", tmp_path)
    (tmp_path / "val" / "a" / "val00.png").write_bytes(b"x")
    capsys.readouterr()
    assert vitrim("check", "folder", "--root", tmp_path) == 2
    out = capsys.readouterr().out
    assert "unreadable  1 images cannot be decoded" in out
    assert "val/a/val00.png" in out
    assert out.rstrip().endswith("1 problem")
    assert vitrim("check", "folder", "--root", tmp_path, "--no-decode") == 0
    assert vitrim("check", "folder", "--root", tmp_path, "--splits", "train", "test") == 0
    assert vitrim("check", "folder", "--root", tmp_path, "--splits", "dev") == 2
    assert "folder has no split 'dev'; it has: train" in capsys.readouterr().err


def test_a_set_that_is_not_there_says_where_to_get_it(capsys, tmp_path):
    assert vitrim("check", "cub", "--root", tmp_path / "none") == 2
    out = capsys.readouterr().out
    assert "does not exist" in out
    assert "obtained from: https://www.vision.caltech.edu" in out
    assert "images.txt" in out
    assert vitrim("check", "cub") == 2
    assert "cub: give the folder of the set, as in: vitrim data check cub --root DIR" in capsys.readouterr().err
    assert vitrim("check", "cubb", "--root", tmp_path) == 2
    assert "did you mean 'cub'?" in capsys.readouterr().err


def test_split(capsys, tmp_path):
    (tmp_path / "train_val.csv").write_text("class_id,dir\n" + "".join(f"{i},{i}/{n}.jpg\n" for i in (3, 8) for n in range(5)))
    assert vitrim("split", tmp_path / "train_val.csv", "--train-percent", "0.8") == 0
    assert (tmp_path / "val.csv").read_text() == "class_id,dir\n3,3/4.jpg\n8,8/4.jpg\n"
    assert "train.csv: 8 rows of 2 classes" in capsys.readouterr().out
    few = ["--train-percent", "1.0", "--max-images-per-class", "2", "--save-name-train", "train_val_2"]
    assert vitrim("split", tmp_path / "train_val.csv", *few) == 0
    assert "none was written" in capsys.readouterr().out
    assert (tmp_path / "val.csv").read_text() == "class_id,dir\n3,3/4.jpg\n8,8/4.jpg\n"
    assert (tmp_path / "train_val_2.csv").read_text() == "class_id,dir\n3,3/0.jpg\n3,3/1.jpg\n8,8/0.jpg\n8,8/1.jpg\n"
    assert vitrim("split", tmp_path / "train_val.csv", "--train-percent", "0.5") == 2
    assert "exists with other content" in capsys.readouterr().err
