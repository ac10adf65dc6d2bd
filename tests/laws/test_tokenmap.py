"""The algebra of token maps, on random maps of every form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrim import TokenMap

settings.register_profile("maps", max_examples=80, deadline=None, derandomize=True)
settings.load_profile("maps")

FORMS = ("select", "medoids", "merge", "weighted", "soft")
B, C = 2, 3
seeds = st.integers(0, 10_000)
sizes = st.integers(1, 9)


def a_map(form: str, n: int, m: int, rng: torch.Generator, drop: bool = False) -> TokenMap:
    """A random map of the form from n to at most n tokens."""
    m = min(m, n)
    if form == "soft":
        return TokenMap.soft(torch.rand(B, m, n, generator=rng) + 0.05)
    order = torch.stack([torch.randperm(n, generator=rng) for _ in range(B)])
    if form == "select":
        return TokenMap.select(order[:, :m], n)
    # Every group gets one source for sure, the others go anywhere.
    group = torch.randint(-1 if drop else 0, m, (B, n), generator=rng)
    group = group.scatter(1, order[:, :m], torch.arange(m).expand(B, m))
    if form == "medoids":
        return TokenMap.select(order[:, :m], n, group=group)
    weight = torch.rand(B, n, generator=rng) + 0.1 if form == "weighted" else None
    return TokenMap.merge(group, m, weight)


def tokens(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(B, n, C, generator=rng)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def same(a: TokenMap, b: TokenMap) -> None:
    assert (a.n, a.m) == (b.n, b.m)
    close(a.dense().float(), b.dense().float())


any_form = st.sampled_from(FORMS)


@given(any_form, sizes, sizes, seeds, st.booleans())
def test_pool_is_the_dense_product(form: str, n: int, m: int, seed: int, drop: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    step, x = a_map(form, n, m, rng, drop), tokens(n, rng)
    mass = torch.rand(B, n, generator=rng) + 0.5
    close(step.pool(x), step.dense() @ x)
    close(step.pool(x, mass), step.dense(mass) @ x)


@given(any_form, sizes, sizes, seeds)
def test_identity_is_neutral(form: str, n: int, m: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    step, x = a_map(form, n, m, rng), tokens(n, rng)
    one, other = TokenMap.identity(B, n), TokenMap.identity(B, step.m)
    assert torch.equal(one.pool(x), x)
    assert torch.equal(one.lift(x), x)
    same(one.then(step), step)
    same(step.then(other), step)


@given(any_form, any_form, sizes, sizes, sizes, seeds, st.booleans())
def test_then_is_the_dense_product(a: str, b: str, n: int, m: int, k: int, seed: int, drop: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    one = a_map(a, n, m, rng, drop)
    two = a_map(b, one.m, k, rng, drop)
    mass = one.mass(torch.ones(B, n))
    close(one.then(two).dense().float(), two.dense(mass) @ one.dense())


@given(any_form, any_form, sizes, sizes, sizes, seeds)
def test_then_pools_twice(a: str, b: str, n: int, m: int, k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    one, x = a_map(a, n, m, rng), tokens(n, rng)
    two = a_map(b, one.m, k, rng)
    close(one.then(two).pool(x), two.pool(one.pool(x), mass=one.mass(torch.ones(B, n))))


@given(any_form, any_form, any_form, sizes, sizes, sizes, sizes, seeds)
def test_then_is_associative(a: str, b: str, c: str, n: int, m: int, k: int, j: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    one = a_map(a, n, m, rng)
    two = a_map(b, one.m, k, rng)
    three = a_map(c, two.m, j, rng)
    # A plain mean depends on the masses before it. Composed first with what is no mean, it is frozen for unit masses.
    assume(a == "select" or (b == "merge") == (c == "merge"))
    same(one.then(two).then(three), one.then(two.then(three)))


@given(any_form, sizes, sizes, seeds)
def test_mass_is_conserved(form: str, n: int, m: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    step, size = a_map(form, n, m, rng), torch.rand(B, n, generator=rng) + 0.5
    total = step.mass(size).sum(dim=1)
    if form == "select":
        close(total, (size * step.kept()).sum(dim=1))
    else:
        close(total, size.sum(dim=1))


@given(any_form, sizes, sizes, seeds, st.booleans())
def test_lift_of_pool_is_constant_on_groups(form: str, n: int, m: int, seed: int, drop: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    step, x = a_map(form, n, m, rng, drop), tokens(n, rng)
    y = step.lift(step.pool(x), fill=x)
    if form == "soft":
        shares = step.weight / step.weight.sum(dim=1, keepdim=True)  # pyright: ignore
        close(y, shares.transpose(1, 2) @ step.pool(x))
        return
    for b in range(B):
        for i in range(n):
            home = int(step.assignment()[b, i])
            close(y[b, i], x[b, i] if home < 0 else step.pool(x)[b, home])


@given(st.sampled_from(("select", "medoids", "merge")), sizes, sizes, seeds)
def test_pool_after_lift_gives_the_tokens_back(form: str, n: int, m: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    step = a_map(form, n, m, rng)
    y = tokens(step.m, rng)
    close(step.pool(step.lift(y)), y)


@given(any_form, sizes, sizes, st.integers(0, 3), seeds, st.booleans())
def test_prefix_and_back(form: str, n: int, m: int, count: int, seed: int, drop: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    step, x = a_map(form, n, m, rng, drop), tokens(n + count, rng)
    longer = step.with_prefix(count)
    same(longer.without_prefix(count), step)
    pooled = longer.pool(x)
    assert torch.equal(pooled[:, :count], x[:, :count])
    close(pooled[:, count:], step.pool(x[:, count:]))


@given(any_form, sizes, sizes, seeds)
def test_representative_is_a_member(form: str, n: int, m: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    step = a_map(form, n, m, rng)
    index = step.representative()
    assert index.shape == (B, step.m)
    if form == "soft":
        assert torch.equal(index, step.dense().argmax(dim=2))
    elif form != "medoids":  # a medoid of a random group need not be in it
        assert torch.equal(step.assignment().gather(1, index), torch.arange(step.m).expand(B, -1))


@given(sizes, sizes, seeds, st.booleans())
def test_other_reductions(n: int, m: int, seed: int, drop: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    step, x = a_map("merge", n, m, rng, drop), tokens(n, rng)
    for b in range(B):
        for j in range(step.m):
            members = x[b, step.assignment()[b] == j]
            close(step.pool(x, reduce="sum")[b, j], members.sum(dim=0))
            close(step.pool(x, reduce="amax")[b, j], members.amax(dim=0))


def test_half_precision_adds_up_in_single() -> None:
    x = torch.full((1, 4096, 1), 0.1, dtype=torch.float16)
    step = TokenMap.merge(torch.zeros(1, 4096, dtype=torch.int64), 1)
    pooled = step.pool(x)
    assert pooled.dtype == torch.float16
    assert torch.equal(pooled[0, 0], x[0, 0])
    weighted = TokenMap.merge(torch.zeros(1, 4096, dtype=torch.int64), 1, torch.full((1, 4096), 1 / 4096, dtype=torch.float16))
    assert torch.equal(weighted.pool(x)[0, 0], x[0, 0])


def test_padding_of_a_ragged_selection() -> None:
    index, valid = torch.tensor([[1, 3, 0], [2, 0, 0]]), torch.tensor([[True, True, False], [True, False, False]])
    step = TokenMap.select(index, 4, valid=valid)
    assert step.group is not None
    assert step.group.tolist() == [[-1, 0, -1, 1], [-1, -1, 0, -1]]
    assert step.mass(torch.ones(2, 4)).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert step.with_prefix(1).valid.tolist() == [[True, True, True, False], [True, True, False, False]]  # pyright: ignore


def test_an_empty_group_is_a_zero_token() -> None:
    step = TokenMap.merge(torch.zeros(1, 3, dtype=torch.int64), 2)
    assert step.pool(torch.ones(1, 3, 1)).flatten().tolist() == [1, 0]
    assert step.mass(torch.ones(1, 3)).tolist() == [[3, 0]]
    assert step.representative().tolist() == [[0, 0]]


def test_refusals() -> None:
    soft, merge = TokenMap.soft(torch.rand(1, 2, 3)), TokenMap.merge(torch.zeros(1, 3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="cannot compose: the first map gives 1 tokens, the second takes 3"):
        merge.then(soft)
    with pytest.raises(ValueError, match="reduce must be 'mean', or 'sum' or 'amax' for hard maps; got 'max'"):
        merge.pool(torch.rand(1, 3, 1), reduce="max")
    with pytest.raises(ValueError, match="hard maps; got 'sum'"):
        soft.pool(torch.rand(1, 3, 1), reduce="sum")
    with pytest.raises(ValueError, match="soft map has no single weight per source"):
        soft.source_weight()
    with pytest.raises(ValueError, match="needs a group"):
        _ = TokenMap(None, 3).n


def test_gradients_flow_through_weights_and_tokens() -> None:
    weight, x = torch.rand(1, 4, requires_grad=True), torch.rand(1, 4, 2, requires_grad=True)
    step = TokenMap.merge(torch.tensor([[0, 0, 1, -1]]), 2, weight)
    step.pool(x).sum().backward()
    assert weight.grad is not None
    assert x.grad is not None
    assert weight.grad[0, 3] == 0
    assert (weight.grad[0, :3] != 0).all()
    assert step.detach().weight.requires_grad is False  # pyright: ignore
