"""Example images with the pattern of every stage, drawn from trace stores and, where it is still there, the data set."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vitrim.analysis.draw import strip
from vitrim.analysis.view import Kind, View, chosen
from vitrim.datasets.base import DATASETS, DataSet
from vitrim.datasets.transforms import TRANSFORMS
from vitrim.experiments.analyze_runs import TracedRun
from vitrim.experiments.tracestore import TraceStore
from vitrim.training.build import build_dataset
from vitrim.training.folder import RunFolder

VERSION = 1
SIDE, DPI, STAGES, COLOURS = 58.0, 120, 3, 96  # points of a picture, dots per inch, stages of a strip, colours of its palette
Pixels = npt.NDArray[np.uint8]


def pick_examples(runs: Sequence[TracedRun], count: int) -> dict[str, list[int]]:
    """Positions in the split of example images by data set: those that all its runs have, of different classes, evenly spread."""
    found: dict[str, list[int]] = {}
    for digest in dict.fromkeys(run.images_digest for run in runs):
        stores = [TraceStore(run.path) for run in runs if run.images_digest == digest]
        common = set(stores[0].index.tolist())
        for store in stores[1:]:
            common &= set(store.index.tolist())
        places = sorted(common)
        order = [places[(i * len(places)) // count] for i in range(min(count, len(places)))]
        found[digest] = _of_different_classes(stores[0], order, places)
    return found


def _of_different_classes(store: TraceStore, order: Sequence[int], places: Sequence[int]) -> list[int]:
    if store.meta["task"] != "classify":
        return list(order)
    target = dict(zip(store.index.tolist(), store.targets.tolist(), strict=True))
    chosen_: list[int] = []
    for start in order:
        taken = {target[i] for i in chosen_}
        later = [i for i in places if i >= start and i not in chosen_]
        chosen_.append(next((i for i in later if target[i] not in taken), start))
    return sorted(set(chosen_))


def draw_examples(path: str, places: Sequence[int], prunes: bool, merges: bool, data: str | None) -> dict[str, Any]:
    """Strips of images: the input, then what is left of it after each stage.

    Args:
        path: folder of the store.
        places: positions of the images in their split.
        prunes: whether the run prunes.
        merges: whether it merges.
        data: data set in place of the one that the store names.

    Returns:
        ``pictures``: data URIs of PNG files; ``names`` of the images; ``note``: why there are no photographs, or None.
    """
    store = TraceStore(Path(path))
    if not store.stages or store.meta["grid"] is None:
        return {"pictures": [], "names": [], "note": None}
    grid = (int(store.meta["grid"][0]), int(store.meta["grid"][1]))
    rows = [int(np.flatnonzero(store.index == place)[0]) for place in places]
    names = [store.paths[row] for row in rows]
    images, note = _images(store, places, names, grid, data)
    kind: Kind = "merge" if merges else "fuse" if prunes and _fuses(store, rows) else "prune"
    pictures: list[str] = []
    for row, image in zip(rows, images, strict=True):
        views = [
            View(stage, grid, store.assignment(stage, row)[0].astype(np.int64), int(store.tokens(stage, row)[0]), kind)
            for stage in store.stages
        ]
        # What the looks mean is said once on the page.
        page = replace(strip([("", image, chosen(views, STAGES))], side=SIDE, dpi=DPI, stages=STAGES), foot="").image()
        out = io.BytesIO()
        # Photographs of this size lose nothing that could be seen to a palette, and the page stays small.
        page.quantize(COLOURS).save(out, format="png", optimize=True)
        pictures.append(f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}")
    return {"pictures": pictures, "names": names, "note": note}


def _fuses(store: TraceStore, rows: Sequence[int]) -> bool:
    """Whether a token takes what the others leave."""
    labels = store.assignment(store.stages[-1], rows)
    return any(np.bincount(label[label >= 0]).max(initial=0) > 1 for label in labels)


def _images(
    store: TraceStore, places: Sequence[int], names: Sequence[str], grid: tuple[int, int], data: str | None
) -> tuple[list[Pixels], str | None]:
    """The images as the model sees them, or plain grey ones and the reason."""
    try:
        dataset = _dataset(store, data)
        items = dataset.items(store.meta["split"])
        for place, name in zip(places, names, strict=True):
            if place >= len(items) or items[place].path != name:
                raise ValueError(f"its split '{store.meta['split']}' has changed")
        return [_picture(store, dataset.read(items[place]), grid) for place in places], None
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        note = (
            f"the images of '{store.meta['data']}' cannot be read ({reason}); patterns are drawn on grey (another place: --data)"
        )
        return [np.full((*(8 * n for n in grid), 3), 150, dtype=np.uint8)] * len(places), note


def _dataset(store: TraceStore, data: str | None) -> DataSet:
    if data is not None:
        return DATASETS.build(data)
    for folder in list(store.path.parents)[:3]:
        if (folder / "config.yaml").is_file():
            recipe = RunFolder(folder).recipe()
            # Fake data lie where the recipe says, which their name does not tell.
            if store.meta["data"] == (f"{recipe.data} (fake)" if recipe.fake else recipe.data):
                return build_dataset(recipe)
    return DATASETS.build(str(store.meta["data"]).removesuffix(" (fake)"))


def _picture(store: TraceStore, image: Image.Image, grid: tuple[int, int]) -> Pixels:
    try:
        steps: Any = TRANSFORMS.build(str(store.meta["transform"]))
    except ValueError:  # the model's own: its middle part, in the shape of the grid
        side = min(image.width / grid[1], image.height / grid[0])
        width, height = side * grid[1], side * grid[0]
        left, top = (image.width - width) / 2, (image.height - height) / 2
        cut = image.convert("RGB").crop((round(left), round(top), round(left + width), round(top + height)))
        return np.asarray(cut.resize((16 * grid[1], 16 * grid[0]), Image.Resampling.BICUBIC))
    tensor = steps.eval()(image)
    shape = (-1, 1, 1)
    plain = tensor.float() * torch.tensor(steps.std).view(shape) + torch.tensor(steps.mean).view(shape)
    pixels = plain.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)
