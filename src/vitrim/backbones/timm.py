"""timm: VisionTransformer (DeiT, DeiT III, CLIP, SigLIP, DINOv2 ...), Eva (EVA-02, DINOv3) and BEiT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.backbones._pooling import AttentionPoolPatch, HeadPatch, IntermediatesPatch, family_of, weighted_mean
from vitrim.core.backbone import Arguments, Backbone, Halves, Keywords, Layout
from vitrim.core.patch import Patch
from vitrim.core.reduction import Reduction
from vitrim.core.registry import BACKBONES

Beside = Callable[[Tensor], Tensor] | None


class PreNorm(Halves):
    """``Block``: x + ls1(attn(norm1(x))), then x + ls2(mlp(norm2(x)))."""

    takes_beside = True

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, beside: Beside = None, **kwargs: Any) -> Tensor:
        n = block.norm1(x)
        y = x + block.drop_path1(block.ls1(block.attn(n, *args, **kwargs)))
        return y if beside is None else y + beside(n)

    @staticmethod
    def mlp(block: Any, x: Tensor, beside: Beside = None) -> Tensor:
        n = block.norm2(x)
        y = x + block.drop_path2(block.ls2(block.mlp(n)))
        return y if beside is None else y + beside(n)


class PostNorm(Halves):
    """``ResPostBlock`` and ``EvaBlockPostNorm``: the norm comes after attention and MLP."""

    takes_beside = True

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, beside: Beside = None, **kwargs: Any) -> Tensor:
        y = x + block.drop_path1(block.norm1(block.attn(x, *args, **kwargs)))
        return y if beside is None else y + beside(x)

    @staticmethod
    def mlp(block: Any, x: Tensor, beside: Beside = None) -> Tensor:
        y = x + block.drop_path2(block.norm2(block.mlp(x)))
        return y if beside is None else y + beside(x)


class Gamma(Halves):
    """``EvaBlock`` and the block of BEiT: pre-norm with an optional factor per channel."""

    takes_beside = True

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, beside: Beside = None, **kwargs: Any) -> Tensor:
        n = block.norm1(x)
        y = block.attn(n, *args, **kwargs)
        y = x + block.drop_path1(y if block.gamma_1 is None else block.gamma_1 * y)
        return y if beside is None else y + beside(n)

    @staticmethod
    def mlp(block: Any, x: Tensor, beside: Beside = None) -> Tensor:
        n = block.norm2(x)
        y = block.mlp(n)
        y = x + block.drop_path2(y if block.gamma_2 is None else block.gamma_2 * y)
        return y if beside is None else y + beside(n)


class ParallelThings(Halves):
    """``ParallelThingsBlock``: several attentions side by side, then several MLPs. Methods read the first attention."""

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + torch.stack([attn(x) for attn in block.attns]).sum(dim=0)

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        return x + torch.stack([ffn(x) for ffn in block.ffns]).sum(dim=0)


HALVES: dict[str, type[Halves]] = {
    "timm.models.vision_transformer.Block": PreNorm,
    "timm.models.vision_transformer.ResPostBlock": PostNorm,
    "timm.models.vision_transformer.ParallelThingsBlock": ParallelThings,
    "timm.models.eva.EvaBlock": Gamma,
    "timm.models.eva.EvaBlockPostNorm": PostNorm,
    "timm.models.beit.Block": Gamma,
}


@BACKBONES.register("timm")
class Timm(Backbone):
    """Models of timm that keep their blocks in ``blocks`` and their tokens in one sequence."""

    def matches(self, model: nn.Module) -> bool:
        return bool(family_of(model, "timm") & {"VisionTransformer", "Eva", "Beit"})

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.blocks)  # pyright: ignore

    def layout(self, model: Any) -> Layout:
        grid = getattr(model.patch_embed, "grid_size", None)
        has_cls = getattr(model, "cls_token", None) is not None
        return Layout(model.num_prefix_tokens, 0 if has_cls else None, tuple(grid) if grid else None, model.embed_dim)

    def halves(self, block: nn.Module) -> type[Halves] | None:
        # The class itself, not a parent: a subclass may have changed the forward.
        return HALVES.get(f"{type(block).__module__}.{type(block).__qualname__}")

    def positional(self, block: nn.Module) -> bool:
        # Eva blocks get rotary positions; BEiT blocks add a relative position bias inside.
        return bool(family_of(block, "timm") & {"EvaBlock", "EvaBlockPostNorm"}) or type(block).__module__ == "timm.models.beit"

    def move_positions(
        self, args: Arguments, kwargs: Keywords, index: Tensor, neutral: bool = False
    ) -> tuple[Arguments, Keywords]:
        rope = kwargs.get("rope")
        if rope is None:
            return args, kwargs
        if neutral:
            # Sine 0 and cosine 1 turn nothing; the row comes last, where -1 finds it.
            row = torch.cat([torch.zeros_like(rope[..., :1, ::2]), torch.ones_like(rope[..., :1, ::2])], dim=-1)
            rope = torch.cat([rope, row], dim=-2)
            index = torch.where(index < 0, rope.shape[-2] - 1, index)
        return args, {**kwargs, "rope": _gather_rope(rope, index)}

    def class_token(self, model: Any) -> Tensor | None:
        return getattr(model, "cls_token", None)

    def embeds_prefix(self, model: Any) -> bool:
        return getattr(model, "pos_embed", None) is not None and not getattr(model, "no_embed_class", False)

    def embed(self, model: Any, tokens: Tensor) -> Tensor:
        return model.norm_pre(model.pos_drop(tokens)) if hasattr(model, "norm_pre") else model.pos_drop(tokens)

    def final_norm(self, model: Any) -> nn.Module | None:
        norm, other = getattr(model, "norm", None), getattr(model, "fc_norm", None)
        return other if isinstance(norm, nn.Identity) and other is not None else norm

    def classes(self, model: Any) -> int:
        return model.num_classes if isinstance(getattr(model, "head", None), nn.Linear) else 0

    def classifier(self, model: nn.Module, reduction: Reduction) -> Patch:
        return ClassifierPatch(model, reduction)

    def idle_with_head(self, model: Any) -> list[nn.Parameter]:
        parts = [getattr(model, name, None) for name in ("norm", "fc_norm", "attn_pool", "head")]
        return [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]

    def heads(self, model: Any, reduction: Reduction) -> list[Patch]:
        patches: list[Patch] = [IntermediatesPatch(model, reduction)] if hasattr(model, "forward_intermediates") else []
        if getattr(model, "attn_pool", None) is not None:
            patches.append(AttentionPoolPatch(model.attn_pool, reduction))
        elif hasattr(model, "pool"):
            patches.append(PoolPatch(model, reduction))
        else:
            patches.append(BeitHeadPatch(model, reduction))
        return patches


def _gather_rope(rope: Tensor, index: Tensor) -> Tensor:
    """Rotary embedding of the patches ``index (B, n)``, ``(B, 1 or heads, n, D)``."""
    if rope.dim() == 2:
        return rope[index].unsqueeze(1)
    if rope.dim() == 3:
        return rope[:, index].transpose(0, 1)
    return rope.gather(2, index[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[-1]))


class ClassifierPatch(HeadPatch):
    """``forward_head`` with a head that reads the blocks."""

    name = "forward_head"

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, classes)``, or features ``(B, F)``; ``x`` is not read."""
        return self.reduction.classify(pre_logits)


class PoolPatch(HeadPatch):
    """``model.pool``: averages weight every token by its size; maxima skip padding."""

    name = "pool"

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """``(B, n, C) -> (B, C)``."""
        model: Any = self.module
        kind = model.global_pool if pool_type is None else pool_type
        mass = self.mass()
        if mass is None or kind not in ("avg", "avgmax", "max"):
            return self.original(x, pool_type=pool_type)
        if getattr(model, "pool_include_prefix", False):
            mass = torch.cat([mass.new_ones(mass.shape[0], self.prefix), mass], dim=1)
        else:
            x = x[:, self.prefix :]
        if kind == "avg":
            return weighted_mean(x, mass)
        peak = x.masked_fill((mass == 0).unsqueeze(-1), -torch.inf).amax(dim=1)
        return peak if kind == "max" else 0.5 * (peak + weighted_mean(x, mass))


class BeitHeadPatch(HeadPatch):
    """BEiT writes its mean into ``forward_head``."""

    name = "forward_head"

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(B, n, C) -> (B, classes)``, as the model's own."""
        model: Any = self.module
        mass = self.mass()
        if mass is None or model.global_pool != "avg":
            return self.original(x, pre_logits=pre_logits)
        x = model.head_drop(model.fc_norm(weighted_mean(x[:, self.prefix :], mass)))
        return x if pre_logits else model.head(x)
