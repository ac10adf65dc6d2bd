"""Centred kernel alignment (CKA) of layers over data sets of any size: sums of an unbiased HSIC over mini-batches.

That of two whole matrices is :func:`vitrim.analysis.similarity.cka`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 4  # images of a batch: the unbiased estimate divides by N - 3
_COLUMNS = 2**18  # features that are in double precision at a time


def gram(x: Tensor) -> Tensor:
    """Inner products of the images of a batch, in float64 whatever the precision of the features.

    Features of some 65,000 channels overflow float16 there, and those of large mean cancel in float32.

    Args:
        x: ``(N, ...)``; everything but the first axis is one feature vector.

    Returns:
        ``(N, N)`` float64. On a device without float64 the work is done on the CPU.
    """
    flat = x.detach().flatten(1)
    if flat.device.type == "mps":
        flat = flat.cpu()
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for part in flat.split(_COLUMNS, dim=1):
        part = part.double()
        total += part @ part.T
    return total


def hsic(grams: Tensor) -> Tensor:
    """Unbiased Hilbert-Schmidt independence criterion of every pair of layers (Song et al., JMLR 2012, estimator 5).

    Args:
        grams: ``(L, N, N)`` inner products of N images in each of L layers; the diagonals are not read.

    Returns:
        ``(L, L)`` float64. The estimate may be negative.

    Raises:
        ValueError: for fewer than four images.
    """
    count = grams.shape[-1]
    if count < SMALLEST:
        raise ValueError(f"CKA needs batches of {SMALLEST} images or more; got {count}: give a larger batch size")
    k = grams.double() * (1 - torch.eye(count, dtype=torch.float64, device=grams.device))
    flat, rows = k.flatten(1), k.sum(dim=2)
    sums = rows.sum(dim=1)
    found = flat @ flat.T + torch.outer(sums, sums) / ((count - 1) * (count - 2)) - rows @ rows.T * (2 / (count - 2))
    return found / (count * (count - 3))


class BatchCKA:
    """CKA of layers from batches: a ratio of averages, not an average of ratios (Nguyen et al., arXiv:2010.15327).

    Linear kernel, no centring other than the estimator's. Only the Gram matrices of one batch are ever held, so that layers may
    have any width, each its own. Batches count by their images, and those with fewer than four are left out.

    Args:
        layers: number of layers.

    Attributes:
        total: ``(layers, layers)`` float64, the HSIC summed over the batches, times their images.
        images: in the sum.
        left_out: images of batches that were too small.
    """

    def __init__(self, layers: int) -> None:
        self.total = torch.zeros(layers, layers, dtype=torch.float64)
        self.images = 0
        self.left_out = 0

    def add(self, grams: Sequence[Tensor]) -> None:
        """Take a batch: the Gram matrices of its layers, as :func:`gram` gives them.

        Raises:
            ValueError: when there are not as many as layers.
        """
        if len(grams) != len(self.total):
            raise ValueError(f"there are {len(self.total)} layers; got the Gram matrices of {len(grams)}")
        count = grams[0].shape[-1]
        if count < SMALLEST:
            self.left_out += count
            return
        self.total += count * hsic(torch.stack(list(grams))).cpu()
        self.images += count

    def hsic(self) -> Tensor:
        """``(L, L)`` float64: the mean over the batches.

        Raises:
            ValueError: before the first batch of four images.
        """
        if not self.images:
            raise ValueError(f"CKA needs a batch of {SMALLEST} images or more, and there was none; give a larger batch size")
        return self.total / self.images

    def cka(self) -> Tensor:
        """``(L, L)`` float64, with its diagonal of ones.

        A layer whose HSIC with itself is not positive does not tell images apart as far as these can show: its row and its column
        are 0, the diagonal too, instead of not a number. :meth:`flat` names such layers.
        """
        found = self.hsic()
        own = found.diagonal()
        # Rounding of equal images leaves more than nothing: as many digits below the largest as double precision has.
        scale = torch.where(own > 1e-12 * own.max().clamp_min(0), own, torch.inf).rsqrt()
        return found * scale[:, None] * scale[None, :]

    def flat(self) -> list[int]:
        """The layers whose HSIC with itself is not positive."""
        return [i for i, value in enumerate(self.cka().diagonal().tolist()) if value == 0]


@dataclass(frozen=True)
class CKASummary:
    """What the rows of a CKA matrix say, as the papers' tables have it.

    Attributes:
        mean: of each row, the layer itself left out.
        overall: of the matrix without its diagonal.
        change: mean absolute difference between neighbours in each row.
        change_std: its standard deviation over the row (of a sample).
        bend: mean absolute difference between neighbouring changes.
        bend_std: its standard deviation.
    """

    mean: list[float]
    overall: float
    change: list[float]
    change_std: list[float]
    bend: list[float]
    bend_std: list[float]


def summarise(cka: Tensor) -> CKASummary:
    """Summarise a CKA matrix ``(L, L)`` of four layers or more.

    Raises:
        ValueError: for fewer layers, which have no spread of changes.
    """
    if len(cka) < 4:
        raise ValueError(f"a summary of changes needs four layers or more; got {len(cka)}")
    cka = cka.double()
    change = cka.diff(dim=1).abs()
    bend = change.diff(dim=1).abs()
    rest = cka - torch.diag(cka.diagonal())
    count = (rest != 0).sum(dim=1)
    mean, overall = rest.sum(dim=1) / count.clamp_min(1), float(rest.sum() / count.sum().clamp_min(1))
    spread = [f(x, dim=1).tolist() for x in (change, bend) for f in (torch.mean, torch.std)]
    return CKASummary(mean.tolist(), overall, *spread)
