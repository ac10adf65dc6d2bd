"""Batches: which image goes where at which step, and the processes that read them.

The order of the images and the randomness of each are functions of the seed, the epoch and the position in the epoch. One loader
serves all steps of a run, so that no worker waits at the end of an epoch, and a resumed run starts in the middle at no cost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitrim.datasets.base import DataError
from vitrim.training.seeds import seed_of, seed_sample

Key = tuple[int, int]  # index of the image, seed of its randomness
_PREFETCH = 4


class Images(Protocol):
    """What is loaded from: a :class:`vitrim.datasets.base.Split` or anything like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int | Tensor]: ...


class Batch(NamedTuple):
    """One batch; ``images`` is None when none of its files could be read.

    Attributes:
        images: ``(B, C, H, W)`` float32.
        targets: ``(B,)`` int64, or ``(B, classes)`` float32.
        skipped: messages about files that were left out or replaced.
        error: the message about a file that stops the run, or nothing.
    """

    images: Tensor | None
    targets: Tensor | None
    skipped: list[str]
    error: str


class Samples(Dataset[Any]):
    """Transformed images, each under its own seed.

    Args:
        split: the images.
        transform: from an image to a tensor.
        skip: leave unreadable images out instead of reporting an error.
        replace: take the next readable image instead, so that batches keep their size.
    """

    def __init__(
        self, split: Images, transform: Callable[[Image.Image], Tensor], *, skip: bool = False, replace: bool = False
    ) -> None:
        self.split = split
        self.transform = transform
        self.skip = skip
        self.replace = replace

    def __getitem__(self, key: Key) -> tuple[Tensor | None, Any, list[str], str]:
        index, seed = key
        seed_sample(seed)
        skipped: list[str] = []
        for further in range(len(self.split)):
            try:
                image, target = self.split[(index + further) % len(self.split)]
                return self.transform(image), target, skipped, ""
            except DataError as error:
                # A value, because an exception of a worker arrives wrapped in its traceback.
                if not self.skip:
                    return None, None, [], str(error)
                skipped.append(str(error))
                if not self.replace:
                    break
        return None, None, skipped, "" if not self.replace else "no image of the split can be read"


class Schedule(Sampler[list[Key]]):
    """The batches of one process over all steps of a run.

    Args:
        order: ``order(epoch)`` gives the indices of an epoch, the same in every process.
        steps: steps of an epoch.
        batch: images of one forward pass of one process.
        accumulate: forward passes of a step.
        world: processes.
        rank: of this process.
        seed: of the run.
        first: step to start at.
        last: step to end before.
    """

    def __init__(
        self, order: Callable[[int], Sequence[int] | np.ndarray], *, steps: int, batch: int, accumulate: int = 1, world: int = 1,
        rank: int = 0, seed: int = 0, first: int = 0, last: int = 0,
    ) -> None:  # fmt: skip
        self.order = order
        self.steps, self.batch, self.accumulate, self.world, self.rank = steps, batch, accumulate, world, rank
        self.seed, self.first, self.last = seed, first, last

    def __len__(self) -> int:
        return (self.last - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, []
        for step in range(self.first, self.last):
            if step // self.steps != epoch:
                epoch = step // self.steps
                order = self.order(epoch)
            for part in range(self.accumulate):
                # Neighbours in the epoch's order share a step, whatever the number of processes.
                start = ((step % self.steps) * self.accumulate + part) * self.world * self.batch
                # In turns, so that repeats of an image go to different processes.
                own = range(start + self.rank, start + self.world * self.batch, self.world)
                yield [(int(order[i]), seed_of(self.seed, "sample", epoch, i)) for i in own]


class Shares(Sampler[list[Key]]):
    """The batches of one process over a split, each image once; neighbouring images stay in one process.

    Args:
        count: images of the split.
        batch: images of a batch.
        world: processes.
        rank: of this process.
    """

    def __init__(self, count: int, batch: int, world: int = 1, rank: int = 0) -> None:
        self.first, self.last = count * rank // world, count * (rank + 1) // world
        self.batch = batch

    def __len__(self) -> int:
        return -(-(self.last - self.first) // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(self.first, self.last, self.batch):
            yield [(i, i) for i in range(start, min(start + self.batch, self.last))]


def make_loader(samples: Samples, batches: Sampler[list[Key]], workers: int, *, pin: bool = False) -> DataLoader[Any]:
    """A loader of :class:`Batch` objects; ``workers`` processes read ahead, 0 reads in this one."""
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=ignore_interrupts if workers else None,
    )


def read_batch(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The tensors on the device, or None when every file of the batch was skipped.

    Raises:
        DataError: for a file that cannot be read.
    """
    if batch.error:
        raise DataError(f"{batch.error}; repair or remove the file, or train with --skip_unreadable true")
    if batch.images is None or batch.targets is None:
        return None
    return batch.images.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)


def default_workers(processes: int) -> int:
    """Data workers of each of ``processes`` on this machine: its share of the cores, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // max(processes, 1)))


def collate(samples: list[tuple[Tensor | None, Any, list[str], str]]) -> Batch:
    """Stack what could be read."""
    skipped = [message for sample in samples for message in sample[2]]
    error = next((sample[3] for sample in samples if sample[3]), "")
    images = [image for image, _, _, _ in samples if image is not None]
    if not images:
        return Batch(None, None, skipped, error)
    targets = [target for image, target, _, _ in samples if image is not None]
    stacked = torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets, dtype=torch.int64)
    return Batch(torch.stack(images), stacked, skipped, error)


def ignore_interrupts(_: int) -> None:
    """In a data worker: Ctrl-C goes to the whole group of processes, and the training process finishes its step with them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
