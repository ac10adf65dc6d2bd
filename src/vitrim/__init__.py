"""vitrim: fewer tokens and fewer trained parameters for any vision transformer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrim.core.reducer import Clusterer as Clusterer
    from vitrim.core.reducer import Policy as Policy
    from vitrim.core.reducer import Reducer as Reducer
    from vitrim.core.reducer import Scorer as Scorer
    from vitrim.core.reduction import Reduction as Reduction
    from vitrim.core.reduction import reduce as reduce
    from vitrim.core.reduction import reduced as reduced
    from vitrim.core.registry import SpecError as SpecError
    from vitrim.core.registry import spec as spec
    from vitrim.core.tokenmap import TokenMap as TokenMap
    from vitrim.core.tokens import Attention as Attention
    from vitrim.core.tokens import Tokens as Tokens

__version__ = "0.1.0"

_HOME = {
    "TokenMap": "core.tokenmap",
    "Tokens": "core.tokens",
    "Attention": "core.tokens",
    "Reducer": "core.reducer",
    "Scorer": "core.reducer",
    "Clusterer": "core.reducer",
    "Policy": "core.reducer",
    "Reduction": "core.reduction",
    "reduce": "core.reduction",
    "reduced": "core.reduction",
    "SpecError": "core.registry",
    "spec": "core.registry",
    "describe": "core.catalog",
    "list_methods": "core.catalog",
    "register": "core.catalog",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitrim' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vitrim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
