"""TransFG: parts by the product of attention matrices, overlapping patches, contrastive loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import vitrim
from tests.recognition.models import images, recogniser, vit
from vitrim.core.registry import SpecError
from vitrim.core.tap import Tap
from vitrim.recognition.base import recognise
from vitrim.recognition.losses import contrastive


def by_hand(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The same from the definition, with whole matrices and without the shared pass."""
    vit = model.vit
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    joint = None
    for block in vit.blocks:
        calls: list[Any] = []
        with Tap(calls, x.shape[1]):
            x = block(x)
        weights = calls[0].weights()
        joint = weights if joint is None else weights @ joint
    index = joint[:, :, 0, vit.num_prefix_tokens :].argmax(dim=-1) + vit.num_prefix_tokens
    chosen = torch.stack([row[i] for row, i in zip(x, index, strict=True)])
    return model.head(vit.norm(model.aggregator(torch.cat([x[:, :1], chosen], dim=1)))[:, 0])


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 3}])
def test_it_is_its_definition(changes: dict[str, Any]) -> None:
    model, x = recogniser("transfg", **changes), images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_hand(model, x), atol=1e-5, rtol=1e-5)


def test_the_last_block_is_replaced_or_kept() -> None:
    plain = vit()
    last = {k: v.clone() for k, v in plain.blocks[-1].state_dict().items()}
    kept = recognise(plain, "transfg(init=last)")
    assert len(kept.vit.blocks) == 3
    assert all(torch.equal(v, last[k]) for k, v in kept.aggregator.state_dict().items())
    fresh = recognise(vit(), "transfg").aggregator.state_dict()
    assert not torch.equal(fresh["attn.qkv.weight"], last["attn.qkv.weight"])
    assert fresh["norm1.weight"].eq(1).all()
    assert fresh["mlp.fc1.bias"].abs().max() < 1e-5


def test_a_frozen_backbone_leaves_the_new_parts_trainable() -> None:
    model = recognise(vit().requires_grad_(False), "transfg")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"aggregator", "head"}


def test_overlapping_patches() -> None:
    plain = vit()
    grid = plain.pos_embed.detach()[:, 1:].reshape(6, 6, 32)
    model = recogniser("transfg(stride=4)")
    assert model.vit.patch_embed.grid_size == (11, 11)
    assert model.vit.pos_embed.shape == (1, 122, 32)
    new = model.vit.pos_embed.detach()[:, 1:].reshape(11, 11, 32)
    torch.testing.assert_close(new[::2, ::2], grid)  # corners stay where they were
    torch.testing.assert_close(new[0, 1], (grid[0, 0] + grid[0, 1]) / 2)
    assert torch.equal(model.vit.pos_embed[:, :1], plain.pos_embed[:, :1])
    patches = model.vit.patch_embed(images(1))
    torch.testing.assert_close(patches[0, ::2][:6], plain.patch_embed(images(1))[0, :6])


def test_strides_that_do_not_work() -> None:
    with pytest.raises(SpecError, match="number of pixels"):
        recognise(vit(), "transfg(stride=0)")
    with pytest.raises(SpecError, match="one convolution"):
        recognise(vit(dynamic_img_pad=True), "transfg(stride=4)")


def test_the_contrastive_loss_is_added() -> None:
    model, x, y = recogniser("transfg(contrast=0.5, margin=0.2)"), images(), torch.tensor([0, 1, 0])
    with torch.no_grad():
        loss, logits = model.loss(x, y, cross_entropy)
        wanted = cross_entropy(logits, y) + 0.5 * contrastive(model.features(x), y, 0.2)
    torch.testing.assert_close(loss, wanted)
    assert recogniser("transfg").loss(x, y, cross_entropy)[0] < loss
    with pytest.raises(ValueError, match="switch mixup"):
        model.loss(x, torch.rand(3, 7), cross_entropy)


@pytest.mark.parametrize("site", ["before", "inside", "after"])
def test_blocks_of_different_lengths_are_refused(site: str) -> None:
    model = recogniser("transfg")
    vitrim.reduce(model.vit, "tome(metric=tokens)", "keep(rate=0.5, at=[2])", site=site)
    with pytest.raises(RuntimeError, match="same tokens in each"):
        model(images(1))
    model.vit.reduction.detach()
    assert model(images(1)).isfinite().all()


def test_a_pass_around_modules_is_no_reduction_for_the_blocks() -> None:
    model = recogniser("transfg")
    vitrim.reduce(model.vit, "tome(metric=tokens)", "keep(rate=0.5, at=[1])", site="around:mlp")
    assert model(images(1)).isfinite().all()
