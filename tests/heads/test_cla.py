"""The cross-layer aggregation head: its formula, its place in the model, its parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitrim
from vitrim.core.cache import Place
from vitrim.core.registry import HEADS

DIM, DEPTH = 16, 6


def placed(text: str, locations: list[int], dim: int = DIM, classes: int = 5) -> Any:
    torch.manual_seed(0)
    head: Any = HEADS.build(text)
    head.setup(Place(dim, DEPTH, locations, 0, None, True, classes))
    return head


def model_of(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": DEPTH, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **settings}).eval()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_formula(groups: int) -> None:
    head = placed(f"cla(groups={groups})", [1, 3]).train()
    taps = [torch.randn(7, DIM) for _ in range(3)]
    f = torch.stack(taps, dim=-1)
    normal = (f - f.mean(dim=(0, 2), keepdim=True)) / (f.var(dim=(0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
    # Output channel c reads input channel c // groups.
    weight = head.mix.weight[:, 0]
    mixed = torch.einsum("bcm,cm->bc", normal.repeat_interleave(groups, dim=1), weight) + head.mix.bias
    again = (mixed - mixed.mean(dim=0)) / (mixed.var(dim=0, correction=0) + 1e-5).sqrt()
    features = gelu(again)
    ours = head.features(taps)
    torch.testing.assert_close(ours, features, rtol=1e-4, atol=1e-5)
    logits = features @ head.classifier.weight[:, :, 0].T + head.classifier.bias
    torch.testing.assert_close(head.logits(ours), logits, rtol=1e-4, atol=1e-5)


def test_the_older_formula() -> None:
    head = placed("cla(groups=0)", [1, 3])
    taps = [torch.randn(7, DIM) for _ in range(3)]
    mixed = sum(tap * w for tap, w in zip(taps, head.mix.weight[0], strict=True)) + head.mix.bias
    z = mixed.clamp_min(0)
    z = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head.features(taps), z, rtol=1e-4, atol=1e-5)
    logits = z @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head.logits(head.features(taps)), logits, rtol=1e-4, atol=1e-5)


def test_parameters() -> None:
    head = placed("cla", [3, 4, 5], dim=768, classes=1938)  # with the last block, three taps
    assert head.taps == [3, 4, 5]
    assert sum(p.numel() for p in head.parameters()) == 2 * 768 + (1536 * 3 + 1536) + 2 * 1536 + 1536 * 1938 + 1938
    assert placed("cla", [1, 3]).taps == [1, 3, 5]
    assert placed("cla", []).taps == [5]


@pytest.mark.parametrize("cache", [None, "clc"])
@pytest.mark.parametrize("method", ["none", "topk", "dynamicvit"])
def test_it_reads_the_class_token_after_its_blocks(method: str, cache: str | None) -> None:
    model = model_of()
    head: Any = vitrim.reduce(model, method, "keep(rate=0.5, at=[1, 3])", cache=cache, head="cla").head
    taps: list[Tensor] = []
    for i in (1, 3, 5):
        model.blocks[i].register_forward_hook(lambda _m, _i, out: taps.append(out[:, 0]))
    with torch.no_grad():
        x = torch.randn(2, 3, 32, 32)
        logits = model(x)
        wanted = head.features(taps)
        assert torch.equal(logits, head.logits(wanted))
        features = model.forward_features(x)
        assert torch.equal(model.forward_head(features), logits)
        assert torch.equal(model.forward_head(features, pre_logits=True), wanted)
        assert wanted.shape == (2, 2 * DIM)
    for tap in model.reduction._memory.taps.values():
        assert tap is None or tap.untyped_storage().nbytes() == tap.numel() * 4, "a view holds all tokens of its block"


@pytest.mark.parametrize("settings", [{}, {"global_pool": "avg"}, {"global_pool": "avg", "fc_norm": False}])
def test_what_it_replaces_rests(settings: dict[str, Any]) -> None:
    """No gradient, no weight decay for the norm and classifier that are not run; afterwards all is as it was."""
    model = model_of(**settings)
    model.head.bias.requires_grad_(False)  # by the user
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    reduction = vitrim.reduce(model, "tome", "keep(rate=0.5, at=[1, 3])", head="cla")
    resting = {n for n in names if not dict(model.named_parameters())[n].requires_grad}
    assert {n.split(".")[0] for n in resting} <= {"norm", "fc_norm", "head"}
    assert "head.weight" in resting
    model.train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    reduction.detach()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == names


def test_single_blocks_are_not_enough() -> None:
    model = model_of()
    vitrim.reduce(model, "tome", "keep(rate=0.5, at=[1, 3])", head="cla")
    with pytest.raises(RuntimeError, match="the head reads the blocks, which have not been run"):
        model.forward_head(torch.randn(2, 17, DIM))
