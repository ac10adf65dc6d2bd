"""``vitrim eval``: accuracy, cost and speed of a trained model, and the record of what it does to every image."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from vitrim.cli.options import Flag, by_name, pick_device
from vitrim.experiments.evaluate import Settings, evaluate
from vitrim.experiments.processes import Processes
from vitrim.experiments.subject import Changes, Subject, of_model, of_run
from vitrim.experiments.tracing import TraceOptions
from vitrim.training.progress import clock

_SECONDS = 15.0  # between lines where nothing can be rewritten


def eval(
    *runs: Path,
    weights: Path | None = None,
    model: str | None = None,
    data: str | None = None,
    split: str | None = None,
    transform: str | None = None,
    task: Literal["classify", "multilabel"] | None = None,
    method: str | None = None,
    schedule: str | None = None,
    ema: Flag = False,
    limit: int | None = None,
    batch_size: int = 64,
    rounds: int = 5,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    skip_unreadable: Flag = False,
    predictions: Literal["csv", "parquet"] | None = None,
    trace: Flag = False,
    blocks: str = "auto",
    features: str | None = None,
    features_dtype: Literal["float16", "float32"] = "float16",
    soft: Flag = False,
    overwrite: Flag = False,
    out: Path | None = None,
) -> int:
    """Evaluate a run, a weights file, or any model: accuracy, GFLOPs, speed; record what it does to every image.

    vitrim eval RUN, vitrim eval --weights RUN/model.safetensors, or vitrim eval --model timm/NAME --data "imagenet(root='DIR')".
    Writes evaluation.json into the run (below RUN/evaluations with another reduction), or into --out (several runs: into
    OUT/NAME); a run that cannot be evaluated stops no other. Speed is timed in turns with the dense model; GFLOPs are 1e9
    multiply-adds per image. Many processes: accelerate launch -m vitrim.cli.app eval ...

    Args:
        runs: folders of finished runs.
        weights: safetensors file: of a run, which tells everything itself, or the weights of --model.
        model: model by name, as for vitrim bench, when it is not of a run.
        data: data set as in a recipe; for a run, another place or another set of the same classes.
        split: split of the data set; that of the recipe's evaluations (otherwise val) when left out.
        transform: spec of other transforms of the images.
        task: what is measured; by the data set when left out.
        method: reduce by another method; none for the dense model.
        schedule: reduce by another schedule.
        ema: take the moving average of the weights.
        limit: number of images, spread evenly over the split.
        batch_size: images per batch, for the measurement of speed as well.
        rounds: readings of the clock; 0 leaves the speed out.
        workers: processes that load images.
        threads: CPU threads; PyTorch's choice when left out.
        device: cpu, cuda, or auto.
        precision: of the forward pass; that of the run (otherwise fp32) when left out.
        skip_unreadable: leave out unreadable images, and count them, instead of stopping.
        predictions: write tables of every image and of every class.
        trace: record reduction patterns, features and predictions of every image in RUN/trace; an interrupted trace goes on.
        blocks: blocks with features in the trace: numbers as 3,6,9,11, auto (these, of 12), all or none.
        features: cls, mean (of the patches), or cls,mean.
        features_dtype: number format of the features.
        soft: keep the whole matrices of soft methods in the trace.
        overwrite: replace a trace of something else.
        out: folder for what is written.
    """
    if threads is not None:
        if threads < 1:
            raise ValueError("--threads is 1 or more")
        torch.set_num_threads(threads)
    changes = Changes(method, schedule, data, split, transform, precision, task, ema)
    kinds = None if features is None else tuple(word.strip() for word in features.split(","))
    options = TraceOptions(blocks, kinds, features_dtype, soft) if trace else None
    settings = Settings(batch_size, limit, workers, rounds, options, predictions, overwrite)
    with Processes() as processes:
        place = processes.device(pick_device(device))

        def one(run: Path | None, out: Path | None) -> int:
            subject = _subject(run, weights, model, changes, place)
            subject.skip = subject.skip or skip_unreadable
            target = out or (_limited(subject.folder, limit) if subject.folder else None)
            return _run(subject, target, settings, place, processes)

        return one(runs[0] if runs else None, out) if len(runs) < 2 else _each(runs, out, one, quiet=not processes.main)


def _each(runs: Sequence[Path], out: Path | None, one: Callable[[Path, Path | None], int], quiet: bool) -> int:
    """Evaluate several runs; one that cannot be is told about, and the others follow.

    Returns:
        1 when there was such a run, 130 when interrupted, 0 otherwise.
    """
    places = dict.fromkeys(runs) if out is None else by_name(runs, out)
    failed = 0
    for number, (run, place) in enumerate(places.items(), 1):
        if not quiet:
            print(f"{chr(10) if number > 1 else ''}[{number}/{len(places)}] {run}")
        try:
            code = one(run, place)
        except (ValueError, OSError) as error:
            failed += 1
            if not quiet:
                print(f"vitrim: {run}: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        if code:
            return code
    if failed and not quiet:
        print(f"\n{failed} of {len(places)} runs could not be evaluated", file=sys.stderr)
    return 1 if failed else 0


def _run(subject: Subject, out: Path | None, settings: Settings, device: torch.device, processes: Processes) -> int:
    line = _Line()
    try:
        values = evaluate(subject, out, settings, device=device, processes=processes, say=line.tell)
    except KeyboardInterrupt:
        # Nothing is half-written at any instant, so that it need not be asked for nicely.
        line.close()
        kept = "the finished shards of the trace stay, and the same command goes on" if settings.trace else "nothing was written"
        print(f"interrupted after {line.done} of {line.total} images; {kept}", file=sys.stderr)
        return 130
    finally:
        line.close()
    if processes.main:
        print(table(values, out, settings))
    return 0


def _subject(run: Path | None, weights: Path | None, model: str | None, changes: Changes, device: torch.device) -> Subject:
    if model is not None:
        if run is not None:
            raise ValueError(f"'{run}' is a run, which knows its model; leave out --model")
        return of_model(model, weights, changes, device)
    if (run is None) == (weights is None):
        raise ValueError(
            "give one thing to evaluate: vitrim eval RUN, vitrim eval --weights FILE.safetensors, or --model NAME --data SPEC"
        )
    return of_run(run or weights or Path(), changes, device)


def _limited(folder: Path, limit: int | None) -> Path:
    """A part of the split is a quick look, which must not pass for the run's evaluation."""
    if limit is None:
        return folder
    return folder / f"limit{limit}" if folder.parent.name == "evaluations" else folder / "evaluations" / f"limit{limit}"


def table(values: dict[str, Any], out: Path | None, settings: Settings) -> str:
    """The results for people."""
    reduced = " + ".join(str(values[k]) for k in ("recognise", "tune", "method", "cache", "head") if values.get(k)) or "dense"
    which = values["weights"] if values["weights"] in ("final", "ema") else None
    lines = [
        f"{values['model']}{f', {which} weights' if which else ''}",
        f"{reduced}{', ' + values['schedule'] if values['schedule'] else ''}",
        f"{values['data']}, {values['split']}: {values['images']} images, {values['classes']} classes"
        + (f" ({values['skipped']} unreadable ones left out)" if values["skipped"] else ""),
        "",
    ]
    names = {"top1": "top-1", "top5": "top-5", "mAP": "mAP", "CF1": "CF1", "OF1": "OF1"}
    rows = [(label, f"{values[key]:.2f} %") for key, label in names.items() if key in values]
    rows.append(("loss", f"{values['loss']:.4f}"))
    rows += _cost(values)
    lines += [f"{label:<12}{text}" for label, text in rows]
    lines += [f"note: {note}" for note in values["notes"]]
    if out is not None:
        written = [str(out / "evaluation.json")]
        if settings.predictions:
            written += [f"predictions.{settings.predictions}", f"classes.{settings.predictions}"]
        if "trace" in values:
            written.append(f"trace ({values['trace']['bytes_per_image'] / 1e3:.1f} kB per image)")
        lines += ["", f"written: {', '.join(written)}"]
    return "\n".join(lines)


def _cost(values: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    dense = values.get("dense_gflops")
    if values.get("gflops"):
        fewer = f" (dense {dense:.3f}: {dense / values['gflops']:.2f} times as many)" if dense else ""
        rows.append(("GFLOPs", f"{values['gflops']:.3f}{fewer}"))
    rows.append(("parameters", f"{values['parameters'] / 1e6:.2f} M"))
    if values.get("images_per_second"):
        low, high = values["images_per_second_quartiles"]
        text = f"{values['images_per_second']:.0f} (quartiles {low:.0f} to {high:.0f}; batches of {values['timed_batch']}"
        text += f", {values['precision']}, {values['device']})"
        if "speedup" in values:
            low, high = values["speedup_quartiles"]
            text += f": {values['speedup']:.2f} times the dense model ({low:.2f} to {high:.2f})"
        rows.append(("images/s", text))
    if values["evaluated_per_second"]:
        rows.append(("evaluated", f"in {values['seconds']:.1f} s, {values['evaluated_per_second']:.0f} images/s with loading"))
    return rows


class _Line:
    """Images done, speed, time left: rewritten on a terminal, now and then a new line elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.done = self.total = 0
        self._start = self._shown = time.monotonic()
        self._first: int | None = None

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:  # what an earlier call recorded took no time
            self._first, self._start = done, now
        self.done, self.total = done, total
        if now - self._shown < (0.1 if self.live else _SECONDS):
            return
        self._shown = now
        pace = (done - self._first) / max(now - self._start, 1e-9)
        left = clock((total - done) / pace) if pace else "?"
        text = f"{done}/{total} images  {pace:.0f} images/s  {left} left"
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
