"""Put a reduction into a model, and take it out again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from vitrim.core.backbone import Backbone, find_backbone
from vitrim.core.cache import Cache, Head
from vitrim.core.reducer import Reducer
from vitrim.core.reduction import Reduction
from vitrim.core.registry import CACHES, HEADS, METHODS, SCHEDULES, Registry
from vitrim.core.schedule import Schedule

P = TypeVar("P", Cache, Head)

DEFAULT_SCHEDULE = "keep(rate=0.5, at=[3, 6, 9])"


def reduce(
    model: nn.Module,
    method: str | Reducer,
    schedule: str | Schedule = DEFAULT_SCHEDULE,
    *,
    site: str | None = None,
    seed: int = 0,
    backbone: Backbone | None = None,
    cache: str | Cache | None = None,
    head: str | Head | None = None,
) -> Reduction:
    """Reduce the tokens of a vision transformer, in place.

    Args:
        model: a model of timm, torchvision, transformers or open_clip, or any module with a list of blocks.
        method: spec of a method such as ``"atc(linkage=average)"``, or a :class:`Reducer`; ``"none"`` removes nothing, for a
            cache or a head on the plain model.
        schedule: spec of a schedule such as ``"keep(rate=0.5, at=[3, 6, 9])"``, or a :class:`Schedule`.
        site: ``before``, ``inside`` or ``after`` a block, or ``around:NAME`` for the sub-module NAME of each block (pooled
            before, lifted after); the method's own site when None.
        seed: seed of methods with randomness.
        backbone: how to read the model, when vitrim does not know it.
        cache: spec of a cross-layer cache such as ``"clc(num_clr=1)"``; its parameters are at ``model.reduction.cache``.
        head: spec of a head that takes the place of the model's classifier, such as ``"cla"``; at ``model.reduction.head``.

    Returns:
        The reduction, also found at ``model.reduction``. ``detach()`` takes it out again.

    Raises:
        SpecError: for a bad spec, or a method that cannot work on this model.
        TypeError: for a model in which no blocks are found.
        ValueError: when the model is reduced already, or the schedule names blocks that it does not have.
    """
    if isinstance(getattr(model, "reduction", None), Reduction):
        raise ValueError("this model is reduced already; call model.reduction.detach() first")
    if hasattr(model, "reduction"):
        raise ValueError(f"{type(model).__name__} has an attribute 'reduction' of its own; wrap the model in another module")
    reducer = METHODS.build(method)
    plan = SCHEDULES.build(schedule)
    if not isinstance(reducer, Reducer):
        raise TypeError(f"method must be a spec or a Reducer, got {type(reducer).__name__}")
    if not isinstance(plan, Schedule):
        raise TypeError(f"schedule must be a spec or a Schedule, got {type(plan).__name__}")
    reduction = Reduction(
        model, backbone or find_backbone(model), reducer, plan, site, seed,
        _plugin(CACHES, cache, Cache), _plugin(HEADS, head, Head),
    )  # fmt: skip
    model.reduction = reduction  # first, so that a refusal leaves the model as it was
    reduction.attach()
    return reduction


def _plugin(registry: Registry, given: Any, kind: type[P]) -> P | None:
    if given is None or given == "none":
        return None
    plugin = registry.build(given)
    if not isinstance(plugin, kind):
        raise TypeError(f"{registry.kind} must be a spec or a {kind.__name__}, got {type(plugin).__name__}")
    return plugin


@contextmanager
def reduced(
    model: nn.Module, method: str | Reducer, schedule: str | Schedule = DEFAULT_SCHEDULE, **options: Any
) -> Generator[Reduction]:
    """As :func:`reduce`, for the time of a ``with`` block."""
    reduction = reduce(model, method, schedule, **options)
    try:
        yield reduction
    finally:
        reduction.detach()
