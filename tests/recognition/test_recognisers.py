"""What holds for every recogniser of this kind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from timm.models import VisionTransformer
from torch import nn
from torch.nn.functional import cross_entropy

import vitrim
from tests.recognition.models import CLASSES, images, recogniser, vit
from vitrim.core.attach import tune
from vitrim.core.registry import RECOGNISERS, SpecError, spec
from vitrim.recognition.base import Recogniser, recognise

SPECS = [
    "transfg",
    "transfg(stride=6, contrast=0.1, init=last)",
    "ffvt(tokens=5)",
    "ramstrans(top=3)",
    "glsim(top=3)",
    "glsim(top=3, reducer=all, crop=crop_mask, width=64)",
]
every = pytest.mark.parametrize("text", SPECS)


@every
def test_evaluation_is_deterministic_and_images_do_not_see_each_other(text: str) -> None:
    model, x = recogniser(text), images()
    kept = x.clone()
    with torch.no_grad():
        all_of_them = model(x)
        assert all_of_them.shape == (3, CLASSES)
        assert all_of_them.std() > 0.01
        assert torch.equal(all_of_them, model(x))
        torch.testing.assert_close(all_of_them[1:2], model(x[1:2]), atol=1e-4, rtol=1e-4)
    assert torch.equal(x, kept)


@every
def test_every_parameter_learns(text: str) -> None:
    model = recogniser(text).train()
    torch.manual_seed(0)
    loss, logits = model.loss(images(), torch.tensor([0, 1, 0]), cross_entropy)
    assert logits.shape == (3, CLASSES)
    loss.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@every
def test_gradient_checkpointing_changes_nothing(text: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model = recogniser(text)
        model.vit.set_grad_checkpointing(checkpointing)
        model.loss(images(), torch.tensor([0, 1, 0]), cross_entropy)[0].backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


@every
def test_it_can_be_copied_pickled_and_written_as_a_spec(text: str) -> None:
    model, x = recogniser(text), images(2)
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(copy.deepcopy(model)(x), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), wanted)
    again = RECOGNISERS.build(spec(model))
    assert again.settings() == model.settings()
    assert repr(model)


@every
def test_lower_precision_and_double(text: str) -> None:
    model, x = recogniser(text), images(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
    assert model.double()(x.double()).dtype is torch.float64


@every
def test_the_backbone_keeps_its_names_and_the_trained_parts_exist(text: str) -> None:
    model = recogniser(text)
    names = set(vit().state_dict())
    ours = {n.removeprefix("vit.") for n in model.state_dict() if n.startswith("vit.")}
    assert ours <= names
    assert any(n.startswith(model.trained) for n, _ in model.named_parameters())
    present = {n.split(".")[0] for n, _ in model.named_parameters()} - {"vit"}
    assert present <= set(model.trained)


@every
def test_register_tokens_and_images_of_another_size(text: str) -> None:
    model = recogniser(text, reg_tokens=2, no_embed_class=True, dynamic_img_size="stride" not in text)
    x = images(2) if "stride" in text else images(2, 64)
    with torch.no_grad():
        assert model(x).isfinite().all()


@pytest.mark.parametrize("text", ["transfg", "ffvt(tokens=5)", "ramstrans", "glsim"])
def test_new_classifiers_start_at_zero_and_classes_can_be_chosen(text: str) -> None:
    model = recognise(vit(), text, classes=3)
    with torch.no_grad():
        assert torch.equal(model(images(2)), torch.zeros(2, 3))


def test_training_follows_the_model() -> None:
    assert recognise(vit().train(), "glsim").training
    assert not recognise(vit(), "glsim").training


def test_models_that_cannot_be_served() -> None:
    with pytest.raises(SpecError, match="VisionTransformer of timm"):
        recognise(nn.Linear(2, 2), "glsim")
    with pytest.raises(SpecError, match="class token"):
        recognise(vit(class_token=False, global_pool="avg"), "glsim")
    with pytest.raises(SpecError, match="patch_drop_rate=0"):
        recognise(vit(patch_drop_rate=0.1), "glsim")
    with pytest.raises(SpecError, match="give classes="):
        recognise(vit(num_classes=0), "glsim")
    with pytest.raises(SpecError, match="two blocks"):
        recognise(vit(depth=1), "transfg")
    reduced = vit()
    vitrim.reduce(reduced, "tome", "keep(rate=0.5, at=[1])")
    with pytest.raises(ValueError, match="recognise first, then reduce"):
        recognise(reduced, "ffvt")
    with pytest.raises(SpecError, match="no setting"):
        recognise(vit(), "ffvt(parts=3)")
    with pytest.raises(TypeError, match="spec or a Recogniser"):
        recognise(vit(), 3)  # type: ignore[arg-type]


def test_the_model_inside_is_named() -> None:
    model = recogniser("ffvt(tokens=5)")
    with pytest.raises(TypeError, match=r"go on with the one inside, model\.vit"):
        vitrim.reduce(model, "topk", "keep(rate=0.5, at=[1])")
    with pytest.raises(TypeError, match=r"model\.vit"):
        tune(model, "linear")
    assert not hasattr(model, "reduction")
    assert not hasattr(model, "tuning")


def test_a_refused_model_stays_as_it_was() -> None:
    model = vit()
    before = model.state_dict()
    with pytest.raises(SpecError, match="init is random or last"):
        recognise(model, "transfg(init=first)")
    assert model.state_dict().keys() == before.keys()
    assert len(model.blocks) == 4


def test_attention_that_cannot_be_seen_is_named() -> None:
    model = recogniser("ffvt(tokens=5)")
    model.vit.blocks[1].attn.fused_attn = False
    with pytest.raises(RuntimeError, match="block 1 shows no attention"):
        model(images(1))


def test_a_head_of_the_reduction_is_refused() -> None:
    model = recogniser("glsim")
    model.vit.reset_classifier(3)
    vitrim.reduce(model.vit, "topk", "keep(rate=0.5, at=[1])", head="cla")
    with pytest.raises(ValueError, match="without head="):
        model(images(1))


@pytest.mark.parametrize(
    ("text", "total", "trained"),
    [  # the published counts at 224 pixels and 200 classes; trained ones with the class token
        ("transfg", 85_952_456, 7_242_440),
        ("transfg(stride=12)", 86_050_760, 7_242_440),
        ("ffvt", 85_952_456, 7_243_976),
        ("glsim", 93_042_632, 7_244_744),
        ("ramstrans", 85_953_224, 155_336),
    ],
)
def test_published_parameter_counts(text: str, total: int, trained: int) -> None:
    with torch.device("meta"):
        model: Recogniser = recognise(VisionTransformer(num_classes=200), text)
    assert sum(p.numel() for p in model.parameters()) == total
    learned = sum(p.numel() for n, p in model.named_parameters() if n.startswith(model.trained))
    assert learned + model.vit.cls_token.numel() == trained


@pytest.mark.parametrize("text", ["transfg", "ffvt(tokens=5)", "ramstrans(top=3)", "glsim(top=3)"])
def test_tuned_backbones(text: str) -> None:
    for tuning in ("adapter(dim=4)", "bitfit", "ssf"):
        model = recogniser(text)
        tune(model.vit, tuning)
        model.loss(images(), torch.tensor([0, 1, 0]), cross_entropy)[0].backward()
        learned = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
        assert learned - {"vit"} <= set(model.trained)
        assert model.vit.blocks[0].attn.qkv.weight.grad is None
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_prompts_and_attention_do_not_go_together() -> None:
    for text in ("transfg", "ffvt(tokens=5)", "ramstrans"):
        model = recogniser(text)
        tune(model.vit, "vpt(length=3)")
        with pytest.raises(RuntimeError, match="prompts"):
            model(images(1))
    model = recogniser("glsim(top=3)")
    tune(model.vit, "vpt(length=3, deep=true)")
    assert model(images(2)).isfinite().all()


def test_a_smaller_grid_is_followed() -> None:
    for text in ("glsim(top=3)", "ffvt(tokens=5)"):
        model = recogniser(text)
        tune(model.vit, "ila(at=[1])")
        with torch.no_grad():
            model.vit.eval()
            assert model(images(2)).isfinite().all()
