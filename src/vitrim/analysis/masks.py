"""Saliency maps by name: ``rollout``, ``rollout_A_B``, ``attention_L``, ``maws_L``, ``gls``, ``gradcam_L``, ``none``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrim.analysis.gradcam import grad_cam
from vitrim.analysis.layer import Layer
from vitrim.analysis.reader import Reader
from vitrim.core.rollout import mutual, rollout, similarity
from vitrim.core.tokens import Attention

KNOWN = "none, rollout, rollout_B, rollout_A_B, attention, attention_L, maws_L, gls, gradcam, gradcam_L"


@dataclass(frozen=True)
class Mode:
    """A saliency map.

    Attributes:
        name: as it was written.
        kind: ``none``, ``rollout``, ``attention``, ``maws``, ``gls`` or ``gradcam``.
        start: first block.
        stop: the block after the last.
    """

    name: str
    kind: str
    start: int = 0
    stop: int = 0

    @staticmethod
    def read(text: str, depth: int) -> Mode:
        """Read a mode for a model of ``depth`` blocks.

        ``rollout`` is that of blocks 0 to 3, ``rollout_B`` of blocks 0 to B - 1, ``rollout_A_B`` of A to B - 1; ``attention``
        that of block 0; ``maws`` and ``gradcam`` those of the last block.

        Raises:
            ValueError: for an unknown mode, or blocks that the model does not have.
        """
        match = re.fullmatch(r"(none|rollout|attention|maws|gls|gradcam)((?:_\d+)*)", text.strip())
        if match is None:
            raise ValueError(f"unknown picture '{text}'; there are {KNOWN}")
        kind, numbers = match[1], [int(n) for n in match[2].split("_") if n]
        most = {"rollout": 2, "attention": 1, "maws": 1, "gradcam": 1}.get(kind, 0)
        if len(numbers) > most:
            raise ValueError(f"picture '{text}' has {len(numbers)} numbers, {kind} takes {most} at most; there are {KNOWN}")
        if kind == "rollout":
            start, stop = [0, min(4, depth), *numbers][-2:] if len(numbers) != 1 else (0, numbers[0])
        else:
            start = (numbers or [0 if kind == "attention" else depth - 1])[0]
            stop = start + 1
        if not 0 <= start < stop <= depth:
            raise ValueError(f"picture '{text}': the model has the blocks 0 to {depth - 1}, and a range A_B ends before B")
        return Mode(text.strip(), kind, start, stop)


def masks(model: nn.Module, images: Tensor, modes: Sequence[str]) -> dict[str, Tensor | None]:
    """Saliency of every patch of a few images, by mode.

    Works on reduced models: maps are led back to the patches; dropped patches are 0.

    Args:
        model: in evaluation mode.
        images: ``(B, C, H, W)``; queries and keys of all blocks are held for them, so that they should be few.
        modes: see :meth:`Mode.read`.

    Returns:
        ``(B, height, width)`` over the patch grid for each mode; None for ``none``.

    Raises:
        ValueError: for an unknown mode, or one that needs a class token in a model without one.
    """
    reader = Reader(model, attention=True)
    read = [Mode.read(text, reader.depth) for text in modes]
    wanted = {block for mode in read for block in range(mode.start, mode.stop) if mode.kind not in ("none", "gls", "gradcam")}
    layers: dict[int, Layer] = {}
    last: list[Layer] = []

    def visit(layer: Layer) -> None:
        last[:] = [layer]
        if layer.block in wanted:
            layers[layer.block] = layer

    with torch.no_grad():
        reader.run(images, visit)
    found: dict[str, Tensor | None] = {}
    for mode in read:
        if mode.kind == "none":
            found[mode.name] = None
            continue
        values = grad_cam(model, images, mode.start) if mode.kind == "gradcam" else _values(mode, layers, last[0], reader)
        found[mode.name] = values.float().reshape(len(images), *last[0].grid)
    return found


def _values(mode: Mode, layers: dict[int, Layer], last: Layer, reader: Reader) -> Tensor:
    """``(B, patches)``."""
    if mode.kind == "gls":
        return _similarity(last, reader)
    chosen = [layers[block] for block in range(mode.start, mode.stop)]
    first, cls, attention = chosen[0], chosen[0].cls, chosen[0].see()
    if mode.kind == "attention":
        return first.to_patches(class_attention(attention, cls, first.prefix))
    if cls is None:
        raise ValueError(f"picture '{mode.name}' asks for the class token, and this model has none; take attention_L or gls")
    if mode.kind == "maws":
        return first.to_patches(mutual(attention, cls))
    # What stands for no original (a cache's token) still carries what it was made of, once.
    masses = [None if layer.mass is None else layer.mass.clamp_min(1) for layer in chosen]
    return first.to_patches(rollout([layer.see() for layer in chosen], cls, [layer.step for layer in chosen], masses))


def class_attention(attention: Attention, cls: int | None, prefix: int = 0) -> Tensor:
    """``(B, n)``: attention of the class token, averaged over the heads; without one, the mean that a token receives.

    Args:
        attention: of a block.
        cls: position of the class token, or None.
        prefix: leading tokens that are no patches; not among the queries of the mean.
    """
    if cls is not None:
        return attention.from_token(cls).mean(dim=1)
    asked = attention.weights().mean(dim=1)[:, prefix:]
    if attention.valid is None:
        return asked.mean(dim=1)
    real = attention.valid[:, prefix:, None].to(asked.dtype)
    return (asked * real).sum(dim=1) / real.sum(dim=1).clamp_min(1)


def _similarity(last: Layer, reader: Reader) -> Tensor:
    """Cosine of every patch and the whole, which is the class token, or the mean of the patches where there is none."""
    tokens = last.tokens if reader.final is None else reader.final
    origin = last.origin
    lifted = tokens if origin is None else origin.lift(tokens)
    patches = lifted[:, last.prefix : last.prefix + last.grid[0] * last.grid[1]]
    return similarity(patches.mean(dim=1) if last.cls is None else tokens[:, last.cls], patches)
