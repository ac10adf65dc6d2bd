"""How alike two groupings of patches are when patches are shared out among tokens, and which of the scores to take."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitrim.analysis.partition import hard_scores, partition
from vitrim.analysis.partition_scores import (
    MERGING,
    as_among,
    as_labels,
    corrected,
    expected_product,
    in_parts,
    mutual_information,
    scores,
)

Array = npt.NDArray[Any]
Values = Array | Tensor

_ALL = 1 - 1e-6  # a share that counts as all of a patch: softmaxes are float32


def compare_merging(a: Values, b: Values) -> dict[str, Array]:
    """All measures of :data:`MERGING` of two groupings: hard labels, soft assignments, or one of each.

    Args:
        a: ``(images, patches)`` labels as of :func:`partition`, or ``(images, tokens, patches)`` as of :func:`soft_partition`.
        b: the other grouping of the same images.

    Returns:
        By name, ``(images,)`` float64; NaN for images without a patch that both have.

    Raises:
        ValueError: for groupings that do not fit.
    """
    return partition(a, b) if np.ndim(a) == np.ndim(b) == 2 else soft_partition(a, b)


def soft_partition(
    a: Values, b: Values, *, among: Values | None = None, permutations: int = 4, seed: int = 0
) -> dict[str, Array]:
    """Scores of two soft assignments of the patches to tokens; those of :func:`partition` where both are one-hot.

    A patch belongs to the tokens in proportion to its column. Given the patch, its token in ``a`` and that in ``b`` are
    independent, so that the table of both is ``a @ b.T``; entropies, mutual information and purity follow from it. An assignment
    that is undecided is therefore not homogeneous with itself. ARI compares which patches are together (``a.T @ a`` and
    ``b.T @ b``): 1 for equal assignments, soft or not, and 0 in expectation when patches are permuted, which is exact. The
    expected mutual information of AMI has no closed form here; it is the mean over permutations.

    Args:
        a: ``(images, tokens, patches)`` weights from 0 on, as a soft ``TokenMap`` has them; a column of zeros is a patch that
            has been dropped. Labels ``(images, patches)`` are taken too.
        b: of the same images and patches, with any number of tokens.
        among: ``(images, patches)`` bool: the patches that may count; of those, the ones that both have do.
        permutations: for the AMI of images that are not one-hot on both sides; four leave an error of about 0.002 an image.
        seed: of the permutations.

    Returns:
        By the names of :data:`MERGING`, ``(images,)`` float64; NaN for images without a patch that both have.

    Raises:
        ValueError: for negative weights, no permutations, or assignments that do not fit.
    """
    a, b = _checked(a), _checked(b)
    images, patches = len(a), a.shape[-1]
    if (images, patches) != (len(b), b.shape[-1]):
        raise ValueError(f"assignments are (images, tokens, patches), both of the same images; got {a.shape} and {b.shape}")
    if permutations < 1:
        raise ValueError(f"permutations are 1 or more; got {permutations}")
    rng = np.random.default_rng(seed)

    def score(a: Array, b: Array, among: Array) -> dict[str, Array]:
        a, b = _shares(a), _shares(b)
        most = [x.max(axis=1, initial=0) for x in (a, b)]
        present = among & (most[0] > 0) & (most[1] > 0)
        hard = (~present | ((most[0] > _ALL) & (most[1] > _ALL))).all(axis=1)
        parts = [
            (hard, hard_scores(_heaviest(a[hard]), _heaviest(b[hard]), present[hard])),
            (~hard, _soft_scores(a[~hard], b[~hard], present[~hard], rng, permutations)),
        ]
        found = {name: np.empty(len(hard)) for name in MERGING}
        for rows, part in parts:
            for name, values in part.items():
                found[name][rows] = values
        return found

    tokens = [int(x.max(initial=0)) + 1 if x.ndim == 2 else x.shape[1] for x in (a, b)]
    return in_parts(score, max(tokens[0] * tokens[1], sum(tokens) * patches), a, b, as_among(among, images, patches))


def _soft_scores(a: Array, b: Array, present: Array, rng: np.random.Generator, permutations: int) -> dict[str, Array]:
    n = present.sum(axis=1)
    # Patches that count come first: permuting them leaves the others (columns of zeros) in their places.
    order = np.argsort(~present, axis=1, kind="stable")
    present = np.take_along_axis(present, order, axis=1)
    a, b = (np.take_along_axis(x, order[:, None], axis=2) * present[:, None] for x in (a, b))
    sizes = [x.sum(axis=2) for x in (a, b)]
    table = a @ b.swapaxes(1, 2)
    logs = [_logs(x) for x in (*sizes, table)]
    expected = np.zeros(len(n))
    for _ in range(permutations):
        shuffled = np.argsort(np.where(present, rng.random(present.shape), 2.0), axis=1)
        random = a @ np.take_along_axis(b, shuffled[:, None], axis=2).swapaxes(1, 2)
        expected += mutual_information(n, [*logs[:2], _logs(random)]) / permutations
    # Norms and sums of a.T @ a, taken from the smaller a @ a.T and from a itself.
    norms = [((x @ x.swapaxes(1, 2)) ** 2).sum(axis=(1, 2)) for x in (a, b)]
    chance = expected_product(n, [(x**2).sum(axis=(1, 2)) for x in (a, b)], [(x**2).sum(axis=1) for x in sizes])
    ari = corrected((table**2).sum(axis=(1, 2)), chance, (norms[0] + norms[1]) / 2)
    return scores(n, logs, expected, ari=ari, largest=table.max(axis=1, initial=0).sum(axis=1))


def _checked(x: Values) -> Array:
    """Labels, or weights of any type of number."""
    x = np.asarray(x)
    if x.ndim == 2:
        return as_labels(x)
    if x.ndim != 3:
        raise ValueError(f"assignments are (images, tokens, patches), or labels (images, patches); got shape {x.shape}")
    if not (x >= 0).all():
        raise ValueError("weights of a soft assignment are 0 or more; got negative ones or NaN")
    return x


def _shares(x: Array) -> Array:
    """``(images, tokens, patches)`` float64: columns that sum to one, or of zeros."""
    if x.ndim == 2:
        return (x[:, None] == np.arange(x.max(initial=-1) + 1)[:, None]).astype(np.float64)
    x = x.astype(np.float64)
    total = x.sum(axis=1, keepdims=True)
    return x / np.where(total > 0, total, 1.0)


def _heaviest(x: Array) -> Array:
    """``(images, patches)`` the token that a patch belongs to most; -1 where no token has any of it."""
    return np.where(x.max(axis=1, initial=0) > 0, x.argmax(axis=1) if x.shape[1] else -1, -1)


def _logs(x: Array) -> Array:
    """``(images,)`` sums of ``x log x``, 0 at 0."""
    return (x * np.log(np.maximum(x, np.finfo(np.float64).tiny))).sum(axis=tuple(range(1, x.ndim)))
