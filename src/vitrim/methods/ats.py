"""ATS: adaptive token sampling."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.methods._plans import every_location
from vitrim.methods._settings import check_compat


@METHODS.register("ats")
class ATS(Reducer):
    """Sample tokens at even steps of the cumulated class attention (times value norm): at most K, fewer on easy images.

    Counts differ from image to image. The batch is padded to its longest image (to K under ``torch.compile``), and
    padding is masked in all later blocks, so that no image depends on its neighbours.

    Args:
        compat: ``official`` measures distances to the steps by the matrix-product formula of the published code, whose
            rounding errors flip about 0.3 % of the choices, and takes one token more than asked for where the end of its steps
            is rounded up (K = 18, 33 or 195, for example); ``paper`` is exact in both.
    """

    family = "prune"
    paper = "Fayyaz et al., Adaptive Token Sampling (ATS), ECCV 2022, arXiv:2111.15667"
    needs = ("attention", "class token")
    without_cls = "samples by the mean attention that a token receives"

    def __init__(self, *, compat: str = "paper") -> None:
        super().__init__()
        self.compat = check_compat(compat)

    def plan(self, course: Course) -> dict[int, int]:
        return every_location(course)

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        n = t.x.shape[1] - t.prefix
        if not n:
            return TokenMap.identity(t.x.shape[0], t.prefix, t.x.device)
        valid = None if t.valid is None else t.valid[:, t.prefix :]
        score = (t.class_attention() * torch.linalg.vector_norm(t.attention.values, dim=-1)).sum(dim=1)[:, t.prefix :]
        if self.compat != "official" and t.carried is None:
            # Padding inside the sequence adds nothing to the levels: the token before it is taken in its place.
            score, valid = score if valid is None else score * valid, None
        index = sample(score, keep + 1, valid, exact=self.compat != "official")
        hit = torch.zeros_like(score, dtype=torch.bool).scatter(1, index, True)
        place = torch.arange(n, device=score.device).expand_as(hit)
        most = keep if self.compat != "official" else index.shape[1]
        chosen = torch.where(hit, place, n).sort(dim=1).values[:, : min(most, n)]
        if not torch.compiler.is_compiling():
            chosen = chosen[:, : int(hit.sum(dim=1).max())]
        real = chosen < n
        kept = TokenMap.select(torch.where(real, chosen, 0), n, valid=real).with_prefix(t.prefix)
        if t.carried is None or kept.valid is None or kept.source is None:
            return kept
        return replace(kept, source=torch.where(kept.valid, kept.source, 0))  # as published: padding is copies of the class token


def sample(score: Tensor, samples: int, valid: Tensor | None = None, exact: bool = True) -> Tensor:
    """Inverse-transform sampling at fixed steps: the token whose cumulated score is nearest to each step.

    Args:
        score: ``(B, n)`` non-negative scores.
        samples: the count K of the paper; ``K - 1`` steps come out (K for the few K where rounding lets one more in).
        valid: ``(B, n)`` bool, False for padding, whose level is raised by 0.1 as published.
        exact: measure distances exactly instead of through a matrix product.

    Returns:
        ``(B, steps)`` indices, with repetitions.
    """
    share = score.float() / (score.float().sum(dim=1, keepdim=True) + 1e-6)
    level = share.cumsum(dim=1)
    if level.is_cuda:
        level = level.cummax(dim=1).values  # parallel sums may fall by a last bit
    half = 1.0 / (2 * samples)
    stop = (2 * samples - 1) * half if exact else (2 * samples - 1) / (2 * samples)  # the quotient is what may let one more in
    steps = torch.arange(half, stop, 2 * half, dtype=torch.float32, device=score.device)
    if steps.numel() == 0:
        steps = torch.full((1,), 0.5, device=score.device)
    if valid is not None:
        level = level + 0.1 * ~valid
    if not exact:
        return torch.cdist(steps.view(1, -1, 1).expand(len(level), -1, 1), level.unsqueeze(-1)).argmin(dim=2)
    if valid is not None:  # the levels need not ascend
        return (steps.view(1, -1, 1) - level.unsqueeze(1)).abs().argmin(dim=2)
    return _nearest(level, steps.expand(level.shape[0], -1).contiguous())


def _nearest(level: Tensor, steps: Tensor) -> Tensor:
    """For each of ``steps (B, K)`` the first index of its nearest value in ``level (B, n)``, whose rows ascend."""
    above = torch.searchsorted(level, steps).clamp_max(level.shape[1] - 1)
    # Of equal levels the first one, as everywhere.
    below = torch.searchsorted(level, level.gather(1, (above - 1).clamp_min(0)))
    nearer = (steps - level.gather(1, below)).abs() <= (steps - level.gather(1, above)).abs()
    return torch.where(nearer, below, above)
