"""Every image decoded once, in parallel: which cannot be read, and what each shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from vitrim.datasets.base import DataError, DataSet, Item


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding an image gave.

    Attributes:
        digest: of size and pixels, so that copies with another name, other metadata or another lossless format are equal; empty
            for unreadable images.
        reason: why it cannot be read, or empty.
    """

    digest: bytes
    reason: str = ""


def decode_all(
    dataset: DataSet,
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Decoded]:
    """Decode images in worker processes; results are in the order of the items.

    Args:
        dataset: the set.
        items: whose images are decoded.
        workers: processes; by default one for each core, and none for a few images.
        progress: called with the number of images done and of all.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if len(items) < 500 else cores
    # PyTorch's loader brings what this needs: order, bounded queues, and workers that end with the process or with Ctrl-C.
    loader: Any = DataLoader(_Probe(dataset, items), batch_size=32, num_workers=workers, collate_fn=list)
    found: list[Decoded] = []
    for batch in loader:
        found += batch
        if progress is not None:
            progress(len(found), len(items))
    return found


class _Probe(Dataset[Decoded]):
    def __init__(self, dataset: DataSet, items: Sequence[Item]) -> None:
        self.dataset = dataset
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Decoded:
        try:
            image = self.dataset.read(self.items[index])
        except DataError as error:
            return Decoded(b"", str(error))
        digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
        digest.update(image.tobytes())
        return Decoded(digest.digest())
