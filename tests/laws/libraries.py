"""Tiny random models of torchvision, transformers, open_clip, and one of no library."""

from __future__ import annotations

from typing import Any

import torch
from families import DEPTH, DIM, HEADS, IMAGE, PATCH, _timm, family
from torch import Tensor, nn

# -- torchvision ---------------------------------------------------------------------------------------------------------


@family("torchvision", 1, exact=False)
def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(IMAGE, PATCH, DEPTH, HEADS, DIM, 2 * DIM, num_classes=7)


# -- transformers --------------------------------------------------------------------------------------------------------


def _config(**settings: Any) -> dict[str, Any]:
    sizes = {
        "image_size": IMAGE, "patch_size": PATCH, "hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "intermediate_size": 2 * DIM, "num_labels": 7, "attn_implementation": "sdpa",
    }  # fmt: skip
    return {**sizes, **settings}


@family("transformers", 1)
def hf_vit() -> nn.Module:
    import transformers as hf

    return hf.ViTForImageClassification(hf.ViTConfig(**_config()))


@family("transformers", 2)
def hf_deit() -> nn.Module:
    import transformers as hf

    return hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**_config()))


@family("transformers", 1)
def hf_dinov2() -> nn.Module:
    import transformers as hf

    return hf.Dinov2ForImageClassification(hf.Dinov2Config(**_config(mlp_ratio=2)))


@family("transformers", 5)
def hf_dinov2_registers() -> nn.Module:
    import transformers as hf

    return hf.Dinov2WithRegistersForImageClassification(hf.Dinov2WithRegistersConfig(**_config(mlp_ratio=2)))


@family("transformers", 5)
def hf_dinov3() -> nn.Module:
    import transformers as hf

    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**_config(num_register_tokens=4, pos_embed_rescale=None)))


@family("transformers", 1)
def hf_clip() -> nn.Module:
    import transformers as hf

    return hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**_config(projection_dim=16)))


@family("transformers", 0, None)
def hf_siglip() -> nn.Module:
    import transformers as hf

    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**_config()))


@family("transformers", 1)
def hf_beit() -> nn.Module:
    import transformers as hf

    return hf.BeitForImageClassification(hf.BeitConfig(**_config(use_relative_position_bias=True, drop_path_rate=0.0)))


@family("transformers", 0, None)
def hf_ijepa() -> nn.Module:
    import transformers as hf

    return hf.IJepaForImageClassification(hf.IJepaConfig(**_config()))


@family("transformers", 1)
def hf_clip_classifier() -> nn.Module:
    import transformers as hf

    return hf.CLIPForImageClassification(_both(hf.CLIPConfig, hf.CLIPVisionConfig))


@family("transformers", 0, None)
def hf_siglip_classifier() -> nn.Module:
    import transformers as hf

    return hf.SiglipForImageClassification(_both(hf.SiglipConfig, hf.SiglipVisionConfig))


def _both(pair: Any, vision: Any) -> Any:
    """Configuration of an image-text model; the text tower is the smallest possible."""
    text = {"hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 50}
    sizes = _config()
    labels = {"num_labels": sizes.pop("num_labels"), "attn_implementation": sizes.pop("attn_implementation")}
    return pair(vision_config=vision(**sizes).to_dict(), text_config={**text, "eos_token_id": 2, "pad_token_id": 1}, **labels)


# -- open_clip -----------------------------------------------------------------------------------------------------------


def _open_clip(**settings: Any) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(IMAGE, PATCH, DIM, DEPTH, HEADS, 2.0, **{"output_dim": 16, **settings})


@family("open_clip", 1, exact=False)
def open_clip_vit() -> nn.Module:
    return _open_clip()


@family("open_clip", 1, exact=False)
def open_clip_avg() -> nn.Module:
    return _open_clip(pool_type="avg", ls_init_value=0.1)


@family("open_clip", 1, exact=False)
def open_clip_attentional() -> nn.Module:
    return _open_clip(attentional_pool=True, attn_pooler_queries=5, attn_pooler_heads=2)


@family("open_clip", 1)
def open_clip_qk_norm() -> nn.Module:
    return _open_clip(qk_norm=True)


@family("open_clip", 1, exact=False)
def open_clip_parallel() -> nn.Module:
    return _open_clip(attentional_pool="parallel", attn_pooler_queries=5, attn_pooler_heads=2, output_dim=DIM)


@family("open_clip", 1)
def open_clip_timm() -> nn.Module:
    from open_clip.timm_model import TimmModel

    tower = TimmModel("vit_tiny_patch16_224", 16, image_size=IMAGE, pool="avg", proj="linear")
    tower.trunk = _timm(num_classes=0, global_pool="avg")
    tower.head.proj = nn.Linear(DIM, 16)
    return tower


# -- a model of no library -----------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(DIM), _Attention(), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x).relu()


class HomeMade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grid_size = (IMAGE // PATCH, IMAGE // PATCH)
        self.embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.layers = nn.ModuleList(_Layer() for _ in range(DEPTH))
        self.head = nn.Linear(DIM, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


@family("torch", 1, halves=False)
def home_made() -> nn.Module:
    return HomeMade()
