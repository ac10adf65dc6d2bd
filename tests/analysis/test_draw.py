"""Pictures: the right patches have the right look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrim
from vitrim.analysis.boundary import boundary
from vitrim.analysis.draw import contact_sheet, draw_reduction, rate_strip, soft_sheet, soft_tokens, stage_sheet
from vitrim.analysis.paint import heat, plain, tokens
from vitrim.analysis.sheet import Page, Row, text_width
from vitrim.analysis.terminal import half_blocks, in_terminal, shows_pictures
from vitrim.analysis.view import table, token_sizes, view, views
from vitrim.core.tokenmap import TokenMap
from vitrim.core.trace import Step, Trace
from vitrim.data.embedded import fashion
from vitrim.data.models import load_model

GRID = (2, 3)
SIDE = 240  # 80 pixels a patch


def image() -> np.ndarray:
    """Six patches of 4 x 4 pixels, each of its own colour."""
    colours = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[90, 90, 90], [30, 60, 90], [200, 100, 0]]], np.uint8)
    return np.repeat(np.repeat(colours, 4, axis=0), 4, axis=1)


def draw(map: TokenMap) -> np.ndarray:
    return tokens(image(), view(map, GRID))(SIDE).pixels


def centres(drawn: np.ndarray) -> np.ndarray:
    """``(6, 3)``: the colour in the middle of each patch."""
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 3
    return drawn[height // 2 :: height, width // 2 :: width].reshape(-1, 3).astype(int)


def pairs(lines: np.ndarray) -> set[tuple[tuple[int, ...], ...]]:
    return {tuple(tuple(int(x) for x in end) for end in line) for line in lines}


def test_dropped_patches_fade() -> None:
    drawn = draw(TokenMap.select(torch.tensor([[0, 4]]), 6))
    assert drawn.shape == (160, 240, 3)
    seen, plain = centres(drawn), image()[2::4, 2::4].reshape(-1, 3)
    assert np.array_equal(seen[[0, 4]], plain[[0, 4]])
    assert (seen[[1, 2, 3, 5]] > 210).all()


def test_merged_patches_share_their_mean() -> None:
    seen, plain = centres(draw(TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, 3]]), 4))), image()[2::4, 2::4].reshape(-1, 3)
    assert seen[0].tolist() == seen[1].tolist() == [125, 125, 0]
    assert seen[2].tolist() == seen[3].tolist()
    assert np.array_equal(seen[4:], plain[4:])


def test_fused_patches_are_tinted() -> None:
    seen = centres(draw(TokenMap.merge(torch.tensor([[2, 2, 0, 2, 1, 2]]), 3)))
    assert np.array_equal(seen[[2, 4]], image()[2::4, 2::4].reshape(-1, 3)[[2, 4]])
    assert (seen[[0, 1, 3, 5], 0] > seen[[0, 1, 3, 5], 2]).all()


def test_soft_maps_are_drawn_by_their_heaviest_token_and_fade_where_nothing_passes() -> None:
    weight = torch.full((1, 2, 6), 0.1)
    weight[0, 0, :3] = weight[0, 1, 3:] = 0.9
    weight[0, :, 5] = 0
    found = view(TokenMap.soft(weight), GRID)
    assert found.group.tolist() == [0, 0, 0, 1, 1, -1]
    assert [(token, round(mass, 2)) for token, mass, _ in soft_tokens(found, 1)] == [(0, 2.9)]
    assert soft_tokens(found, 2)[1][2].sum() == pytest.approx(1)


def test_boundaries_lie_between_patches_of_different_tokens() -> None:
    found = boundary(view(TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, 3]]), 4), GRID))
    # Patches: 0 0 1 / 1 2 3; around tokens of two patches strong, between single ones fine; straight runs are one line.
    assert pairs(found.strong) == {((0, 1), (3, 1)), ((2, 0), (2, 1)), ((1, 1), (1, 2))}
    assert pairs(found.fine) == {((2, 1), (2, 2))}


def test_pruning_has_boundaries_around_what_is_kept_alone() -> None:
    found = boundary(view(TokenMap.select(torch.tensor([[0, 1]]), 6), GRID))
    assert pairs(found.strong) == {((0, 1), (2, 1)), ((2, 0), (2, 1))}
    assert not len(found.fine)


def test_sizes_and_table() -> None:
    assert token_sizes(np.array([[0, 0, 1, -1], [2, 2, 2, 2]])).tolist() == [[2, 2, 1, 0], [4, 4, 4, 4]]
    found = table([view(TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, -1]]), 3), GRID, block=7)], method="x")
    assert found["method"] == ["x"] * 6
    assert found["token"] == [0, 0, 1, 1, 2, -1]
    assert found["token_patches"] == [2, 2, 2, 2, 1, 0]
    assert (found["row"][4], found["column"][4], found["block"][4], found["tokens_left"][4]) == (1, 1, 7, 3)


@pytest.mark.parametrize(
    ("picture", "grid", "message"),
    [(image(), (3, 3), "starts from 6"), (image().astype(float), GRID, "uint8"), (image()[None], GRID, "uint8")],
)
def test_wrong_input(picture: np.ndarray, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokens(picture, view(TokenMap.identity(1, 6), grid))(12)


def test_nothing_reduced() -> None:
    with pytest.raises(ValueError, match="nothing has been reduced"):
        draw_reduction(image(), Trace({}, 1), GRID)


def test_a_cache_has_tokens_that_stand_for_no_patch() -> None:
    step = TokenMap.select(torch.tensor([[1, 3]]), 6).with_prefix(1)
    found = views(Trace({2: Step(step, torch.ones(1, 3))}, 1, {2: 4}), GRID)[0]
    assert found.tokens == 6
    assert (found.group >= 0).sum() == 2


def test_a_page_is_as_large_as_it_says_and_holds_its_pixels(tmp_path: Path) -> None:
    page = Page([Row("a name", [plain(image(), GRID, "a caption that is wider than its panel")], ["a note"])], title="x", side=24)
    drawn = np.asarray(page.image())
    assert drawn.shape == (*page.size[::-1], 3)
    assert page.size[0] > text_width("a caption that is wider than its panel", 6.5) * 300 / 72
    panel = plain(image(), GRID)(100).pixels
    windows = np.lib.stride_tricks.sliding_window_view(drawn[..., 0].astype(int), panel.shape[:2])[:, :, ::11, ::11]
    assert (windows == panel[::11, ::11, 0]).all(axis=(2, 3)).any()  # pixel for pixel
    page.save(tmp_path / "x.png", dpi=150)
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.size == tuple(pytest.approx(length / 2, abs=3) for length in page.size)


def test_vector_files_have_lines_and_text(tmp_path: Path) -> None:
    found = view(TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, 3]]), 4), GRID)
    page = Page([Row("tome", [plain(image(), GRID), tokens(image(), found, "4 tokens")])], dpi=72)
    for name in ("x.svg", "y.svg", "x.pdf"):
        page.save(tmp_path / name)
    text = (tmp_path / "x.svg").read_text()
    assert text == (tmp_path / "y.svg").read_text()
    assert ">4 tokens</text>" in text
    assert text.count("<image") == 2
    assert text.count('id="LineCollection') == 3
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"written as \.png"):
        page.save(tmp_path / "x.bmp")


def test_heat_maps_use_the_whole_range_and_known_colours() -> None:
    drawn = centres(heat(np.array([0, 1, 2, 3, 4, 9.0]), GRID, (0, 9), "gray")(SIDE).pixels)
    assert drawn[0].tolist() == [0, 0, 0]
    assert drawn[5].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="no colour map 'rainbowish'"):
        heat(np.zeros(6), GRID, (0, 1), "rainbowish")


def test_sheets_of_every_kind_of_method() -> None:
    loaded, data = load_model(), fashion(2)
    traces = []
    for method in ("topk", "evit", "tome", "ats", "patchmerger"):
        with vitrim.reduced(loaded.model, method) as reduction, torch.no_grad():
            loaded.model(data.images)
            traces.append((method, reduction.trace))
    pixels, grid = list(data.pixels), (14, 14)
    assert [views(trace, grid)[0].kind for _, trace in traces] == ["prune", "fuse", "merge", "prune", "merge"]
    few, many = (draw_reduction(pixels[0], traces[0][1], grid, "topk", side=40, stages=n) for n in (1, 3))
    assert few.size[0] < many.size[0]
    assert contact_sheet(pixels, traces, grid, size=56).size[1] > 6 * 56
    assert stage_sheet(pixels[1], traces, grid, sample=1, size=56).size[1] > 5 * 56
    assert views(traces[0][1], grid)[0].tokens == 98
    last = views(traces[2][1], grid)[-1]
    assert len(rate_strip([("tome", pixels[0], {"a": last, "b": last})]).rows[0].panels) == 3
    assert len(soft_sheet(pixels[0], views(traces[4][1], grid), strongest=2).rows) == 3
    with pytest.raises(ValueError, match="no soft maps"):
        soft_sheet(pixels[0], [last])


class Terminal:
    encoding = "UTF-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "there"),
    [({"COLORTERM": "truecolor"}, True), ({}, False), ({"COLORTERM": "24bit", "NO_COLOR": "1"}, False),
     ({"COLORTERM": "24bit", "TERM": "dumb"}, False)],
)  # fmt: skip
def test_terminals_with_colours(environment: dict[str, str], there: bool) -> None:
    assert shows_pictures(Terminal(), environment) is there  # type: ignore[arg-type]


def test_half_blocks_have_two_pixels_in_each_character() -> None:
    pixels = np.array([[[1, 2, 3], [1, 2, 3]], [[4, 5, 6], [7, 8, 9]]], np.uint8)
    cell = "\x1b[38;2;1;2;3;48;2;{}m\u2580"
    assert half_blocks(pixels) == [cell.format("4;5;6") + cell.format("7;8;9") + "\x1b[0m"]


def test_a_page_in_a_terminal_is_no_wider() -> None:
    found = view(TokenMap.merge(torch.tensor([[0, 0, 1, 1, 2, 3]]), 4), GRID)
    text = in_terminal(Page([Row("", [tokens(image(), found, "4 tokens")] * 5)], title="tome"), 40)
    widths = [line.count("\u2580") for line in text.splitlines()]
    assert 6 <= max(widths) <= 40
    assert text.startswith("tome\n")
    assert text.count("4 tokens") == 5
