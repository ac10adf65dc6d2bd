"""Laws of what a method answers: counts, prefix, mass, groups, composition."""

from __future__ import annotations

import torch
from families import DEPTH, DIM, FAMILIES, PATCHES, images
from laws import Run, every_pair, traced

import vitrim


def _is_ragged(got: Run) -> bool:
    return any(step.map.valid is not None for step in got.trace.values())


@every_pair
def test_counts_are_as_planned(family: str, method: str) -> None:
    got = traced(family, method)
    prefix, plan = FAMILIES[family].prefix, got.reduction.plan(PATCHES)
    assert list(got.trace) == list(plan)
    assert plan
    now, expected = PATCHES, []
    for layer in range(DEPTH):
        if layer in plan:
            step = got.trace[layer]
            assert step.map.n == now + prefix
            now = step.map.m - prefix
            assert step.size.shape == (len(images()), now + prefix)
            if step.map.valid is None:
                assert now == plan[layer]
            else:
                assert now <= plan[layer]
                assert step.map.valid.any(dim=0).all(), "a column of pure padding"
        expected.append(now + prefix)
    assert got.lengths == expected
    assert method == "ats" or not _is_ragged(got)


@every_pair
def test_lengths_say_what_attention_and_mlp_see(family: str, method: str) -> None:
    got = traced(family, method)
    if not _is_ragged(got):
        rows = got.reduction.lengths(PATCHES)
        after = [attention for attention, _ in rows[1:]] if got.reduction.site == "after" else [mlp for _, mlp in rows]
        assert got.lengths[: len(after)] == after


@every_pair
def test_prefix_survives(family: str, method: str) -> None:
    got = traced(family, method)
    prefix = FAMILIES[family].prefix
    for step in got.trace.values():
        rows = step.map.dense()[:, :prefix]
        assert torch.equal(rows, torch.eye(prefix, step.map.n).expand_as(rows))
        assert (step.map.dense()[:, prefix:, :prefix] == 0).all()
        assert step.map.valid is None or step.map.valid[:, :prefix].all()


@every_pair
def test_mass_is_conserved_or_bounded(family: str, method: str) -> None:
    got = traced(family, method)
    whole = PATCHES + FAMILIES[family].prefix
    for step in got.trace.values():
        total = step.size.sum(dim=1)
        if vitrim.describe(method).family in ("merge", "soft"):
            torch.testing.assert_close(total, torch.full_like(total, whole), rtol=1e-4, atol=0)
        else:
            assert (total <= whole + 1e-3).all()
        if step.map.valid is not None:
            assert (step.size[~step.map.valid] == 0).all()
            assert (step.size[step.map.valid] >= 1).all()
        elif not step.map.is_soft:
            assert (step.size >= 1).all(), "a token that stands for nothing"


@every_pair
def test_lift_is_constant_on_groups(family: str, method: str) -> None:
    got = traced(family, method)
    for step in got.trace.values():
        x = torch.randn(len(images()), step.map.n, DIM)
        y = step.map.lift(step.map.pool(x))
        assert y.shape == x.shape
        if step.map.is_soft:
            ones = step.map.lift(step.map.pool(torch.ones_like(x)))
            assert torch.isfinite(ones).all()
            continue
        group = step.map.assignment()
        same = (group.unsqueeze(1) == group.unsqueeze(2)) & (group >= 0).unsqueeze(1)
        distance = (y.unsqueeze(1) - y.unsqueeze(2)).abs().amax(dim=-1)
        assert (distance[same] == 0).all()
        assert (y[group < 0] == 0).all()


@every_pair
def test_trace_composes_like_matrices(family: str, method: str) -> None:
    got = traced(family, method)
    product = torch.eye(PATCHES + FAMILIES[family].prefix).expand(len(images()), -1, -1)
    mass = torch.ones(product.shape[:2])
    for layer, step in got.trace.items():
        product = step.map.dense(mass).float() @ product
        mass = step.map.mass(mass)
        composed = got.trace.upto(layer)
        assert composed is not None
        torch.testing.assert_close(composed.dense().float(), product, rtol=1e-4, atol=1e-6)
