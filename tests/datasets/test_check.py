"""Each thing that can be wrong is found, named and counted; a sound set is called sound."""

import csv
import shutil

import pytest

from vitrim.datasets.base import DATASETS, DataError
from vitrim.datasets.check import FAKE_MARK, check, preflight, require_sound
from vitrim.datasets.decoding import decode_all


@pytest.fixture
def root(tmp_path):
    DATASETS.get("csv").fake(tmp_path, images="photos")
    return tmp_path


def build(root, settings=", images=photos"):
    return DATASETS.build(f"csv(root='{root}'{settings})")


def edit(root, name, change):
    with (root / name).open(newline="") as file:
        header, *rows = csv.reader(file)
    with (root / name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *change(rows)])


def kinds(problems):
    return sorted({p.kind for p in problems})


def one(problems, kind):
    found = [p for p in problems if p.kind == kind]
    assert len(found) == 1, problems
    return found[0]


def test_a_sound_set(root):
    seen = []
    report = check(build(root), progress=lambda done, every: seen.append((done, every)))
    assert report.sound
    assert report.counts == {"train": 40, "val": 16, "trainval": 56, "test": 16}
    assert report.decoded == 72
    assert seen[-1] == (72, 72)
    assert report.text().endswith("nothing wrong")
    assert preflight(build(root), ["train", "val"]) == []


def test_labels_outside_the_classes(root):
    edit(root, "test.csv", lambda rows: [["7", rows[0][1]], ["-1", rows[1][1]], *rows[2:]])
    problem = one(check(build(root), decode=False).problems, "labels")
    assert "test: 2 images have labels outside the 4 classes (0 to 3): labels -1, 7; files photos/a/test00.png" in problem.text
    assert preflight(build(root), ["train", "val"]) == []
    assert kinds(preflight(build(root), ["train", "test"])) == ["labels"]


def test_empty_classes(root):
    edit(root, "train.csv", lambda rows: [["5", rows[0][1]], *[r for r in rows[1:] if r[0] != "1"]])
    problem = one(preflight(build(root), ["train"]), "empty classes")
    assert problem.text.startswith("train: 2 of 6 classes have no images: 1, 4; add images, or number the classes from 0")
    edit(root, "train.csv", lambda rows: [[str(int(r[0]) + 1), r[1]] for r in rows if r[0] != "5"])
    assert "classes have no images: 0" in one(preflight(build(root), ["train"]), "empty classes").text


def test_a_wrong_path_names_the_likely_folder(root):
    problem = one(preflight(build(root, ""), ["train"]), "missing files")
    assert problem.text == (
        "train: 40 of 40 files do not exist: a/train00.png, a/train01.png, a/train02.png, a/train03.png, a/train04.png and 35 "
        "more; they seem to be in 'photos': write images=photos"
    )
    assert len(problem.names) == 40
    edit(root, "val.csv", lambda rows: [[i, f"old/{p}"] for i, p in rows])
    text = one(preflight(build(root), ["train", "val"]), "missing files").text
    assert "val: 16 of 16 files" in text
    assert "they seem to be in 'photos': the list says 'photos/old'; correct its paths" in text


def test_missing_files(root):
    (root / "photos" / "b" / "val02.png").unlink()
    report = check(build(root))
    assert one(report.problems, "missing files").names == ("photos/b/val02.png",)
    assert kinds(report.problems) == ["missing files"], "a missing file is told once, and not as unreadable too"
    assert report.decoded == 71
    assert "expected layout:" in report.text()
    assert "obtained from: your own images" in report.text()


def test_unreadable_and_truncated_images(root):
    whole = (root / "photos" / "a" / "test01.png").read_bytes()
    (root / "photos" / "a" / "test01.png").write_bytes(whole[: len(whole) // 2])
    (root / "photos" / "a" / "test02.png").write_bytes(b"<html>404</html>")
    (root / "photos" / "a" / "test03.png").write_bytes(b"")
    assert preflight(build(root), ["train", "test"]) == []
    problem = one(preflight(build(root), ["train", "test"], decode=True), "unreadable")
    assert problem.names == tuple(f"photos/a/test0{n}.png" for n in (1, 2, 3))
    assert "3 images cannot be decoded" in problem.text
    assert "damaged image" in problem.text
    assert "no image, or a format that Pillow cannot read" in problem.text
    assert "empty file" in problem.text


def test_the_same_picture_twice_in_a_split(root):
    shutil.copy(root / "photos" / "a" / "train00.png", root / "photos" / "a" / "train01.png")
    shutil.copy(root / "photos" / "a" / "train02.png", root / "photos" / "b" / "train02.png")
    problem = one(check(build(root)).problems, "duplicates")
    assert "train: 2 pictures occur more than once (1 with different labels)" in problem.text
    assert "photos/a/train02.png = photos/b/train02.png" in problem.text


def test_the_same_picture_in_two_splits(root):
    from PIL import Image

    # Another format and other metadata, the same pixels.
    Image.open(root / "photos" / "a" / "train00.png").save(root / "photos" / "a" / "test00.png", compress_level=1)
    problem = one(check(build(root)).problems, "leakage")
    assert problem.text.startswith("1 pictures are in both train and test: photos/a/train00.png = photos/a/test00.png")


def test_rows_twice_and_in_two_splits(root):
    edit(root, "train.csv", lambda rows: [*rows, rows[0], ["2", rows[1][1]]])
    edit(root, "test.csv", lambda rows: [*rows, ["0", "a/train03.png"]])
    problems = preflight(build(root), ["train", "test"])
    assert "train: 2 files are listed more than once, 1 of them with different labels: photos/a/train01.png" in (
        one(problems, "duplicates").text
    )
    assert one(problems, "leakage").text.startswith("1 files are in both train and test: photos/a/train03.png")


def test_annotations_that_cannot_be_read(root):
    (root / "val.csv").write_text("id,file\n")
    report = check(build(root))
    assert one(report.problems, "annotations").text.startswith("val: '")
    assert report.counts == {"train": 40, "test": 16}
    (root / "test.csv").write_text("class_id,dir\n")
    assert "empty split" in kinds(check(build(root)).problems)


def test_what_is_missing_of_a_published_set(tmp_path):
    cub = DATASETS.get("cub")
    report = check(cub(root=str(tmp_path / "none")))
    assert "does not exist; give the folder of the set" in one(report.problems, "missing files").text
    assert "expected layout" in report.text()
    cub.fake(tmp_path)
    assert "counts" in kinds(check(cub(root=str(tmp_path)), decode=False).problems), "4 classes are not the published 200"
    (tmp_path / FAKE_MARK).touch()
    assert check(cub(root=str(tmp_path))).sound
    assert preflight(cub(root=str(tmp_path)), ["trainval", "test"]) == []


def test_one_error_lists_everything(root):
    edit(root, "train.csv", lambda rows: [*rows, rows[0]])
    (root / "photos" / "b" / "train02.png").unlink()
    with pytest.raises(DataError, match=r"(?s)has 2 problem\(s\):.*missing files: train: 1 of 41.*duplicates: train: 1 files"):
        require_sound(build(root), ["train", "val"])
    require_sound(build(root), ["test"])


def test_decoding_in_worker_processes(root):
    dataset = build(root)
    items = dataset.items("val")
    alone = decode_all(dataset, items, workers=0)
    assert decode_all(dataset, items, workers=2) == alone
    assert len({result.digest for result in alone}) == 16
