"""Schedules: golden counts and refusals."""

from __future__ import annotations

import pytest

from vitrim import SpecError
from vitrim.core.registry import SCHEDULES
from vitrim.core.schedule import R


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
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
