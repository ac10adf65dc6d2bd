"""A split read as a stream of tar shards, divided among processes and workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.distributed
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vitrim.datasets._shards import Members, samples
from vitrim.datasets.base import DataError, Item, encode

if TYPE_CHECKING:
    from vitrim.datasets.webdataset import WebDataset


class Stream(IterableDataset[tuple[Image.Image, "int | Tensor"]]):
    """Images of one split as a stream; ``len`` is what this process gets.

    All samples of an epoch stand in one line: shards in their order, or for training in an order drawn from seed and epoch.
    Each process takes an equal stretch of the line, and each worker a stretch of that, so that nothing is read twice whatever
    the number of shards. Training drops the few samples that do not divide by the number of processes; evaluation keeps all.

    The division is complete: a wrapper that divides iterable datasets among processes must not be put around it.

    Attributes:
        dataset: the set.
        name: of the split.
        shuffle: draw the order of the shards, and mix samples in a buffer.
        seed: of the order.
        buffer: samples in the buffer, of each worker, still encoded.
        batch: batch size of the loader; workers take whole batches, so that only the last of an epoch is smaller.
        process: number of this process and how many there are; by default those of ``torch.distributed``.
        skip_unreadable: put the next readable image in place of an unreadable one, and count it, instead of raising.
    """

    def __init__(self, dataset: WebDataset, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.shuffle = False
        self.seed = 0
        self.buffer = 1000
        self.batch = 1
        self.process: tuple[int, int] | None = None
        self.skip_unreadable = False
        self.shards = dataset.shards(name)
        self.lengths = dataset.lengths(name)
        # In shared memory, so that workers that live for several epochs see the number, and what they count is seen.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._unreadable = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        start, stop = self._stretch()
        return stop - start

    @property
    def items(self) -> list[Item]:
        """All items of the split, of every process; for shards on this machine."""
        return self.dataset.items(self.name)

    @property
    def targets(self) -> list[int | tuple[int, ...]]:
        """The targets of all items."""
        return [item.target for item in self.items]

    @property
    def unreadable(self) -> int:
        """How many times an unreadable image was replaced, in this process and its workers."""
        return int(self._unreadable)

    def __iter__(self) -> Iterator[tuple[Image.Image, int | Tensor]]:
        waiting = 0
        last: tuple[Image.Image, int | Tensor] | None = None
        for shard, key, members in self._mixed():
            try:
                last = self._decode(shard, key, members)
            except DataError:
                if not self.skip_unreadable:
                    raise
                self._unreadable.add_(1)
                waiting += 1
                continue
            for _ in range(waiting + 1):
                yield last
            waiting = 0
        if waiting and last is None:
            raise DataError(f"wds: none of the {waiting} images read for '{self.name}' is readable; vitrim data check tells more")
        for _ in range(waiting if last is not None else 0):
            yield last  # pyright: ignore[reportReturnType] - not None here

    def _stretch(self) -> tuple[int, int]:
        """First and last position of this process in the line."""
        live = torch.distributed.is_available() and torch.distributed.is_initialized()
        here = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if live else (0, 1)
        rank, world = self.process or here
        total = sum(self.lengths)
        if not self.shuffle:
            return total * rank // world, total * (rank + 1) // world
        if total < world:
            raise DataError(f"wds: '{self.name}' has {total} images for {world} processes; start fewer")
        return total // world * rank, total // world * (rank + 1)

    def _part(self) -> tuple[int, int]:
        """First and last position of this worker in the line."""
        start, stop = self._stretch()
        worker = get_worker_info()
        if worker is None:
            return start, stop
        batches = -(-(stop - start) // self.batch)
        cuts = [start + self.batch * (batches * n // worker.num_workers) for n in (worker.id, worker.id + 1)]
        return min(cuts[0], stop), min(cuts[1], stop)

    def _mixed(self) -> Iterator[tuple[str, str, Members]]:
        """The samples of this worker, mixed in a buffer for training."""
        if not self.shuffle:
            yield from self._samples()
            return
        draw = random.Random(f"{self.seed}/{int(self._epoch)}/{self._part()[0]}")
        waiting: list[tuple[str, str, Members]] = []
        for sample in self._samples():
            if len(waiting) < self.buffer:
                waiting.append(sample)
                continue
            at = draw.randrange(len(waiting))
            waiting[at], sample = sample, waiting[at]
            yield sample
        draw.shuffle(waiting)
        yield from waiting

    def _samples(self) -> Iterator[tuple[str, str, Members]]:
        """Shard, key and members of the samples of this worker, in line."""
        order = list(range(len(self.shards)))
        if self.shuffle:
            random.Random(f"{self.seed}/{int(self._epoch)}").shuffle(order)
        start, stop = self._part()
        begin = 0
        for i in order:
            skip, end = max(start - begin, 0), min(stop - begin, self.lengths[i])
            if skip < end:
                taken = 0
                for key, members in islice(samples(self.shards[i], self.dataset.wanted, skip), end - skip):
                    taken += 1
                    yield self.shards[i], key, members
                if taken < end - skip:
                    raise DataError(
                        f"wds: shard '{self.shards[i]}' has {skip + taken} samples, {self.lengths[i]} were announced; "
                        "correct _info.json, or obtain the shard again"
                    )
            begin += self.lengths[i]

    def _decode(self, shard: str, key: str, members: Members) -> tuple[Image.Image, int | Tensor]:
        name = f"{shard}#{key}"
        target = encode(self.dataset.target(members, name), len(self.dataset.classes) if self.dataset.multilabel else 0)
        return self.dataset.decode(name, members), target
