"""Writes trace stores of imagined runs through the real writer: patterns and features that a rule gives, as alike as one wants.

Every image has a saliency and a colour for each patch, and a vector that its features are made of. A method sees them with noise
of its own; how much says how far its accuracy falls.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from vitrim.experiments.tracestore import Array
from vitrim.experiments.tracewriter import Columns, TraceWriter, narrow

GRID, DIM, DEPTH, SHARD = (6, 6), 16, 12, 40
STAGES, BLOCKS = (3, 6, 9), (3, 6, 9, 11)
# How it reduces, and how much of what it sees is noise.
METHODS = {
    "topk": ("prune", 0.1), "evit": ("fuse", 0.15), "dynamicvit": ("prune", 0.5), "ats": ("ragged", 0.4), "tome": ("merge", 0.2),
    "dpcknn": ("merge", 0.6), "kmedoids": ("medoid", 0.9), "sit": ("soft", 0.8),
}  # fmt: skip


def write_trace(
    folder: Path, method: str | None = "topk", rate: float = 0.5, *, images: int = 64, model: str = "timm/vit_tiny_patch16_224",
    data: str = "leaves", dim: int = DIM, grid: tuple[int, int] = GRID, seed: int = 0, soft: bool = True,
    limit: int | None = None, broken: int = 0, accuracy: float | None = None, names: str = "image", root: Path | None = None,
) -> Path:  # fmt: skip
    """One run folder with its config.yaml and trace.

    Args:
        folder: of the run.
        method: one of :data:`METHODS`; None is a dense model.
        rate: share kept at each of three stages.
        images: of the split.
        model: spec.
        data: name of the data set; its images have a saliency of their own.
        dim: width of the features.
        grid: rows and columns of patches.
        seed: of the training.
        soft: record soft maps.
        limit: record so many of the images.
        broken: so many features of block 9 are not numbers.
        accuracy: in percent; by rule when None.
        names: of the image files.
        root: folder of the images, which are written when they are not there.
    """
    folder.mkdir(parents=True)
    schedule = None if method is None else f"keep(rate={rate}, at={list(STAGES)})"
    spec = f"folder(root='{root}')" if root is not None else f"folder(root='data/{data}')"
    recipe = {"model": model, "method": method, "schedule": schedule or "keep", "data": spec, "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    family, noise = METHODS.get(method or "", ("dense", 0.0))
    top1 = round(90 - 40 * (1 - rate) ** 2 * (0.3 + noise) - 10 * noise + dim / 8, 3) if method else 90.0 + dim / 8
    # As a folder of images lists them: class by class.
    listed = [(f"val/{'ab'[i * 2 // images]}/{names}{i:05d}.png", str(i * 2 // images)) for i in range(images)]
    if root is not None:
        # With images of both splits, or 'val' would be read as a class.
        _write_images(root, [*(path for path, _ in listed), "train/a/first.png", "train/b/first.png"], grid)
    what = {
        "model": model, "weights": "final", "method": method, "schedule": schedule, "cache": None, "head": None, "data": spec,
        "split": "val", "transform": f"plain(size={8 * grid[0]})", "task": "classify", "precision": "fp32", "batch_size": SHARD,
        "limit": limit, "features": ["cls"], "blocks": list(BLOCKS), "shard": SHARD, "features_dtype": "float32", "soft": soft,
        "depth": DEPTH, "dim": dim, "prefix": 1, "grid": list(grid), "classes": ["a", "b"], "labels": None,
        "weights_digest": f"{method}{rate}{model}{seed}",
    }  # fmt: skip
    writer = TraceWriter(folder / "trace", what, listed)
    count = limit or images
    starts = range(0, count, SHARD)
    for number, start in enumerate(starts):
        rows = np.arange(start, min(start + SHARD, count))
        columns = _columns(rows, method, rate, family, noise, data, dim, grid, seed, model, soft)
        if broken and number == 0:
            columns["block9.cls"][:broken] = np.nan
        writer.write(number, columns)
    writer.finish(len(starts), {"metrics": {"top1": top1 if accuracy is None else accuracy, "top5": 99.0, "loss": 0.5}})
    return folder


def _columns(
    rows: Array, method: str | None, rate: float, family: str, noise: float, data: str, dim: int, grid: tuple[int, int],
    seed: int, model: str, soft: bool,
) -> Columns:  # fmt: skip
    patches = grid[0] * grid[1]
    images, own = _rng(data, rows[0], grid), _rng(f"{method}{seed}{model}", rows[0], grid)
    y, x = np.divmod(np.arange(patches), grid[1])
    middle = -np.hypot(y - grid[0] / 2 + 0.5, x - grid[1] / 2 + 0.5) / 3
    saliency = middle + images.normal(size=(len(rows), patches))
    colour = images.normal(size=(len(rows), patches)).cumsum(axis=1)
    latent = images.normal(size=(len(rows), DIM))
    saliency = saliency + 2 * noise * own.normal(size=saliency.shape)
    colour = colour + 3 * noise * own.normal(size=colour.shape)
    columns: Columns = {"index": rows.astype(np.int64), "loss": np.zeros(len(rows), np.float32)}
    columns["top"] = np.zeros((len(rows), 2), np.int64)
    columns["confidence"] = np.ones(len(rows), np.float32)
    for block in BLOCKS:
        mixing = np.random.default_rng(zlib.crc32(f"{model}{block}{method}".encode())).normal(size=(DIM, dim))
        weight = 0.3 + (0 if method is None else (noise + 1 - rate) * block / 11)
        columns[f"block{block}.cls"] = (latent @ mixing + 3 * weight * own.normal(size=(len(rows), dim))).astype(np.float32)
    if family == "dense":
        return columns
    for i, block in enumerate(STAGES, 1):
        left = max(2, int(patches * rate**i))
        columns |= _stage(f"stage{block}", family, saliency, colour, left, i, soft)
    return columns


def _stage(name: str, family: str, saliency: Array, colour: Array, left: int, number: int, soft: bool) -> Columns:
    count, patches = saliency.shape
    order = np.argsort(-saliency, axis=1, kind="stable")
    rank = np.argsort(order, axis=1)
    label = np.where(rank < left, rank, -1)
    source, tokens, extra = order[:, :left].copy(), np.full(count, left), {}
    if family == "ragged":
        tokens = left - np.arange(count) % 2
        label = np.where(label < tokens[:, None], label, -1)
        source = np.where(np.arange(left) < tokens[:, None], source, -1)
    elif family == "fuse":
        label = np.where(label < 0, left, label)
        source, tokens = np.pad(source, ((0, 0), (0, 1)), constant_values=-1), tokens + 1
    elif family in ("merge", "medoid", "soft"):
        place = np.argsort(np.argsort(colour, axis=1), axis=1)
        label = place * left // patches
        inside = np.arange(left)[:, None] == label[:, None]
        source = np.where(inside.sum(axis=2) == 1, inside.argmax(axis=2), -1) if family == "merge" else inside.argmax(axis=2)
        if family == "soft":
            source = np.full_like(source, -1)
            near = np.exp(-np.abs(np.arange(left)[:, None] - (place * left / patches)[:, None] + 0.5) * number)
            label = near.argmax(axis=1)
            extra = {f"{name}.soft": (near / near.sum(axis=1, keepdims=True)).astype(np.float16)} if soft else {}
    width = int(tokens.max())
    return {
        f"{name}.assignment": narrow(torch.from_numpy(label), width), f"{name}.source": narrow(torch.from_numpy(source), patches),
        f"{name}.tokens": tokens.astype(np.int16), **extra,
    }  # fmt: skip


def _rng(text: str, start: Any, grid: tuple[int, int]) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(text.encode()), int(start), grid[0]])


def _write_images(root: Path, paths: list[str], grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for path in paths[:4] if (root / paths[0]).exists() else paths:
        file = root / path
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 255, (3, 3, 3), dtype=np.uint8)
            Image.fromarray(small).resize((8 * grid[1], 8 * grid[0]), Image.Resampling.BICUBIC).save(file)


def write_many(
    place: Path, methods: tuple[str, ...] = tuple(METHODS), rates: tuple[float, ...] = (0.9, 0.7, 0.5, 0.25), **settings: Any
) -> int:
    """The dense model and methods at rates; how many runs."""
    write_trace(place / "dense", None, **settings)
    for method in methods:
        for rate in rates:
            write_trace(place / f"{method}-{rate}", method, rate, **settings)
    return 1 + len(methods) * len(rates)
