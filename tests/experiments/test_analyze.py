"""From trace stores to pairs, tables and figures: against direct computation, and whatever the stores are like."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.experiments.faketraces import write_trace
from vitrim.analysis.agreement import compare_pruning
from vitrim.analysis.similarity import compare as compare_features
from vitrim.experiments import analyze_compare, analyze_work
from vitrim.experiments.analyze import Analysis, analyze, write_analysis
from vitrim.experiments.analyze_correlations import ALL, correlation_rows
from vitrim.experiments.analyze_facts import RunFacts, measure_run
from vitrim.experiments.analyze_latex import escape
from vitrim.experiments.analyze_pairs import select_pairs
from vitrim.experiments.analyze_runs import find_traces
from vitrim.experiments.analyze_work import Job, run_jobs
from vitrim.experiments.tracestore import TraceError, TraceStore

METHODS = ("topk", "evit", "tome", "kmedoids", "sit")
RATES = (0.5, 0.25)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_trace(root / "dense", None)
    for method in METHODS:
        for rate in RATES:
            write_trace(root / f"{method}-{rate}", method, rate)
    return root


@pytest.fixture(scope="module")
def found(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Analysis, Path]:
    out = tmp_path_factory.mktemp("out")
    analysis = analyze(find_traces([place]), "method", out, workers=0, resamples=40, examples=2)
    write_analysis(analysis, out, "Leaves <&>")
    return analysis, out


def facts_of(place: Path) -> dict[str, RunFacts]:
    return {run.digest: RunFacts.of(measure_run(str(run.path), None)) for run in find_traces([place])}


def test_what_a_run_does_is_read_from_its_maps(place: Path) -> None:
    kinds = {}
    for method in METHODS:
        facts = RunFacts.of(measure_run(str(place / f"{method}-0.5" / "trace"), None, chunk=7))
        kinds[method] = (facts.prunes, facts.merges, facts.mixed)
        assert [stage.tokens for stage in facts.stages] == [
            18 + (method == "evit"),
            9 + (method == "evit"),
            4 + (method == "evit"),
        ]
        assert facts.stages[0].dropped == (0.5 if method == "topk" else 0)
    assert kinds == {
        "topk": (True, False, False), "evit": (True, False, False), "tome": (False, True, True),
        "kmedoids": (True, True, False), "sit": (False, True, True),
    }  # fmt: skip
    dense = RunFacts.of(measure_run(str(place / "dense"), 5))
    assert (dense.prunes, dense.merges, dense.stages) == (False, False, [])
    assert math.isinf(dense.left)


def test_pairs_differ_in_one_thing(place: Path) -> None:
    runs, facts = find_traces([place]), facts_of(place)
    methods = select_pairs(runs, facts, "method")
    # At each rate five methods with each other, and the dense model with all of them.
    assert len(methods) == 2 * math.comb(5, 2) + 10
    assert {pair.a.schedule == pair.b.schedule or pair.a.dense or pair.b.dense for pair in methods} == {True}
    assert len({pair.group for pair in methods}) == 2
    rates = select_pairs(runs, facts, "rate")
    assert {(pair.a.method, pair.a.rate, pair.b.rate) for pair in rates} == {(m, 0.5, 0.25) for m in METHODS}
    assert sorted(pair.group for pair in rates) == sorted(METHODS)
    for by in ("capacity", "dataset"):
        with pytest.raises(ValueError, match="they can be compared with: --by rate or --by method"):
            select_pairs(runs, facts, by)


def test_capacity_and_data_sets(tmp_path: Path) -> None:
    for dim, size in ((16, "tiny"), (24, "small")):
        write_trace(tmp_path / size, "topk", dim=dim, model=f"timm/vit_{size}_patch16_224", images=20)
    write_trace(tmp_path / "birds", "topk", data="birds", images=24, names="bird")
    runs, facts = find_traces([tmp_path]), facts_of(tmp_path)
    (pair,) = select_pairs(runs, facts, "capacity")
    assert (pair.a.dim, pair.b.dim) == (24, 16)
    (pair,) = select_pairs(runs, facts, "dataset")
    assert {pair.a.data, pair.b.data} == {"folder(root='data/leaves')", "folder(root='data/birds')"}
    analysis = analyze(runs, "dataset", tmp_path / "out", workers=0, examples=0)
    # No image is the same: nothing but maps over all of them.
    assert [bool(analysis.tables[name]) for name in ("features", "pruning", "merging", "maps")] == [False, False, False, True]
    assert analysis.tables["correlations"] == []
    assert len(analysis.runs) == 2
    assert "have no partner" in analysis.notes[0]
    write_analysis(analysis, tmp_path / "out", "data")
    assert not (tmp_path / "out" / "tables" / "pairs_features.csv").exists()


def test_numbers_are_those_of_the_measures(found: tuple[Analysis, Path], place: Path) -> None:
    analysis, _ = found
    a, b = (TraceStore(place / name) for name in ("evit-0.5", "topk-0.5"))
    number = next(
        i for i, p in enumerate(analysis.pairs) if {p.a.path.parent.name, p.b.path.parent.name} == {"evit-0.5", "topk-0.5"}
    )
    if analysis.pairs[number].a.path.parent.name == "topk-0.5":
        a, b = b, a
    rows = {(r["block"], r["measure"]): r for r in analysis.tables["features"] if r["pair"] == number}
    expected = compare_features(a.features(9), b.features(9))
    for name, value in expected.items():
        assert rows[9, name]["value"] == pytest.approx(value, abs=1e-9), name
    rows = {(r["block"], r["measure"]): r for r in analysis.tables["pruning"] if r["pair"] == number}
    for name, values in compare_pruning(a.kept(6), b.kept(6)).items():
        assert rows[6, name]["mean"] == pytest.approx(values.mean())
        assert rows[6, name]["std"] == pytest.approx(values.std())
    assert not any(r["pair"] == number for r in analysis.tables["merging"])
    soft = {r["form"] for r in analysis.tables["merging"] if "sit" in r["a"] + r["b"]}
    assert soft == {"mixed"}
    assert {r["form"] for r in analysis.tables["merging"] if "sit" not in r["a"] + r["b"]} == {"hard"}


def test_the_coarser_clustering_is_the_truth_between_rates(place: Path, tmp_path: Path) -> None:
    analysis = analyze(find_traces([place / "tome-0.5", place / "tome-0.25"]), "rate", tmp_path, workers=0, examples=0)
    values = {r["measure"]: r["mean"] for r in analysis.tables["merging"] if r["block"] == 3}
    # Intervals of one order, 18 nested in 9: what is together in the finer one is together in the coarser one.
    assert values["homogeneity"] == pytest.approx(1)
    assert values["completeness"] < 0.9


def test_correlations(found: tuple[Analysis, Path]) -> None:
    analysis, _ = found
    rows = {(r["group"], r["family"], r["block"], r["measure"]): r for r in analysis.tables["correlations"]}
    own = [r for r in analysis.tables["features"] if (r["block"], r["measure"]) == (11, "cka")]
    row = rows["all pairs", "features", 11, "cka"]
    assert row["n"] == len(own) == 30
    assert row["spearman"] == pytest.approx(spearmanr([r["value"] for r in own], [abs(r["difference"]) for r in own]).statistic)
    # Signed, and from both ends, with one run as A.
    name = next(run.name for run in analysis.runs if run.method == "tome" and run.rate == 0.5)
    turned = [(r, 1 if r["a"] == name else -1) for r in own if name in (r["a"], r["b"])]
    expected = spearmanr([r["value"] for r, _ in turned], [sign * r["difference"] for r, sign in turned]).statistic
    assert rows[name, "features", 11, "cka"]["spearman"] == pytest.approx(expected)
    # The dense model at each rate.
    assert sum(group.startswith("dense, ") for group, *_ in rows) > 0
    for row in rows.values():
        for p in ("spearman", "kendall"):
            if row[f"{p}_p"] is not None:
                assert row[f"{p}_p"] <= row[f"{p}_p_bh"] + 1e-12 <= row[f"{p}_p_holm"] + 2e-12


def test_files(found: tuple[Analysis, Path]) -> None:
    analysis, out = found
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in (
        "runs",
        "runs_stages",
        "runs_depth",
        "pairs_features",
        "pairs_pruning",
        "pairs_merging",
        "pairs_maps",
        "correlations",
    ):
        with (out / "tables" / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        table = parquet.read_table(out / "tables" / f"{name}.parquet")
        assert len(rows) == table.num_rows > 0
        assert list(rows[0]) == table.column_names
    for name in ("similarity-accuracy", "correlations-measures", "matrix-features", "matrix-merging", "depth"):
        assert (out / "figures" / f"{name}.svg").read_text().count("<svg") == 1
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    text = (out / "latex" / "pruning.tex").read_text()
    assert all(word in text for word in ("\\toprule", "\\bottomrule", "\\pm"))
    body = [line for line in text.splitlines() if line.endswith("\\\\") and "cmidrule" not in line]
    assert len({line.count("&") + 2 * line.count("multicolumn{3}") for line in body}) == 1
    assert escape("a_b 50% {x}") == r"a\_b 50\% \{x\}"
    page = (out / "index.html").read_text()
    assert "Leaves &lt;&amp;&gt;" in page
    assert 'src="http' not in page
    start = page.index('id="examples">') + len('id="examples">')
    seen = json.loads(page[start : page.index("</script>", start)])
    assert len(seen["pairs"]) == len(analysis.pairs) == page.count("<tr data-pair=")
    assert {len(p) for p, name in zip(seen["pictures"], seen["runs"], strict=True) if "dense" not in name} == {2}
    assert 'id="pair-0"' in page


def test_finished_pairs_are_kept(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = find_traces([place / "topk-0.5", place / "evit-0.5", place / "tome-0.5"])
    count = []
    real = analyze_work.do

    def stopping(job: Job, folder: Path) -> dict:
        count.append(job.name)
        if len(count) == 5:  # after three runs and one pair
            raise KeyboardInterrupt
        return real(job, folder)

    monkeypatch.setattr(analyze_work, "do", stopping)
    with pytest.raises(KeyboardInterrupt):
        analyze(runs, "method", tmp_path, workers=0, examples=0)
    again = analyze(runs, "method", tmp_path, workers=0, examples=0)
    assert len(again.pairs) == 3
    assert again.before == 1
    count.clear()
    assert analyze(runs, "method", tmp_path, workers=0, examples=0).before == 3
    assert count == []
    monkeypatch.undo()
    # Another number of images is another result.
    assert analyze(runs, "method", tmp_path, images=20, workers=0, examples=0).before == 0


def nap(number: int, folder: str) -> dict:
    time.sleep(0.2)
    with (Path(folder) / f"{number}.txt").open("a") as file:
        file.write("x")
    return {"number": number}


def jobs_of(folder: Path) -> list[Job]:
    return [Job(str(i), nap, {"number": i, "folder": str(folder)}, [i]) for i in range(8)]


def work(folder: Path) -> None:
    run_jobs(jobs_of(folder), folder / "cache", 0)


def test_a_killed_call_goes_on(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=work, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("cache/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    done = len(list(tmp_path.glob("cache/*.json")))
    results, before = run_jobs(jobs_of(tmp_path), tmp_path / "cache", 0)
    assert before == done >= 2
    assert [one["number"] for one in results] == list(range(8))
    # No job whose result was kept was done twice; at most the one that was killed.
    assert sum(len(file.read_text()) - 1 for file in tmp_path.glob("*.txt")) <= 1


def test_a_result_that_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    (job, *_) = jobs_of(tmp_path)
    (tmp_path / f"{job.key}.json").write_text('{"number": ')
    assert run_jobs([job], tmp_path, 0) == ([{"number": 0}], 0)


def test_features_that_are_not_numbers(tmp_path: Path) -> None:
    write_trace(tmp_path / "a", "topk", images=30, broken=3)
    write_trace(tmp_path / "b", "evit", images=30)
    analysis = analyze(find_traces([tmp_path]), "method", tmp_path / "out", workers=0, examples=0)
    assert any("after block 9 are not finite for 3 of 30 images" in note for note in analysis.notes)
    assert {row["block"] for row in analysis.tables["features"]} == {3, 6, 11}


def test_other_patch_grids(tmp_path: Path) -> None:
    write_trace(tmp_path / "a", "topk", images=30, dim=16)
    write_trace(tmp_path / "b", "topk", images=30, dim=24, grid=(4, 4))
    analysis = analyze(find_traces([tmp_path]), "capacity", tmp_path / "out", workers=0, examples=1)
    assert any("different patches (4 x 4 and 6 x 6)" in note for note in analysis.notes)
    assert analysis.tables["features"]
    assert not analysis.tables["pruning"]


def test_only_images_of_both(tmp_path: Path) -> None:
    write_trace(tmp_path / "a", "topk", images=50)
    write_trace(tmp_path / "b", "evit", images=50, limit=30)
    analysis = analyze(find_traces([tmp_path]), "method", tmp_path / "out", workers=0, examples=0)
    assert {row["images"] for row in analysis.tables["pruning"]} == {30}
    a, b = (TraceStore(tmp_path / name) for name in "ab")
    row = next(r for r in analysis.tables["features"] if (r["block"], r["measure"]) == (3, "cka"))
    assert row["value"] == pytest.approx(compare_features(a.features(3, rows=slice(30)), b.features(3))["cka"])


def test_wrong_input(place: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give runs"):
        find_traces([tmp_path / "nothing"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 0")
    with pytest.raises(FileNotFoundError, match=r"holds no trace; record one with: vitrim eval .*run --trace"):
        find_traces([tmp_path / "run"])
    with pytest.raises(ValueError, match=r"one run .* cannot be compared"):
        find_traces([place / "topk-0.5"])
    write_trace(tmp_path / "other", "evit", images=20, names="other")
    with pytest.raises(TraceError, match="hold different images; record one of them again"):
        find_traces([place / "topk-0.5", tmp_path / "other"])
    write_trace(tmp_path / "birds", "evit", images=20, data="birds", names="bird")
    runs = find_traces([place / "topk-0.5", tmp_path / "birds"])
    with pytest.raises(ValueError, match="no two of the 2 runs saw the same images"):
        analyze(runs, "method", tmp_path / "out", workers=0)


def test_seeds_are_compared_one_by_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        for method in ("topk", "evit"):
            write_trace(tmp_path / f"{method}{seed}", method, images=10, seed=seed)
    runs = find_traces([tmp_path])
    pairs = select_pairs(runs, facts_of(tmp_path), "method")
    assert sorted((p.a.seed, p.b.seed) for p in pairs) == [(0, 0), (1, 1)]
    assert len({run.name for run in runs}) == 4


def test_the_image_order_of_a_sample_is_spread(place: Path) -> None:
    facts = measure_run(str(place / "topk-0.5"), 8)
    store = TraceStore(place / "topk-0.5")
    kept = store.kept(3, np.arange(8) * 64 // 8).mean()
    assert facts["stages"][0]["kept"] == pytest.approx(kept)


def test_single_groups_do_not_count_in_the_correction_of_all_pairs() -> None:
    def row(measure: str, p: float) -> dict[str, Any]:
        return {"family": "features", "block": 3, "measure": measure, "spearman": 0.5, "spearman_p": p, "kendall_p": p}

    whole = {"rows": [row("cka", 0.01), row("rsa", 0.03)]}
    single = {"rows": [row("cka", 0.02), row("rsa", 0.5), row("svcca", 0.6)]}
    rows = correlation_rows([ALL, "topk"], [whole, single])
    assert [r["spearman_p_holm"] for r in rows] == pytest.approx([0.02, 0.03, 0.06, 1.0, 1.0])
    assert [r["kendall_p_bh"] for r in rows] == pytest.approx([0.02, 0.03, 0.06, 0.6, 0.6])


def test_features_that_are_too_many_to_hold_are_streamed(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = find_traces([place / "evit-0.5", place / "topk-0.5"])
    held = analyze(runs, "method", tmp_path / "held", examples=0, workers=0, resamples=50).tables["features"]
    monkeypatch.setattr(analyze_compare, "_PREPARED_NUMBERS", 0)

    def refuse(*args: object) -> None:
        raise AssertionError("decomposed whole")

    monkeypatch.setattr(analyze_compare, "_prepared", refuse)
    streamed = analyze(runs, "method", tmp_path / "streamed", examples=0, workers=0, resamples=50).tables["features"]
    assert [row["value"] for row in streamed] == pytest.approx([row["value"] for row in held], abs=1e-9)
    assert held
