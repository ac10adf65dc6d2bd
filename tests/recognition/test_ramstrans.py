"""RAMS-Trans: the crop that the rollout points at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import vitrim
from tests.recognition.models import images, recogniser, vit
from vitrim.core.registry import SpecError
from vitrim.core.tap import Tap
from vitrim.recognition.base import recognise
from vitrim.recognition.ramstrans import count


def by_hand(model: Any, x: Tensor) -> Tensor:
    """The same from the definition, image by image."""
    vit, logits = model.vit, []
    for image in x.split(1):
        y = vit._pos_embed(vit.patch_embed(image))
        joint = torch.eye(y.shape[1])
        for block in vit.blocks:
            calls: list[Any] = []
            with Tap(calls, y.shape[1]):
                y = block(y)
            mixed = calls[0].weights().mean(dim=1)[0] + torch.eye(y.shape[1])
            joint = mixed / mixed.sum(dim=-1, keepdim=True) @ joint
        rows = [divmod(i, 6) for i in joint[0, 1:].topk(model.top).indices.tolist()]
        (top, left), (bottom, right) = ([8 * pick(r[d] for r in rows) for d in (0, 1)] for pick in (min, max))
        box = image[..., top : max(bottom, top + 8), left : max(right, left + 8)]
        crop = interpolate(box, size=(48, 48), mode="bilinear", align_corners=True)
        z = vit.patch_embed(crop)
        z = vit.blocks(torch.cat([model.anchor_token, z], dim=1) + vit.pos_embed)
        logits.append(sum(model.head(vit.norm(t)[:, 0]) for t in (y, z)) / 2)
    return torch.cat(logits)


def test_it_is_its_definition() -> None:
    model, x = recogniser("ramstrans(top=4)"), images()
    with torch.no_grad():
        model.anchor_token += torch.randn_like(model.anchor_token)
        torch.testing.assert_close(model(x), by_hand(model, x), atol=1e-4, rtol=1e-4)


def test_the_second_class_token_begins_as_the_first() -> None:
    model = recogniser("ramstrans")
    assert torch.equal(model.anchor_token, model.vit.cls_token)
    model.anchor_token.data += 1
    assert not torch.equal(model.anchor_token, model.vit.cls_token)


def test_published_numbers_of_patches() -> None:
    assert count(None, images(1, 48), 36) == 8
    assert count(None, torch.empty(1, 3, 448, 448), 784) == 16
    assert count(32, torch.empty(1, 3, 448, 448), 784) == 32
    assert count(50, images(1), 36) == 36
    with pytest.raises(SpecError, match="number of patches"):
        recognise(vit(), "ramstrans(top=0)")


def test_reductions_are_refused() -> None:
    model = recogniser("ramstrans")
    vitrim.reduce(model.vit, "topk", "keep(rate=0.5, at=[1])")
    with pytest.raises(RuntimeError, match="or use glsim"):
        model(images(1))
