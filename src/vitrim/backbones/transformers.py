"""transformers: ViT, DeiT, DINOv2 (with registers), DINOv3, CLIP, SigLIP, BEiT, I-JEPA and ViT-MSN."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.backbones._pooling import AttentionPoolPatch, HeadPatch, family_of, weighted_mean
from vitrim.core.backbone import Backbone, Halves, Layout
from vitrim.core.patch import Patch
from vitrim.core.reduction import Reduction
from vitrim.core.registry import BACKBONES


def _hidden(out: Any) -> Tensor:
    """Hidden states of an attention that may return its weights as well."""
    return out[0] if isinstance(out, tuple) else out


class Vit(Halves):
    """``ViTLayer`` and its copies."""

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = _hidden(block.attention(block.layernorm_before(x), *args, **kwargs))
        # Before transformers 5 the dropout sat inside the attention.
        return (block.dropout(y) if hasattr(block, "dropout") else y) + x

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        y = block.layernorm_after(x)
        if hasattr(block, "mlp"):
            return block.dropout(block.mlp(y)) + x
        return block.output(block.intermediate(y), x)


class Dino(Halves):
    """``Dinov2Layer``, ``Dinov2WithRegistersLayer`` and ``DINOv3ViTLayer``: layer scale and stochastic depth."""

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = _hidden(block.attention(block.norm1(x), *args, **kwargs))
        return block.drop_path(block.layer_scale1(y)) + x

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


class Clip(Halves):
    """``CLIPEncoderLayer`` and ``SiglipEncoderLayer``."""

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x + _hidden(block.self_attn(block.layer_norm1(x), *args, **kwargs))

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))


class Beit(Halves):
    """``BeitLayer``: a relative position bias of its own, and a factor per channel."""

    @staticmethod
    def attention(
        block: Any,
        x: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if block.relative_position_bias is not None and resolution is not None:
            # The table is made for all patches of the image; the tap takes the rows and columns of those that are left.
            window = (resolution[0] // block.patch_size, resolution[1] // block.patch_size)
            bias = block.relative_position_bias(window, False, dim_size=x.shape[1])
            attention_mask = bias if attention_mask is None else bias + attention_mask
        y = _hidden(block.attention(block.layernorm_before(x), attention_mask=attention_mask, **kwargs))
        return block.drop_path(block.lambda_1 * block.dropout(y)) + x

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.lambda_2 * block.dropout(block.mlp(block.layernorm_after(x)))) + x


HALVES: dict[str, type[Halves]] = {
    "ViTLayer": Vit,
    "DeiTLayer": Vit,
    "ViTMSNLayer": Vit,
    "IJepaLayer": Vit,
    "Dinov2Layer": Dino,
    "Dinov2WithRegistersLayer": Dino,
    "DINOv3ViTLayer": Dino,
    "CLIPEncoderLayer": Clip,
    "SiglipEncoderLayer": Clip,
    "BeitLayer": Beit,
}

TOWERS = {
    "ViTModel", "DeiTModel", "ViTMSNModel", "IJepaModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel",
    "CLIPVisionModel", "CLIPVisionTransformer", "SiglipVisionModel", "SiglipVisionTransformer", "BeitModel",
}  # fmt: skip

# Their forward writes `last_hidden_state.mean(dim=1)` over the patch tokens instead of calling a module.
INLINE_MEAN = {
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "CLIPForImageClassification",
    "SiglipForImageClassification",
    "IJepaForImageClassification",
}

# Their forward puts the patch tokens back on the grid, for which all of them must be there.
NEEDS_GRID = ("Backbone", "ForMaskedImageModeling", "ForSemanticSegmentation")


@BACKBONES.register("transformers")
class Transformers(Backbone):
    """Vision towers of transformers, alone, with a classification head, or inside a CLIP or SigLIP model."""

    def matches(self, model: nn.Module) -> bool:
        return bool(family_of(model, "transformers")) and _tower(model) is not None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        if type(model).__name__.endswith(NEEDS_GRID):
            raise TypeError(f"{type(model).__name__} puts its tokens back on the patch grid; reduce the plain model instead")
        tower = _tower(model)
        assert tower is not None
        found = _block_list(tower)
        if found is None:
            raise TypeError(f"no layers that vitrim knows were found in {type(tower).__name__}; it knows {', '.join(HALVES)}")
        return list(found)

    def layout(self, model: nn.Module) -> Layout:
        tower: Any = _tower(model)
        embeddings, config = tower.embeddings, tower.config
        has_cls = any(getattr(embeddings, name, None) is not None for name in ("cls_token", "class_embedding"))
        prefix = int(has_cls) + int(getattr(embeddings, "distillation_token", None) is not None)
        registers = getattr(embeddings, "register_tokens", None)
        prefix += 0 if registers is None else registers.shape[1]
        image, patch = _pair(config.image_size), _pair(config.patch_size)
        return Layout(prefix, 0 if has_cls else None, (image[0] // patch[0], image[1] // patch[1]), config.hidden_size)

    def halves(self, block: nn.Module) -> type[Halves] | None:
        # The class itself, not a parent: a subclass may have changed the forward.
        known = type(block).__module__.startswith("transformers.models.")
        return HALVES.get(type(block).__name__) if known else None

    def positional(self, block: nn.Module) -> bool:
        # DINOv3 layers get rotary positions; BEiT layers add a relative position bias.
        return type(block).__name__ in ("DINOv3ViTLayer", "BeitLayer")

    def move_positions(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, neutral: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        moved = dict(kwargs)
        if kwargs.get("position_embeddings") is not None:
            parts = kwargs["position_embeddings"]
            if neutral:
                # Cosine 1 and sine 0 turn nothing; the row comes last, where negative indices are sent.
                cos, sin = parts
                parts = torch.cat([cos, torch.ones_like(cos[:1])]), torch.cat([sin, torch.zeros_like(sin[:1])])
                index = torch.where(index < 0, len(cos), index)
            moved["position_embeddings"] = tuple(part[index].unsqueeze(1) for part in parts)
        if kwargs.get("interpolate_pos_encoding"):
            # BEiT would stretch its table to the present number of tokens; the table already fits the image.
            moved["interpolate_pos_encoding"] = False
        return args, moved

    def heads(self, model: nn.Module, reduction: Reduction) -> list[Patch]:
        tower: Any = _tower(model)
        patches: list[Patch] = [CheckpointPatch(b) for b in self.blocks(model) if hasattr(type(b).forward, "__wrapped__")]
        head = getattr(tower, "head", None)
        if head is not None and family_of(head, "transformers") & {"SiglipMultiheadAttentionPoolingHead"}:
            patches.append(AttentionPoolPatch(head, reduction))
        pooler = getattr(tower, "pooler", None)
        if pooler is not None and type(pooler).__name__ == "BeitPooler" and pooler.layernorm is not None:
            patches.append(BeitPoolerPatch(pooler, reduction))
        if family_of(model, "transformers") & INLINE_MEAN:
            patches.append(SharesPatch(tower, reduction))
        return patches


def _tower(model: nn.Module) -> nn.Module | None:
    """The vision tower, or the model itself where it only lacks the name of one (``Dinov2Backbone``)."""
    for module in model.modules():
        if family_of(module, "transformers") & TOWERS:
            return module
    return model if type(model).__name__.endswith(NEEDS_GRID) and _block_list(model) is not None else None


def _block_list(tower: nn.Module) -> nn.ModuleList | None:
    for module in tower.modules():
        if isinstance(module, nn.ModuleList) and len(module) and family_of(module[0], "transformers") & set(HALVES):
            return module
    return None


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else (int(value), int(value))


class SharesPatch(HeadPatch):
    """Tokens of the tower scaled so that their plain mean is the size-weighted one.

    For the classifiers that average ``last_hidden_state`` in their own forward; prefix tokens stay as they are. While such
    a classifier is reduced, its tower returns the scaled tokens to every caller.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the tower; arguments as its own."""
        out = self.original(*args, **kwargs)
        mass = self.mass()
        if mass is None:
            return out
        share = mass * (mass.shape[1] / mass.sum(dim=1, keepdim=True))
        factor = torch.cat([share.new_ones(share.shape[0], self.prefix), share], dim=1).unsqueeze(-1)
        if isinstance(out, tuple):
            return (out[0] * factor.to(out[0].dtype), *out[1:])
        out.last_hidden_state = out.last_hidden_state * factor.to(out.last_hidden_state.dtype)
        return out


class BeitPoolerPatch(HeadPatch):
    """The mean of ``BeitPooler``."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(B, n, C) -> (B, C)``."""
        mass = self.mass()
        if mass is None:
            return self.original(hidden_states)
        pooler: Any = self.module
        return pooler.layernorm(weighted_mean(hidden_states[:, self.prefix :], mass))


class PlainForward:
    """The forward of a layer without the checkpointing that transformers 5 wraps around it on the class."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; arguments as its own."""
        wrapped: Any = type(self.module).forward
        return wrapped.__wrapped__(self.module, *args, **kwargs)


class CheckpointPatch(Patch):
    """Checkpointing around the reduced layer, not inside it.

    The wrapper on the class would recompute the layer without the log-sizes and masks that the engine adds. This patch
    lies over the engine's and does the same as the wrapper; the engine's calls the plain forward.
    """

    def install(self) -> None:
        super().install()
        engine = self.previous.__self__
        self.below = engine.previous
        engine.previous = PlainForward(self.module).forward

    def remove(self) -> None:
        self.previous.__self__.previous = self.below
        super().remove()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; arguments as its own."""
        layer: Any = self.module
        if layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(self.previous, **kwargs), x, *args)
        return self.previous(x, *args, **kwargs)
