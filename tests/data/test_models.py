"""Loading models: what fits, and what a wrong file or name is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import VisionTransformer
from torch import Tensor

from vitrim.core.registry import SpecError
from vitrim.data import hub
from vitrim.data.embedded import fashion
from vitrim.data.models import load_model

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 3}


def tiny_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(VisionTransformer(**TINY).state_dict())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_state(), path)
    return path


def test_fashion_is_right_about_its_images() -> None:
    loaded, data = load_model(), fashion(100)
    with torch.no_grad():
        right = (loaded.model(data.images).argmax(1) == data.labels).float().mean()
    assert right > 0.7
    assert not loaded.model.training
    assert loaded.classes == data.classes


def test_transform_and_unnormalise_are_inverse() -> None:
    loaded, data = load_model(), fashion(1)
    x = loaded.transform(Image.fromarray(data.pixels[0]))
    assert torch.allclose(x, data.images[0])
    picture = loaded.unnormalise(x)
    assert picture.shape == (28, 28, 3)
    assert np.array_equal(picture[..., 0], data.pixels[0])


def test_geometry_comes_from_the_weights(tiny: Path) -> None:
    loaded = load_model("vit", tiny)
    assert loaded.input_size == (3, 16, 16)
    assert len(loaded.model.blocks) == 2  # type: ignore[arg-type]
    x = loaded.transform(Image.new("RGBA", (40, 30), "red"))
    assert x.shape == (3, 16, 16)
    assert loaded.model(x[None]).shape == (1, 3)


def test_metadata_names_classes_and_norms(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(tiny_state(), path, {"classes": json.dumps(["a", "b", "c"]), "mean": "[0.5, 0.5, 0.5]"})
    loaded = load_model("vit(std=0.25)", path)
    assert loaded.classes == ["a", "b", "c"]
    assert loaded.mean == (0.5, 0.5, 0.5)
    assert loaded.std == (0.25, 0.25, 0.25)


def test_learned_reductions_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({**tiny_state(), "reduction.stages.0.a": torch.ones(2)}, path)
    assert list(load_model("vit", path).reduction) == ["stages.0.a"]


def test_timm_takes_sizes_that_are_not_square() -> None:
    loaded = load_model("timm/deit_tiny_patch16_224(img_size=[32, 48], depth=1, pretrained=false)")
    assert loaded.input_size == (3, 32, 48)
    assert loaded.random
    assert loaded.transform(Image.new("L", (100, 90))).shape == (3, 32, 48)
    assert loaded.class_index["n01440764"] == 0


def test_number_of_classes_comes_from_the_head(tmp_path: Path) -> None:
    spec = "timm/deit_tiny_patch16_224(img_size=32, depth=1)"
    model = load_model(spec, random_weights=True, num_classes=7).model
    save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    assert load_model(spec, tmp_path / "w.safetensors").model.num_classes == 7
    with pytest.raises(ValueError, match="head is for 7 classes"):
        load_model(spec, tmp_path / "w.safetensors", num_classes=9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "it is fashion, timm/NAME"),
        ("deit_tiny_patch16_224", "did you mean 'timm/deit_tiny_patch16_224'"),
        ("timm/deit_tny_patch16_224", "did you mean timm/deit_tiny_patch16_224"),
        ("timm/deit_tiny_patch16_224(bogus=1, pretrained=false)", "bogus"),
        ("timm/deit_tiny_patch16_224(224)", "settings by name"),
        ("", "cannot read model"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_model(name)
    assert message in str(caught.value)


def test_vit_needs_weights() -> None:
    with pytest.raises(ValueError, match="give --weights FILE"):
        load_model("vit")


def test_no_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere(*_: object) -> None:
        raise OSError(-2, "Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub.socket, "getaddrinfo", nowhere)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ValueError, match=r"cannot be reached .*pass --weights FILE, or use --random-weights"):
        load_model("timm/deit_tiny_patch16_224")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    torch.save({"model": tiny_state()}, path)
    with pytest.raises(ValueError, match="weights_only=True"):
        load_model("fashion", path)


def test_weights_of_another_model(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"does not fit fashion: .* missing .* of another shape .* vit, which reads"):
        load_model("fashion", tiny)


def test_keys_with_a_prefix(tmp_path: Path) -> None:
    save_file({f"module.{k}": v for k, v in load_model().model.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"start with 'module\.': strip that"):
        load_model("fashion", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("vit(img_size=32)", "give vit(img_size=16)"), ("vit(in_chans=1)", "give vit(in_chans=3)")],
)
def test_misfits_name_the_setting(tiny: Path, name: str, remedy: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_model(name, tiny)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    state = tiny_state()
    state["norm.bias"][0] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"'norm\.bias' .* NaN"):
        load_model("vit", tmp_path / "w.safetensors")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"no tensors in here")
    with pytest.raises(ValueError, match="no readable safetensors"):
        load_model("fashion", path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model("fashion", tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_model("fashion", tmp_path)
