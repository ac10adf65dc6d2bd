"""Tar shards as streams: each image once, whatever the number of processes and workers, and the same order again."""

import io
import json
import tarfile

import pytest
from torch.utils.data import DataLoader

from vitrim.datasets._shards import expand, split_name
from vitrim.datasets.base import DATASETS, DataError
from vitrim.datasets.check import check


@pytest.fixture
def made(tmp_path):
    return DATASETS.get("wds").fake(tmp_path)


def keys(stream):
    return [key for _, key, _ in stream._mixed()]


def test_items_and_stream_agree(made):
    assert made.split_names() == ["train", "val", "trainval", "test"]
    assert made.lengths("train") == [20, 20]
    items, stream = made.items("train"), made.split("train")
    assert len(stream) == len(items) == 40
    assert [target for _, target in stream] == [i.target for i in items] == stream.targets
    assert next(iter(stream))[0].tobytes() == made.read(items[0]).tobytes()
    assert check(made).sound


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_without_overlap(made, world):
    seen, sizes = [], []
    for rank in range(world):
        stream = made.split("train")
        stream.process = (rank, world)
        found = keys(stream)
        assert len(stream) == len(found)
        seen += found
        sizes.append(len(found))
    assert sorted(seen) == sorted(keys(made.split("train")))
    for rank in range(world):
        stream = made.split("train")
        stream.shuffle, stream.process = True, (rank, world)
        assert len(stream) == 40 // world, "training steps must be equally many on every process"


def test_workers_take_whole_batches(made):
    stream = made.split("train")
    stream.batch, stream.process = 6, (0, 1)
    loader = DataLoader(stream, batch_size=6, num_workers=2, collate_fn=lambda rows: [target for _, target in rows])
    batches = list(loader)
    assert len(batches) == len(loader) == 7
    assert sorted(len(b) for b in batches) == [4, 6, 6, 6, 6, 6, 6]
    assert sorted(target for batch in batches for target in batch) == sorted(stream.targets)


def test_order_depends_on_seed_and_epoch_alone(made):
    def order(seed, epoch):
        stream = made.split("train")
        stream.shuffle, stream.seed, stream.buffer = True, seed, 8
        stream.set_epoch(epoch)
        return keys(stream)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s, e in ((0, 0), (0, 1), (1, 0), (2, 5))}) == 4
    assert sorted(order(0, 1)) == sorted(order(3, 4))


def rewrite(path, change):
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_unreadable_images_stop_or_are_counted(made, tmp_path):
    rewrite(tmp_path / "train-0000.tar", lambda ms: [(n, d[:90] if i in (4, 38) else d) for i, (n, d) in enumerate(ms)])
    with pytest.raises(DataError, match=r"wds: '.*train-0000.tar#train0004': damaged image"):
        list(made.split("train"))
    stream = made.split("train")
    stream.skip_unreadable = True
    targets = [target for _, target in stream]
    assert len(targets) == 40
    assert stream.unreadable == 2
    # The third sample is damaged: the fourth, of class 2, stands in for it too.
    assert targets[:5] == [0, 2, 2, 2, 0]


def test_lengths_are_counted_without_an_info_file(made, tmp_path):
    (tmp_path / "_info.json").unlink()
    again = DATASETS.build(f"wds(root='{tmp_path}')")
    assert again.split_names() == ["train", "val", "trainval", "test"]
    assert again.lengths("train") == [20, 20]
    (tmp_path / "classes.txt").unlink()
    assert DATASETS.build(f"wds(root='{tmp_path}')").classes == ["0", "1", "2", "3"]


def test_wrong_lengths_and_cut_shards_are_told(made, tmp_path):
    info = json.loads((tmp_path / "_info.json").read_text())
    info["splits"]["train"]["shard_lengths"] = [20, 21]
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"train-0001.tar' has 20 samples, 21 were announced; correct _info.json"):
        list(DATASETS.build(f"wds(root='{tmp_path}')").split("train"))
    shard = tmp_path / "val-0000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    fresh = DATASETS.build(f"wds(root='{tmp_path}')")
    with pytest.raises(
        DataError,
        match=r"wds: (shard '.*val-0000.tar' (is cut off|cannot be read to its end)|'val-0000.tar#val0004' has no label .cls)",
    ):
        fresh.items("val")
    with pytest.raises(DataError, match=r"val-0000.tar"):
        list(fresh.split("val"))


def test_labels_in_json(tmp_path):
    made = DATASETS.get("wds").fake(tmp_path, label="json.tags", multilabel=True)
    assert [i.target for i in made.items("val")][:3] == [(0,), (2,), (0,)]
    assert made.split("val").dataset.multilabel
    assert next(iter(made.split("val")))[1].tolist() == [1.0, 0, 0, 0]
    with pytest.raises(DataError, match=r"wds: 'val-0000.tar#val0000' has no label .cls; label= says how its member ends"):
        DATASETS.build(f"wds(root='{tmp_path}')").items("val")


def test_addresses():
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{0..1}/{0..1}.tar") == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]
    assert split_name("n01/x.y.jpg") == ("n01/x", "y.jpg")
    far = DATASETS.build("wds(root='pipe:cat /nowhere', urls='train-*.tar')")
    with pytest.raises(DataError, match=r"cannot be listed; write urls=train-\{0000..0146\}.tar"):
        far.shards("train")


def test_streams_from_other_places(made, tmp_path):
    pytest.importorskip("webdataset")
    far = DATASETS.build(f"wds(root='file://{tmp_path}', num_classes=4)")
    assert not far.local
    assert far.lengths("val") == [8, 8]
    assert [t for _, t in far.split("val")] == made.split("val").targets
