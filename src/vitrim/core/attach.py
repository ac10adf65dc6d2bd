"""Put a reduction into a model, and take it out again."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from vitrim.core.backbone import Backbone, find_backbone
from vitrim.core.cache import Cache, Head
from vitrim.core.reducer import Reducer
from vitrim.core.reduction import Reduction
from vitrim.core.registry import CACHES, HEADS, METHODS, SCHEDULES, TUNERS, Registry
from vitrim.core.schedule import Schedule
from vitrim.core.tuner import Tuner
from vitrim.core.tuning import Tuning, read_tuners

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
    tuning = getattr(model, "tuning", None)
    tuning = tuning if isinstance(tuning, Tuning) else None
    reducer = METHODS.build(method)
    plan = SCHEDULES.build(schedule)
    if not isinstance(reducer, Reducer):
        raise TypeError(f"method must be a spec or a Reducer, got {type(reducer).__name__}")
    if not isinstance(plan, Schedule):
        raise TypeError(f"schedule must be a spec or a Schedule, got {type(plan).__name__}")
    plugins = _plugin(CACHES, cache, Cache), _plugin(HEADS, head, Head)
    if tuning is not None:
        tuning.suspend()
    try:
        reduction = Reduction(model, backbone or find_backbone(model), reducer, plan, site, seed, *plugins, tuning)
        model.reduction = reduction  # first, so that a refusal leaves the model as it was
    except BaseException:
        if tuning is not None:
            tuning.resume()
        raise
    reduction.attach()
    return reduction


def tune(
    model: nn.Module,
    method: str | Tuner | Sequence[str | Tuner],
    *,
    train: Sequence[str] = ("head", "class_token"),
    recompute: bool = False,
    backbone: Backbone | None = None,
) -> Tuning:
    """Freeze a vision transformer and add a parameter-efficient tuning method, in place.

    Token reduction comes after: ``vitrim.reduce`` works on a tuned model.

    Args:
        model: a vision transformer of timm; methods that only say what is trained work on all models that vitrim knows.
        method: spec of a method such as ``"ila(plus=2)"`` or ``"lora(r=8)"``, several of them (``"adapter(dim=8) + vpt"`` or a
            list), or :class:`Tuner` objects.
        train: parts of the model itself that are trained besides: ``head``, ``class_token``, ``pos_embed``, ``norm``, ``norms``,
            ``attention``, ``last_block`` and others (``vitrim.core.parts.PARTS``). The default is that of the ILA paper.
        recompute: compute the hidden layer of every MLP again in the backward pass instead of keeping it: less memory, the same
            gradients, a little more time.
        backbone: how to read the model, when vitrim does not know it.

    Returns:
        The tuning, also found at ``model.tuning``; its parameters are the only ones that are added.

    Raises:
        SpecError: for a bad spec, an unknown part, or a method that cannot work on this model or with the others.
        TypeError: for a model in which no blocks are found.
        ValueError: when the model is tuned or reduced already.
    """
    if isinstance(getattr(model, "tuning", None), Tuning):
        raise ValueError("this model is tuned already; name all methods at once, or call model.tuning.detach() first")
    if isinstance(getattr(model, "reduction", None), Reduction):
        raise ValueError("the tokens of this model are reduced; call model.reduction.detach(), tune it, and reduce it again")
    if hasattr(model, "tuning"):
        raise ValueError(f"{type(model).__name__} has an attribute 'tuning' of its own; wrap the model in another module")
    tuning = Tuning(model, backbone or find_backbone(model), read_tuners(method, TUNERS), train, recompute)
    model.tuning = tuning
    try:
        tuning.attach()
    except BaseException:
        tuning.detach()
        raise
    return tuning


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
