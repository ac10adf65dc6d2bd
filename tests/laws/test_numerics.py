"""Laws of numbers: half precision, autocast, determinism, independence of the batch."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, images, run
from laws import every_pair, reduced_model, traced


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch, of the RMS norm of a block
@every_pair
def test_autocast_is_finite(family: str, method: str) -> None:
    model = reduced_model(family, method)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(run(model)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@every_pair
def test_half_precision_weights_are_finite(family: str, method: str, dtype: torch.dtype) -> None:
    model = reduced_model(family, method).to(dtype)
    with torch.no_grad():
        out = run(model, images().to(dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


@every_pair
def test_two_runs_are_equal(family: str, method: str) -> None:
    model = reduced_model(family, method)
    with torch.no_grad():
        first = run(model)
        assert torch.equal(run(model), first)
    assert torch.equal(first, traced(family, method).output)


@every_pair
def test_a_sample_does_not_depend_on_its_neighbours(family: str, method: str) -> None:
    model = reduced_model(family, method)
    together = traced(family, method).output
    with torch.no_grad():
        alone = torch.cat([run(model, x.unsqueeze(0)) for x in images()])
        turned = run(model, images().flip(0)).flip(0)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_ragged_images_have_different_counts(family: str) -> None:
    """Otherwise the law above would say nothing about padding."""
    counts = [step.map.valid.sum(dim=1).tolist() for step in traced(family, "ats").trace.values() if step.map.valid is not None]
    assert len(counts) == 2
    assert any(len(set(rows)) > 1 for rows in counts)
