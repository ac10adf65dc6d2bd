"""Sinkhorn: soft clusters by optimal transport."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens
from vitrim.methods._plans import as_asked
from vitrim.methods._settings import check_compat


@METHODS.register("sinkhorn")
class Sinkhorn(Reducer):
    """Transport unit-length tokens to K learned centres by entropy-regularised optimal transport.

    A new token is the sum of unit-length tokens with the transport weights, as in the published code.

    Args:
        eps: strength of the entropy term.
        iterations: Sinkhorn iterations.
        compat: ``official`` overwrites the stored centres by their unit-length version in every forward pass, also in
            evaluation, and gives them the gradient of that version; ``paper`` normalises without touching them.
    """

    family = "soft"
    site = "before"
    fewest = 1
    paper = "Haurum et al., Which Tokens to Use?, ICCVW 2023, arXiv:2308.04657; Cuturi, NeurIPS 2013"
    needs = ("parameters", "patch count")

    def __init__(self, *, eps: float = 1.0, iterations: int = 3, compat: str = "paper") -> None:
        super().__init__()
        self.eps = eps
        self.iterations = iterations
        self.compat = check_compat(compat)

    def setup(self, dim: int, keep: int) -> None:
        self.v = nn.Parameter(torch.randn(keep, dim))

    def plan(self, course: Course) -> dict[int, int]:
        return as_asked(course)

    def value(self, patches: Tensor) -> Tensor:
        return F.normalize(patches, dim=-1)

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        if self.compat == "official":
            with torch.no_grad():
                self.v.copy_(F.normalize(self.v, dim=-1))
            centres = self.v
        else:
            centres = F.normalize(self.v, dim=-1)
        similarity = centres @ self.value(t.patches).transpose(1, 2)
        return TokenMap.soft(transport(similarity, self.eps, self.iterations)).with_prefix(t.prefix)


def transport(similarity: Tensor, eps: float, iterations: int) -> Tensor:
    """Sinkhorn iterations on ``similarity (B, K, n)``, cosines in [-1, 1], in float32 at least; columns sum to one.

    The published code iterates in log space. Cosines allow the plain form, two products with a vector an iteration, as
    long as ``exp(1 / eps)`` is a number that single precision handles with ease.
    """
    k, n = similarity.shape[-2:]
    exact = similarity if similarity.dtype == torch.float64 else similarity.float()
    if eps < 0.05:
        return _transport_of_logs(exact / eps, iterations)
    kernel = (exact / eps).exp_()
    share = 1.0 / (k + n)
    across = torch.ones_like(kernel[:, :1])
    down = torch.ones_like(kernel[:, :, :1])
    for _ in range(iterations):
        down = share / (kernel @ across.transpose(1, 2))
        across = share / (down.transpose(1, 2) @ kernel)
    down = down / share
    # The matrix is the largest tensor around: no second and third one where none is kept for gradients.
    return kernel * down * across if torch.is_grad_enabled() else kernel.mul_(down).mul_(across)


def _transport_of_logs(z: Tensor, iterations: int) -> Tensor:
    marginal = -math.log(sum(z.shape[-2:]))
    b = torch.zeros_like(z[:, :1])
    a = torch.zeros_like(z[:, :, :1])
    for _ in range(iterations):
        a = marginal - torch.logsumexp(z + b, dim=2, keepdim=True)
        b = marginal - torch.logsumexp(z + a, dim=1, keepdim=True)
    return (z + a + b - marginal).exp()
