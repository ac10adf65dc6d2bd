"""The trace store: reduction patterns, features and predictions of every image, by column.

A store is a folder: ``store.json`` (what it is of, and its shards), ``images.csv`` (path and target of every image) and
``shards/00000.safetensors``, each with some hundreds of images. Columns are tensors with one row an image; a reader maps the
files into memory and touches only the columns and rows that are asked for.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = slice | int | Sequence[int] | Array | None

VERSION = 1
NOTHING = 255  # stands for -1 in columns of one byte


class TraceError(ValueError):
    """A store that cannot be read or written; the message says what to do."""


class TraceStore:
    """Reads a store that ``vitrim eval --trace`` wrote.

    Every method takes ``rows``: a slice, a number, or numbers of images, counted from 0 in the order of the store; None reads
    all. What is read is NumPy, of the image first.

    Args:
        path: the folder ``trace``, or that of the run.

    Attributes:
        path: the folder.
        meta: ``store.json``: model, method, schedule, data, split, patches, grid, classes, metrics and more.
        stages: blocks after which tokens were reduced.
        blocks: blocks with features.

    Raises:
        FileNotFoundError: where there is no store.
        TraceError: when it is not complete, or of another version of the format.
    """

    def __init__(self, path: str | Path) -> None:
        found = Path(path)
        self.path = found if (found / "store.json").is_file() or not (found / "trace").is_dir() else found / "trace"
        meta = read_meta(self.path)
        if meta is None:
            raise FileNotFoundError(f"'{path}' holds no trace; record one with: vitrim eval RUN --trace")
        self.meta: dict[str, Any] = meta
        if not self.meta["complete"]:
            raise TraceError(f"the trace '{self.path}' is not complete; the same vitrim eval --trace goes on with it")
        self.stages: list[int] = self.meta["stages"]
        self.blocks: list[int] = self.meta["blocks"]
        self._shards = [(self.path / "shards" / s["file"], int(s["images"])) for s in self.meta["shards"]]
        self._starts = np.concatenate([[0], np.cumsum([n for _, n in self._shards])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        what = " ".join(str(self.meta[k]) for k in ("model", "method", "schedule") if self.meta.get(k))
        return f"TraceStore({str(self.path)!r}: {what}, {len(self)} images)"

    @property
    def digest(self) -> str:
        """A hash of all that was recorded: equal stores have equal digests, so that results can be cached by it."""
        return self.meta["digest"]

    # -- patterns -------------------------------------------------------------------------------------------------

    def assignment(self, stage: int, rows: Rows = None) -> npt.NDArray[np.int16]:
        """``(N, patches)``: the token that each patch of the image has become after a stage; -1 for dropped ones.

        Of a soft map, the token that takes most of the patch.
        """
        return self._indices(f"stage{self._stage(stage)}.assignment", rows)

    def source(self, stage: int, rows: Rows = None) -> npt.NDArray[np.int16]:
        """``(N, m)``: the patch that each token still is, as it is or as the medoid of its cluster, in the order of the tokens.

        -1 for averages, sums and soft mixtures, for tokens that a cache put back, and for the padding of ragged methods.
        """
        return self._indices(f"stage{self._stage(stage)}.source", rows)

    def kept(self, stage: int, rows: Rows = None) -> npt.NDArray[np.bool_]:
        """``(N, patches)``: the patches that are still tokens of their own: not dropped, fused or averaged.

        What pruning keeps, the medoids of K-Medoids, and whatever merging has left alone; nothing of soft methods. Patches
        that live on in whatever form are ``assignment(stage) >= 0``.
        """
        source = self.source(stage, rows)
        kept = np.zeros((len(source), self.patches + 1), dtype=np.bool_)
        np.put_along_axis(kept, np.where(source < 0, self.patches, source).astype(np.int64), True, axis=1)
        return kept[:, : self.patches]

    def tokens(self, stage: int, rows: Rows = None) -> npt.NDArray[np.int32]:
        """``(N,)``: tokens after a stage, class token and padding not counted, those of a cache counted."""
        return self._read(f"stage{self._stage(stage)}.tokens", rows).astype(np.int32)

    def soft(self, stage: int, rows: Rows = None) -> npt.NDArray[np.float16]:
        """``(N, m, patches)``: the matrix of a soft method after a stage, composed with those before it.

        Raises:
            TraceError: when the matrices were not recorded.
        """
        name = f"stage{self._stage(stage)}.soft"
        if name not in self.columns:
            raise TraceError(
                f"'{self.path}' has no soft maps; record them, of soft methods, with: vitrim eval RUN --trace --soft"
            )
        return self._read(name, rows)

    @property
    def patches(self) -> int:
        """Patches of an image.

        Raises:
            TraceError: for a model that reduces nothing and takes any image size.
        """
        if self.meta["patches"] is None:
            raise TraceError(f"'{self.path}' is of a dense model; there are no patterns in it")
        return self.meta["patches"]

    # -- features and predictions ---------------------------------------------------------------------------------

    def features(self, block: int, kind: Literal["cls", "mean"] | None = None, rows: Rows = None) -> Array:
        """``(N, C)`` features after a block, before the final norm: of the class token, or the mean of the patches.

        Args:
            block: one of :attr:`blocks`.
            kind: what was recorded first (the class token, where there is one) when None.
            rows: of which images.

        Raises:
            TraceError: for a block or kind that was not recorded.
        """
        kind = kind or self.meta["features"][0] if self.meta["features"] else "cls"
        if f"block{block}.{kind}" not in self.columns:
            there = ", ".join(map(str, self.blocks)) or "none"
            raise TraceError(
                f"'{self.path}' has no '{kind}' features of block {block}; it has {', '.join(self.meta['features']) or 'none'} "
                f"after the blocks: {there} (vitrim eval --trace --features cls,mean --blocks ...)"
            )
        return self._read(f"block{block}.{kind}", rows)

    def chunks(self, size: int = 4096) -> Iterator[slice]:
        """Slices of ``size`` images that cover the store, for what does not fit into memory at once."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    @cached_property
    def targets(self) -> Array:
        """``(N,)`` int64 classes, or ``(N, classes)`` bool of the present ones."""
        texts = [self._images[i][1] for i in self.index]
        if self.meta["task"] == "classify":
            return np.array([int(text) for text in texts], dtype=np.int64)
        present = np.zeros((len(texts), len(self.meta["classes"])), dtype=np.bool_)
        for row, text in enumerate(texts):
            present[row, [int(word) for word in text.split()]] = True
        return present

    @cached_property
    def predictions(self) -> Array:
        """``(N, k)`` the k <= 5 likeliest classes, best first; of several labels ``(N, classes)`` bool: probability above 1/2."""
        return self._read("top").astype(np.int64) if self.meta["task"] == "classify" else self.scores > 0

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """``(N, classes)`` logits; recorded where images have several labels.

        Raises:
            TraceError: for a store of one class per image.
        """
        if "scores" not in self.columns:
            raise TraceError(f"'{self.path}' keeps the five best classes of every image (predictions), no scores of all")
        return self._read("scores")

    @cached_property
    def confidence(self) -> npt.NDArray[np.float32]:
        """``(N,)`` probability of the likeliest class (one class per image)."""
        return self._read("confidence")

    @cached_property
    def loss(self) -> npt.NDArray[np.float32]:
        """``(N,)`` cross-entropy of each image; binary, and the mean over classes, where images have several labels."""
        return self._read("loss")

    @cached_property
    def index(self) -> npt.NDArray[np.int64]:
        """``(N,)`` position of each image in its split: 0, 1, 2, ... unless unreadable files were left out."""
        return self._read("index").astype(np.int64)

    @cached_property
    def paths(self) -> list[str]:
        """Path of each image, relative to the data set's root."""
        return [self._images[i][0] for i in self.index]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.meta["classes"]

    # -- machinery ------------------------------------------------------------------------------------------------

    @cached_property
    def columns(self) -> dict[str, Mapping[str, Any]]:
        """Type and width of every column in the first shard."""
        if not self._shards:
            return {}
        with _open(self._shards[0][0]) as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            return {name: {"dtype": found.get_dtype(), "shape": found.get_shape()[1:]} for name, found in slices.items()}

    def _stage(self, stage: int) -> int:
        if stage not in self.stages:
            there = ", ".join(map(str, self.stages)) or "none, it is of a dense model"
            raise TraceError(f"'{self.path}' has no stage after block {stage}; it has: {there}")
        return stage

    @cached_property
    def _images(self) -> list[tuple[str, str]]:
        with (self.path / "images.csv").open(newline="", encoding="utf-8") as file:
            return [(row["path"], row["target"]) for row in csv.DictReader(file)]

    def _indices(self, name: str, rows: Rows) -> npt.NDArray[np.int16]:
        return self._read(name, rows, signed=True)

    def _read(self, name: str, rows: Rows = None, signed: bool = False) -> Array:
        """A column, or some rows of it; of ragged methods shards differ in width, and the narrow ones are padded with -1."""
        if rows is None or isinstance(rows, slice):
            whole = np.arange(len(self))[rows or slice(None)]
        else:
            whole = np.atleast_1d(np.asarray(rows, dtype=np.int64))
        if len(whole) and not (-len(self) <= whole.min() and whole.max() < len(self)):
            raise IndexError(f"the store has the images 0 to {len(self) - 1}")
        whole = np.where(whole < 0, whole + len(self), whole)
        shards = np.searchsorted(self._starts, whole, side="right") - 1
        parts: list[tuple[Array, Array]] = []
        for number in np.unique(shards):
            places = np.flatnonzero(shards == number)
            local = whole[places] - self._starts[number]
            first, last = int(local.min()), int(local.max()) + 1
            with _open(self._shards[number][0]) as file:
                part = file.get_slice(name)[first:last]
            if len(local) != last - first or (np.diff(local) != 1).any():
                part = part[local - first]
            parts.append((places, _signed(part) if signed else part))
        return _assemble(parts, len(whole), self.columns[name] if not parts else None, signed)


def read_meta(path: Path) -> dict[str, Any] | None:
    """``store.json`` of a store; None where there is none.

    Raises:
        TraceError: when it is damaged, or of another version of the format.
    """
    file = path / "store.json"
    if not file.is_file():
        return None
    try:
        meta: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = meta["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"'{file}' is damaged ({error}); record the trace again with --overwrite") from error
    if version != VERSION:
        raise TraceError(f"'{path}' was written in format {version}, this is {VERSION}; record the trace again with --overwrite")
    return meta


def read_columns(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Those of the columns that a shard has."""
    with _open(path) as file:
        there = set(file.keys())
        return {name: file.get_tensor(name) for name in names if name in there}


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise TraceError(f"shard '{path}' cannot be read ({error}); remove it and run the same vitrim eval again") from error


def _signed(part: Array) -> Array:
    """Indices of one byte as int16, with -1 for nothing."""
    if part.dtype != np.uint8:
        return part
    return np.where(part == NOTHING, np.int16(-1), part.astype(np.int16))


def _assemble(parts: list[tuple[Array, Array]], count: int, empty: Mapping[str, Any] | None, signed: bool) -> Array:
    if empty is not None:
        return np.zeros((count, *empty["shape"]), dtype=np.int16 if signed else np.float32)
    if len(parts) == 1 and len(parts[0][1]) == count:
        return parts[0][1]
    shape = tuple(np.max([part.shape[1:] for _, part in parts], axis=0)) if parts[0][1].ndim > 1 else ()
    whole = np.full((count, *shape), -1 if signed else 0, dtype=np.result_type(*{part.dtype for _, part in parts}))
    for places, part in parts:
        whole[(places, *(slice(0, width) for width in part.shape[1:]))] = part
    return whole
