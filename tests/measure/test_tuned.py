"""Costs of tuning: the counts of the ILA paper, and the parts of the count of multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrim.measure.tuned import both_macs, costs, total_trained, trained_parameters

# Trained parameters with 200 classes, ViT-B/16: published code, all of them frozen but head, class token and the method.
TRAINED = {
    "linear": 154_568, "ila": 195_064, "ila(plus=1)": 328_424, "ila(plus=2)": 508_600, "ila(plus=1) + adapter": 641_960,
    "adapter": 468_104, "adapter(path=sequential)": 311_336, "convpass": 482_120, "vpt": 231_368, "vpt(deep=true)": 1_076_168,
    "vqt(length=5)": 9_416_648, "vqt(length=10)": 18_678_728,
}  # fmt: skip
OTHERS = {"vit_small_patch16_224": 254_776, "vit_tiny_patch16_224": 127_864, "vit_large_patch16_224": 1_095_800}
# Millions in the paper's table.
TTP = {
    "linear": 1.7, "vqt(length=5)": 106.0, "vpt": 2.1, "vpt(deep=true)": 6.3, "convpass": 3.4, "adapter": 3.3, "ila(plus=1)": 2.6,
    "ila(plus=2)": 3.5,
}  # fmt: skip


@pytest.mark.parametrize(("spec", "wanted"), TRAINED.items())
def test_trained_parameters_are_those_of_the_published_code(spec: str, wanted: int) -> None:
    assert trained_parameters(spec, 200) == wanted


@pytest.mark.parametrize(("model", "wanted"), OTHERS.items())
def test_other_sizes(model: str, wanted: int) -> None:
    assert trained_parameters("ila(plus=2)", 200, f"timm/{model}") == wanted


@pytest.mark.parametrize(("spec", "wanted"), TTP.items())
def test_the_column_of_the_table(spec: str, wanted: float) -> None:
    # A classifier is linear in the number of classes, and so is all that it is part of.
    base, one = trained_parameters(spec, 10), trained_parameters(spec, 11)
    paper, real = total_trained(lambda classes: base + (classes - 10) * (one - base))
    assert round(paper / 1e6, 1) == wanted
    assert real > paper  # the five sets of the table have more classes than the ten of the mean


def test_fully_tuned_rows_count_two_hundred_classes_five_times() -> None:
    assert total_trained(lambda classes: 1000 + classes, full=True)[0] == 5 * 1200


def test_multiply_adds_by_both_conventions() -> None:
    layer = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU())
    x = torch.randn(3, 4)
    assert both_macs(layer, x) == (3 * 4 * 6, 3 * 4 * 6 + 3 * 6)
    assert both_macs(nn.AvgPool2d(2), torch.randn(1, 2, 4, 4)) == (0, 2 * 2 * 2)


def test_costs_of_a_small_model() -> None:
    model = "timm/vit_tiny_patch16_224(img_size=64, patch_size=8, embed_dim=24, depth=4, num_heads=2)"
    plain, shrunk = costs(["linear", "ila(at=[0, 2])"], model, 5)
    assert plain.gmacs == plain.dense_gmacs < plain.paper_gmacs
    assert plain.trained == 5 * 24 + 5 + 24
    assert shrunk.gmacs < plain.gmacs
    assert (plain.tokens, shrunk.tokens) == (65, 17)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("linear", 17.566996), ("ila", 13.096210), ("ila(plus=1)", 13.114010), ("ila(plus=2)", 13.142481), ("adapter", 17.628725),
        ("convpass", 17.631449), ("vpt", 26.972923), ("vpt(deep=true)", 26.972846), ("vqt(length=5)", 17.948354),
    ],
)  # fmt: skip
def test_multiply_adds_are_those_of_torchprofile(spec: str, wanted: float) -> None:
    assert costs([spec])[0].paper_gmacs == pytest.approx(wanted, rel=1e-4)
