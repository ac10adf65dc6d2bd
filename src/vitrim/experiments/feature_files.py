"""What feature metrics are written into: tables, pictures of one model or of several, and a record of all numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrim.analysis.hsic import summarise
from vitrim.experiments.features import Measured
from vitrim.experiments.results import require_parquet, write_table
from vitrim.training.checkpoint import write_text


def write(measured: Measured, what: Mapping[str, Any], out: Path, table: str) -> list[str]:
    """Write tables, pictures and ``features.json`` into a folder; the names of the files."""
    from vitrim.analysis.plots import plot_cka, plot_lines

    if table == "parquet":
        require_parquet()
    out.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    matrices = {k: v for k, v in measured.values.items() if k in ("cka", "attention_cka")}
    lines = {k: v for k, v in measured.values.items() if k not in matrices}
    title = f"{what.get('model')}, {what.get('method') or 'dense'}, {measured.images} images"
    for name, value in matrices.items():
        plot_cka(value, out / f"{name}.png", f"{'attention ' if name != 'cka' else ''}CKA: {title}")
        files.append(f"{name}.png")
    for group in (("distance",), ("entropy",), ("rank", "rank_centred"), ("dist", "dist_norm", "l2_norm")):
        shown = {name: lines[name] for name in group if name in lines}
        if shown:
            file = f"{'norms' if 'dist' in shown else group[0]}.png"
            plot_lines(shown, out / file, title)
            files.append(file)
    for name, rows in (("layers", _layer_rows(lines)), ("cka", _pair_rows(matrices))):
        if rows["metric"]:
            write_table(out / f"{name}.{table}", rows)
            files.append(f"{name}.{table}")
    summaries = {k: vars(summarise(torch.from_numpy(v))) for k, v in matrices.items() if len(v) >= 4}
    facts = {**what, "images": measured.images, "notes": measured.notes, "summary": summaries}
    facts["values"] = {name: value.tolist() for name, value in measured.values.items()}
    write_text(out / "features.json", json.dumps(facts, indent=1, default=str) + "\n")
    return [*files, "features.json"]


def write_compared(found: Mapping[str, Measured], out: Path) -> list[str]:
    """Write pictures that compare several models; the names of the files.

    Args:
        found: by the name of the model; all with the same metrics.
        out: folder.
    """
    from vitrim.analysis.plots import plot_compared_cka, plot_compared_lines

    values = {name: {model: one.values[name] for model, one in found.items()} for name in next(iter(found.values())).values}
    counts = sorted({one.images for one in found.values()})
    title = f"{'-'.join(map(str, counts))} images"
    files: list[str] = []
    for name in ("cka", "attention_cka"):
        if name in values:
            plot_compared_cka(values[name], out / f"{name}.png", f"{'attention ' if name != 'cka' else ''}CKA, {title}")
            files.append(f"{name}.png")
            values[name] = {model: _to_others(matrix) for model, matrix in values[name].items()}
    plot_compared_lines(values, out / "compared.png", title)
    return [*files, "compared.png"]


def _to_others(matrix: np.ndarray) -> np.ndarray:
    """``(L,)``: mean of each row without the diagonal."""
    return (matrix.sum(axis=1) - np.diag(matrix)) / max(len(matrix) - 1, 1)


def _layer_rows(values: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """One row for each block, and each head where there are heads; ``head`` is -1 for the block as a whole."""
    rows: dict[str, list[Any]] = {"metric": [], "block": [], "head": [], "value": []}
    for name, value in values.items():
        columns = value[:, None] if value.ndim == 1 else np.concatenate([value.mean(axis=1, keepdims=True), value], axis=1)
        for block, row in enumerate(columns):
            for head, number in enumerate(row, start=-1):
                for column, cell in zip(rows.values(), (name, block, head, float(number)), strict=True):
                    column.append(cell)
    return rows


def _pair_rows(values: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {"metric": [], "block": [], "other": [], "value": []}
    for name, value in values.items():
        for (block, other), number in np.ndenumerate(value):
            for column, cell in zip(rows.values(), (name, block, other, float(number)), strict=True):
                column.append(cell)
    return rows
