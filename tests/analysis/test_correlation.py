import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, false_discovery_control, kendalltau, permutation_test, spearmanr

from vitrim.analysis.correlation import Correlation, corrected, correlate


@pytest.fixture
def tied():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 20).astype(float)
    return x, x + rng.integers(0, 8, 20)


def related(n, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    return x, x + noise * rng.standard_normal(n)


def test_estimates(tied):
    for x, y in (tied, related(50), related(700)):  # the last in two blocks
        found = correlate(x, y, resamples=5)
        assert (found.n, found.units) == (len(x), len(x))
        assert found.spearman == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        assert found.kendall == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)


def test_draws_are_samples(tied):
    """The quantile of 0 to 1 of one draw is that draw: compare with SciPy on the same rows, copied out."""
    x, y = tied
    for seed in range(5):
        drawn = np.random.default_rng(seed).multinomial(20, np.full(20, 1 / 20), size=1)[0]
        rows = np.repeat(np.arange(20), drawn)
        found = correlate(x, y, resamples=1, interval="percentile", seed=seed)
        assert found.spearman_low == pytest.approx(spearmanr(x[rows], y[rows]).statistic, abs=1e-12)
        assert found.kendall_low == pytest.approx(kendalltau(x[rows], y[rows]).statistic, abs=1e-12)


def test_draws_of_groups_are_samples(tied):
    x, y = tied
    group = np.repeat(list("abcde"), 4)
    ends = list(itertools.combinations(range(7), 2))[:20]
    for seed in range(5):
        drawn = np.random.default_rng(seed).multinomial(5, np.full(5, 1 / 5), size=1)[0]
        rows = np.repeat(np.arange(20), np.repeat(drawn, 4))
        found = correlate(x, y, groups=group, resamples=1, interval="percentile", seed=seed)
        assert found.units == 5
        assert found.spearman_low == pytest.approx(spearmanr(x[rows], y[rows]).statistic, abs=1e-12)
        drawn = np.random.default_rng(seed).multinomial(7, np.full(7, 1 / 7), size=1)[0]
        rows = np.repeat(np.arange(20), [drawn[a] * drawn[b] for a, b in ends])
        found = correlate(x, y, groups=ends, resamples=1, interval="percentile", seed=seed)
        assert found.units == 7
        assert found.kendall_low == pytest.approx(kendalltau(x[rows], y[rows]).statistic, abs=1e-12)


@pytest.mark.parametrize(("interval", "method"), [("bca", "BCa"), ("percentile", "percentile")])
def test_intervals_are_those_of_scipy(interval, method):
    x, y = related(40)
    wanted = bootstrap(
        (x, y), lambda a, b: kendalltau(a, b).statistic, paired=True, vectorized=False, method=method, n_resamples=1000, rng=1
    ).confidence_interval
    found = correlate(x, y, resamples=4000, interval=interval)
    assert (found.kendall_low, found.kendall_high) == pytest.approx(tuple(wanted), abs=0.04)
    assert found.spearman_low < found.spearman < found.spearman_high


def test_the_same_seed_is_the_same_answer():
    x, y = related(20)
    assert correlate(x, y) == correlate(x, y)
    assert correlate(x, y) != correlate(x, y, seed=1)
    narrow = correlate(x, y, level=0.5)
    assert narrow.spearman_high - narrow.spearman_low < correlate(x, y).spearman_high - correlate(x, y).spearman_low


def test_p_values_of_all_permutations():
    x, y = np.array([1, 2, 3, 4, 4, 6.0]), np.array([2, 1, 3, 5, 4, 4.0])
    found = correlate(x, y, resamples=10)
    for name, measure in (("spearman", spearmanr), ("kendall", kendalltau)):
        wanted = permutation_test(
            (y,),
            lambda b, measure=measure: measure(x, b).statistic,
            permutation_type="pairings",
            vectorized=False,
            n_resamples=math.inf,
        )
        two_sided = np.mean(np.abs(wanted.null_distribution) >= abs(wanted.statistic) - 1e-9)
        assert getattr(found, f"{name}_p") == pytest.approx(two_sided, abs=1e-12)


def test_p_values_by_drawn_permutations(tied):
    for x, y in (tied, related(25, noise=2)):
        found = correlate(x, y, resamples=10)
        assert found.spearman_p == pytest.approx(spearmanr(x, y).pvalue, abs=0.01)
        assert found.kendall_p == pytest.approx(kendalltau(x, y).pvalue, abs=0.01)
    assert found.kendall_p == kendalltau(x, y).pvalue  # exact without ties
    x, y = related(31)
    assert correlate(x, y, resamples=10).spearman_p == spearmanr(x, y).pvalue


def test_pairs_that_share_runs_are_fewer_draws():
    """Differences of two properties of runs without any relation: 66 pairs, but only 12 runs."""
    naive, honest, inside = 0, 0, 0
    ends = np.array(list(itertools.combinations(range(12), 2)))
    for seed in range(40):
        x, y = (v[ends[:, 0]] - v[ends[:, 1]] for v in np.random.default_rng(seed).standard_normal((2, 12)))
        naive += correlate(x, y, resamples=5).spearman_p < 0.05
        together = correlate(x, y, groups=ends, resamples=150)
        honest += together.spearman_p < 0.05
        inside += together.kendall_low <= 0 <= together.kendall_high
    assert naive >= 10  # of 40, where 2 would be right
    assert honest <= 4
    assert inside >= 34


def test_missing_and_infinite_values():
    x, y = related(20)
    holes = x.copy()
    holes[3], y[5] = np.nan, np.nan
    rest = np.setdiff1d(np.arange(20), [3, 5])
    assert correlate(holes, y) == correlate(x[rest], y[rest])
    group = np.arange(20) // 2
    assert correlate(holes, y, groups=group) == correlate(x[rest], y[rest], groups=group[rest])
    # Divergences may be infinite: the largest rank, tied with each other.
    far = np.where(x[rest] > 1, np.inf, x[rest])
    assert correlate(far, y[rest]) == correlate(np.where(x[rest] > 1, 99, x[rest]), y[rest])


def test_what_has_no_correlation():
    for x, y in (([], []), ([1, 2], [2, 1]), ([1, 1, 1, 1], [1, 2, 3, 4])):
        found = correlate(x, y)
        assert found.n == len(x)
        assert all(math.isnan(v) for k, v in vars(found).items() if k not in ("n", "units"))
    lone = correlate([1, 2, 3, 4], [1, 3, 2, 4], groups=["a", "a", "b", "b"])
    assert lone.kendall == pytest.approx(2 / 3)
    assert math.isnan(lone.kendall_low)
    assert math.isnan(lone.kendall_p)


def test_a_perfect_relation():
    found = correlate(np.arange(6), np.arange(6) ** 2)
    assert (found.spearman, found.spearman_low, found.spearman_high) == pytest.approx((1, 1, 1))
    assert found.kendall_p == pytest.approx(2 / math.factorial(6))
    assert found.spearman_p == pytest.approx(2 / math.factorial(6))
    assert math.isnan(correlate(np.arange(6), np.arange(6), groups=np.arange(6)).spearman_p)


def test_refused():
    with pytest.raises(ValueError, match="one of each"):
        correlate([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="confidence level"):
        correlate([1, 2, 3], [1, 2, 3], level=95)
    with pytest.raises(ValueError, match="holm or bh"):
        corrected([0.1], "bonferroni")
    with pytest.raises(ValueError, match="between 0 and 1"):
        corrected([-2.0])
    assert isinstance(correlate([1, 2, 3], [1, 2, 3]), Correlation)


def test_corrections():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.7])
    assert corrected(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.7])  # by hand: times 4, 2, 3, 5, 1
    assert corrected(p, "bh") == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.7])  # times 5/2, 5/4, 5/3, 5, 1
    rng = np.random.default_rng(0)
    p = rng.random((4, 10)) ** 3
    assert corrected(p, "bh").ravel() == pytest.approx(false_discovery_control(p.ravel()))
    assert (corrected(p) >= corrected(p, "bh")).all()
    assert (corrected(p) <= np.minimum(p * p.size, 1) + 1e-12).all()
    # Holm's procedure as it is written: reject in order, until one is too large.
    for level in (0.01, 0.05, 0.3):
        ordered = np.sort(p.ravel())
        passed = np.cumprod(ordered <= level / np.arange(p.size, 0, -1)).astype(bool)
        assert (corrected(p) <= level).sum() == passed.sum()
    holes = np.array([0.01, np.nan, 0.04])
    assert corrected(holes) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert len(corrected([])) == 0
