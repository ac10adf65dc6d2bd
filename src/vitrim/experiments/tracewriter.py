"""Writes a trace store shard by shard: each appears complete or not at all, and finished ones are not written again."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrim.experiments.patterns import Stage
from vitrim.experiments.tracestore import NOTHING, VERSION, Array, TraceError, read_columns, read_meta
from vitrim.training.checkpoint import WriteError, write_text

Columns = dict[str, Array]


class TraceWriter:
    """A store in the making.

    Args:
        path: folder of the store; made when it does not exist.
        what: what the store is of, plain JSON values. A store of anything else is refused.
        images: path and target of every image of the split; the target as text.
        overwrite: remove a store that is there.

    Raises:
        TraceError: when the folder holds a trace of something else.
        WriteError: when the disk is full or refuses.
    """

    def __init__(
        self, path: Path, what: Mapping[str, Any], images: Sequence[tuple[str, str]], overwrite: bool = False, main: bool = True
    ) -> None:  # fmt: skip
        self.path = path
        self.shards = path / "shards"
        self.what = json.loads(json.dumps({"version": VERSION, **what, "images_digest": _digest_of(images)}))
        if not main:
            return
        if overwrite and (path / "store.json").is_file():
            _remove(path)
        before = None if overwrite else read_meta(path)
        if before is not None:
            self._check_same(before)
        elif path.exists() and any(path.iterdir()) and not overwrite:
            raise TraceError(f"'{path}' is not empty and holds no trace; give another folder with --out")
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
            for left in self.shards.glob(".*"):
                left.unlink()
            if before is None:
                write_text(path / "images.csv", _csv(images))
                write_text(path / "store.json", json.dumps({**self.what, "complete": False}, indent=1))
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}; give another --out") from error

    def _check_same(self, before: Mapping[str, Any]) -> None:
        for key, value in self.what.items():
            if before.get(key) != value:
                was, now = (_short(x) for x in (before.get(key), value))
                raise TraceError(
                    f"'{self.path}' holds a trace with another '{key}' ({was}, now {now}); --overwrite replaces it, --out DIR "
                    "keeps both"
                )

    def file(self, number: int) -> Path:
        """The file of a shard."""
        return self.shards / f"{number:05d}.safetensors"

    def write(self, number: int, columns: Columns) -> None:
        """Write a shard.

        Raises:
            WriteError: when the disk is full or refuses; all other shards are whole.
        """
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in columns.items()}, metadata={"shard": str(number)})
        scratch = self.shards / f".{number:05d}.{os.getpid()}"
        try:
            with scratch.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.file(number))
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise WriteError(
                f"cannot write {self.file(number)}: {error.strerror or error}; the same command goes on where this one stopped"
            ) from error

    def finish(self, count: int, found: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the store of ``count`` shards.

        Args:
            count: number of shards.
            found: what only the evaluation showed, such as its metrics.

        Returns:
            The content of ``store.json``.
        """
        total = blake2b(json.dumps(self.what, sort_keys=True).encode(), digest_size=16)
        shards: list[dict[str, Any]] = []
        widths: dict[str, list[int]] = {}
        size = 0
        for number in range(count):
            file = self.file(number)
            content = file.read_bytes()
            total.update(blake2b(content).digest())
            size += len(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            widths |= {name: found["shape"][1:] for name, found in header.items() if name != "__metadata__"}
            shards.append({"file": file.name, "images": header["index"]["shape"][0]})
        columns = {name.split(".")[0] for name in widths}
        patches = next((shape[0] for name, shape in widths.items() if name.endswith(".assignment")), None)
        meta = {
            **self.what, "complete": True, "images": sum(s["images"] for s in shards), "bytes": size, "digest": total.hexdigest(),
            "stages": sorted(int(c[5:]) for c in columns if c.startswith("stage")), "patches": patches, **found, "shards": shards,
        }  # fmt: skip
        try:
            write_text(self.path / "store.json", json.dumps(meta, indent=1))
        except OSError as error:
            raise WriteError(f"cannot write {self.path / 'store.json'}: {error.strerror or error}") from error
        return meta

    def has(self, number: int) -> bool:
        """Whether a shard is finished."""
        return self.file(number).is_file()

    def results(self, number: int, names: Sequence[str]) -> Columns:
        """Columns of a finished shard."""
        return read_columns(self.file(number), names)


def stage_columns(stage: Stage, soft: bool = False) -> Columns:
    """What a stage leaves in the store, in the smallest types: indices in one byte where 255 values are enough.

    Args:
        stage: of one batch.
        soft: keep the matrix of a soft map, too.
    """
    name = f"stage{stage.block}"
    columns = {
        f"{name}.assignment": narrow(stage.map.assignment(), stage.map.m),
        f"{name}.source": narrow(stage.source, stage.map.n),
        f"{name}.tokens": stage.tokens.to(torch.int16 if stage.map.m < 2**15 else torch.int32).cpu().numpy(),
    }
    if soft and stage.map.is_soft:
        columns[f"{name}.soft"] = stage.map.dense().half().cpu().numpy()
    return columns


def narrow(index: Tensor, count: int) -> Array:
    """Indices below ``count`` and -1 in the smallest type; in one byte, 255 stands for -1."""
    if count <= NOTHING:
        return index.to(torch.uint8).cpu().numpy()  # -1 wraps around to 255
    return index.to(torch.int16 if count < 2**15 else torch.int32).cpu().numpy()


def join_columns(parts: Sequence[Columns]) -> Columns:
    """The rows of several batches; what ragged methods leave is padded to the widest."""
    joined: Columns = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if len({array.shape[1:] for array in arrays}) > 1 or len({array.dtype for array in arrays}) > 1:
            arrays = _even(arrays)
        joined[name] = np.concatenate(arrays)
    return joined


def _even(arrays: list[Array]) -> list[Array]:
    """Arrays of indices of one width and type."""
    if len({array.dtype for array in arrays}) > 1:
        wide = np.result_type(np.int16, *{array.dtype for array in arrays})
        arrays = [
            np.where(a == NOTHING, -1, a.astype(wide)).astype(wide) if a.dtype == np.uint8 else a.astype(wide) for a in arrays
        ]
    width = np.max([array.shape[1:] for array in arrays], axis=0)
    nothing = NOTHING if arrays[0].dtype == np.uint8 else 0 if arrays[0].dtype.kind == "f" else -1
    pads = [[(0, 0), *((0, int(w - n)) for w, n in zip(width, array.shape[1:], strict=True))] for array in arrays]
    return [np.pad(array, pad, constant_values=nothing) for array, pad in zip(arrays, pads, strict=True)]


def _digest_of(images: Sequence[tuple[str, str]]) -> str:
    return blake2b("\n".join(f"{path}\t{target}" for path, target in images).encode(), digest_size=16).hexdigest()


def _csv(images: Sequence[tuple[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "target"])
    writer.writerows(images)
    return out.getvalue()


def _remove(path: Path) -> None:
    """The index first, so that nothing half-removed looks like a store."""
    (path / "store.json").unlink()
    (path / "images.csv").unlink(missing_ok=True)
    shutil.rmtree(path / "shards", ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
