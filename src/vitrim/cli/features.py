"""``vitrim features``: what the layers of a model hold and look at, measured over many images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrim.cli.options import Flag, by_name, pick_device
from vitrim.data.models import unnormalise
from vitrim.experiments.feature_files import write, write_compared
from vitrim.experiments.features import Gallery, Measured, class_features, measure, of_subject
from vitrim.experiments.subject import Changes, of_model, of_run


def features(
    *runs: Path,
    weights: Path | None = None,
    model: str | None = None,
    data: str | None = None,
    split: str | None = None,
    transform: str | None = None,
    method: str | None = None,
    schedule: str | None = None,
    metrics: str = "cka,attention_cka,distance,entropy,rank,norms",
    images: int = 512,
    batch_size: int = 32,
    panels: str | None = None,
    columns: int = 6,
    colours: str = "viridis",
    power: float = 1.0,
    tsne: Flag = False,
    table: Literal["csv", "parquet"] = "csv",
    workers: int | None = None,
    device: str = "auto",
    out: Path = Path("vitrim-features"),
) -> int:
    """Measure features and attention by block: CKA, attention distance and entropy, effective rank, norms; draw saliency maps.

    vitrim features RUN, --weights FILE.safetensors of a run, or --model NAME --data SPEC; without any of them, the model and the
    images that come with vitrim. Reduced tokens are led back to the patches that they stand for. An interrupted call goes on.
    Several runs are measured one after the other, each into a folder of its own, and compared in pictures of all.

    Args:
        runs: folders of finished runs.
        weights: safetensors file: of a run, or the weights of --model.
        model: model by name, as for vitrim bench.
        data: data set as in a recipe.
        split: split of the data set; that of the recipe's evaluations (otherwise val) when left out.
        transform: spec of other transforms of the images.
        method: reduce by this method; none for the dense model.
        schedule: reduce by this schedule.
        metrics: cka, attention_cka, distance, entropy, rank, norms; none measures nothing.
        images: number of images, spread evenly over the split; 0 takes all.
        batch_size: images of a batch, from which CKA is estimated; 4 or more.
        panels: saliency maps of the first images: rollout, rollout_A_B, attention_L, maws_L, gls, gradcam_L, none.
        columns: images in the panels.
        colours: colour map of the panels; jet is that of the papers.
        power: exponent of the maps; 4 shows the peaks alone.
        tsne: draw class tokens in the plane; needs scikit-learn.
        table: format of the tables.
        workers: processes that load images.
        device: cpu, cuda, or auto.
        out: folder for tables and pictures.
    """
    if images < 0 or columns < 1 or batch_size < 1:
        raise ValueError("--images is 0 or more, --columns and --batch-size 1 or more")
    names = [] if metrics.strip() == "none" else [name.strip() for name in metrics.split(",") if name.strip()]
    places: dict[Path | None, Path] = {**by_name(runs, out)} if len(runs) > 1 else dict.fromkeys(runs or (None,), out)
    changes, found = Changes(method, schedule, data, split, transform), {}
    for run, place in places.items():
        if len(places) > 1:
            print(f"\n{place.name}" if found else place.name)
        gallery = _gallery(run, weights, model, changes, images or None, pick_device(device))
        place.mkdir(parents=True, exist_ok=True)
        files: list[str] = []
        notes = gallery.notes
        if names:
            measured = _measured(gallery, names, batch_size, workers, place)
            if measured is None:
                return 130
            files, notes = write(measured, gallery.what, place, table), measured.notes
            found[place.name] = measured
            print(_summary(measured.values, measured.images))
        if panels:
            _draw_panels(gallery, [name.strip() for name in panels.split(",")], columns, colours, power, place / "panels.png")
            files.append("panels.png")
        if tsne:
            _draw_tsne(gallery, batch_size, workers, place / "tsne.png")
            files.append("tsne.png")
        for note in notes:
            print(f"note: {note}")
        print(f"\nwritten into {place}: {', '.join(files) or 'nothing; name --metrics, --panels or --tsne'}")
    if len(found) > 1:
        print(f"written into {out}: {', '.join(write_compared(found, out))}")
    return 0


def _measured(gallery: Gallery, names: Sequence[str], batch_size: int, workers: int | None, out: Path) -> Measured | None:
    """What is measured of one model; None when it was interrupted."""
    line = _Progress()
    try:
        return measure(gallery, names, batch_size=batch_size, workers=workers, out=out, say=line.tell)
    except KeyboardInterrupt:
        line.close()
        print("interrupted; the same command goes on from the last saved batch", file=sys.stderr)
        return None
    finally:
        line.close()


def _gallery(
    run: Path | None, weights: Path | None, model: str | None, changes: Changes, limit: int | None, device: torch.device
) -> Gallery:
    if run is None and weights is None:
        model = model or "fashion"
    if model is None:
        subject = of_run(run or weights or Path(), changes, device)
    elif run is None:
        subject = of_model(model, weights, changes, device)
    else:
        raise ValueError(f"'{run}' is a run, which knows its model; leave out --model")
    return of_subject(subject, limit, _picture_of(subject.transform))


def _picture_of(transform: Any) -> Callable[[Tensor], np.ndarray]:
    """Undo the normalisation of a transform, where it tells its statistics; otherwise stretch what is there to 0 to 255."""
    steps = getattr(transform, "steps", None) or getattr(getattr(transform, "transform", transform), "transforms", None) or []
    known = next((s for s in [transform, *steps] if hasattr(s, "mean") and hasattr(s, "std")), None)

    if known is not None:
        return partial(unnormalise, mean=known.mean, std=known.std)

    def stretch(image: Tensor) -> np.ndarray:
        least, most = image.min(), image.max()
        return unnormalise((image - least) / (most - least).clamp_min(1e-12), [0.0], [1.0])

    return stretch


def _draw_panels(gallery: Gallery, modes: list[str], columns: int, colours: str, power: float, path: Path) -> None:
    from vitrim.analysis.masks import masks
    from vitrim.analysis.panels import panels

    images, places = next(gallery.batches(columns, 0, 0))
    if images is None:
        raise ValueError("none of the first images can be read; raise --columns")
    device = next(gallery.model.parameters()).device
    found = masks(gallery.model, images.to(device), modes if "none" in modes else ["none", *modes])
    captions = [gallery.classes[gallery.labels[place]] for place in places]
    panels([gallery.picture(x) for x in images], found, colours=colours, power=power, captions=captions).save(path)


def _draw_tsne(gallery: Gallery, batch_size: int, workers: int | None, path: Path) -> None:
    from vitrim.analysis.plots import plot_points, tsne

    rows, labels = class_features(gallery, batch_size, workers)
    plot_points(tsne(rows), labels, gallery.classes, path, f"t-SNE of class tokens, {len(rows)} images")


def _summary(values: dict[str, np.ndarray], images: int) -> str:
    """A line for each block, a column for each metric; CKA against the block before."""
    columns: dict[str, list[str]] = {}
    for name, value in values.items():
        if name.endswith("cka"):
            columns[f"{name} to block before"] = ["", *(f"{value[i, i - 1]:.3f}" for i in range(1, len(value)))]
        else:
            columns[name] = [f"{x:.3f}" for x in (value.mean(axis=1) if value.ndim == 2 else value)]
    depth = max(len(column) for column in columns.values())
    widths = {name: max(len(name), *map(len, column)) for name, column in columns.items()}
    lines = [f"{images} images", "block  " + "  ".join(name.rjust(widths[name]) for name in columns)]
    lines += [f"{i:>5}  " + "  ".join(column[i].rjust(widths[name]) for name, column in columns.items()) for i in range(depth)]
    return "\n".join(lines)


class _Progress:
    """Images done, rewritten on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def tell(self, done: int, total: int) -> None:
        if self.live:
            print(f"\r\033[K{done}/{total} images", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
