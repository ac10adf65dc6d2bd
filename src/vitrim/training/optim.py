"""Parameter groups of the papers, layer-wise rates, and optimizers by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from vitrim.core.registry import Registry, SpecError, parse_spec
from vitrim.recognition.base import Recogniser, backbone_of

OPTIMIZERS = Registry("optimizer")

NEW_NAMES = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias", "pos_embed", "patch_embed")
NO_DECAY = ("pos_embed", "cls_token", "anchor_token", "dist_token", "clr")

Group = dict[str, Any]


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.05,
    backbone_lr_scale: float = 1.0,
    freeze_epochs: int = 0,
    layer_decay: float | None = None,
    new_names: Collection[str] = (),
    no_decay: Collection[str] = (),
    constant_cls: bool = False,
    constant_pos: bool = False,
) -> list[Group]:
    """The trainable parameters in the groups of *Which Tokens to Use?* and CLCA.

    A parameter is *new* if it is a recogniser's own, or if its name contains, or is contained in, one of: the head's,
    ``pos_embed``, ``patch_embed`` (:data:`NEW_NAMES`, as published), ``reduction`` and ``tuning`` (all that those add) and
    ``new_names``; all others are the backbone. Without weight decay are one-dimensional tensors, biases, and those called as in
    :data:`NO_DECAY`, in the model's own list (``model.no_weight_decay()`` of timm) or in ``no_decay``.

    Args:
        model: the model, before it is compiled or wrapped; frozen parameters are left out.
        lr: rate of new parameters.
        weight_decay: weight decay.
        backbone_lr_scale: rate of the backbone as a multiple of ``lr``.
        freeze_epochs: epochs in which the backbone's rate is 0 (see :func:`vitrim.training.schedules.group_lr`).
        layer_decay: timm's layer-wise decay: the rate of layer ``l`` of ``L`` is multiplied with ``layer_decay ** (L - l)``,
            the embeddings being layer 0 and the head ``L``; None for equal rates.
        new_names: names or parts of names of more new parameters.
        no_decay: names of more parameters without weight decay (the last part of the dotted name).
        constant_cls: leave class and distillation tokens as they are.
        constant_pos: leave position embeddings as they are.

    Returns:
        Groups, in the order of first use, with ``params``, ``param_names``, ``name``, ``lr``, ``initial_lr``, ``weight_decay``,
        ``freeze_epochs`` and ``lr_scale``.

    Raises:
        ValueError: when nothing is trainable, or a setting is out of range.
    """
    _check_range(layer_decay, backbone_lr_scale, freeze_epochs)
    fresh = (*NEW_NAMES, "reduction.", "tuning.", *new_names)
    own: Any = getattr(backbone_of(model), "no_weight_decay", set)  # timm's models list theirs
    inside = "vit." if isinstance(model, Recogniser) else ""
    skipped: set[str] = {*NO_DECAY, *no_decay, *own()}
    scales = layer_scales(model, layer_decay) if layer_decay is not None else {}
    groups: dict[tuple[bool, bool, float], Group] = {}
    for name, parameter in _trainable(model, constant_cls, constant_pos):
        new = is_new(name, fresh) or not name.startswith(inside)
        decayed = parameter.ndim > 1 and not name.endswith(".bias") and skipped.isdisjoint({name, name.rsplit(".", 1)[-1]})
        scale = scales.get(name, 1.0)
        key = new, decayed, scale
        if key not in groups:
            rate = lr if new else lr * backbone_lr_scale
            groups[key] = {
                "name": ("new" if new else "backbone") + ("" if decayed else "-no-decay") + (f"-x{scale:.4g}" if scales else ""),
                "params": [],
                "param_names": [],
                "lr": rate * scale,
                "initial_lr": rate,
                "lr_scale": scale,
                "weight_decay": weight_decay if decayed else 0.0,
                "freeze_epochs": 0 if new else freeze_epochs,
            }
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(name)
    if not groups:
        raise ValueError("no parameter of the model is trainable; unfreeze some with requires_grad_(True)")
    return list(groups.values())


def is_new(name: str, new_names: Collection[str]) -> bool:
    """Whether a parameter counts as new: its name contains, or is contained in, one of ``new_names`` (the published rule)."""
    return any(word in name or name in word for word in new_names)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Factor on the rate of every parameter by its depth, by timm's rule; 1 for the head, the last norm and what is added.

    Raises:
        ValueError: when the model has no layers that timm knows.
    """
    from timm.models import group_parameters

    backbone = backbone_of(model)
    matcher: Any = getattr(backbone, "group_matcher", None)
    if not callable(matcher):
        raise ValueError(f"layer_decay reads the layers of timm models; {type(model).__name__} has none: set layer_decay=null")
    layers: Any = group_parameters(backbone, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    if isinstance(model, Recogniser):
        # Its backbone has no head any more, which would be the last layer.
        layers, last = {f"vit.{name}": layer for name, layer in layers.items()}, len(backbone.blocks) + 1
    return {name: decay ** (last - layers.get(name, last)) for name, _ in model.named_parameters()}


def _check_range(layer_decay: float | None, backbone_lr_scale: float, freeze_epochs: int) -> None:
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is in (0, 1]; got {layer_decay}")
    if backbone_lr_scale < 0 or freeze_epochs < 0:
        raise ValueError("backbone_lr_scale and freeze_epochs are 0 or more")


def _trainable(model: nn.Module, constant_cls: bool, constant_pos: bool) -> list[tuple[str, Tensor]]:
    constant = {*(("cls_token", "dist_token") if constant_cls else ()), *(("pos_embed",) if constant_pos else ())}
    found: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.rsplit(".", 1)[-1] not in constant:
            found.append((name, parameter))
    return found


def scaled_lr(lr: float, images_per_step: int, normalizer: float | None) -> float:
    """The rate for a batch: ``lr * images_per_step / normalizer``, the images of all processes and accumulated batches.

    Args:
        lr: rate for ``normalizer`` images.
        images_per_step: images per optimizer step.
        normalizer: images for which ``lr`` is meant, such as 512; None to leave the rate alone.
    """
    return lr if normalizer is None else lr * images_per_step / normalizer


def drop_frozen(optimizer: Optimizer, epoch: int) -> None:
    """Really freeze: take the gradients of groups that are frozen in ``epoch``, before the optimizer's step.

    Without this a frozen group has rate 0 while the moments of Adam go on collecting its gradients, as published. With it the
    moments start when the group does. (Parameters keep ``requires_grad``: DistributedDataParallel takes it for constant.)
    """
    for group in optimizer.param_groups:
        if epoch < group.get("freeze_epochs", 0):
            for parameter in group["params"]:
                parameter.grad = None


class OptimizerSettings(Protocol):
    """An optimizer's settings: rate and weight decay for the groups, and how it is made."""

    lr: float
    weight_decay: float

    def make(self, groups: Sequence[Group]) -> Optimizer:
        """The optimizer of some parameter groups."""
        ...


@OPTIMIZERS.register("adamw")
class AdamW:
    """AdamW (Loshchilov & Hutter, 2019), PyTorch's; one fused kernel where the parameters allow it.

    Args:
        lr: learning rate.
        weight_decay: decoupled weight decay.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, *, lr: float = 5e-4, weight_decay: float = 0.05, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, betas, eps

    def make(self, groups: Sequence[Group]) -> Optimizer:
        betas = (self.betas[0], self.betas[1])
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=0.0, betas=betas, eps=self.eps, fused=fusible(groups))


@OPTIMIZERS.register("sgd")
class SGD:
    """Stochastic gradient descent with momentum, PyTorch's; one fused kernel where the parameters allow it.

    Args:
        lr: learning rate.
        weight_decay: L2 penalty.
        momentum: momentum.
        nesterov: look ahead, as the recipes of ILA do.
    """

    def __init__(self, *, lr: float = 0.01, weight_decay: float = 0.0, momentum: float = 0.9, nesterov: bool = True) -> None:
        if nesterov and not momentum:
            raise ValueError("nesterov needs momentum; set nesterov=false or momentum above 0")
        self.lr, self.weight_decay, self.momentum, self.nesterov = lr, weight_decay, momentum, nesterov

    def make(self, groups: Sequence[Group]) -> Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fusible(groups))


class TimmOptimizer:
    """Any other optimizer of timm (``timm.optim.list_optimizers()``), with the keywords it takes there."""

    def __init__(self, name: str, *, lr: float, weight_decay: float = 0.05, **settings: Any) -> None:
        self.name, self.lr, self.weight_decay, self.settings = name, lr, weight_decay, settings

    def make(self, groups: Sequence[Group]) -> Optimizer:
        from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]

        try:
            return create_optimizer_v2(list(groups), opt=self.name, lr=self.lr, weight_decay=0.0, **self.settings)
        except (TypeError, AssertionError) as error:
            raise SpecError(f"optimizer '{self.name}': {error}") from error


def read_optimizer(spec: str | OptimizerSettings) -> OptimizerSettings:
    """The settings of a spec such as ``adamw(lr=1e-3, weight_decay=0.05)`` or ``lamb(lr=5e-3)``.

    Raises:
        SpecError: for an unknown optimizer or setting, or a rate that is missing.
    """
    if not isinstance(spec, str):
        return spec
    name, args, settings = parse_spec(spec)
    if name in OPTIMIZERS.names():
        return OPTIMIZERS.build(spec)
    from timm.optim import list_optimizers  # pyright: ignore[reportPrivateImportUsage]

    known = sorted({*OPTIMIZERS.names(), *list_optimizers()})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "known: adamw, sgd, and those of timm.optim.list_optimizers()"
        raise SpecError(f"unknown optimizer '{name}'; {hint}")
    if args or "lr" not in settings:
        raise SpecError(f"optimizer '{spec}': write settings by name and give the rate, as in {name}(lr=1e-3)")
    return TimmOptimizer(name, **settings)


def build_optimizer(groups: Sequence[Group], spec: str | OptimizerSettings) -> Optimizer:
    """The optimizer of a spec for groups of :func:`parameter_groups`, which bring rate and weight decay.

    Raises:
        SpecError: as :func:`read_optimizer`.
    """
    return read_optimizer(spec).make([dict(group) for group in groups])


def fusible(groups: Sequence[Group]) -> bool | None:
    """True where the fused step can be used (floating-point parameters on a CPU or a GPU): same result, one pass; else None."""
    parameters = [p for group in groups for p in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters) or None
