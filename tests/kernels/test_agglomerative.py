"""Clustering: the reference labels of the specification, scikit-learn, and odd input."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import AgglomerativeClustering

from tests.parity.golden import same_partition
from vitrim.core.tokenmap import TokenMap
from vitrim.kernels.agglomerative import LINKAGES, agglomerate, cosine_distance
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
        assert same_partition(agglomerate(cosine_distance(features), k, linkage)[0].numpy(), wanted)


def test_two_stages_with_and_without_sizes() -> None:
    x = waves()
    first = TokenMap.merge(agglomerate(cosine_distance(x), 5, "average"), 5)
    merged, size = first.pool(x), first.mass(torch.ones(1, 12, dtype=torch.float64))
    assert sorted(size[0].tolist()) == [1, 2, 3, 3, 3]
    for linkage, weighted, plain in (("single", 0.253934, 0.390991), ("average", 0.709847, 0.740619)):
        second = TokenMap.merge(agglomerate(cosine_distance(merged), 2, linkage), 2)
        assert second.pool(merged, size)[0, :, 0].max().item() == pytest.approx(weighted, abs=1e-6)
        assert second.pool(merged)[0, :, 0].max().item() == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_like_scikit_learn(linkage: str, coarse: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    distance = torch.rand(6, 40, 40, generator=generator)
    distance = (distance + distance.transpose(1, 2)) / 2
    if coarse:
        distance = (distance * 6).round() / 6
    for k in (1, 7, 20, 39, 40):
        ours = agglomerate(distance, k, linkage)
        for matrix, labels in zip(distance, ours, strict=True):
            sk = AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage=linkage).fit_predict(matrix.numpy())
            assert same_partition(labels.numpy(), sk)


def test_numbered_by_first_member() -> None:
    labels = agglomerate(torch.rand(4, 30, 30, generator=torch.Generator().manual_seed(0)), 9)
    for row in labels.tolist():
        assert list(dict.fromkeys(row)) == list(range(9))


def test_clear_refusals() -> None:
    with pytest.raises(ValueError, match="single, complete, average"):
        agglomerate(torch.rand(1, 4, 4), 2, "ward")
    with pytest.raises(ValueError, match="cannot make 5 clusters of 4"):
        agglomerate(torch.rand(1, 4, 4), 5)
    with pytest.raises(ValueError, match="not finite"):
        agglomerate(torch.full((1, 4, 4), torch.nan), 2)


def test_a_zero_key_is_no_nan() -> None:
    features = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    features[0, 2] = 0
    assert torch.isfinite(cosine_distance(features)).all()
    assert agglomerate(cosine_distance(features), 3).unique().tolist() == [0, 1, 2]


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
