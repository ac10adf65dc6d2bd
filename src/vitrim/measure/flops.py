"""FLOPs: counted from one forward pass, and in closed form from the token counts of every block.

One multiply-add is two FLOPs to PyTorch, and one to the tables of the field: DeiT-S has "4.6 GFLOPs", which are
4.6e9 multiply-adds. Both are here, never under one name: :attr:`Flops.flops` counts two, :attr:`Flops.macs` one, and
:attr:`Flops.gflops` is what tables print, 1e9 multiply-adds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrim.core.backbone import find_backbone
from vitrim.core.reduction import Reduction

# Attention kernels that some releases of the counter of PyTorch leave out, silently.
_ATTENTION_KERNELS = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)


@dataclass(frozen=True)
class Flops:
    """Work of one forward pass, for the whole batch.

    Attributes:
        flops: floating-point operations; a multiply-add counts two.
        operators: the same by operator, such as ``{"aten.addmm": ...}``.
    """

    flops: int
    operators: Mapping[str, int] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.flops // 2

    @property
    def gflops(self) -> float:
        """Multiply-adds / 1e9, which is what the papers call GFLOPs (DeiT-S: 4.6)."""
        return self.flops / 2e9


def count_flops(model: Any, *inputs: Any, **named: Any) -> Flops:
    """Count matrix products, convolutions and attention of one forward pass, in whatever state of training the model is.

    Attention counts the same on every device and with every kernel, masks or not. A reduced model is counted with all
    that its method computes in PyTorch (similarities, distances, learned predictors); :func:`closed_form` gives the
    backbone alone, and the difference is the overhead of the method. Sorting, gathering and norms count nothing, as
    everywhere in the field, nor does work outside PyTorch (NumPy, SciPy, own GPU kernels): time it as well. On a GPU
    in half precision, proportional attention carries eight more channels per head, and they are counted.

    Args:
        model: a module or any callable.
        inputs: its arguments.
        named: its keyword arguments.
    """
    mapping = {getattr(torch.ops.aten, name): _attention_flops for name in _ATTENTION_KERNELS if hasattr(torch.ops.aten, name)}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.no_grad(), _plain_multihead(), counter:
        model(*inputs, **named)
    return Flops(counter.get_total_flops(), {str(op): n for op, n in counter.get_flop_counts().get("Global", {}).items()})


def parameters(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, those of a learned method included; only those with gradients when ``trainable``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@dataclass(frozen=True)
class LayerFlops:
    """One block in closed form, per image.

    Attributes:
        tokens: sequence length in attention and in the MLP, prefix tokens included.
        attention: multiply-adds of q, k, v, the attention itself and the output projection.
        mlp: multiply-adds of the MLP.
    """

    tokens: tuple[int, int]
    attention: int
    mlp: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the block."""
        return self.attention + self.mlp


@dataclass(frozen=True)
class BackboneFlops:
    """A plain vision transformer in closed form, per image, without what a reduction method computes itself.

    Attributes:
        embed: multiply-adds of the patch embedding.
        layers: the blocks.
        head: multiply-adds of the classifier.
    """

    embed: int
    layers: tuple[LayerFlops, ...]
    head: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole model."""
        return self.embed + sum(layer.macs for layer in self.layers) + self.head

    @property
    def flops(self) -> int:
        """Twice :attr:`macs`."""
        return 2 * self.macs

    @property
    def gflops(self) -> float:
        """Multiply-adds / 1e9, which is what the papers call GFLOPs."""
        return self.macs / 1e9


def closed_form(
    model: nn.Module, lengths: Sequence[tuple[int, int]] | None = None, *, patches: int | None = None
) -> BackboneFlops:
    """FLOPs of a plain ViT from its sequence lengths: ``4 n C^2 + 2 n^2 C`` for attention, ``2 r m C^2`` for an MLP of ratio r.

    The widths come from the linear layers of each block, so gated MLPs and separate q, k, v count right. Lengths are
    upper bounds for ragged methods (ATS), and so is the result.

    Args:
        model: a model of timm's layout (``patch_embed``, blocks with ``attn``, one linear head), reduced or not.
        lengths: ``(attention, MLP)`` lengths of every block, prefix included; those of the model as it is when None.
        patches: patch tokens of the input; those of the model's own image size when None.

    Raises:
        TypeError: for a model of another build; use :func:`count_flops`.
        ValueError: when the number of patches is not known, or the reduction happens around sub-modules.
    """
    backbone = find_backbone(model)
    layout, blocks = backbone.layout(model), backbone.blocks(model)
    if patches is None:
        if layout.grid is None:
            raise ValueError("this model takes any image size; say for how many patch tokens, as in patches=196")
        patches = layout.grid[0] * layout.grid[1]
    if lengths is None:
        reduction = getattr(model, "reduction", None)
        if isinstance(reduction, Reduction) and reduction.site == "around":
            raise ValueError("no closed form for a reduction around sub-modules; use count_flops")
        length = patches + layout.prefix
        lengths = reduction.lengths(patches) if isinstance(reduction, Reduction) else [(length, length)] * len(blocks)
    if len(lengths) != len(blocks):
        raise ValueError(f"{len(lengths)} lengths for {len(blocks)} blocks")
    layers = tuple(_block_flops(block, n) for block, n in zip(blocks, lengths, strict=True))
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        raise _no_closed_form(model, "patch_embed.proj")
    if getattr(model, "attn_pool", None) is not None:
        raise _no_closed_form(model, "a head without attention pooling")
    heads = [getattr(model, name, None) for name in ("head", "head_dist")]
    head = sum(h.weight.numel() for h in heads if isinstance(h, nn.Linear))
    return BackboneFlops(patches * projection.weight.numel(), layers, head)


def _block_flops(block: Any, tokens: tuple[int, int]) -> LayerFlops:
    attention = getattr(block, "attn", None)
    heads = getattr(attention, "num_heads", None)
    output = getattr(attention, "proj", None)
    if not isinstance(attention, nn.Module) or not isinstance(heads, int) or not isinstance(output, nn.Linear):
        raise _no_closed_form(block, "attn with num_heads and proj")
    n, m = tokens
    inner = _linear_weights(attention)
    return LayerFlops(tokens, n * inner + 2 * n * n * output.in_features, m * (_linear_weights(block) - inner))


def _linear_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _no_closed_form(module: nn.Module, wanted: str) -> TypeError:
    return TypeError(f"no closed form for {type(module).__name__}: it needs {wanted}; count_flops counts any model")


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Both products of attention for ``query (B, heads, n, d)``, ``key (.., m, d)`` and ``value (.., m, v)`` shapes."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@contextmanager
def _plain_multihead() -> Generator[None]:
    """Keep ``nn.MultiheadAttention`` off its fused inference path, one operator that the counter cannot see into."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
