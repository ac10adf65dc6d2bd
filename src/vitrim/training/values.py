"""Values of a recipe as people write them: numbers as words, settings inside specs, intervals."""

from __future__ import annotations

from typing import Any

import yaml

from vitrim.core.registry import SpecError, format_spec, parse_spec


def from_text(text: Any) -> Any:
    """A value of the command line: numbers, booleans, null and lists as YAML reads them, anything else as it stands."""
    if not isinstance(text, str):
        return text
    plain = text.strip()
    if plain.lower() in ("null", "none", "~"):
        return None
    if plain.startswith("["):
        try:
            return yaml.safe_load(plain)
        except yaml.YAMLError:
            return plain
    return plain


def boolean(value: Any) -> bool:
    """The truth value of a word or a boolean; ValueError for anything else."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    text = str(value).strip().lower()
    if text not in words:
        raise ValueError
    return words[text]


def whole(value: Any) -> int:
    """A whole number, also from ``1e3``; ValueError for anything else."""
    number = float(value)
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError
    return int(number)


def set_inside(whole: str, setting: str, value: Any) -> str:
    """The spec with one setting added or replaced; the value may be text as a spec has it."""
    head, _, call = whole.partition("(")
    try:
        _, args, settings = parse_spec(f"x({call}" if call else "x")
        if isinstance(value, str):
            value = parse_spec(f"x({setting}={value.strip()})")[2][setting]
    except SpecError as error:
        raise ValueError(f"recipe: cannot set '{setting}' to '{value}' in '{whole}'; give the whole spec") from error
    return head + format_spec("", args, {**settings, setting: value})


def interval(text: str) -> tuple[int, bool]:
    """``(count, whether in steps)`` of ``2``, ``2 epochs`` or ``200 steps``."""
    count, _, unit = text.strip().partition(" ")
    if not count.isdecimal() or int(count) < 1 or unit.strip() not in ("", "epoch", "epochs", "step", "steps"):
        raise ValueError(f"recipe: 'checkpoint_every' is a number of epochs, or of steps as in '200 steps'; got '{text}'")
    return int(count), unit.strip().startswith("step")
