import itertools
import json

import numpy as np
import pytest
import torch
from timm.models import VisionTransformer

import vitrim
from vitrim.core.registry import METHODS, SCHEDULES, SpecError
from vitrim.core.schedule import Course
from vitrim.measure import search as search_module
from vitrim.measure.allocation import UnreachableError, allocate, smallest
from vitrim.measure.budget import solve
from vitrim.measure.distortion import Judge, distortion_table, divergence
from vitrim.measure.latency import LatencyModel
from vitrim.measure.plan import (
    Plan,
    Point,
    Store,
    Target,
    curve_to_csv,
    curve_to_markdown,
    plan_from_json,
    plan_to_json,
    plot_plans,
)
from vitrim.measure.search import FlopsCosts, Space, search
from vitrim.measure.stages import follow, one_layer, path_of, stage
from vitrim.measure.throughput import Timing

PATCHES, DEPTH = 64, 6
IMAGES = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(0))
QUICK = {"batch_size": 16, "evaluations": 6, "rounds": 1, "budgets": ()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=5).eval()
    with torch.no_grad():
        for block in model.blocks:  # stronger blocks, so that tokens matter
            block.attn.proj.weight.mul_(20)
        model.head.weight.normal_(std=0.5)
    return model


def space_of(model, method="topk", layers=tuple(range(DEPTH))):
    reducer = METHODS.build(method)
    return Space(reducer, FlopsCosts.of(model, PATCHES, 1, "inside"), PATCHES, DEPTH, layers)


# -- the solver -------------------------------------------------------------------------------------------------------


def test_allocation_equals_brute_force():
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        depth, states = random.integers(1, 6), random.integers(1, 5)
        cost, loss = random.random((2, depth, states, states))
        loss -= 0.1  # noise makes some losses negative
        cost[random.random(cost.shape) < 0.3] = np.inf
        cost[:, range(states), range(states)] = random.random((depth, states))
        budget = random.random() * depth
        paths = list(itertools.product(range(states), repeat=depth))
        walks = [list(itertools.pairwise((0, *path))) for path in paths]
        costs = np.array([sum(cost[layer, i, j] for layer, (i, j) in enumerate(walk)) for walk in walks])
        losses = np.array([sum(loss[layer, i, j] for layer, (i, j) in enumerate(walk)) for walk in walks])
        if costs.min() > budget:
            refused += 1
            with pytest.raises(UnreachableError) as caught:
                allocate(cost, loss, budget)
            assert caught.value.smallest == pytest.approx(costs.min())
            continue
        mine = paths.index(tuple(allocate(cost, loss, budget)))
        assert costs[mine] <= budget + 1e-8
        assert losses[mine] == pytest.approx(losses[costs <= budget].min(), abs=1e-8)
    assert 10 < refused < 200


def test_allocation_where_no_price_gives_the_answer():
    """The best path lies above the convex hull: a Lagrange multiplier alone would take (cost 0, loss 10)."""
    cost = np.array([[[0.0, 5.0, 10.0]] * 3])
    loss = np.array([[[10.0, 6.0, 0.0]] * 3])
    assert allocate(cost, loss, 9.0) == [1]
    assert allocate(cost, loss, 10.0) == [2]
    assert allocate(cost, loss, 4.0) == [0]
    assert smallest(cost) == 0


# -- what methods can reach --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "before", "after", "expected"),
    [
        ("topk", 64, 40, (40, 40)),
        ("tome", 64, 40, (40, 40)),
        ("tome", 64, 20, (32, 32)),
        ("evit", 64, 40, (39, 40)),
        ("evit", 64, 1, (1, 2)),
        ("atc", 64, 64, None),
        ("tome", 1, 1, None),
    ],
)
def test_a_stage_names_the_target_and_the_count(method, before, after, expected):
    assert stage(METHODS.build(method), before, after) == expected


@pytest.mark.parametrize("method", ["topk", "tome", "evit", "atc", "kmedoids"])
def test_targets_lead_where_the_plan_says(method):
    reducer = METHODS.build(method)
    wanted = [64, 50, 50, 20, 9, 3]
    targets = follow(reducer, wanted, range(6), 64)
    from vitrim.core.schedule import Counts

    path = path_of(reducer.plan(Course(Counts(list(targets.values()), list(targets)), 64, 6)), 64, 6)
    assert path[:3] == (64, 50, 50)
    assert path[3] == (25 if method == "tome" else 20)
    assert list(path) == sorted(path, reverse=True)
    assert one_layer(METHODS.build("tome"), 2, 10, 64, 6) == {2: 32, 3: 16, 4: 10}


def test_flops_are_those_of_the_closed_form(model):
    from vitrim.measure.flops import closed_form

    space = space_of(model, "tome")
    text, path = space.realise([64, 50, 40, 30, 20, 12])
    with vitrim.reduced(model, "tome", text) as reduction:
        assert space.share(path) == pytest.approx(closed_form(model).macs / closed_form(model, [(65, 65)] * DEPTH).macs)
        assert path == path_of(reduction.plan(PATCHES), PATCHES, DEPTH)


def test_counts_are_scaled_to_the_budget(model):
    for method in ("topk", "tome", "evit"):
        space = space_of(model, method)
        for budget in (0.9, 0.6, 0.45):
            text, path = space.fit([64, 48, 48, 32, 32, 20], budget)
            assert budget - 0.03 < space.share(path) <= budget
            assert text.startswith("counts([")
    assert space_of(model).fit([64] * 6, 0.5) is None
    assert space_of(model).fit([64] * 5 + [32], 0.5) is None  # the last block alone cannot save so much


# -- what is lost ------------------------------------------------------------------------------------------------------


def test_divergence():
    logits = torch.randn(4, 5)
    assert divergence(logits, logits).abs().max() < 1e-6
    even = torch.zeros(1, 2)
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert divergence(even, torch.tensor([[np.log(3.0), 0.0]]).float()).item() == pytest.approx(expected, abs=1e-6)


def test_judge_runs_a_schedule_once_and_gives_up_on_bad_ones(model, monkeypatch):
    judge = Judge(model, METHODS.build("topk"), IMAGES, torch.arange(80) % 5, batch_size=16)
    mild, harsh = "counts([60], at=[3])", "counts([1], at=[0])"
    good = judge.score(mild)
    assert len(good.losses) == 80
    assert 0 < good.loss < judge.score(harsh).loss
    assert 0 <= good.top1 <= 1
    fresh = Judge(model, METHODS.build("topk"), IMAGES, None, batch_size=16)
    assert fresh.score(harsh, beat=fresh.score(mild)) is None
    monkeypatch.setattr("vitrim.measure.distortion.predict", None)  # a forward pass would fail from here on
    assert judge.score(mild).loss == pytest.approx(good.loss, abs=1e-5)
    assert fresh.score(harsh, beat=good) is None


def test_distortion_rises_as_tokens_go(model):
    judge = Judge(model, METHODS.build("tome"), IMAGES[:16], batch_size=16)
    table = distortion_table(judge, [64, 40, 20, 6], [1, 5], PATCHES, DEPTH)
    assert table.shape == (DEPTH, 4)
    assert not table[[0, 2, 3, 4]].any()
    assert (np.diff(table[1]) >= 0).all()
    assert table[1, 0] == 0
    assert table[1, -1] > 0
    # After the last attention no token reaches the class token any more.
    assert table[5].max() < 1e-6


# -- the search --------------------------------------------------------------------------------------------------------


def test_search_improves_on_its_start_within_the_budget(model):
    space = space_of(model)
    judge = Judge(model, space.method, IMAGES, batch_size=40)
    start = [20] * 3 + [18] * 3
    first = search(space, judge, 0.6, [start], 0)
    found = search(space, judge, 0.6, [start], 25)
    assert found.score.loss < first.score.loss
    assert space.share(found.path) <= 0.6
    assert not found.interrupted


def test_ctrl_c_keeps_the_best_so_far(model, monkeypatch):
    space = space_of(model)
    judge = Judge(model, space.method, IMAGES[:16], batch_size=16)

    def press(*_):
        raise KeyboardInterrupt

    found = search(space, judge, 0.6, [[40] * 6], 5, progress=press)
    assert found.interrupted
    assert space.share(found.path) <= 0.6
    monkeypatch.setattr(search_module, "_better", press)
    with pytest.raises(KeyboardInterrupt):  # nothing to keep yet
        search(space, judge, 0.6, [[40] * 6], 5)


@pytest.mark.parametrize("method", ["topk", "tome", "evit"])
def test_solve_meets_a_flops_target_with_a_spec_that_round_trips(model, method):
    plan = solve(model, method, "flops=0.6", IMAGES[:32], report=IMAGES[32:], **QUICK)
    assert 0.55 < plan.predicted <= 0.6
    assert vitrim.spec(plan.schedule) == plan.schedule
    with vitrim.reduced(model, method, plan.schedule) as reduction:
        assert tuple(dict.fromkeys(reduction.plan(PATCHES).values())) == plan.tokens
    assert plan.calibration_images == 32
    assert plan.report_images == 48
    assert {p.kind for p in plan.curve} == {"found", "fixed"}
    assert not hasattr(model, "reduction")


@pytest.mark.parametrize(("busy", "corrected"), [(False, True), (True, False)])
def test_latency_is_verified_and_corrected_once(model, monkeypatch, busy, corrected):
    """The clock says 10 % more than the model; the second time it does not, when only another program was in the way."""
    linear = LatencyModel(PATCHES, "inside", (0, PATCHES), (0.0, 0.9 / DEPTH), (0.01, 0.0, 0.0, 0.0), 0.1, 1.0)
    space = Space(METHODS.build("topk"), linear, PATCHES, DEPTH, tuple(range(DEPTH)))
    asked = []

    def times(question, schedules, factor=1):
        asked.append(list(schedules))
        off = 1.0 if busy and len(asked) > 1 else 1.1
        paths = [path_of(space.method.plan(Course(SCHEDULES.build(s), PATCHES, DEPTH)), PATCHES, DEPTH) for s in schedules]
        ratios = [1 / (off * space.share(path)) for path in paths]
        return [Timing((1.0,), (ratio,)) for ratio in ratios]

    monkeypatch.setattr("vitrim.measure.budget._times", times)
    monkeypatch.setattr("vitrim.measure.budget.measure_latency", lambda *_, **__: linear)
    plan = solve(model, "topk", "latency=0.6", IMAGES[:16], **QUICK)
    first, (same, second) = asked[0][0], asked[1]
    assert first == same
    assert plan.schedule == (second if corrected else first)
    assert plan.measured == pytest.approx(0.6, rel=0.04)
    assert plan.predicted == pytest.approx(plan.measured)


def test_what_was_measured_is_used_again(model, tmp_path, monkeypatch):
    file = tmp_path / "out" / "measured.json"
    first = solve(model, "topk", "flops=0.6", IMAGES[:16], store=file, **QUICK)
    runs = []
    score = Judge.score

    def counted(self, schedule, *args, **kwargs):
        if schedule not in self.known and f"{schedule} on 16" not in self.known:
            runs.append(schedule)
        return score(self, schedule, *args, **kwargs)

    monkeypatch.setattr(Judge, "score", counted)
    again = solve(model, "topk", "flops=0.6", IMAGES[:16], store=file, **QUICK)
    assert runs == []
    assert again.schedule == first.schedule
    solve(model, "topk", "flops=0.6", IMAGES[16:32], store=file, **QUICK)
    assert len(runs) > 10
    file.write_text("{ cut off")
    assert Store(file, {}).scores == {}


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("topk", "speed=0.6", "unknown target 'speed=0.6'; write latency=0.6"),
        ("topk", "flops", "lies between 0 and 1"),
        ("topk", "flops=1.0", "lies between 0 and 1"),
        ("topk", "latency=0", "lies between 0 and 1"),
        ("topk", "flops=nan", "lies between 0 and 1"),
        ("topk", "flops=0.01", "cannot be reached by topk here: the smallest is 0."),
        ("sit", "flops=0.6", "made for one number of patches"),
        ("dynamicvit", "flops=0.6", "belong to the blocks of one schedule"),
        ("fixed", "flops=0.6", "keeps a pattern"),
    ],
)
def test_what_cannot_be_answered_is_refused(model, method, target, message):
    with pytest.raises((ValueError, SpecError)) as caught:
        solve(model, method, target, IMAGES[:4], **QUICK)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_refusals(model):
    with pytest.raises(ValueError, match="say nothing"):
        solve(model, "topk", "flops=0.6", IMAGES[:1], **QUICK)
    with pytest.raises(ValueError, match="blocks 0 to 5"):
        solve(model, "topk", "flops=0.6", IMAGES[:4], at=[9], **QUICK)
    with pytest.raises(ValueError, match="blocks 1 to 5"):
        solve(model, "kmedoids", "flops=0.6", IMAGES[:4], at=[0], **QUICK)


def test_only_the_named_blocks_reduce(model):
    plan = solve(model, "topk", "flops=0.7", IMAGES[:16], at=[2, 4], **QUICK)
    with vitrim.reduced(model, "topk", plan.schedule) as reduction:
        assert set(reduction.plan(PATCHES)) <= {2, 4}


# -- the answer --------------------------------------------------------------------------------------------------------


def plan_with(*points):
    return Plan("topk", Target("latency", 0.6), "counts([9], at=[1])", (9,), 0.6, 0.6, points, None, 8, 8)


def point(kind, latency, agreement):
    return Point(kind, f"counts([9], at=[{int(100 * latency)}])", (9,), latency, latency, latency, 0.5, 0.1, agreement)


def test_gains_are_at_equal_measured_cost():
    found = [point("found", 0.6, 0.95), point("found", 0.9, 0.97), point("found", 0.3, 0.5), point("found", 0.4, 0.9)]
    plan = plan_with(*found, point("fixed", 0.5, 0.80), point("fixed", 0.7, 0.90))
    gains = [gain for _, gain in plan.gains()]
    assert gains[0] == pytest.approx(0.95 - 0.85)
    assert gains[1] == pytest.approx(0.97 - (0.90 + 0.10 * 2 / 3))
    assert gains[2] is None
    assert gains[3] == pytest.approx(0.9 - 0.8)


def test_tables_and_picture(tmp_path):
    plan = plan_with(point("found", 0.6, 0.95), point("fixed", 0.5, 0.80))
    assert curve_to_csv(plan).splitlines()[0].startswith("kind,schedule,tokens,budget")
    assert json.loads(plan_to_json(plan, model="m"))["target"] == "latency=0.6"
    assert plan_from_json(plan_to_json(plan, model="m")) == plan
    lines = curve_to_markdown(plan).splitlines()
    assert "| found |" in lines[2]
    assert lines[2].endswith("| +11.0 |")
    assert plot_plans([plan, plan], tmp_path / "p.png", "title").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["evit", "atc"])
def test_it_beats_the_fixed_schedule_on_the_embedded_model(method):
    """At equal FLOPs, on images that it was not chosen on; docs/schedule.md has the measured times.

    Without ToMe: with so few images its gain is smaller than its error, and it came out 0.5 points behind here.
    """
    from vitrim.data.embedded import fashion, rotation
    from vitrim.data.models import load_model

    data = fashion()
    order = rotation(data.labels.tolist())
    plan = solve(
        load_model("fashion").model, method, "flops=0.55", data.images[order[:128]], report=data.images[order[500:900]],
        budgets=(), evaluations=10, rounds=1,
    )  # fmt: skip
    ((_, gain),) = plan.gains()
    assert gain is not None
    assert gain > 0
