"""Features of many images as a few rows and their singular directions: what measures of similarity are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Matrix = NDArray[Any] | Tensor
CHUNK = 2048  # images that are in double precision at a time
BLOCK = 1024  # images at least that are folded into a triangular factor at a time
# What sums, QR and SVD in double precision leave of a value that is zero, relative to the largest: 512 units in the last place.
ROUNDING = 2.0**-43


def matrix(x: Matrix, name: str) -> tuple[NDArray[Any], float]:
    """A feature matrix as an array in its own precision, and the relative size of that precision's rounding.

    Args:
        x: ``(images, features)`` of numpy or torch, on any device.
        name: for messages.

    Raises:
        ValueError: for other shapes, or values that are no real numbers.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        step = torch.finfo(x.dtype).eps if x.dtype.is_floating_point else 0.0
        # numpy has no bfloat16; float32 holds its values.
        found: NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    else:
        found = np.asarray(x)
        step = float(np.finfo(found.dtype).eps) if found.dtype.kind == "f" else 0.0
    if found.ndim != 2 or found.dtype.kind not in "fiub":
        raise ValueError(f"features of {name} are a matrix of numbers (images, features); got {found.dtype} {found.shape}")
    if not found.shape[1]:
        raise ValueError(f"features of {name} have no columns; give at least one feature")
    return found, max(step / 2, ROUNDING)


def double(x: NDArray[Any], name: str, first: int = 0) -> Array:
    """Rows in double precision, all of them finite.

    Args:
        x: some rows.
        name: of the matrix, for messages.
        first: number of the first row, for messages.

    Raises:
        ValueError: for NaN and infinity.
    """
    found = np.asarray(x, dtype=np.float64)
    good = np.isfinite(found).all(axis=1)
    if not good.all():
        at = first + int(np.argmin(good))
        raise ValueError(
            f"features of {name} are not finite at image {at}: leave such images out of both, or recompute in float32"
        )
    return found


@dataclass(frozen=True)
class Spectrum:
    """Centred features as ``norm * u @ diag(s) @ vt``.

    Attributes:
        u: ``(rows, k)`` orthonormal columns, directions among the images; rows below may be missing when they are zero.
        s: ``(k,)`` descending, of unit Frobenius norm; all zero when no feature tells images apart.
        vt: ``(k, features)`` directions among the features.
        rank: how many singular values exceed what rounding of the features makes.
        images: behind the rows.
    """

    u: Array
    s: Array
    vt: Array
    rank: int
    images: int

    @classmethod
    def of(cls, rows: Array, mean: Array, images: int, precision: float) -> Spectrum:
        """Decompose centred rows.

        Rounding by ``precision`` changes a matrix by no more than that share of its Frobenius norm, and its singular values by no
        more than the change (Weyl): what is smaller is not told from zero.

        Args:
            rows: ``(rows, features)``, centred over the images.
            mean: ``(features,)`` that was taken away.
            images: how many the rows stand for.
            precision: relative rounding of the features as they came.
        """
        # Scaled first: the squares of very large or small features would leave the range of double precision.
        scale = max(float(np.abs(rows).max(initial=0.0)), float(np.abs(mean).max()))
        if scale == 0:
            return cls._nothing(rows, images)
        norm = float(np.linalg.norm(rows / scale))
        whole = float(np.hypot(norm, np.sqrt(images) * np.linalg.norm(mean / scale)))
        if norm <= ROUNDING * whole:
            return cls._nothing(rows, images)
        u, s, vt = svd(rows / scale)
        return cls(u, s / norm, vt, int((s > precision * whole).sum()), images)

    @classmethod
    def _nothing(cls, rows: Array, images: int) -> Spectrum:
        k = min(rows.shape)
        return cls(np.eye(len(rows), k), np.zeros(k), np.eye(k, rows.shape[1]), 0, images)

    @property
    def features(self) -> int:
        """How many there are."""
        return self.vt.shape[1]

    def leading(self, keep: float) -> int:
        """The fewest directions that hold a share ``keep`` of the variance, among those above rounding."""
        if not self.rank:
            return 0
        share = np.cumsum(self.s[: self.rank] ** 2)
        return min(int(np.searchsorted(share / share[-1], keep)) + 1, self.rank)


def svd(x: Array, full: bool = False) -> tuple[Array, Array, Array]:
    """Singular value decomposition; on the rare failure to converge once more with the matrix transposed."""
    try:
        u, s, vt = np.linalg.svd(x, full_matrices=full)
    except np.linalg.LinAlgError:
        v, s, ut = np.linalg.svd(np.ascontiguousarray(x.T), full_matrices=full)
        u, vt = ut.T, v.T
    return u, s, vt


def singular_values(x: Array) -> Array:
    """``(k,)`` descending; as :func:`svd`."""
    try:
        return np.asarray(np.linalg.svd(x, compute_uv=False), dtype=np.float64)
    except np.linalg.LinAlgError:
        return svd(x)[1]


class JointRows:
    """Images of two feature matrices, rotated together into no more rows than both have features.

    CKA, CCA and Procrustes know features by inner products over the images alone, which a rotation of the (centred) images
    keeps: the triangular factor of a QR decomposition stands for any number of images. It is built from blocks (TSQR, Demmel et
    al., SIAM J. Sci. Comput. 2012), with the exact correction for their means (Chan et al., 1979). Sums of products would need
    the same memory, but their singular values are squares: half of the digits of small directions are lost.

    Memory is some six times ``(p + q)^2`` numbers, whatever the number of images.

    Args:
        p: features of the first matrix.
        q: of the second.

    Attributes:
        images: taken so far.
    """

    def __init__(self, p: int, q: int) -> None:
        self.images = 0
        self._p = p
        self._width = p + q
        self._top: Array = np.zeros((0, p + q))
        self._triangular = False
        self._mean = np.zeros(p + q)
        self._counted = 0
        self._waiting = np.empty((max(2 * (p + q), BLOCK), p + q))
        self._held = 0

    def add(self, a: Array, b: Array) -> None:
        """Take ``(n, p)`` and ``(n, q)`` of the same images."""
        start = 0
        while start < len(a):
            count = min(len(a) - start, len(self._waiting) - self._held)
            place = self._waiting[self._held : self._held + count]
            place[:, : self._p] = a[start : start + count]
            place[:, self._p :] = b[start : start + count]
            self._held += count
            start += count
            if self._held == len(self._waiting):
                self._take_in()
        self.images += len(a)

    def spectra(self, precision: tuple[float, float]) -> tuple[Spectrum, Spectrum]:
        """Both matrices by their singular directions; more images may be added later.

        Args:
            precision: of the features, see :meth:`Spectrum.of`.
        """
        if self._held:
            self._take_in()
        p, top = self._p, self._top
        # Below its diagonal the factor is zero: the first matrix has p rows only.
        first = top[:p, :p] if self._triangular else top[:, :p]
        a = Spectrum.of(first, self._mean[:p], self.images, precision[0])
        return a, Spectrum.of(top[:, p:], self._mean[p:], self.images, precision[1])

    def _take_in(self) -> None:
        count, before = self._held, self._counted
        new = self._waiting[:count]
        mean = new.mean(axis=0)
        new -= mean
        parts = [self._top, new]
        if before:
            shift = np.sqrt(before * count / (before + count)) * (mean - self._mean)
            parts.append(shift[None])
        self._mean = self._mean + (mean - self._mean) * (count / (before + count))
        self._counted += count
        self._held = 0
        rows = np.concatenate(parts)
        self._triangular = len(rows) > self._width
        self._top = np.asarray(np.linalg.qr(rows, mode="r")) if self._triangular else rows
