"""Tiny random models, one for each family of backbones: 4 blocks, 6 x 6 patches, weights large enough to avoid ties."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

DEPTH, DIM, HEADS, IMAGE, PATCH = 4, 32, 4, 48, 8
PATCHES = (IMAGE // PATCH) ** 2
SIZES = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 7}


@dataclass(frozen=True)
class Family:
    """How to build a model of the family, and what is known about it."""

    name: str
    library: str
    build: Callable[[], nn.Module]
    prefix: int
    cls: int | None
    halves: bool = True
    exact: bool = True  # False: without gradients, nn.MultiheadAttention takes another kernel when no tap is in place


FAMILIES: dict[str, Family] = {}


def family(library: str, prefix: int, cls: int | None = 0, **facts: Any) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        if importlib.util.find_spec(library):
            FAMILIES[build.__name__] = Family(build.__name__, library, build, prefix, cls, **facts)
        return build

    return add


@cache
def _original(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, name)))
        model = FAMILIES[name].build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    fan_in = parameter[0].numel() if parameter.shape[0] > 1 else 1
                    parameter.normal_(std=1.5 * fan_in**-0.5)  # sharp attention: methods must have something to choose
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def make(name: str) -> nn.Module:
    """A fresh copy of the family's model, in evaluation mode; the same weights each time."""
    return copy.deepcopy(_original(name))


@cache
def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


def tower(model: nn.Module) -> Any:
    """The part of the model that takes images."""
    return getattr(model, "visual", model)


def read(out: Any) -> Tensor:
    """The tensor that a user of the model looks at."""
    for name in ("logits", "image_embeds", "pooler_output"):
        if getattr(out, name, None) is not None:
            return getattr(out, name)
    return out[0] if isinstance(out, tuple) else out


def run(model: nn.Module, x: Tensor | None = None) -> Tensor:
    return read(tower(model)(images() if x is None else x))


# -- timm ----------------------------------------------------------------------------------------------------------------


def _timm(**settings: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**SIZES, **settings})


@family("timm", 1)
def timm_vit() -> nn.Module:
    return _timm()


@family("timm", 2)
def timm_deit_distilled() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(**SIZES)


@family("timm", 1)
def timm_deit3() -> nn.Module:
    return _timm(no_embed_class=True, init_values=1e-6)


@family("timm", 1)
def timm_clip() -> nn.Module:
    return _timm(pre_norm=True)


@family("timm", 0, None)
def timm_siglip() -> nn.Module:
    return _timm(class_token=False, global_pool="map")


@family("timm", 1)
def timm_avg() -> nn.Module:
    return _timm(global_pool="avg")


@family("timm", 5)
def timm_dinov2() -> nn.Module:
    return _timm(init_values=1e-5, reg_tokens=4, no_embed_class=True)


@family("timm", 1)
def timm_qk_norm() -> nn.Module:
    return _timm(qk_norm=True)


@family("timm", 1)
def timm_parallel_things() -> nn.Module:
    from timm.models.vision_transformer import ParallelThingsBlock

    return _timm(block_fn=ParallelThingsBlock)


@family("timm", 1, halves=False)
def timm_parallel_scaling() -> nn.Module:
    from timm.models.vision_transformer import ParallelScalingBlock

    return _timm(block_fn=ParallelScalingBlock)


@family("timm", 1, halves=False)
def timm_diff_parallel() -> nn.Module:
    from timm.models.vision_transformer import DiffParallelScalingBlock

    return _timm(block_fn=DiffParallelScalingBlock)


@family("timm", 1)
def timm_avgmax() -> nn.Module:
    return _timm(global_pool="avgmax")


@family("timm", 1)
def timm_res_post() -> nn.Module:
    from timm.models.vision_transformer import ResPostBlock

    return _timm(block_fn=ResPostBlock, init_values=1.0)


@family("timm", 1)
def timm_eva02() -> nn.Module:
    from timm.models.eva import Eva

    return Eva(**SIZES, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(6, 6))


@family("timm", 5)
def timm_dinov3() -> nn.Module:
    from timm.models.eva import Eva

    return Eva(
        **SIZES, qkv_bias=False, init_values=1e-5, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
        use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False, dynamic_img_size=True,
    )  # fmt: skip


@family("timm", 1)
def timm_beit() -> nn.Module:
    from timm.models.beit import Beit

    return Beit(**SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)


@family("timm", 1)
def timm_beit_shared() -> nn.Module:
    from timm.models.beit import Beit

    return Beit(**SIZES, use_shared_rel_pos_bias=True, global_pool="token")


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
