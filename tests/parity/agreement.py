"""The published comparison tables of pruning and of merging patterns, from the recorded results of runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.models import Outcome
from vitrim.analysis.agreement import iou, partition
from vitrim.core.tokenmap import TokenMap

Run = dict[str, Any]
PATCHES = 196
MEASURES = {"Homogeneity": "homogeneity", "Completeness": "completeness", "NMI": "nmi"}


def compare(recorded: dict[str, Any], out: Outcome) -> None:
    """Check the rows ``pruning_iou`` and ``merging_nmi`` of the recorded scripts."""
    runs = {name_of(run): recorded["viz_results"][run["Name"]] for run in recorded["runs"]}
    for row in recorded["expected"]["pruning_iou"]:
        first, second = (runs[row[f"Model {side}"]] for side in "AB")
        for block in _blocks(row, ""):
            found = iou(kept(first, block), kept(second, block))
            _number(out, row, f"Stage-{block}", found)
    for row in recorded["expected"]["merging_nmi"]:
        blocks = _blocks(row, "NMI-")
        first, second = (assigned(runs[row[f"Model {side}"]], blocks) for side in "AB")
        for block in blocks:
            found = partition(first[block], second[block])
            for column, measure in MEASURES.items():
                _number(out, row, f"{column}-Stage-{block}", found[measure])


def kept(run: Run, block: int) -> np.ndarray:
    """``(images, patches)`` bool from the recorded indices, -1 among them for padding."""
    mask = np.zeros((len(_images(run)), PATCHES + 1), dtype=bool)
    for row, image in zip(mask, _images(run), strict=True):
        row[image[f"Stage-{block}"]["Kept_Token"]] = True  # -1 is the last column
    return mask[:, :PATCHES]


def assigned(run: Run, blocks: list[int]) -> dict[int, np.ndarray]:
    """By block, ``(images, patches)``: the cluster of every patch, stages composed as the engine composes its maps."""
    found: dict[int, list[np.ndarray]] = {block: [] for block in blocks}
    for image in _images(run):
        total: TokenMap | None = None
        stages = [torch.tensor(image[f"Stage-{block}"]["Assignment_Maps"])[None].long() for block in blocks]
        sizes = [*(stage.shape[1] for stage in stages[1:]), int(stages[-1].max()) + 1]
        for block, stage, m in zip(blocks, stages, sizes, strict=True):
            step = TokenMap.merge(stage, m)
            total = step if total is None else total.then(step)
            found[block].append(total.assignment()[0].numpy())
    return {block: np.stack(rows) for block, rows in found.items()}


def name_of(run: dict[str, str]) -> str:
    """The id of a model in the tables: method, blocks and rate."""
    blocks = "_".join(run["reduction_loc"].strip("[]").split(", "))
    return f"{run['model']}-{blocks}-_{float(run['keep_rate'].strip('[]'))}"


def _images(run: Run) -> list[Run]:
    return [run[name] for name in sorted(run) if name.startswith("im")]


def _blocks(row: dict[str, Any], start: str) -> list[int]:
    names = [name for name in row if name.startswith(f"{start}Stage-") and name.endswith("-Mean")]
    return sorted(int(name.split("-")[-2]) for name in names)


def _number(out: Outcome, row: dict[str, Any], column: str, found: np.ndarray) -> None:
    name = f"{row['Model A']} and {row['Model B']}: {column}"
    out.number(f"{name} mean", found.mean(), row[f"{column}-Mean"], 1e-12)
    out.number(f"{name} std", found.std(), row[f"{column}-std"], 1e-12)
