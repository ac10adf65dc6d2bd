"""Hugging Face sets from local files, without a network."""

import pytest

library = pytest.importorskip("datasets")

from vitrim.core.registry import SpecError  # noqa: E402
from vitrim.datasets.base import DATASETS, DataError  # noqa: E402
from vitrim.datasets.check import check  # noqa: E402


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)


def test_parquet(tmp_path):
    made = DATASETS.get("hf").fake(tmp_path / "set")
    assert made.split_names() == ["train", "val", "trainval", "test"]
    assert made.classes == ["class 0", "class 1", "class 2", "class 3"]
    assert [len(made.items(s)) for s in made.split_names()] == [40, 16, 56, 16]
    image, target = made.split("val")[5]
    assert image.mode == "RGB"
    assert target == 1
    assert check(made).sound


def test_names_lists_and_other_columns(tmp_path):
    from PIL import Image

    pictures = [Image.new("L", (8, 8), n) for n in range(10)]
    features = library.Features({"photo": library.Image(), "tags": library.List(library.Value("string"))})
    tags = [["sun", "sea"] if n % 2 else ["sea"] for n in range(10)]
    library.Dataset.from_dict({"photo": pictures, "tags": tags}, features=features).save_to_disk(str(tmp_path / "set"))
    made = DATASETS.build(f"hf(root='{tmp_path}/set', image=photo, label=tags, multilabel=true, val=0.2, test=none)")
    assert made.classes == ["sea", "sun"]
    assert [i.target for i in made.items("val")] == [(0,), (0, 1)]
    assert len(made.items("train")) == 8
    single = DATASETS.build(f"hf(root='{tmp_path}/set', image=photo, label=tags)")
    with pytest.raises(DataError, match="column 'tags' holds lists; write multilabel=true"):
        single.items("train")
    with pytest.raises(DataError, match="split 'train' has no column 'image'; it has: photo, tags"):
        DATASETS.build(f"hf(root='{tmp_path}/set')").items("train")
    with pytest.raises(DataError, match="column 'tags' does not hold images; image=COLUMN names the one that does"):
        DATASETS.build(f"hf(root='{tmp_path}/set', image=tags, label=tags)").items("train")


def test_what_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="give root=FOLDER for files on this machine, or name=OWNER/NAME for the hub"):
        DATASETS.build("hf")
    with pytest.raises(DataError, match="is no folder; give the folder of the files"):
        DATASETS.build(f"hf(root='{tmp_path}/none')").items("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        DATASETS.build(f"hf(root='{tmp_path}/empty')").items("train")
