"""Laws of training: gradients, checkpointing, adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import FAMILIES, images, run, tower
from laws import SCHEDULE, every_method, every_pair, pairs, reduced_model
from torch import Tensor, nn


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return run(model, x).float().square().mean()


@every_pair
def test_gradients_reach_input_and_learned_parameters(family: str, method: str) -> None:
    model = reduced_model(family, method).train()
    x = images().clone().requires_grad_()
    _loss(model, x).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    for stage in model.reduction.stages:  # pyright: ignore
        learned = list(stage.parameters())
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned)
        assert not learned or any(p.grad.abs().sum() > 0 for p in learned)


def _checkpoint(model: nn.Module) -> None:
    part: Any = tower(model)
    if hasattr(part, "activation_checkpointing_enable"):  # transformers 5
        part.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    elif hasattr(part, "gradient_checkpointing_enable"):
        part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        part.set_grad_checkpointing()


# open_clip passes two more arguments to a checkpointed block than its custom block takes.
CHECKPOINTING = [n for n, f in FAMILIES.items() if f.library not in ("torch", "torchvision") and n != "open_clip_qk_norm"]


@pairs(CHECKPOINTING)
def test_checkpointing_changes_nothing(family: str, method: str) -> None:
    plain = reduced_model(family, method).train()
    saving = copy.deepcopy(plain)
    _checkpoint(saving)
    x, y = images().clone().requires_grad_(), images().clone().requires_grad_()
    one, two = _loss(plain, x), _loss(saving, y)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    one.backward()
    two.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-7)
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.filterwarnings("ignore")
@every_method
def test_lora_on_a_reduced_model(method: str) -> None:
    peft = pytest.importorskip("peft")
    model = reduced_model("timm_vit", method)
    with torch.no_grad():
        before = run(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv", "fc1"]))
    with torch.no_grad():
        torch.testing.assert_close(run(tuned), before, rtol=1e-5, atol=1e-5)
    _loss(tuned.train(), images()).backward()
    grads = [p.grad for n, p in tuned.named_parameters() if "lora_B" in n]
    assert len(grads) == 8
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [n for n in ("hf_vit", "hf_clip", "open_clip_vit", "torchvision_vit") if n in FAMILIES])
def test_lora_on_other_libraries(family: str) -> None:
    peft = pytest.importorskip("peft")
    model = reduced_model(family, "tome", SCHEDULE)
    with torch.no_grad():
        before = run(model)
    targets = r".*\.(fc1|c_fc|linear_1|mlp\.0)"
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        torch.testing.assert_close(run(tuned.base_model.model), before, rtol=1e-5, atol=1e-5)
