"""Pictures of a reduction: which patches left the image, and which were merged with which."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitrim.core.tokenmap import TokenMap
from vitrim.core.trace import Trace

Style = Literal["auto", "prune", "merge", "fuse"]

_WHITE = np.array([255.0, 255.0, 255.0])
_FUSED = np.array([230.0, 159.0, 0.0])  # orange of Okabe and Ito: told apart from white and from photographs
_INK = (25, 25, 25)
_SOFT_INK = (105, 105, 105)
_GAP = 8


@dataclass(frozen=True)
class _Canvas:
    """An image enlarged so that patches are visible, and its patch grid."""

    pixels: np.ndarray
    grid: tuple[int, int]

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.pixels.shape[0] // self.grid[0], self.pixels.shape[1] // self.grid[1]

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value per patch, to one per pixel."""
        height, width = self.cell
        return np.repeat(np.repeat(values.reshape(self.grid + values.shape[1:]), height, axis=0), width, axis=1)


def draw_stage(
    image: np.ndarray, map: TokenMap, grid: tuple[int, int], *, style: Style = "auto", sample: int = 0, size: int = 448
) -> np.ndarray:
    """Draw what the tokens after a stage stand for.

    Dropped patches fade to white. In ``merge`` style every token of several patches is filled with their mean colour and
    outlined, in one colour for all parts of it; tokens of one patch keep the image. In ``fuse`` style (EViT) the patches that
    were fused are tinted orange. Soft maps are drawn by the token that takes most of each patch.

    Args:
        image: ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` uint8, as the model sees it.
        map: from the patches to the tokens, without prefix: ``trace.patches(layer)``.
        grid: rows and columns of patches.
        style: ``auto`` decides from the map.
        sample: which image of the batch.
        size: the longer side of the picture in pixels, reached in whole steps; small images are enlarged.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        ValueError: when the map is not over ``grid`` patches, or the image is none.
    """
    if map.n != grid[0] * grid[1]:
        raise ValueError(f"the map starts from {map.n} patches, the grid has {grid[0]} x {grid[1]}; pass trace.patches(layer)")
    if not 0 <= sample < map.batch:
        raise ValueError(f"sample {sample} is not in the batch of {map.batch}")
    canvas = _enlarge(image, grid, size)
    group = map.assignment()[sample].cpu().numpy()
    members = np.bincount(group[group >= 0], minlength=map.m)
    multiple = (group >= 0) & (members[group] > 1)
    if style == "auto":
        style = _style_of(members, map.is_soft)
    pixels = canvas.pixels.astype(np.float64)
    if style == "merge":
        pixels = _fill_with_means(pixels, canvas, group)
    elif style == "fuse":
        pixels = _fade(pixels, canvas.spread(multiple), _FUSED, 0.72)
    pixels = _fade(pixels, canvas.spread(group < 0), _WHITE, 0.88)
    drawn = pixels.round().astype(np.uint8)
    if style == "merge":
        _outline(drawn, canvas, group, multiple)
    else:
        _edge(drawn, canvas, (group >= 0) & ~(multiple & (style == "fuse")))
    return drawn


def draw_reduction(
    image: np.ndarray,
    trace: Trace,
    grid: tuple[int, int],
    title: str = "",
    *,
    sample: int = 0,
    size: int = 336,
    stages: int = 5,
) -> Image.Image:
    """Draw a strip: the input, then the image after each stage, with token counts.

    Args:
        image: as for :func:`draw_stage`.
        trace: ``reduction.trace`` after a forward pass.
        grid: rows and columns of patches.
        title: line over the strip.
        sample: which image of the batch.
        size: the longer side of each picture in pixels.
        stages: at most this many stages, evenly chosen, the last one always.

    Raises:
        ValueError: when nothing has been reduced yet.
    """
    cells, captions = [_enlarge(image, grid, size).pixels], [f"input: {grid[0] * grid[1]} tokens"]
    for layer in chosen_stages(trace, stages):
        cells.append(stage_picture(image, trace, grid, layer, sample=sample, size=size))
        captions.append(f"block {layer}: {tokens_left(trace, layer, sample)} tokens")
    return sheet([(title, cells)], captions, titles_above=True)


def stage_picture(
    image: np.ndarray, trace: Trace, grid: tuple[int, int], layer: int | None = None, *, sample: int = 0, size: int = 336
) -> np.ndarray:
    """The image after block ``layer`` (the last stage when None), in the style of the whole reduction.

    Raises:
        ValueError: when nothing has been reduced by then.
    """
    map = trace.patches(layer)
    if map is None:
        raise ValueError("nothing has been reduced yet; run the model on the image first, and choose a block that reduces")
    return draw_stage(image, map, grid, style=_style_of_trace(trace, sample), sample=sample, size=size)


def chosen_stages(trace: Trace, most: int) -> list[int]:
    """At most ``most`` of the reducing blocks, evenly spread, the last one always."""
    layers = list(trace)
    if len(layers) <= most:
        return layers
    return [layers[round((i + 1) * len(layers) / most) - 1] for i in range(most)]


def tokens_left(trace: Trace, layer: int | None = None, sample: int = 0) -> int:
    """Patch tokens of one image after block ``layer``, padding not counted."""
    map = trace.patches(layer)
    if map is None:
        raise ValueError("nothing has been reduced yet; run the model first")
    return map.m if map.valid is None else int(map.valid[sample].sum())


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


def contact_sheet(
    images: Sequence[np.ndarray], traces: Sequence[tuple[str, Trace]], grid: tuple[int, int], *, title: str = "", size: int = 224
) -> Image.Image:
    """What each method leaves of a few images: methods in rows, images in columns, after the last stage.

    Args:
        images: the images of the batch that all ``traces`` come from, in its order.
        traces: name and trace of each method.
        grid: rows and columns of patches.
        title: over everything.
        size: the longer side of each picture in pixels.
    """
    rows = [("input", [_enlarge(image, grid, size).pixels for image in images])]
    notes = [f"{grid[0] * grid[1]} tokens"]
    for name, trace in traces:
        rows.append((name, [stage_picture(image, trace, grid, sample=i, size=size) for i, image in enumerate(images)]))
        left = sorted({tokens_left(trace, sample=i) for i in range(len(images))})
        notes.append(f"{left[0]} tokens" if len(left) == 1 else f"{left[0]} to {left[-1]} tokens")
    return sheet(rows, title=title, notes=notes)


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


def _enlarge(image: np.ndarray, grid: tuple[int, int], size: int) -> _Canvas:
    """RGB, a whole number of pixels per patch, and at least about ``size`` pixels on the longer side, in whole steps."""
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"image must be (H, W) or (H, W, 3) uint8, got {pixels.dtype} {tuple(image.shape)}; see unnormalise()")
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    height, width = (max(round(s / g), 1) * g for s, g in zip(pixels.shape[:2], grid, strict=True))
    if (height, width) != pixels.shape[:2]:
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
    factor = max(round(size / max(height, width)), 1)
    return _Canvas(np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1), grid)


def _style_of(members: np.ndarray, soft: bool) -> Style:
    """Pruned when every token is one patch, fused when one token takes several and the others one, else merged."""
    many = int((members > 1).sum())
    if many == 0 and not soft:
        return "prune"
    return "fuse" if many == 1 and not soft and int((members == 1).sum()) > 1 else "merge"


def _style_of_trace(trace: Trace, sample: int) -> Style:
    """One style for all stages: fused tokens of several stages would look like merging when seen from the patches."""
    styles = set()
    for step in trace.values():
        map = step.map.without_prefix(trace.prefix)
        group = map.assignment()[sample].cpu().numpy()
        styles.add(_style_of(np.bincount(group[group >= 0], minlength=map.m), map.is_soft))
    return next((s for s in ("merge", "fuse") if s in styles), "prune")


def _fade(pixels: np.ndarray, where: np.ndarray, colour: np.ndarray, strength: float) -> np.ndarray:
    return np.where(where[..., None], pixels * (1 - strength) + colour * strength, pixels)


def _fill_with_means(pixels: np.ndarray, canvas: _Canvas, group: np.ndarray) -> np.ndarray:
    """Patches of a token of several get the mean colour of all of them."""
    (rows, columns), (height, width) = canvas.grid, canvas.cell
    patches = pixels.reshape(rows, height, columns, width, 3).mean(axis=(1, 3)).reshape(-1, 3)
    means = patches.copy()
    for token in np.unique(group[group >= 0]):
        means[group == token] = patches[group == token].mean(axis=0)
    counts = np.bincount(group[group >= 0], minlength=1)
    multiple = (group >= 0) & (counts[group] > 1)
    return np.where(canvas.spread(multiple)[..., None], canvas.spread(means), pixels)


def _outline(pixels: np.ndarray, canvas: _Canvas, group: np.ndarray, multiple: np.ndarray) -> None:
    """Outline tokens of several patches on their inner side; separate parts of one token share a colour."""
    label = canvas.spread(np.where(group < 0, -1, group))
    thick = max(1, min(canvas.cell) // 10)
    inner = ~_near_border(label, thick)
    colours = np.zeros((len(group), 3))
    for token in np.unique(group[multiple]):
        colours[group == token] = _colour(int(token))
    ring = canvas.spread(multiple) & ~inner
    pixels[ring] = canvas.spread(colours)[ring].astype(np.uint8)


def _edge(pixels: np.ndarray, canvas: _Canvas, kept: np.ndarray) -> None:
    """A thin dark line around what stays, so that white patches of the image are told from dropped ones."""
    if kept.all():
        return
    inside = canvas.spread(kept)
    ring = inside & _near_border(inside.astype(np.int64), max(1, min(canvas.cell) // 16), frame=False)
    pixels[ring] = (60, 60, 60)


def _near_border(label: np.ndarray, thick: int, frame: bool = True) -> np.ndarray:
    """Pixels that have another label (or the frame) within ``thick`` pixels."""
    padded = np.pad(label, thick, mode="constant", constant_values=-2) if frame else np.pad(label, thick, mode="edge")
    height, width = label.shape
    near = np.zeros(label.shape, dtype=bool)
    for dy in range(-thick, thick + 1):
        for dx in range(-thick, thick + 1):
            near |= padded[thick + dy : thick + dy + height, thick + dx : thick + dx + width] != label
    return near


def _colour(token: int) -> tuple[float, float, float]:
    """Well spread hues: steps of the golden ratio never come near an earlier one soon."""
    hue = (0.11 + token * 0.6180339887) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, (0.42, 0.55, 0.68)[token % 3], 0.8)
    return 255 * red, 255 * green, 255 * blue
