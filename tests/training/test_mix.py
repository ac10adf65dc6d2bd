"""Mixup and CutMix against closed forms, the definition from the mixed pictures, and timm with the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data import Mixup
from torch import Tensor

from vitrim.training.mix import IlaMix, Mix, box, build_mix, soft_targets
from vitrim.training.seeds import seed_of

B, C, SIDE = 6, 5, 16


def batch(seed: int = 0, size: int = B) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, SIDE, SIDE, generator=generator)
    return images, torch.randint(C, (size,), generator=generator)


def marked(size: int = B) -> tuple[Tensor, Tensor]:
    """Image i is constant, 2^i: a mixed pixel says which two images it has and how much of each."""
    return (2.0 ** torch.arange(size)).view(-1, 1, 1, 1).expand(size, 3, SIDE, SIDE).clone(), torch.arange(size)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_is_timm_with_the_same_numbers(mode: str, mixup: float, cutmix: float) -> None:
    ours = Mix(C, mixup=mixup, cutmix=cutmix, prob=0.9, smoothing=0.1, mode=mode, seed=3)
    theirs = Mixup(mixup, cutmix, prob=0.9, switch_prob=0.5, mode=mode, label_smoothing=0.1, num_classes=C)
    for step in range(8):
        images, targets = batch(step)
        np.random.seed(seed_of(3, "mix", step, 0))
        expected = theirs(images.clone(), targets)
        found = ours(images, targets, step=step)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [Mix, IlaMix])
def test_a_step_repeats_itself_and_leaves_the_global_generator_alone(cls: type) -> None:
    mix = cls(C, prob=1.0, seed=1)
    np.random.seed(0)
    expected = np.random.rand(3)
    np.random.seed(0)
    first = mix(*batch(), step=4)
    assert (np.random.rand(3) == expected).all()
    mix(*batch(), step=5)
    torch.testing.assert_close(mix(*batch(), step=4), first, rtol=0, atol=0)
    assert not torch.equal(mix(*batch(), step=5)[0], first[0])
    assert not torch.equal(mix(*batch(), step=4, rank=1)[0], first[0])


@pytest.mark.parametrize("cls", [Mix, IlaMix])
def test_targets_are_the_shares_of_the_pictures(cls: type) -> None:
    """The pixels of the marked images tell the coefficient, the partner and the area: the definition of the soft target."""
    mixed_steps = 0
    for kind in ({"mixup": 0.0}, {"cutmix": 0.0}):
        mix = cls(B, prob=1.0, smoothing=0.0, **kind)
        for step in range(20):
            images, targets = marked()
            mixed, soft = mix(images, targets, step=step)
            for i in range(B):
                # Written over 2^0 ... 2^5, the mean of the picture is the sum of share times mark.
                expected = float((soft[i] * 2.0 ** torch.arange(B)).sum())
                assert float(mixed[i].mean()) == pytest.approx(expected, rel=1e-5)
                assert int((soft[i] > 0).sum()) <= 2
                if "mixup" in kind:
                    assert {float(v) for v in mixed[i].unique()} <= {2.0**j for j in range(B) if soft[i, j] > 0}
                else:
                    assert float(mixed[i].std()) < 1e-5
            mixed_steps += int((soft.max(1).values < 1).any())
    assert mixed_steps > 30


def test_partner_of_timm_is_the_reversed_batch() -> None:
    _, soft = Mix(B, smoothing=0.0)(*marked(), step=1)
    for i in range(B):
        assert set(soft[i].nonzero().flatten().tolist()) <= {i, B - 1 - i}


def test_partners_of_ila_are_a_permutation() -> None:
    _, soft = IlaMix(7, prob=1.0, cutmix=0.0)(*marked(7), step=2)
    torch.testing.assert_close(soft.sum(0), torch.ones(7))
    torch.testing.assert_close(soft.sum(1), torch.ones(7))


def test_ila_loss_is_the_mixed_loss_of_both_labels() -> None:
    """lambda L(y) + (1 - lambda) L(y') with label smoothing, as published, is the cross-entropy with the soft targets."""
    mix = IlaMix(B, prob=1.0, cutmix=0.0, smoothing=0.1)
    _, soft = mix(*marked(), step=3)
    plain = (soft - 0.1 / B) / 0.9
    logits = torch.randn(B, B, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(())
    for i in range(B):
        for j in range(B):
            label = torch.tensor([j])
            expected += plain[i, j] * torch.nn.functional.cross_entropy(logits[i : i + 1], label, label_smoothing=0.1) / B
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, soft), expected)


def test_shares_of_mixed_batches_and_of_cutmix() -> None:
    counts = {"mixed": 0, "cut": 0}
    mix = IlaMix(4, switch=0.25)
    for step in range(800):
        images, _ = mix(*marked(4), step=step)
        inside = (images.flatten(1) - images.flatten(1).mean(1, keepdim=True)).abs().amax() > 1e-3
        counts["cut"] += int(inside)
        counts["mixed"] += not torch.equal(images, marked(4)[0])
    # Of 800: 400 mixed (less a few whose permutation is the identity or whose box is empty), a quarter of them cut.
    assert 330 < counts["mixed"] < 430
    assert 60 < counts["cut"] < 130


def test_the_box_has_its_area_and_is_clipped() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([box(40, 60, 0.75, rng) for _ in range(3000)])
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert heights.max() == 20
    assert widths.max() == 30
    assert boxes.min() == 0
    assert boxes[:, 1].max() == 40
    assert boxes[:, 3].max() == 60
    # A side of half the length, its centre uniform, keeps 7/8 of itself: at each end a quarter of the centres loses a quarter.
    assert heights.mean() / 20 == pytest.approx(7 / 8, abs=0.02)
    assert widths.mean() / 30 == pytest.approx(7 / 8, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_box(share: float) -> None:
    top, bottom, left, right = box(16, 16, share, np.random.default_rng(1))
    area = (bottom - top) * (right - left)
    assert area == 0 if share == 1.0 else area >= 64


def test_soft_targets_in_closed_form() -> None:
    found = soft_targets(torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    torch.testing.assert_close(soft_targets(torch.tensor([2]), 3), torch.tensor([[0.0, 0.0, 1.0]]))


def test_unmixed_batches_are_smoothed() -> None:
    images, targets = batch()
    for cls in (Mix, IlaMix):
        mixed, soft = cls(C, prob=0.0, smoothing=0.2)(images.clone(), targets, step=0)
        torch.testing.assert_close(mixed, images, rtol=0, atol=0)
        torch.testing.assert_close(soft, soft_targets(targets, C, 0.2))


def test_ila_leaves_its_input_alone() -> None:
    images, targets = batch()
    before = images.clone()
    for step in range(6):
        IlaMix(C, prob=1.0)(images, targets, step=step)
    assert torch.equal(images, before)


def test_building_from_a_recipe() -> None:
    assert build_mix(C) is None
    assert build_mix(C, multilabel=True) is None
    assert isinstance(build_mix(C, mixup=0.8), Mix)
    assert isinstance(build_mix(C, cutmix=1.0, kind="ila"), IlaMix)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: build_mix(C, mixup=0.8, multilabel=True), "multi-label; set mixup: 0 and cutmix: 0"),
        (lambda: build_mix(C, mixup=0.8, kind="other"), "timm, ila"),
        (lambda: Mix(C)(*batch(size=3), step=0), "3 images; set an even batch_size"),
        (lambda: Mix(C)(batch()[0], torch.zeros(B, C), step=0), "multi-label data sets need mixup: 0"),
        (lambda: IlaMix(C)(batch()[0], torch.zeros(B), step=0), "take class indices"),
        (lambda: Mix(C, mixup=0.0, cutmix=0.0), "one of mixup and cutmix"),
        (lambda: IlaMix(C, mixup=-1.0), "none below"),
        (lambda: Mix(C, prob=1.5), "prob of mixing is a share"),
        (lambda: Mix(C, mode="half"), "batch, pair, elem"),
    ],
)
def test_refusals_name_the_remedy(act, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()
