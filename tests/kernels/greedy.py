"""The oracle of the clustering tests: one merge after the other, as the definition says."""

from __future__ import annotations

from typing import Any

import numpy as np


def greedy(distance: np.ndarray, k: int, linkage: str, dtype: Any = np.float64) -> np.ndarray:
    """Merge the closest pair of clusters until ``k`` are left.

    A cluster is called by its lowest member. Of equal distances the pair with the lowest first name wins, then the one
    with the lowest second name.

    Args:
        distance: ``(n, n)`` symmetric; NaN and infinity count as further away than anything finite.
        k: number of clusters, 1 to n.
        linkage: single, complete or average.
        dtype: precision of the distances; float32 rounds exactly as a float32 kernel must.

    Returns:
        ``(n,)`` int64 ids in ``[0, k)``, numbered by first member.
    """
    d = np.where(np.isfinite(distance), distance, np.inf).astype(dtype)
    size = np.ones(len(d), dtype=dtype)
    label = np.arange(len(d))
    live = np.ones(len(d), dtype=bool)
    while live.sum() > k:
        # Row by row, and the first of equals: the lowest names.
        firsts, seconds = np.nonzero(np.triu(live[:, None] & live, 1))
        pair = d[firsts, seconds].argmin()
        i, j = firsts[pair], seconds[pair]
        if linkage == "single":
            merged = np.minimum(d[i], d[j])
        elif linkage == "complete":
            merged = np.maximum(d[i], d[j])
        else:
            merged = (size[i] * d[i] + size[j] * d[j]) / (size[i] + size[j])
        d[i], d[:, i] = merged, merged
        size[i] += size[j]
        live[j] = False
        label[label == j] = i
    return np.unique(label, return_inverse=True)[1].reshape(-1).astype(np.int64)
