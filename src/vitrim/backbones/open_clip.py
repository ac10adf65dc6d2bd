"""open_clip: the vision towers of CLIP and CoCa models, its own VisionTransformer and timm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vitrim.backbones._pooling import AttentionPoolPatch, HeadPatch, IntermediatesPatch, family_of, taken, weighted_mean
from vitrim.core.backbone import Backbone, Halves, Layout
from vitrim.core.patch import Patch
from vitrim.core.reduction import Reduction
from vitrim.core.registry import BACKBONES


class Residual(Halves):
    """``ResidualAttentionBlock``: pre-norm around ``nn.MultiheadAttention``."""

    @staticmethod
    def attention(
        block: Any, x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        return x + block.ls_1(block.attention(q_x=block.ln_1(x), k_x=k_x, v_x=v_x, attn_mask=attn_mask))

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        return x + block.ls_2(block.mlp(block.ln_2(x)))


class CustomResidual(Residual):
    """``CustomResidualAttentionBlock``: open_clip's own attention with optional norms."""

    @staticmethod
    def attention(block: Any, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x + block.ls_1(block.ln_attn(block.attn(block.ln_1(x), attn_mask=attn_mask)))


HALVES: dict[str, type[Halves]] = {
    "open_clip.transformer.ResidualAttentionBlock": Residual,
    "open_clip.transformer.CustomResidualAttentionBlock": CustomResidual,
}


@BACKBONES.register("open_clip")
class OpenClip(Backbone):
    """A CLIP or CoCa model of open_clip, or its vision tower alone; towers from timm are left to that backbone."""

    def __init__(self) -> None:
        self._timm: Backbone = BACKBONES.get("timm")()

    def matches(self, model: nn.Module) -> bool:
        names = family_of(model, "open_clip")
        return bool(names & {"VisionTransformer", "TimmModel"}) or (bool(names) and hasattr(model, "visual"))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        tower = _tower(model)
        if _is_trunk(tower) and self._timm.matches(tower.trunk):
            return self._timm.blocks(tower.trunk)
        if "VisionTransformer" not in family_of(tower, "open_clip"):
            inner = tower.trunk if _is_trunk(tower) else tower
            raise TypeError(f"the vision tower is a {type(inner).__name__}, which is no vision transformer that vitrim knows")
        if not getattr(tower.transformer, "batch_first", True):
            raise TypeError("the vision tower runs tokens first, (n, B, C); build it with batch_first=True")
        return list(tower.transformer.resblocks)

    def layout(self, model: nn.Module) -> Layout:
        tower = _tower(model)
        if _is_trunk(tower):
            return self._timm.layout(tower.trunk)
        return Layout(1, 0, tuple(tower.grid_size), tower.class_embedding.shape[0])

    def halves(self, block: nn.Module) -> type[Halves] | None:
        # The class itself, not a parent: a subclass may have changed the forward.
        return HALVES.get(f"{type(block).__module__}.{type(block).__qualname__}") or self._timm.halves(block)

    def positional(self, block: nn.Module) -> bool:
        return self._timm.positional(block)

    def move_positions(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, neutral: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._timm.move_positions(args, kwargs, index, neutral)

    def heads(self, model: nn.Module, reduction: Reduction) -> list[Patch]:
        tower = _tower(model)
        if _is_trunk(tower):
            return self._timm.heads(tower.trunk, reduction)
        patches: list[Patch] = [FeaturesPatch(tower, reduction)] if hasattr(tower, "forward_intermediates") else []
        if tower.attn_pool is None:
            patches.append(GlobalPoolPatch(tower, reduction))
            return patches
        patches.append(AttentionPoolPatch(tower.attn_pool, reduction))
        if getattr(tower, "attn_pool_type", "") == "parallel":
            patches.append(AttentionPoolPatch(tower.attn_pool_contrastive, reduction))
        return patches


def _tower(model: Any) -> Any:
    return model.visual if hasattr(model, "visual") else model


def _is_trunk(tower: nn.Module) -> bool:
    return "TimmModel" in family_of(tower, "open_clip")


class GlobalPoolPatch(HeadPatch):
    """``_global_pool``: the average weights every token by its size."""

    name = "_global_pool"

    def _global_pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, n, C) -> (B, C)`` and the tokens."""
        model: Any = self.module
        mass = self.mass()
        if mass is None or model.pool_type != "avg":
            return self.original(x)
        tokens = x[:, self.prefix :]
        return weighted_mean(tokens, mass), tokens


class FeaturesPatch(IntermediatesPatch):
    """``forward_intermediates`` of open_clip: features come back on the full patch grid."""

    def forward_intermediates(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, indices: int | Sequence[int] | None = None, *args: Any, output_fmt: str = "NCHW", **kwargs: Any
    ) -> dict[str, Any]:
        """As the tower's own method; positions of dropped tokens hold zeros."""
        out = self.original(x, indices, *args, output_fmt="NLC", **kwargs)
        tower: Any = self.module
        height, width = tower.patch_size
        grid = (x.shape[-2] // height, x.shape[-1] // width) if output_fmt == "NCHW" else None
        layers = taken(self.reduction.depth, indices)
        out["image_intermediates"] = [self._dense(y, i, grid) for y, i in zip(out["image_intermediates"], layers, strict=True)]
        return out
