"""The order of the images: a function of seed and epoch, cut into the batches of each process, resumable at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

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


class EpochBatches(Sampler[list[int]]):
    """The batches of one process, for the ``batch_sampler`` of a ``DataLoader``.

    The processes' batches of one step are together the batch that a single process of ``world * batch_size`` would have:
    distributed training is the same training. Images go to the processes in turns, so that repeats of an image go to different
    processes, as in the published sampler.

    Args:
        order: ``order(epoch)`` gives the indices of an epoch, ``len(order)`` their number.
        batch_size: images of one process.
        rank: of this process.
        world: processes.
        drop_last: leave out the last batch when it is not full in all processes. Otherwise the rest is dealt out, and a
            process without an image of it has a batch less: for evaluation, where no process waits for another at each step.

    Raises:
        ValueError: for a batch size below one, a rank outside the world, or an epoch without a full batch.
    """

    def __init__(
        self, order: EpochOrder, batch_size: int, *, rank: int = 0, world: int = 1, drop_last: bool = True
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size is 1 or more; got {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank is from 0 to world - 1; got rank={rank} at world={world}")
        if drop_last and len(order) < batch_size * world:
            raise ValueError(
                f"{len(order)} images give no full batch of {batch_size} in {world} process(es); set batch_size to at most "
                f"{max(len(order) // world, 1)}"
            )
        self.order: Callable[[int], np.ndarray] = order
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.drop_last = drop_last
        self.images = len(order)
        self.epoch = 0
        self.start = 0

    @property
    def batches(self) -> int:
        """Batches of this process in a whole epoch."""
        full, rest = divmod(self.images, self.batch_size * self.world)
        return full + (not self.drop_last and rest > self.rank)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose what the next iteration gives: an epoch, from its batch ``start`` on."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return max(self.batches - self.start, 0)

    def __iter__(self) -> Iterator[list[int]]:
        indices = self.order(self.epoch)
        together = self.batch_size * self.world
        for batch in range(self.start, self.batches):
            yield indices[batch * together + self.rank : (batch + 1) * together : self.world].tolist()
