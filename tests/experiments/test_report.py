"""The report holds every number, whatever the runs are like."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from pathlib import Path

import pytest

from tests.experiments.fakeruns import METHODS, score, write_run
from vitrim.experiments.report import Report, gather
from vitrim.experiments.report_data import POINTS, settings_of
from vitrim.experiments.runs import find_runs

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    for seed in SEEDS:
        write_run(root / f"dense-seed{seed}", None, seed=seed, epochs=4)
        weights = str(root / f"dense-seed{seed}" / "model.safetensors")
        for method in ("evit", "atc"):
            for rate in (0.5, 0.1):
                for clca in (False, True):
                    write_run(root / f"{method}{rate}{clca}{seed}", method, rate, clca, seed, epochs=4, weights=weights)
    write_run(root / "dead", "atc", 0.1, seed=3, epochs=4, state="interrupted", weights=weights)
    (root / "broken").mkdir()
    (root / "broken" / "config.yaml").write_text("a: [")
    return root


@pytest.fixture(scope="module")
def report(place: Path) -> Report:
    return Report(gather([place, place / "dead"]), "Leaves <&>")


def test_settings_are_runs_over_seeds(place: Path) -> None:
    found = {setting.name: setting for setting in settings_of(find_runs(place))}
    assert list(found) == [
        "dense", *(f"{m} rate{r}{c}" for m in ("atc", "evit") for c in ("", " clc cla") for r in (0.5, 0.1))
    ]  # fmt: skip
    assert len(found["atc rate0.1"].runs) == 4
    assert len(found["atc rate0.1"].finished) == 3
    value = found["atc rate0.1 clc cla"].value("top1")
    assert value is not None
    scores = [score("atc", 0.1, True, seed) for seed in SEEDS]
    assert value.mean == pytest.approx(statistics.fmean(scores))
    assert value.std == pytest.approx(statistics.stdev(scores))
    curve, low, high = found["atc rate0.1 clc cla"].curves["eval", "top1"]
    assert [x for x, _ in curve] == [1, 2, 3, 4]
    assert (low[-1][1], high[-1][1]) == (min(scores), max(scores))
    steps, _, _ = found["evit rate0.5"].gradients[2]
    assert len(steps) == 80 <= POINTS
    calm, wild = (found[f"evit rate0.5{c}"].gradients[0] for c in (" clc cla", ""))
    assert calm is not None
    assert wild is not None
    assert calm.mean < wild.mean


def test_the_page_holds_every_setting_and_needs_nothing(report: Report) -> None:
    text = report.html()
    for method in ("evit", "atc"):
        for rate in (0.5, 0.1):
            for clca in (False, True):
                mean = statistics.fmean(score(method, rate, clca, seed) for seed in SEEDS)
                assert f"{method} rate{rate}{' clc cla' if clca else ''}</td>" in text
                assert f">{mean:.2f} ± 0.30</td>" in text
    assert text.count("<svg") == 6
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text), "nothing is loaded"
    assert not re.findall(r"url\((?!#)", text)
    assert "Leaves &lt;&amp;&gt;" in text
    assert "2 runs are not finished" in text
    assert "interrupted" in text
    ids = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "figures on one page must not share ids"


def test_tables(report: Report) -> None:
    lines = report.markdown().splitlines()
    assert lines[0].startswith("| setting | seeds | top-1 % | top-5 % | loss | GFLOPs | training images/s |")
    assert len(lines) == 2 + 9
    rows = list(csv.DictReader(io.StringIO(report.settings_csv())))
    atc = next(row for row in rows if row["setting"] == "atc rate0.5")
    scores = [score("atc", 0.5, False, seed) for seed in SEEDS]
    assert float(atc["top-1 %"]) == pytest.approx(statistics.fmean(scores))
    assert float(atc["top-1 % std"]) == pytest.approx(statistics.stdev(scores))
    runs = list(csv.DictReader(io.StringIO(report.runs_csv())))
    assert len(runs) == 3 * 9 + 2
    assert {row["run"] for row in runs} >= {"dead", "broken", "dense-seed0"}
    assert "best top-1 %" not in lines[0], "the best of these runs is their last"


def test_figures_as_files(report: Report, tmp_path: Path) -> None:
    written = report.write_figures(tmp_path)
    assert {p.stem for p in written} == {
        "accuracy-gflops", "accuracy-speed", "training-accuracy", "training-loss", "gradients-gflops", "gradients-steps",
    }  # fmt: skip
    assert all(p.stat().st_size > 5000 for p in written)
    assert "top-1 accuracy (%)" in (tmp_path / "accuracy-gflops.svg").read_text()


def test_runs_with_little_in_them(tmp_path: Path) -> None:
    """A run that has just begun, one without gradients, one without a recipe."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("method: evit\nschedule: keep(rate=0.5)\n")
    assert Report(find_runs(tmp_path)).html()
    run = write_run(tmp_path / "one", "evit", 0.5)
    (run / "gradients.csv").unlink()
    (run / "metrics.jsonl").unlink()
    found = Report(find_runs(tmp_path))
    assert set(found.figures) == {"accuracy-gflops", "accuracy-speed"}
    assert f"{score('evit', 0.5, False, 0):.2f}" in found.markdown()
    with pytest.raises(ValueError, match="no runs"):
        Report([])


def test_speed_of_evaluation_where_all_have_it(tmp_path: Path) -> None:
    for i, method in enumerate(METHODS):
        run = write_run(tmp_path / method, method, 0.5, epochs=1)
        (run / "evaluation.json").write_text(f'{{"images_per_second": {100 + i}}}')
    found = Report(find_runs(tmp_path))
    assert found.speed_label == "images/s"
    assert {s.speed(True).mean for s in found.settings} == {100.0 + i for i in range(6)}  # type: ignore[union-attr]
    write_run(tmp_path / "late", "evit", 0.1, epochs=1)
    assert Report(find_runs(tmp_path)).speed_label == "training images/s"


def test_numbers_that_are_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", epochs=2)
    text = (run / "gradients.csv").read_text()
    (run / "gradients.csv").write_text(text.replace(text.splitlines()[2].split(",")[1], "nan"))
    found = Report(find_runs(tmp_path))
    mean = found.settings[0].gradients[0]
    assert mean is not None
    assert math.isfinite(mean.mean)
