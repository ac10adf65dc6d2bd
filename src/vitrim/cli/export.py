"""``vitrim export``: a reduced model as an ONNX file or a PyTorch program, checked and timed."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrim.cli.bench import load_images
from vitrim.cli.options import Flag
from vitrim.core.attach import reduce as attach
from vitrim.core.registry import spec
from vitrim.data.models import LoadedModel, load_model
from vitrim.export.onnx import OnnxModel, check_opset, require_onnx, write_onnx
from vitrim.export.program import load_program, save_program, trace
from vitrim.measure.throughput import Timing, interleave

TOLERANCE = 1e-4
SUFFIXES = {".onnx": "ONNX", ".pt2": "program"}
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Target:
    """What file to write.

    Attributes:
        path: the file; its suffix says which format.
        opset: of an ONNX file; None takes the exporter's choice.
        dynamic_batch: whether the batch size may vary.
    """

    path: Path
    opset: int | None
    dynamic_batch: bool

    @property
    def kind(self) -> str:
        """ONNX or program."""
        return SUFFIXES[self.path.suffix]

    def write(self, model: nn.Module, images: Tensor, path: Path) -> Run:
        """Write the model to ``path`` in this format, and read it back as something to run."""
        program = trace(model, images, self.dynamic_batch)
        if self.kind == "ONNX":
            write_onnx(program, path, self.opset)
            return OnnxModel(path)
        save_program(program, path)
        return load_program(path)


def export(
    *,
    out: Path,
    model: str = "fashion",
    weights: Path | None = None,
    random_weights: Flag = False,
    reduce: str = "tome",
    schedule: str = "keep(rate=0.5)",
    batch_size: int = 1,
    dynamic_batch: Flag = False,
    opset: int | None = None,
    images: str | None = None,
    limit: int = 10,
    rounds: int = 20,
    threads: int | None = None,
    force: Flag = False,
) -> int:
    """Write a reduced model to a file that runs without vitrim, check it against PyTorch, and time it.

    Exits with 1 when the logits of the file differ from PyTorch's by more than 1e-4 for any image.

    Args:
        out: the file: FILE.onnx for ONNX, FILE.pt2 for a program of torch.export.
        model: fashion (comes with vitrim), timm/NAME, or vit with --weights.
        weights: safetensors file with the weights of the model.
        random_weights: do without weights: times are right, predictions mean nothing.
        reduce: method spec such as tome or "atc(linkage=complete)"; dense exports the model as it is.
        schedule: how many tokens stay where, such as "keep(rate=0.7, at=[3, 6, 9])" or "r(n=13)".
        batch_size: images per call of the file.
        dynamic_batch: let the file take any number of images per call; --batch-size is then for the check and the times.
        opset: version of the ONNX operators, 18 to 22; the exporter's choice when left out.
        images: folder of images for the check, or "noise"; noise when left out, but for the embedded model.
        limit: images to check.
        rounds: readings of the clock; 0 leaves the times out.
        threads: CPU threads; PyTorch's choice when left out.
        force: overwrite an existing file.
    """
    target = Target(out, opset, dynamic_batch)
    _check_options(target, force, batch_size=batch_size, limit=limit, threads=1 if threads is None else threads)
    if rounds < 0:
        raise ValueError(f"--rounds is a number of readings, or 0 for none; got {rounds}")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model(model, weights, random_weights=random_weights)
    dense, reduced = loaded.model, copy.deepcopy(loaded.model)
    notes = _reduce(reduced, loaded, reduce, schedule)
    data, noise = _images(loaded, images, limit, batch_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    run = target.write(reduced, data[:batch_size], out)
    name = "dense" if reduce == "dense" else spec(reduce)
    print(f"{loaded.name}, {name}{'' if reduce == 'dense' else f' under {spec(schedule)}'}")
    size = f"{out.stat().st_size / 1e6:.1f} MB"
    shape = "any" if dynamic_batch else str(batch_size)
    print(f"written: {out} ({size}; batch: {shape}; images of {' x '.join(map(str, loaded.input_size))})")
    for note in [*notes, *(["noise for images: the check is right, predictions mean nothing"] if noise else [])]:
        print(f"note: {note}")
    good = _report(differences(reduced, run, data, batch_size))
    if rounds and good:
        _times(target, dense, reduced, run, data[:batch_size], name, rounds)
    return 0 if good else 1


def differences(model: nn.Module, run: Run, images: Tensor, batch_size: int) -> Tensor:
    """``(images,)`` largest difference of the logits of each image; infinite where one of them is not a number."""
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in images.split(batch_size):
            if len(batch) < batch_size:
                continue  # a file of a fixed batch size takes full batches
            found.append((run(batch) - model(batch)).abs().flatten(1).amax(dim=1))
    return torch.cat(found).nan_to_num(nan=math.inf, posinf=math.inf)


def _check_options(target: Target, force: bool, **counts: int) -> None:
    for option, value in counts.items():
        if value < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be 1 or more; got {value}")
    if target.path.suffix not in SUFFIXES:
        raise ValueError(f"--out {target.path}: name the file FILE.onnx for ONNX or FILE.pt2 for a PyTorch program")
    if target.opset is not None and target.kind != "ONNX":
        raise ValueError("--opset is for ONNX files; leave it out, or name the file FILE.onnx")
    if target.path.is_dir():
        raise ValueError(f"--out {target.path} is a folder; name a file in it")
    if target.path.exists() and not force:
        raise ValueError(f"--out {target.path} exists; overwrite it with --force, or name another file")
    if target.kind == "ONNX":
        require_onnx()
        check_opset(target.opset)


def _reduce(model: nn.Module, loaded: LoadedModel, method: str, schedule: str) -> list[str]:
    """Put the method to work with its learned weights; what a reader must know."""
    if method == "dense":
        return []
    reduction = attach(model, method, schedule)
    if reduction.load_learned(loaded.reduction):
        return []
    return [f"the learned part of {spec(method)} is untrained: times are right, predictions mean nothing"]


def _images(loaded: LoadedModel, source: str | None, limit: int, batch_size: int) -> tuple[Tensor, bool]:
    """At least one full batch of images, and whether they are noise."""
    noise = source == "noise" or (source is None and not (loaded.input_size[0] == 1 and loaded.classes))
    if noise:
        count = max(limit, batch_size)
        return torch.randn(count, *loaded.input_size, generator=torch.Generator().manual_seed(0)), True
    images, _, _ = load_images(loaded, source, max(limit, batch_size), batch_size)
    if len(images) < batch_size:
        images = images.repeat(math.ceil(batch_size / len(images)), 1, 1, 1)[:batch_size]
    return images, False


def _report(found: Tensor) -> bool:
    """Print the check; whether it passed."""
    bad, worst = int((found > TOLERANCE).sum()), float(found.max())
    if not bad:
        print(f"check: {len(found)} images, largest difference to PyTorch {worst:.1e} (allowed: {TOLERANCE:.0e})")
        return True
    print(
        f"check FAILED: {bad} of {len(found)} images differ from PyTorch by over {TOLERANCE:.0e}, the largest by {worst:.1e}. "
        "Where tokens score alike, rounding decides which one goes: try other --images, and see docs/deploy.md"
    )
    return False


def _times(target: Target, dense: nn.Module, reduced: nn.Module, run: Run, images: Tensor, name: str, rounds: int) -> None:
    """Time the file against the dense model in the same format, and both in PyTorch, in turns."""
    with tempfile.TemporaryDirectory() as place:
        plain = run if name == "dense" else target.write(dense, images, Path(place) / f"dense{target.path.suffix}")
        models: dict[str, Run] = {f"dense {target.kind}": plain, "dense PyTorch": dense}
        if name != "dense":
            models |= {f"{name} {target.kind}": run, f"{name} PyTorch": reduced}

        def call(model: Run) -> Callable[[], object]:
            def once() -> object:
                with torch.inference_mode():
                    return model(images)

            return once

        times = interleave({key: call(model) for key, model in models.items()}, rounds)
    where = f"cpu, threads: {torch.get_num_threads()}, batch of {len(images)}, {rounds} rounds in turn"
    print(_table(times, where))


def _table(times: dict[str, Timing], where: str) -> str:
    rows = [("", "ms", "quartiles", f"speed-up over {next(iter(times))}")]
    for name, timing in times.items():
        low, high = (1e3 * seconds for seconds in timing.quartiles)
        rows.append((name, f"{timing.milliseconds:.2f}", f"{low:.2f} to {high:.2f}", f"{timing.speedup:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows]
    return "\n".join([f"\nlatency, median ({where}):", *lines])
