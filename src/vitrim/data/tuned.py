"""The trained part of a tuned model as a small file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.core.attach import tune
from vitrim.core.tuning import Tuning

_FORMAT = "vitrim tuning 1"


def save_tuning(model: nn.Module, path: str | Path) -> Path:
    """Write what a tuned model has learned, and the spec of its tuning, to a safetensors file; the frozen weights stay out.

    Args:
        model: tuned by :func:`vitrim.tune`.
        path: of the file.

    Raises:
        ValueError: when the model is not tuned.
        OSError: when the file cannot be written.
    """
    from safetensors.torch import save_file

    tuning = _tuning_of(model)
    if tuning is None:
        raise ValueError("this model is not tuned; call vitrim.tune(model, ...) first, or save its state_dict()")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tuning.state().items()}
    path = Path(path)
    metadata = {"format": _FORMAT, "tune": tuning.spec, "train": json.dumps(list(tuning.parts))}
    scratch = path.with_name(path.name + ".part")
    save_file(tensors, str(scratch), metadata=metadata)
    scratch.replace(path)  # at once, so that an interruption leaves no half of a file under the name
    return path


def load_tuning(model: nn.Module, path: str | Path) -> Tuning:
    """Tune a fresh backbone as a file of :func:`save_tuning` says, and load what was learned.

    Args:
        model: the backbone, with the weights that the tuning was trained on; it may be tuned in the same way already.
        path: of the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file that holds no tuning, or one of another model or method; the model is left as it was.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"tuning: '{path}' does not exist; give a file that vitrim.save_tuning wrote")
    try:
        with safe_open(str(path), "pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"tuning: '{path}' is no readable safetensors file ({error})") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"tuning: '{path}' was not written by vitrim.save_tuning; load whole checkpoints with load_state_dict")
    tuning = _tuning_of(model)
    if tuning is not None:
        if tuning.spec != metadata["tune"]:
            raise ValueError(
                f"tuning: '{path}' is of '{metadata['tune']}', the model is tuned by '{tuning.spec}'; detach that first"
            )
        tuning.load_state(tensors)
        return tuning
    tuning = tune(model, metadata["tune"], train=json.loads(metadata["train"]))
    try:
        tuning.load_state(tensors)
    except ValueError as error:
        tuning.detach()
        raise ValueError(f"tuning: '{path}' does not fit this model: {error}") from error
    return tuning


def _tuning_of(model: nn.Module) -> Tuning | None:
    found = getattr(model, "tuning", None)
    return found if isinstance(found, Tuning) else None
