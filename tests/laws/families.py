"""Tiny random models of timm, and what all families share: 4 blocks, 6 x 6 patches, weights large enough to avoid ties."""

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


def family(
    library: str, prefix: int, cls: int | None = 0, **facts: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
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


import libraries  # noqa: E402, F401  (adds the families of the other libraries)
