"""Rounds of reciprocal nearest neighbours give the greedy algorithm's clusters, with ties and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import squareform

from tests.kernels.greedy import greedy
from vitrim.kernels.linkage_torch import cluster

LINKAGES = ("single", "complete", "average")
# A multiple of every product of two cluster sizes that 17 points can have: the averages of its multiples are whole numbers,
# so that equal averages stay equal in floating point, in whatever order they are computed.
WHOLE = 64 * 27 * 25 * 49 * 11 * 13


def problems(batch: int, n: int, seed: int, values: int = 0, p_inf: float = 0.0) -> torch.Tensor:
    """Symmetric distances: distinct ones, or ``values`` different ones, of which some may be missing."""
    rng = np.random.default_rng(seed)
    d = rng.integers(1, values + 1, (batch, n, n)).astype(np.float64) if values else rng.random((batch, n, n))
    d[rng.random(d.shape) < p_inf] = np.inf
    d = np.triu(d, 1)
    return torch.from_numpy(d + d.transpose(0, 2, 1))


def cuts(n: int) -> list[int]:
    return [k for k in sorted({1, 2, n // 3, n // 2, n - 1, n}) if 1 <= k <= n]


def assert_greedy(d: torch.Tensor, k: int, linkage: str) -> None:
    labels = cluster(d, k, linkage).numpy()
    for b, matrix in enumerate(d.double().numpy()):
        np.testing.assert_array_equal(labels[b], greedy(matrix, k, linkage), err_msg=f"image {b}, k={k}, {linkage}")


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("n", [1, 2, 3, 17, 40])
def test_greedy_without_ties(n: int, linkage: str) -> None:
    for k in cuts(n):
        assert_greedy(problems(5, n, seed=n), k, linkage)


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("values", [1, 2, 3, 8])
@pytest.mark.parametrize("p_inf", [0.0, 0.4])
def test_greedy_with_ties(linkage: str, values: int, p_inf: float) -> None:
    for n in (4, 7, 12, 17):
        d = problems(12, n, seed=100 * n + values, values=values, p_inf=p_inf) * WHOLE
        for k in cuts(n):
            assert_greedy(d, k, linkage)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_scipy(linkage: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 150, 8, dtype=torch.float64)
    d = torch.cdist(x, x)
    d = (d + d.transpose(1, 2)) / 2
    d.diagonal(dim1=1, dim2=2).zero_()
    for k in (1, 75, 149):
        labels = cluster(d, k, linkage).numpy()
        for b, matrix in enumerate(d.numpy()):
            tree = scipy_linkage(squareform(matrix), linkage)
            wanted = cut_tree(tree, n_clusters=k)[:, 0]
            _, first, group = np.unique(wanted, return_index=True, return_inverse=True)
            np.testing.assert_array_equal(labels[b], np.argsort(np.argsort(first))[group.reshape(-1)])


@pytest.mark.parametrize("linkage", LINKAGES)
def test_images_do_not_influence_each_other(linkage: str) -> None:
    # Some need a dozen rounds, some one for each merge, and some are cut in the middle of a tie.
    d = torch.cat([problems(3, 33, 1), problems(3, 33, 2, values=1), problems(3, 33, 3, values=4), problems(1, 33, 4, p_inf=1.0)])
    together = cluster(d, 11, linkage)
    alone = torch.cat([cluster(matrix[None], 11, linkage) for matrix in d])
    assert torch.equal(together, alone)
    assert torch.equal(cluster(d.flip(0), 11, linkage).flip(0), together)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_average_rounded_below_its_children(linkage: str) -> None:
    # Three points at the same distance x: (x + x * 2) / 3 and the like are not always x.
    values = torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.1
    d = values[:, None, None] * (1 - torch.eye(9))
    for k in range(1, 10):
        labels = cluster(d, k, linkage)
        assert torch.equal(labels.amax(dim=1), torch.full((200,), k - 1))
        assert all(len(row.unique()) == k for row in labels)


def test_not_finite_is_last() -> None:
    d = problems(1, 6, seed=0)
    d[0, 2] = d[0, :, 2] = torch.nan
    d[0, 4] = d[0, :, 4] = torch.inf
    labels = cluster(d, 3, "average")[0].tolist()
    assert labels == [0, 0, 1, 0, 2, 0]
    assert cluster(d, 2, "average")[0].tolist() == [0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_input_is_read_only(dtype: torch.dtype) -> None:
    d = problems(2, 17, seed=5).to(dtype)
    before = d.clone()
    labels = cluster(d, 5, "complete")
    assert torch.equal(d, before)
    assert labels.dtype == torch.int64
    assert labels.shape == (2, 17)
    assert_greedy(d, 5, "complete")


def test_no_images() -> None:
    assert cluster(torch.zeros(0, 5, 5), 2, "single").shape == (0, 5)
