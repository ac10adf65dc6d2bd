"""How many tokens every method leaves: the published tables."""

from __future__ import annotations

import pytest

from vitrim.core.registry import METHODS, SCHEDULES
from vitrim.core.schedule import Course

RATES = {0.9: [176, 158, 142], 0.7: [137, 96, 67], 0.5: [98, 49, 24], 0.25: [49, 12, 3]}
TOME = RATES | {0.5: [98, 49, 25], 0.25: [98, 61, 52]}
ALL = ["topk", "dynamicvit", "ats", "atc", "dpcknn", "kmedoids", "sinkhorn", "patchmerger", "sit"]


def plan(method: str, schedule: str, patches: int = 196, depth: int = 12) -> dict[int, int]:
    return METHODS.build(method).plan(Course(SCHEDULES.build(schedule), patches, depth))


@pytest.mark.parametrize("rate", RATES)
def test_keep(rate: float) -> None:
    schedule = f"keep(rate={rate})"
    for method in ALL:
        assert list(plan(method, schedule).values()) == RATES[rate], method
    assert list(plan("evit", schedule).values()) == [k + 1 for k in RATES[rate]]
    assert list(plan("tome", schedule).values()) == TOME[rate]


@pytest.mark.parametrize(
    ("depth", "patches", "schedule", "tome", "atc"),
    [
        (12, 196, "r(n=16)", 11, 17), (12, 196, "r(n=16, inflect=-1)", 10, 21), (12, 196, "r(n=13)", 41, 53),
        (24, 196, "r(n=8)", 7, 29), (24, 196, "r(n=8, inflect=-1)", 16, 38), (32, 256, "r(n=7)", 33, 65),
        (32, 256, "r(n=7, inflect=-1)", 48, 77), (12, 576, "r(n=45)", 42, 49), (12, 576, "r(n=45, inflect=-1)", 42, 53),
        (24, 576, "r(n=23)", 25, 49), (24, 1024, "r(n=40)", 65, 89), (24, 1024, "r(n=40, inflect=-1)", 76, 99),
        (32, 1369, "r(n=40)", 90, 122), (32, 1369, "r(n=40, inflect=-1)", 105, 136),
    ],
)  # fmt: skip
def test_r(depth: int, patches: int, schedule: str, tome: int, atc: int) -> None:
    """Sequence lengths with a class token after the last block, for ToMe and for the published off-the-shelf ATC."""
    assert list(plan("tome", schedule, patches, depth).values())[-1] + 1 == tome
    assert list(plan("atc(compat=official)", schedule, patches, depth).values())[-1] + 1 == atc


def test_r_of_the_tome_readme() -> None:
    """577 tokens: 8 left at r=25, and 377, 177, 27 after 8, 16 and 22 blocks of it."""
    ends = {24: 8}
    for blocks, left in {8: 377, 16: 177, 22: 27}.items():
        assert list(plan("tome", f"r(n={[25] * blocks})", 576, 24).values())[-1] + 1 == left
    assert list(plan("tome", "r(n=25)", 576, 24).values())[-1] + 1 == ends[24]


def test_atc_removes_r_by_default() -> None:
    assert list(plan("atc", "r(n=13)").values()) == [196 - 13 * (i + 1) for i in range(12)]
    assert list(plan("atc", "r(n=25)").values())[-1] == 1


CONTIGUOUS = {
    "l1": [184, 156, 136, 84, 60, 24, 12],
    "l2": [184, 164, 120, 80, 52, 32, 12],
    "linf": [144, 100, 64, 64, 36, 16, 16],
}
STAGES = {
    "l1": {0.9: [172, 156, 136], 0.7: [136, 92, 68], 0.5: [92, 40, 24], 0.25: [40, 12, 4]},
    "l2": {0.9: [176, 156, 140], 0.7: [140, 96, 68], 0.5: [96, 52, 24], 0.25: [52, 12, 4]},
    "linf": {0.9: [196, 144, 144], 0.7: [144, 100, 64], 0.5: [100, 36, 16], 0.25: [36, 16, 4]},
}


@pytest.mark.parametrize("pattern", STAGES)
def test_fixed(pattern: str) -> None:
    counts = plan(f"fixed(pattern={pattern})", "keep(rate=0.5)")
    left = [196]
    for block in range(3, 10):
        left.append(counts.get(block, left[-1]))
    assert left[1:] == CONTIGUOUS[pattern]
    for rate, wanted in STAGES[pattern].items():
        counts = plan(f"fixed(pattern={pattern}, contiguous=False)", f"keep(rate={rate})")
        left = [196]
        for block in (3, 6, 9):
            left.append(counts.get(block, left[-1]))
        assert left[1:] == wanted


def test_fixed_needs_a_square() -> None:
    with pytest.raises(ValueError, match="square"):
        plan("fixed", "keep(rate=0.5)", patches=195)


@pytest.mark.parametrize("method", ["topk", "atc", "kmedoids", "evit"])
def test_nothing_to_do_is_left_out(method: str) -> None:
    assert plan(method, "keep(rate=1.0)") == {}
    assert plan(method, "counts([150, 160, 40])")[9] in (40, 41)
    assert 6 not in plan(method, "counts([150, 160, 40])")
