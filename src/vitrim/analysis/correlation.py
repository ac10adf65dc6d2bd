"""Rank correlations with confidence intervals and p-values that hold for few pairs and for pairs that share runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import false_discovery_control, kendalltau, rankdata, spearmanr, t

Array = npt.NDArray[Any]
Interval = Literal["bca", "percentile"]

FEW = 30  # pairs up to which p-values come from permutations
_PERMUTATIONS = 20_000
_BLOCK = 512  # columns of the matrix of signs that are held at a time


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho and Kendall's tau-b of pairs of values, each with its interval and two-sided p-value.

    Attributes:
        n: pairs of values without NaN.
        spearman: rho; NaN, like all the rest, for fewer than three pairs or when one side is constant.
        kendall: tau-b.
        spearman_low: lower end of the confidence interval.
        spearman_high: upper end.
        kendall_low: lower end.
        kendall_high: upper end.
        spearman_p: of rho = 0.
        kendall_p: of tau = 0.
        units: what is drawn in the bootstrap: groups, or pairs when there are none.
    """

    n: int
    spearman: float = math.nan
    kendall: float = math.nan
    spearman_low: float = math.nan
    spearman_high: float = math.nan
    kendall_low: float = math.nan
    kendall_high: float = math.nan
    spearman_p: float = math.nan
    kendall_p: float = math.nan
    units: int = 0


def correlate(
    x: Any,
    y: Any,
    *,
    groups: Any = None,
    resamples: int = 2000,
    level: float = 0.95,
    interval: Interval = "bca",
    seed: int = 0,
) -> Correlation:
    """Correlate the ranks of two lists of values; rows with NaN are left out, infinite values are the largest ones.

    Where rows are pairs of runs (a similarity and a difference in accuracy), they are not independent: all pairs of a run share
    its features and its accuracy, so that 10 runs make 45 pairs but only 10 draws. Intervals that draw pairs are then far too
    narrow. With ``groups`` whole runs are drawn: a pair enters as often as its runs do, multiplied (the vertex bootstrap of
    Snijders & Borgatti, Connections 1999; Owen, Annals of Applied Statistics 2007).

    Without ``groups`` p-values of up to :data:`FEW` pairs come from permutations (all of them up to seven pairs; Kendall's is
    exact without ties), and from the approximations of SciPy above. With ``groups`` permuting pairs would break what runs share:
    the estimate is divided by its bootstrap standard error (Spearman and Kendall on Fisher's scale) and compared with Student's t
    of one degree of freedom less than there are groups.

    Args:
        x: ``(n,)``.
        y: ``(n,)``.
        groups: ``(n,)`` names, rows of one name being drawn together, or ``(n, 2)``: both runs of each pair, in one set of names.
        resamples: bootstrap draws.
        level: of the intervals.
        interval: "bca" (Efron, JASA 1987: corrected for bias and skew) or "percentile".
        seed: of draws and permutations.

    Raises:
        ValueError: for lists of different lengths, or a level outside 0 to 1.
    """
    x, y = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    labels = np.arange(len(x)) if groups is None else np.asarray(groups)
    if not len(x) == len(y) == len(labels):
        raise ValueError(f"{len(x)} values, {len(y)} values and {len(labels)} groups: give one of each a pair")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: a confidence level lies between 0 and 1, as 0.95")
    held = ~(np.isnan(x) | np.isnan(y))
    x, y, labels = x[held], y[held], (labels[:, None] if labels.ndim == 1 else labels)[held]
    codes = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    units = int(codes.max(initial=-1)) + 1
    if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return Correlation(n=len(x), units=units)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=resamples)
    weights, without = _weights(drawn, codes), _weights(1 - np.eye(units, dtype=np.int64), codes)
    results: dict[str, float] = {}
    for name, measure in (("spearman", _spearman), ("kendall", _kendall)):
        estimate = float(measure(x, y, np.ones((1, len(x))))[0])
        replicates = measure(x, y, weights)
        ends = _ends(estimate, replicates, measure(x, y, without), level, interval) if units >= 3 else (math.nan, math.nan)
        results |= {name: estimate, f"{name}_low": ends[0], f"{name}_high": ends[1]}
        if groups is None:
            results[f"{name}_p"] = _p_value(name, x, y, rng)
        else:
            results[f"{name}_p"] = _p_of_groups(estimate, replicates, units)
    return Correlation(n=len(x), units=units, **results)


def corrected(p_values: Any, method: Literal["holm", "bh"] = "holm") -> Array:
    """Correct p-values for the number of tests.

    Args:
        p_values: of any shape, all tests of one family. NaN (no test) stays NaN and does not count.
        method: "holm" bounds the probability of a single false discovery (Holm, Scandinavian Journal of Statistics 1979), "bh"
            the expected share of false ones (Benjamini & Hochberg, JRSS B 1995).

    Returns:
        Of the same shape, float64: compare with the level wanted.

    Raises:
        ValueError: for values outside 0 to 1, or another method.
    """
    if method not in ("holm", "bh"):
        raise ValueError(f"unknown correction {method!r}; choose holm or bh")
    p = np.asarray(p_values, dtype=np.float64)
    result, tested = np.full(p.shape, np.nan), ~np.isnan(p)
    values = p[tested]
    if ((values < 0) | (values > 1)).any():
        raise ValueError("p-values lie between 0 and 1: give those of the tests, not their statistics")
    if not values.size:
        return result
    if method == "bh":
        result[tested] = false_discovery_control(values)
        return result
    order = np.argsort(values)
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    found = np.empty_like(values)
    found[order] = np.minimum(steps, 1)
    result[tested] = found
    return result


def _weights(drawn: Array, codes: Array) -> Array:
    """``(draws, n)``: how often each pair is in a draw of its ``(n, k)`` groups."""
    return np.prod([drawn[:, column] for column in codes.T], axis=0).astype(np.float64)


def _masses(values: Array, weights: Array) -> tuple[Array, Array]:
    """``(draws, u)`` weight of each different value, ascending, and ``(n,)`` which of them each value is."""
    codes = np.unique(values, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(weights[:, order], starts, axis=1), codes


def _spearman(x: Array, y: Array, weights: Array) -> Array:
    """``(draws,)`` rho of samples in which each pair is contained so many times; NaN where one side is constant."""
    total = weights.sum(axis=1, keepdims=True)
    ranks: list[Array] = []
    for values in (x, y):
        mass, codes = _masses(values, weights)
        # The average rank of all copies of a value, from the mean of all ranks.
        ranks.append((mass.cumsum(axis=1) - mass / 2 - total / 2)[:, codes])
    a, b = ranks
    return _ratio((weights * a * b).sum(axis=1), (weights * a * a).sum(axis=1), (weights * b * b).sum(axis=1))


def _kendall(x: Array, y: Array, weights: Array) -> Array:
    """``(draws,)`` tau-b of samples in which each pair is contained so many times; NaN where one side is constant."""
    score, counts = np.zeros(len(weights)), weights.astype(np.float32)  # sums of whole numbers below 2^24: exact, twice as fast
    for start in range(0, len(x), _BLOCK):
        part = slice(start, start + _BLOCK)
        score += np.einsum("rp,rp->r", counts @ (_signs(x, part) * _signs(y, part)), weights[:, part])
    total = weights.sum(axis=1)
    untied = [total**2 - (_masses(values, weights)[0] ** 2).sum(axis=1) for values in (x, y)]
    return _ratio(score, *untied)


def _signs(values: Array, part: slice) -> Array:
    """``(n, part)``: whether a value is larger (1), equal or smaller; infinities are equal to themselves."""
    a, b = values[:, None], values[None, part]
    return (a > b).astype(np.float32) - (a < b).astype(np.float32)


def _ratio(product: Array, first: Array, second: Array) -> Array:
    scale = np.sqrt(first * second)
    known = scale > 1e-9
    return np.where(known, np.clip(product / np.where(known, scale, 1), -1, 1), np.nan)


def _ends(estimate: float, replicates: Array, without: Array, level: float, interval: Interval) -> tuple[float, float]:
    """Confidence interval from bootstrap replicates and, for BCa, from the estimates without one unit each."""
    replicates, without = replicates[~np.isnan(replicates)], without[~np.isnan(without)]
    if not len(replicates):
        return math.nan, math.nan
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if interval == "bca" and len(without):
        gap = replicates - estimate
        below = ((gap < -1e-12).sum() + 0.5 * (np.abs(gap) <= 1e-12).sum()) / len(gap)
        # A draw that is always on one side would correct without bound.
        bias = ndtri(np.clip(below, 0.5 / len(gap), 1 - 0.5 / len(gap)))
        off = without.mean() - without
        spread = float((off**2).sum())
        skew = float((off**3).sum()) / (6 * spread**1.5) if spread > 1e-18 else 0.0
        z = bias + ndtri(tails)
        tails = ndtr(bias + z / (1 - skew * z))
    low, high = np.quantile(replicates, tails)
    return float(low), float(high)


def _p_of_groups(estimate: float, replicates: Array, units: int) -> float:
    """Student's t of the estimate over its bootstrap error, on Fisher's scale; NaN where the draws do not vary."""
    replicates = replicates[~np.isnan(replicates)]
    edge = 1 - 1e-6
    spread = float(np.std(np.arctanh(np.clip(replicates, -edge, edge)))) if units >= 3 and len(replicates) else 0.0
    if spread < 1e-9:
        return math.nan
    return float(2 * t.sf(abs(np.arctanh(np.clip(estimate, -edge, edge))) / spread, units - 1))


def _p_value(name: str, x: Array, y: Array, rng: np.random.Generator) -> float:
    """Two-sided p-value for independent pairs."""
    ties = len(np.unique(x)) < len(x) or len(np.unique(y)) < len(y)
    a, b = rankdata(x), rankdata(y)
    if name == "kendall" and (len(x) > FEW or not ties):
        test: Any = kendalltau(a, b)
        return float(test.pvalue)
    if len(x) > FEW:
        test = spearmanr(a, b)
        return float(test.pvalue)
    if math.factorial(len(x)) <= _PERMUTATIONS:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        orders = rng.permuted(np.tile(np.arange(len(x)), (_PERMUTATIONS, 1)), axis=1)
    if name == "spearman":
        # The norms are the same in every order.
        a, b = a - a.mean(), b - b.mean()
        observed, found = a @ b, b[orders] @ a
    else:
        whole = slice(None)
        first, second = np.triu_indices(len(x), 1)
        signs, other = _signs(a, whole)[first, second], _signs(b, whole)
        observed, found = signs @ other[first, second], other[orders[:, first], orders[:, second]] @ signs
    extreme = int((np.abs(found) >= abs(observed) - 1e-9).sum())
    # What was observed is one of the orders: among all of them it has been counted, among drawn ones not.
    return extreme / len(orders) if len(orders) < _PERMUTATIONS else (extreme + 1) / (len(orders) + 1)
