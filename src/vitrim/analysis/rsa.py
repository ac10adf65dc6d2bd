"""Representational similarity analysis: which images two networks find alike (Kriegeskorte et al., 2008)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vitrim.analysis.spectrum import ROUNDING, Array

IMAGES = 1000  # half a million pairs, each with a rank


def pair_ranks(x: Array) -> Array:
    """Ranks of the correlations between the features of every two images: a dissimilarity matrix, ready for Spearman.

    The dissimilarity is 1 - Pearson over the features, as they are. An image whose features are all equal correlates with none.

    Args:
        x: ``(images, features)``.

    Returns:
        ``(images * (images - 1) / 2,)`` average ranks, centred and of unit length; zeros when all pairs tie.

    Raises:
        ValueError: for fewer than three images.
    """
    if len(x) < 3:
        raise ValueError(f"RSA compares pairs of images and needs three images or more; got {len(x)}")
    scale = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(scale > 0, scale, 1.0)
    z = x - x.mean(axis=1, keepdims=True)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    flat = length <= ROUNDING * np.linalg.norm(x, axis=1, keepdims=True)
    z = np.where(flat, 0.0, z / np.where(flat, 1.0, length))
    ranks: Array = np.asarray(rankdata((z @ z.T)[np.tri(len(z), k=-1, dtype=bool)]), dtype=np.float64)
    ranks -= ranks.mean()
    total = float(np.linalg.norm(ranks))
    return ranks / total if total > 0 else ranks


class Sample:
    """A random subset of images that come in batches: the same one however they are cut into batches.

    Args:
        images: at most; all are kept when there are no more.
        seed: of the choice.

    Attributes:
        rows: matrices of the chosen images, as many as are added at a time.
    """

    def __init__(self, images: int, seed: int) -> None:
        if images < 3:
            raise ValueError(f"RSA compares pairs of images and needs three images or more; got images={images}")
        self.images = images
        self.rows: list[Array] = []
        self._random = np.random.default_rng(seed)
        self._keys = np.empty(0)

    def add(self, *rows: NDArray[Any]) -> None:
        """Take the rows of some images, ``(n, features)`` each."""
        # Each image draws a number; those with the smallest stay.
        keys = np.concatenate([self._keys, self._random.random(len(rows[0]))])
        held = len(self._keys)
        chosen = np.arange(len(keys))
        if len(keys) > self.images:
            chosen = np.sort(np.argpartition(keys, self.images - 1)[: self.images])
        old, new = chosen[chosen < held], chosen[chosen >= held] - held
        if held and not len(new):
            return
        before = self.rows or [np.empty((0, x.shape[1])) for x in rows]
        self.rows = [np.concatenate([b[old], np.asarray(x[new], dtype=np.float64)]) for b, x in zip(before, rows, strict=True)]
        self._keys = keys[chosen]
