"""``vitrim inspect``: what a reduction does to one image."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from torch import Tensor, nn

from vitrim.analysis.draw import draw_reduction
from vitrim.analysis.terminal import in_terminal, shows_pictures
from vitrim.cli.options import Flag
from vitrim.core.attach import reduced
from vitrim.core.backbone import find_backbone
from vitrim.core.registry import spec
from vitrim.core.trace import Trace
from vitrim.data.images import open_image
from vitrim.data.models import LoadedModel, load_model
from vitrim.measure.accuracy import predict
from vitrim.measure.flops import BackboneFlops, closed_form, count_flops

Methods = Annotated[list[str], Parameter(name=["--methods", "--method", "--reduce"], consume_multiple=True, negative="")]


@dataclass(frozen=True)
class Seen:
    """The model under one reduction, or dense.

    Attributes:
        name: spec of the method, or ``dense``.
        logits: ``(classes,)`` or features.
        tokens: patch tokens left after each block.
        layers: FLOPs by block, or None where there is no closed form.
        gflops: multiply-adds / 1e9 of the whole forward pass, the method's own included.
        trace: what happened, for the picture.
        note: what a reader must know.
    """

    name: str
    logits: Tensor
    tokens: list[int]
    layers: BackboneFlops | None
    gflops: float
    trace: Trace | None = None
    note: str = ""


def inspect(
    image: Path,
    /,
    *,
    model: str = "fashion",
    weights: Path | None = None,
    random_weights: Flag = False,
    methods: Methods | None = None,
    schedule: str = "keep(rate=0.5, at=[3, 6, 9])",
    top: int = 5,
    out: Path | None = None,
) -> int:
    """Show what reductions do to one image: tokens and GFLOPs by block, predictions before and after, and a picture.

    Args:
        image: a photograph.
        model: fashion (comes with vitrim), timm/NAME, or vit with --weights.
        weights: safetensors file with the weights of the model.
        random_weights: do without weights; predictions mean nothing.
        methods: names or full specs, such as tome "atc(linkage=complete)", to compare.
        schedule: how many tokens stay where, such as "keep(rate=0.7, at=[3, 6, 9])" or "r(n=13)".
        top: predictions to print.
        out: folder for the pictures; when left out, they are shown in a terminal of 24-bit colour, and otherwise written into
            vitrim-inspect.
    """
    if top < 1:
        raise ValueError(f"--top is a number of predictions, 1 or more; got {top}")
    try:
        picture = open_image(image)
    except ValueError as error:
        raise ValueError(f"image: '{image}': {error}; give a JPEG, PNG or WebP file") from error
    loaded = load_model(model, weights, random_weights=random_weights)
    x = loaded.transform(picture).unsqueeze(0)
    dense = _look(loaded, x, None, schedule)
    seen = [dense, *(_look(loaded, x, method, schedule) for method in methods or ["tome"])]
    print(f"{loaded.name}, {image.name}, {spec(schedule)}\n")
    print(_table_of_blocks(seen))
    print()
    print(_table_of_predictions(seen, loaded, top))
    for one in seen:
        if one.note:
            print(f"\nnote: {one.name}: {one.note}", file=sys.stderr)
    pixels, grid = loaded.unnormalise(x[0]), _grid(loaded.model)
    print()
    for one in seen[1:]:
        assert one.trace is not None
        if len(one.trace) == 0:
            print(f"{one.name}: nothing is reduced under this schedule, so there is no picture")
            continue
        page = draw_reduction(pixels, one.trace, grid, f"{one.name} · {spec(schedule)}")
        if out is None and shows_pictures():
            print(in_terminal(page, shutil.get_terminal_size().columns))
            continue
        folder = out or Path("vitrim-inspect")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{image.stem}-{re.sub(r'[^A-Za-z0-9.]+', '-', one.name).strip('-')}.png"
        page.save(path)
        print(f"picture: {path}")
    return 0


def _look(loaded: LoadedModel, x: Tensor, method: str | None, schedule: str) -> Seen:
    model = loaded.model
    patches = _patches(model)
    if method is None:
        flops = _closed_form(model)
        depth = len(flops.layers) if flops else 0
        return Seen("dense", predict(model, x)[0], [patches] * depth, flops, count_flops(model, x).gflops)
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with reduced(model, method, schedule) as reduction:
            if not reduction.load_learned(loaded.reduction):
                notes.append("its learned part is untrained: the result says nothing about the method")
            logits = predict(model, x)[0]
            gflops = count_flops(model, x).gflops
            flops, trace = _closed_form(model), reduction.trace
            tokens, left = [], patches
            for layer in range(reduction.depth):
                if layer in trace:
                    step = trace[layer].map
                    left = (step.m if step.valid is None else int(step.valid[0].sum())) - trace.prefix
                tokens.append(left)
    notes += [str(w.message) for w in said]
    return Seen(spec(method), logits, tokens, flops, gflops, trace, "; ".join(notes))


def _closed_form(model: Any) -> BackboneFlops | None:
    try:
        return closed_form(model)
    except TypeError:
        return None  # a head or block of another build: the total is counted, the blocks are left out


def _table_of_blocks(seen: list[Seen]) -> str:
    """Patch tokens left and GFLOPs of every block, one pair of columns per reduction."""
    depth = max(len(one.tokens) for one in seen)
    width = max([20, *(len(one.name) for one in seen)])
    lines = ["block  " + "  ".join(one.name.rjust(width) for one in seen)]
    lines.append("       " + "  ".join("tokens    GFLOPs".rjust(width) for _ in seen))
    for block in range(depth):
        cells = []
        for one in seen:
            tokens = str(one.tokens[block]) if one.tokens else ""
            cost = f"{one.layers.layers[block].macs / 1e9:.4f}" if one.layers else ""
            cells.append(f"{tokens}{cost:>10}".rjust(width))
        lines.append(f"{block:>5}  " + "  ".join(cells))
    totals = [f"{one.gflops:.4f} {one.gflops / seen[0].gflops:4.0%}" for one in seen]
    lines.append("total  " + "  ".join(total.rjust(width) for total in totals))
    return "\n".join(lines)


def _table_of_predictions(seen: list[Seen], loaded: LoadedModel, top: int) -> str:
    """The most likely classes of every reduction; features are compared by their angle."""
    if loaded.random:
        return "random weights: predictions are left out, they mean nothing"
    dense = seen[0].logits
    if getattr(loaded.model, "num_classes", 1) == 0:
        same = [torch.nn.functional.cosine_similarity(one.logits, dense, dim=0).item() for one in seen]
        return "\n".join(f"{one.name}: cosine to the dense features {value:.4f}" for one, value in zip(seen, same, strict=True))
    rows: list[list[str]] = [[one.name for one in seen]]
    best = [one.logits.softmax(dim=0).topk(min(top, len(dense))) for one in seen]
    for rank in range(len(best[0].indices)):
        row = []
        for found in best:
            index = int(found.indices[rank])
            name = loaded.classes[index] if loaded.classes and index < len(loaded.classes) else f"class {index}"
            row.append(f"{name} {found.values[rank]:.1%}")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(seen))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _grid(model: nn.Module) -> tuple[int, int]:
    grid = find_backbone(model).layout(model).grid
    if grid is None:
        raise ValueError(
            f"the patch grid of {type(model).__name__} is not known, so there is nothing to draw on; try another model"
        )
    return grid


def _patches(model: nn.Module) -> int:
    height, width = _grid(model)
    return height * width
