"""What an evaluation says about every image: metrics, accuracy of each class, and tables of predictions."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrim.experiments.tracestore import Array
from vitrim.tasks import Task, average_precision
from vitrim.training.checkpoint import write_text

Results = dict[str, Array]
COLUMNS = ("index", "loss", "top", "confidence", "scores")


def of_batch(task: Task, index: Tensor, logits: Tensor, target: Tensor) -> Results:
    """The results of a batch: ``index``, ``loss``, and ``top`` and ``confidence``, or the ``scores`` of several labels.

    Args:
        task: what is measured.
        index: ``(B,)`` positions in the split.
        logits: ``(B, classes)``.
        target: ``(B,)`` or ``(B, classes)``, as the task takes it.
    """
    logits = logits.float()
    found: dict[str, Tensor] = {"index": index.to(torch.int32)}
    if task.targets == "labels":
        found["loss"] = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(-1)
        found["scores"] = logits
    else:
        found["loss"] = F.cross_entropy(logits, target, reduction="none")
        top = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
        found["top"] = top.to(torch.int16 if logits.shape[-1] < 2**15 else torch.int32)
        found["confidence"] = logits.softmax(-1).amax(-1)
    return {name: tensor.cpu().numpy() for name, tensor in found.items()}


def join_results(parts: Sequence[Results]) -> Results:
    """The results of several parts, in the order of the split."""
    if not parts:
        return {}
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["index"], kind="stable")
    return {name: array[order] for name, array in whole.items()}


def metrics(task: Task, results: Results, targets: Array) -> dict[str, float]:
    """The task's metrics, exactly those of training.

    Raises:
        MetricError: without images, or for logits that are not numbers.
    """
    metric = task.metric()
    if results and task.targets == "labels":
        metric.load({"scores": torch.from_numpy(results["scores"]), "targets": torch.from_numpy(targets) > 0})
    elif results:
        right = results["top"] == targets[:, None]
        bad = int(np.isnan(results["confidence"]).sum())
        loss = torch.tensor(results["loss"].sum(dtype=np.float64))
        metric.load({"loss": loss, "counts": torch.tensor([len(targets), int(right[:, 0].sum()), int(right.sum()), bad])})
    return metric.compute()


def class_table(task: Task, results: Results, targets: Array, classes: Sequence[str]) -> dict[str, list[Any]]:
    """One row a class: images and accuracies in percent; of several labels average precision, precision and recall."""
    if task.targets == "labels":
        present, scores = targets > 0, results["scores"]
        guessed = scores > 0
        right = (guessed & present).sum(0)
        precision = average_precision(torch.from_numpy(scores), torch.from_numpy(present)).numpy()
        counts = present.sum(0)
        return {
            "class": list(classes), "images": counts.tolist(), "AP": (100 * precision).round(4).tolist(),
            "precision": _percent(right, guessed.sum(0)), "recall": _percent(right, counts),
        }  # fmt: skip
    right = results["top"] == targets[:, None]
    counts = np.bincount(targets, minlength=len(classes))
    first = np.bincount(targets, weights=right[:, 0], minlength=len(classes))
    five = np.bincount(targets, weights=right.any(1), minlength=len(classes))
    return {"class": list(classes), "images": counts.tolist(), "top1": _percent(first, counts), "top5": _percent(five, counts)}


def image_table(
    task: Task, results: Results, targets: Array, paths: Sequence[str], classes: Sequence[str]
) -> dict[str, list[Any]]:
    """One row an image: path, target, prediction, confidence and loss; of several labels their names, joined by ``|``."""
    table: dict[str, list[Any]] = {"index": results["index"].tolist(), "path": list(paths)}
    if task.targets == "labels":
        for name, rows in (("target", targets > 0), ("predicted", results["scores"] > 0)):
            table[name] = ["|".join(classes[int(i)] for i in np.flatnonzero(row)) for row in rows]
        return {**table, "loss": results["loss"].tolist()}
    top = results["top"]
    return {
        **table, "target": [classes[i] for i in targets], "predicted": [classes[i] for i in top[:, 0]],
        "correct": (top[:, 0] == targets).tolist(), "correct5": (top == targets[:, None]).any(1).tolist(),
        "confidence": results["confidence"].tolist(), "loss": results["loss"].tolist(),
        "top5": ["|".join(classes[int(i)] for i in row) for row in top],
    }  # fmt: skip


def write_table(path: Path, table: dict[str, list[Any]]) -> None:
    """Write a table as CSV or Parquet, by the ending of the path, complete or not at all.

    Raises:
        ImportError: for Parquet without pyarrow.
        ValueError: for another ending.
    """
    if path.suffix == ".csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
        write_text(path, out.getvalue())
    elif path.suffix == ".parquet":
        arrow, parquet = require_parquet()
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            parquet.write_table(arrow.table(table), scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    else:
        raise ValueError(f"tables are written as .csv or .parquet; got '{path.name}'")


def require_parquet() -> tuple[Any, Any]:
    """PyArrow, with its Parquet part.

    Raises:
        ImportError: when it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow; install vitrim[experiments], or take --predictions csv") from error
    return pyarrow, parquet


def _percent(part: Array, whole: Array) -> list[float | None]:
    return [round(100 * float(p) / float(w), 4) if w else None for p, w in zip(part, whole, strict=True)]
