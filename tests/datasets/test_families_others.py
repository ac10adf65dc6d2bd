"""Facts of ImageNet, COCO, NUS-WIDE, VTAB-1k, Fashion-MNIST and the sets in archives."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from tests.datasets.test_families_formats import fake, reopen, write
from vitrim.core.registry import SpecError
from vitrim.data.embedded import fashion
from vitrim.datasets.base import DATASETS, DataError, DataSet
from vitrim.datasets.check import check
from vitrim.datasets.vtab import TASKS

# ---- ImageNet


def flatten(root: Path) -> dict[str, str]:
    """Move the validation images out of their synset folders; the synset of each name."""
    truth = {}
    for file in sorted((root / "val").glob("*/*")):
        truth[file.stem] = file.parent.name
        file.rename(root / "val" / file.name)
    for folder in [f for f in (root / "val").iterdir() if f.is_dir()]:
        folder.rmdir()
    return truth


@pytest.mark.parametrize("kind", ["kaggle", "kit", "val.txt"])
def test_imagenet_reads_flat_validation_images(tmp_path: Path, kind: str) -> None:
    data = fake("imagenet", tmp_path)
    wanted = {Path(item.path).stem: item.target for item in data.items("test")}
    truth = flatten(tmp_path)
    with pytest.raises(DataError, match=r"without class folders; put one of LOC_val_solution.csv"):
        reopen(data).items("test")
    synsets = sorted(set(truth.values()))
    if kind == "kaggle":
        rows = (f"{name},{synset} 1 2 3 4 {synset} 5 6 7 8 " for name, synset in truth.items())
        write(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString", *rows)
    elif kind == "val.txt":
        write(tmp_path / "val.txt", *(f"{name}.JPEG {synsets.index(synset)}" for name, synset in truth.items()))
    else:
        kit = tmp_path / "ILSVRC2012_devkit_t12/data"
        kit.mkdir(parents=True)
        numbers = {synset: len(synsets) - i for i, synset in enumerate(synsets)}  # an order of its own
        table = np.empty((4, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object)])
        for i, synset in enumerate(synsets):
            table[i, 0] = (numbers[synset], synset)
        savemat(kit / "meta.mat", {"synsets": table})
        # One line for each image by its number; the twin's numbers have no gaps from 4 * 21.
        last = max(int(name[-8:]) for name in truth)
        lines = [str(numbers[truth.get(f"ILSVRC2012_val_{i:08d}", synsets[0])]) for i in range(1, last + 1)]
        write(kit / "ILSVRC2012_validation_ground_truth.txt", *lines)
    flat = reopen(data)
    assert {Path(item.path).stem: item.target for item in flat.items("test")} == wanted
    assert flat.missing(flat.items("test")) == []


def test_imagenet_finds_the_kaggle_folders_and_names(tmp_path: Path) -> None:
    fake("imagenet", tmp_path / "ILSVRC/Data/CLS-LOC")
    data = DATASETS.build(f"imagenet(root={str(tmp_path)!r})")
    assert data.items("test")[0].path.startswith("ILSVRC/Data/CLS-LOC/val/n01440764/")
    assert data.classes[0] == "tench, Tinca tinca"
    (tmp_path / "ILSVRC/Data/CLS-LOC/val/n99999999").mkdir()
    with pytest.raises(DataError, match="n99999999' is a class that"):
        reopen(data).items("test")


# ---- multi-label


def test_coco_follows_the_file(tmp_path: Path) -> None:
    data = fake("coco", tmp_path)
    assert data.classes == ["person", "stop sign", "airplane", "brush"]  # order of the file, not of numbers or names
    listed = json.loads((tmp_path / "annotations/instances_val2014.json").read_text())
    names = {image["id"]: image["file_name"] for image in listed["images"]}
    order = list(dict.fromkeys(a["image_id"] for a in listed["annotations"]))
    assert [item.path for item in data.items("test")] == [f"val2014/{names[i]}" for i in order]
    assert len(listed["images"]) == len(order) + 1  # one has no annotation
    assert len(list((tmp_path / "val2014").iterdir())) == len(listed["images"])
    assert len(data.items("val")) == 4
    assert data.items("trainval")[-4:] == data.items("val")


def test_coco_has_a_row_for_each_size(tmp_path: Path) -> None:
    data = fake("coco", tmp_path)
    path = tmp_path / "annotations/instances_val2014.json"
    listed = json.loads(path.read_text())
    first = listed["images"][0]["id"]
    sizes = {1: 32 * 32 - 1, 13: 32 * 32, 5: 96 * 96 - 1, 90: 96 * 96}
    listed["annotations"] = [{"image_id": first, "category_id": c, "area": area} for c, area in sizes.items()]
    path.write_text(json.dumps(listed))
    data = reopen(data)
    assert data.areas("test").tolist() == [[[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]]
    both = data.areas("val").amax(1)
    assert torch.equal(both.float(), torch.stack([target for _, target in data.split("val")]))


def test_nuswide_sorts_its_words(tmp_path: Path) -> None:
    data = fake("nuswide", tmp_path)
    assert data.classes == ["animal", "person", "sky", "water"]
    rows = list(csv.reader((tmp_path / "nus_wid_data.csv").read_text().splitlines()))[1:]
    tests = [row for row in rows if row[2] == "val"]
    assert [item.path for item in data.items("test")] == [row[0] for row in tests]
    for item, row in zip(data.items("test"), tests, strict=True):
        assert {data.classes[i] for i in item.target} == {word.strip(" '[]") for word in row[1].split(",")}


def test_nuswide_takes_the_other_header_and_bare_names(tmp_path: Path) -> None:
    data = fake("nuswide", tmp_path)
    path = tmp_path / "nus_wid_data.csv"
    path.write_text(path.read_text().replace("path,label,split", "filepath,label,split_name").replace("images/", ""))
    other = reopen(data)
    assert other.items("test") == data.items("test")
    path.write_text(path.read_text().replace("\"['sky']\"", "sky", 1))
    with pytest.raises(DataError, match="the label 'sky'"):
        reopen(data).items("test")


# ---- VTAB, Fashion-MNIST, archives


def test_vtab_reads_four_lists_of_a_task(tmp_path: Path) -> None:
    data = fake("vtab", tmp_path, task="oxford_flowers102")
    assert data.task == "oxfordflower"
    assert data.expected == {"classes": 102, "train": 800, "val": 200, "trainval": 1000, "test": 6149}
    home = tmp_path / "vtab-1k/oxford_flowers102"
    lines = [line.rsplit(" ", 1) for line in (home / "train800val200.txt").read_text().splitlines()]
    assert [(i.path, i.target) for i in data.items("trainval")] == [(f"vtab-1k/oxford_flowers102/{p}", int(t)) for p, t in lines]
    inside = type(data)(root=str(home), task="oxfordflower")
    assert inside.missing(inside.items("test")) == []
    with pytest.raises(SpecError, match="task is one of caltech101"):
        DATASETS.build("vtab(root=x, task=mnist)")


def test_vtab_tasks_are_the_nineteen_of_the_paper() -> None:
    assert [classes for _, classes, _ in TASKS.values()] == [
        102,
        100,
        47,
        102,
        37,
        10,
        397,
        2,
        10,
        45,
        5,
        8,
        6,
        6,
        4,
        16,
        16,
        18,
        9,
    ]


def test_fashion_refuses_a_cut_file(tmp_path: Path) -> None:
    data = fake("fashion", tmp_path)
    assert data.items("val") == data.items("trainval")[-10:]
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.decompress(file.read_bytes())[:-1])
    with pytest.raises(DataError, match="no complete IDX file of 3 dimensions"):
        reopen(data).read(data.items("test")[0])


def test_fashion_shots(tmp_path: Path) -> None:
    data = fake("fashion", tmp_path)
    few = reopen(data, shots=2)
    for split in ("train", "trainval"):
        targets = [item.target for item in few.items(split)]
        assert sorted(targets) == [label for label in range(10) for _ in range(2)]
        assert set(few.items(split)) <= set(data.items(split))
    assert few.items("val") == data.items("val")
    assert few.items("test") == data.items("test")
    with pytest.raises(ValueError, match="1 or more"):
        reopen(data, shots=0)


def test_archives_read_from_the_tar_or_unpacked(tmp_path: Path) -> None:
    data = fake("plantvillage", tmp_path)
    before = [data.raw(item) for item in data.items("val")]
    with tarfile.open(tmp_path / "images.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "images.tar").unlink()
    assert [reopen(data).raw(item) for item in data.items("val")] == before
    small = reopen(data, size=32)
    image = small.read(small.items("test")[3])
    assert image.size == (32, 32)
    assert np.abs(np.asarray(image, dtype=float) - np.asarray(data_thumbnail(data, 3), dtype=float)).mean() < 6
    assert data.classes[1] == "pepper bell: healthy"


def data_thumbnail(data: DataSet, index: int) -> Any:
    fresh = reopen(data)
    return fresh.read(fresh.items("test")[index]).reduce(4)


def test_vtab_counts_classes_that_only_test_images_show(tmp_path: Path) -> None:
    data = fake("vtab", tmp_path)
    path = tmp_path / "vtab-1k/caltech101/train800val200.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.endswith(" 3\n")))
    assert reopen(data).classes == ["0", "1", "2", "3"]


def test_the_images_inside_the_package() -> None:
    data = DATASETS.build("embedded")
    assert not check(data).problems
    items = data.items("test")
    assert [sum(item.target == label for item in items) for label in range(10)] == [200] * 10
    image, target = pickle.loads(pickle.dumps(data)).split("test")[7]
    ours = fashion()
    assert np.array_equal(np.asarray(image)[..., 0], ours.pixels[7])
    assert target == int(ours.labels[7])
    assert data.classes == ours.classes
    with pytest.raises(ValueError, match="it has: test"):
        data.items("train")
