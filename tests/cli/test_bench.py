import csv
import json

import pytest
import torch
from PIL import Image

import vitrim
from vitrim.cli import bench as module
from vitrim.cli.app import main
from vitrim.cli.bench import load_images
from vitrim.cli.options import pick_device, split_methods
from vitrim.data.models import load_model

FAST = ["--limit", "10", "--batch-size", "2", "--rounds", "1"]
TINY = ["--model", "timm/vit_tiny_patch16_224(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)", "--random-weights"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def test_embedded_model_end_to_end(out, capsys):
    assert main(["bench", *FAST, "--methods", "topk,tome", "--rates", "0.5", "0.25", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fashion: 10 images, batches of 2")
    assert lines[1].split()[:2] == ["method", "schedule"]
    assert [line.split()[0] for line in lines[2:7]] == ["dense", "topk", "topk", "tome", "tome"]
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [r["schedule"] for r in rows] == ["", *["keep(rate=0.5)", "keep(rate=0.25)"] * 2]
    assert all(r["top1"] for r in rows)
    found = json.loads((out / "results.json").read_text())
    assert found["model"] == "fashion"
    assert found["images"] == 10
    assert "| tome |" in (out / "results.md").read_text()
    assert (out / "plot.png").stat().st_size > 1000


def test_noise_with_random_weights(out, capsys):
    command = [
        "bench",
        *TINY,
        *FAST,
        "--images",
        "noise",
        "--methods",
        "tome",
        "--schedule",
        "r(n=1)",
        "r(n=2)",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    assert "predictions mean nothing" in capsys.readouterr().out
    rows = json.loads((out / "results.json").read_text())
    assert [r["schedule"] for r in rows["rows"]] == ["", "r(n=1)", "r(n=2)"]
    assert rows["rows"][0]["top1"] is None
    assert rows["random_weights"]


def test_locations_follow_the_depth(out, capsys):
    assert main(["bench", *TINY, *FAST, "--images", "noise", "--methods", "topk", "--rates", "0.5", "--out", str(out)]) == 0
    assert "keep(rate=0.5, at=[1, 2, 3])" in capsys.readouterr().out


def test_runs_that_repeat_another_are_left_out(out, capsys):
    assert main(["bench", *FAST, "--methods", "fixed", "--rates", "0.9", "0.5", "0.25", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("left out: fixed under keep(rate=") == 2
    assert len((out / "results.csv").read_text().splitlines()) == 3


def test_folder_with_a_sub_folder_per_class(tmp_path, out, capsys):
    for name in ("0", "1"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / "data" / name / "a.png")
    (tmp_path / "data" / "0" / "broken.png").write_bytes(b"no image")
    command = ["bench", *TINY, *FAST, "--images", str(tmp_path / "data"), "--methods", "topk", "--rates", "0.5"]
    assert main([*command, "--out", str(out), "--strict"]) == 1
    capsys.readouterr()
    assert main([*command, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    assert "2 images" in captured.out
    assert json.loads((out / "results.json").read_text())["rows"][0]["top1"] is not None


def test_all_failures_exit_1_and_are_told(out, capsys, monkeypatch):
    from vitrim.methods.topk import TopK

    def broken(self, t):
        raise RuntimeError("no luck")

    monkeypatch.setattr(TopK, "score", broken)
    assert main(["bench", *FAST, "--methods", "topk", "--rates", "0.5", "--out", str(out)]) == 1
    assert "RuntimeError: no luck" in capsys.readouterr().out
    assert "no luck" in (out / "results.csv").read_text()


def test_ctrl_c_keeps_what_there_is(out, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        rows = original(*args, **kwargs)
        yield next(rows)
        raise KeyboardInterrupt

    original = module.sweep_rows
    monkeypatch.setattr(module, "sweep_rows", interrupted)
    assert main(["bench", *FAST, "--methods", "topk", "--rates", "0.5", "--out", str(out)]) == 130
    assert len((out / "results.csv").read_text().splitlines()) == 2
    assert (out / "plot.png").exists()
    assert "written:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "tomee"], "did you mean 'tome'"),
        (["--methods", "tome(metric=nonsense)"], "tome"),
        (["--methods", "tome(alpha=1"], "a bracket is open"),
        (["--methods", ","], "names no method"),
        (["--methods"], "--methods needs a value"),
        (["--rates"], "--rates needs a value"),
        (["--rates", "many"], "unable to convert"),
        (["--dtype", "int8"], "int8"),
        (["extra"], "extra"),
        (["--at", "3", "3"], "ascending order"),
        (["--rates", "1.5"], "(0, 1]"),
        (["--at", "40"], "block 40 does not exist"),
        (["--schedule", "r(n=2)", "--rates", "0.5"], "leave out --rates"),
        (["--schedule", "r(m=2)"], "r has no setting 'm'"),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--limit", "-1"], "--limit"),
        (["--threads", "0"], "--threads must be 1"),
        (["--device", "abacus"], "there is none here"),
        (["--model", "fashio"], "unknown model"),
        (["--images", "/nonexistent"], "does not exist"),
        ([*TINY], "give --images DIR"),
    ],
)
def test_wrong_input_is_told_in_one_line(out, capsys, arguments, message):
    assert main(["bench", "--out", str(out), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("vitrim: ")
    assert captured.out == ""
    assert not out.exists()


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["bench", *FAST, "--methods", "topk", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_methods_are_split_outside_of_brackets():
    assert split_methods(["tome,topk", "atc(linkage=single, metric=tokens),sit"]) == [
        "tome", "topk", "atc(linkage=single, metric=tokens)", "sit",
    ]  # fmt: skip
    assert split_methods(["all"]) == vitrim.list_methods()
    assert split_methods(["tome", "tome", "all"])[0] == "tome"
    assert len(split_methods(["tome", "all"])) == len(vitrim.list_methods())


def test_embedded_images_are_balanced():
    images, labels, skipped = load_images(load_model("fashion"), None, 20, 64)
    assert skipped == 0
    assert images.shape == (20, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [2] * 10


def test_devices():
    assert pick_device("auto").type in ("cpu", "cuda")
    assert pick_device("cpu") == torch.device("cpu")
