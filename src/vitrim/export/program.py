"""Reduced models as programs of ``torch.export``, the step before every other format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram


def trace(model: nn.Module, example: Tensor, dynamic_batch: bool = False) -> ExportedProgram:
    """Trace a model, reduced or not, for the image size of ``example``.

    Token counts are numbers in the program, and ragged methods pad to the schedule's count.

    Args:
        model: takes one tensor; its own state is left alone.
        example: ``(B, C, H, W)`` images.
        dynamic_batch: let the batch size vary, from 1 on; otherwise it is that of ``example``.

    Raises:
        ValueError: for a model in training mode, whose dropout and random choices would become part of the program.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before exporting it")
    shapes = None
    if dynamic_batch:
        shapes = ({0: Dim("batch", min=1)},)
        if example.shape[0] == 1:
            # Sizes of one are taken for constants while tracing.
            example = torch.cat([example, example])
    # On a copy: tracing leaves tensors without data where a reduction keeps the maps of its last forward pass.
    with torch.no_grad():
        return torch.export.export(copy.deepcopy(model), (example,), dynamic_shapes=shapes, strict=False)


def save_program(program: ExportedProgram, path: str | Path) -> None:
    """Write a program to a ``.pt2`` file."""
    torch.export.save(program, path)


def load_program(path: str | Path) -> Callable[[Tensor], Tensor]:
    """A function from images to logits out of a ``.pt2`` file.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    import vitrim.kernels.clustering  # noqa: F401  # pyright: ignore[reportUnusedImport] - programs with atc call its operator

    return torch.export.load(path).module()
