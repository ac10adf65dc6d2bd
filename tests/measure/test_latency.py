import json
import warnings

import pytest
import torch
from timm.models import VisionTransformer

import vitrim
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.measure import latency as module
from vitrim.measure.latency import LatencyModel, Reading, fit, measure_latency, probe_schedules
from vitrim.measure.stages import path_of

PATCHES, DEPTH = 64, 8
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=DEPTH, num_heads=2, num_classes=3).eval()


class Clock:
    """A clock that only moves when a part of the model runs: known costs instead of a noisy machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo):
        return self

    def charge(self, part, price):
        part.register_forward_hook(lambda _, inputs, output: self.add(price(inputs[0].shape[1])))

    def add(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(model, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    clock.charge(model.patch_embed, lambda _: 40.0)
    for block in model.blocks:
        clock.charge(block.attn, lambda n: 5.0 + 2.0 * n)
        clock.charge(block.mlp, lambda n: 3.0 * n)
    return clock


def seconds(model, clock, run=None):
    before = clock.now
    if run is None:
        model(IMAGES)
        return clock.now - before, None
    with vitrim.reduced(model, *run) as reduction:
        model(IMAGES)
        return clock.now - before, path_of(reduction.plan(PATCHES), PATCHES, DEPTH)


@pytest.mark.parametrize("method", ["topk", "tome", "evit", "kmedoids"])
def test_known_costs_are_found_again(model, clock, method):
    """Topk reduces between attention and MLP, kmedoids before the block, tome by at most half, evit to one more than asked."""
    found = measure_latency(model, method, IMAGES, PATCHES, rounds=1, warmup=0)
    dense, _ = seconds(model, clock)
    assert found.dense_seconds == pytest.approx(dense)
    assert found.rest == pytest.approx(40 / dense)
    assert found.predict([PATCHES] * DEPTH) == pytest.approx(1.0)
    for schedule in (
        "counts([50, 30, 20], at=[1, 3, 6])",
        "keep(rate=0.7, at=[2, 4])",
        "counts([60, 55, 50, 45, 40, 35, 30], at=[1, 2, 3, 4, 5, 6, 7])",
    ):
        whole, path = seconds(model, clock, (method, schedule))
        # Below the smallest count of the probes the curve is flat, hence the tolerance.
        assert found.predict(path) == pytest.approx(whole / dense, rel=0.02)


def test_the_work_of_the_method_counts(model, clock, monkeypatch):
    from vitrim.methods.topk import TopK

    score = TopK.score

    def slow(self, t):
        clock.add(100.0 + 2.0 * (t.x.shape[1] - t.prefix))
        return score(self, t)

    monkeypatch.setattr(TopK, "score", slow)
    found = measure_latency(model, "topk", IMAGES, PATCHES, rounds=1, warmup=0)
    dense, _ = seconds(model, clock)
    assert found.cost(0, 40, 30) - found.block(40) == pytest.approx((100 + 2 * 40 - 3 * 10) / dense, rel=0.05)


def test_the_model_is_left_as_it_was(model):
    before = model(IMAGES)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_latency(model, "tome", IMAGES, PATCHES, rounds=1, progress=seen.append)
    assert torch.equal(model(IMAGES), before)
    assert not hasattr(model, "reduction")
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)
    assert seen[0].endswith("warm-up")
    assert seen[-1].endswith("round 1/1")


def test_real_clock_gives_a_rising_curve(model):
    found = measure_latency(model, "atc", IMAGES, PATCHES, rounds=2)
    assert list(found.blocks) == sorted(found.blocks)
    assert found.counts[-1] == PATCHES
    assert min(found.step) >= 0
    assert found.block(8) <= found.block(64)
    assert LatencyModel.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_noise_is_averaged_and_the_curve_never_falls():
    readings = [Reading(n, n, t, 5) for n, t in ((10, 1.0), (20, 2.2), (30, 1.9), (40, 4.0))]
    found = fit(readings, 40, "inside", 0.0, 1.0)
    assert list(found.blocks) == sorted(found.blocks)
    assert 1.9 <= found.block(20) <= found.block(30) <= 2.2


def test_probes_reach_small_counts_in_small_and_large_steps():
    for method in ("topk", "tome"):
        reducer = METHODS.build(method)
        plans = [reducer.plan(Course(s, 196, 12)) for s in probe_schedules(reducer, 196, 12)]
        assert min(min(plan.values()) for plan in plans) <= 20
        assert all(min(plan) == 0 for plan in plans)
        steps = [a - b for plan in plans for a, b in zip([196, *plan.values()], plan.values(), strict=False)]
        assert min(steps) <= 8
        assert max(steps) >= 60
    # Before a block, block 0 has no attention of a block before.
    assert all(min(s.at) == 1 for s in probe_schedules(METHODS.build("kmedoids"), 196, 12, "before"))


def test_what_cannot_be_measured_is_refused(model):
    with pytest.raises(ValueError, match="rounds"):
        measure_latency(model, "topk", IMAGES, PATCHES, rounds=0)
    with pytest.raises(ValueError, match="three blocks"):
        fit([Reading(10, 5, 1.0)], 10, "inside", 0.0, 1.0)
