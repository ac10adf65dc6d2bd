import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from tests.experiments.tiny import METHODS, SOFT, subject
from vitrim.experiments.evaluate import Settings, evaluate
from vitrim.experiments.patterns import feature_blocks
from vitrim.experiments.tracestore import TraceError, TraceStore
from vitrim.experiments.tracewriter import TraceWriter, join_columns, narrow
from vitrim.experiments.tracing import TraceOptions

PATCHES, BATCH, SHARD = 36, 5, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def settings(limit=23, overwrite=False, batch=BATCH, **options):
    options = {"shard": SHARD, **options}
    return Settings(batch, limit, 0, 0, TraceOptions(**options), overwrite=overwrite)


def record(subject, out, **options):
    evaluate(subject, out, settings(**options))
    return TraceStore(out)


def batches(subject, store):
    """The same images in the same batches, through the model once more."""
    split = subject.dataset.split(subject.split)
    for start in range(0, len(store), SHARD):
        for first in range(start, min(start + SHARD, len(store)), BATCH):
            rows = slice(first, min(first + BATCH, start + SHARD, len(store)))
            images = torch.stack([subject.transform(split[i][0]) for i in store.index[rows]])
            with torch.inference_mode():
                yield rows, subject.model(images)


@pytest.mark.parametrize("cache", [None, "clc(num_clr=1)"])
@pytest.mark.parametrize("method", METHODS)
def test_the_stored_patterns_are_those_of_the_trace(root, tmp_path, method, cache):
    s = subject(root, method, cache)
    store = record(s, tmp_path, soft=True, features_dtype="float32", blocks="all")
    assert (len(store), store.patches, store.blocks) == (23, PATCHES, [0, 1, 2, 3])
    assert store.stages == list(s.model.reduction.trace)
    assert store.stages
    for rows, logits in batches(s, store):
        trace = s.model.reduction.trace
        assert np.array_equal(store.predictions[rows][:, 0], logits.argmax(1).numpy())
        for stage in store.stages:
            total = trace.patches(stage)
            assert total is not None
            assert np.array_equal(store.assignment(stage, rows), total.assignment().numpy())
            state = s.model.reduction.state_after(stage)
            real = state.valid[:, 1:].sum(1) if state.valid is not None else torch.full((len(logits),), state.n - 1)
            assert np.array_equal(store.tokens(stage, rows), real.numpy())
            if method in SOFT:
                assert np.allclose(store.soft(stage, rows), total.dense().numpy(), atol=1e-3)
            else:
                with pytest.raises(TraceError, match="has no soft maps"):
                    store.soft(stage)


@pytest.mark.parametrize("cache", [None, "clc(num_clr=2)"])
@pytest.mark.parametrize("method", METHODS)
def test_kept_patches_are_tokens_of_their_own(root, tmp_path, method, cache):
    s = subject(root, method, cache)
    store = record(s, tmp_path, features=("mean",), blocks="3")
    for stage in store.stages:
        kept, assignment, source = store.kept(stage), store.assignment(stage), store.source(stage)
        assert kept.shape == (23, PATCHES)
        for image in range(23):
            own = [
                p for p in range(PATCHES) if assignment[image, p] >= 0 and (assignment[image] == assignment[image, p]).sum() == 1
            ]
            if method in ("topk", "ats", "dynamicvit", "fixed"):  # pruning: what is left is itself
                wanted = np.flatnonzero(assignment[image] >= 0).tolist()
            elif method == "kmedoids":  # one medoid in each cluster that has members
                medoids = np.flatnonzero(kept[image])
                assert len(set(assignment[image, medoids].tolist())) == len(medoids)
                assert all(source[image, assignment[image, p]] == p for p in medoids)
                assert cache or len(medoids) == len(set(assignment[image].tolist()) - {-1})
                continue
            elif method in SOFT:
                wanted = []
            else:  # averages and sums: alone in its token; with a cache, the company may be a token of it
                wanted = own
            found = np.flatnonzero(kept[image]).tolist()
            if cache and method in ("tome", "atc", "evit", "dpcknn"):
                assert set(found) <= set(wanted)
            elif method == "evit":  # its fused token with a single member is another token
                assert set(found) <= set(wanted)
                assert len(found) >= len(wanted) - 1
            else:
                assert found == wanted


def test_evit_keeps_all_but_the_fused_token(root, tmp_path):
    store = record(subject(root, "evit"), tmp_path)
    assert (store.kept(1).sum(1) == store.tokens(1) - 1).all()
    # the fused token of the first stage may win at the second, and still is no patch
    assert (store.kept(2).sum(1) <= store.tokens(2) - 1).all()
    assert (store.kept(2) <= store.kept(1)).all()


def test_ragged_shards_of_different_widths(root, tmp_path):
    store = record(subject(root, "ats"), tmp_path)
    tokens = store.tokens(1)
    assert len(set(tokens.tolist())) > 1
    source = store.source(1)
    assert source.dtype == np.int16
    assert ((source >= 0).sum(1) == tokens).all()
    assert (store.kept(1).sum(1) == tokens).all()


def test_features_with_and_without_a_reduction(root, tmp_path):
    for method, cache in ((None, None), ("tome", None), ("topk", "clc(num_clr=1)")):
        s = subject(root, method, cache)
        store = record(s, tmp_path / str(method), features=("cls", "mean"), blocks="0,3", features_dtype="float32")
        seen = {}
        hook = s.model.blocks[3].register_forward_hook(lambda m, a, out, seen=seen: seen.update(x=out))
        for rows, _ in batches(s, store):
            assert np.array_equal(store.features(3, rows=rows), seen["x"][:, 0].numpy())
            size = torch.ones(seen["x"].shape[:2]) if method is None else s.model.reduction.final.size
            mean = (seen["x"][:, 1:] * size[:, 1:, None]).sum(1) / size[:, 1:, None].sum(1)
            assert np.allclose(store.features(3, "mean", rows), mean.numpy(), atol=1e-5)
        hook.remove()
        half = record(s, tmp_path / f"{method}-half", blocks="0,3")
        assert half.features(3).dtype == np.float16
        assert np.allclose(half.features(3), store.features(3), rtol=1e-3, atol=1e-3)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed_while_writing(root, out):
    write, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        write(handle)
        shards = out / "trace" / "shards"
        if list(shards.glob(".0*")) and (shards / "00000.safetensors").exists():
            os.kill(os.getpid(), signal.SIGKILL)  # the second shard is written and has not got its name

    os.fsync = fsync
    evaluate(subject(root, "tome"), out, settings())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads: the child only evaluates
def test_a_killed_trace_goes_on_to_the_same_store(root, tmp_path):
    whole = record(subject(root, "tome"), tmp_path / "whole")
    child = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(root, tmp_path / "part"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    shards = tmp_path / "part" / "trace" / "shards"
    assert (shards / "00000.safetensors").exists()
    assert not (shards / "00001.safetensors").exists()
    assert list(shards.glob(".*"))
    with pytest.raises(TraceError, match="is not complete; the same vitrim eval --trace goes on"):
        TraceStore(tmp_path / "part")
    before = (shards / "00000.safetensors").stat().st_mtime_ns
    part = record(subject(root, "tome"), tmp_path / "part")
    assert (shards / "00000.safetensors").stat().st_mtime_ns == before
    assert part.digest == whole.digest
    assert contents(tmp_path / "part" / "trace") == contents(tmp_path / "whole" / "trace")


def test_a_finished_trace_is_read_not_made_again(root, tmp_path):
    s = subject(root, "topk")
    first = evaluate(s, tmp_path, settings())
    calls = []
    hook = s.model.register_forward_pre_hook(lambda m, a: calls.append(len(a[0])))
    again = evaluate(s, tmp_path, settings())
    hook.remove()
    assert calls == [BATCH, BATCH]  # the FLOPs of the model and of its dense twin
    assert again["evaluated_per_second"] is None
    same = ("top1", "top5", "loss", "images", "trace", "gflops")
    assert {k: again[k] for k in same} == {k: first[k] for k in same}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 22}, "another 'limit'"),
        ({"batch": 4}, r"another 'batch_size' \(5, now 4\)"),
        ({"features_dtype": "float32"}, "another 'features_dtype'"),
        ({"blocks": "1"}, "another 'blocks'"),
        ({"blocks": "4"}, "the model has the blocks 0 to 3; got '4'"),
        ({"blocks": "first"}, "blocks are numbers such as 3,6,9,11, or auto, all, none; got 'first'"),
        ({"features": ("patch",)}, "features are cls and mean; got 'patch'"),
        ({"features_dtype": "int8"}, "features are kept as float16 or float32"),
    ],
)
def test_another_trace_is_refused(root, tmp_path, changes, message):
    record(subject(root, "topk"), tmp_path)
    before = contents(tmp_path / "trace")
    with pytest.raises(ValueError, match=message):
        evaluate(subject(root, "topk"), tmp_path, settings(**changes))
    assert contents(tmp_path / "trace") == before


def test_other_weights_are_refused_and_overwritten_when_asked(root, tmp_path):
    old = record(subject(root, "topk"), tmp_path).digest
    s = subject(root, "topk")
    s.model.head.bias.data += 1
    with pytest.raises(TraceError, match="another 'weights_digest'"):
        evaluate(s, tmp_path, settings())
    assert record(s, tmp_path, overwrite=True).digest != old


def test_rows(root, tmp_path):
    store = record(subject(root, "topk"), tmp_path)
    whole = store.assignment(2)
    for rows in (slice(3, 14), slice(None, None, -3), [22, 0, 11, 11], np.array([4]), -1, slice(5, 5)):
        wanted = whole[rows] if not isinstance(rows, int) else whole[[rows]]
        assert np.array_equal(store.assignment(2, rows), wanted)
    assert np.array_equal(np.concatenate([store.features(3, rows=rows) for rows in store.chunks(7)]), store.features(3))
    with pytest.raises(IndexError, match="the images 0 to 22"):
        store.assignment(2, 23)
    with pytest.raises(TraceError, match="no stage after block 0; it has: 1, 2"):
        store.kept(0)
    with pytest.raises(TraceError, match="no 'mean' features of block 3; it has cls after the blocks: 1, 2, 3"):
        store.features(3, "mean")
    with pytest.raises(TraceError, match="the five best classes"):
        _ = store.scores


def test_what_is_known_about_the_images(root, tmp_path):
    s = subject(root, "topk")
    store = record(s, tmp_path, limit=None)
    items = s.dataset.items("train")
    assert store.paths == [item.path for item in items]
    assert store.targets.tolist() == [item.target for item in items]
    assert store.classes == s.dataset.classes
    for rows, logits in batches(s, store):
        assert np.array_equal(store.predictions[rows], logits.topk(4).indices.numpy())
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(store.targets[rows]), reduction="none")
        assert np.allclose(store.loss[rows], loss.numpy(), atol=1e-6)
        assert np.allclose(store.confidence[rows], logits.softmax(1).max(1).values.numpy(), atol=1e-6)


def test_several_labels(root, tmp_path):
    s = subject(root, "tome", data="coco", split="val")
    values = evaluate(s, tmp_path, settings(limit=None))
    store = TraceStore(tmp_path)
    items = s.dataset.items("val")
    assert store.targets.dtype == bool
    assert [tuple(np.flatnonzero(row)) for row in store.targets] == [tuple(sorted(item.target)) for item in items]
    metric = s.task.metric()
    metric.update(torch.from_numpy(store.scores), torch.from_numpy(store.targets))
    assert {k: values[k] for k in ("mAP", "CF1", "OF1", "loss")} == metric.compute()
    assert np.array_equal(store.predictions, store.scores > 0)
    again = evaluate(s, tmp_path, settings(limit=None))
    assert again["mAP"] == values["mAP"]


def test_around_a_module_stages_stand_for_themselves(root, tmp_path):
    import vitrim

    s = subject(root)
    vitrim.reduce(s.model, "tome(metric=tokens)", "keep(rate=0.6, at=[1, 2])", site="around:mlp")
    store = record(s, tmp_path)
    for rows, _ in batches(s, store):
        for stage in store.stages:
            own = s.model.reduction.trace[stage].map.without_prefix(1).assignment()
            assert np.array_equal(store.assignment(stage, rows), own.numpy())


def test_a_model_without_a_class_token(root, tmp_path):
    from tests.experiments.tiny import model

    s = subject(root)
    s.model = model(class_token=False, global_pool="avg")
    store = record(s, tmp_path)
    assert store.meta["features"] == ["mean"]
    assert store.stages == []
    assert store.features(3).shape == (23, 32)
    with pytest.raises(TraceError, match="dense model; there are no patterns"):
        _ = store.patches
    with pytest.raises(ValueError, match="no class token; record the mean of the patches: --features mean"):
        evaluate(s, tmp_path / "other", settings(features=("cls",)))


def test_numbers_too_large_for_half(root, tmp_path):
    s = subject(root)
    s.model.blocks[3].mlp.fc2.bias.data += 1e5
    with pytest.raises(ValueError, match="too large for float16; use --features-dtype float32"):
        evaluate(s, tmp_path, settings())
    assert np.isfinite(record(s, tmp_path, features_dtype="float32", overwrite=True).features(3)).all()


def test_damage_is_told(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no trace; record one with: vitrim eval RUN --trace"):
        TraceStore(tmp_path)
    store = record(subject(root, "topk"), tmp_path)
    shard = tmp_path / "trace" / "shards" / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    assert store.kept(1, slice(0, 10)).shape == (10, PATCHES)
    with pytest.raises(TraceError, match=r"00001.safetensors' cannot be read .*; remove it and run the same vitrim eval"):
        store.kept(1)
    (tmp_path / "trace" / "store.json").write_text("{")
    with pytest.raises(TraceError, match="is damaged"):
        TraceStore(tmp_path)
    (tmp_path / "strange" / "trace").mkdir(parents=True)
    (tmp_path / "strange" / "trace" / "file").touch()
    with pytest.raises(TraceError, match="is not empty and holds no trace"):
        evaluate(subject(root, "topk"), tmp_path / "strange", settings())


@pytest.mark.parametrize("count", [255, 256, 40_000])
def test_the_smallest_type_that_holds_all(count):
    index = torch.tensor([[-1, 0, count - 1]])
    found = narrow(index, count)
    assert found.dtype.itemsize == {255: 1, 256: 2, 40_000: 4}[count]
    joined = join_columns([{"a": found}, {"a": narrow(torch.tensor([[-1, 3]]), 100)}])["a"]
    signed = np.where(joined == 255, -1, joined.astype(int)) if joined.dtype == np.uint8 else joined
    assert signed.tolist() == [[-1, 0, count - 1], [-1, 3, -1]]


def test_blocks_by_depth():
    assert feature_blocks("auto", 12) == [3, 6, 9, 11]
    assert feature_blocks("auto", 24) == [6, 12, 18, 23]
    assert feature_blocks("11, 3", 12) == [3, 11]
    assert feature_blocks("none", 12) == []


def test_a_full_disk(root, tmp_path, monkeypatch):
    from vitrim.training.checkpoint import WriteError

    replace = type(tmp_path).replace

    def full(self, target):
        if target.suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(type(tmp_path), "replace", full)
    with pytest.raises(WriteError, match="No space left on device; the same command goes on where this one stopped"):
        evaluate(subject(root, "topk"), tmp_path, settings())
    monkeypatch.undo()
    assert not list((tmp_path / "trace" / "shards").iterdir())
    assert len(record(subject(root, "topk"), tmp_path)) == 23


def test_the_writer_knows_its_shards(tmp_path):
    writer = TraceWriter(tmp_path / "trace", {"model": "m"}, [("a", "0")])
    writer.write(0, {"index": np.arange(3, dtype=np.int32)})
    assert writer.has(0)
    assert not writer.has(1)
    assert writer.results(0, ("index", "loss"))["index"].tolist() == [0, 1, 2]
