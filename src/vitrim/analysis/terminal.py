"""Panels in a terminal: two pixels in each character, as half blocks in 24-bit colour."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from vitrim.analysis.sheet import Page, Panel

_GAP = 2


def shows_pictures(out: TextIO = sys.stdout, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal that says it has 24-bit colour (``COLORTERM``) and block characters."""
    unicode = (getattr(out, "encoding", None) or "").lower().replace("-", "") == "utf8"
    plain = environment.get("TERM") == "dumb" or bool(environment.get("NO_COLOR"))
    return out.isatty() and unicode and not plain and environment.get("COLORTERM", "") in ("truecolor", "24bit")


def in_terminal(page: Page, width: int) -> str:
    """A page as text of ``width`` characters: as many panels beside each other as have at least two pixels for each patch."""
    lines = [page.title] if page.title else []
    for row in page.rows:
        if row.name:
            lines.append(" ".join([row.name, *row.notes]))
        few = [panel(1) for panel in row.panels]  # for their grids
        room = max(2 * panel.grid[1] for panel in few)
        beside = max(1, min(len(few), (width + _GAP) // (room + _GAP)))
        side = min((width + _GAP) // beside - _GAP, 64)
        drawn = [_fitted(panel, side) for panel in row.panels]
        for i in range(0, len(drawn), beside):
            lines += _beside(drawn[i : i + beside])
    return "\n".join([*lines, page.foot] if page.foot else lines)


def _fitted(panel: Any, side: int) -> Panel:
    """The panel no wider than ``side`` pixels, with its boundaries where a patch has enough of them."""
    drawn: Panel = panel(side)
    if drawn.pixels.shape[1] > side:
        drawn = panel(max(side - drawn.grid[1], 1))
    rows, columns = drawn.grid
    height, width = drawn.pixels.shape[0] // rows, drawn.pixels.shape[1] // columns
    if drawn.lines is None or min(height, width) < 4:
        return drawn
    pixels = drawn.pixels.copy()
    for (x0, y0), (x1, y1) in (drawn.lines.strong * [width, height]).astype(int):
        pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 255
    return Panel(pixels, drawn.grid, None, drawn.caption)


def _beside(panels: list[Panel]) -> list[str]:
    """Panels beside each other, captions below."""
    blocks = [half_blocks(panel.pixels) for panel in panels]
    widths = [max(panel.pixels.shape[1], len(panel.caption)) for panel in panels]
    lines: list[str] = []
    for i in range(max(map(len, blocks))):
        cells: list[str] = []
        for panel, block, width in zip(panels, blocks, widths, strict=True):
            there = i < len(block)
            cells.append((block[i] if there else "") + " " * (width - (panel.pixels.shape[1] if there else 0)))
        lines.append((" " * _GAP).join(cells))
    captions = (" " * _GAP).join(panel.caption.ljust(width) for panel, width in zip(panels, widths, strict=True))
    return [*lines, captions.rstrip(), ""]


def half_blocks(pixels: npt.NDArray[np.uint8]) -> list[str]:
    """``(H, W, 3)`` uint8 as lines of W characters for two rows of pixels each; every line ends in the normal colours."""
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines: list[str] = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        line, before = "", None
        for top, bottom in zip(upper, lower, strict=True):
            if (top, bottom) != before:
                line += "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*top, *bottom)
                before = (top, bottom)
            line += "\u2580"
        lines.append(f"{line}\x1b[0m")
    return lines
