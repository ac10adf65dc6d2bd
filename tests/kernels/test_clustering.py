"""Clustering and matching: the reference labels of the specification, scikit-learn, and odd input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage as scipy_linkage
from sklearn.cluster import AgglomerativeClustering

from tests.kernels.greedy import greedy
from tests.parity.golden import same_partition
from vitrim.core.tokenmap import TokenMap
from vitrim.kernels import agglomerative
from vitrim.kernels.clustering import LINKAGES, cosine_distance
from vitrim.kernels.matching import bipartite, every_kth

# Labels of scikit-learn for the features below.
REFERENCE = {
    ("single", 8): "2 0 1 7 5 0 3 4 6 2 0 1",
    ("single", 5): "0 1 0 3 2 1 0 4 0 0 1 0",
    ("single", 3): "0 0 0 1 2 0 0 0 0 0 0 0",
    ("complete", 8): "1 0 2 5 4 0 7 6 3 1 0 2",
    ("complete", 5): "3 2 1 0 4 2 1 0 0 3 2 1",
    ("complete", 3): "0 2 0 1 0 2 0 1 1 0 2 0",
    ("average", 8): "3 0 1 5 4 0 7 6 2 3 0 1",
    ("average", 5): "3 1 2 0 4 1 2 0 0 3 1 2",
    ("average", 3): "1 0 2 0 1 0 2 0 0 1 0 2",
}


def waves(count: int = 12) -> torch.Tensor:
    t = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    c = torch.arange(1, 7, dtype=torch.float64)[None]
    return (torch.sin(0.7 * t * (c + 1)) + 0.25 * torch.cos(t))[None]


@pytest.mark.parametrize(("linkage", "k"), list(REFERENCE))
def test_reference_labels(linkage: str, k: int) -> None:
    wanted = [int(v) for v in REFERENCE[linkage, k].split()]
    for features in (waves(), waves().float()):
        assert same_partition(agglomerative(features, k, linkage=linkage)[0].numpy(), wanted)


def test_two_stages_with_and_without_sizes() -> None:
    x = waves()
    first = TokenMap.merge(agglomerative(x, 5), 5)
    merged, size = first.pool(x), first.mass(torch.ones(1, 12, dtype=torch.float64))
    assert sorted(size[0].tolist()) == [1, 2, 3, 3, 3]
    for linkage, weighted, plain in (("single", 0.253934, 0.390991), ("average", 0.709847, 0.740619)):
        second = TokenMap.merge(agglomerative(merged, 2, linkage=linkage), 2)
        assert second.pool(merged, size)[0, :, 0].max().item() == pytest.approx(weighted, abs=1e-6)
        assert second.pool(merged)[0, :, 0].max().item() == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_like_scikit_learn(linkage: str) -> None:
    features = torch.randn(6, 40, 16, generator=torch.Generator().manual_seed(5))
    for k in (1, 7, 20, 39, 40):
        ours = agglomerative(features, k, linkage=linkage)
        for matrix, labels in zip(cosine_distance(features), ours, strict=True):
            sk = AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage=linkage).fit_predict(matrix.numpy())
            assert same_partition(labels.numpy(), sk)


def scipy_labels(distance: np.ndarray, k: int, linkage: str) -> np.ndarray:
    n = len(distance)
    if k == n:
        return np.arange(n)
    tree = scipy_linkage(distance[np.triu_indices(n, 1)], linkage)
    members: dict[int, list[int]] = {i: [i] for i in range(n)}
    for step, (a, b) in enumerate(tree[: n - k, :2].astype(int)):
        members[n + step] = members.pop(a) + members.pop(b)
    label = np.empty(n, np.int64)
    for name, points in enumerate(sorted(members.values(), key=min)):
        label[points] = name
    return label


def test_partitions_of_scipy_on_ten_thousand_problems() -> None:
    """Mixed sizes, counts, linkages, features and distances; equal to the last label, since none of them has ties."""
    rng = np.random.default_rng(0)
    checked = 0
    while checked < 10_000:
        n, batch = int(rng.integers(2, 49) if rng.random() < 0.98 else rng.integers(49, 400)), int(rng.integers(1, 60))
        k, linkage = int(rng.integers(1, n + 1)), LINKAGES[rng.integers(3)]
        if rng.random() < 0.5:
            x = torch.from_numpy(rng.standard_normal((batch, n, int(rng.integers(2, 70)))))
            distance, ours = cosine_distance(x), agglomerative(x, k, linkage=linkage)
        else:
            distance = torch.from_numpy(rng.standard_normal((batch, n, n)))
            if rng.random() < 0.5:
                distance = distance.float()
            ours = agglomerative(distance, k, linkage=linkage, metric="precomputed")
        for matrix, labels in zip(distance.double().numpy(), ours.numpy(), strict=True):
            assert (labels == scipy_labels(matrix, k, linkage)).all(), (n, k, linkage)
        checked += batch


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_documented_order_of_ties(linkage: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for n in (2, 3, 5, 12, 33, 70):
        for levels in (1, 2, 5, 20):
            distance = torch.randint(-1, levels, (5, n, n), generator=generator).to(dtype)
            distance = distance.triu(1) + distance.triu(1).transpose(1, 2)
            for k in {1, n // 3 + 1, n // 2 + 1, n - 1, n}:
                ours = agglomerative(distance, k, linkage=linkage, metric="precomputed")
                for matrix, labels in zip(distance.numpy(), ours.numpy(), strict=True):
                    assert (labels == greedy(matrix, k, linkage)).all(), (n, levels, k)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_copies_of_a_point_find_each_other(linkage: str) -> None:
    points = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2))
    x = points[:, torch.tensor([0, 1, 0, 2, 1, 0, 3, 0])]
    assert agglomerative(x, 4, linkage=linkage).tolist() == [[0, 1, 0, 2, 1, 0, 3, 0]]


@pytest.mark.parametrize("linkage", LINKAGES)
def test_what_is_not_finite_stays_alone_and_harms_nobody(linkage: str) -> None:
    x = torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(3))
    clean = agglomerative(x, 7, linkage=linkage)
    sick = x.clone()
    sick[1, 4], sick[1, 9, 2], sick[2, 0] = torch.nan, torch.inf, 0.0
    labels = agglomerative(sick, 7, linkage=linkage)
    assert (labels[[0, 3]] == clean[[0, 3]]).all()
    for row in labels:
        assert row.unique().tolist() == list(range(7))
    assert (labels[1] == labels[1, 4]).sum() == 1
    assert (labels[1] == labels[1, 9]).sum() == 1
    nothing = torch.full((2, 5, 5), torch.nan)
    assert agglomerative(nothing, 2, linkage=linkage, metric="precomputed").tolist() == [[0, 0, 0, 0, 1]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_in_single(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, 32, generator=torch.Generator().manual_seed(4)).to(dtype)
    for linkage in LINKAGES:
        assert (agglomerative(x, 20, linkage=linkage) == agglomerative(x.float(), 20, linkage=linkage)).all()


def test_the_batch_and_the_threads_do_not_matter() -> None:
    x = torch.randn(37, 90, 24, generator=torch.Generator().manual_seed(6))
    alone = torch.cat([agglomerative(row[None], 30) for row in x])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert (agglomerative(x, 30) == alone).all()
    finally:
        torch.set_num_threads(before)
    with ThreadPoolExecutor(4) as pool:  # also when several threads of the caller cluster at once
        assert all((labels == alone).all() for labels in pool.map(lambda _: agglomerative(x, 30), range(8)))


def test_views_and_large_sets() -> None:
    keys = torch.randn(2, 3, 40, 8, generator=torch.Generator().manual_seed(7)).transpose(1, 2).mean(2)[:, 1:]
    assert (agglomerative(keys, 9) == agglomerative(keys.clone(), 9)).all()
    assert agglomerative(torch.randn(0, 8, 4), 3).shape == (0, 8)
    many = torch.randn(1, 1100, 3, generator=torch.Generator().manual_seed(8))
    for linkage in LINKAGES:
        wanted = scipy_labels(cosine_distance(many)[0].double().numpy(), 37, linkage)
        assert same_partition(agglomerative(many, 37, linkage=linkage)[0].numpy(), wanted)


def test_no_graph_and_no_change_of_the_input() -> None:
    x = torch.randn(2, 12, 6, requires_grad=True)
    before = x.detach().clone()
    labels = agglomerative(x, 4)
    assert not labels.requires_grad
    assert torch.equal(x, before)
    torch.library.opcheck(torch.ops.vitrim.agglomerative.default, (before, 4, "average", "cosine"))


def test_numbered_by_first_member() -> None:
    labels = agglomerative(torch.rand(4, 30, 30, generator=torch.Generator().manual_seed(0)), 9, metric="precomputed")
    for row in labels.tolist():
        assert list(dict.fromkeys(row)) == list(range(9))


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (torch.rand(1, 4, 4), 2, {"linkage": "ward"}, "single, complete, average"),
        (torch.rand(1, 4, 4), 2, {"metric": "l2"}, "cosine, precomputed"),
        (torch.rand(1, 4, 4), 5, {}, "cannot make 5 clusters of 4"),
        (torch.rand(1, 4, 4), 0, {}, "cannot make 0 clusters of 4"),
        (torch.rand(1, 4, 3), 2, {"metric": "precomputed"}, "square"),
        (torch.rand(4, 4), 2, {}, "B, n, d"),
        (torch.ones(1, 4, 4, dtype=torch.int64), 2, {}, "floating-point"),
        (torch.rand(1, 4097, 1), 2, {}, "1 to 4096 points"),
    ],
)
def test_clear_refusals(x: torch.Tensor, k: int, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agglomerative(x, k, **options)


def test_a_zero_key_is_no_nan() -> None:
    features = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    features[0, 2] = 0
    assert torch.isfinite(cosine_distance(features)).all()
    assert agglomerative(features, 3).unique().tolist() == [0, 1, 2]


MATCHES = {
    1: [[0], [4], [8], [1, 10], [3], [5], [7], [9], [2, 6, 11]],
    0: [[6], [8], [4], [1, 10], [3], [5], [7], [0, 9], [2, 11]],
    2: [[0], [1], [4], [8], [3], [5, 10], [7], [9], [2, 6, 11]],
}


@pytest.mark.parametrize("prefix", sorted(MATCHES))
def test_bipartite_matching(prefix: int) -> None:
    """Groups of the official matcher, for a class token, none, and class plus distillation token."""
    group = bipartite(waves(), 3, prefix)[0]
    found = [torch.nonzero(group == g).flatten().tolist() for g in range(9)]
    assert found == MATCHES[prefix]


def test_bipartite_matching_removes_half_at_most() -> None:
    with pytest.raises(ValueError, match="at most half of the 11 tokens"):
        bipartite(waves(), 6, 1)


def test_every_kth_drops_the_remainder() -> None:
    group = every_kth(waves(), 5)[0]
    assert (group[10:] == -1).all()
    assert group[4] == 0
    assert group[9] == 1
    assert every_kth(waves(), 1)[0].tolist() == list(range(12))
