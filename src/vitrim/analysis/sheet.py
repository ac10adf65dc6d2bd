"""Panels laid out on a page with names, captions and a colour bar, for print: boundaries and text stay vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from PIL import Image

from vitrim.analysis.boundary import Boundary

FORMATS = (".png", ".svg", ".pdf")
_INK, _SOFT_INK = "#191919", "#5c5c5c"
_TITLE, _NAME, _SMALL = 8.5, 7.5, 6.5  # font sizes in points
_GAP, _LINE = 5.0, 1.3  # between panels in points; of lines in font sizes
_BAR = (110.0, 6.0)  # of the colour bar in points
# Widths in points and colours: a dark line on a light one is seen on any picture.
_STROKES = (("fine", 0.3, "#ffffff90"), ("strong", 1.0, "#ffffffc0"), ("strong", 0.5, "#202020"))


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture on its patch grid.

    Attributes:
        pixels: ``(H, W, 3)`` uint8.
        grid: rows and columns of patches.
        lines: boundaries between tokens, or None.
        caption: below it.
    """

    pixels: npt.NDArray[np.uint8]
    grid: tuple[int, int] = (1, 1)
    lines: Boundary | None = None
    caption: str = ""


@dataclass(frozen=True)
class Key:
    """A colour bar.

    Attributes:
        colours: a colour map of matplotlib.
        ticks: texts, evenly spread from the lower end to the upper.
        label: what it shows.
    """

    colours: str
    ticks: Sequence[str]
    label: str


@dataclass(frozen=True)
class Row:
    """Panels beside each other.

    Attributes:
        name: at the left.
        panels: each draws itself for a longer side in pixels.
        notes: smaller lines below the name.
    """

    name: str
    panels: Sequence[Callable[[int], Panel]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Rows of panels.

    Attributes:
        rows: of the page.
        columns: texts over the columns.
        title: over everything.
        foot: below everything.
        key: a colour bar below the panels, or None.
        side: the longer side of a panel in points, 1/72 inch.
        dpi: dots per inch of pixel files, and of the pictures inside vector files.

    Raises:
        ValueError: without panels.
    """

    rows: Sequence[Row]
    columns: Sequence[str] = ()
    title: str = ""
    foot: str = ""
    key: Key | None = None
    side: float = 100.0
    dpi: int = 300

    def __post_init__(self) -> None:
        if not self.rows or not all(row.panels for row in self.rows):
            raise ValueError("no pictures to lay out")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return _Layout(self).size

    def image(self) -> Image.Image:
        """The page as pixels."""
        canvas: Any = FigureCanvasAgg(_Layout(self).figure())
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())

    def save(self, path: str | Path, dpi: int | None = None) -> None:
        """Write the page as PNG, SVG or PDF, by the ending of the path.

        Raises:
            ValueError: for another ending.
        """
        path, page = Path(path), self if dpi is None else replace(self, dpi=dpi)
        if path.suffix.lower() == ".png":
            page.image().save(path, dpi=(page.dpi, page.dpi), optimize=True)
            return
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"pictures are written as {', '.join(FORMATS)}; got '{path.name}'")
        # Text as text; pictures apart from each other; nothing that differs from one call to the next.
        options: Any = {"svg.fonttype": "none", "pdf.fonttype": 42, "image.composite_image": False, "svg.hashsalt": "vitrim"}
        dates = {"Date": None} if path.suffix.lower() == ".svg" else {"CreationDate": None}
        with rc_context(options):
            _Layout(page).figure().savefig(path, dpi=page.dpi, metadata=dates)


def sheet(rows: Sequence[tuple[str, Sequence[npt.NDArray[Any]]]], captions: Sequence[str] = (), *, title: str = "") -> Page:
    """A page of finished pictures, ``(H, W, 3)`` uint8: name and pictures of each row, captions over the columns."""
    return Page([Row(name, [_as_it_is(cell) for cell in cells]) for name, cells in rows], captions, title)


def text_width(text: str, size: float) -> float:
    """Width of a text in points."""
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0])


def wrap(text: str, size: float, width: float) -> list[str]:
    """Lines of a text that are no wider than ``width`` points, as far as words let them."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


class _Layout:
    """Where everything is on a page, in whole pixels."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.scale = page.dpi / 72
        side = self._pixels(page.side)
        self.rows = [[panel(side) for panel in row.panels] for row in page.rows]
        self.gap = self._pixels(_GAP)
        texts = [(row.name, _NAME) for row in page.rows] + [(note, _SMALL) for row in page.rows for note in row.notes]
        self.margin = max((self._width(text, size) + 2 * self.gap for text, size in texts if text), default=0)
        self.widths = [self._column(i) for i in range(max(map(len, self.rows)))]
        body = self.margin + sum(self.widths) + self.gap * (len(self.widths) + 1)
        key = 0 if page.key is None else self._key_width(page.key) + 2 * self.gap
        self.width = max(body, key)
        room = (self.width - 2 * self.gap) / self.scale
        self.title, self.foot = wrap(page.title, _TITLE, room), wrap(page.foot, _SMALL, room)
        words = [self._width(line, size) for lines, size in ((self.title, _TITLE), (self.foot, _SMALL)) for line in lines]
        self.width = max([self.width, *(word + 2 * self.gap for word in words)])
        self.top = self.gap + self._lines(len(self.title), _TITLE) + self._lines(bool(page.columns), _SMALL)
        self.top += self.gap // 2 if self.title else 0
        self.heights = [self._row_height(i) for i in range(len(self.rows))]
        self.bottom = self.top + sum(self.heights)
        self.height = self.bottom + self._key_height() + self._lines(len(self.foot), _SMALL) + self.gap

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def figure(self) -> Figure:
        """Everything in one set of axes, whose unit is a pixel."""
        page = self.page
        figure = Figure(figsize=(self.width / page.dpi, self.height / page.dpi), dpi=page.dpi, facecolor="white")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, self.width), ylim=(self.height, 0), autoscale_on=False)
        axes.set_axis_off()
        y = self._write(axes, self.gap, self.gap, self.title, _TITLE, _INK)
        if page.columns:
            for x, width, text in zip(self._lefts(), self.widths, page.columns, strict=False):
                self._write(axes, x + width / 2, self.top - self._lines(1, _SMALL), [text], _SMALL, _SOFT_INK, "center")
        strokes: dict[str, list[Any]] = {"fine": [], "strong": []}
        y = self.top
        for row, panels, height in zip(page.rows, self.rows, self.heights, strict=True):
            self._write_name(axes, row, y, max(panel.pixels.shape[0] for panel in panels))
            for x, width, panel in zip(self._lefts(), self.widths, panels, strict=False):
                self._place(axes, panel, x + (width - panel.pixels.shape[1]) // 2, y, strokes)
            y += height
        for kind, thick, colour in _STROKES:
            lines = LineCollection(strokes[kind], linewidths=thick, colors=colour, capstyle="projecting", zorder=3)
            axes.add_collection(lines, autolim=False)
        if page.key is not None:
            self._draw_key(axes, page.key, y)
        self._write(axes, self.gap, y + self._key_height(), self.foot, _SMALL, _SOFT_INK)
        return figure

    def _place(self, axes: Any, panel: Panel, x: int, y: int, strokes: dict[str, list[Any]]) -> None:
        height, width = panel.pixels.shape[:2]
        axes.imshow(panel.pixels, extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto", zorder=1)
        if panel.caption:
            self._write(axes, x + width / 2, y + height + self._pixels(1.5), [panel.caption], _SMALL, _SOFT_INK, "center")
        if panel.lines is None:
            return
        step = np.array([width / panel.grid[1], height / panel.grid[0]])
        # Lines end inside of the frame by half their width, so that nothing stands out.
        inset = self.scale * _STROKES[1][1] / 2
        for kind, lines in (("fine", panel.lines.fine), ("strong", panel.lines.strong)):
            ends = (lines * step).clip([inset, inset], [width - inset, height - inset])
            strokes[kind] += list(ends + np.array([x, y]))

    def _write(
        self, axes: Any, x: float, y: float, lines: Sequence[str], size: float, colour: str, align: str = "left"
    ) -> float:  # fmt: skip
        """Write lines from ``y`` down; where the next one would stand."""
        for line in lines:
            middle = y + self._pixels(size * _LINE) / 2
            axes.text(
                x, middle, line, fontsize=size, color=colour, ha=align, va="center_baseline", parse_math=False, zorder=4
            )  # fmt: skip
            y += self._pixels(size * _LINE)
        return y

    def _write_name(self, axes: Any, row: Row, y: float, height: int) -> None:
        total = self._lines(bool(row.name), _NAME) + self._lines(len(row.notes), _SMALL)
        y = self._write(axes, self.gap, y + (height - total) / 2, [row.name] if row.name else [], _NAME, _INK)
        self._write(axes, self.gap, y, row.notes, _SMALL, _SOFT_INK)

    def _draw_key(self, axes: Any, key: Key, y: float) -> None:
        width, height = (self._pixels(length) for length in _BAR)
        x, y = self.gap + self._pixels(text_width(key.ticks[0], _SMALL)) // 2, y + self.gap
        ramp = (np.asarray(colormaps[key.colours](np.linspace(0, 1, 256)))[None, :, :3] * 255).round().astype(np.uint8)
        axes.imshow(ramp, extent=(x, x + width, y + height, y), interpolation="nearest", aspect="auto", zorder=1)
        for i, tick in enumerate(key.ticks):
            self._write(axes, x + width * i / (len(key.ticks) - 1), y + height, [tick], _SMALL, _SOFT_INK, "center")
        left = x + width + self._pixels(text_width(key.ticks[-1], _SMALL)) // 2 + self.gap
        self._write(axes, left, y + height / 2 - self._lines(1, _SMALL) / 2, [key.label], _SMALL, _SOFT_INK)

    def _key_width(self, key: Key) -> int:
        ends = self._width(key.ticks[0], _SMALL) + self._width(key.ticks[-1], _SMALL)
        return self._pixels(_BAR[0]) + ends + self.gap + self._width(key.label, _SMALL)

    def _key_height(self) -> int:
        return 0 if self.page.key is None else 2 * self.gap + self._pixels(_BAR[1]) + self._lines(1, _SMALL)

    def _lefts(self) -> list[int]:
        x, found = self.margin + self.gap, list[int]()
        for width in self.widths:
            found.append(x)
            x += width + self.gap
        return found

    def _column(self, i: int) -> int:
        """As wide as the panels and their captions, so that no text meets another."""
        panels = [row[i] for row in self.rows if i < len(row)]
        header = self._width(self.page.columns[i], _SMALL) if i < len(self.page.columns) else 0
        captions = [self._width(panel.caption, _SMALL) for panel in panels]
        return max([header, *captions, *(panel.pixels.shape[1] for panel in panels)])

    def _row_height(self, i: int) -> int:
        """Panels with their captions, or the name beside them."""
        row, panels = self.page.rows[i], self.rows[i]
        caption = self._pixels(1.5) + self._lines(1, _SMALL) if any(panel.caption for panel in panels) else 0
        name = self._lines(bool(row.name), _NAME) + self._lines(len(row.notes), _SMALL)
        return max(max(panel.pixels.shape[0] for panel in panels) + caption, name) + self.gap

    def _lines(self, count: int, size: float) -> int:
        return count * self._pixels(size * _LINE)

    def _width(self, text: str, size: float) -> int:
        return self._pixels(text_width(text, size)) + 1 if text else 0

    def _pixels(self, points: float) -> int:
        return round(points * self.scale)


def _as_it_is(pixels: npt.NDArray[Any]) -> Callable[[int], Panel]:
    def draw(side: int) -> Panel:
        factor = side / max(pixels.shape[:2])
        height, width = (max(round(length * factor), 1) for length in pixels.shape[:2])
        way = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.BICUBIC
        return Panel(np.asarray(Image.fromarray(pixels).resize((width, height), way)))

    return draw
