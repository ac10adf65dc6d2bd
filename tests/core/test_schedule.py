"""Schedules: golden counts and refusals."""

from __future__ import annotations

import pytest
import torch
from timm.models import VisionTransformer

import vitrim
from vitrim import SpecError
from vitrim.core.registry import SCHEDULES
from vitrim.core.schedule import START, Course, R


@pytest.mark.parametrize(
    ("n", "inflect", "depth", "expected"),
    [
        (16, -1, 12, "32 29 26 23 20 17 14 11 8 5 2 0"),
        (13, -1, 12, "26 23 21 18 16 14 11 9 7 4 2 0"),
        (8, -1, 24, "16 15 14 13 13 12 11 11 10 9 9 8 7 6 6 5 4 4 3 2 2 1 0 0"),
        (16, 1, 12, "0 2 5 8 11 14 17 20 23 26 29 32"),
        (16, -0.5, 12, "24 22 21 19 18 16 15 13 12 10 9 8"),
        (8, 0, 4, "8 8 8 8"),
        (5, -1, 1, "10"),
        ([4, 2], 0, 4, "4 2 0 0"),
        ([4, 2, 1], 0, 2, "4 2"),
    ],
)
def test_removals_of_r(n: int | list[int], inflect: float, depth: int, expected: str) -> None:
    assert R(n, inflect).removals(depth) == [int(v) for v in expected.split()]


def test_targets_of_r_are_what_is_left() -> None:
    assert SCHEDULES.build("r(n=8)").targets(196, 3) == {0: 188, 1: 180, 2: 172}
    assert SCHEDULES.build("r(16, inflect=1)").targets(196, 12)[1] == 194
    assert 0 not in SCHEDULES.build("r(16, inflect=1)").targets(196, 12), "a block that removes nothing is no stage"
    assert SCHEDULES.build("r(n=0)").targets(196, 12) == {}
    assert SCHEDULES.build("r([3, 0, 2])").targets(10, 4) == {0: 7, 2: 5}
    assert SCHEDULES.build("r(n=100)").targets(196, 3)[2] == -104, "nominal: methods clip"


def test_targets_of_keep() -> None:
    assert SCHEDULES.build("keep(rate=0.25)").targets(196, 12) == {3: 49, 6: 12, 9: 3}
    assert SCHEDULES.build("keep(0.5, at=[1, 2])").targets(36, 4) == {1: 18, 2: 9}
    assert SCHEDULES.build("keep(rate=[0.7, 0.5], at=[0, 3])").targets(196, 4) == {0: 137, 3: 98}
    assert SCHEDULES.build("keep(rate=1.0, at=[2])").targets(196, 4) == {2: 196}


def test_targets_of_counts() -> None:
    assert SCHEDULES.build("counts(tokens=[100, 50], at=[2, 5])").targets(196, 12) == {2: 100, 5: 50}


def test_targets_of_share() -> None:
    """Rounded up, of what reaches each location."""
    assert SCHEDULES.build("share(rate=0.5)").targets(37, 12) == {3: 19, 6: 10, 9: 5}
    assert SCHEDULES.build("share(rate=0.1)").targets(785, 12) == {3: 79, 6: 8, 9: 1}
    assert SCHEDULES.build("share(rate=[0.7, 0.5], at=[0, 3])").targets(196, 4) == {0: 138, 3: 69}
    assert SCHEDULES.build("share(rate=1.0, at=[2])").targets(196, 4) == {2: 196}
    assert SCHEDULES.build("share(rate=0.01)").targets(10, 12) == {3: 1, 6: 1, 9: 1}, "one stays"


def course(text: str, joins: dict[int, int] | None = None, left: int = 0, patches: int = 36) -> list[tuple[int, int, int, int]]:
    """``(block, target, tokens that reach it, reference)`` for a method that leaves ``target + left`` tokens."""
    found: list[tuple[int, int, int, int]] = []
    on_the_way = Course(SCHEDULES.build(text), patches, 12, joins)
    for block, target in on_the_way:
        found.append((block, target, on_the_way.left, on_the_way.reference))
        on_the_way.left = target + left
    return found


def test_course_of_a_schedule_that_knows_its_counts() -> None:
    assert course("keep(rate=0.5)") == [(3, 18, 36, 36), (6, 9, 18, 18), (9, 4, 9, 9)]
    # Tokens that join reach the next locations; targets do not move.
    joins = {START: 1, 3: 6, 6: 6, 9: 6, 10: 2}
    assert course("keep(rate=0.5)", joins) == [(3, 18, 37, 36), (6, 9, 24, 18), (9, 4, 15, 9)]


def test_course_of_a_share() -> None:
    assert course("share(rate=0.5)") == [(3, 18, 36, 36), (6, 9, 18, 18), (9, 5, 9, 9)]
    joins = {START: 1, 3: 6, 6: 6, 9: 6, 10: 2}
    assert course("share(rate=0.5)", joins) == [(3, 19, 37, 37), (6, 13, 25, 25), (9, 10, 19, 19)]  # Top-K's lengths less one
    assert course("share(rate=0.5)", joins, left=1) == [(3, 19, 37, 37), (6, 13, 26, 26), (9, 10, 20, 20)]  # with a fused token


def test_joins_at_the_edges() -> None:
    """What joins after a block counts from the next one on, also after block 0 and between neighbours."""
    assert course("share(rate=0.5, at=[0, 1])", {0: 4, 1: 100}) == [(0, 18, 36, 36), (1, 11, 22, 22)]
    assert course("counts(tokens=[20, 10], at=[1, 11])", {START: 2, 1: 3, 5: 4}) == [(1, 20, 38, 36), (11, 10, 27, 20)]


def test_the_least() -> None:
    def least(text: str, target: int, fewest: int = 0) -> int:
        return Course(SCHEDULES.build(text), 36, 12, fewest=fewest).at_least(target)

    assert least("keep(rate=0.02)", 0) == 1
    assert least("keep(rate=0.02, least=0)", 0) == 0
    assert least("keep(rate=0.02, least=0)", 0, fewest=1) == 1
    assert least("keep(rate=0.02, least=5)", 2) == 5
    assert least("keep(rate=0.02, least=5)", 7) == 7
    assert least("share(rate=0.02)", 0) == 1
    assert least("r(n=8)", -20) == 1
    assert least("counts(tokens=[0], at=[3])", 0) == 0


@pytest.mark.parametrize("method", ["kmedoids", "dpcknn", "sinkhorn"])
def test_methods_that_cluster_leave_one_token(method: str) -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=3).eval()
    reduction = vitrim.reduce(model, method, "counts(tokens=[2, 0], at=[1, 2])")
    assert reduction.plan(16) == {1: 2, 2: 1}
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share(rate=0)", r"rate is the share that stays, in \(0, 1\]; got 0"),
        ("share(rate=[0.5, 0.3])", "rate lists 2 shares for 3 locations; give one for each"),
        ("share(at=[6, 3])", "ascending order"),
        ("share(least=0)", "share has no setting 'least'; it has: rate, at"),
        ("keep(least=-1)", "least is a number of tokens, 0 or more; got -1"),
        ("keep(least=0.5)", "least is a number of tokens, 0 or more; got 0.5"),
        ("keep(rate=0.0)", r"rate is the share that stays, in \(0, 1\]; got 0.0"),
        ("keep(rate=1.5)", r"rate is the share that stays, in \(0, 1\]; got 1.5"),
        ("keep(rate=[0.5, 0.3])", "rate lists 2 shares for 3 locations; give one for each"),
        ("keep(at=[])", "at must list different blocks in ascending order, counted from 0"),
        ("keep(at=[3, 3])", "at must list different blocks"),
        ("keep(at=[6, 3])", "ascending order"),
        ("keep(at=[-1, 3])", "counted from 0"),
        ("counts(tokens=[10])", r"tokens must list one number for each of the 3 locations \[3, 6, 9\]"),
        ("counts(tokens=[10, 5, -1])", "tokens must be whole numbers from 0 on"),
        ("counts(tokens=[10, 5, 2.5])", "tokens must be whole numbers from 0 on"),
        ("counts(tokens=12)", "tokens must list one number"),
        ("r(n=-1)", "n is a number of tokens to remove, 0 or more; got -1"),
        ("r(n=[3, -1])", "0 or more"),
        ("r(n=8, inflect=2)", r"inflect lies in \[-1, 1\]; got 2"),
        ("r(n=[3, 2], inflect=1)", "inflect shapes a single n; a list says it all by itself"),
        ("keep(ratio=0.5)", "keep has no setting 'ratio'; it has: rate, at"),
        ("kep(rate=0.5)", "unknown schedule 'kep'; did you mean 'keep'?"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SCHEDULES.build(text)


@pytest.mark.parametrize("text", ["keep(rate=0.5)", "counts(tokens=[9, 8, 7])"])
def test_a_block_that_does_not_exist(text: str) -> None:
    with pytest.raises(ValueError, match="block 6 does not exist: the model has 6 blocks, numbered 0 to 5"):
        SCHEDULES.build(text).targets(196, 6)
