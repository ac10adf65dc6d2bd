"""Two sets of features of the same images, side by side: from matrices, from batches, or prepared once for many comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vitrim.analysis.rsa import IMAGES, Sample, pair_ranks
from vitrim.analysis.spectrum import CHUNK, Array, JointRows, Matrix, Spectrum, double, matrix, svd


class Features:
    """Features of one network, decomposed once, to compare them with those of many others.

    Takes the place of a matrix in every function of :mod:`vitrim.analysis.similarity`. Holds the singular directions,
    ``(images, features)`` in double precision: for more images than fit, give the matrices themselves, which are read in chunks.

    Args:
        x: ``(images, features)``.
        images: that RSA looks at, at most; a random choice, which depends on their number alone.
        seed: of the choice.

    Raises:
        ValueError: for other shapes.
    """

    def __init__(self, x: Matrix, *, images: int = IMAGES, seed: int = 0) -> None:
        self._x, self._precision = matrix(x, "x")
        self.choice = (images, seed)

    def __len__(self) -> int:
        return len(self._x)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Singular directions of the centred features."""
        x = double(self._x, "x")
        mean = x.mean(axis=0)
        return Spectrum.of(x - mean, mean, len(x), self._precision)

    @cached_property
    def ranks(self) -> Array:
        """``(pairs,)``, see :func:`vitrim.analysis.rsa.pair_ranks`."""
        sample = Sample(*self.choice)
        sample.add(self._x)
        return pair_ranks(double(sample.rows[0], "x"))

    @cached_property
    def lengths(self) -> Array:
        """``(images,)`` squared lengths of the centred features, of sum one; zeros when all images are equal."""
        starts = range(0, len(self), CHUNK)
        parts = ((i, double(self._x[i : i + CHUNK], "x", i)) for i in starts)
        mean = sum((part.sum(axis=0) for _, part in parts), np.zeros(self._x.shape[1])) / len(self)
        found = np.concatenate([((self._x[i : i + CHUNK].astype(np.float64) - mean) ** 2).sum(axis=1) for i in starts])
        total = float(found.sum())
        return found / total if total > 0 else found


@dataclass(frozen=True)
class Pair:
    """Two spectra of the same images.

    Attributes:
        a: of the first features.
        b: of the second.
    """

    a: Spectrum
    b: Spectrum

    @cached_property
    def cross(self) -> Array:
        """Inner products of the directions among the images; where one has fewer rows, those missing are zero."""
        rows = min(len(self.a.u), len(self.b.u))
        return self.a.u[:rows].T @ self.b.u[:rows]

    @cached_property
    def overlap(self) -> Array:
        """The same, by the size of the directions: ``A.T @ B`` in their coordinates, both of unit norm."""
        return self.a.s[:, None] * self.cross * self.b.s

    @cached_property
    def canonical(self) -> tuple[Array, Array, Array]:
        """Canonical directions in the coordinates of each side's singular directions, and their correlations."""
        if not (self.a.rank and self.b.rank):
            return np.zeros((self.a.rank, 0)), np.zeros(0), np.zeros((0, self.b.rank))
        left, found, right = svd(self.cross[: self.a.rank, : self.b.rank])
        return left, found.clip(0, 1), right


class Sums:
    """Batches of both features on their way to a :class:`Pair`: checks them, and hands on chunks in double precision.

    Attributes:
        images: taken so far.
        shape: numbers of features, once there are some.
    """

    def __init__(self) -> None:
        self.images = 0
        self.shape: tuple[int, int] | None = None
        self._rows: JointRows | None = None
        self._precision = (0.0, 0.0)
        self._pair: Pair | None = None

    def extend(self, a: Matrix, b: Matrix, sample: Sample | None = None) -> None:
        """Take ``(n, p)`` and ``(n, q)``; all or, with an error, none of them.

        Args:
            a: first features.
            b: second features.
            sample: takes the same rows.

        Raises:
            ValueError: for other shapes, and values that are not finite.
        """
        (x, fine), (y, other) = matrix(a, "a"), matrix(b, "b")
        if len(x) != len(y):
            raise ValueError(f"both matrices are of the same images in the same order; got {len(x)} and {len(y)} rows")
        shape = (x.shape[1], y.shape[1])
        if self.shape not in (None, shape):
            raise ValueError(f"features had {self.shape} columns in the batches before; got {shape}")
        starts = range(0, len(x), CHUNK)
        for i in starts:
            double(x[i : i + CHUNK], "a", self.images + i)
            double(y[i : i + CHUNK], "b", self.images + i)
        self._rows = self._rows or JointRows(*shape)
        for i in starts:
            chunk = [z[i : i + CHUNK].astype(np.float64) for z in (x, y)]
            self._rows.add(*chunk)
            if sample is not None:
                sample.add(*chunk)
        self.shape, self._pair = shape, None
        self.images += len(x)
        self._precision = (max(self._precision[0], fine), max(self._precision[1], other))

    def pair(self) -> Pair:
        """What was taken; more may follow.

        Raises:
            ValueError: for fewer than two images.
        """
        enough(self.images, self.images)
        if self._pair is None:
            assert self._rows is not None
            self._pair = Pair(*self._rows.spectra(self._precision))
        return self._pair


def enough(first: int, second: int) -> None:
    """Check the numbers of images of two sets of features.

    Raises:
        ValueError: when they differ or there is but one.
    """
    if first != second:
        raise ValueError(f"both matrices are of the same images in the same order; got {first} and {second} rows")
    if first < 2:
        raise ValueError(f"similarity of features needs two images or more; got {first}")


def pair_of(a: Matrix | Features, b: Matrix | Features) -> Pair:
    """Two matrices or prepared features as a :class:`Pair`; matrices are read in chunks.

    Raises:
        ValueError: for other shapes, too few images, and values that are not finite.
    """
    if isinstance(a, Features) or isinstance(b, Features):
        a, b = (x if isinstance(x, Features) else Features(x) for x in (a, b))
        enough(len(a), len(b))
        return Pair(a.spectrum, b.spectrum)
    sums = Sums()
    sums.extend(a, b)
    return sums.pair()
