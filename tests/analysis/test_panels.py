import numpy as np
import pytest
import torch
from matplotlib import colormaps

from vitrim.analysis.panels import overlay, panels

IMAGE = np.full((32, 32, 3), 100, dtype=np.uint8)


def test_a_mask_is_scaled_coloured_and_blended():
    mask = torch.zeros(4, 4)
    mask[0, 0] = 0.3  # the largest, so that it is the top of the colour map
    found = overlay(IMAGE, mask, colours="jet")
    top, low = (np.array(colormaps["jet"](v))[:3] * 255 for v in (1.0, 0.0))
    assert np.allclose(found[0, 0], 50 + top / 2, atol=1)
    assert np.allclose(found[-1, -1], 50 + low / 2, atol=1)


def test_nothing_wraps_around():
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    found = overlay(white, torch.eye(4), colours="magma")
    assert found.min() >= 127


def test_a_constant_mask_and_none():
    assert len(np.unique(overlay(IMAGE, torch.ones(4, 4)).reshape(-1, 3), axis=0)) == 1
    assert overlay(IMAGE, None) is IMAGE


def test_the_power_leaves_the_peak_alone():
    mask = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    plain, sharp = overlay(IMAGE, mask, colours="gray"), overlay(IMAGE, mask, colours="gray", power=4)
    assert sharp.mean() < plain.mean()


def test_wrong_colours_and_values():
    with pytest.raises(ValueError, match="no colour map 'rainbowish'"):
        overlay(IMAGE, None, colours="rainbowish")
    with pytest.raises(ValueError, match="not numbers"):
        overlay(IMAGE, torch.full((2, 2), torch.nan))


def test_a_sheet_has_a_row_for_each_mode():
    one = panels([IMAGE, IMAGE], {"none": None})
    two = panels([IMAGE, IMAGE], {"none": None, "gls": torch.rand(2, 4, 4)}, captions=["a", "b"])
    assert two.size[1] > 1.8 * one.size[1]
    assert two.size[0] >= 2 * 160
