"""What holds for every tuning method."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

import vitrim
from vitrim.core.registry import TUNERS, SpecError

SPECS = (
    "linear", "full", "bitfit", "ssf", "ssf(compat=official)", "lora(r=2)", "lora(layers=all, r=2)", "lora(dora=true, r=2)",
    "adapter(dim=3)", "adapter(path=sequential)", "adapter(path=mlp, compat=official)", "convpass(dim=3)", "vpt(length=3)",
    "vpt(length=3, deep=true)", "vqt(length=2)", "vqt(length=2, at=[1, 3])", "h2t", "ila(dim=3, at=[0, 2])",
    "ila(plus=1, at=[0, 2], dim=3)", "ila(plus=2, at=[0, 2], dim=3)", "ila(at=[1], residual=pool, norms=ln, multiplier=2, dim=3)",
    "ssf + lora(r=2)", "lora(r=2) + ssf", "vpt(length=3) + adapter(dim=3) + lora(r=2)",
    "ila(at=[0, 2], dim=3) + vpt(length=3, deep=true)",
)  # fmt: skip
UNCHANGED = ("linear", "full", "bitfit", "ssf", "lora(r=2)", "lora(layers=all, r=2)", "lora(dora=true, r=2)", "adapter(dim=3)",
             "adapter(path=sequential)", "convpass(dim=3)")  # fmt: skip
MERGED = (
    "ssf + lora(r=2)",
    "lora(r=2) + ssf",
    "linear",
    "full",
    "bitfit",
    "ssf",
    "ssf(compat=official)",
    "lora(r=2)",
    "lora(layers=all, r=2)",
    "lora(dora=true, r=2)",
)
REDUCED = (
    "adapter(dim=3)", "convpass(dim=3)", "lora(r=2)", "vpt(length=3)", "vpt(length=3, deep=true)", "vqt(length=2)", "ssf", "h2t",
    "ila(at=[], between=[0, 1, 2, 3], dim=3)",
)  # fmt: skip
ROTARY = ("adapter(dim=3)", "convpass(dim=3)", "vpt(length=3)", "ila(at=[0, 2], dim=3)", "lora(r=2, layers=all)")
OFFICIAL = "ila(at=[0, 2], dim=3, compat=official)"


def vit(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    chosen = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5} | settings
    return VisionTransformer(**chosen).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def shaken(model: nn.Module) -> nn.Module:
    """Random values where the start is the identity, and running statistics that are no start values."""
    torch.manual_seed(2)
    for name, tensor in model.named_parameters():
        if name.startswith("tuning."):
            nn.init.normal_(tensor, std=0.2)
    for name, tensor in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.1)
    return model


@pytest.mark.parametrize("spec", SPECS)
def test_only_what_is_meant_is_trained_and_all_of_it_gets_gradients(spec: str) -> None:
    model = vit()
    tuning = vitrim.tune(model, spec)
    shaken(model).train()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    own = {n for n, _ in model.named_parameters() if n.startswith("tuning.")}
    assert own <= tuning.trained().keys()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    # The last block's tokens other than the class token reach no classifier, nor do queries of a head that is not there.
    idle = [n for n, p in tuning.trained().items() if p.grad is None]
    assert idle == []
    optimizer.step()
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("spec", SPECS)
def test_names_of_the_backbone_stay_and_detaching_brings_the_model_back(spec: str) -> None:
    model = vit()
    keys, before, wanted = set(model.state_dict()), model(images()), {n: p.requires_grad for n, p in model.named_parameters()}
    tuning = vitrim.tune(model, spec)
    shaken(model)
    assert {k for k in model.state_dict() if not k.startswith("tuning.")} == keys
    assert model.tuning is tuning
    model(images())
    tuning.detach()
    assert torch.equal(model(images()), before)
    assert set(model.state_dict()) == keys
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert not hasattr(model, "tuning")


@pytest.mark.parametrize("spec", UNCHANGED)
def test_the_model_is_unchanged_before_the_first_step(spec: str) -> None:
    model = vit()
    before = model(images())
    vitrim.tune(model, spec)
    torch.testing.assert_close(model(images()), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_tuning_loads_onto_a_fresh_backbone(spec: str, tmp_path: Path) -> None:
    model = vit()
    vitrim.tune(model, spec)
    shaken(model)
    with torch.no_grad():
        model.head.bias.add_(1)  # pyright: ignore
        model.cls_token.add_(1)  # pyright: ignore
    file = vitrim.save_tuning(model, tmp_path / "tuning.safetensors")
    other = vit()
    vitrim.load_tuning(other, file)
    assert torch.equal(other(images()), model(images()))


def test_a_saved_tuning_is_small_and_of_one_method_and_model(tmp_path: Path) -> None:
    model = vit(embed_dim=96, num_heads=4)
    vitrim.tune(model, "ila(at=[0, 2])")
    file = vitrim.save_tuning(model, tmp_path / "ila.safetensors")
    assert file.stat().st_size < 0.1 * sum(4 * p.numel() for p in model.parameters())
    narrow = vit()
    with pytest.raises(ValueError, match=r"does not fit this model: .*has shape"):
        vitrim.load_tuning(narrow, file)
    assert not hasattr(narrow, "tuning")
    vitrim.tune(narrow, "adapter")
    with pytest.raises(ValueError, match=r"is of 'ila.*', the model is tuned by 'adapter'"):
        vitrim.load_tuning(narrow, file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        vitrim.load_tuning(vit(), tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="no readable safetensors"):
        vitrim.load_tuning(vit(), tmp_path / "text.safetensors")


@pytest.mark.parametrize("spec", MERGED)
def test_merged_weights_compute_the_same(spec: str) -> None:
    model = vit()
    tuning = vitrim.tune(model, spec)
    shaken(model)
    tuned = model(images())
    tuning.merge()
    assert not any(k.startswith("tuning.") for k in model.state_dict())
    torch.testing.assert_close(model(images()), tuned, atol=2e-5, rtol=1e-4)


def test_what_no_weights_can_do_is_not_merged() -> None:
    model = vit()
    tuning = vitrim.tune(model, "lora(r=2) + vpt(length=2)")
    with pytest.raises(SpecError, match="vpt computes something"):
        tuning.merge()
    assert model.tuning is tuning


@pytest.mark.parametrize("spec", SPECS)
def test_copies_pickles_and_casts_work_alone(spec: str) -> None:
    model = vit()
    vitrim.tune(model, spec)
    shaken(model)
    wanted = model(images())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(images()), wanted)
    store = io.BytesIO()
    torch.save(twin, store)
    store.seek(0)
    assert torch.equal(torch.load(store, weights_only=False)(images()), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        half = twin(images())
    torch.testing.assert_close(half.float(), wanted, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("spec", [*SPECS, OFFICIAL])
def test_an_image_does_not_depend_on_its_neighbours(spec: str) -> None:
    model = vit()
    vitrim.tune(model, spec)
    shaken(model)
    torch.testing.assert_close(model(images())[:1], model(images()[:1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", ["adapter(dim=3)", "convpass(dim=3)", "ila(plus=1, at=[0, 2], dim=3)", "vpt(length=3)", "h2t"])
def test_gradient_checkpointing_gives_the_same_gradients(spec: str) -> None:
    grads: list[dict[str, Tensor]] = []
    for checkpointed in (False, True):
        model = vit()
        vitrim.tune(model, spec)
        shaken(model)
        model.set_grad_checkpointing(checkpointed)
        model(images()).square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", REDUCED)
@pytest.mark.parametrize("method", ["evit", "tome", "atc", "ats", "topk", "sit"])
def test_with_token_reduction_and_a_cache(spec: str, method: str) -> None:
    model = vit()
    tuning = vitrim.tune(model, spec)
    reduction = vitrim.reduce(model, method, "keep(rate=0.5, at=[1, 2])", cache="clc(num_clr=1)")
    shaken(model).train()
    model(images(4)).square().sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) for n, p in model.named_parameters() if n.startswith("tuning.")
    )
    model.eval()
    model(images())
    steps = reduction.trace
    assert list(steps) == [1, 2]
    # Prompts and queries are never in a map: it says what becomes of class token and patches.
    assert steps[1].map.n - steps.joins.get(-1, 0) == 65
    reduction.detach()
    assert model.tuning is tuning
    tuning.detach()


@pytest.mark.parametrize("spec", ["vpt(length=3)", "vqt(length=2)", "adapter(dim=3)", "convpass(dim=3)"])
def test_a_reduction_that_keeps_all_tokens_changes_nothing(spec: str) -> None:
    model = vit()
    vitrim.tune(model, spec)
    shaken(model)
    wanted = model(images())
    vitrim.reduce(model, "tome", "keep(rate=1.0, at=[1])")
    torch.testing.assert_close(model(images()), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", ROTARY)
def test_rotary_positions_follow(spec: str) -> None:
    torch.manual_seed(0)
    model = Eva(img_size=32, patch_size=4, embed_dim=24, depth=4, num_heads=2, num_classes=5, use_rot_pos_emb=True).eval()
    vitrim.tune(model, spec)
    shaken(model)
    one = model(images())
    vitrim.reduce(model, "tome", "share(rate=0.5, at=[3])")
    assert one.shape == model(images()).shape


def test_every_method_has_its_laws() -> None:
    assert set(TUNERS.names()) == {spec.partition("(")[0] for spec in SPECS if "+" not in spec}
