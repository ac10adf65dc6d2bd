"""``vitrim draw`` from the outside."""

from __future__ import annotations

import csv
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrim
from vitrim.cli.app import main
from vitrim.cli.sources import Source
from vitrim.data.embedded import fashion
from vitrim.data.models import load_model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    data = fashion(10)
    Image.fromarray(data.pixels[data.labels.tolist().index(8)]).save(tmp_path / "bag.png")
    return tmp_path / "bag.png"


def test_methods_by_stages_with_their_table(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, found = tmp_path / "deep" / "x.svg", tmp_path / "x.csv"
    arguments = ["--methods", "topk", "tome", "none", "--image", str(bag), "--side", "0.5", "--table", str(found)]
    assert main(["draw", "grid", *arguments, "--out", str(out)]) == 0
    text = out.read_text()
    for label in ("topk", "tome", "block 3: 98 tokens", "keep(rate=0.5, at=[3, 6, 9])", "bag.png"):
        assert label in text
    assert "none removes nothing" in capsys.readouterr().err
    table = rows(found)
    assert len(table) == 2 * 3 * 196
    last = [row for row in table if row["method"] == "topk" and row["block"] == "9"]
    assert sum(row["token"] != "-1" for row in last) == 24


@pytest.mark.parametrize(
    ("kind", "options", "panels"),
    [("tokens", ["--method", "evit", "--images", "2"], 8), ("rates", ["--method", "topk", "--rates", "0.9", "0.5"], 3),
     ("soft", ["--strongest", "2", "--rate", "0.5"], 9)],
)  # fmt: skip
def test_kinds(kind: str, options: list[str], panels: int, tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    assert main(["draw", kind, *options, "--side", "0.5", "--dpi", "72", "--out", str(out)]) == 0
    bar = 1 if kind == "soft" else 0
    assert out.read_text().count("<image") == panels + bar


def test_depth_of_a_model_is_the_mean_of_its_blocks(tmp_path: Path) -> None:
    found = tmp_path / "x.csv"
    arguments = [
        "--methods",
        "topk",
        "--images",
        "6",
        "--batch-size",
        "4",
        "--table",
        str(found),
        "--out",
        str(tmp_path / "x.png"),
    ]
    assert main(["draw", "depth", *arguments]) == 0
    depth = np.array([float(row["depth_mean"]) for row in rows(found)])
    # 98 patches leave at block 3, 49 at 6, 25 at 9, and 24 stay.
    assert depth.mean() == pytest.approx((98 * 3 + 49 * 6 + 25 * 9 + 24 * 12) / 196)
    assert {row["images"] for row in rows(found)} == {"6"}


def test_layers_move(bag: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gif"
    arguments = ["--image", str(bag), "--method", "topk", "--side", "0.7", "--dpi", "72", "--seconds", "0.1", "--out", str(out)]
    assert main(["draw", "layers", *arguments]) == 0
    with Image.open(out) as picture:
        assert picture.n_frames == 13
        assert picture.info["duration"] == 100


def test_videos_go_through_ffmpeg(bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last.txt"\nexec cat > "$last"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    out = tmp_path / "x.mp4"
    arguments = ["--image", str(bag), "--method", "topk", "--side", "0.7", "--dpi", "72", "--seconds", "0.1", "--out", str(out)]
    assert main(["draw", "layers", *arguments]) == 0
    width, height = (int(x) for x in (tmp_path / "x.mp4.txt").read_text().split(" -s ")[1].split()[0].split("x"))
    assert (width % 2, height % 2) == (0, 0)
    assert out.stat().st_size == width * height * 3 * (12 * 3 + 9)


def test_a_run_keeps_its_reduction_cache_and_tuning() -> None:
    loaded, data = load_model(), fashion(1)
    vitrim.tune(loaded.model, "ila(dim=4, at=[1])")
    vitrim.reduce(loaded.model, "topk", "keep(rate=0.5, at=[6])", cache="clc(num_clr=1)")
    picture = loaded.unnormalise
    source = Source("run", loaded.model, loaded.transform, picture, "topk", "keep(rate=0.5, at=[6])", "topk", run=True)
    for method, blocks in ((None, [1, 6]), ("evit", [1, 6])):
        with source.reduced(method, None) as (model, engine), torch.no_grad():
            assert model is not loaded.model
            model(data.images)
            assert list(engine.trace) == blocks
            assert engine.cache is not None
    assert np.array_equal(picture(data.images[0])[..., 0], data.pixels[0])


def test_wrong_input(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"text")
    for arguments, message in (
        (["tokkens"], "tokkens"),
        (["tokens", "--out", "x.bmp"], "written as .png, .svg, .pdf"),
        (["tokens", "--out", "x.gif"], "animations are drawn by layers"),
        (["layers", "--out", "x.png"], "layers is an animation"),
        (["tokens", "--table", "x.txt"], ".csv or .parquet"),
        (["tokens", "--image", str(tmp_path / "no.png")], "does not exist"),
        (["tokens", "--image", str(tmp_path / "bad.png")], "no image"),
        (["grid", "--image", str(bag), str(bag)], "grid draws one image"),
        (["tokens", "--method", "tomee"], "did you mean 'tome'"),
        (["tokens", "--rate", "1"], "removes nothing"),
        (["soft", "--method", "tome"], "no soft maps"),
        (["tokens", "--rates", "0.5", "0.7"], "draw rates"),
        (["tokens", "--rate", "0.5", "--schedule", "r(n=3)"], "leave out --rates"),
        (["grid", str(tmp_path / "run")], "does not exist"),
        (["grid", str(tmp_path)], "holds no run"),
        (["depth", "--method", "patchmerger", "--images", "2"], "--measure size"),
        (["tokens", "--side", "0"], "more than 0"),
        (["tokens", "--colours", "rainbowish", "--stages", "0"], "1 or more"),
    ):
        assert main(["draw", *arguments]) == 2, arguments
        told = capsys.readouterr().err
        assert message in told, told
        assert len(told.strip().splitlines()) == 1, told


def test_mp4_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["draw", "layers", "--out", "x.mp4"]) == 2
    assert "install it, or write a .gif" in capsys.readouterr().err
