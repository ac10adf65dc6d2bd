import csv
import json
import multiprocessing
import os

import numpy as np
import pytest
import torch

from tests.experiments.tiny import subject
from tests.training.small import recipe
from vitrim.datasets.base import DataError
from vitrim.experiments.evaluate import Settings, evaluate
from vitrim.experiments.processes import Processes
from vitrim.experiments.subject import Changes, dense_twin, of_model, of_run
from vitrim.experiments.tracestore import TraceStore
from vitrim.experiments.tracing import TraceOptions
from vitrim.measure.flops import count_flops
from vitrim.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    values = {"method": "evit", "schedule": "keep(rate=0.5, at=[1, 2])", "cache": "clc(num_clr=1)", "head": "cla", "ema": 0.9}
    train(recipe(**values, epochs=2), out)
    return out


def quick(**options):
    return Settings(**{"batch_size": 8, "workers": 0, "rounds": 0, **options})


def test_the_numbers_are_those_of_the_training(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for ema, name in ((False, "model"), (True, "ema")):
        wanted = [line for line in lines if line["kind"] == "eval" and line["weights"] == name][-1]
        found = evaluate(of_run(run, Changes(ema=ema), CPU), None, quick())
        assert (found["top1"], found["top5"]) == (wanted["top1"], wanted["top5"])
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["weights"] == ("ema" if ema else "final")
    summary = json.loads((run / "summary.json").read_text())
    assert found["parameters"] == summary["parameters"]
    assert found["gflops"] == pytest.approx(summary["gflops"])


def test_what_is_written(run):
    found = evaluate(of_run(run, Changes(), CPU), run, quick(rounds=2))
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert found["images_per_second"] > 0
    low, high = found["images_per_second_quartiles"]
    assert low <= found["images_per_second"] <= high
    assert found["speedup"] > 0
    assert found["dense_images_per_second"] > 0
    assert (found["method"], found["schedule"], found["head"]) == ("evit", "keep(rate=0.5, at=[1, 2])", "cla")
    assert (found["split"], found["limit"], found["skipped"]) == ("val", None, 0)
    assert found["dense_gflops"] > found["gflops"]
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_another_reduction_goes_elsewhere(run):
    same = of_run(run, Changes(method="evit", schedule="keep(rate=0.5, at=[1, 2])"), CPU)
    assert same.folder == run
    other = of_run(run, Changes(method="atc", schedule="keep(rate=0.25, at=[1, 2])"), CPU)
    assert other.folder == run / "evaluations" / "atc-keep-rate-0.25-at-1-2"
    assert (other.what["method"], other.what["schedule"]) == ("atc", "keep(rate=0.25, at=[1, 2])")
    assert (other.what["cache"], other.what["head"]) == ("clc", "cla")
    assert other.model.reduction.method == "atc"
    trained = of_run(run, Changes(), CPU).model.state_dict()
    own = other.model.state_dict()
    assert torch.equal(own["reduction.cache.clr"], trained["reduction.cache.clr"])
    assert other.notes == []
    sit = of_run(run, Changes(method="sit"), CPU)
    assert sit.notes[0].startswith("not trained with this reduction, at initial values: stages.0.")


def test_the_reduction_that_it_was_trained_with_is_found_again(run):
    plain, again = of_run(run, Changes(), CPU), of_run(run, Changes(method="evit"), CPU)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.model(x), again.model(x))


def test_none_leaves_cache_and_head(run):
    s = of_run(run, Changes(method="none"), CPU)
    assert (s.what["method"], s.what["schedule"], s.what["cache"], s.what["head"]) == (None, None, "clc", "cla")


def test_weights_alone(run, tmp_path):
    import shutil

    file = shutil.copy(run / "model.safetensors", tmp_path / "away.safetensors")
    s = of_run(tmp_path / "away.safetensors", Changes(), CPU)
    assert s.folder is None
    assert s.what["weights"] == str(file)
    assert evaluate(s, None, quick())["top1"] == evaluate(of_run(run, Changes(), CPU), None, quick())["top1"]
    with pytest.raises(ValueError, match="give a folder with --out DIR"):
        evaluate(s, None, quick(predictions="csv"))
    (tmp_path / "images" / "val" / "only").mkdir(parents=True)
    (tmp_path / "images" / "train").symlink_to(tmp_path / "images" / "val")
    with pytest.raises(ValueError, match=r"trained on 4 classes, .* has 1; give its own data set with --data"):
        of_run(run, Changes(data=f"folder(root={tmp_path / 'images'})"), CPU)
    assert of_run(run / "ema.safetensors", Changes(), CPU).folder == run / "evaluations" / "ema"


def test_tables(root, tmp_path):
    import pyarrow.parquet as parquet

    s = subject(root, "topk")
    found = evaluate(s, tmp_path, quick(predictions="csv"))
    evaluate(s, tmp_path, quick(predictions="parquet"))
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    items = s.dataset.items("train")
    assert [row["path"] for row in rows] == [item.path for item in items]
    assert [row["target"] for row in rows] == [s.dataset.classes[item.target] for item in items]
    assert 100 * sum(row["correct"] == "True" for row in rows) / len(rows) == pytest.approx(found["top1"])
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(found["loss"], rel=1e-6)
    assert all(row["top5"].split("|")[0] == row["predicted"] for row in rows)
    same = parquet.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert same["path"] == [row["path"] for row in rows]
    assert same["confidence"] == [float(row["confidence"]) for row in rows]
    with (tmp_path / "classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [row["class"] for row in classes] == s.dataset.classes
    assert sum(float(row["top1"]) * int(row["images"]) for row in classes) / len(rows) == pytest.approx(found["top1"], abs=1e-3)


def test_tables_of_several_labels(root, tmp_path):
    s = subject(root, data="coco", split="val")
    found = evaluate(s, tmp_path, quick(predictions="csv"))
    with (tmp_path / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert np.mean([float(row["AP"]) for row in rows]) == pytest.approx(found["mAP"], abs=1e-3)
    with (tmp_path / "predictions.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["target"].split("|") == [s.dataset.classes[i] for i in sorted(s.dataset.items("val")[0].target)]


def test_a_part_is_spread_over_the_split(root, tmp_path):
    s = subject(root)
    evaluate(s, tmp_path, quick(limit=8, batch_size=4, trace=TraceOptions()))
    store = TraceStore(tmp_path)
    assert len(store) == 8
    assert set(store.targets.tolist()) == set(range(len(s.dataset.classes)))


def unreadable(s, tmp_path):
    import shutil

    from vitrim.datasets.base import DATASETS

    place = shutil.copytree(s.dataset.root, tmp_path / "data")
    s.dataset = DATASETS.build(f"folder(root='{place}')")
    (place / s.dataset.items("train")[5].path).write_bytes(b"no image")
    return s


def test_unreadable_files(root, tmp_path):
    s = unreadable(subject(root, "tome"), tmp_path)
    with pytest.raises(DataError, match="leave it out with --skip-unreadable"):
        evaluate(s, None, quick())
    s.skip = True
    found = evaluate(s, tmp_path, quick(trace=TraceOptions()))
    count = len(s.dataset.items("train"))
    assert (found["skipped"], found["images"]) == (1, count - 1)
    store = TraceStore(tmp_path)
    assert store.index.tolist() == [i for i in range(count) if i != 5]
    assert store.targets.tolist() == [s.dataset.items("train")[i].target for i in store.index]


def test_the_dense_twin_shares_the_weights(root):
    s = subject(root, "tome")
    twin = dense_twin(s.model)
    assert not hasattr(twin, "reduction")
    assert twin.head.weight is s.model.head.weight
    assert s.model.reduction.method == "tome"
    x = torch.randn(2, 3, 48, 48)
    assert count_flops(twin, x).flops > count_flops(s.model, x).flops
    assert dense_twin(twin) is None


def test_models_by_name(tmp_path):
    from vitrim.datasets.base import DATASETS

    place = DATASETS.get("folder").fake(tmp_path / "images").root
    name = "timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=8, depth=2, num_classes=4)"
    changes = Changes(data=f"folder(root='{place}')", method="sit", schedule="keep(rate=0.5, at=[1])")
    s = of_model(name, None, changes, CPU)
    assert s.notes == [
        "the weights are random: accuracies mean nothing",
        "the learned part of sit is untrained: accuracies mean nothing",
    ]
    assert evaluate(s, None, quick())["images"] == len(s.dataset.items("val"))
    with pytest.raises(ValueError, match=r"the model has 7 classes, .* has 4, and their names do not tell"):
        of_model(name.replace("num_classes=4", "num_classes=7"), None, changes, CPU)
    with pytest.raises(ValueError, match="--model needs images"):
        of_model(name, None, Changes(), CPU)


def test_classes_by_their_imagenet_names(tmp_path):
    """A folder with some classes of ImageNet is evaluated with the indices of all 1,000."""
    from PIL import Image

    from vitrim.datasets.base import DATASETS

    for name in ("n03888257", "n01440764"):  # parachute 701, tench 0
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "val" / name / "a.png")
    (tmp_path / "train").symlink_to(tmp_path / "val")
    s = of_model(
        "timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=16, depth=1)", None,
        Changes(data=f"folder(root='{tmp_path}')"), CPU,
    )  # fmt: skip
    assert s.labels == [0, 701]
    s.model.head.weight.data.zero_()
    s.model.head.bias.data[701] = 9
    found = evaluate(s, tmp_path / "out", quick(predictions="csv", trace=TraceOptions()))
    assert found["top1"] == 50
    assert TraceStore(tmp_path / "out").targets.tolist() == [0, 701]
    text = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[2]
    assert text.split(",")[2:4] == ["n03888257", "n03888257"]
    assert isinstance(DATASETS.build(f"folder(root='{tmp_path}')").classes, list)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "1 or more"),
        ({"limit": 0}, "1 or more"),
        ({"rounds": -1}, "0 or more"),
    ],
)
def test_wrong_settings(root, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(subject(root), None, quick(**options))


def test_diverged_weights_are_told(root, tmp_path):
    from vitrim.tasks import MetricError

    s = subject(root)
    s.model.head.bias.data[0] = float("nan")
    with pytest.raises(MetricError, match="are NaN"):
        evaluate(s, tmp_path, quick())
    assert not (tmp_path / "evaluation.json").exists()


def test_half_precision(root):
    s = subject(root)
    s.precision = "fp16"
    with pytest.raises(ValueError, match="fp16 needs a GPU; use --precision bf16"):
        evaluate(s, None, quick())
    s.precision = "bf16"
    assert evaluate(s, None, quick())["precision"] == "bf16"


def one_of_two(rank, port, run, out):
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with Processes() as processes:
        assert (processes.rank, processes.world) == (rank, 2)
        values = evaluate(of_run(run, Changes(), CPU), out, SHARED, processes=processes)
    assert bool(values) == (rank == 0)


SHARED = quick(batch_size=4, trace=TraceOptions(shard=4), predictions="csv")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads: the children only evaluate
def test_two_processes_write_the_same_store(run, tmp_path):
    alone = evaluate(of_run(run, Changes(), CPU), tmp_path / "one", SHARED)
    port = 20000 + os.getpid() % 20000
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=one_of_two, args=(rank, port, run, tmp_path / "two")) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert {k: two[k] for k in ("top1", "top5", "loss", "images")} == {k: alone[k] for k in ("top1", "top5", "loss", "images")}
    assert TraceStore(tmp_path / "two").digest == TraceStore(tmp_path / "one").digest
    assert (tmp_path / "two" / "predictions.csv").read_text() == (tmp_path / "one" / "predictions.csv").read_text()
