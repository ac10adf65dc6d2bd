"""The heads that read patch tokens: their formulas, parameters, precision, and their place in a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitrim
from vitrim.core.cache import Place
from vitrim.core.registry import HEADS, SpecError

DIM, DEPTH = 12, 3
NAMES = ["pool", "flatten", "mpncov(dim=4)", "blp", "lrblp(dim=4)", "iblp"]


def placed(text: str, dim: int = DIM, classes: int = 5, grid: tuple[int, int] | None = (4, 4), **more: Any) -> Any:
    torch.manual_seed(0)
    head: Any = HEADS.build(text)
    head.setup(Place(dim, DEPTH, [], 0, None, True, classes, grid=grid, **more))
    return head


def model_of(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": DIM, "depth": DEPTH, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **settings}).eval()


def signed(z: Tensor) -> Tensor:
    z = z.flatten(1)
    return F.normalize(z.sign() * z.abs().sqrt(), dim=1)


def test_formulas() -> None:
    x = torch.randn(3, 16, DIM)
    moment = torch.stack([t.T @ t / 16 for t in x])
    torch.testing.assert_close(placed("pool").features([x]), x.mean(1))
    assert torch.equal(placed("flatten").features([x]), x.reshape(3, -1))
    torch.testing.assert_close(placed("blp").features([x]), signed(moment))
    low = placed("lrblp(dim=4)")
    y = x @ low.reduce.weight.T + low.reduce.bias
    torch.testing.assert_close(low.features([x]), signed(torch.stack([t.T @ t / 16 for t in y])))
    values, vectors = torch.linalg.eigh(moment.double())
    root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
    torch.testing.assert_close(placed("iblp(steps=25)").features([x]).double(), signed(root), atol=1e-4, rtol=1e-3)


def test_covariance_head() -> None:
    head = placed("mpncov(dim=4, steps=20)").eval()
    x = torch.randn(3, 16, DIM)
    y = (x @ head.project.weight[:, :, 0].T / math.sqrt(1 + 1e-5)).clamp_min(0).double()
    covariance = torch.stack([torch.cov(t.T, correction=0) for t in y])
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag_embed(values.clamp_min(0).sqrt()) @ vectors.mT
    upper = [root[:, i, j] for i in range(4) for j in range(i, 4)]
    torch.testing.assert_close(head.features([x]).double(), torch.stack(upper, dim=1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("pool", 153_800), ("flatten", 30_105_800), ("mpncov", 465_480), ("blp", 117_965_000), ("lrblp", 868_616),
        ("iblp", 117_965_000), ("ifacls", 155_349),
    ],
)  # fmt: skip
def test_published_parameters(text: str, count: int) -> None:
    """ViT-B/16 at 224 pixels, 200 classes."""
    with torch.device("meta"):
        head: Any = HEADS.build(text)
        head.setup(Place(768, 12, [], 0, None, True, 200, grid=(14, 14)))
    assert sum(p.numel() for p in head.parameters()) == count


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("text", NAMES)
def test_in_a_model(text: str, cls: bool) -> None:
    """The head sees the patch tokens after the last block and the norm, and is trained with it."""
    model = model_of(class_token=cls, global_pool="token" if cls else "avg", fc_norm=False)
    images = torch.randn(2, 3, 32, 32)
    patches = model.forward_features(images)[:, int(cls) :]
    reduction: Any = vitrim.reduce(model, "none", "keep(rate=0.5, at=[1])", head=text)
    head = reduction.head.eval()
    head._norm = (nn.Identity(),)  # what is given now is normed
    wanted = head.logits(head.features([patches]))
    head._norm = (model.norm,)
    torch.testing.assert_close(model(images), wanted)
    assert not [k for k in head.state_dict() if k.endswith("norm.weight") and len(head.state_dict()[k]) == DIM], (
        "the model's norm"
    )
    model(images).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("text", ["pool", "mpncov(dim=4)", "blp", "lrblp(dim=4)", "iblp"])
def test_merged_tokens_count_by_their_patches(text: str) -> None:
    """Two equal tokens, or one that stands for two; padding counts nothing."""
    head = placed(text).eval()
    x = torch.randn(2, 6, DIM)
    twice = torch.cat([torch.zeros(2, 1, DIM), x, x[:, :1]], dim=1)
    once = torch.cat([torch.zeros(2, 1, DIM), x, torch.randn(2, 1, DIM)], dim=1)
    mass = torch.tensor([2.0, 1, 1, 1, 1, 1, 0]).expand(2, -1)
    got = head.features([head.take(2, once, 0, None, mass)])
    torch.testing.assert_close(got, head.features([head.take(2, twice, 0, None)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", NAMES)
def test_half_precision_has_full_roots(text: str) -> None:
    head = placed(text).eval()
    x = torch.randn(2, 16, DIM)
    exact = head.features([x])
    with torch.autocast("cpu", torch.bfloat16):
        ours = head.features([x])
    # Only the projections are in half precision; those without one are exact.
    tolerance = 2e-2 if text.startswith(("mpncov", "lrblp")) else 1e-6
    torch.testing.assert_close(ours.float(), exact, atol=tolerance, rtol=tolerance)
    half = head.bfloat16()
    assert half.logits(half.features([x.bfloat16()])).isfinite().all()


def test_one_token_and_equal_tokens() -> None:
    for text in ("mpncov(dim=4)", "blp", "lrblp(dim=4)", "iblp"):
        head = placed(text).eval()
        for x in (torch.randn(2, 1, DIM), torch.zeros(2, 5, DIM), torch.ones(2, 5, DIM)):
            x.requires_grad_()
            features = head.features([x])
            features.sum().backward()
            assert features.isfinite().all(), text
            assert x.grad is not None, text
            assert x.grad.isfinite().all(), text


def test_refusals() -> None:
    with pytest.raises(SpecError, match="this model has none"):
        placed("pool", classes=0)
    with pytest.raises(SpecError, match="this model takes any"):
        placed("flatten", grid=None)
    with pytest.raises(ValueError, match=r"flatten\(tokens=9\)"):
        placed("flatten").features([torch.randn(2, 9, DIM)])
    assert placed("flatten(tokens=9)").features([torch.randn(2, 9, DIM)]).shape == (2, 9 * DIM)
    with pytest.raises(ValueError, match="none is left"):
        placed("blp").take(2, torch.randn(2, 1, DIM), 0, None)
    for text in ("mpncov(steps=1)", "lrblp(dim=0)", "iblp(steps=0)", "flatten(tokens=0)"):
        with pytest.raises(SpecError, match="or more"):
            HEADS.build(text)


def test_aggregation_of_all_blocks() -> None:
    head = placed("ifacls")
    taps = [torch.randn(4, DIM) for _ in range(DEPTH)]
    assert list(head.taps) == [0, 1, 2]
    mixed = sum(t * w for t, w in zip(taps, head.mix.weight[0], strict=True)) + head.mix.bias
    torch.testing.assert_close(head.features(taps), F.layer_norm(mixed.clamp_min(0), (DIM,), eps=1e-12))
