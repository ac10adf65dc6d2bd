"""What cannot be, and what is said about it."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import VisionTransformer as TorchVit

import vitrim
from tests.tuning.test_tuning import images, vit
from vitrim.core.registry import SpecError


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adaptr", "unknown tuning method 'adaptr'; did you mean 'adapter'"),
        ("adapter(size=3)", "adapter has no setting 'size'"),
        ("adapter(dim=0)", "dim is the width of the bottleneck"),
        ("adapter(path=left)", "path is both, mlp, sequential"),
        ("adapter + adapter(dim=4)", "adapter is named twice"),
        ("ila(plus=2) + adapter", "adapter is named twice"),
        ("vpt + vqt", "vpt and vqt both bring tokens of their own"),
        ("h2t + vqt", "h2t and vqt both bring a classifier"),
        ("vpt(length=0)", "length is a number of prompts"),
        ("ila(at=[7])", "block 7 does not exist: the model has 4 blocks"),
        ("ila(kernel=5, at=[0, 1])", "leave nothing of a grid"),
        ("convpass(kernel=2)", "kernel is an odd number"),
        ("lora(layers=[qkv_proj])", "the blocks have: attn.proj, attn.qkv, mlp.fc1, mlp.fc2"),
    ],
)
def test_bad_specs_name_the_remedy(spec: str, message: str) -> None:
    model = vit()
    before = model(images())
    with pytest.raises(SpecError, match=message.replace("(", r"\(").replace(")", r"\)")):
        vitrim.tune(model, spec)
    assert torch.equal(model(images()), before)
    assert not hasattr(model, "tuning")
    assert all(p.requires_grad for p in model.parameters())


def test_unknown_parts() -> None:
    with pytest.raises(SpecError, match="unknown part 'class_tokn'; did you mean 'class_token'"):
        vitrim.tune(vit(), "linear", train=["head", "class_tokn"])


def test_order_of_tuning_and_reduction() -> None:
    model = vit()
    vitrim.reduce(model, "tome", "keep(rate=0.5, at=[1])")
    with pytest.raises(ValueError, match="tune it, and reduce it again"):
        vitrim.tune(model, "adapter")
    model.reduction.detach()
    tuning = vitrim.tune(model, "adapter")
    with pytest.raises(ValueError, match="tuned already"):
        vitrim.tune(model, "ssf")
    vitrim.reduce(model, "tome", "keep(rate=0.5, at=[1])")
    with pytest.raises(ValueError, match=r"reduction\.detach"):
        tuning.detach()


def test_a_grid_with_holes_is_not_down_sampled() -> None:
    model = vit()
    vitrim.tune(model, "ila(at=[2], dim=3)")
    wanted = model(images())
    with pytest.raises(SpecError, match="ila makes the patch grid smaller after block 2"):
        vitrim.reduce(model, "evit", "keep(rate=0.5, at=[1])")
    assert torch.equal(model(images()), wanted)  # still tuned
    vitrim.reduce(model, "evit", "share(rate=0.5, at=[3])")


def test_two_classifiers() -> None:
    model = vit()
    vitrim.tune(model, "vqt")
    with pytest.raises(SpecError, match="has a classifier of its own"):
        vitrim.reduce(model, "evit", "keep(rate=0.5, at=[1])", head="cla")


def test_blocks_that_cannot_be_added_to() -> None:
    model = TorchVit(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=5)
    with pytest.raises(SpecError, match="adapter adds to attention and MLP"):
        vitrim.tune(model, "adapter")
    vitrim.tune(model, "vpt(length=2) + lora(r=2, layers=all)")
    assert model(images()).shape == (2, 5)
