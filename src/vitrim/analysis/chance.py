"""What two random choices have in common: the zero that agreement is measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

Array = npt.NDArray[Any]


def overlap(n: int, a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """How probable each size of the intersection of two random subsets is: the hypergeometric distribution.

    Args:
        n: elements to choose from.
        a: size of the one subset, 0 to ``n``.
        b: size of the other; the two are broadcast.

    Returns:
        ``(..., T + 1)`` probabilities of an intersection of 0 to T elements; T is the largest that is possible for any pair.
    """
    a, b = (x[..., None] for x in np.broadcast_arrays(np.asarray(a, np.int64), np.asarray(b, np.int64)))
    both = np.arange(np.minimum(a, b).max(initial=0) + 1)
    neither = n - a - b + both
    log = gammaln(np.arange(n + 1) + 1.0)  # logarithms of factorials
    ways = log[a] + log[b] + log[n - a] + log[n - b] - log[n]
    # Indices outside of the table belong to impossible sizes, which are set to 0 below.
    taken = log[both] + log[(a - both).clip(0)] + log[(b - both).clip(0)] + log[neither.clip(0, n)]
    possible = (both <= a) & (both <= b) & (neither >= 0)
    return np.exp(np.where(possible, ways - taken, -np.inf))


def expected_information(n: int, a: Array, b: Array) -> Array:
    """What a pair of clusters of given sizes adds to the mutual information of two random partitions.

    The expected mutual information of two partitions (Vinh, Epps and Bailey, JMLR 2010) is the sum over all pairs of their
    clusters; a pair enters by its sizes alone, so that a table of sizes serves all images.

    Args:
        n: elements.
        a: ``(A,)`` sizes of clusters of the one partition, 1 to ``n``.
        b: ``(B,)`` sizes of clusters of the other.

    Returns:
        ``(A, B)`` in nats.
    """
    table = np.zeros((len(a), len(b)))
    for row, size in enumerate(a):  # size by size: the whole is a cube
        chances = overlap(n, size, b)
        both = np.arange(1, chances.shape[-1])
        gain = both / n * np.log(n * both / (size * b[:, None]))
        table[row] = (chances[:, 1:] * gain).sum(axis=1)
    return table
