"""Square roots of positive semi-definite matrices by Newton-Schulz steps, and signed roots of numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> torch.autocast:
    """A context without autocast: in half precision the steps do not converge."""
    return torch.autocast(x.device.type, enabled=False)


def full(x: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def newton_schulz(a: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Approximate ``a ** 0.5`` and ``a ** -0.5`` by coupled Newton-Schulz steps.

    The gradient is that of the steps, by autograd. Null directions of ``a`` stay null in the root; in the inverse they grow by
    1.5 in every step, so that it is finite.

    Args:
        a: ``(B, d, d)`` symmetric, eigenvalues in [0, 1]: divide by the trace or by the Frobenius norm.
        steps: number of steps, 1 or more.
    """
    three = 3 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    half = 0.5 * (three - a)
    y, z = a @ half, half
    for _ in range(steps - 1):
        half = 0.5 * (three - z @ y)
        y, z = y @ half, half @ z
    return y, z


def covariance(x: Tensor, share: Tensor) -> Tensor:
    """Covariance ``(B, d, d)`` of the rows of ``x (B, n, d)`` with weights ``share (B or 1, n, 1)`` that sum to one."""
    centred = x - (share * x).sum(dim=1, keepdim=True)
    return (share * centred).mT @ centred


def trace_root(a: Tensor, steps: int) -> Tensor:
    """Square root of ``a (B, d, d)``, normalised by its trace: iSQRT-COV (Li et al., CVPR 2018, arXiv:1712.01034)."""
    trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp_min(_least(a))
    return newton_schulz(a / trace, steps)[0] * trace.sqrt()


def second_moment_root(x: Tensor, steps: int) -> Tensor:
    """Square root of ``x.mT @ x`` for ``x (B, n, d)``, normalised by its Frobenius norm.

    With fewer rows than columns the steps run on the small matrix ``x @ x.mT``, which has the same norm: every step is a
    polynomial, and ``x.mT @ q(x @ x.mT) @ x`` is ``a q(a)``. For 196 tokens of width 768 that is a sixtieth of the work.
    """
    small = x.shape[1] < x.shape[2]
    gram = x @ x.mT if small else x.mT @ x
    norm = torch.linalg.matrix_norm(gram)[:, None, None].clamp_min(_least(gram))
    y, z = newton_schulz(gram / norm, steps)
    return x.mT @ z @ x / norm.sqrt() if small else y * norm.sqrt()


def signed_sqrt(x: Tensor) -> Tensor:
    """``sign(x) * sqrt(|x|)`` with a bounded gradient: below 1e-12 the root grows no steeper."""
    return x.sign() * x.abs().clamp_min(1e-12).sqrt()


def _least(a: Tensor) -> float:
    """Keeps a matrix of zeros (one token, tokens all alike) from being divided by zero."""
    return torch.finfo(a.dtype).tiny ** 0.5
