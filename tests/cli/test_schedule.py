import csv
import json

import pytest
import torch
from PIL import Image

from vitrim.cli.app import main
from vitrim.cli.schedule import split
from vitrim.core.registry import SCHEDULES, spec
from vitrim.measure.latency import LatencyModel

FAST = ["--batch-size", "8", "--rounds", "1", "--evaluations", "2", "--budgets", "0.8"]
TINY = ["--model", "timm/vit_tiny_patch16_224(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, pretrained=false)"]
ASK = ["--reduce", "tome", "--target", "flops=0.7"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def photos(tmp_path):
    for name in ("0", "1"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.effect_noise((32, 32), 20 + 10 * i).convert("RGB")
            picture.save(tmp_path / "data" / name / f"{i}.png")
    return str(tmp_path / "data")


def test_end_to_end_and_the_schedule_goes_into_bench(photos, out, capsys):
    assert main(["schedule", *TINY, *ASK, *FAST, "--images", photos, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "schedule chosen on 4 images, reported on 12 others" in printed
    assert "random weights" in printed
    text = (out / "schedule.txt").read_text().strip()
    assert f"schedule: {text}" in printed
    assert spec(SCHEDULES.build(text)).startswith("counts(")
    rows = list(csv.DictReader((out / "curve.csv").read_text().splitlines()))
    assert {r["kind"] for r in rows} == {"found", "fixed"}
    assert {r["schedule"].split("(")[0] for r in rows} == {"counts", "keep"}
    found = json.loads((out / "curve.json").read_text())
    assert found["schedule"] == text
    assert found["calibration_images"] == 4
    assert found["predicted"] <= 0.7
    assert (out / "curve.png").stat().st_size > 1000
    bench = ["bench", *TINY, "--images", photos, "--methods", "tome", "--schedule", text, "--limit", "4", "--rounds", "1"]
    assert main([*bench, "--out", str(out / "bench")]) == 0
    assert text in capsys.readouterr().out


def test_asking_again_goes_on_from_what_was_measured(photos, out, monkeypatch):
    calls = []

    def measured(*_, **__):
        calls.append(1)
        return LatencyModel(16, "inside", (0, 16), (0.0, 0.2), (0.01, 0.0, 0.0, 0.0), 0.2, 1.0)

    monkeypatch.setattr("vitrim.measure.budget.measure_latency", measured)
    command = ["schedule", *TINY, *FAST, "--images", photos, "--out", str(out), "--reduce", "topk", "--target", "latency=0.8"]
    for weights, expected in ((0, 1), (0, 1), (1, 2)):
        torch.manual_seed(weights)
        assert main(command) == 0
        assert len(calls) == expected


def test_ctrl_c_before_anything_is_found_keeps_the_measurements(photos, out, capsys, monkeypatch):
    def press(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrim.measure.budget.search", press)
    assert main(["schedule", *TINY, *ASK, *FAST, "--images", photos, "--out", str(out)]) == 130
    assert json.loads((out / "measured.json").read_text())["scores"]
    assert not (out / "schedule.txt").exists()


def test_split_takes_every_class_and_keeps_parts_apart():
    labels = torch.tensor([0] * 30 + [1] * 10)
    chosen, others = split(40, labels, 10)
    assert labels[chosen].tolist().count(1) == 5
    assert sorted(chosen + others) == list(range(40))
    chosen, others = split(40, None, 8)
    assert chosen == [0, 5, 10, 15, 20, 25, 30, 35]
    assert len(split(4000, None, None)[0]) == 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reduce", "tome"], "target"),
        (["--target", "flops=0.6"], "reduce"),
        (["--reduce", "tomee", "--target", "flops=0.6"], "did you mean 'tome'"),
        (["--reduce", "tome", "--target", "speed=0.6"], "unknown target"),
        (["--reduce", "tome", "--target", "flops=1.5"], "lies between 0 and 1"),
        ([*ASK, "--images", "noise"], "what is lost on noise says nothing"),
        ([*ASK, "--images", "/nonexistent"], "does not exist"),
        ([*ASK, *TINY], "give --images DIR"),
        ([*ASK, "--calibrate", "1"], "at least 2"),
        ([*ASK, "--limit", "20", "--calibrate", "20"], "others to report on"),
        ([*ASK, "--limit", "20", "--at", "40"], "at: blocks 0 to 11"),
        ([*ASK, "--budgets", "1.2"], "--budgets are shares"),
        ([*ASK, "--budgets"], "--budgets needs a value"),
        ([*ASK, "--rounds", "0"], "--rounds must be 1"),
        ([*ASK, "--device", "abacus"], "there is none here"),
        (["--reduce", "patchmerger", "--target", "flops=0.6", "--limit", "20"], "made for one number of patches"),
    ],
)
def test_wrong_input_is_told_in_one_line(out, capsys, arguments, message):
    assert main(["schedule", "--out", str(out), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("vitrim: ")
    assert not out.exists()


def test_a_target_out_of_reach_names_the_smallest(photos, out, capsys):
    arguments = [*TINY, *FAST, "--images", photos, "--out", str(out), "--reduce", "tome", "--target", "flops=0.1"]
    assert main(["schedule", *arguments]) == 2
    assert "cannot be reached by tome here: the smallest is 0." in capsys.readouterr().err
