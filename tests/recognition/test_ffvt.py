"""FFVT: mutual attention, and what a reduction of the backbone does to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vitrim
from tests.recognition.models import images, recogniser
from vitrim.core.tap import Tap


def by_hand(model: Any, x: Tensor) -> Tensor:
    """The same from the definition, with whole matrices, also on a reduced backbone whose blocks keep their length."""
    vit = model.vit
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    chosen = []
    for block in vit.blocks:
        calls: list[Any] = []
        with Tap(calls, x.shape[1]):
            x = block(x)
        logits = calls[0].queries @ calls[0].keys.transpose(-2, -1) * calls[0].scale
        score = logits.softmax(dim=-2).mean(dim=1)[:, :, 0] * logits.softmax(dim=-1).mean(dim=1)[:, 0]
        index = score.argsort(dim=1, descending=True)[:, : model.tokens]
        chosen.append(torch.stack([row[i] for row, i in zip(x, index, strict=True)]))
    return model.head(model.norm(model.aggregator(torch.cat([x[:, :1], *chosen], dim=1)))[:, 0])


def test_it_is_its_definition() -> None:
    model, x = recogniser("ffvt(tokens=5)"), images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_hand(model, x), atol=1e-5, rtol=1e-5)


def test_the_norm_of_the_model_is_replaced() -> None:
    model = recogniser("ffvt(tokens=5)")
    assert model.norm.weight.eq(1).all()
    assert model.norm.eps == 1e-6
    assert not any(n.startswith(("vit.norm", "vit.head")) for n in model.state_dict())


@pytest.mark.parametrize("site", ["before", "inside", "after"])
@pytest.mark.parametrize("method", ["tome(metric=tokens)", "topk", "ats", "sit", "kmedoids"])
def test_reduced_backbones(method: str, site: str) -> None:
    model, x = recogniser("ffvt(tokens=5)"), images()
    vitrim.reduce(model.vit, method, "keep(rate=0.7, at=[1, 2])", site=site)
    model.eval()
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(model(x[2:])[0], together[2], atol=1e-4, rtol=1e-4)
    model.train()
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.aggregator.parameters())


def test_a_reduction_that_keeps_everything_changes_nothing() -> None:
    model, x = recogniser("ffvt(tokens=5)"), images()
    with torch.no_grad():
        wanted = model(x)
        vitrim.reduce(model.vit, "topk", "keep(rate=1.0, at=[1, 2])")
        torch.testing.assert_close(model(x), wanted)


def test_merged_tokens_have_the_mean_weight() -> None:
    """Chosen are the tokens with the largest pooled weight."""
    model, x = recogniser("ffvt(tokens=3)"), images(1)
    vitrim.reduce(model.vit, "tome", "keep(rate=0.6, at=[1])")
    seen: list[tuple[Tensor, Tensor]] = []
    follow = model._follow

    def watched(layer: int, tokens: Tensor, weight: Tensor) -> Any:
        out = follow(layer, tokens, weight)
        seen.append((weight, out[0]))
        return out

    model._follow = watched
    with torch.no_grad():
        model(x)
    (before, after), group = seen[0], model.vit.reduction.trace[1].map.group
    for j in range(after.shape[1]):
        torch.testing.assert_close(after[0, j], before[0, group[0] == j].mean())


def test_too_few_tokens() -> None:
    model = recogniser("ffvt")
    vitrim.reduce(model.vit, "topk", "counts([5], at=[1])")
    with pytest.raises(RuntimeError, match="lower tokens="):
        model(images(1))


def test_tokens_that_join_are_refused() -> None:
    model = recogniser("ffvt(tokens=5)")
    vitrim.reduce(model.vit, "topk", "keep(rate=0.5, at=[1, 2])", cache="clc")
    with pytest.raises(RuntimeError, match="does not say which to take"):
        model(images(1))
