"""Agreement of two reductions: against scikit-learn, SciPy, counting all cases, and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.spatial import distance
from scipy.special import rel_entr
from scipy.stats import hypergeom
from sklearn import metrics
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from vitrim.analysis import agreement
from vitrim.analysis.chance import expected_information, overlap
from vitrim.core.tokenmap import TokenMap

SKLEARN: dict[str, Callable[..., Any]] = {
    "homogeneity": metrics.homogeneity_score,
    "completeness": metrics.completeness_score,
    "v_measure": metrics.v_measure_score,
    "nmi": metrics.normalized_mutual_info_score,
    "ami": metrics.adjusted_mutual_info_score,
    "ari": metrics.adjusted_rand_score,
    "purity": lambda a, b: contingency_matrix(a, b).max(axis=0).sum() / len(a),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def masks(rng: np.random.Generator, counts: list[int], n: int = 30) -> np.ndarray:
    return np.stack([rng.permutation(np.arange(n) < k) for k in counts])


def labels(rng: np.random.Generator, images: int, clusters: int, patches: int = 49) -> np.ndarray:
    """Clusters of uneven sizes."""
    return (clusters * rng.random((images, patches)) ** 2).astype(np.int64)


def one_hot(x: np.ndarray, tokens: int) -> np.ndarray:
    return (x[:, None] == np.arange(tokens)[:, None]).astype(np.float32)


def soft(rng: np.random.Generator, images: int, tokens: int, patches: int = 49, sharp: float = 1.0) -> np.ndarray:
    x = np.exp(sharp * rng.standard_normal((images, tokens, patches)))
    return x / x.sum(axis=2, keepdims=True)  # rows sum to one, as those of the soft methods do


def by_scikit_learn(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    keep = (a >= 0) & (b >= 0)
    return {name: np.array([f(x[k], y[k]) for x, y, k in zip(a, b, keep, strict=True)]) for name, f in SKLEARN.items()}


# -- pruning ----------------------------------------------------------------------------------------------------------


def test_masks_against_scipy_and_scikit_learn(rng: np.random.Generator) -> None:
    a, b = masks(rng, [3, 15, 29, 10]), masks(rng, [20, 15, 1, 1])
    found = agreement.compare_pruning(a, torch.from_numpy(b))
    assert tuple(found) == agreement.PRUNING
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert found["iou"][i] == pytest.approx(1 - distance.jaccard(x, y), abs=1e-12)
        assert found["dice"][i] == pytest.approx(1 - distance.dice(x, y), abs=1e-12)
        assert found["hamming"][i] == pytest.approx(distance.hamming(x, y), abs=1e-12)
        assert found["kappa"][i] == pytest.approx(metrics.cohen_kappa_score(x, y), abs=1e-12)
        assert found["ioa"][i] == pytest.approx(metrics.recall_score(y, x), abs=1e-12)


def test_chance_is_the_mean_over_all_choices() -> None:
    """Every pair of subsets of 6 patches, counted."""
    n = 6
    sets = {k: np.stack([np.isin(np.arange(n), c) for c in combinations(range(n), k)]) for k in range(n + 1)}
    for ka, a in sets.items():
        for kb, b in sets.items():
            x, y = np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1))
            assert agreement.iou(x, y).mean() == pytest.approx(agreement.expected_iou(n, ka, kb), abs=1e-12)
            assert agreement.ioa(x, y).mean() == pytest.approx(agreement.expected_ioa(n, ka, kb), abs=1e-12)
            if 0 < ka < n and 0 < kb < n:
                for measure in (agreement.adjusted_iou, agreement.adjusted_ioa, agreement.kappa):
                    assert measure(x, y).mean() == pytest.approx(0, abs=1e-12)


def test_expected_iou_in_exact_arithmetic() -> None:
    n, ka, kb = 196, 49, 137
    ways = [comb(ka, t) * comb(n - ka, kb - t) for t in range(ka + 1)]
    exact = sum(w * t / (ka + kb - t) for t, w in enumerate(ways)) / comb(n, kb)
    assert agreement.expected_iou(n, ka, kb) == pytest.approx(exact, abs=1e-13)
    many = agreement.expected_iou(n, np.arange(n + 1)[:, None], [0, kb, n])
    assert many.shape == (197, 3)
    assert many[ka, 1] == pytest.approx(exact, abs=1e-13)
    assert_allclose(many[:, 2], np.arange(n + 1) / n, atol=1e-13)
    assert_allclose(many[:, 0], 0)
    assert np.isscalar(agreement.expected_iou(n, 3, 4))


def test_overlap_is_hypergeometric() -> None:
    a, b = np.array([0, 5, 100, 196, 49]), np.array([7, 196, 100, 196, 180])
    chances = overlap(196, a, b)
    assert_allclose(chances, hypergeom.pmf(np.arange(chances.shape[1]), 196, a[:, None], b[:, None]), atol=1e-12)


def test_adjusted_is_comparable_across_rates(rng: np.random.Generator) -> None:
    large = masks(rng, [27] * 50)
    small = large & (np.cumsum(large, axis=1) <= 8)
    for nested in (agreement.adjusted_iou, agreement.adjusted_ioa):
        assert_allclose(nested(large, small), 1)
        assert_allclose(nested(small, large), 1)
        assert_allclose(nested(small, small, best="equal"), 1)
    assert (agreement.adjusted_iou(large, small, best="equal") < 0.1).all()
    other = masks(rng, [8] * 50)
    assert_allclose(agreement.adjusted_ioa(large, other), agreement.adjusted_ioa(other, large), atol=1e-12)


def test_all_kept_and_none_kept() -> None:
    full, none, some = np.ones((1, 8), bool), np.zeros((1, 8), bool), np.arange(8)[None] < 3
    assert agreement.iou(none, none) == agreement.ioa(some, none) == agreement.dice(none, none) == 0
    for measure in (agreement.adjusted_iou, agreement.adjusted_ioa, agreement.kappa):
        assert measure(full, full) == measure(none, none) == measure(some, some) == 1
        assert measure(full, some) == measure(some, full) == measure(none, some) == measure(some, none) == 0
    assert agreement.kappa(some, ~some) < 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement.iou(np.ones((2, 4)), np.ones((2, 4))), "bool"),
        (lambda: agreement.iou(np.ones((2, 4), bool), np.ones((3, 4), bool)), "same images"),
        (lambda: agreement.expected_iou(10, 11, 2), "keeps 0 to 10"),
        (lambda: agreement.adjusted_iou(np.ones((2, 4), bool), np.ones((2, 4), bool), best="one"), "nested"),  # pyright: ignore
        (lambda: agreement.partition(np.zeros((2, 4)), np.zeros((2, 4), int)), "integers"),
        (lambda: agreement.partition(np.zeros((2, 4), int), np.zeros((2, 5), int)), "same images"),
        (lambda: agreement.partition(np.zeros((2, 4), int), np.full((2, 4), 2**40)), "below"),
        (lambda: agreement.partition(*np.zeros((2, 2, 4), int), among=np.ones((2, 4))), "among is bool"),
        (lambda: agreement.soft_partition(-np.ones((1, 2, 4)), np.ones((1, 2, 4))), "0 or more"),
        (lambda: agreement.soft_partition(np.ones((1, 2, 4)), np.ones((1, 2, 5))), "same images"),
        (lambda: agreement.soft_partition(np.ones(4), np.ones(4)), "shape"),
        (lambda: agreement.soft_partition(np.ones((1, 2, 4)), np.ones((1, 2, 4)), permutations=0), "1 or more"),
    ],
)
def test_errors_name_the_remedy(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(5, 5), (25, 10), (98, 98), (1, 7), (7, 1), (1, 1)])
def test_partition_against_scikit_learn(rng: np.random.Generator, first: int, second: int) -> None:
    patches = 196 if first > 49 else 49
    a, b = labels(rng, 6, first, patches), labels(rng, 6, second, patches)
    b[3:, :20] = a[3:, :20]  # some agreement
    found = agreement.partition(torch.from_numpy(a), b.astype(np.int16))
    assert tuple(found) == agreement.MERGING
    for name, wanted in by_scikit_learn(a, b).items():
        assert_allclose(found[name], wanted, atol=1e-10, err_msg=name)


def test_dropped_patches_do_not_count(rng: np.random.Generator) -> None:
    a, b = labels(rng, 12, 9), labels(rng, 12, 6)
    a[rng.random(a.shape) < 0.3] = -1
    b[rng.random(b.shape) < 0.5] = -1
    found = agreement.partition(a, b)
    for name, wanted in by_scikit_learn(a, b).items():
        assert_allclose(found[name], wanted, atol=1e-10, err_msg=name)
    among = rng.random(a.shape) < 0.6
    chosen = agreement.partition(a, b, among=torch.from_numpy(among))
    for name, wanted in by_scikit_learn(np.where(among, a, -1), b).items():
        assert_allclose(chosen[name], wanted, atol=1e-10, err_msg=name)


def test_one_cluster_and_all_alone(rng: np.random.Generator) -> None:
    one, alone, some = np.zeros((1, 20), int), np.arange(20)[None], labels(rng, 1, 4, 20)
    for a in (one, alone, some):
        same = agreement.partition(a, a * 3 + 1)
        assert_allclose([*same.values()], 1, atol=1e-10)
        for b in (one, alone, some):
            found = agreement.partition(a, b)
            for name, wanted in by_scikit_learn(a, b).items():
                assert_allclose(found[name], wanted, atol=1e-9, err_msg=name)


def test_images_without_common_patches_are_nan(rng: np.random.Generator) -> None:
    a, b = labels(rng, 3, 4), labels(rng, 3, 4)
    a[1, ::2], b[1, 1::2] = -1, -1
    for found in (agreement.partition(a, b), agreement.soft_partition(one_hot(a, 4), soft(rng, 3, 4) * (b >= 0)[:, None])):
        assert all(np.isnan(values).tolist() == [False, True, False] for values in found.values())
    empty = agreement.partition(np.zeros((0, 9), int), np.zeros((0, 9), int))
    assert all(values.shape == (0,) for values in empty.values())
    nothing = agreement.compare_merging(np.full((2, 9), -1), np.full((2, 9), -1))
    assert all(np.isnan(values).all() for values in nothing.values())


def test_expected_information_is_the_mean_over_all_permutations() -> None:
    a = np.array([0, 0, 0, 1, 1, 2])
    b = np.array([0, 1, 1, 1, 1, 0])
    sizes = np.bincount(a), np.bincount(b)
    shuffled = b[np.array([*permutations(range(6))])]
    tables = np.stack([((a == i) & (shuffled == j)).sum(axis=1) for i in range(3) for j in range(2)], axis=1) / 6
    mean = rel_entr(tables, np.outer(*sizes).ravel() / 36).sum(axis=1).mean()
    assert expected_information(6, *sizes).sum() == pytest.approx(mean, abs=1e-12)


def test_expected_information_of_many_patches(rng: np.random.Generator) -> None:
    """2,304 patches, 384 px at patch 8: logarithms of factorials must keep their digits."""
    a, b = labels(rng, 1, 300, 2304)[0], labels(rng, 1, 700, 2304)[0]
    sizes = [np.unique(x, return_counts=True)[1] for x in (a, b)]
    wanted = expected_mutual_information(contingency_matrix(a, b, sparse=True), 2304)
    assert expected_information(2304, *sizes).sum() == pytest.approx(wanted, rel=1e-9)


def test_published_numbers() -> None:
    a, b = np.array([[0, 0, 1, 1, 2, 2]]), np.array([[0, 0, 0, 1, 1, 1]])
    found = agreement.partition(a, b)
    assert found["homogeneity"][0] == pytest.approx(0.420619835714, abs=1e-12)
    assert found["completeness"][0] == pytest.approx(2 / 3, abs=1e-12)
    assert found["v_measure"][0] == found["nmi"][0] == pytest.approx(0.515803742979, abs=1e-12)
    turned = agreement.partition(b, a)
    assert turned["homogeneity"] == found["completeness"]


def test_parts_are_the_whole(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = labels(rng, 7, 9), labels(rng, 7, 30)
    x, y = soft(rng, 7, 5), soft(rng, 7, 4)
    whole, whole_soft = agreement.partition(a, b), agreement.soft_partition(x, y)
    monkeypatch.setattr("vitrim.analysis.partition_scores.NUMBERS", 2 * 49)
    for name, values in agreement.partition(a, b).items():
        assert_allclose(values, whole[name], atol=1e-12)
    for name, values in agreement.soft_partition(x, y).items():
        assert_allclose(values, whole_soft[name], atol=0.1 if name == "ami" else 1e-12)


# -- soft -------------------------------------------------------------------------------------------------------------


def test_one_hot_is_hard(rng: np.random.Generator) -> None:
    a, b = labels(rng, 5, 9), labels(rng, 5, 6)
    a[rng.random(a.shape) < 0.3] = -1
    wanted = agreement.partition(a, b)
    for x, y in ((one_hot(a, 9), one_hot(b, 7)), (a, 0.2 * one_hot(b, 6)), (one_hot(a, 9), b)):
        for name, values in agreement.compare_merging(x, y).items():
            assert_allclose(values, wanted[name], atol=1e-12, err_msg=name)


def test_nearly_one_hot_is_nearly_hard(rng: np.random.Generator) -> None:
    """The soft formulas, and the mean over permutations against the exact expectation."""
    a, b = labels(rng, 4, 9), labels(rng, 4, 6)
    b[:, :25] = a[:, :25] % 6
    b[0, :9] = -1
    wanted = agreement.partition(a, b)
    found = agreement.soft_partition(one_hot(a, 9) + 1e-5, (one_hot(b, 6) + 1e-5) * (b >= 0)[:, None], permutations=200)
    for name, values in found.items():
        assert_allclose(values, wanted[name], atol=0.01 if name == "ami" else 1e-3, err_msg=name)


def test_soft_table_by_hand() -> None:
    """Two patches for sure, one half and half: the table is that of expected counts."""
    a = np.array([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]])
    b = np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])
    table = np.array([[1.0, 0.5], [0.0, 1.5]]) / 3
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    information = sum(p * np.log(p / (rows[i] * columns[j])) for (i, j), p in np.ndenumerate(table) if p)
    found = agreement.soft_partition(a, b)
    assert found["homogeneity"][0] == pytest.approx(-information / (rows * np.log(rows)).sum(), abs=1e-12)
    assert found["completeness"][0] == pytest.approx(-information / (columns * np.log(columns)).sum(), abs=1e-12)
    assert found["purity"][0] == pytest.approx(2.5 / 3, abs=1e-12)


def test_soft_rand_index_against_all_permutations(rng: np.random.Generator) -> None:
    a, b = soft(rng, 1, 3, 5), soft(rng, 1, 2, 5)
    together = [np.einsum("ti,tj->ij", x, x) for x in (a[0] / a[0].sum(axis=0), b[0] / b[0].sum(axis=0))]
    chance = np.mean([(together[0] * together[1][np.ix_(o, o)]).sum() for o in permutations(range(5))])
    best = sum((x**2).sum() for x in together) / 2
    wanted = ((together[0] * together[1]).sum() - chance) / (best - chance)
    assert agreement.soft_partition(a, b)["ari"][0] == pytest.approx(wanted, abs=1e-12)
    assert agreement.soft_partition(a, a[:, ::-1])["ari"][0] == pytest.approx(1, abs=1e-12)


def test_soft_scores_grow_with_certainty(rng: np.random.Generator) -> None:
    """From no information to a partition."""
    x = rng.standard_normal((8, 6, 49))
    x -= x.max(axis=1, keepdims=True)
    own = [agreement.soft_partition(np.exp(s * x), np.exp(s * x)) for s in (0.0, 1.0, 4.0, 400.0)]
    for name in ("v_measure", "ami"):
        means = [found[name].mean() for found in own]
        assert means == sorted(means)
        assert means[0] == pytest.approx(0, abs=1e-9)
        assert means[-1] > 0.95
    chance = [agreement.soft_partition(np.exp(3 * x), soft(rng, 8, 9, sharp=3.0)) for _ in range(4)]
    for name in ("ami", "ari"):
        assert np.mean([found[name] for found in chance]) == pytest.approx(0, abs=0.03)
    assert np.mean([found["v_measure"] for found in chance]) > 0.05


def test_soft_map_of_a_reducer() -> None:
    """The weights of a TokenMap, and its scale per column, do not matter."""
    weight = torch.rand(2, 4, 9, generator=torch.Generator().manual_seed(0))
    map = TokenMap.soft(weight)
    found = agreement.soft_partition(map.dense(), map.dense() * torch.arange(1, 10))
    assert_allclose(found["ari"], 1, atol=1e-6)
    hard = TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, 2, -1, 3, 3]]), 4)
    found = agreement.compare_merging(hard.assignment(), hard.dense())
    assert_allclose([*found.values()], 1, atol=1e-10)
