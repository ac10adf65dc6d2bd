"""Pictures of a reduction: which patches left the image, and which were merged with which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from vitrim.analysis.sheet import sheet as sheet
from vitrim.core.tokenmap import TokenMap
from vitrim.core.trace import Trace

Style = Literal["auto", "prune", "merge", "fuse"]

_WHITE = np.array([255.0, 255.0, 255.0])
_FUSED = np.array([250.0, 205.0, 130.0])  # pale amber: neither the white of dropped patches nor a usual photograph


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
    outlined; tokens of one patch keep the image. In ``fuse`` style (EViT) the patches that
    were fused are tinted. Soft maps are drawn by the token that takes most of each patch.

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
        pixels = _fade(pixels, canvas.spread(multiple), _FUSED, 0.8)
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


def stage_sheet(
    image: np.ndarray,
    traces: Sequence[tuple[str, Trace]],
    grid: tuple[int, int],
    *,
    title: str = "",
    sample: int = 0,
    size: int = 224,
    stages: int = 3,
) -> Image.Image:
    """One image under several methods: methods in rows, the input and ``stages`` stages in columns.

    Methods that reduce more often than that are shown at evenly chosen stages.

    Args:
        image: the image of the batch that is drawn.
        traces: name and trace of each method.
        grid: rows and columns of patches.
        title: over everything.
        sample: its position in the batch.
        size: the longer side of each picture in pixels.
        stages: at most this many stages for each method.
    """
    rows, notes = [], []
    for name, trace in traces:
        layers = chosen_stages(trace, stages)
        pictures = [stage_picture(image, trace, grid, layer, sample=sample, size=size) for layer in layers]
        rows.append((name, [_enlarge(image, grid, size).pixels, *pictures]))
        notes.append(", ".join(str(tokens_left(trace, layer, sample)) for layer in layers) + " tokens")
    captions = ["input", *(f"stage {i + 1}" for i in range(max((len(cells) for _, cells in rows), default=1) - 1))]
    return sheet(rows, captions, title=title, notes=notes)


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
    styles: set[Style] = set()
    for step in trace.values():
        map = step.map.without_prefix(trace.prefix)
        group = map.assignment()[sample].cpu().numpy()
        styles.add(_style_of(np.bincount(group[group >= 0], minlength=map.m), map.is_soft))
    return "merge" if "merge" in styles else "fuse" if "fuse" in styles else "prune"


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
    """Outline tokens of several patches on their inner side, lighter than a dark filling and darker than a light one."""
    # One neutral shade per token: separate parts of it look alike, and a page of them does not turn into confetti.
    thick = max(1, round(min(canvas.cell) / 16))
    ring = canvas.spread(multiple) & _near_border(canvas.spread(group), thick)
    filling = pixels[ring].astype(np.float64)
    dark = (filling @ np.array([0.299, 0.587, 0.114]))[:, None] < 120
    shade = np.where(dark, filling + 0.42 * (_WHITE - filling), filling * 0.45)
    pixels[ring] = shade.round().astype(np.uint8)


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
