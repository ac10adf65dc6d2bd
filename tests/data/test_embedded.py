"""The images that come with vitrim."""

import pytest
import torch

from vitrim.data.embedded import balanced, fashion


def test_all_images() -> None:
    data = fashion()
    assert data.images.shape == (2000, 1, 28, 28)
    assert data.images.dtype == torch.float32
    assert data.pixels.dtype.name == "uint8"
    assert len(data.classes) == 10
    back = (data.images * 0.3530 + 0.2860) * 255
    assert torch.equal(back.round().to(torch.uint8)[:, 0], torch.from_numpy(data.pixels))


@pytest.mark.parametrize("limit", [10, 25, 200])
def test_a_limit_is_balanced(limit: int) -> None:
    counts = torch.bincount(fashion(limit).labels, minlength=10)
    assert counts.sum() == limit
    assert counts.max() - counts.min() <= 1


def test_balanced_keeps_the_order() -> None:
    assert balanced([0, 0, 0, 1, 1, 2], 4) == [0, 1, 3, 5]


def test_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        fashion(0)
