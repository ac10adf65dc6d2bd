"""The order of the images: against the definition of each law, and timm's repeated-augmentation sampler."""

from __future__ import annotations

import numpy as np
import pytest
from timm.data.distributed_sampler import RepeatAugSampler

from vitrim.training.loader import Schedule
from vitrim.training.sampler import EpochOrder


def batches(
    count: int, size: int, *, rank: int = 0, world: int = 1, epoch: int = 3, start: int = 0, **settings
) -> list[list[int]]:
    order = EpochOrder(count, seed=5, **settings)
    steps = len(order) // (size * world)
    first, last = epoch * steps + start, (epoch + 1) * steps
    sampler = Schedule(order, steps=steps, batch=size, rank=rank, world=world, seed=5, first=first, last=last)
    found = [[index for index, _ in batch] for batch in sampler]
    assert len(sampler) == len(found)
    return found


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    order = EpochOrder(1000, seed=1)
    first, again, second, other = order(0), order(0), order(1), EpochOrder(1000, seed=2)(0)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(1000))
    assert (first == again).all()
    # Two independent permutations agree in one place on average.
    assert (first == second).sum() < 10
    assert (first == other).sum() < 10


def test_places_are_uniform() -> None:
    """Where image 0 goes over 2,000 epochs of 8 images: 250 times to each place, give or take five standard deviations."""
    order = EpochOrder(8)
    places = np.bincount([int(np.argmin(order(epoch))) for epoch in range(2000)], minlength=8)
    assert np.abs(places - 250).max() < 5 * np.sqrt(250 * 7 / 8)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_together_are_one_process(world: int, repeats: int) -> None:
    one = batches(601, 4 * world, repeats=repeats)
    parts = [batches(601, 4, rank=r, world=world, repeats=repeats) for r in range(world)]
    for step, whole in enumerate(one):
        shares = [p[step] for p in parts]
        assert sorted(i for share in shares for i in share) == sorted(whole)
        assert all(len(share) == 4 for share in shares)


@pytest.mark.parametrize("start", [0, 1, 7, 49, 50])
def test_resuming_from_a_batch(start: int) -> None:
    assert batches(100, 2, start=start) == batches(100, 2)[start:]


def test_the_randomness_of_a_sample_does_not_depend_on_the_processes() -> None:
    def keys(rank: int, world: int) -> set[tuple[int, int]]:
        steps = 96 // (4 * world)
        return {k for b in Schedule(EpochOrder(96), steps=steps, batch=4, rank=rank, world=world, seed=1, last=steps) for k in b}

    assert keys(0, 1) == keys(0, 2) | keys(1, 2)


def test_a_rest_of_the_epoch_is_left_out() -> None:
    assert [len(b) for b in batches(10, 4)] == [4, 4]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_repeats_are_those_of_timm(world: int) -> None:
    """The same images in the same order in each process, for the same permutation (none)."""
    for rank in range(world):
        theirs = list(RepeatAugSampler(range(700), world, rank, shuffle=False))
        ours = [i for b in batches(700, 8, rank=rank, world=world, repeats=3, shuffle=False) for i in b]
        assert ours == [int(i) for i in theirs[: len(ours)]]
        assert len(ours) == len(theirs) // 8 * 8
        assert len(theirs) == 700 // 256 * 256 // world


def test_repeats_go_to_different_processes() -> None:
    parts = [batches(768, 4, rank=r, world=3, repeats=3) for r in range(3)]
    for rank in parts:
        flat = [i for b in rank for i in b]
        assert len(set(flat)) == len(flat) == 256
    assert parts[0] == parts[1] == parts[2]


def test_repeats_in_a_small_set_keep_its_length() -> None:
    order = EpochOrder(100, repeats=3)(0)
    assert len(order) == len(EpochOrder(100, repeats=3)) == 100
    assert sorted(np.bincount(order, minlength=100).tolist())[-34:] == [1] + [3] * 33


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EpochOrder(0), "no images"),
        (lambda: EpochOrder(4, repeats=0), "repeats is"),
    ],
)
def test_refusals_name_the_remedy(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
