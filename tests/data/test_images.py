"""Folders of images, as users have them: mixed, labelled, and broken."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitrim.data.images import load_folder, open_image


def transform(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()


def picture(path: Path, colour: str = "red", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), colour).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.png", "a/2.jpg", "a/3.png", "b/deep/4.png", "c/5.png"):
        picture(tmp_path / name)
    return tmp_path


def test_sub_folders_are_classes(folder: Path) -> None:
    found = load_folder(folder, transform)
    assert found.files == ["a/1.png", "a/2.jpg", "a/3.png", "b/deep/4.png", "c/5.png"]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, 1, 2]
    assert found.classes == ["a", "b", "c"]
    assert found.report() == []


def test_a_limit_takes_every_class_and_does_not_renumber(folder: Path) -> None:
    found = load_folder(folder, transform, 3)
    assert found.files == ["a/1.png", "b/deep/4.png", "c/5.png"]
    (folder / "b/deep/4.png").write_text("broken")
    labels = load_folder(folder, transform).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 0, 2]


def test_one_image_outside_means_no_labels(folder: Path) -> None:
    picture(folder / "0.png")
    assert load_folder(folder, transform).labels is None


@pytest.mark.parametrize(
    ("classes", "labels"),
    [(["x", "C", "b", "A"], [3, 3, 3, 2, 1]), ({"a": 7, "b": 5, "c": 0}, [7, 7, 7, 5, 0]), (["x", "y", "z"], [0, 0, 0, 1, 2])],
)
def test_labels_are_those_of_the_model(folder: Path, classes: list[str], labels: list[int]) -> None:
    found = load_folder(folder, transform, classes=classes).labels
    assert found is not None
    assert found.tolist() == labels


def test_strange_class_names_are_not_guessed(folder: Path) -> None:
    found = load_folder(folder, transform, classes=["x", "y"])
    assert found.labels is None
    assert "sub-folder 'a' is none" in found.report()[-1]


def test_broken_files_are_listed(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[:500])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("left alone")
    found = load_folder(tmp_path, transform)
    assert found.files == ["good.png"]
    reasons = dict(found.skipped)
    assert sorted(reasons) == ["cut.jpg", "empty.png", "text.jpg"]
    assert "damaged" in reasons["cut.jpg"]
    assert "no image" in reasons["text.jpg"]
    assert reasons["empty.png"] == "empty file"
    assert found.report()[-1] == "1 images used, 3 files skipped"


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image files"):
        load_folder(tmp_path, transform)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_folder(tmp_path / "nowhere", transform)
    (tmp_path / "x.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"none of the 1 files .*x\.jpg: no image"):
        load_folder(tmp_path, transform)
    with pytest.raises(ValueError, match="1 or more"):
        load_folder(tmp_path, transform, 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600).save(path)
    else:
        picture(path, "grey", mode)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (12, 8))


def test_transparent_is_white() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(stream, "PNG")
    assert open_image(stream.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_exif_turns_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == (8, 12)


def test_table_with_an_archive(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (6, 6)).save(stream, "PNG")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name in ("p/1.png", "q/2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            tar.addfile(member, io.BytesIO(stream.getvalue()))
    (tmp_path / "labels.csv").write_text("file,label,split\np/1.png,3,test\nq/2.png,1,train\nq/9.png,1,test\n")
    found = load_folder(tmp_path, transform, split="test")
    assert found.files == ["p/1.png"]
    assert found.labels is not None
    assert found.labels.tolist() == [3]
    assert found.skipped == [("q/9.png", "not in images.tar")]
    with pytest.raises(ValueError, match="no split 'val'; it has: test, train"):
        load_folder(tmp_path, transform, split="val")
