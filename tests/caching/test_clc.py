"""The cross-layer cache against the published procedure written as a plain loop, and its parts one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitrim
from vitrim.caching.clc import CrossLayerCache
from vitrim.core.cache import Place
from vitrim.core.registry import CACHES, spec
from vitrim.core.schedule import START
from vitrim.core.state import State

DIM, DEPTH, PATCHES = 16, 6, 16


def model_of(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": DEPTH, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**{**sizes, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def published(model: Any, cache: CrossLayerCache, at: list[int], x: Tensor) -> Tensor:
    """Class token after the last norm, by the steps of the specification, without an engine."""
    k = cache.num_clr
    tokens = model.patch_embed(x)
    prefix = [model.cls_token] + ([] if model.reg_token is None else [model.reg_token])
    prefix = [p.expand(len(x), -1, -1) for p in prefix]
    clr = [] if cache.clr is None else [cache.clr.expand(len(x), -1, -1)]
    if model.no_embed_class:
        tokens = torch.cat([*prefix, tokens + model.pos_embed, *clr], dim=1)
    else:
        positions = torch.cat([model.pos_embed] + ([] if cache.pos is None else [cache.pos]), dim=1)
        tokens = torch.cat([*prefix, tokens, *clr], dim=1) + positions
    tokens = model.norm_pre(tokens)
    points = [*at, DEPTH - 2] if cache.recover == "all" else list(at)
    end = tokens.shape[1] if cache.pool_clr else tokens.shape[1] - k
    groups: list[Tensor] = []
    for i, block in enumerate(model.blocks):
        tokens = block(tokens)
        if cache.recover == "never":
            continue
        if i in points and groups:  # the published code crashes where nothing has been cached yet
            end = tokens.shape[1]
            tokens = torch.cat([tokens, *groups], dim=1)
            groups = []
        if i < points[-1]:
            if cache.gap:
                groups.append(tokens[:, int(not cache.pool_cls) : end].mean(dim=1, keepdim=True))
            if k:
                groups.append(tokens[:, tokens.shape[1] - k :])
    return model.norm(tokens)[:, 0]


SPECS = [
    "clc", "clc(num_clr=0)", "clc(num_clr=3)", "clc(gap=false)", "clc(pool_cls=true)", "clc(pool_clr=true, num_clr=2)",
    "clc(recover=reductions)", "clc(recover=never)", "clc(protect=true)", "clc(compat=official)",
]  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "vit": {},
    "deit3": {"no_embed_class": True, "init_values": 0.1},
    "clip": {"pre_norm": True},
    "dinov2": {"reg_tokens": 4, "no_embed_class": True},
    "registers": {"reg_tokens": 2},
}


PLACES = [[1, 3], [0, 2], [4], [2, 5]]


@pytest.mark.parametrize(
    ("name", "text", "at"),
    [("vit", text, at) for text in SPECS for at in PLACES]
    + [(name, text, [1, 3]) for name in MODELS for text in SPECS if name != "vit"],
)
def test_the_published_procedure(name: str, text: str, at: list[int]) -> None:
    model = model_of(**MODELS[name])
    reduction = vitrim.reduce(model, "none", f"keep(rate=0.5, at={at})", cache=text)
    cache: Any = reduction.cache
    with torch.no_grad():
        if cache.clr is not None:
            cache.clr.add_(torch.randn_like(cache.clr))
        x = torch.randn(2, 3, 32, 32)
        ours = model.forward_features(x)[:, 0]
        reduction.detach()
        torch.testing.assert_close(ours, published(model, cache, at, x), rtol=1e-5, atol=1e-5)


def test_carriers_start_as_the_class_token() -> None:
    model = model_of()
    cache: Any = vitrim.reduce(model, "tome", "keep(rate=0.5, at=[2])", cache="clc(num_clr=2)").cache
    assert torch.equal(cache.clr, model.cls_token.repeat(1, 2, 1))
    assert cache.pos.shape == (1, 2, DIM)
    assert 0 < cache.pos.abs().max() < 0.1
    without: Any = vitrim.reduce(model_of(no_embed_class=True), "tome", "keep(rate=0.5, at=[2])", cache="clc(num_clr=2)").cache
    assert without.pos is None


def placed(text: str, locations: list[int], depth: int = 12) -> CrossLayerCache:
    cache: Any = CACHES.build(text)
    cache.setup(Place(DIM, depth, locations, 0, torch.zeros(1, 1, DIM), True, 5))
    return cache


@pytest.mark.parametrize(
    ("text", "locations", "joins"),
    [
        ("clc", [3, 6, 9], {START: 1, 3: 6, 6: 6, 9: 6, 10: 2}),
        ("clc(num_clr=2)", [3, 6, 9], {START: 2, 3: 9, 6: 9, 9: 9, 10: 3}),
        ("clc(num_clr=0)", [3, 6, 9], {3: 3, 6: 3, 9: 3, 10: 1}),
        ("clc(gap=false)", [3, 6, 9], {START: 1, 3: 3, 6: 3, 9: 3, 10: 1}),
        ("clc(recover=reductions)", [3, 6, 9], {START: 1, 3: 6, 6: 6, 9: 6}),
        ("clc(recover=never)", [3, 6, 9], {START: 1}),
        ("clc", [3, 10], {START: 1, 3: 6, 10: 14}),  # the last but one is a reduction already
        ("clc", [0, 4], {START: 1, 4: 8, 10: 12}),  # nothing was cached before block 0
        ("clc", [3, 11], {START: 1, 3: 6, 10: 14}),  # block 10 ends the caching, as published
        ("clc", [], {START: 1, 10: 20}),
    ],
)
def test_what_joins_where(text: str, locations: list[int], joins: dict[int, int]) -> None:
    cache = placed(text, locations)
    assert cache.joins() == joins
    returned = [layer for point in range(12) for layer in cache.returning(point)]
    assert returned == sorted(set(returned)), "every group returns once"
    assert all(cache.collects(layer) for layer in returned)


def state(n: int, window: int | None = None, valid: Tensor | None = None) -> State:
    return replace(State(n, n - 1), window=window, valid=valid)


def test_the_mean() -> None:
    x = torch.arange(12.0).reshape(1, 6, 2)
    pooled = placed("clc", [3]).pooled
    torch.testing.assert_close(pooled(x, state(6, 4)), x[:, 1:4].mean(dim=1, keepdim=True))
    torch.testing.assert_close(pooled(x, state(6)), x[:, 1:].mean(dim=1, keepdim=True))
    torch.testing.assert_close(placed("clc(pool_cls=true)", [3]).pooled(x, state(6, 4)), x[:, :4].mean(dim=1, keepdim=True))
    assert torch.equal(pooled(x, state(6, 1)), x[:, :1]), "no token is left: the class token"


def test_padding_is_not_in_the_mean() -> None:
    x = torch.randn(2, 5, 3)
    valid = torch.tensor([[True, True, True, False, True], [True, False, False, False, True]])
    pooled = placed("clc", [3]).pooled(x, state(5, 4, valid))
    torch.testing.assert_close(pooled[0], x[0, 1:3].mean(dim=0, keepdim=True))
    torch.testing.assert_close(pooled[1], x[1, :1])
    official = placed("clc(compat=official)", [3]).pooled(x, state(5, 4, valid))
    torch.testing.assert_close(official, x[:, 1:4].mean(dim=1, keepdim=True))


def test_gradients_pass_through_the_cache() -> None:
    """With one token left and nothing but the mean to carry, all patches still get their gradient."""
    model: Any = model_of()
    vitrim.reduce(model, "topk", "counts(tokens=[1], at=[2])", cache="clc(num_clr=0)")
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    model.blocks[1].register_forward_hook(keep)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert seen[0].grad is not None
    assert (seen[0].grad.abs().sum(dim=-1) > 0).all()


@pytest.mark.parametrize("text", SPECS)
def test_specs_round_trip(text: str) -> None:
    cache = CACHES.build(text)
    again: Any = CACHES.build(spec(cache))
    assert again.settings() == cache.settings()


def test_padding_is_known_behind_tokens_that_joined() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=96, embed_dim=24, num_heads=2, depth=6, num_classes=3).eval()
    reduction = vitrim.reduce(model, "ats", "keep(rate=0.5, at=[2])", cache="clc")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)  # attention that is far from even, or every image keeps as many tokens
        model(torch.randn(4, 3, 96, 96) * torch.tensor([0.01, 1, 1, 1]).view(-1, 1, 1, 1))
    total, state = reduction.trace.upto(2), reduction.final
    assert total is not None
    assert state is not None
    assert not state.valid[:, : total.m].all()  # some image was padded
    assert torch.equal(total.valid, reduction.state_after(2).valid)
