"""Feature metrics of a model over many images: one pass, sums that survive an interruption, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vitrim.analysis.hsic import SMALLEST
from vitrim.analysis.layer import Layer
from vitrim.analysis.metrics import METRICS, FeatureCKA, Metric
from vitrim.analysis.reader import Reader
from vitrim.data.models import LoadedModel
from vitrim.datasets.base import DataError
from vitrim.experiments.passes import Batches, Numbered, everything, labels_of
from vitrim.experiments.subject import Subject
from vitrim.experiments.tracing import digest
from vitrim.training.checkpoint import write_tensors
from vitrim.training.loader import Samples, default_workers, make_loader

_FEW = 4  # batches: starting processes takes longer than reading these


@dataclass
class Gallery:
    """A model and the images that it is shown.

    Attributes:
        model: in evaluation mode, reduced or not.
        what: what it is, for the record.
        count: number of images.
        batches: ``batches(size, first, workers)`` gives the batches from number ``first`` on: images and their positions; images
            are None where none of them could be read.
        picture: from an image as the model takes it to ``(H, W, 3)`` uint8.
        labels: class of each image.
        classes: their names.
        autocast: context of the forward pass.
        notes: what the user should know, a line each.
    """

    model: nn.Module
    what: dict[str, Any]
    count: int
    batches: Callable[[int, int, int | None], Iterator[tuple[Tensor | None, list[int]]]]
    picture: Callable[[Tensor], np.ndarray]
    labels: list[int]
    classes: Sequence[str]
    autocast: Callable[[], Any] = nullcontext
    notes: list[str] = field(default_factory=list)


def of_tensors(
    loaded: LoadedModel, images: Tensor, labels: Sequence[int], classes: Sequence[str], what: Mapping[str, Any]
) -> Gallery:
    """Images that are in memory, as the embedded ones."""

    def batches(size: int, first: int, workers: int | None) -> Iterator[tuple[Tensor | None, list[int]]]:  # noqa: ARG001
        for start in range(first * size, len(images), size):
            part = images[start : start + size]
            yield part, list(range(start, start + len(part)))

    return Gallery(loaded.model, dict(what), len(images), batches, loaded.unnormalise, list(labels), classes)


def of_subject(subject: Subject, limit: int | None, picture: Callable[[Tensor], np.ndarray]) -> Gallery:
    """The images of a data set, spread evenly over the split when there is a limit.

    Raises:
        ValueError: for a stream, which has no order.
    """
    split: Any = subject.dataset.split(subject.split)
    pieces = everything(split, limit if limit is not None else len(split), 1, 1)
    if pieces is None:
        raise ValueError("a stream has no order of its own; feature metrics need images that lie on this machine")
    order = [place for piece in pieces for batch in piece.batches for place in batch]

    def batches(size: int, first: int, workers: int | None) -> Iterator[tuple[Tensor | None, list[int]]]:
        parts = [order[i : i + size] for i in range(first * size, len(order), size)]
        samples = Samples(Numbered(split), subject.transform, skip=subject.skip)
        count = (default_workers(1) if workers is None else workers) if len(parts) > _FEW else 0
        for batch in make_loader(samples, Batches(parts), count):
            if batch.error:
                raise DataError(f"{batch.error}; repair or remove the file, or leave it out with --skip-unreadable")
            # Positions among the chosen images, so that labels can be looked up.
            yield batch.images, [] if batch.targets is None else [where[int(t)] for t in batch.targets]

    where = {place: i for i, place in enumerate(order)}
    found = labels_of(subject, split, np.array(order))
    labels = found.tolist() if found.dim() == 1 else found.argmax(dim=1).tolist()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(subject.precision)
    device = next(subject.model.parameters()).device.type
    autocast: Callable[[], Any] = nullcontext if dtype is None else lambda: torch.autocast(device, dtype=dtype)
    return Gallery(
        subject.model, {**subject.what, "precision": subject.precision}, len(order), batches, picture, labels,
        subject.dataset.classes, autocast, list(subject.notes),
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a pass over the images found.

    Attributes:
        values: by name ``(depth,)``, ``(depth, heads)`` or ``(depth, depth)``.
        images: that were measured.
        notes: what the user should know, a line each.
    """

    values: dict[str, np.ndarray]
    images: int
    notes: list[str]


def measure(
    gallery: Gallery,
    names: Sequence[str],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    out: Path | None = None,
    save_every: int = 20,
    say: Callable[[int, int], object] | None = None,
) -> Measured:
    """Run the images through the model once and sum the metrics up.

    Every ``save_every`` batches the sums are written to ``out/sums.safetensors``, complete or not at all; the same call goes on
    from there, batch by batch as if it had never stopped.

    Args:
        gallery: the model and the images.
        names: of metrics.
        batch_size: images of a batch, and of one estimate of CKA.
        workers: processes that load images.
        out: folder for the sums; None keeps them in memory.
        save_every: batches between two saves.
        say: called with images done and in all.

    Raises:
        ValueError: for an unknown metric, or batches too small for CKA.
        DataError: for a file that cannot be read.
    """
    reader, metrics = _prepare(gallery, names, batch_size)
    device = next(gallery.model.parameters()).device
    store = None if out is None else _Store(out / "sums.safetensors", gallery, names, batch_size)
    first, images = (0, 0) if store is None else store.load(metrics)
    done, number = min(first * batch_size, gallery.count), first
    for batch, places in gallery.batches(batch_size, first, workers):
        if batch is not None:
            _take(reader, metrics, batch.to(device), gallery.autocast)
            images += len(places)
        number, done = number + 1, min((number + 1) * batch_size, gallery.count)
        if store is not None and (number % save_every == 0 or done == gallery.count):
            store.save(metrics, number, images)
        if say is not None:
            say(done, gallery.count)
    if not images:
        raise DataError("no image could be read; check the data set with: vitrim data check NAME --root DIR")
    values = {name: value.numpy() for metric in metrics.values() for name, value in metric.values().items()}
    return Measured(values, images, [*gallery.notes, *_remarks(metrics)])


def _prepare(gallery: Gallery, names: Sequence[str], batch_size: int) -> tuple[Reader, dict[str, Metric]]:
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric '{name}'; there are: {', '.join(METRICS)}")
    cka = next((name for name in names if issubclass(METRICS[name], FeatureCKA)), None)
    if cka is not None and min(batch_size, gallery.count) < SMALLEST:
        raise ValueError(f"{cka} is estimated from batches of {SMALLEST} images or more; raise --batch-size and --images")
    reader = Reader(gallery.model, attention=any(METRICS[name].attention for name in names))
    return reader, {name: METRICS[name](reader.depth, 0) for name in names}


def _take(reader: Reader, metrics: Mapping[str, Metric], images: Tensor, autocast: Callable[[], Any]) -> None:
    def visit(layer: Layer) -> None:
        with torch.autocast(images.device.type, enabled=False):
            for metric in metrics.values():
                metric.see(layer)

    with torch.inference_mode(), autocast():
        reader.run(images, visit)
    for metric in metrics.values():
        metric.close(len(images))


def _remarks(metrics: Mapping[str, Metric]) -> list[str]:
    notes: list[str] = []
    for name, metric in metrics.items():
        if isinstance(metric, FeatureCKA):
            if metric.sums.left_out:
                notes.append(f"{name}: {metric.sums.left_out} images at the end make too small a batch and are left out")
            if metric.sums.flat():
                blocks = ", ".join(map(str, metric.sums.flat()))
                notes.append(
                    f"{name}: block {blocks} does not tell these images apart (its HSIC is not positive); CKA is 0 there"
                )
    return notes


class _Store:
    """The sums on disk, with what they are of."""

    def __init__(self, path: Path, gallery: Gallery, names: Sequence[str], batch_size: int) -> None:
        self.path = path
        what = {**gallery.what, "metrics": list(names), "batch_size": batch_size, "images": gallery.count}
        self.what = json.dumps({**what, "weights_digest": digest(gallery.model)}, sort_keys=True, default=str)

    def load(self, metrics: Mapping[str, Metric]) -> tuple[int, int]:
        """Batches and images that are in the sums; sums of something else are not taken."""
        if not self.path.is_file():
            return 0, 0
        from safetensors import safe_open

        with safe_open(str(self.path), "pt") as file:
            meta = file.metadata() or {}
        if meta.get("what") != self.what:
            return 0, 0
        tensors = load_file(self.path)
        for name, metric in metrics.items():
            metric.load({k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{name}/")})
        return int(meta["batches"]), int(meta["seen"])

    def save(self, metrics: Mapping[str, Metric], batches: int, images: int) -> None:
        """Write the sums of whole batches."""
        tensors = {f"{name}/{k}": v.contiguous() for name, metric in metrics.items() for k, v in metric.state().items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path, tensors, {"what": self.what, "batches": str(batches), "seen": str(images)})


def class_features(gallery: Gallery, batch_size: int, workers: int | None = None) -> tuple[np.ndarray, list[int]]:
    """Class tokens after the final norm ``(N, C)`` float32 (the mean of the tokens without one), and the labels of the images."""
    reader = Reader(gallery.model, attention=False)
    device = next(gallery.model.parameters()).device
    found: list[np.ndarray] = []
    labels: list[int] = []
    last: list[Layer] = []
    for batch, places in gallery.batches(batch_size, 0, workers):
        if batch is None:
            continue
        with torch.inference_mode(), gallery.autocast():
            reader.run(batch.to(device), lambda layer: last.__setitem__(slice(None), [layer]))
        tokens = (last[0].tokens if reader.final is None else reader.final).float()
        cls = reader.layout.cls
        found.append((tokens.mean(dim=1) if cls is None else tokens[:, cls]).cpu().numpy())
        labels += [gallery.labels[place] for place in places]
    return np.concatenate(found), labels
