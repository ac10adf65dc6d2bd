"""Scores of two partitions from sums over their table, the same for hard labels and soft assignments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MERGING = ("homogeneity", "completeness", "v_measure", "nmi", "ami", "ari", "purity")
NUMBERS = 2**21  # of an array that is worked on at once: 16 MB
_ROOM = 1e-9  # rounding of what is expected by chance


def mutual_information(n: Array, logs: list[Array]) -> Array:
    """``(images,)`` in nats: ``H(a) + H(b) - H(a, b)``.

    Args:
        n: ``(images,)`` patches.
        logs: sums of ``x log x`` over the sizes of the clusters of ``a``, of ``b``, and over the cells of their table.
    """
    some = np.maximum(n, 1)
    # Rounding may leave it just below 0.
    return np.maximum(np.log(some) + (logs[2] - logs[0] - logs[1]) / some, 0.0)


def expected_product(n: Array, diagonals: list[Array], totals: list[Array]) -> Array:
    """What the inner product of two symmetric matrices of ``n`` patches is on average when the patches of one are permuted.

    The matrices say who is together with whom; for labels the formula is the expectation in the adjusted Rand index.

    Args:
        n: ``(images,)`` patches.
        diagonals: sum of the diagonal of the one and of the other matrix.
        totals: sum of all entries of the one and of the other.
    """
    off = (totals[0] - diagonals[0]) * (totals[1] - diagonals[1])
    return diagonals[0] * diagonals[1] / np.maximum(n, 1) + off / np.maximum(n * (n - 1), 1)


def corrected(value: Array, chance: Array, best: Array) -> Array:
    """``(value - chance) / (best - chance)``; 1 where there is no room in between: both all alone, or both all together."""
    room = best - chance
    free = room > _ROOM * np.maximum(best, 1)
    return np.where(free, (value - chance) / np.where(free, room, 1.0), 1.0)


def scores(n: Array, logs: list[Array], expected: Array, *, ari: Array, largest: Array) -> dict[str, Array]:
    """By the names of :data:`MERGING`, ``(images,)``.

    Args:
        n: ``(images,)`` patches; NaN comes out where there are none.
        logs: as of :func:`mutual_information`.
        expected: mutual information by chance, in nats.
        ari: as it is.
        largest: patches in the largest cell of each cluster of ``b``, in all.
    """
    some = np.maximum(n, 1)
    mutual = mutual_information(n, logs)
    entropies = [np.maximum(np.log(some) - log / some, 0.0) for log in logs[:2]]
    # Everything is homogeneous with a single cluster; its entropy is 0 up to rounding.
    split = [entropy > _ROOM for entropy in entropies]
    homogeneity, completeness = (
        np.where(s, np.minimum(mutual / np.where(s, entropy, 1.0), 1.0), 1.0) for s, entropy in zip(split, entropies, strict=True)
    )
    both = homogeneity + completeness
    v_measure = np.where(both > 0, 2 * homogeneity * completeness / np.where(both > 0, both, 1.0), 0.0)
    ami = corrected(mutual, expected, (entropies[0] + entropies[1]) / 2)
    found = (homogeneity, completeness, v_measure, v_measure, ami, ari, largest / some)
    return {name: np.where(n > 0, values, np.nan) for name, values in zip(MERGING, found, strict=True)}


def in_parts(score: Callable[..., dict[str, Array]], numbers: int, *arrays: Array) -> dict[str, Array]:
    """The scores of some images at a time, so that memory does not grow with their number.

    Args:
        score: from arrays of some images to scores by name.
        numbers: that the work on an image takes.
        arrays: all of as many images.
    """
    size = max(NUMBERS // max(numbers, 1), 1)
    parts = [score(*(x[start : start + size] for x in arrays)) for start in range(0, len(arrays[0]), size)]
    return {name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0) for name in MERGING}


def as_labels(x: Any) -> Array:
    """``(images, patches)`` int64, -1 where a patch has been dropped.

    Raises:
        ValueError: for anything else than integers in two dimensions.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "iu" or x.ndim != 2:
        raise ValueError(f"labels are integers of shape (images, patches); got {x.dtype} of shape {x.shape}")
    if x.max(initial=0) >= 2**31:
        raise ValueError("labels are below 2**31; number the clusters of an image from 0")
    return x.astype(np.int64)


def as_among(among: Any, images: int, patches: int) -> Array:
    """``(images, patches)`` bool: the patches that may count; all when None.

    Raises:
        ValueError: for anything else than bool of that shape.
    """
    if among is None:
        return np.ones((images, patches), dtype=bool)
    among = np.asarray(among)
    if among.dtype != bool or among.shape != (images, patches):
        raise ValueError(f"among is bool of shape {(images, patches)}; got {among.dtype} of shape {among.shape}")
    return among
