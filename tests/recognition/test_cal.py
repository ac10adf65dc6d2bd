"""CAL: known answers, centres, the loss and its passes, evaluation, reductions, checkpoints."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor

import vitrim
from vitrim.core.registry import RECOGNISERS, SpecError
from vitrim.recognition.base import recognise
from vitrim.recognition.cal import BilinearAttention, counterfactual
from vitrim.recognition.crops import attention_boxes, cut


def filled(shape: tuple[int, ...], scale: float, phase: float) -> Tensor:
    count = torch.Size(shape).numel()
    return (scale * torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase)).view(shape)


def known(x: Tensor, first: list[float], total: float, squares: float) -> None:
    torch.testing.assert_close(x.flatten()[: len(first)], torch.tensor(first, dtype=x.dtype), atol=1e-7, rtol=0)
    assert abs(float(x.sum()) - total) < 1e-6
    assert abs(float((x**2).sum()) - squares) < 1e-6


def cal_of(text: str = "cal(maps=3)", **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 5}
    return recognise(VisionTransformer(**{**sizes, **settings}).eval(), text)


def test_known_answers() -> None:
    x, attention = filled((2, 4, 3, 3), 1, 0.2), filled((2, 3, 3, 3), 1, 0.5).relu()
    head = BilinearAttention(4, 3, 5).double().eval()
    known(head.pool(x, attention), [0.36448669, -0.32328562, 0.24294447, -0.06198973], -0.07442356, 2.0)
    fake = head.counterfactual(attention)
    known(head.pool(x, fake), [0.37642481, -0.25604373, -0.14608984, 0.32363105], 0.91099939, 2.0)
    image, maps = filled((2, 3, 16, 16), 1, 0), filled((2, 1, 4, 4), 1, 0.5).relu()
    crop = cut(image, attention_boxes(maps, (16, 16), 0.3, 0.1))
    known(crop, [0, 0.99166481, -0.25554110, -0.92581468], 1.07233243, 767.89791040)
    head.train()
    drawn = head.counterfactual(torch.zeros(2, 3, 40, 40))
    assert 0 <= drawn.min() < 0.01
    assert 1.99 < drawn.max() < 2


def test_published_parameters() -> None:
    """ViT-B/16 without class token, 200 classes: what is trained with a frozen backbone, and all."""
    with torch.device("meta"):
        vit = VisionTransformer(class_token=False, global_pool="avg", fc_norm=False, num_classes=200)
        cal: Any = RECOGNISERS.build("cal")
        cal.setup(vit, 200)
    named = {n: p.numel() for n, p in cal.named_parameters()}
    assert sum(v for k, v in named.items() if k.split(".")[0] in cal.trained) == 4_939_840
    assert sum(named.values()) == 90_736_960


def test_centres_move_towards_the_mean_of_their_class() -> None:
    labels = torch.tensor([1, 3, 1])
    features = F.normalize(torch.randn(3, 36), dim=1)
    for compat in ("paper", "official"):
        cal = cal_of(f"cal(maps=3, compat={compat})")
        cal.centres.normal_()
        before = cal.centres.clone()
        units = F.normalize(before, dim=1)
        assert torch.equal(cal._move_centres(features, labels), units[labels])
        step = (features[0] + features[2]) / 2 - units[1] if compat == "paper" else features[2] - units[1]
        torch.testing.assert_close(cal.centres[1], before[1] + 0.05 * step)
        torch.testing.assert_close(cal.centres[3], before[3] + 0.05 * (features[1] - units[3]))
        assert torch.equal(cal.centres[[0, 2, 4]], before[[0, 2, 4]])


def test_loss_and_gradients() -> None:
    cal, images, labels = cal_of().train(), torch.randn(3, 3, 32, 32), torch.tensor([0, 2, 2])
    passes: list[int] = []
    cal.vit.patch_embed.register_forward_hook(lambda _m, i, _o: passes.append(len(i[0])))
    loss, logits = cal.loss(images, labels, F.cross_entropy)
    assert passes == [3, 6]
    assert logits.shape == (3, 5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cal.parameters())
    assert cal.centres[2].any()
    assert not cal.centres[1].any()
    torch.manual_seed(5)
    cal.eval()
    before = cal.centres.clone()
    cal.loss(images, labels, F.cross_entropy)
    assert torch.equal(cal.centres, before), "evaluation moves no centre"
    with pytest.raises(ValueError, match="class indices"):
        cal.loss(images, torch.rand(3, 5), F.cross_entropy)


def test_the_terms_of_the_loss() -> None:
    raw, parts, effects = torch.randn(2, 5), torch.randn(4, 5), torch.randn(6, 5)
    features, centres, y = torch.randn(2, 7), torch.randn(2, 7), torch.tensor([1, 4])
    wanted = F.cross_entropy(raw, y) / 3 + 2 / 3 * F.cross_entropy(parts, torch.tensor([1, 4, 1, 4]))
    wanted += F.cross_entropy(effects, torch.tensor([1, 4] * 3)) + (features - centres).square().sum() / 2
    torch.testing.assert_close(counterfactual(raw, parts, effects, features, centres, y), wanted)


def test_crop_and_drop_draw_from_torch() -> None:
    cal, images = cal_of(), torch.rand(4, 3, 32, 32) + 0.5
    attention = torch.zeros(4, 3, 4, 4)
    attention[:, 1, 1, 2] = 1  # one map with one peak
    torch.manual_seed(3)
    out = cal.crop_and_drop(images, attention)
    torch.manual_seed(3)
    assert torch.equal(out, cal.crop_and_drop(images, attention))
    assert out.shape == (8, 3, 32, 32)
    assert (out[4:, :, 10, 21] == 0).all(), "the peak is dropped"
    assert torch.equal(out[4:, :, -1, 0], images[:, :, -1, 0])
    assert (out[:4] > 0.4).all()
    assert not torch.allclose(out[:4], images)


@pytest.mark.parametrize(("passes", "count"), [(1, 1), (2, 2), (8, 8)])
def test_evaluation(passes: int, count: int) -> None:
    cal, images = cal_of(f"cal(maps=3, passes={passes})").eval(), torch.randn(2, 3, 32, 32)
    seen: list[Tensor] = []
    cal.vit.patch_embed.register_forward_hook(lambda _m, i, _o: seen.append(i[0]))
    with torch.no_grad():
        logits = cal(images)
        assert len(seen) == count
        torch.testing.assert_close(logits, torch.stack([cal._look(x)[0] for x in list(seen)]).mean(0))
        if passes == 8:
            assert torch.equal(seen[4], images.flip(-1))
            torch.testing.assert_close(cal(images.flip(-1)), logits)
        torch.testing.assert_close(cal(images[:1]), logits[:1])


def test_centres_are_saved_and_copied() -> None:
    cal = cal_of().train()
    cal.loss(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]), F.cross_entropy)[0].backward()
    other = cal_of()
    other.load_state_dict(cal.state_dict())
    assert torch.equal(other.centres, cal.centres)
    assert cal.centres.any()
    assert "centres" not in dict(cal.named_parameters())
    assert torch.equal(copy.deepcopy(other)(torch.ones(1, 3, 32, 32)), other(torch.ones(1, 3, 32, 32)))
    assert cal_of().half().centres.dtype is torch.float16  # as asked for by .half()


@pytest.mark.parametrize("method", ["tome", "topk"])
def test_reduced_backbones(method: str) -> None:
    """Tokens are put back to their places, so that the maps stay maps."""
    cal = cal_of().eval()
    vitrim.reduce(cal.vit, method, "keep(rate=0.5, at=[1])")
    assert cal.feature_map(torch.randn(2, 3, 32, 32)).shape == (2, 12, 4, 4)
    cal.train()
    loss, _ = cal.loss(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]), F.cross_entropy)
    loss.backward()
    assert loss.isfinite()


def test_refusals() -> None:
    for text, word in (("cal(passes=3)", "1, 2 or 8"), ("cal(maps=0)", "or more"), ("cal(compat=old)", "paper or official")):
        with pytest.raises(SpecError, match=word):
            RECOGNISERS.build(text)
