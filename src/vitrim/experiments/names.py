"""Short names for runs, made of the options in which they differ."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitrim.core.registry import SpecError, parse_spec

# The order of what people look for first; the rest in the order of the recipe, the seed last.
_FIRST = ("data", "model", "method", "schedule", "cache", "head")
_LONGEST = 80
_ABSENT = object()


def varying(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that do not have one value everywhere, in the order of names."""
    keys = list(dict.fromkeys(key for one in options for key in one))
    found = [key for key in keys if any(one.get(key, _ABSENT) != options[0].get(key, _ABSENT) for one in options[1:])]
    return sorted(found, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key == "seed"))


def name_all(options: Sequence[Mapping[str, Any]], skip: Callable[[str], Any] | None = None, joint: str = "-") -> list[str]:
    """A name for each set of options from those that vary; empty where nothing does.

    Names are letters, digits and ``. _ + -``, whatever the values hold; longer ones than 80 characters are cut and get a
    hash. Equal names are possible for values that differ in other signs only.

    Args:
        options: of each.
        skip: texts for which this is true are left out of names (references to other cells).
        joint: between the parts.
    """
    parts: list[list[str]] = [[] for _ in options]
    for key in varying(options):
        values = [one.get(key, _ABSENT) for one in options]
        for found, text in zip(parts, texts_of(key, values, skip), strict=True):
            found.append(text)
    return [_cut(joint.join(part for part in found if part)) for found in parts]


def texts_of(key: str, values: Sequence[Any], skip: Callable[[str], Any] | None = None) -> list[str]:
    """What each value of one option reads as in a name, given the others; empty for values that are skipped or absent."""
    specs = [_spec(value) for value in values]
    texts: list[str] = []
    for value, found in zip(values, specs, strict=True):
        if value is _ABSENT or (skip is not None and isinstance(value, str) and skip(value)):
            texts.append("")
        elif value is None:
            texts.append("dense" if key == "method" else f"no{key}")
        elif found is not None:
            alike = [other for other in specs if other is not None and other[0] == found[0]]
            same = len(alike) == len([v for v in values if v is not _ABSENT])
            changing = varying([settings for _, settings in alike])
            words = [_setting(name, found[1][name]) for name in changing if name in found[1]]
            # Where all are of one name, what differs says it: rate0.5 for keep(rate=0.5).
            texts.append("-".join(words) if same and words else "-".join([_slug(found[0]), *words]))
        else:
            texts.append(_setting(key, value))
    return texts


def _spec(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and settings of a spec, positional ones by number; None for anything else."""
    if not isinstance(value, str) or not value:
        return None
    try:
        # Names of models have a path in front, as in timm/NAME(pretrained=false).
        head, call, rest = value.partition("(")
        name, positional, settings = parse_spec(head.rsplit("/", 1)[-1] + call + rest)
    except (SpecError, ValueError):
        return None
    return name, {**{str(i): v for i, v in enumerate(positional)}, **settings}


def _setting(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return _slug(key if value else f"no{key}")
    if isinstance(value, list):
        return _slug(key + ".".join(map(str, value)))
    if isinstance(value, str) and not _number(value):
        return _slug(value.rstrip("/").rsplit("/", 1)[-1])
    return _slug(f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}")


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.")


def _cut(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 7].rstrip('-.')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
