"""vitrim: fewer tokens and fewer trained parameters for any vision transformer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrim.core.attach import reduce as reduce
    from vitrim.core.attach import reduced as reduced
    from vitrim.core.attach import tune as tune
    from vitrim.core.catalog import describe as describe
    from vitrim.core.catalog import list_methods as list_methods
    from vitrim.core.catalog import register as register
    from vitrim.core.reducer import Clusterer as Clusterer
    from vitrim.core.reducer import Policy as Policy
    from vitrim.core.reducer import Reducer as Reducer
    from vitrim.core.reducer import Scorer as Scorer
    from vitrim.core.reduction import Reduction as Reduction
    from vitrim.core.registry import SpecError as SpecError
    from vitrim.core.registry import spec as spec
    from vitrim.core.tokenmap import TokenMap as TokenMap
    from vitrim.core.tokens import Attention as Attention
    from vitrim.core.tokens import Tokens as Tokens
    from vitrim.core.tuner import Tuner as Tuner
    from vitrim.core.tuning import Tuning as Tuning
    from vitrim.data.tuned import load_tuning as load_tuning
    from vitrim.data.tuned import save_tuning as save_tuning
    from vitrim.recognition.base import Recogniser as Recogniser
    from vitrim.recognition.base import recognise as recognise

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
    "reduce": "core.attach",
    "reduced": "core.attach",
    "tune": "core.attach",
    "load_tuning": "data.tuned",
    "save_tuning": "data.tuned",
    "Recogniser": "recognition.base",
    "recognise": "recognition.base",
    "Tuner": "core.tuner",
    "Tuning": "core.tuning",
    "SpecError": "core.registry",
    "spec": "core.registry",
    "describe": "core.catalog",
    "list_methods": "core.catalog",
    "register": "core.catalog",
}

__all__ = [
    "Attention",
    "Clusterer",
    "Policy",
    "Recogniser",
    "Reducer",
    "Reduction",
    "Scorer",
    "SpecError",
    "TokenMap",
    "Tokens",
    "Tuner",
    "Tuning",
    "__version__",
    "describe",
    "list_methods",
    "load_tuning",
    "recognise",
    "reduce",
    "reduced",
    "register",
    "save_tuning",
    "spec",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitrim' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vitrim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
