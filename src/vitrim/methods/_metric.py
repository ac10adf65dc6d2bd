"""What the merging methods compare."""

from __future__ import annotations

from torch import Tensor

from vitrim.core.tokens import Tokens


def metric_of(t: Tokens, metric: str) -> Tensor:
    """``(B, n, d)`` features of all tokens: the keys averaged over heads, or the tokens themselves."""
    return t.attention.mean_key() if metric == "keys" else t.x
