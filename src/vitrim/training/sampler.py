"""The order of the images: a function of seed and epoch; :mod:`vitrim.training.loader` cuts it into batches."""

from __future__ import annotations

import numpy as np

from vitrim.training.seeds import seed_of

_ROUND = 256


class EpochOrder:
    """The indices of each epoch, the same in every process: ``order(epoch)``.

    With ``repeats`` each image appears that many times in a row under other augmentations, and the epoch keeps its length,
    rounded down to a multiple of 256, so that it shows a share 1 / repeats of the images (repeated augmentation: Hoffer et al.,
    CVPR 2020, as trained by DeiT, "Which tokens to use?", ATC and ILA). The published code repeats in distributed runs only.

    Args:
        count: images of the split.
        seed: of the run.
        repeats: appearances of an image; published: 3.
        shuffle: another permutation in every epoch; otherwise the order of the split.

    Raises:
        ValueError: for no images or repeats below one.
    """

    def __init__(self, count: int, *, seed: int = 0, repeats: int = 1, shuffle: bool = True) -> None:
        if count < 1:
            raise ValueError("there are no images to draw from; check the split")
        if repeats < 1:
            raise ValueError(f"repeats is how often an image appears, 1 or more; got {repeats}")
        self.count = count
        self.seed = seed
        self.repeats = repeats
        self.shuffle = shuffle

    def __len__(self) -> int:
        if self.repeats == 1 or self.count < _ROUND:
            return self.count
        return self.count // _ROUND * _ROUND

    def __call__(self, epoch: int) -> np.ndarray:
        """``(len,)`` int64."""
        indices = np.arange(self.count)
        if self.shuffle:
            indices = np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(self.count)
        distinct = -(-len(self) // self.repeats)
        return np.repeat(indices[:distinct], self.repeats)[: len(self)]
