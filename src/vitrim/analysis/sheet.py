"""Pictures laid out on a page, with names and captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK = (25, 25, 25)
_SOFT_INK = (105, 105, 105)
_GAP = 8


def sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    captions: Sequence[str] = (),
    *,
    title: str = "",
    titles_above: bool = False,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Lay pictures out in rows on white, with a name for each row and a caption for each column.

    Args:
        rows: name and pictures of each row; pictures of one column should have one width.
        captions: over the columns.
        title: over everything.
        titles_above: names stand over their row, not left of it.
        notes: a second, grey line under each row name; only beside rows.

    Raises:
        ValueError: without pictures.
    """
    if not rows or not all(cells for _, cells in rows):
        raise ValueError("no pictures to lay out")
    width = max(c.shape[1] for _, cells in rows for c in cells)
    text = max(13, min(22, width // 16))
    font, small = ImageFont.load_default(text), ImageFont.load_default(round(text * 0.86))
    margin = 0
    if not titles_above:
        texts = [(name, font) for name, _ in rows] + [(note, small) for note in notes]
        margin = max((round(f.getlength(t)) for t, f in texts if t), default=0) + 2 * _GAP
    line = round(text * 1.55)
    columns = max(len(cells) for _, cells in rows)
    top = (line + _GAP if title else 0) + (line if captions and not titles_above else 0) + _GAP
    above = titles_above * (line * any(name for name, _ in rows) + line * bool(captions))
    heights = [above + max(c.shape[0] for c in cells) + _GAP for _, cells in rows]
    page = Image.new("RGB", (margin + columns * (width + _GAP) + _GAP, top + sum(heights)), "white")
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((_GAP, _GAP), title, fill=_INK, font=font)
    x0, y = margin + _GAP, top
    if captions and not titles_above:
        _write_captions(pen, captions, x0, top - line, width, small)
    for i, (name, cells) in enumerate(rows):
        if titles_above:
            if name:
                pen.text((x0, y), name, fill=_INK, font=font)
            if captions:
                _write_captions(pen, captions, x0, y + above - line, width, small)
            y += above
        else:
            note = notes[i] if i < len(notes) else ""
            middle = y + cells[0].shape[0] // 2 - (line if note else line // 2)
            pen.text((_GAP, middle), name, fill=_INK, font=font)
            if note:
                pen.text((_GAP, middle + line), note, fill=_SOFT_INK, font=small)
        for j, cell in enumerate(cells):
            page.paste(Image.fromarray(cell), (x0 + j * (width + _GAP), y))
        y += heights[i] - above
    return page


def _write_captions(
    pen: ImageDraw.ImageDraw,
    captions: Sequence[str],
    x: int,
    y: int,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    for i, caption in enumerate(captions):
        pen.text((x + i * (width + _GAP), y), caption, fill=_SOFT_INK, font=font)
