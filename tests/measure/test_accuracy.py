from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vitrim.measure.accuracy import agreement, batch_of, predict, top1


class Mean(nn.Module):
    """Logits that say how bright an image is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.sizes = []

    def forward(self, x):
        assert not self.training
        self.sizes.append(len(x))
        mean = x.mean(dim=(1, 2, 3)) * self.weight
        return torch.stack([mean, -mean], dim=1)


IMAGES = torch.randn(7, 1, 4, 4)


def test_batches_and_lists_give_the_same_logits_in_order():
    model = Mean().train()
    logits = predict(model, IMAGES, batch_size=3)
    assert model.sizes == [3, 3, 1]
    assert model.training
    assert logits.dtype == torch.float32
    assert torch.equal(logits, predict(model, list(IMAGES), batch_size=2))
    assert torch.equal(logits[:, 0].double(), IMAGES.double().mean(dim=(1, 2, 3)).float().double())


def test_images_take_the_type_of_the_model():
    assert batch_of(IMAGES, 0, 2, Mean()).dtype == torch.float64
    assert batch_of(list(IMAGES), 5, 4, nn.Identity()).shape == (2, 1, 4, 4)


def test_output_objects_with_logits_are_read():
    class Wrapped(Mean):
        def forward(self, x):
            return SimpleNamespace(logits=super().forward(x))

    assert torch.equal(predict(Wrapped(), IMAGES), predict(Mean(), IMAGES))


def test_top1_and_agreement():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert top1(logits, torch.tensor([0, 1, 1])) == 2 / 3
    assert agreement(logits, logits + 5) == 1.0
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        top1(logits, torch.tensor([0, 1]))


def test_nan_is_one_error_that_names_the_method():
    model = Mean()
    images = IMAGES.clone()
    images[3] = torch.nan
    with pytest.raises(FloatingPointError, match="the dense Mean gave NaN logits for 1 of 7 images"):
        predict(model, images)
    model.reduction = SimpleNamespace(method="tome(alpha=1)")
    with pytest.raises(FloatingPointError, match=r"method 'tome\(alpha=1\)' gave NaN"):
        predict(model, images)


def test_refusals():
    with pytest.raises(ValueError, match="no images"):
        predict(Mean(), IMAGES[:0])
    with pytest.raises(ValueError, match="with its classifier"):
        predict(nn.Identity(), IMAGES)
