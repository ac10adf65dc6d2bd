"""How alike two heat maps over the patches are, as of average token depth, and the numbers that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_array
from scipy.stats import rankdata

Array = npt.NDArray[Any]
Compat = Literal["paper", "official"]

MAPS = ("kl12", "kl21", "js", "pcc", "scc", "sim", "emd")
_FLAT = 1e-12  # a map whose values differ by less, relative to the largest, is constant: what is left is rounding
_HIGHS = {"presolve": False, "primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def compare_maps(m1: Any, m2: Any, *, measures: Sequence[str] = MAPS, compat: Compat = "paper") -> dict[str, float]:
    """Compare two heat maps by the measures of "Which Tokens to Use?" (arXiv:2308.04657, after Bylinskii et al., TPAMI 2019).

    A cell that is NaN in one map is left out of both. Where a measure has no value it is NaN: ``kl``, ``js`` and ``emd`` when a
    map is zero everywhere, ``pcc``, ``scc`` and ``sim`` when one is constant (as that of a model that is not reduced).

    Args:
        m1: ``(rows, columns)`` values of 0 or more.
        m2: of the same grid.
        measures: which of :data:`MAPS`.
        compat: "official" for the numbers of the published scripts, in which both Kullback-Leibler divergences are exchanged and
            the arguments of the Jensen-Shannon divergence reversed.

    Returns:
        By name: ``kl12`` and ``kl21`` divergence of the first from the second map and back, ``js`` (all three in bits), ``pcc``
        and ``scc`` correlation of Pearson and Spearman, ``sim`` intersection of histograms, ``emd`` in cells.

    Raises:
        ValueError: for maps of two grids, infinite or negative values, or an unknown measure.
    """
    first, second = (m1, m2) if compat == "paper" else (m2, m1)
    known: dict[str, Callable[[], float]] = {
        "kl12": lambda: kl(first, second),
        "kl21": lambda: kl(second, first),
        "js": lambda: js(m1, m2, compat=compat),
        "pcc": lambda: pcc(m1, m2),
        "scc": lambda: scc(m1, m2),
        "sim": lambda: sim(m1, m2),
        "emd": lambda: emd(m1, m2),
    }
    if strange := [name for name in measures if name not in known]:
        raise ValueError(f"unknown measure {strange[0]!r} of heat maps; choose from {', '.join(MAPS)}")
    return {name: known[name]() for name in measures}


def kl(m1: Any, m2: Any) -> float:
    """Kullback-Leibler divergence ``sum p log2(p / q)`` of the first map from the second, each divided by its sum.

    Nothing is added to the maps: infinite when the second is 0 where the first is not.

    Returns:
        0 or more bits; NaN when a map is zero everywhere.
    """
    p, q = _shares(m1, m2)
    return _divergence(p, q)


def js(m1: Any, m2: Any, *, compat: Compat = "paper") -> float:
    """Jensen-Shannon divergence, in bits.

    Args:
        m1: first map.
        m2: second map.
        compat: "paper" is the mean divergence of both maps *from* their mean, 0 to 1. "official" is that of the mean from both
            maps, as the published scripts have it: unbounded, and infinite when one map has a 0 that the other has not.

    Returns:
        0 when both have the same shares; NaN when a map is zero everywhere.
    """
    p, q = _shares(m1, m2)
    mean = (p + q) / 2
    if compat == "official":
        return (_divergence(mean, p) + _divergence(mean, q)) / 2
    return (_divergence(p, mean) + _divergence(q, mean)) / 2


def pcc(m1: Any, m2: Any) -> float:
    """Pearson's correlation of the cells, -1 to 1; NaN when a map is constant."""
    a, b = _cells(m1, m2)
    if _constant(a) or _constant(b):
        return float("nan")
    return _pearson(a, b)


def scc(m1: Any, m2: Any) -> float:
    """Spearman's correlation of the cells, ties by their average rank, -1 to 1; NaN when a map is constant."""
    a, b = _cells(m1, m2)
    if _constant(a) or _constant(b):
        return float("nan")
    return _pearson(rankdata(a), rankdata(b))


def sim(m1: Any, m2: Any) -> float:
    """Intersection of histograms, 0 to 1: each map scaled to 0 to 1, divided by its sum, and the smaller cells summed.

    NaN when a map is constant, as there is nothing to scale.
    """
    a, b = _cells(m1, m2)
    if _constant(a) or _constant(b):
        return float("nan")
    a, b = a - a.min(), b - b.min()
    return float(np.minimum(a / a.sum(), b / b.sum()).sum())


def emd(m1: Any, m2: Any) -> float:
    """Earth mover's distance: the least work that turns one map, divided by its sum, into the other.

    Solved exactly. The ground distance is Euclidean between the centres of cells, so that what two maps have in common stays
    where it is in some optimal plan (triangle inequality): only the surplus is shipped, which halves both sides of the problem.
    A pair of 14 x 14 takes some 30 ms, one of 24 x 24 about 0.7 s; larger grids are better pooled first.

    Args:
        m1: ``(rows, columns)``.
        m2: of the same grid.

    Returns:
        Mean distance that a unit of mass is moved, in cells; NaN when a map is zero everywhere.

    Raises:
        ValueError: for a map that is not ``(rows, columns)``.
    """
    shape = np.shape(m1)
    if len(shape) != 2:
        raise ValueError(f"the distances between cells need a map of (rows, columns), not {shape}: reshape it to the grid")
    p, q = _shares(m1, m2)
    if np.isnan(p).any() or np.isnan(q).any():
        return float("nan")
    places = np.argwhere(_present(m1, m2)).astype(np.float64)
    surplus = p - q
    # Differences of two equal shares leave 1e-17 behind; their transport would cost the same and could be infeasible.
    sources, sinks = surplus > 1e-15, surplus < -1e-15
    moved = float(surplus[sources].sum())
    if moved < _FLAT or not sinks.any():
        return 0.0
    between = np.linalg.norm(places[sources][:, None] - places[sinks][None], axis=-1)
    return moved * _transport(surplus[sources] / moved, surplus[sinks] / surplus[sinks].sum(), between)


def _transport(supply: Array, demand: Array, cost: Array) -> float:
    """The least cost of shipping all of ``(n,)`` to ``(m,)``, both of sum 1, at ``(n, m)`` a unit."""
    n, m = cost.shape
    source, sink = np.divmod(np.arange(n * m), m)
    # The last row follows from the others, and contradicts them by a rounding error: left out.
    rows, columns = np.concatenate([source, n + sink]), np.tile(np.arange(n * m), 2)
    kept = rows < n + m - 1
    sums = csr_array((np.ones(int(kept.sum())), (rows[kept], columns[kept])), shape=(n + m - 1, n * m))
    # The solver's tolerances are absolute: masses of about 1 each, or it would not see those of maps that are nearly alike.
    wanted = np.concatenate([supply, demand])[:-1] * n
    found = linprog(cost.ravel(), A_eq=sums, b_eq=wanted, method="highs-ds", options=_HIGHS)
    if found.status != 0:
        raise RuntimeError(f"optimal transport between {n} and {m} cells failed ({found.message}); compare without emd")
    return float(found.fun) / n


def _present(m1: Any, m2: Any) -> Array:
    """Cells that both maps have."""
    return ~(np.isnan(np.asarray(m1, dtype=np.float64)) | np.isnan(np.asarray(m2, dtype=np.float64)))


def _cells(m1: Any, m2: Any) -> tuple[Array, Array]:
    """The cells that both maps have, as two float64 vectors."""
    a, b = np.asarray(m1, dtype=np.float64), np.asarray(m2, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"two heat maps of {a.shape} and {b.shape} cells: resize one to the grid of the other")
    if np.isinf(a).any() or np.isinf(b).any():
        raise ValueError("a heat map has infinite values; give finite ones, NaN where there is none")
    present = _present(a, b)
    return a[present], b[present]


def _shares(m1: Any, m2: Any) -> tuple[Array, Array]:
    """Both maps divided by their sums; NaN when that is 0."""
    a, b = _cells(m1, m2)
    if (a < 0).any() or (b < 0).any():
        raise ValueError("a heat map with negative values has no shares; subtract its minimum, or compare by pcc, scc and sim")
    return _share(a), _share(b)


def _share(values: Array) -> Array:
    return values / values.sum() if values.any() else np.full(max(values.size, 1), np.nan)


def _divergence(p: Array, q: Array) -> float:
    if np.isnan(p).any() or np.isnan(q).any():
        return float("nan")
    held = p > 0
    if (q[held] == 0).any():
        return float("inf")
    return float((p[held] * np.log2(p[held] / q[held])).sum())


def _constant(values: Array) -> bool:
    return not values.size or float(np.ptp(values)) <= _FLAT * float(np.abs(values).max())


def _pearson(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
