"""A run of seconds: a tiny model on the fake folder, with everything random that there is."""

from __future__ import annotations

import multiprocessing
from functools import cache
from pathlib import Path
from typing import Any

from vitrim.training.recipe import Recipe

MODEL = "timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2)"

SMALL = {
    "model": MODEL,
    "data": "folder",
    "fake": True,
    "transform": "weak(size=32)",
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "adamw(lr=2e-3)",
    "lr_schedule": "cosine(warmup_epochs=1)",
    "workers": 0,
    "threads": 1,
}


def recipe(**values: object) -> Recipe:
    return Recipe.from_mapping({**SMALL, **values})


def written(folder: Path, **values: object) -> Path:
    """A recipe as a file."""
    file = folder / "recipe.yaml"
    file.write_text(recipe(**values).to_yaml())
    return file


@cache
def processes() -> Any:
    """A context whose processes start without the seconds of imports, and without the threads that autograd has here by now."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitrim.training.loop", "vitrim.cli.train", "accelerate", "timm"])
    first = context.Process(target=int)
    first.start()
    first.join()
    return context
