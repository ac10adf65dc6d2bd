"""Settings that several methods share."""

from __future__ import annotations


def check_compat(compat: str) -> str:
    """Validate a ``compat`` setting.

    Raises:
        ValueError: unless it is paper or official.
    """
    if compat not in ("paper", "official"):
        raise ValueError(f"compat must be paper or official; got {compat!r}")
    return compat


def check_metric(metric: str) -> str:
    """Validate a ``metric`` setting.

    Raises:
        ValueError: unless it is keys or tokens.
    """
    if metric not in ("keys", "tokens"):
        raise ValueError(f"metric must be keys or tokens; got {metric!r}")
    return metric
