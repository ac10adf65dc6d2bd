"""A trained ViT of another geometry (64 patches, 6 blocks) on natural colour photographs of leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import vitrim
from tests.outside.places import data
from vitrim.data.images import load_folder
from vitrim.data.models import LoadedModel, load_model
from vitrim.measure.accuracy import predict, top1


@pytest.fixture(scope="module")
def leaves() -> tuple[LoadedModel, Tensor, Tensor]:
    folder = data("plantvillage15")
    loaded = load_model("vit", folder / "vit_p4_32.safetensors")
    with np.load(folder / "images_32.npz", allow_pickle=False) as file:
        test = file["split"] == "test"
        pixels, labels = file["images"][test], torch.from_numpy(file["labels"][test])
    mean, std = torch.tensor(loaded.mean), torch.tensor(loaded.std)
    images = (torch.from_numpy(pixels).float() / 255 - mean) / std
    return loaded, images.permute(0, 3, 1, 2).contiguous(), labels


def test_the_dense_model_reaches_its_accuracy(leaves: tuple[LoadedModel, Tensor, Tensor]) -> None:
    loaded, images, labels = leaves
    assert top1(predict(loaded.model, images), labels) == pytest.approx(0.891, abs=0.003)


@pytest.mark.parametrize(("method", "at_least"), [("tome", 0.85), ("atc", 0.85), ("ats", 0.80), ("kmedoids", 0.75)])
def test_training_free_methods_keep_most_of_it(leaves: tuple[LoadedModel, Tensor, Tensor], method: str, at_least: float) -> None:
    loaded, images, labels = leaves
    with vitrim.reduced(loaded.model, method, "keep(rate=0.7, at=[1, 3, 4])"):
        assert top1(predict(loaded.model, images), labels) > at_least


@pytest.mark.parametrize("name", ["plantvillage15", "sign_digits"])
def test_images_read_from_the_archive(name: str) -> None:
    loaded = load_model("timm/vit_tiny_patch16_224(img_size=32, patch_size=8)", random_weights=True)
    found = load_folder(data(name), loaded.transform, limit=30, split="test")
    assert found.images.shape == (30, 3, 32, 32)
    assert found.skipped == []
