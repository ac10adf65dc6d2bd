"""How deep the patches of many images get into a model, position by position, and how many tokens are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitrim.analysis.view import token_sizes

Array = npt.NDArray[Any]
Measure = Literal["depth", "size"]


class TokenDepth:
    """Sums over images; the average token depth of "Which Tokens to Use?" (arXiv:2308.04657), for every kind of method.

    The *depth* of a patch is the block at which it stops being a token of its own (dropped, fused, averaged), and the number of
    blocks when it never does. The *size* is the number of patches in the token that it belongs to at the end, itself included; 0
    when it is dropped.

    Args:
        patches: of an image.
        depth: number of blocks.

    Attributes:
        images: seen so far.
        first: the first block that reduces; no depth is below it.
        mixed: whether no patch of any image is left a token of its own after the first stage: soft methods.
    """

    def __init__(self, patches: int, depth: int) -> None:
        self.blocks = depth
        self.images = 0
        self.first = depth
        self.mixed = True
        self._sums: dict[str, Array] = {name: np.zeros((2, patches)) for name in ("depth", "size")}

    def add(self, stages: Sequence[tuple[int, Array, Array]]) -> None:
        """Add a batch.

        Args:
            stages: block, ``(B, patches)`` bool that says which patches are still tokens of their own, ``(B, patches)`` token of
                each patch, -1 when dropped; blocks ascending.

        Raises:
            ValueError: without a stage.
        """
        if not stages:
            raise ValueError("nothing has been reduced; choose a method and a block that reduces")
        reached = np.full(stages[0][1].shape, float(self.blocks))
        for block, own, _ in reversed(stages):
            # From the last stage to the first: the earliest stage that takes a patch away has the last word.
            reached = np.where(own, reached, block)
        self.mixed = self.mixed and not stages[0][1].any()
        self.first = min(self.first, stages[0][0])
        sizes = token_sizes(stages[-1][2].astype(np.int64))
        for name, values in (("depth", reached), ("size", sizes.astype(np.float64))):
            self._sums[name] += np.stack([values.sum(axis=0), (values**2).sum(axis=0)])
        self.images += len(reached)

    def mean(self, measure: Measure) -> Array:
        """``(patches,)`` mean over the images.

        Raises:
            ValueError: without images.
        """
        if not self.images:
            raise ValueError("no images have been seen")
        return self._sums[measure][0] / self.images

    def std(self, measure: Measure) -> Array:
        """``(patches,)`` standard deviation over the images (of the population)."""
        mean = self.mean(measure)
        return np.sqrt(np.maximum(self._sums[measure][1] / self.images - mean**2, 0))


class TokenStatistics:
    """How many tokens are left at each stage and how deep they get, summed over images.

    The record of ``compute_token_statistics`` of "Which Tokens to Use?", for every kind of method; the map itself and its
    spread are ``depth.mean("depth")`` and ``depth.std("depth")``.

    Args:
        patches: of an image.
        blocks: of the model.

    Attributes:
        depth: sums of the depth of each patch.
        stages: blocks that reduce, ascending.
    """

    def __init__(self, patches: int, blocks: int) -> None:
        self.depth = TokenDepth(patches, blocks)
        self.stages: tuple[int, ...] = ()
        self._patches = patches
        self._counts = np.zeros((2, 0), dtype=np.int64)  # sum and sum of squares: integers, so that no spread is exactly 0

    def add(self, stages: Sequence[tuple[int, Array, Array]], left: Array | None = None) -> None:
        """Add a batch.

        Args:
            stages: block, ``(B, patches)`` bool that says which patches are still tokens of their own, ``(B, patches)`` token of
                each patch, -1 when dropped; blocks ascending and the same in every batch.
            left: ``(stages, B)`` number of tokens after each stage; when left out, that of the different tokens of the patches,
                which does not count a token of a soft map that is nowhere the largest.

        Raises:
            ValueError: when the stages are not those of the batches before.
        """
        blocks = tuple(block for block, _, _ in stages)
        if self.stages and blocks != self.stages:
            raise ValueError(f"stages {blocks} after batches with stages {self.stages}: sum runs of one schedule only")
        self.depth.add(stages)
        if left is None:
            left = np.stack([_distinct(np.asarray(token)) for _, _, token in stages])
        left = np.asarray(left, dtype=np.int64)
        self._counts = (self._counts if self.stages else 0) + np.stack([left.sum(axis=1), (left**2).sum(axis=1)])
        self.stages = blocks

    def rate(self) -> tuple[Array, Array]:
        """``(stages,)`` mean and standard deviation over the images of the share of tokens that is left."""
        n, (sums, squares) = self._images(), self._counts
        spread = np.sqrt((n * squares - sums**2) / n**2)
        return sums / n / self._patches, spread / self._patches

    def mean_depth(self) -> tuple[float, float]:
        """Mean and standard deviation of the depth over all patches of all images, in blocks."""
        self._images()
        mean, std = self.depth.mean("depth"), self.depth.std("depth")
        return float(mean.mean()), float(np.sqrt((std**2).mean() + mean.var()))

    def _images(self) -> int:
        if not self.depth.images:
            raise ValueError("no images have been seen: add a batch first")
        return self.depth.images


def _distinct(token: Array) -> Array:
    """``(B,)`` number of different tokens of ``(B, patches)``, -1 left out."""
    ordered = np.sort(token, axis=1)
    return (ordered[:, 0] >= 0) + ((np.diff(ordered, axis=1) > 0) & (ordered[:, 1:] >= 0)).sum(axis=1)
