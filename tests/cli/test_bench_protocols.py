import csv
import importlib.util
import json
import subprocess
import sys

import pytest

from vitrim.cli.app import main
from vitrim.measure import cells as module

TINY = ["--model", "timm/vit_tiny_patch16_224(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)"]
FAST = ["--batch-sizes", "1", "2", "--runs", "4", "--seconds", "0.01"]
MODELS = ["bench", "throughput", *TINY, *FAST, "--methods", "topk,tome", "--rates", "0.5", "0.25"]
LIBRARIES = ["bench", "clustering", *FAST, "--tokens", "16", "--channels", "8"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_throughput_end_to_end(out, capsys):
    assert main([*MODELS, "--out", str(out)]) == 0
    rows = rows_of(out / "throughput.csv")
    found = [(row["batch_size"], row["method"], row["reduction_ratio"]) for row in rows]
    # The dense model has one row a batch size, though it takes turns with every rate.
    assert found == [
        ("1", "dense", "1.0"), ("1", "topk", "0.5"), ("1", "tome", "0.5"),
        ("2", "dense", "1.0"), ("2", "topk", "0.5"), ("2", "tome", "0.5"),
        ("1", "topk", "0.25"), ("1", "tome", "0.25"), ("2", "topk", "0.25"), ("2", "tome", "0.25"),
    ]  # fmt: skip
    assert all(float(row["throughput"]) > 0 and float(row["ratio"]) > 0 for row in rows)
    assert rows[1]["schedule"] == "keep(rate=0.5, at=[1, 2, 3])"
    assert rows[1]["input_size"] == "32"
    assert "environment" in json.loads((out / "throughput.json").read_text())
    assert all((out / name).stat().st_size > 1000 for name in ("throughput.png", "speedup.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["batch", "keep", "method", "img/s"]
    assert lines[-1].startswith("written:")


def test_throughput_resumes(out, capsys):
    assert main([*MODELS, "--out", str(out)]) == 0
    before = rows_of(out / "throughput.csv")
    capsys.readouterr()
    assert main([*MODELS, "--out", str(out), "--batch-sizes", "1", "2", "3"]) == 0
    assert f"10 of 15 rows are in {out / 'throughput.json'} already" in capsys.readouterr().out
    after = rows_of(out / "throughput.csv")
    assert after[:10] == before
    assert {row["batch_size"] for row in after[10:]} == {"3"}
    # Another protocol is another question.
    assert main([*MODELS, "--out", str(out), "--throw-out", "0.5"]) == 0
    assert len(rows_of(out / "throughput.csv")) == 25


def test_throughput_in_half_precision(out):
    assert main([*MODELS, "--dtype", "bfloat16", "--out", str(out)]) == 0
    assert [row["dtype"] for row in rows_of(out / "throughput.csv")] == ["bfloat16"] * 10


def test_clustering_end_to_end(out, capsys):
    assert main([*LIBRARIES, "--out", str(out)]) == 0
    rows = rows_of(out / "clustering.csv")
    assert {(row["linkage"], row["batch_size"]) for row in rows} == {
        (k, b) for k in ("single", "complete", "average") for b in "12"
    }
    by_name = {row["framework"]: row for row in rows if row["linkage"] == "average" and row["batch_size"] == "2"}
    assert list(by_name) == ["scikit-learn", "scipy", "fastcluster", "cuml", "vitrim"]
    assert all(float(by_name[name]["ratio"]) > 0 for name in ("scikit-learn", "scipy", "vitrim"))
    assert by_name["cuml"]["throughput"] == ""
    assert by_name["cuml"]["note"] == "has single linkage only"
    assert by_name["scipy"]["n_patches"] == "16"
    assert by_name["scipy"]["emb_size"] == "8"
    assert all((out / name).stat().st_size > 1000 for name in ("clustering.png", "clustering-ratio.png"))
    # Told once for each reason, not in every cell.
    assert capsys.readouterr().out.count("has single linkage only") == 1


def test_clustering_without_scikit_learn(out, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a))
    assert main([*LIBRARIES, "--frameworks", "scikit-learn,vitrim", "--linkages", "single", "--out", str(out)]) == 0
    assert "pip install scikit-learn" in capsys.readouterr().out
    rows = rows_of(out / "clustering.csv")
    assert [row["throughput"] != "" for row in rows] == [False, True] * 2
    assert [row["ratio"] for row in rows] == [""] * 4


def test_library_works_without_what_only_the_benchmark_compares():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['sklearn', 'fastcluster', 'cuml'])); "
        "import vitrim.cli.benches, vitrim.cli.bench_throughput, vitrim.cli.bench_clustering"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_measured_exits_1(out, capsys):
    assert main([*LIBRARIES, "--frameworks", "cuml", "--linkages", "average", "--out", str(out)]) == 1
    assert not (out / "clustering.png").exists()


def test_ctrl_c_keeps_what_there_is(out, capsys, monkeypatch):
    def interrupted(calls, *args):
        if len(rows_of(out / "clustering.csv")) if (out / "clustering.csv").exists() else 0:
            raise KeyboardInterrupt
        return original(calls, *args)

    original = module.time_series
    monkeypatch.setattr(module, "time_series", interrupted)
    assert main([*LIBRARIES, "--frameworks", "scipy,vitrim", "--out", str(out)]) == 130
    assert len(rows_of(out / "clustering.csv")) == 2
    assert (out / "clustering.png").exists()
    assert "written:" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["throughput", "clustering"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes"], "--batch-sizes needs a value"),
        (["--batch-sizes", "0"], "--batch-sizes must be 1 or more"),
        (["--rates", "1.5"], "(0, 1]"),
        (["--threads", "0"], "--threads must be 1"),
        (["--throw-out", "1"], "thrown out"),
        (["--runs", "0"], "at least 1 run"),
        (["--seconds", "-1"], "got -1"),
        (["--device", "abacus"], "there is none here"),
        (["--dtype", "int8"], "int8"),
        (["extra"], "extra"),
    ],
)
def test_wrong_input_is_told_in_one_line(out, capsys, verb, arguments, message):
    assert main(["bench", verb, "--out", str(out), *(TINY if verb == "throughput" else []), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["throughput", *TINY, "--methods", "tomee"], "did you mean 'tome'"),
        (["throughput", *TINY, "--at", "40"], "block 40 does not exist"),
        (["clustering", "--frameworks", "sklearn"], "there are: scikit-learn, scipy"),
        (["clustering", "--linkages", "ward"], "there are: single, complete, average"),
        (["clustering", "--channels", "0"], "--channels must be 1"),
        (["clustering", "--tokens", "1", "--linkages", ","], "--linkages names nothing"),
    ],
)
def test_wrong_names(out, capsys, arguments, message):
    assert main(["bench", *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_help_says_what_there_is(capsys):
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("throughput", "clustering", "--schedule"))
    for verb in ("throughput", "clustering"):
        assert main(["bench", verb, "--help"]) == 0
        assert "--throw-out" in capsys.readouterr().out
