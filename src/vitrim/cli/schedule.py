"""``vitrim schedule``: the token counts per block that lose least at a share of the dense model's time or FLOPs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitrim.cli.bench import load_images
from vitrim.cli.options import Integers, Numbers, pick_device
from vitrim.core.registry import METHODS
from vitrim.data.embedded import rotation
from vitrim.data.models import LoadedModel, load_model
from vitrim.measure.budget import BUDGETS, solve
from vitrim.measure.plan import Plan, Target, curve_to_csv, curve_to_markdown, plan_to_json, plot_plans
from vitrim.measure.report import environment

MOST = 500


def schedule(
    *,
    reduce: str,
    target: str,
    model: str = "fashion",
    weights: Path | None = None,
    images: str | None = None,
    calibrate: int | None = None,
    limit: int = 0,
    budgets: Numbers | None = None,
    at: Integers | None = None,
    evaluations: int = 60,
    batch_size: int = 64,
    rounds: int = 7,
    seed: int = 0,
    threads: int | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    out: Path = Path("vitrim-schedule"),
) -> int:
    """Find the schedule of a method that loses least at a share of the dense model's time or FLOPs.

    Measures the time of a block by its token count and what is lost by cutting at each block, solves for the counts, then
    tries neighbouring schedules. Chooses on one part of the images and reports on the others, against keep(rate) at a
    quarter, half and three quarters of the depth. Writes schedule.txt (a spec for --schedule and vitrim.reduce), curve.csv,
    curve.json, curve.md and curve.png; measured.json keeps what was measured, and the same question goes on from there.
    Ctrl-C during the search ends it with the best schedule so far.

    Args:
        reduce: method, such as tome or "atc(linkage=complete)".
        target: latency=0.6 or flops=0.6: the share of the dense model's that may be used.
        model: fashion (comes with vitrim), timm/NAME, or vit with --weights.
        weights: safetensors file with the weights of the model.
        images: folder of images; labelled when it has a sub-folder per class.
        calibrate: images to choose the schedule on; a quarter of them, up to 500, when left out.
        limit: images to use in all; 0 takes all.
        budgets: other shares for the curve (0.8 0.7 0.6 0.5 0.4 when left out).
        at: blocks that may reduce; all when left out.
        evaluations: neighbouring schedules to try at the target, and a third of it at the other shares.
        batch_size: images per batch, also for the clock.
        rounds: readings of the clock.
        seed: of the search, and of methods with randomness.
        threads: CPU threads; PyTorch's choice when left out.
        device: cpu, cuda, or auto.
        dtype: number format of the model.
        out: folder for the results.
    """
    wanted = Target.parse(target)
    method = METHODS.build(reduce)
    _check(budgets, at, evaluations=evaluations, batch_size=batch_size, rounds=rounds, threads=threads, limit=limit)
    if images == "noise":
        raise ValueError("--images noise: what is lost on noise says nothing; give a folder of real images")
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_model(model, weights, device=pick_device(device))
    loaded.model.to(getattr(torch, dtype))
    data, labels, _ = load_images(loaded, images, limit, batch_size)
    chosen, others = split(len(data), labels, calibrate)
    where = f"{next(loaded.model.parameters()).device}, {dtype}, threads: {torch.get_num_threads()}"
    parts = f"schedule chosen on {len(chosen)} images, reported on {len(others)} others"
    print(f"{loaded.name}: {parts}; batches of {batch_size}, {where}")
    if loaded.random:
        print("random weights: predictions mean nothing, and so does what a schedule loses; only the times are right")
    line = _Line()
    try:
        plan = solve(
            loaded.model, method, wanted, data[chosen],
            labels=None if labels is None else labels[others], report=data[others], budgets=budgets or BUDGETS,
            batch_size=batch_size, evaluations=evaluations, rounds=rounds, at=at, seed=seed,
            store=out / "measured.json", progress=line.show,
        )  # fmt: skip
    finally:
        line.clear()
    _write(plan, loaded, out, where, seed)
    _tell(plan, out)
    return 130 if plan.interrupted else 0


def split(count: int, labels: Tensor | None, calibrate: int | None) -> tuple[list[int], list[int]]:
    """Positions of the images to choose on and of those to report on: every class in both, or evenly spread without labels.

    Raises:
        ValueError: when either part would be empty.
    """
    size = min(MOST, count // 4) if calibrate is None else calibrate
    if not 2 <= size < count:
        raise ValueError(
            f"--calibrate {size} of {count} images: at least 2 are needed to choose the schedule on, and others to report on; "
            "give more images"
        )
    order = rotation(labels.tolist()) if labels is not None else [i * count // size for i in range(size)]
    chosen = sorted(order[:size])
    rest = set(chosen)
    return chosen, [i for i in range(count) if i not in rest]


def _check(budgets: Sequence[float] | None, at: Sequence[int] | None, **numbers: int | None) -> None:
    if budgets == [] or at == []:
        raise ValueError(f"--{'budgets' if budgets == [] else 'at'} needs a value; leave it out for the default")
    wrong = [b for b in budgets or () if not 0 < b < 1]
    if wrong:
        raise ValueError(f"--budgets are shares of the dense model, between 0 and 1; got {wrong[0]:g}")
    for name, value in numbers.items():
        least = 0 if name in ("evaluations", "limit") else 1
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more; got {value}")


def _write(plan: Plan, loaded: LoadedModel, out: Path, where: str, seed: int) -> None:
    facts: dict[str, Any] = {"environment": environment(), "model": loaded.name, "device": where, "seed": seed}
    out.mkdir(parents=True, exist_ok=True)
    (out / "schedule.txt").write_text(f"{plan.schedule}\n", encoding="utf-8")
    (out / "curve.csv").write_text(curve_to_csv(plan), encoding="utf-8")
    (out / "curve.json").write_text(plan_to_json(plan, **facts), encoding="utf-8")
    (out / "curve.md").write_text(curve_to_markdown(plan), encoding="utf-8")
    plot_plans([plan], out / "curve.png", f"{loaded.name}, {where}")


def _tell(plan: Plan, out: Path) -> None:
    print(f"\n{curve_to_markdown(plan)}")
    if plan.interrupted:
        print("interrupted: the best schedules until then; the same command goes on from there")
    missed = abs(plan.measured / plan.target.share - 1) > 0.03
    note = " (the clock of a busy machine, or the method's own work, which the plan does not count)" if missed else ""
    print(f"{plan.target}: predicted {plan.predicted:.3f}, measured {plan.measured:.3f}{note}")
    gains = [gain for point, gain in plan.gains() if gain is not None and point.schedule == plan.schedule]
    if gains:
        print(f"agreement with the dense model: {100 * gains[0]:+.1f} points against keep(rate) at equal measured cost")
    print(f"schedule: {plan.schedule}")
    names = ("schedule.txt", "curve.csv", "curve.json", "curve.md", "curve.png", "measured.json")
    print(f"written: {', '.join(str(out / name) for name in names)}")


class _Line:
    """One line of progress on a terminal; none elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._live:
            print(f"\r\033[K... {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
