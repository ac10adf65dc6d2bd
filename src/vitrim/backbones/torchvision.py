"""torchvision: VisionTransformer (``vit_b_16`` and its siblings)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrim.backbones._pooling import family_of
from vitrim.core.backbone import Backbone, Halves, Layout
from vitrim.core.registry import BACKBONES


class EncoderBlock(Halves):
    """``EncoderBlock``: pre-norm around ``nn.MultiheadAttention``."""

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = block.ln_1(x)
        y, _ = block.self_attention(y, y, y, need_weights=False)
        return block.dropout(y) + x

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        return x + block.mlp(block.ln_2(x))


@BACKBONES.register("torchvision")
class Torchvision(Backbone):
    """``torchvision.models.VisionTransformer``: class token, learned positions, no pooled head."""

    def matches(self, model: nn.Module) -> bool:
        return "VisionTransformer" in family_of(model, "torchvision")

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.encoder.layers)

    def layout(self, model: Any) -> Layout:
        side = model.image_size // model.patch_size
        return Layout(1, 0, (side, side), model.hidden_dim)

    def halves(self, block: nn.Module) -> type[Halves] | None:
        # The class itself, not a parent: a subclass may have changed the forward.
        name = f"{type(block).__module__}.{type(block).__qualname__}"
        return EncoderBlock if name == "torchvision.models.vision_transformer.EncoderBlock" else None
