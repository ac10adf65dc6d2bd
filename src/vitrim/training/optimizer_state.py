"""The state of an optimiser as tensors by name, for safetensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def pack_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(tensors, numbers)``, by parameter and entry, as in ``blocks.0.norm1.weight|exp_avg``."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            key = f"{names[parameter]}|{entry}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                numbers[key] = value
    return tensors, numbers


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put a packed state into a new optimiser over the same parameters.

    Raises:
        ValueError: when the state is of other parameters.
    """
    by_name = dict(model.named_parameters())
    place = {p: i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *numbers.items()]:
        name, entry = key.rsplit("|", 1)
        if name not in by_name or by_name[name] not in place:
            raise ValueError(f"the optimiser's state is of another model: there is no trained parameter '{name}'")
        state.setdefault(place[by_name[name]], {})[entry] = value
    packed = optimizer.state_dict()
    packed["state"] = state
    optimizer.load_state_dict(packed)
