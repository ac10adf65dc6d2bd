"""One pass over a split, in pieces that can be finished one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Sampler

from vitrim.core.reduction import Reduction
from vitrim.datasets.base import DataError, encode
from vitrim.experiments.processes import Processes
from vitrim.experiments.results import Results, of_batch
from vitrim.experiments.subject import Subject
from vitrim.training.loader import Batch, Key, Samples, default_workers, make_loader
from vitrim.training.session import local_processes
from vitrim.training.streaming import StreamSamples, stream_loader

if TYPE_CHECKING:
    from vitrim.experiments.evaluate import Settings
    from vitrim.experiments.tracing import Recorder

_FEW = 4  # batches: starting processes takes longer than reading these


@dataclass(frozen=True)
class Piece:
    """Images that are finished together.

    Attributes:
        number: of the piece.
        batches: positions in the split, batch by batch.
    """

    number: int
    batches: list[list[int]]


Pieces = list[Piece]


def everything(split: Any, limit: int | None, batch: int, piece: int | None) -> Pieces | None:
    """The pieces of a split; None for a stream, which is read as it comes.

    Args:
        split: the split.
        limit: number of images, spread evenly; None takes all.
        batch: images of a batch.
        piece: images of a piece, rounded up to whole batches; one batch when None.

    Raises:
        ValueError: for an empty split, or a stream of which only a part or a trace is wanted.
    """
    if isinstance(split, IterableDataset):
        if limit is not None or piece is not None:
            raise ValueError("a stream has no order of its own: --limit and --trace need images that lie on this machine")
        return None
    total = len(split)
    if not total:
        raise ValueError("the split is empty; check the data set with: vitrim data check NAME --root DIR")
    count = total if limit is None else min(limit, total)
    index = [i * total // count for i in range(count)]
    size = batch * -(-(piece or batch) // batch)
    found: Pieces = []
    for start in range(0, count, size):
        own = index[start : start + size]
        found.append(Piece(len(found), [own[i : i + batch] for i in range(0, len(own), batch)]))
    return found


class Numbered:
    """A split that gives the position of an image as its target, so that images which are left out do not shift the others."""

    def __init__(self, split: Any) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.split[index][0], index


class Batches(Sampler[list[Key]]):
    """Given batches, in order."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(i, i) for i in batch]


class Pass:
    """This process's share of a split, run through the model.

    Args:
        subject: the model and its images.
        split: the split.
        pieces: of the split; None for a stream.
        settings: batch size and workers.
        device: of the model.
        autocast: context of the forward pass.
        processes: that share the pieces.
        recorder: records the trace, or None.
        say: called with images done and in all.
    """

    def __init__(
        self, subject: Subject, split: Any, pieces: Pieces | None, settings: Settings, device: torch.device,
        autocast: Callable[[], Any], processes: Processes, recorder: Recorder | None, say: Callable[[int, int], object] | None,
    ) -> None:  # fmt: skip
        self.subject, self.split, self.pieces, self.settings, self.device = subject, split, pieces, settings, device
        self.autocast, self.processes, self.recorder = autocast, processes, recorder
        self.say = say if say is not None and processes.main else None
        self.skipped: list[str] = []
        self.evaluated = 0

    def run(self) -> tuple[list[Results], Tensor]:
        """Results of this process's images by batch or piece, and for a stream the targets.

        Raises:
            DataError: for a file that cannot be read.
        """
        self.subject.model.eval()
        with torch.inference_mode(), self.recorder or nullcontext():
            return self._stream() if self.pieces is None else (list(self._pieces(self.pieces)), torch.empty(0))

    def _pieces(self, pieces: Pieces) -> Iterator[Results]:
        own = pieces[self.processes.rank :: self.processes.world]
        done = [p for p in own if self.recorder is not None and self.recorder.has(p.number)]
        left = [p for p in own if p not in done]
        for piece in done:
            assert self.recorder is not None
            yield self.recorder.results(piece.number)
        total = sum(len(b) for p in own for b in p.batches)
        count = sum(len(b) for p in done for b in p.batches)
        loader = iter(self._loader([b for p in left for b in p.batches]))
        for piece in left:
            for batch in piece.batches:
                found = self._batch(next(loader), numbered=True)
                if found is not None:
                    yield found[0]
                count += len(batch)
                if self.say is not None:
                    self.say(count, total)
            if self.recorder is not None:
                self.recorder.flush(piece.number)

    def _stream(self) -> tuple[list[Results], Tensor]:
        split, settings, subject = self.split, self.settings, self.subject
        split.batch, split.skip_unreadable = settings.batch_size, subject.skip
        split.process = (self.processes.rank, self.processes.world)
        samples = StreamSamples(split, subject.transform, self.processes.rank)
        results: list[Results] = []
        targets: list[Tensor] = []
        total = len(split)
        for batch in stream_loader(samples, settings.batch_size, self._workers(), pin=self.device.type == "cuda"):
            found = self._batch(batch, numbered=False)
            if found is not None:
                results.append(found[0])
                targets.append(found[1].cpu())
            if self.say is not None:
                self.say(min(self.evaluated, total), total)
        return results, torch.cat(targets) if targets else torch.empty(0)

    def _batch(self, batch: Batch, numbered: bool) -> tuple[Results, Tensor] | None:
        """One batch through the model and into the trace; None when none of its files could be read."""
        if batch.error:
            raise DataError(f"{batch.error}; repair or remove the file, or leave it out with --skip-unreadable")
        self.skipped += batch.skipped
        if batch.images is None or batch.targets is None:
            return None
        images = batch.images.to(self.device, non_blocking=True)
        place = batch.targets if numbered else torch.arange(len(images)) + self.evaluated
        targets = (labels_of(self.subject, self.split, place.numpy()) if numbered else batch.targets).to(self.device)
        with self.autocast():
            out: Any = self.subject.model(images)
        logits = out if isinstance(out, Tensor) else out.logits
        self.evaluated += len(images)
        results = of_batch(self.subject.task, place, logits, targets)
        if self.recorder is not None:
            reduction = getattr(self.subject.model, "reduction", None)
            self.recorder.add(results, reduction if isinstance(reduction, Reduction) else None)
        return results, targets

    def _loader(self, batches: list[list[int]]) -> Any:
        samples = Samples(Numbered(self.split), self.subject.transform, skip=self.subject.skip)
        workers = self._workers() if len(batches) > _FEW else 0
        return make_loader(samples, Batches(batches), workers, pin=self.device.type == "cuda")

    def _workers(self) -> int:
        given = self.settings.workers
        return default_workers(local_processes()) if given is None else given


def labels_of(subject: Subject, split: Any, index: np.ndarray) -> Tensor:
    """The targets of images by their positions, as the task takes them and the model counts classes."""
    count = len(subject.dataset.classes) if subject.task.targets == "labels" else 0
    found = [split.items[int(i)].target for i in index]
    if count:
        rows = [encode(target, count) for target in found]
        return torch.stack([row for row in rows if isinstance(row, Tensor)])
    return torch.tensor([target if subject.labels is None else subject.labels[target] for target in found])
