"""GLSim: what is looked at again, auxiliary losses, and reduced backbones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

import vitrim
from tests.recognition.models import PATCHES, images, recogniser, vit
from vitrim.core.registry import SpecError
from vitrim.recognition.base import recognise, run, tokens
from vitrim.recognition.crops import cut, patch_boxes
from vitrim.recognition.losses import consistency, contrastive, supervised_contrastive

LABELS = torch.tensor([0, 1, 0])


def test_it_is_its_definition() -> None:
    model, x = recogniser("glsim(top=4)"), images()
    vit = model.vit
    with torch.no_grad():
        model.anchor_token += torch.randn_like(model.anchor_token)
        first = vit.forward_features(x)
        index = cosine_similarity(first[:, :1], first[:, 1:], dim=-1).argsort(dim=1, descending=True)[:, :4]
        crops = cut(x, patch_boxes(index, (6, 6), (48, 48)))
        again = torch.cat([model.anchor_token.expand(3, -1, -1), vit.patch_embed(crops)], dim=1) + vit.pos_embed
        second = vit.norm(vit.blocks(again))
        fused = model.norm(model.aggregator(torch.stack([first[:, 0], second[:, 0]], dim=1)))
        torch.testing.assert_close(model(x), model.head(fused[:, 0]), atol=1e-5, rtol=1e-5)


def test_distances_choose_the_smallest() -> None:
    for metric, power in (("l1", 1), ("l2", 2)):
        model, x = recogniser(f"glsim(top=4, metric={metric})"), images()
        with torch.no_grad():
            y = model.vit.forward_features(x)
            gap = (y[:, :1] - y[:, 1:]).abs().pow(power).mean(dim=-1)
            assert torch.equal(model.chosen(y, x), gap.argsort(dim=1)[:, :4])


def test_what_is_looked_at_again() -> None:
    x, index = images(40, 48), torch.tensor([[7, 21]]).expand(40, -1)
    kept = x.clone()
    box = patch_boxes(index, (6, 6), (48, 48))
    assert box[0].tolist() == [8, 8, 24, 24]
    crop = recogniser("glsim(crop=crop)").second_look(x, index)
    mask = recogniser("glsim(crop=mask)").second_look(x, index)
    assert torch.equal(crop, cut(x, box))
    assert mask[:, :, 8:24, 8:24].abs().max() == 0
    assert torch.equal(mask[:, :, 24:], x[:, :, 24:])
    assert torch.equal(x, kept)
    both = recogniser("glsim(crop=crop_mask)")
    assert torch.equal(both.second_look(x, index), crop)
    torch.manual_seed(0)
    either = both.train().second_look(x, index)
    cropped = sum(torch.equal(a, b) for a, b in zip(either, crop, strict=True))
    masked = sum(torch.equal(a, b) for a, b in zip(either, mask, strict=True))
    assert cropped + masked == 40
    assert min(cropped, masked) > 5


def test_random_anchors_repeat_in_evaluation_only() -> None:
    model, x = recogniser("glsim(anchor=random, top=2)"), images()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        torch.testing.assert_close(model(x[1:2]), model(x)[1:2], atol=1e-5, rtol=1e-5)
        model.train()
        torch.manual_seed(0)
        one, other = model(x), model(x)
        assert not torch.equal(one, other)
        torch.manual_seed(0)
        assert torch.equal(model(x), one)


@pytest.mark.parametrize("aux", ["cls", "pool", "shared", "cont", "multi_cont", "consistency"])
def test_auxiliary_losses(aux: str) -> None:
    model, x = recogniser(f"glsim(top=4, aux={aux}, aux_weight=0.3)"), images()
    loss, logits = model.loss(x, LABELS, cross_entropy)
    torch.testing.assert_close(logits, model(x))
    _, views, fused = model._both(x)
    wanted = {
        "cls": lambda: sum(cross_entropy(model.aux_head(v), LABELS) for v in views.unbind(1)) / 2,
        "pool": lambda: cross_entropy(model.aux_head(views.mean(1)), LABELS),
        "shared": lambda: cross_entropy(model.head(fused)[:, 1], LABELS),
        "cont": lambda: contrastive(fused[:, 0], LABELS),
        "multi_cont": lambda: supervised_contrastive(model.aux_head(views)),
        "consistency": lambda: consistency(model.head(fused)),
    }[aux]()
    torch.testing.assert_close(loss, cross_entropy(logits, LABELS) + 0.3 * wanted)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_settings_of_the_auxiliary_losses() -> None:
    x = images()
    free, bound = (
        recogniser(f"glsim(aux=multi_cont, supervised={s})").loss(x, LABELS, cross_entropy)[0] for s in ("false", "true")
    )
    assert free != bound
    paper, official = (recogniser(f"glsim(aux=consistency, compat={c})") for c in ("paper", "official"))
    assert paper.loss(x, LABELS, cross_entropy)[0] != official.loss(x, LABELS, cross_entropy)[0]
    with pytest.raises(ValueError, match="switch mixup"):
        recogniser("glsim(aux=cont)").loss(x, torch.rand(3, 7), cross_entropy)


def test_logits_of_both_looks() -> None:
    x = images()
    with torch.no_grad():
        model = recogniser("glsim(top=4, classify=avg_cls, init=none)")
        first, second = (model.head(y[:, 0]) for y in model.looks(x))
        torch.testing.assert_close(model(x), (first + second) / 2)
        model.classify = "max_cls"
        torch.testing.assert_close(model(x), torch.maximum(first, second))


def test_words_that_do_not_exist() -> None:
    for text in ("metric=l3", "crop=cut", "anchor=here", "reducer=none", "classify=mean", "init=zero", "aux=focal", "compat=old"):
        with pytest.raises(SpecError, match=text.split("=", maxsplit=1)[0] + " is one of"):
            recognise(vit(), f"glsim({text})")
    with pytest.raises(SpecError, match="leaves out"):
        recognise(vit(), "glsim(init=none, width=64)")
    with pytest.raises(SpecError, match="multiple of 64"):
        recognise(vit(), "glsim(width=100)")


@pytest.mark.parametrize("method", ["tome", "topk", "evit", "ats", "sit"])
def test_reduced_backbones(method: str) -> None:
    model, x = recogniser("glsim(top=4)"), images()
    vitrim.reduce(model.vit, method, "keep(rate=0.6, at=[1, 2])")
    model.eval()
    with torch.no_grad():
        together = model(x)
        torch.testing.assert_close(model(x[2:])[0], together[2], atol=1e-4, rtol=1e-4)
    model.train()
    model.loss(x, LABELS, cross_entropy)[0].backward()
    assert model.anchor_token.grad is not None


def test_a_patch_is_as_similar_as_the_token_that_stands_for_it() -> None:
    model, x = recogniser("glsim(top=4)"), images()
    vitrim.reduce(model.vit, "topk", "keep(rate=0.5, at=[1])")
    with torch.no_grad():
        y = model.vit.norm(run(model.vit, tokens(model.vit, x))[0])
        index = model.chosen(y, x)
        kept = model.vit.reduction.trace.patches().source
        alike = cosine_similarity(y[:, :1], y[:, 1:], dim=-1)
    for i in range(3):
        best = kept[i, alike[i].topk(4).indices]
        assert index[i].tolist() == best.tolist()
    assert kept.shape[1] == PATCHES // 2


def test_tokens_that_lie_nowhere_are_refused() -> None:
    model = recogniser("glsim(top=4)")
    model.vit.blocks[2].register_forward_hook(lambda m, i, o: o[:, :20])
    with pytest.raises(RuntimeError, match="cannot say where they lie"):
        model(images(1))
