"""A tiny model with sharp attention and the fake folder: what the tests of evaluation share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch

import vitrim
from vitrim.datasets.base import DATASETS, DataSet
from vitrim.datasets.transforms import TRANSFORMS
from vitrim.experiments.subject import Subject
from vitrim.tasks import TASKS

METHODS = ("atc", "ats", "dpcknn", "dynamicvit", "evit", "fixed", "kmedoids", "patchmerger", "sinkhorn", "sit", "tome", "topk")
SOFT = ("patchmerger", "sinkhorn", "sit")


def model(classes: int = 4, **settings: Any) -> torch.nn.Module:
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": classes, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = timm.create_model("vit_tiny_patch16_224", **sizes)
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1.5 * (parameter[0].numel() if parameter.shape[0] > 1 else 1) ** -0.5)
    return built.eval()


@cache
def dataset(name: str, root: Path) -> DataSet:
    return DATASETS.get(name).fake(root / name)


def subject(
    root: Path, method: str | None = None, cache: str | None = None, data: str = "folder", split: str = "train"
) -> Subject:
    found = dataset(data, root)
    built = model(len(found.classes))
    if method is not None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            vitrim.reduce(built, method, "keep(rate=0.6, at=[1, 2])", cache=cache)
    transform = TRANSFORMS.build("weak(size=48)")
    what = {"model": "tiny", "weights": None, "method": method, "schedule": None, "cache": cache, "head": None}
    what |= {"data": data, "split": split, "transform": "weak(size=48)"}
    task = TASKS.build("multilabel" if found.multilabel else "classify")
    return Subject(built, found, split, transform.eval(), task, what)
