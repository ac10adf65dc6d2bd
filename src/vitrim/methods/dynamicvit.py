"""DynamicViT: a small network decides which tokens stay; trained with masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.methods._init import init_linear
from vitrim.methods._plans import every_location


@METHODS.register("dynamicvit")
class DynamicViT(Reducer):
    """Keep the K patch tokens that a learned predictor scores highest.

    In training no token leaves: hard Gumbel-softmax decisions with a straight-through gradient mask the attention of
    this and all later blocks. The decisions are found at ``reduction.trace[block].policy``, where the loss reads them.
    """

    family = "prune"
    site = "before"
    paper = "Rao et al., DynamicViT, NeurIPS 2021, arXiv:2106.02034"
    needs = ("parameters",)

    def setup(self, dim: int, keep: int) -> None:
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
            nn.LogSoftmax(dim=-1),
        )
        init_linear(self)

    def plan(self, course: Course) -> dict[int, int]:
        return every_location(course)

    def predict(self, patches: Tensor, policy: Tensor) -> Tensor:
        """Log-probabilities ``(B, n, 2)`` of keep and drop, for tokens ``(B, n, C)`` of which ``policy (B, n)`` are still in."""
        z = self.in_conv(patches)
        half = z.shape[-1] // 2
        gate = policy.unsqueeze(-1).to(z.dtype)
        count = gate.sum(dim=1, keepdim=True)
        # The official code adds 1e-6 to the quotient and gives NaN for an image whose tokens are all dropped.
        count = torch.where(count == 0, torch.ones_like(count), count)
        whole = (z[..., half:] * gate).sum(dim=1, keepdim=True) / count + 1e-6
        return self.out_conv(torch.cat([z[..., :half], whole.expand(-1, z.shape[1], -1)], dim=-1))

    def sample(self, log_probability: Tensor) -> Tensor:
        """Hard keep decisions ``(B, n)`` with a straight-through gradient."""
        return F.gumbel_softmax(log_probability, tau=1.0, hard=True)[..., 0]

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        before = torch.ones_like(t.size[:, t.prefix :]) if t.policy is None else t.policy[:, t.prefix :]
        if t.carried is not None and not t.training:
            before = before * ~t.carried[:, t.prefix :]
        score = self.predict(t.patches, before)
        if t.training:
            decision = self.sample(score) * before
            return Policy(torch.cat([decision.new_ones(decision.shape[0], t.prefix), decision], dim=1))
        index = score[..., 0].topk(keep, dim=1, sorted=False).indices.sort(dim=1).values
        return TokenMap.select(index, score.shape[1]).with_prefix(t.prefix)
