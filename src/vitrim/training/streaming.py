"""Batches of sets that can only be read in order, such as tar shards, for training and evaluation.

The order comes from the stream itself (seed and epoch). A resumed run reads past what it has seen; the same number of processes
and workers gives the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vitrim.datasets.base import DataError
from vitrim.training.loader import Batch, collate, ignore_interrupts
from vitrim.training.seeds import seed_of, seed_sample


class StreamSamples(IterableDataset[Any]):
    """Transformed images of a stream, each under its own seed.

    Args:
        stream: the images of this process.
        transform: from an image to a tensor.
        place: of the seeds, such as the run's seed and the process.
    """

    def __init__(self, stream: Any, transform: Callable[[Image.Image], Tensor], *place: int) -> None:
        self.stream = stream
        self.transform = transform
        self.place = place

    def __iter__(self) -> Iterator[tuple[Tensor | None, Any, list[str], str]]:
        worker = get_worker_info()
        part = worker.id if worker is not None else 0
        try:
            for n, (image, target) in enumerate(self.stream):
                seed_sample(seed_of(*self.place, "stream", part, n))
                yield self.transform(image), target, [], ""
        except DataError as error:
            yield None, None, [], str(error)


def stream_loader(samples: StreamSamples, batch: int, workers: int, *, pin: bool = False) -> DataLoader[Any]:
    """A loader of one pass over a stream; workers take whole batches."""
    return DataLoader(
        samples, batch_size=batch, num_workers=workers, collate_fn=collate, pin_memory=pin,
        worker_init_fn=ignore_interrupts if workers else None,
    )  # fmt: skip


def stream_batches(
    stream: Any, transform: Callable[[Image.Image], Tensor], *, steps: int, batch: int, accumulate: int, first: int, last: int,
    seed: int, process: tuple[int, int], workers: int, skip: bool, pin: bool = False,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of one process over all steps of a run.

    Args:
        stream: see :class:`vitrim.datasets._stream.Stream`.
        transform: for training.
        steps: steps of an epoch.
        batch: images of a batch.
        accumulate: batches of a step.
        first: step to start at.
        last: step to end before.
        seed: of the run.
        process: number of this process, and how many there are.
        workers: processes that read ahead.
        skip: replace unreadable images by the next one.
        pin: page-locked memory, for a GPU.
    """
    stream.shuffle, stream.seed, stream.batch, stream.process, stream.skip_unreadable = True, seed, batch, process, skip
    for epoch in range(first // steps, -(-last // steps)):
        stream.set_epoch(epoch)
        done = max(first - epoch * steps, 0) * accumulate
        loader = stream_loader(StreamSamples(stream, transform, seed, epoch, process[0]), batch, workers, pin=pin)
        before = stream.unreadable
        for found in islice(loader, done, steps * accumulate):
            new, before = stream.unreadable - before, stream.unreadable
            yield found._replace(skipped=["unreadable image replaced"] * new)
