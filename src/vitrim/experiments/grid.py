"""Lists in options: on the command line, in recipes and in sweep files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

_KEYS = ("base", "grid", "cells")


@dataclass(frozen=True)
class Group:
    """Options with lists of alternatives.

    Attributes:
        name: empty for the grid.
        base: options of every cell.
        axes: alternatives by option or label; an alternative is a label (None where it has none) and the options it sets.
    """

    name: str
    base: Mapping[str, Any]
    axes: Mapping[str, Sequence[tuple[Any, Mapping[str, Any]]]]


def split_values(texts: Sequence[str]) -> list[Any]:
    """Values of one option: separated by commas outside of brackets and quotes, or given as several texts.

    ``keep(rate=0.5, at=[3, 6])`` is one value, ``evit,topk`` are two, ``[jsonl, wandb]`` is one value that is a list.

    Raises:
        ValueError: when a bracket or quote is left open, or a value is empty.
    """
    values: list[Any] = []
    for text in texts:
        depth, quote, part = 0, "", ""
        for char in text:
            if quote:
                quote = "" if char == quote else quote
            elif char in "\"'":
                quote = char
            else:
                depth += (char in "([{") - (char in ")]}")
            if char == "," and depth == 0 and not quote:
                values.append(_value(part, text))
                part = ""
            else:
                part += char
        if depth or quote:
            raise ValueError(f"'{text}': a bracket or quote is open; write name(key=value, ...), in quotes for the shell")
        values.append(_value(part, text))
    return values


def read_options(words: Sequence[str]) -> dict[str, list[Any]]:
    """``--key value value --other a,b`` as lists of values by key.

    Raises:
        ValueError: for a word before the first option, an option without a value, or one that stands twice.
    """
    found: dict[str, list[str]] = {}
    key = ""
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if key in found:
                raise ValueError(f"--{key} stands twice; give its values after one: --{key} A B")
            found[key] = [value] if equals else []
        elif not key:
            raise ValueError(f"'{word}' belongs to no option; write --key value")
        else:
            found[key].append(word)
    for key, texts in found.items():
        if not texts:
            raise ValueError(f"--{key} needs a value (true for a switch), or several: --{key} A B")
    return {key: split_values(texts) for key, texts in found.items()}


def read_groups(path: Path, lists: Mapping[str, Sequence[Any]]) -> list[Group]:
    """The groups of a recipe or a sweep file, with the command line's lists on top (they hold for every group).

    Raises:
        ValueError: when the file is none of both.
    """
    content = read_mapping(path)
    if not {"grid", "cells"} & set(content):
        return [Group("", content, _axes("the command line", lists))]
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise ValueError(f"{path}: unknown key '{unknown[0]}'; a sweep file has {', '.join(_KEYS)}; options go below base")
    base = content.get("base") or {}
    if isinstance(base, str):
        # Beside the sweep file first: the two files travel together.
        beside = path.parent / base
        base = read_mapping(beside if beside.exists() else Path(base))
    given: list[tuple[str, Any]] = list(cast(dict[str, Any], content.get("cells") or {}).items())
    grids = content.get("grid") or []
    given += [("", grid) for grid in (grids if isinstance(grids, list) else [grids])]
    groups: list[Group] = []
    for name, options in given:
        if not isinstance(options, dict):
            raise ValueError(f"{path}: '{name or 'grid'}' is no mapping of options; write key: value below it")
        fixed = {k: v for k, v in options.items() if not isinstance(v, list | dict)}
        listed = {k: v for k, v in options.items() if isinstance(v, list | dict)}
        for key in lists:
            fixed.pop(key, None)
            listed.pop(key, None)
        groups.append(Group(str(name), {**base, **fixed}, {**_axes(str(path), listed), **_axes("the command line", lists)}))
    return groups


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file of keys and values.

    Raises:
        ValueError: when it is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options; write key: value, one a line")
    return cast(dict[str, Any], content)


def _axes(where: str, lists: Mapping[str, Any]) -> dict[str, list[tuple[Any, Mapping[str, Any]]]]:
    axes: dict[str, list[tuple[Any, Mapping[str, Any]]]] = {}
    for key, values in lists.items():
        if not values:
            raise ValueError(f"{where}: '{key}' has no values; give at least one")
        if isinstance(values, Mapping):
            choices = cast(Mapping[Any, Any], values)
            for label, chosen in choices.items():
                if chosen is not None and not isinstance(chosen, Mapping):
                    raise ValueError(f"{where}: '{key}: {label}' sets no options; write {label}: {{key: value}}")
            axes[key] = [(label, chosen or {}) for label, chosen in choices.items()]
        else:
            axes[key] = [(None, {key: value}) for value in values]
    return axes


def _value(part: str, text: str) -> Any:
    part = part.strip()
    if not part:
        raise ValueError(f"'{text}': a value between commas is empty; write null for none")
    if part.startswith("["):
        try:
            return yaml.safe_load(part)
        except yaml.YAMLError as error:
            raise ValueError(f"'{part}' is no list; write [a, b]") from error
    if part[0] == part[-1] and part[0] in "\"'" and len(part) > 1:
        return part[1:-1]
    return part
