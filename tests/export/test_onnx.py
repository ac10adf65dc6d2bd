"""ONNX files give PyTorch's logits, for every method."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitrim
from tests.export.models import images, short_model
from vitrim.export.onnx import OnnxModel, export_onnx, require_onnx

SETTINGS = ["atc(linkage=single)", "dpcknn(equal_weight=True)", "tome(proportional=False, metric=tokens)", "ats(compat=official)"]
SETTINGS += ["kmedoids(equal_weight=True)", "fixed(pattern=l2, contiguous=False)"]
QUICK = [None, *vitrim.list_methods()]
every = [*QUICK, *(pytest.param(m, marks=pytest.mark.heavy) for m in SETTINGS)]


# Where two candidates are a rounding error apart, another order of summation takes the other one: this early in the network,
# in one image of 200 for each of these methods.
FLIPS = {"dpcknn": 1, "ats": 1}


def matches(model: nn.Module, path: Path, x: Tensor, flips: int = 0) -> None:
    with torch.no_grad():
        difference = (OnnxModel(path)(x) - model(x)).abs().amax(dim=1)
    assert (difference > 1e-4).sum() <= flips, difference


@pytest.mark.parametrize("method", every)
def test_logits(method: str | None, tmp_path: Path) -> None:
    model = short_model(method)
    export_onnx(model, images(), tmp_path / "model.onnx")
    matches(model, tmp_path / "model.onnx", images(), FLIPS.get(str(method).split("(")[0], 0))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m == "atc" else pytest.mark.heavy) for m in QUICK])
def test_any_batch_size(method: str | None, tmp_path: Path) -> None:
    model = short_model(method)
    export_onnx(model, images()[:1], tmp_path / "model.onnx", dynamic_batch=True)
    for count in (1, 3, 10):
        matches(model, tmp_path / "model.onnx", images()[:count], FLIPS.get(str(method), 0))


@pytest.mark.heavy
@pytest.mark.parametrize("opset", [18, 22])
def test_opset(opset: int, tmp_path: Path) -> None:
    import onnx

    model = short_model("tome")
    export_onnx(model, images(), tmp_path / "model.onnx", opset=opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset
    matches(model, tmp_path / "model.onnx", images())


def test_the_model_is_left_alone(tmp_path: Path) -> None:
    model = short_model("topk")
    with torch.no_grad():
        before = model(images())
        export_onnx(model, images(), tmp_path / "model.onnx")
        assert model.reduction.trace[1].map.group.tolist()  # real numbers, not those of the tracer
        assert torch.equal(model(images()), before)


class Lambda(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def run(function: Any, x: Tensor, path: Path, **options: Any) -> Tensor:
    export_onnx(Lambda(function).eval(), x, path, **options)
    return OnnxModel(path)(x)


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_is_stable(descending: bool, tmp_path: Path) -> None:
    x = torch.randint(3, (2, 50), generator=torch.Generator().manual_seed(0)).float()

    def order(x: Tensor) -> Tensor:
        return x.argsort(dim=1, descending=descending, stable=True)

    assert torch.equal(run(order, x, tmp_path / "a.onnx"), order(x))


@pytest.mark.parametrize("samples", [50, 99, 197])
def test_ranges_of_floats_have_pytorchs_length(samples: int, tmp_path: Path) -> None:
    half = 1.0 / (2 * samples)

    def steps(x: Tensor) -> Tensor:
        return x[:, :1] + torch.arange(half, (2 * samples - 1) * half, 2 * half, dtype=torch.float32)

    x = torch.zeros(2, 3)
    assert torch.equal(run(steps, x, tmp_path / "a.onnx"), steps(x))


def test_double_precision_stays(tmp_path: Path) -> None:
    """The random numbers of a reduction are digits of large sines."""

    def digits(x: Tensor) -> Tensor:
        return x + torch.frac(torch.sin(torch.arange(1, 7, dtype=torch.float64) * 12.9898) * 43758.5453).float()

    x = torch.zeros(6)
    torch.testing.assert_close(run(digits, x, tmp_path / "a.onnx"), digits(x))


def test_searchsorted(tmp_path: Path) -> None:
    x = torch.tensor([3.0, 0.0, 7.0, 8.0])

    def place(x: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor([0.0, 3.0, 3.0, 7.0]), x)

    assert run(place, x, tmp_path / "a.onnx").tolist() == [1, 0, 3, 4] == place(x).tolist()


def test_an_operator_that_onnx_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no counterpart of the operator aten\.median\S*; write a PyTorch program") as caught:
        run(lambda x: x.median(dim=1).values, torch.zeros(2, 3), tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opset", [17, 23])
def test_opset_out_of_range(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"opset must be 18 to 22, got {opset}"):
        run(torch.abs, torch.zeros(2, 3), tmp_path / "a.onnx", opset=opset)


def test_training_mode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        export_onnx(short_model("topk").train(), images(), tmp_path / "model.onnx")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ImportError, match=r"ONNX needs onnxscript; .* pip install vitrim\[export\]"):
        require_onnx()


def test_the_rest_works_without_onnx() -> None:
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnxscript', 'onnxruntime'): sys.modules[name] = None\n"
        "import vitrim.export.onnx, vitrim.export.program, vitrim.cli.export"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
