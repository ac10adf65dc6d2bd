"""The embedded model, cut to three blocks so that an export takes a second."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from torch import Tensor

import vitrim
from vitrim.data.embedded import fashion
from vitrim.data.models import LoadedModel, load_model

SCHEDULE = "keep(rate=0.5, at=[1, 2])"


@cache
def images() -> Tensor:
    """One image of each class."""
    return fashion(10).images


@cache
def _loaded() -> LoadedModel:
    loaded = load_model("fashion")
    loaded.model.blocks = loaded.model.blocks[:3]  # pyright: ignore
    return loaded


def short_model(method: str | None) -> Any:
    """A fresh copy with its trained weights, reduced at blocks 1 and 2, or dense."""
    model = copy.deepcopy(_loaded().model)
    if method is not None:
        assert vitrim.reduce(model, method, SCHEDULE).load_learned(_loaded().reduction)
    return model
