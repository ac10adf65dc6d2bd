"""Writes run folders as `vitrim train` leaves them, with numbers that a formula gives."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

METHODS = {"evit": 0.0, "topk": -0.6, "tome": 0.8, "atc": 1.4, "dpcknn": 0.5, "sit": -1.8}
RATES = (0.7, 0.5, 0.25, 0.1)


def score(method: str | None, rate: float, clca: bool, seed: int) -> float:
    """The final top-1 of a run."""
    if method is None:
        return 90.0 + 0.1 * seed
    return round(
        90 - 14 * (1 - rate) ** 3 + METHODS[method] * (1.2 - rate) + (3 * (1 - rate) ** 2 if clca else 0) + 0.3 * seed, 3
    )


def write_run(
    folder: Path, method: str | None = "evit", rate: float = 0.5, clca: bool = False, seed: int = 0, *, epochs: int = 10,
    state: str = "finished", steps: int = 20, **more: Any,
) -> Path:  # fmt: skip
    """One run folder; ``state`` other than finished leaves half of the training out."""
    folder.mkdir(parents=True)
    recipe = {
        "model": "timm/vit_tiny_patch16_224", "weights": None, "method": method, "schedule": f"keep(rate={rate}, at=[3, 6, 9])",
        "cache": "clc(num_clr=1)" if clca else None, "head": "cla" if clca else None, "data": "folder(root='data/leaves')",
        "epochs": epochs, "seed": seed, "log": ["jsonl"], "gradients": True, **more,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    rng, top = random.Random(f"{method}{rate}{clca}{seed}"), score(method, rate, clca, seed)
    lines = [{"kind": "start", "step": 0, "epoch": 0, "time": 0.0}]
    gradients = ["step,max_grad_all,mean_max_grad_layer,std_max_grad_layer,mean_avg_grad_layer,std_avg_grad_layer"]
    done = epochs if state == "finished" else epochs // 2
    for epoch in range(1, done + 1):
        for i in range(1, steps + 1):
            step, t = (epoch - 1) * steps + i, (epoch - 1 + i / steps) / epochs
            loss = round(4.4 * math.exp(-3 * t) + 0.2 + rng.gauss(0, 0.03), 5)
            lines.append({"kind": "train", "step": step, "epoch": epoch - 1 + i / steps, "time": step, "loss": loss, "lr": 1e-3})
            size = (0.5 if clca else 1.1) * (1.6 - rate) * (1 + 2 * math.exp(-4 * t)) * math.exp(rng.gauss(0, 0.25))
            gradients.append(f"{step},{size:.6g},{size / 9:.6g},{size / 8:.6g},{size / 90:.6g},{size / 80:.6g}")
        top1 = top if epoch == epochs else round(top * (1 - math.exp(-4 * epoch / epochs)), 3)
        lines.append(
            {"kind": "eval", "step": epoch * steps, "epoch": epoch, "time": epoch, "split": "val", "weights": "model",
             "top1": top1, "top5": min(99.0, top1 + 6), "loss": round(3 - top1 / 40, 4)}
        )  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "gradients.csv").write_text("\n".join(gradients) + "\n")
    last = {"top1": top, "top5": min(99.0, top + 6), "loss": round(3 - top / 40, 4)}
    work = 1.26 if method is None else round(1.26 * (0.3 + 0.7 * rate) + (0.02 if clca else 0), 4)
    summary = {
        "state": state, "last": last if state == "finished" else None, "best": last if state == "finished" else None,
        "parameters": 5_717_416, "trainable": 5_717_416, "gflops": work, "seconds": 600.0 + 10 * seed,
        "images_per_second": round(400 / work + 3 * seed + (11 * METHODS.get(method or "", 0)), 2), "device": "cpu",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "checkpoints").mkdir()
    return folder


def write_many(root: Path, **settings: Any) -> int:
    """The dense model and six methods at four rates, with and without CLCA, three seeds: 147 runs."""
    count = 0
    for seed in range(3):
        write_run(root / f"dense-seed{seed}", None, seed=seed, **settings)
        weights = str(root / f"dense-seed{seed}" / "model.safetensors")
        for method in METHODS:
            for rate in RATES:
                for clca in (False, True):
                    name = f"{method}-rate{rate}-{'clca' if clca else 'noclca'}-seed{seed}"
                    write_run(root / name, method, rate, clca, seed, weights=weights, **settings)
                    count += 1
    return count + 3
