import csv
import io
import json

import pytest
import torch
from timm.models import VisionTransformer

import vitrim
from vitrim.core.registry import SpecError
from vitrim.measure.sweep import Row, plot, realised_fraction, rows_to_csv, rows_to_json, rows_to_markdown, sweep, sweep_rows

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
FAST = {"batch_size": 4, "rounds": 2, "warmup": 0}
HALF = "keep(rate=0.5, at=[1, 2])"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=3).eval()


def test_dense_comes_first_and_runs_follow_in_order(model):
    rows = sweep(model, IMAGES, LABELS, [("topk", HALF), ("tome", "r(n=2)")], **FAST)
    assert [(r.method, r.schedule) for r in rows] == [("dense", ""), ("topk", HALF), ("tome", "r(n=2)")]
    dense, topk, tome = rows
    assert (dense.flop_speedup, dense.speedup, dense.agreement, dense.tokens) == (1.0, 1.0, 1.0, ())
    assert topk.tokens == (8, 4)
    assert tome.tokens == (14, 12, 10, 8)
    for row in rows:
        assert not row.failed
        assert 0 <= row.top1 <= 1
        assert row.images_per_second > 0
        assert row.latency_ms > 0
        assert row.peak_mb > 0
        assert row.note == ""
    assert topk.flop_speedup == pytest.approx(dense.gflops / topk.gflops)
    assert topk.flop_speedup > 1
    assert topk.realised == pytest.approx((topk.speedup - 1) / (topk.flop_speedup - 1))


def test_model_is_left_alone(model):
    model.train()
    before = model(IMAGES[:1])
    keys = list(model.state_dict())
    list(sweep_rows(model, IMAGES, None, [("topk", HALF)], **FAST))
    assert model.training
    assert not hasattr(model, "reduction")
    assert list(model.state_dict()) == keys
    assert torch.equal(model(IMAGES[:1]), before)


def test_specs_stay_as_they_are_written(model):
    (_, row) = sweep(model, IMAGES, None, [(" tome( metric = keys )", "keep(at=[1],rate=0.5)")], extras=False, **FAST)
    assert (row.method, row.schedule) == ("tome(metric=keys)", "keep(at=[1], rate=0.5)")
    assert row.latency_ms is None
    assert row.peak_mb is None
    assert row.top1 is None
    assert row.agreement is not None


def test_learned_methods_are_marked_untrained_unless_weights_fit(model):
    runs = [("dynamicvit", HALF), ("sit", HALF)]
    rows = sweep(model, IMAGES, None, runs, **FAST)
    assert [r.note for r in rows] == ["", "untrained", "untrained"]
    assert rows[1].params > rows[0].params
    with vitrim.reduced(model, "dynamicvit", HALF) as reduction:
        weights = {k: torch.full_like(v, 0.01) for k, v in reduction.state_dict().items()}
    rows = sweep(model, IMAGES, None, runs, learned=weights, **FAST)
    assert [r.note for r in rows] == ["", "", "untrained"]


def test_untrained_parts_start_the_same_and_leave_the_generator_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = sweep(model, IMAGES, LABELS, [("sit", HALF)], **FAST)[1]
    assert torch.equal(torch.rand(1), expected)
    second = sweep(model, IMAGES, LABELS, [("sit", HALF)], **FAST)[1]
    assert (first.top1, first.agreement) == (second.top1, second.agreement)


def test_a_method_that_fails_costs_its_own_row_only(model, monkeypatch):
    from vitrim.methods.topk import TopK

    def broken(self, t):
        raise RuntimeError("no luck\nmore lines")

    monkeypatch.setattr(TopK, "score", broken)
    rows = sweep(model, IMAGES, None, [("tome", HALF), ("topk", HALF), ("tome", "r(n=1)")], **FAST)
    assert [r.failed for r in rows] == [False, False, True, False]
    assert rows[2].note == "RuntimeError: no luck"


def test_nan_is_reported_by_name(model, monkeypatch):
    from vitrim.methods.topk import TopK

    monkeypatch.setattr(TopK, "value", lambda self, patches: patches * torch.nan)
    rows = sweep(model, IMAGES, None, [("topk", HALF)], **FAST)
    assert rows[1].note == "FloatingPointError: method 'topk' gave NaN logits for 6 of 6 images"


def test_bad_specs_are_refused_before_anything_is_measured(model):
    with pytest.raises(SpecError, match="did you mean 'tome'"):
        sweep(model, IMAGES, None, [("tomee", HALF)])
    with pytest.raises(SpecError, match="unknown schedule"):
        sweep(model, IMAGES, None, [("tome", "hold(rate=0.5)")])
    with pytest.raises(ValueError, match="block 6 does not exist"):
        sweep(model, IMAGES, None, [("tome", "keep(rate=0.5)")])
    with pytest.raises(ValueError, match="no images"):
        sweep(model, IMAGES[:0])
    with vitrim.reduced(model, "tome", HALF), pytest.raises(ValueError, match="reduced already"):
        sweep(model, IMAGES)


def test_ctrl_c_gives_what_there_is(model):
    def press(text):
        if text.startswith("2/"):
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted: 2 of 4 rows"):
        rows = sweep(model, IMAGES, None, [("topk", HALF)] * 3, progress=press, **FAST)
    assert [r.method for r in rows] == ["dense", "topk"]


def test_progress_names_what_is_measured(model):
    said = []
    sweep(model, IMAGES, None, [("topk", HALF)], progress=said.append, **FAST)
    assert said == ["dense: predictions and time", f"1/1 topk  {HALF}"]


def test_realised_fraction():
    assert realised_fraction(1.5, 2.0) == 0.5
    assert realised_fraction(0.5, 2.0) == -0.5
    assert realised_fraction(1.5, 1.01) is None


ROWS = [
    Row("dense", "", (), 4.6, 1.0, 22, 100.0, 1.0, None, 5.0, None, 0.8, 1.0),
    Row("tome", "keep(rate=0.5)", (98, 49, 24), 2.3, 2.0, 22, 150.0, 1.5, 0.5, 4.0, None, 0.79, 0.9),
    Row("tome", "r(n=13)", (183, 170, 157, 144, 131, 118), 2.3, 2.0, 22, 150.0, 1.5, 0.5, 4.0, None, 0.78, 0.9, "a | b"),
    Row("sit", "keep(rate=0.5)", note="RuntimeError: no luck"),
]


def test_csv_is_complete_and_empty_where_there_is_nothing():
    read = list(csv.DictReader(io.StringIO(rows_to_csv(ROWS))))
    assert read[1]["tokens"] == "98 49 24"
    assert float(read[1]["gflops"]) == 2.3
    assert read[0]["realised"] == read[0]["peak_mb"] == read[3]["gflops"] == ""
    assert read[3]["note"] == "RuntimeError: no luck"


def test_json_is_strict_and_says_where_it_was_measured():
    found = json.loads(rows_to_json(ROWS, model="fashion"), parse_constant=pytest.fail)
    assert {"torch", "timm", "vitrim", "threads", "processors"} <= set(found["environment"])
    assert found["model"] == "fashion"
    assert found["rows"][1]["tokens"] == [98, 49, 24]
    assert found["rows"][3]["gflops"] is None


def test_markdown_leaves_out_empty_columns_and_escapes():
    lines = rows_to_markdown(ROWS).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "peak MB" not in lines[0]
    assert "| tome | keep(rate=0.5) | 98 49 24 | 2.30 | 2.00x |" in lines[3]
    assert "183 170 .. 118" in lines[4]
    assert "a \\| b" in lines[4]


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_plot_is_written(tmp_path, name):
    assert plot(ROWS, tmp_path / name, "title").stat().st_size > 1000


def test_plot_without_labels_uses_agreement(tmp_path):
    rows = [
        Row(f"tome(alpha={i})", "r(n=1)", flop_speedup=1, images_per_second=1, speedup=1.0 + i, agreement=0.5) for i in range(9)
    ]
    assert plot(rows, tmp_path / "plot.png").exists()
    with pytest.raises(ValueError, match="no row to plot"):
        plot(ROWS[3:], tmp_path / "plot.png")
