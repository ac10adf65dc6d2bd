"""Learning from a teacher: predictions (soft or hard, as DeiT) and tokens (as DynamicViT)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitrim.core.registry import Registry
from vitrim.training.losses import check_kl, check_same, divergence

DISTILLATIONS = Registry("distillation")

Output = Tensor | tuple[Tensor, Tensor]

NORMS = ("norm", "encoder.ln", "vit.layernorm", "layernorm", "trunk.norm")


@DISTILLATIONS.register("soft")
class Soft:
    """Follow the teacher's probabilities: ``tau^2`` times the divergence of the softened predictions (Hinton et al., 2015).

    Args:
        alpha: weight of the teacher; the labels have the rest.
        tau: temperature.
        kl: ``batchmean``, the divergence; ``mean`` divides it by the number of classes besides, as in the code of DeiT.
    """

    def __init__(self, *, alpha: float = 0.5, tau: float = 1.0, kl: str = "batchmean") -> None:
        if tau <= 0:
            raise ValueError(f"tau is a temperature above 0; got {tau}")
        self.alpha, self.tau, self.kl = _share(alpha), tau, check_kl(kl)

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean loss of logits ``(B, C)``."""
        return self.tau**2 * divergence(student, teacher, self.tau, self.kl).mean()


@DISTILLATIONS.register("hard")
class Hard:
    """Follow the teacher's best class, as a second label (Touvron et al., DeiT, ICML 2021).

    Args:
        alpha: weight of the teacher; the labels have the rest.
    """

    def __init__(self, *, alpha: float = 0.5) -> None:
        self.alpha = _share(alpha)

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean loss of logits ``(B, C)``."""
        check_same(student, teacher)
        return F.cross_entropy(student, teacher.argmax(-1))


def _share(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the teacher's share of the loss, in [0, 1]; got {alpha}")
    return alpha


class DistillationLoss(nn.Module):
    """``(1 - alpha) * base + alpha * teacher``.

    A model with a distillation token that returns both logits (timm: ``model.set_distilled_training(True)``) learns the labels
    with the first and the teacher with the second; any other model learns both with its one output.

    Args:
        base: loss on the labels ``(logits, target)``.
        kind: spec such as ``soft(alpha=0.5, tau=3)`` or ``hard``; None for the base loss alone.
    """

    def __init__(self, base: nn.Module, kind: str | Soft | Hard | None = "soft") -> None:
        super().__init__()
        self.base = base
        self.kind: Soft | Hard | None = None if kind is None else DISTILLATIONS.build(kind)

    def forward(self, output: Output, target: Tensor, teacher: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            output: logits ``(B, C)``, or those of class token and distillation token.
            target: as the base loss takes it.
            teacher: logits of the teacher ``(B, C)``.
        """
        logits, distilled = output if isinstance(output, tuple) else (output, output)
        loss = self.base(logits, target)
        if self.kind is None or teacher is None:
            return loss
        return (1 - self.kind.alpha) * loss + self.kind.alpha * self.kind.term(distilled, teacher.detach())


class FinalTokens:
    """Patch tokens after the last norm of a model, caught in its forward pass (with their gradient).

    Args:
        model: the model; the norm is found by its name (timm, torchvision, transformers, open_clip).
        prefix: tokens in front of the patches, which are left out.

    Raises:
        ValueError: when no last norm is found.
    """

    def __init__(self, model: nn.Module, prefix: int | None = None) -> None:
        modules = dict(model.named_modules())
        norm = next((modules[name] for name in NORMS if name in modules), None)
        if norm is None:
            raise ValueError(f"{type(model).__name__} has no last norm; token distillation looks at: {', '.join(NORMS)}")
        self.prefix = int(getattr(model, "num_prefix_tokens", 1)) if prefix is None else prefix
        self._tokens: Tensor | None = None
        self._hook: RemovableHandle = norm.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._tokens = output

    def take(self) -> Tensor:
        """The tokens ``(B, n, D)`` of the last forward pass, which are let go.

        Raises:
            ValueError: when there was none since.
        """
        if self._tokens is None:
            raise ValueError("there was no forward pass since the last tokens were taken")
        tokens, self._tokens = self._tokens, None
        if tokens.ndim != 3:
            raise ValueError(f"the last norm gave {tuple(tokens.shape)} instead of tokens (B, n, D): it comes after pooling here")
        return tokens[:, self.prefix :]

    def close(self) -> None:
        """Stop catching."""
        self._hook.remove()
        self._tokens = None


class Teacher(nn.Module):
    """A frozen model in evaluation mode that answers with logits, and with its patch tokens where they are wanted.

    Keep it out of the student: it is no part of its state dict, and not wrapped for distributed training.

    Args:
        model: the model, with the student's classes; its parameters are frozen.
        tokens: whether tokens are wanted.
    """

    def __init__(self, model: nn.Module, tokens: bool = False) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tap = FinalTokens(model) if tokens else None

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, C)`` and tokens ``(B, n, D)`` or None, for images as the student sees them (after mixup too)."""
        logits = self.model(images)
        return logits, None if self.tap is None else self.tap.take()
