"""How alike two choices of kept patches are: per image, plain and against chance."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitrim.analysis.chance import overlap

Array = npt.NDArray[Any]
Masks = Array | Tensor
Best = Literal["nested", "equal"]

PRUNING = ("iou", "ioa", "dice", "hamming", "adjusted_iou", "adjusted_ioa", "kappa")
_PAIRS = 1024
_ROOM = 1e-9  # rounding; the smallest room that sets leave, n - 1 of n, is far above


def compare_pruning(a: Masks, b: Masks) -> dict[str, Array]:
    """All measures of :data:`PRUNING` of two choices of patches.

    Args:
        a: ``(images, patches)`` bool, True where a patch is kept.
        b: the same for the same images, of the other model, rate or stage.

    Returns:
        By name, ``(images,)`` float64.

    Raises:
        ValueError: for masks that are not bool or differ in shape.
    """
    found = (iou(a, b), ioa(a, b), dice(a, b), hamming(a, b), adjusted_iou(a, b), adjusted_ioa(a, b), kappa(a, b))
    return dict(zip(PRUNING, found, strict=True))


def iou(a: Masks, b: Masks) -> Array:
    """``(images,)`` intersection over union; 0 when nothing is kept in common, as in the published evaluation."""
    both, ka, kb, _ = _sizes(a, b)
    return _ratio(both, ka + kb - both)


def ioa(a: Masks, b: Masks) -> Array:
    """``(images,)`` intersection over the area of ``b``: the share of its patches that ``a`` keeps too.

    The published comparison of rates gives the higher rate as ``a``. 0 when nothing is kept in common.
    """
    both, _, kb, _ = _sizes(a, b)
    return _ratio(both, kb)


def dice(a: Masks, b: Masks) -> Array:
    """``(images,)`` twice the intersection over the sum of both areas; 0 when nothing is kept in common."""
    both, ka, kb, _ = _sizes(a, b)
    return _ratio(2 * both, ka + kb)


def hamming(a: Masks, b: Masks) -> Array:
    """``(images,)`` share of the patches on which the two differ: a distance, 0 when equal."""
    both, ka, kb, n = _sizes(a, b)
    return (ka + kb - 2 * both) / n


def kappa(a: Masks, b: Masks) -> Array:
    """``(images,)`` Cohen's kappa of the decisions to keep or drop: ``1 - hamming`` against its expectation by chance.

    1 for equal choices, 0 in expectation for random ones of the same sizes.
    """
    both, ka, kb, n = _sizes(a, b)
    chance = (ka * kb + (n - ka) * (n - kb)) / n**2
    return _against(1 - (ka + kb - 2 * both) / n, chance, np.ones_like(chance), (both == ka) & (both == kb))


def expected_iou(n: int, ka: npt.ArrayLike, kb: npt.ArrayLike) -> Array:
    """Mean IoU of two random choices of ``ka`` and of ``kb`` of ``n`` patches, summed over the sizes of the intersection.

    Args:
        n: patches.
        ka: kept by the one, a number or ``(images,)``.
        kb: kept by the other.

    Returns:
        float64 of the shape that ``ka`` and ``kb`` have together.

    Raises:
        ValueError: for sizes outside of 0 to ``n``.
    """
    ka, kb = _counts(n, ka, kb)
    pairs, places = np.unique(np.stack([ka.ravel(), kb.ravel()]), axis=1, return_inverse=True)
    means = np.empty(pairs.shape[1])
    for start in range(0, len(means), _PAIRS):
        part = pairs[:, start : start + _PAIRS]
        chances = overlap(n, *part)
        both = np.arange(chances.shape[-1])
        means[start : start + _PAIRS] = (chances * _ratio(both, (part.sum(axis=0)[:, None] - both).clip(0))).sum(axis=-1)
    return means[places].reshape(ka.shape)[()]


def expected_ioa(n: int, ka: npt.ArrayLike, kb: npt.ArrayLike) -> Array:
    """Mean IoA of two random choices, which is ``ka / n`` (0 when ``kb`` is 0); arguments as of :func:`expected_iou`."""
    ka, kb = _counts(n, ka, kb)
    return np.where(kb > 0, ka / n, 0.0)[()]


def adjusted_iou(a: Masks, b: Masks, *, best: Best = "nested") -> Array:
    """``(images,)`` ``(IoU - chance) / (best - chance)``: 0 in expectation for random choices, 1 for the best agreement.

    Args:
        a: as of :func:`compare_pruning`.
        b: as of :func:`compare_pruning`.
        best: what counts as 1. ``nested``: the largest IoU that sets of these sizes allow, reached when the smaller lies in the
            larger, so that different keep rates can be compared with each other; ``equal``: an IoU of 1, for equal sets only.

    Returns:
        May be negative: less than chance. Where the sizes leave no choice (everything kept, or nothing) 1 for equal masks and
        else 0, as the adjusted indices of partitions have it.

    Raises:
        ValueError: for another ``best``, or masks that do not fit.
    """
    both, ka, kb, n = _sizes(a, b)
    chance = expected_iou(n, ka, kb)
    return _against(_ratio(both, ka + kb - both), chance, _best(best, ka, kb, np.maximum(ka, kb)), (both == ka) & (both == kb))


def adjusted_ioa(a: Masks, b: Masks, *, best: Best = "nested") -> Array:
    """``(images,)`` ``(IoA - chance) / (best - chance)``, as :func:`adjusted_iou`.

    Nested, it does not depend on which of the two is ``a``: it is the intersection itself, against chance.
    """
    both, ka, kb, n = _sizes(a, b)
    chance = expected_ioa(n, ka, kb)
    return _against(_ratio(both, kb), chance, _best(best, ka, kb, kb), (both == ka) & (both == kb))


def _sizes(a: Masks, b: Masks) -> tuple[Array, Array, Array, int]:
    """``(images,)`` sizes of the intersection and of both sets, and the number of patches."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != bool or b.dtype != bool:
        raise ValueError(f"masks are bool, True where a patch is kept; got {a.dtype} and {b.dtype}: pass labels >= 0")
    if a.shape != b.shape or a.ndim != 2 or not a.shape[1]:
        raise ValueError(f"masks are (images, patches), both of the same images; got {a.shape} and {b.shape}")
    return (a & b).sum(axis=1), a.sum(axis=1), b.sum(axis=1), a.shape[1]


def _counts(n: int, ka: npt.ArrayLike, kb: npt.ArrayLike) -> tuple[Array, Array]:
    ka, kb = np.broadcast_arrays(np.asarray(ka, np.int64), np.asarray(kb, np.int64))
    low, high = (f([f(ka), f(kb)]) if ka.size else 0 for f in (np.min, np.max))
    if n < 1 or low < 0 or high > n:
        raise ValueError(f"a choice of {n} patches keeps 0 to {n} of them; got {low} to {high}")
    return ka, kb


def _ratio(part: Array, whole: Array) -> Array:
    """0 where the whole is empty."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def _best(best: Best, ka: Array, kb: Array, whole: Array) -> Array:
    if best not in ("nested", "equal"):
        raise ValueError(f"best is 'nested' or 'equal'; got {best!r}")
    return _ratio(np.minimum(ka, kb), whole) if best == "nested" else np.ones(ka.shape)


def _against(value: Array, chance: Array, best: Array, equal: Array) -> Array:
    room = best - chance
    free = room > _ROOM
    return np.where(free, (value - chance) / np.where(free, room, 1.0), equal.astype(np.float64))
