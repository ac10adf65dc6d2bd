"""Matrix square roots: known answers, the gradient against published formulas and finite differences."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrim.heads._roots import covariance, newton_schulz, second_moment_root, signed_sqrt, trace_root


def filled(shape: tuple[int, ...], scale: float, phase: float) -> Tensor:
    count = torch.Size(shape).numel()
    return (scale * torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase)).view(shape)


def known(x: Tensor, first: list[float], total: float, squares: float) -> None:
    torch.testing.assert_close(x.flatten()[: len(first)], torch.tensor(first, dtype=x.dtype), atol=1e-8, rtol=0)
    assert abs(float(x.sum()) - total) < 1e-7
    assert abs(float((x**2).sum()) - squares) < 1e-7


def test_known_answers() -> None:
    x = filled((2, 4, 3, 3), 1, 0.2).flatten(2).mT
    a = covariance(x, torch.full((1, 9, 1), 1 / 9, dtype=torch.float64))
    known(a, [0.48790711, -0.44325151, 0.32584130, -0.15494801], 0.54148887, 5.35575798)
    root = trace_root(a, 5)
    known(root, [0.52902296, -0.40361012, 0.21194934, 0.01450047], 0.89842525, 3.91657852)
    rows, columns = torch.triu_indices(4, 4)
    known(root[:, rows, columns], [0.52902296, -0.40361012, 0.21194934, 0.01450047], 2.31468699, 2.84336042)


def test_small_side_is_the_large_side() -> None:
    """The steps on the tokens' inner products give what the steps on the channels give."""
    x = torch.randn(2, 5, 9, dtype=torch.float64)
    a = x.mT @ x
    norm = torch.linalg.matrix_norm(a)[:, None, None]
    for steps in (1, 4, 10):
        torch.testing.assert_close(second_moment_root(x, steps), newton_schulz(a / norm, steps)[0] * norm.sqrt())
    wide = torch.randn(2, 9, 5, dtype=torch.float64)
    root = second_moment_root(wide, 30)
    torch.testing.assert_close(root @ root, wide.mT @ wide)


def test_gradients_by_finite_differences() -> None:
    x = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    share = torch.full((1, 6, 1), 1 / 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: trace_root(covariance(t, share), 5), x)
    assert torch.autograd.gradcheck(lambda t: second_moment_root(t, 6), x)
    assert torch.autograd.gradcheck(lambda t: second_moment_root(t.mT, 6), x)
    assert torch.autograd.gradcheck(signed_sqrt, x)


def test_gradient_is_that_of_the_published_backward() -> None:
    """Newton-Schulz steps for the Lyapunov equation of the root, where the root has converged."""
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    a = (q * torch.tensor([1.0, 0.7, 0.5, 0.3], dtype=torch.float64)) @ q.T
    a = a.unsqueeze(0).requires_grad_()
    norm = torch.linalg.matrix_norm(a.detach())[:, None, None]
    g = torch.randn(1, 4, 4, dtype=torch.float64)
    g = g + g.mT
    z = newton_schulz(a / norm, 14)[0] * norm.sqrt()
    (ours,) = torch.autograd.grad(z, a, g)
    eye3 = 3 * torch.eye(4, dtype=torch.float64)
    size = torch.linalg.matrix_norm(z.detach())[:, None, None]
    b, r = z.detach() / size, g / size
    for _ in range(14):
        r = 0.5 * (r @ (eye3 - b @ b) - b.mT @ (b.mT @ r - r @ b))
        b = 0.5 * b @ (eye3 - b @ b)
    torch.testing.assert_close(ours, 0.5 * r, atol=1e-6, rtol=1e-5)


def test_signed_root_at_zero() -> None:
    x = torch.tensor([0.0, 1e-30, -4.0, 9.0], requires_grad=True)
    y = signed_sqrt(x)
    y.sum().backward()
    assert y[0] == 0
    assert y[2] == -2
    assert y[3] == 3
    assert x.grad is not None
    assert x.grad.isfinite().all()
