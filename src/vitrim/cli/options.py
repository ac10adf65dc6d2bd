"""Options that several verbs have: their types, and what their words become. Light: PyTorch is loaded only where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    import torch

RATES = (0.9, 0.7, 0.5, 0.25)

_SEVERAL = Parameter(consume_multiple=True, negative="")
Flag = Annotated[bool, Parameter(negative="")]
Words = Annotated[list[str], _SEVERAL]
Integers = Annotated[list[int], _SEVERAL]
Numbers = Annotated[list[float], _SEVERAL]
Files = Annotated[list[Path], _SEVERAL]
Methods = Annotated[list[str], Parameter(name=["--methods", "--method"], consume_multiple=True, negative="")]
Rates = Annotated[list[float], Parameter(name=["--rates", "--rate"], consume_multiple=True, negative="")]


def split_methods(texts: Sequence[str]) -> list[str]:
    """Method specs from the command line: ``all``, and lists with commas outside of brackets.

    Raises:
        ValueError: for a bracket that is open, and for no method at all.
    """
    from vitrim.core.catalog import list_methods

    found: list[str] = []
    for text in texts:
        depth, part = 0, ""
        for char in f"{text},":
            depth += (char in "([") - (char in ")]")
            if char == "," and depth <= 0:
                found.append(part.strip())
                part = ""
            else:
                part += char
        if part.strip(", "):
            raise ValueError(f"--methods '{text}': a bracket is open; write name(key=value, ...), in quotes")
    named = [name for part in found if part for name in (list_methods() if part == "all" else [part])]
    if not named:
        raise ValueError("--methods names no method; write all, or names as in --methods tome atc")
    return list(dict.fromkeys(named))


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes a GPU if there is one.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {name}: there is none here; use cpu{', or cuda' if torch.cuda.is_available() else ''}"
        ) from error
    return device


def by_name(runs: Sequence[Path], out: Path) -> dict[Path, Path]:
    """A folder below ``out`` for the results of each run, called like it.

    Args:
        runs: folders of runs, or weights files in them.
        out: folder.

    Raises:
        ValueError: when two have one name.
    """
    names = [(run.parent if run.is_file() else run).absolute().name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two runs are called '{twice}', and so would be their results; give each a call and --out of its own")
    return {run: out / name for run, name in zip(runs, names, strict=True)}
