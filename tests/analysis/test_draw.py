"""Pictures: the right patches have the right look."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vitrim
from vitrim.analysis.draw import contact_sheet, draw_reduction, draw_stage, stage_sheet, tokens_left
from vitrim.core.tokenmap import TokenMap
from vitrim.core.trace import Trace
from vitrim.data.embedded import fashion
from vitrim.data.models import load_model

GRID = (2, 3)
SIZE = 240  # 80 pixels a patch


def image() -> np.ndarray:
    """Six patches of 4 x 4 pixels, each of its own colour."""
    colours = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[90, 90, 90], [30, 60, 90], [200, 100, 0]]], np.uint8)
    return np.repeat(np.repeat(colours, 4, axis=0), 4, axis=1)


def centres(drawn: np.ndarray) -> np.ndarray:
    """``(6, 3)``: the colour in the middle of each patch."""
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 3
    return drawn[height // 2 :: height, width // 2 :: width].reshape(-1, 3).astype(int)


def test_dropped_patches_fade() -> None:
    drawn = draw_stage(image(), TokenMap.select(torch.tensor([[0, 4]]), 6), GRID, size=SIZE)
    assert drawn.shape == (160, 240, 3)
    seen, plain = centres(drawn), image()[2::4, 2::4].reshape(-1, 3)
    assert np.array_equal(seen[[0, 4]], plain[[0, 4]])
    assert (seen[[1, 2, 3, 5]] > 210).all()


def test_merged_patches_share_their_mean() -> None:
    drawn = draw_stage(image(), TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, 3]]), 4), GRID, size=SIZE)
    seen, plain = centres(drawn), image()[2::4, 2::4].reshape(-1, 3).astype(int)
    assert seen[0].tolist() == seen[1].tolist() == [125, 125, 0]
    assert seen[2].tolist() == seen[3].tolist()
    assert np.array_equal(seen[4:], plain[4:])
    assert not np.array_equal(drawn[0, 0], drawn[40, 40])  # outlined


def test_fused_patches_are_tinted() -> None:
    drawn = draw_stage(image(), TokenMap.merge(torch.tensor([[2, 2, 0, 2, 1, 2]]), 3), GRID, size=SIZE)
    seen, plain = centres(drawn), image()[2::4, 2::4].reshape(-1, 3)
    assert np.array_equal(seen[[2, 4]], plain[[2, 4]])
    assert (seen[[0, 1, 3, 5], 0] > seen[[0, 1, 3, 5], 2]).all()


def test_soft_maps_are_drawn_by_their_heaviest_token() -> None:
    weight = torch.full((1, 2, 6), 0.1)
    weight[0, 0, :3] = weight[0, 1, 3:] = 0.9
    seen = centres(draw_stage(image(), TokenMap.soft(weight), GRID, size=SIZE))
    assert len(np.unique(seen[:3], axis=0)) == len(np.unique(seen[3:], axis=0)) == 1


def test_identity_is_the_image() -> None:
    drawn = draw_stage(image(), TokenMap.identity(1, 6), GRID, size=12)
    assert np.array_equal(drawn, image())


@pytest.mark.parametrize(
    ("picture", "grid", "message"),
    [(image(), (3, 3), "starts from 6"), (image().astype(float), GRID, "uint8"), (image()[None], GRID, "uint8")],
)
def test_wrong_input(picture: np.ndarray, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_stage(picture, TokenMap.identity(1, 6), grid)


def test_nothing_reduced() -> None:
    with pytest.raises(ValueError, match="nothing has been reduced"):
        tokens_left(Trace({}, 1))


def test_sheets_of_every_kind_of_method() -> None:
    loaded, data = load_model(), fashion(2)
    traces = []
    for method in ("topk", "evit", "tome", "ats", "patchmerger"):
        with vitrim.reduced(loaded.model, method) as reduction, torch.no_grad():
            loaded.model(data.images)
            traces.append((method, reduction.trace))
    pixels, grid = list(data.pixels), (14, 14)
    strip = draw_reduction(pixels[0], traces[0][1], grid, "topk", size=56)
    assert strip.size[0] > 4 * 56
    assert contact_sheet(pixels, traces, grid, size=56).size[1] > 6 * 56
    assert stage_sheet(pixels[1], traces, grid, sample=1, size=56).size[1] > 5 * 56
    assert tokens_left(traces[0][1], 3) == 98


def test_many_stages_are_thinned_out() -> None:
    loaded, data = load_model(), fashion(1)
    with vitrim.reduced(loaded.model, "tome", "r(n=13)") as reduction, torch.no_grad():
        loaded.model(data.images)
        few = draw_reduction(data.pixels[0], reduction.trace, (14, 14), size=28, stages=2)
        many = draw_reduction(data.pixels[0], reduction.trace, (14, 14), size=28, stages=12)
    assert few.size[0] < many.size[0]
