"""Grad-CAM for vision transformers: which patches raise the score of a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitrim.analysis.layer import Layer
from vitrim.analysis.reader import Reader


def grad_cam(model: nn.Module, images: Tensor, block: int = -1, target: Tensor | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv:1610.02391) at the ``norm1`` of a block.

    Channels are weighted by their gradient averaged over the patches, summed, and negative sums are cut off. The graph begins at
    that norm: nothing before it is differentiated, and no gradient reaches a parameter.

    Args:
        model: in evaluation mode, reduced or not.
        images: ``(B, C, H, W)``.
        block: which one; negative numbers count from the last.
        target: ``(B,)`` classes; the predicted ones when None.

    Returns:
        ``(B, patches)`` not negative, dropped patches 0.

    Raises:
        ValueError: when the model has no such block, its blocks no ``norm1``, or its output does not depend on the patches there.
    """
    reader = Reader(model, attention=True)
    if not -reader.depth <= block < reader.depth:
        raise ValueError(f"the model has the blocks 0 to {reader.depth - 1}; got {block}")
    norm: Any = getattr(reader.blocks[block], "norm1", None)
    if not isinstance(norm, nn.Module):
        raise ValueError(f"{type(reader.blocks[block]).__name__} has no norm1 for Grad-CAM; take gls or attention_L instead")
    kept: list[Tensor] = []
    layers: list[Layer] = []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001 - the signature of PyTorch
        kept[:] = [output.detach().requires_grad_()]
        return kept[0]

    def visit(layer: Layer) -> None:
        if layer.block == block % reader.depth:
            layers.append(layer)

    hook = norm.register_forward_hook(cut)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = reader.run(images.clone(), visit)
            chosen = logits.argmax(dim=1) if target is None else target.to(logits.device)
            score = logits.gather(1, chosen[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, kept[0])
    finally:
        hook.remove()
    layer, n = layers[0], layers[0].see().keys.shape[2]
    found, slope = kept[0].detach()[:, :n].float(), gradient[:, :n].float()
    weight = slope[:, layer.prefix :].mean(dim=1, keepdim=True)
    return layer.to_patches((found * weight).sum(dim=-1).clamp_min(0))
