"""Evaluation of a model on a split: metrics, cost, speed against the dense model, and the record of every image."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from vitrim.datasets.base import DataError
from vitrim.experiments.passes import Pass, Pieces, everything, labels_of
from vitrim.experiments.processes import Processes
from vitrim.experiments.results import Results, class_table, image_table, join_results, metrics, require_parquet, write_table
from vitrim.experiments.subject import Subject, dense_twin
from vitrim.experiments.tracing import Recorder, TraceOptions
from vitrim.measure.flops import count_flops, parameters
from vitrim.measure.report import environment
from vitrim.measure.throughput import interleave
from vitrim.recognition.base import Recogniser
from vitrim.training.checkpoint import write_text


@dataclass(frozen=True)
class Settings:
    """How an evaluation is done.

    Attributes:
        batch_size: images of a forward pass, in the measurement of speed as well.
        limit: images to evaluate, spread evenly over the split; None takes all.
        workers: processes that load images; by the number of cores when None.
        rounds: readings of the clock; 0 leaves the speed out.
        trace: what to record of every image, or None.
        predictions: ``csv`` or ``parquet``: write tables of images and of classes.
        overwrite: replace a trace of something else.
    """

    batch_size: int = 64
    limit: int | None = None
    workers: int | None = None
    rounds: int = 5
    trace: TraceOptions | None = None
    predictions: str | None = None
    overwrite: bool = False


def evaluate(
    subject: Subject,
    out: Path | None,
    settings: Settings | None = None,
    *,
    device: torch.device | None = None,
    processes: Processes | None = None,
    say: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Evaluate, and write ``evaluation.json``, the tables and the trace into a folder.

    The model runs once over the split; speed and FLOPs are those of its first batch. With several processes, each takes its share
    of the images, and the first one writes.

    Args:
        subject: what is evaluated.
        out: folder for what is written; None writes nothing.
        settings: how.
        device: of the model.
        processes: all those that take part; one by default.
        say: called with images done and in all.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        ValueError: for wrong settings, or an empty split.
        DataError: for a file that cannot be read.
        MetricError: for logits that are not numbers.
        TraceError: when the trace there is of something else.
        WriteError: when the disk is full or refuses.
    """
    settings, device, processes = settings or Settings(), device or torch.device("cpu"), processes or Processes()
    check(settings, out, device, subject)
    autocast = _autocast(subject.precision, device)
    split: Any = subject.dataset.split(subject.split)
    pieces = everything(split, settings.limit, settings.batch_size, settings.trace.shard if settings.trace else None)
    recorder = None
    if settings.trace is not None and out is not None:
        recorder = Recorder(subject, settings, out / "trace", split, pieces, processes)
    began = time.perf_counter()
    run = Pass(subject, split, pieces, settings, device, autocast, processes, recorder, say)
    results, targets = run.run()
    seconds = time.perf_counter() - began
    parts = processes.gather((join_results(results), targets, run.skipped))
    values: dict[str, Any] = {}
    if processes.main:
        values = _finish(subject, settings, out, split, parts, (pieces, recorder, run.evaluated, seconds), device)
    processes.wait()
    return values


def check(settings: Settings, out: Path | None, device: torch.device, subject: Subject) -> None:
    """Refuse settings that cannot work, before anything is read.

    Raises:
        ValueError: naming the remedy.
    """
    if settings.batch_size < 1 or settings.rounds < 0 or (settings.limit is not None and settings.limit < 1):
        raise ValueError("--batch-size and --limit are 1 or more, --rounds 0 or more")
    if settings.predictions == "parquet":
        require_parquet()
    if out is None and (settings.trace or settings.predictions):
        raise ValueError("there is no run whose folder could take the trace or the predictions; give a folder with --out DIR")
    if settings.trace is not None and isinstance(subject.model, Recogniser):
        raise ValueError("a trace follows one pass through a plain vision transformer, not a recogniser; leave --trace out")
    if subject.precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")


def _finish(
    subject: Subject, settings: Settings, out: Path | None, split: Any, parts: list[Any],
    run: tuple[Pieces | None, Recorder | None, int, float], device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """In the first process: everything after the images."""
    pieces, recorder, evaluated, seconds = run
    skipped = [message for part in parts for message in part[2]]
    if pieces is None:
        results, targets = _of_stream(parts)
    else:
        results = join_results([part[0] for part in parts if part[0]])
        targets = labels_of(subject, split, results["index"]) if results else torch.empty(0)
    scores = metrics(subject.task, results, targets.numpy())
    images = len(results["index"])
    values = {
        **subject.what, "task": subject.task.name, "images": images, "classes": len(subject.dataset.classes), **scores,
        **cost(subject, split, settings, device), "precision": subject.precision, "device": str(device),
        "seconds": round(seconds, 3), "evaluated_per_second": round(evaluated / seconds, 2) if evaluated else None,
        "limit": settings.limit, "skipped": len(skipped), "notes": subject.notes, "environment": environment(device),
    }  # fmt: skip
    if out is not None:
        if recorder is not None:
            values["trace"] = recorder.finish(scores)
        if settings.predictions:
            _write_tables(out, settings.predictions, subject, results, targets, split)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "evaluation.json", json.dumps(values, indent=1) + "\n")
    return values


def _of_stream(parts: list[Any]) -> tuple[Results, Tensor]:
    """Results of a set that is read in order: what lies where is not known, so that targets come with the images."""
    found = [part for part in parts if part[0]]
    if not found:
        return {}, torch.empty(0)
    results = {name: np.concatenate([part[0][name] for part in found]) for name in found[0][0]}
    results["index"] = np.arange(len(results["index"]), dtype=np.int32)  # each process counts from 0
    return results, torch.cat([part[1] for part in found])


def cost(subject: Subject, split: Any, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Parameters, GFLOPs and speed of the model, and of the dense model for comparison.

    Ragged methods and their FLOPs depend on the images, so that the first ones of the split are taken. GFLOPs are 1e9
    multiply-adds of one image, the method's own work included.
    """
    model = subject.model
    batch = first_batch(subject, split, settings, device)
    if batch is None:
        return {"parameters": parameters(model)}
    dense = dense_twin(model)
    autocast = _autocast(subject.precision, device)
    found: dict[str, Any] = {"parameters": parameters(model), "gflops": _gflops(model, batch)}
    if dense is not None:
        found["dense_gflops"] = _gflops(dense, batch)
    if not settings.rounds:
        return {**found, "images_per_second": None}

    def forward(which: Any) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode(), autocast():
                return which(batch)

        return run

    runs = {"dense": forward(dense)} if dense is not None else {}
    timings = interleave({**runs, "model": forward(model)}, settings.rounds, warmup=2 if device.type == "cuda" else 1)
    own, size = timings["model"], len(batch)
    low, high = own.quartiles
    found |= {
        "images_per_second": round(size / own.median, 3),
        "images_per_second_quartiles": [round(size / t, 3) for t in (high, low)],
        "timed_batch": size, "rounds": settings.rounds,
    }  # fmt: skip
    if dense is not None:
        found |= {
            "dense_images_per_second": round(size / timings["dense"].median, 3), "speedup": round(own.speedup, 4),
            "speedup_quartiles": [round(x, 4) for x in own.speedup_quartiles],
        }  # fmt: skip
    return found


def first_batch(subject: Subject, split: Any, settings: Settings, device: torch.device) -> Tensor | None:
    """The first images that can be read, as the model takes them; None where there are none."""
    images = [subject.transform(image) for image in islice(_readable(split), settings.batch_size)]
    return torch.stack(images).to(device) if images else None


def _readable(split: Any) -> Iterator[Any]:
    if isinstance(split, IterableDataset):
        yield from (image for image, _ in split)
        return
    for number in range(len(split)):
        try:
            yield split[number][0]
        except DataError:
            continue  # counted in the evaluation itself


@torch.no_grad()
def _gflops(model: torch.nn.Module, batch: Tensor) -> float | None:
    try:
        return round(count_flops(model, batch).gflops / len(batch), 6)
    except NotImplementedError:
        return None


def _write_tables(
    out: Path, kind: str, subject: Subject, results: Mapping[str, Any], targets: Tensor, split: Any
) -> None:  # fmt: skip
    classes = _names(subject)
    known = not isinstance(split, IterableDataset)
    paths = [split.items[i].path for i in results["index"]] if known else [""] * len(targets)
    out.mkdir(parents=True, exist_ok=True)
    per_image = image_table(subject.task, dict(results), targets.numpy(), paths, classes)
    write_table(out / f"predictions.{kind}", per_image)
    write_table(out / f"classes.{kind}", class_table(subject.task, dict(results), targets.numpy(), classes))


def _names(subject: Subject) -> list[str]:
    """Names by the model's index of the class."""
    classes = subject.dataset.classes
    if subject.labels is None:
        return list(classes)
    count = int(getattr(subject.model, "num_classes", max(subject.labels) + 1))
    known = dict(zip(subject.labels, classes, strict=True))
    return [known.get(i, f"class {i}") for i in range(count)]


def _autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype)
