"""Figures of feature metrics: CKA matrices, lines over the blocks, and t-SNE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, without the yellow that white swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LABELS = {
    "attention_cka": "attention CKA to the other blocks",
    "cka": "CKA to the other blocks",
    "distance": "attention distance (patches)",
    "entropy": "attention entropy (nats)",
    "rank": "effective rank of the tokens",
    "rank_centred": "effective rank, mean taken away",
    "dist": "distance between pooled tokens",
    "dist_norm": "the same, scaled to 0 to 1",
    "l2_norm": "length of pooled tokens",
}


def plot_cka(cka: np.ndarray, path: Path, title: str, limits: tuple[float, float] | None = None) -> None:
    """Draw a CKA matrix ``(L, L)``, block 0 at the lower left; its own range of colours unless ``limits`` says one."""
    low, high = limits or (float(cka.min()), float(cka.max()))
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    picture = _matrix(axes, cka, low, high, numbers=len(cka) <= 14)
    axes.set(ylabel="block")
    axes.set_title(title, loc="left", fontsize=10)
    figure.colorbar(picture, ax=axes, shrink=0.9)
    figure.savefig(path, dpi=160)


def plot_compared_cka(matrices: Mapping[str, np.ndarray], path: Path, title: str, columns: int = 5) -> None:
    """Draw the CKA matrices ``(L, L)`` of several models side by side, in one range of colours."""
    low, high = min(float(m.min()) for m in matrices.values()), max(float(m.max()) for m in matrices.values())
    wide = min(columns, len(matrices))
    rows = -(-len(matrices) // wide)
    figure = Figure(figsize=(2.4 * wide + 0.8, 2.6 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(rows, wide, squeeze=False)
    for axes in grid.flat[len(matrices) :]:
        axes.set_axis_off()
    picture: Any = None
    for i, (axes, (name, cka)) in enumerate(zip(grid.flat, matrices.items(), strict=False)):
        picture = _matrix(axes, cka, low, high, numbers=False)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set(ylabel="block" if i % wide == 0 else "")
    figure.colorbar(picture, ax=grid, shrink=0.8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=160)


def _matrix(axes: Any, cka: np.ndarray, low: float, high: float, numbers: bool) -> Any:
    count = len(cka)
    picture = axes.imshow(cka, cmap="magma", origin="lower", vmin=low, vmax=high)
    for i, j in np.ndindex(cka.shape) if numbers else ():
        dark = cka[i, j] < (low + high) / 2
        text = f"{cka[i, j]:.2f}".replace("0.", ".")
        axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    ticks = range(0, count, max(1, count // (12 if numbers else 4)))
    axes.set(xticks=ticks, yticks=ticks, xlabel="block")
    return picture


def plot_lines(values: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """Draw a panel for each metric over the blocks: ``(L,)`` is a line, ``(L, heads)`` a point for each head and their mean."""
    figure, grid = _panels(len(values))
    for axes, (name, value) in zip(grid, values.items(), strict=True):
        blocks = np.arange(len(value))
        if value.ndim == 2:
            for head in range(value.shape[1]):
                axes.plot(blocks, value[:, head], ".", color=_COLOURS[5], markersize=6, label="a head" if head == 0 else None)
            axes.plot(blocks, value.mean(axis=1), "-o", color=_COLOURS[0], markersize=4, label="mean")
            axes.legend(frameon=False, fontsize=8)
        else:
            axes.plot(blocks, value, "-o", color=_COLOURS[0], markersize=4)
        _over_blocks(axes, name, len(value))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=160)


def plot_compared_lines(values: Mapping[str, Mapping[str, np.ndarray]], path: Path, title: str) -> None:
    """Draw a panel for each metric over the blocks, with a line for each of several models; heads are averaged.

    Args:
        values: by metric and model, ``(L,)`` or ``(L, heads)``.
        path: of the picture.
        title: over it.
    """
    figure, grid = _panels(len(values))
    marks, styles = "os^Dv", ("-", "--", ":")
    for axes, (name, of_models) in zip(grid, values.items(), strict=True):
        for i, (model, value) in enumerate(of_models.items()):
            line = value.mean(axis=1) if value.ndim == 2 else value
            style = f"{styles[i // len(_COLOURS) % len(styles)]}{marks[i % len(marks)]}"
            axes.plot(np.arange(len(line)), line, style, color=_COLOURS[i % len(_COLOURS)], markersize=3.5, label=model)
        _over_blocks(axes, name, max(len(value) for value in of_models.values()))
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=160)


def _panels(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6 * count, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _over_blocks(axes: Any, name: str, depth: int) -> None:
    axes.set(xlabel="block", ylabel=LABELS.get(name, name), xticks=range(0, depth, max(1, depth // 12)))
    axes.set_ylim(bottom=0)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_points(points: np.ndarray, labels: Sequence[int], classes: Sequence[str], path: Path, title: str) -> None:
    """Draw ``(N, 2)`` points, coloured by class; with a legend for up to 21 classes."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    marks, which = ("o", "s", "^"), np.asarray(labels)
    for i, label in enumerate(sorted(set(which.tolist()))):
        own = points[which == label]
        name = classes[label] if label < len(classes) else str(label)
        colour, mark = _COLOURS[i % len(_COLOURS)], marks[i // len(_COLOURS) % len(marks)]
        axes.plot(own[:, 0], own[:, 1], mark, color=colour, markersize=4, alpha=0.75, markeredgewidth=0, label=name)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, loc="left", fontsize=10)
    if len(set(which.tolist())) <= len(_COLOURS) * len(marks):
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE of ``(N, C)`` features to ``(N, 2)`` by scikit-learn; the perplexity is lowered for few images.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for fewer than four images.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn; install vitrim[analysis]") from error
    if len(features) < 4:
        raise ValueError(f"t-SNE needs four images or more; got {len(features)}")
    nearest = min(perplexity, (len(features) - 1) / 3)
    return TSNE(2, perplexity=nearest, init="pca", random_state=seed).fit_transform(features.astype(np.float64))
