"""How alike the features of two networks are on the same images: CKA, CCA and its kin, Procrustes, RSA.

Every measure is a *similarity*: 1 for features that are equal up to what the measure does not see, 0 for unrelated ones (RSA and
unbiased CKA go below), in double precision, for any number of images and features. Features in which all images are equal are
similar to nothing: 0.

Matrices are ``(images, features)``, arrays or tensors, in the precision they were made in, which says what is rounding in them.
"""

from __future__ import annotations

import numpy as np

from vitrim.analysis.hsic import SMALLEST
from vitrim.analysis.pairs import Features, Pair, Sums, enough, pair_of
from vitrim.analysis.rsa import IMAGES, Sample, pair_ranks
from vitrim.analysis.spectrum import Array, Matrix, Spectrum, singular_values, svd

MEASURES = ("cka", "svcca", "pwcca", "pwcca_ba", "mean_cca", "mean_sq_cca", "procrustes", "rsa")
COMPATS = ("paper", "official")


def cka(a: Matrix | Features, b: Matrix | Features, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019), of all images at once.

    Blind to rotations and to a common scale. From few images the plain estimate is too high, and 1 in the limit of many features:
    there the unbiased one of HSIC (Song et al., JMLR 2012) is meant to be used, which may be negative. The mean over mini-batches
    is :class:`vitrim.analysis.hsic.BatchCKA`.

    Args:
        a: ``(n, p)``.
        b: ``(n, q)``.
        unbiased: use the unbiased estimate; needs four images.

    Raises:
        ValueError: for other shapes, too few images, and values that are not finite.
    """
    pair = pair_of(a, b)
    if not unbiased:
        return _cka(pair)
    if pair.a.images < SMALLEST:
        raise ValueError(f"unbiased CKA needs {SMALLEST} images or more; got {pair.a.images}")
    if not (pair.a.s.any() and pair.b.s.any()):
        return 0.0
    x, y = ((f if isinstance(f, Features) else Features(f)).lengths for f in (a, b))
    cross = _hsic(float((pair.overlap**2).sum()), x, y)
    own, other = (_hsic(float((s.s**4).sum()), f, f) for s, f in ((pair.a, x), (pair.b, y)))
    # As BatchCKA: features whose HSIC with themselves is not positive do not tell images apart as far as these can show.
    return float(cross / np.sqrt(own * other)) if own > 1e-12 and other > 1e-12 else 0.0


def _hsic(products: float, x: Array, y: Array) -> float:
    """Unbiased HSIC times ``n (n - 3)``, from sums over features: the Gram matrices without their diagonals are not formed.

    Args:
        products: squared Frobenius norm of ``A.T @ B``, which is the sum of the products of both Gram matrices.
        x: ``(n,)`` diagonal of the first; centred, its rows sum to zero, and without the diagonal to minus this.
        y: of the second. Both have sum one, or are zero.
    """
    n, diagonal = len(x), float(x @ y)
    return products - diagonal + float(x.sum() * y.sum()) / ((n - 1) * (n - 2)) - 2 * diagonal / (n - 2)


def _cka(pair: Pair) -> float:
    own, other = (float(np.linalg.norm(s.s**2)) for s in (pair.a, pair.b))
    return float((pair.overlap**2).sum() / (own * other)) if own and other else 0.0


def cca(a: Matrix | Features, b: Matrix | Features) -> Array:
    """Canonical correlations; blind to every invertible linear map.

    Directions smaller than the rounding of the features do not count. ``n`` images leave ``n - 1`` directions: of two sets with
    ranks ``r`` and ``r'``, ``r + r' - (n - 1)`` correlations are 1 whatever the features, see :attr:`Similarity.forced`.

    Args:
        a: ``(n, p)``.
        b: ``(n, q)``.

    Returns:
        ``(k,)`` float64 in [0, 1], descending; k is the smaller rank of the two.

    Raises:
        ValueError: for other shapes, too few images, and values that are not finite.
    """
    return pair_of(a, b).canonical[1]


def svcca(a: Matrix | Features, b: Matrix | Features, *, keep: float = 0.99) -> float:
    """Mean canonical correlation of the largest singular directions (Raghu et al., NeurIPS 2017).

    Args:
        a: ``(n, p)``.
        b: ``(n, q)``.
        keep: share of the variance that the directions hold, in (0, 1].

    Raises:
        ValueError: as :func:`cca`, and for other shares.
    """
    return _svcca(pair_of(a, b), keep)


def _svcca(pair: Pair, keep: float) -> float:
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the variance in (0, 1]; got {keep}")
    rows, columns = pair.a.leading(keep), pair.b.leading(keep)
    if not (rows and columns):
        return 0.0
    return float(singular_values(pair.cross[:rows, :columns]).clip(0, 1).mean())


def pwcca(a: Matrix | Features, b: Matrix | Features, *, compat: str = "paper") -> float:
    """Canonical correlations averaged by how much of the features of ``a`` they explain (Morcos et al., NeurIPS 2018).

    Not symmetric. Directions of equal correlation, as the ones that few images force, are unique only together: they are turned
    to the principal directions of what they hold of the features.

    Args:
        a: ``(n, p)``, whose features give the weights.
        b: ``(n, q)``.
        compat: ``"official"`` for the code of Which Tokens to Use?: weights have sum one over all p directions, also those beyond
            q that have no partner and, for ``p > q``, are not unique. Its tables hold ``1 - pwcca``.

    Raises:
        ValueError: as :func:`cca`, and for another ``compat``.
    """
    return _pwcca(pair_of(a, b), compat)


def _pwcca(pair: Pair, compat: str) -> float:
    _check(compat)
    if compat == "paper":
        left, found, _ = pair.canonical
        return _explained(pair.a, left, found)
    # Whitened symmetrically, in the coordinates of the features, as published: that fixes the directions without partner.
    v, w = pair.a.vt[: pair.a.rank], pair.b.vt[: pair.b.rank]
    left, found, _ = svd(v.T @ pair.cross[: len(v), : len(w)] @ w, full=True)
    return _explained(pair.a, v @ left, found.clip(0, 1), unique=False)


def _explained(side: Spectrum, directions: Array, correlations: Array, unique: bool = True) -> float:
    """The mean of correlations by what their directions explain.

    Args:
        side: whose features give the weights.
        directions: ``(rank, k or more)`` in its coordinates.
        correlations: ``(k,)``.
        unique: turn directions of equal correlation to principal ones.
    """
    # Inner products over the images of the canonical variates and the features.
    held = directions.T @ (side.s[: side.rank, None] * side.vt[: side.rank])
    if unique:
        for group in np.split(np.arange(len(held)), np.flatnonzero(-np.diff(correlations) > 1e-9) + 1):
            if len(group) > 1:
                _, sizes, turned = svd(held[group])
                held[group] = sizes[:, None] * turned
    weight = np.abs(held).sum(axis=1)
    total = float(weight.sum())
    return float(weight[: len(correlations)] @ correlations / total) if total > 0 else 0.0


def _check(compat: str) -> None:
    if compat not in COMPATS:
        raise ValueError(f"compat is one of {', '.join(COMPATS)}; got '{compat}'")


def procrustes(a: Matrix | Features, b: Matrix | Features) -> float:
    """Orthogonal Procrustes similarity: the nuclear norm of ``A.T @ B``, both centred and of unit Frobenius norm.

    The squared distance that is left after the best rotation is ``2 * (1 - similarity)`` (Ding et al., NeurIPS 2021). Blind to
    rotations and to a common scale; with different numbers of features the smaller is filled up with zeros.

    Args:
        a: ``(n, p)``.
        b: ``(n, q)``.

    Raises:
        ValueError: as :func:`cca`.
    """
    return _procrustes(pair_of(a, b))


def _procrustes(pair: Pair) -> float:
    return float(min(singular_values(pair.overlap).sum(), 1.0))


def rsa(a: Matrix | Features, b: Matrix | Features, *, images: int = IMAGES, seed: int = 0) -> float:
    """Spearman correlation between the dissimilarities (1 - Pearson) of pairs of images (Kriegeskorte et al., 2008).

    The features are not centred over the images. In [-1, 1].

    Args:
        a: ``(n, p)``.
        b: ``(n, q)``.
        images: to look at, at most; a random choice. :class:`Features` have made theirs.
        seed: of the choice.

    Raises:
        ValueError: for other shapes, fewer than three images, values that are not finite, and different choices of images.
    """
    choice = next((f.choice for f in (a, b) if isinstance(f, Features)), (images, seed))
    x, y = (f if isinstance(f, Features) else Features(f, images=choice[0], seed=choice[1]) for f in (a, b))
    enough(len(x), len(y))
    if x.choice != y.choice:
        raise ValueError(f"RSA needs one choice of images: give both Features one images and seed; got {x.choice}, {y.choice}")
    return float(x.ranks @ y.ranks)


class Similarity:
    """All measures of two networks, from batches of images, however many there are.

    The result is that of the whole matrices. Memory depends on the numbers of features and not on that of images.

    Args:
        keep: share of the variance for SVCCA.
        compat: ``"official"`` for the tables of Which Tokens to Use?: weights of PWCCA as in :func:`pwcca`, the value from a to b
            for both ways, and means of correlations over ``min(p, q)`` whatever the ranks.
        images: that RSA looks at, at most; a random choice.
        seed: of the choice.

    Raises:
        ValueError: for another ``keep`` or ``compat``.
    """

    def __init__(self, *, keep: float = 0.99, compat: str = "paper", images: int = IMAGES, seed: int = 0) -> None:
        _check(compat)
        if not 0 < keep <= 1:
            raise ValueError(f"keep is a share of the variance in (0, 1]; got {keep}")
        self._keep = keep
        self._compat = compat
        self._sums = Sums()
        self._sample = Sample(images, seed)

    @property
    def images(self) -> int:
        """Taken so far."""
        return self._sums.images

    @property
    def forced(self) -> int:
        """Canonical correlations that are 1 whatever the features, as there are too few images: CCA says little then."""
        pair = self._sums.pair()
        return max(0, pair.a.rank + pair.b.rank - (self.images - 1))

    def add(self, a: Matrix, b: Matrix) -> None:
        """Take ``(n, p)`` and ``(n, q)`` of the same images, any number of them.

        Raises:
            ValueError: for other shapes, and values that are not finite; the batch then does not count.
        """
        self._sums.extend(a, b, self._sample)

    def result(self) -> dict[str, float]:
        """By the names in :data:`MEASURES`; ``pwcca`` with the weights of a, ``pwcca_ba`` of b. Images may still be added.

        Raises:
            ValueError: for fewer than three images.
        """
        pair = self._sums.pair()
        x, y = (pair_ranks(rows) for rows in self._sample.rows)
        return _measures(pair, float(x @ y), self._keep, self._compat)


def compare(
    a: Matrix | Features,
    b: Matrix | Features,
    *,
    keep: float = 0.99,
    compat: str = "paper",
    images: int = IMAGES,
    seed: int = 0,
) -> dict[str, float]:
    """All measures of two matrices, as :class:`Similarity` gives them; matrices are read in chunks.

    Args:
        a: ``(n, p)``.
        b: ``(n, q)``.
        keep: see :class:`Similarity`, as the others.
        compat: see there.
        images: that RSA looks at; :class:`Features` have made their choice.
        seed: of the choice.

    Raises:
        ValueError: for other shapes, fewer than three images, and values that are not finite.
    """
    if isinstance(a, Features) or isinstance(b, Features):
        return _measures(pair_of(a, b), rsa(a, b, images=images, seed=seed), keep, compat)
    found = Similarity(keep=keep, compat=compat, images=images, seed=seed)
    found.add(a, b)
    return found.result()


def _measures(pair: Pair, rsa: float, keep: float, compat: str) -> dict[str, float]:
    official = compat == "official"
    _, found, right = pair.canonical
    count = max(min(pair.a.features, pair.b.features) if official else len(found), 1)
    forward = _pwcca(pair, compat)
    return {
        "cka": _cka(pair),
        "svcca": _svcca(pair, keep),
        "pwcca": forward,
        "pwcca_ba": forward if official else _explained(pair.b, right.T, found),
        "mean_cca": float(found.sum() / count),
        "mean_sq_cca": float((found**2).sum() / count),
        "procrustes": _procrustes(pair),
        "rsa": rsa,
    }
