"""Checkpoints: safetensors and a small JSON file in one folder, which appears complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

_PREFIX = "step-"
_HIDDEN = (".writing-", ".removing-")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        folder: where it was read from.
        tensors: tensors by name, by file: ``model``, ``optimizer``, ``ema``.
        state: everything else, plain JSON values.
    """

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class WriteError(OSError):
    """Something could not be written; what was there before is whole."""


def write_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint and remove the oldest ones.

    The files go to a hidden folder and to the disk; then the folder gets its name, which is one operation of the file
    system. A process killed at any instant leaves either the whole checkpoint or none.

    Args:
        root: folder of the checkpoints.
        step: steps of the optimiser done.
        tensors: tensors by name, by file.
        state: plain JSON values.
        keep: number of checkpoints that stay, the new one included.

    Raises:
        WriteError: when the disk is full or refuses.
    """
    target = root / f"{_PREFIX}{step:08d}"
    scratch = root / f"{_HIDDEN[0]}{step:08d}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        scratch.mkdir()
        sizes = {}
        for name, part in tensors.items():
            if not part:  # safetensors cannot read a file without tensors
                continue
            write_tensors(scratch / f"{name}.safetensors", part)
            sizes[f"{name}.safetensors"] = (scratch / f"{name}.safetensors").stat().st_size
        write_text(scratch / "state.json", json.dumps({**state, "step": step, "parts": list(tensors), "sizes": sizes}, indent=1))
        _flush_folder(scratch)
        if target.exists():
            _remove(target)
        scratch.rename(target)
        _flush_folder(root)
        for old in _folders(root)[:-keep]:
            _remove(old)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        kept = newest(root)
        rest = f"the last good checkpoint is {kept}" if kept else "there is no checkpoint yet"
        raise WriteError(f"cannot write {target}: {_reason(error)}; {rest}") from error
    return target


def newest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    return next((folder for folder in reversed(_folders(root)) if _complete(folder)), None)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: when it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        tensors: dict[str, dict[str, Tensor]] = {part: {} for part in state["parts"]}
        tensors |= {name.removesuffix(".safetensors"): load_file(folder / name) for name in state["sizes"]}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"checkpoint '{folder}' is damaged ({error}); remove the folder to go on from the one before") from error
    return Checkpoint(folder, tensors, state)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, complete or not at all, and to the disk."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _atomic(path, save(_unshared(plain), metadata=dict(metadata or {})))


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all, and to the disk."""
    _atomic(path, text.encode())


def sweep(root: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for left in root.iterdir() if root.is_dir() else ():
        if left.name.startswith(_HIDDEN):
            shutil.rmtree(left, ignore_errors=True)


def _atomic(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights are written once for each name: safetensors knows no sharing."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        if where in seen:
            tensors[name] = tensor.clone()
        seen.add(where)
    return tensors


def _flush_folder(folder: Path) -> None:
    """A new name is on the disk only when its folder is; Windows cannot open folders and needs no such thing."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob(f"{_PREFIX}*") if p.is_dir())


def _complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "state.json").read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _remove(folder: Path) -> None:
    """Out of sight in one operation first, so that no half-removed checkpoint bears a valid name."""
    hidden = folder.with_name(f"{_HIDDEN[1]}{folder.name}-{os.getpid()}")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
