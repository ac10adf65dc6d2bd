"""``vitrim train``: a training run from a recipe, or one that goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitrim.training.folder import RunFolder
from vitrim.training.loop import train as run_training
from vitrim.training.recipe import Recipe

# What may change between two parts of a run; everything else would make the first part void.
_MAY_CHANGE = (
    "workers", "threads", "log", "keep_checkpoints", "checkpoint_every", "eval_every", "data", "clip", "optimizer", "lr_schedule",
    "precision", "skip_unreadable",
)  # fmt: skip


def train(
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    resume: Path | None = None,
) -> int:
    """Train a model by a recipe: a dense or reduced vision transformer, on one process or many.

    vitrim train recipes/smoke.yaml --out RUN, or vitrim train --resume RUN. Any key of the recipe is an option, as in
    --epochs 50 or --method 'atc(linkage=average)'; --schedule.rate 0.25 sets one setting of a spec; --fake trains on the fake
    twin of the data set. The command line comes before the file. Many processes: accelerate launch -m vitrim.cli.app train ...

    Args:
        words: YAML file with the keys, and any key of the recipe with its value.
        out: folder of the run; it must not hold one yet.
        resume: folder of a run that goes on from its newest checkpoint.
    """
    recipe, keys = read_words(words)
    if resume is not None:
        if recipe is not None or out is not None:
            raise ValueError("--resume RUN takes the recipe from the run's folder; leave out the recipe and --out")
        return _report(_resume(resume, keys), resume)
    if recipe is None or out is None:
        raise ValueError("give a recipe and a folder, as in: vitrim train recipes/smoke.yaml --out RUN; or --resume RUN")
    return _report(run_training(Recipe.from_yaml(recipe, keys), out), out)


def read_words(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Recipe file and keys of ``FILE --key value --key=value --fake``.

    Raises:
        ValueError: for a key without a value, or a second file.
    """
    recipe: str | None = None
    keys: dict[str, str] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            if recipe is not None:
                raise ValueError(f"'{word}' is a second recipe after '{recipe}'; write keys as --key value")
            recipe = word
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if key == "fake" and (not left or left[0].lower() not in ("true", "false")):
                value = "true"
            elif left:
                value = left.pop(0)
            else:
                raise ValueError(f"--{key} needs a value, as in --{key} VALUE")
        keys[key] = value
    return recipe, keys


def _resume(run: Path, keys: dict[str, str]) -> dict[str, Any]:
    folder = RunFolder(run)
    before = folder.recipe()
    strange = [k for k in keys if k.replace("-", "_").split(".")[0] not in _MAY_CHANGE]
    if strange:
        raise ValueError(
            f"--{strange[0]} cannot change in a run that goes on; start another one (what can: {', '.join(_MAY_CHANGE)})"
        )
    if folder.finished():
        print(f"{run} is finished already", file=sys.stderr)
        return folder.read_summary()
    return run_training(Recipe.from_mapping(before.to_dict(), keys), run, resume=True)


def _report(summary: dict[str, Any], run: Path) -> int:
    """Tell how it ended, in the first process; the exit code."""
    main = int(os.environ.get("RANK", "0")) == 0
    if summary["state"] == "interrupted":
        done = f"{summary['step']} of {summary['steps']} steps"
        if main:
            print(f"interrupted after {done}; go on with: vitrim train --resume {run}", file=sys.stderr)
        return 128 + int(summary.get("signal") or 2)
    score, best = summary["score"], summary.get("best") or {}
    last = (summary.get("last") or {}).get("model", {})
    where = f"best {best[score]:.2f} at epoch {best['epoch']:g} ({best['weights']})" if best else "not evaluated"
    if main:
        print(f"{score} {last.get(score, float('nan')):.2f} at the end, {where}; written: {run / 'model.safetensors'}")
    return 0
