"""How alike two groupings of patches are: scores of hard partitions, for all images at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitrim.analysis.chance import expected_information
from vitrim.analysis.partition_scores import as_among, as_labels, corrected, expected_product, in_parts, scores

Array = npt.NDArray[Any]
Values = Array | Tensor

_ABSENT = np.iinfo(np.int64).max


def partition(a: Values, b: Values, *, among: Values | None = None) -> dict[str, Array]:
    """Scores of two partitions of the patches, image by image.

    With the entropies H of the labels and their mutual information I: homogeneity is ``I / H(a)`` (every cluster of ``b`` lies
    in one of ``a``), completeness ``I / H(b)``, the V-measure their harmonic mean, which is the NMI with the arithmetic mean
    of the entropies. AMI and ARI (Hubert and Arabie, 1985) are 0 in expectation for random partitions with the same sizes of
    clusters, AMI with the exact expected mutual information (Vinh, Epps and Bailey, 2010). Purity is the share of patches
    in the largest part that a cluster of ``b`` has of one of ``a``. Special cases are scikit-learn's, but for images
    without patches.

    Args:
        a: ``(images, patches)`` integer labels, -1 where a patch has been dropped; what scikit-learn calls the true ones.
        b: labels of the other grouping of the same images.
        among: ``(images, patches)`` bool: the patches that may count; of those, the ones that both have do.

    Returns:
        By the names of :data:`MERGING`, ``(images,)`` float64; NaN for images without a patch that both have.

    Raises:
        ValueError: for labels that are not integer, or differ in shape.
    """
    a, b = as_labels(a), as_labels(b)
    if a.shape != b.shape:
        raise ValueError(f"labels are (images, patches), both of the same images; got {a.shape} and {b.shape}")
    return in_parts(hard_scores, a.shape[1], a, b, as_among(among, *a.shape))


def hard_scores(a: Array, b: Array, among: Array) -> dict[str, Array]:
    """:func:`partition` in one piece, of int64 labels."""
    images, patches = a.shape
    present = among & (a >= 0) & (b >= 0)
    names = int(a.max(initial=0)) + 1
    # In the order of b: the cells of one of its clusters lie side by side.
    cells, of_a = _runs(b * names + a, present), _runs(a, present)
    cluster = cells.value // names
    starts = np.flatnonzero((np.diff(cells.image, prepend=-1) != 0) | (np.diff(cluster, prepend=-1) != 0))
    of_b = _Runs(cells.image[starts], cluster[starts], np.add.reduceat(cells.size, starts))
    largest = np.maximum.reduceat(cells.size, starts)

    def total(runs: _Runs, values: Array) -> Array:
        return np.bincount(runs.image, values, minlength=images)

    counts = np.arange(patches + 1)
    information = counts * np.log(np.maximum(counts, 1))
    n = present.sum(axis=1)
    logs = [total(runs, information[runs.size]) for runs in (of_a, of_b, cells)]
    squares = [total(runs, runs.size**2) for runs in (of_a, of_b, cells)]
    chance = expected_product(n, [n, n], squares[:2])
    ari = corrected(squares[2], chance, (squares[0] + squares[1]) / 2)
    return scores(n, logs, _expected(n, of_a, of_b), ari=ari, largest=total(of_b, largest))


class _Runs(NamedTuple):
    """Equal values in the rows of a matrix, such as the clusters of all images, one after the other.

    Attributes:
        image: ``(runs,)`` the row.
        value: what is equal.
        size: how often it occurs in its row.
    """

    image: Array
    value: Array
    size: Array


def _runs(codes: Array, present: Array) -> _Runs:
    ordered = np.sort(np.where(present, codes, _ABSENT), axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    starts = np.flatnonzero(first)
    value = ordered.ravel()[starts]
    real = value != _ABSENT
    return _Runs(starts[real] // codes.shape[1], value[real], np.diff(starts, append=ordered.size)[real])


def _expected(n: Array, a: _Runs, b: _Runs) -> Array:
    """``(images,)`` expected mutual information of partitions with the sizes of these, in nats."""
    found = np.zeros(len(n))
    most = int(n.max(initial=0)) + 1
    # How many clusters of each size an image has: all that the expectation depends on.
    tallies = [np.bincount(runs.image * most + runs.size, minlength=len(n) * most).reshape(len(n), most) for runs in (a, b)]
    for patches in np.unique(n[n > 0]):
        images = n == patches
        rows, columns = (tally[images] for tally in tallies)
        sizes_a, sizes_b = (np.flatnonzero(tally.any(axis=0)) for tally in (rows, columns))
        table = expected_information(int(patches), sizes_a, sizes_b)
        found[images] = ((rows[:, sizes_a] @ table) * columns[:, sizes_b]).sum(axis=1)
    return found
