"""The golden vectors: an index of cases recorded from the official implementations, and how to read them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

EMBEDDED = Path(__file__).parent / "golden"


def root() -> Path:
    """The directory in use: ``VITRIM_GOLDEN``, or the part that lies in the repository."""
    path = Path(os.environ.get("VITRIM_GOLDEN") or EMBEDDED)
    if not (path / "index.json").is_file():
        raise FileNotFoundError(f"no index.json in {path}: VITRIM_GOLDEN must name a directory of golden cases")
    return path


def cases() -> list[dict[str, Any]]:
    """All entries of the index."""
    return json.loads((root() / "index.json").read_text())["cases"]


def arrays(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a case."""
    with np.load(root() / case["file"], allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def images() -> Tensor:
    """The normalised images, ``(4, 3, 224, 224)``, all arithmetic in float32 as recorded."""
    with np.load(root() / "images.npz", allow_pickle=False) as file:
        mean, std = file["mean"].astype(np.float32), file["std"].astype(np.float32)
        x = (file["images_u8"].astype(np.float32) / np.float32(255) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    """The parameters of a case; later files override earlier ones."""
    merged: dict[str, Tensor] = {}
    for name in case["weights"]:
        merged |= load_file(root() / "weights" / name)
    return merged


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two labelings are one clustering under two namings."""
    pairs = {(int(x), int(y)) for x, y in zip(a, b, strict=True)}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def row_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference between two sets of rows, whatever their order: every row against its nearest in the other set."""
    if a.shape != b.shape:
        return float("inf")
    gaps = np.abs(a[:, None, :].astype(np.float64) - b[None]).max(axis=-1)
    return float(max(gaps.min(axis=0).max(), gaps.min(axis=1).max()))
