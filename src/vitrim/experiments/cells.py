"""From lists of options to the cells of a sweep: every combination once, with a short name that stays."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vitrim.experiments.grid import Group, read_mapping
from vitrim.experiments.names import name_all, varying

Options = dict[str, Any]
Resolve = Callable[[Mapping[str, Any], Mapping[str, Any]], Options]

# Options that change how a run is made, and not what comes out of it: they make no other cell.
_MANNER = ("workers", "threads", "log", "checkpoint_every", "keep_checkpoints")
_REFERENCE = re.compile(r"\{([\w.+-]+)\}")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its run folder.
        options: the whole recipe; ``{NAME}`` in a value stands for the run folder of the cell of that name.
        group: the group it comes from; empty for the grid.
        labels: the choices by name, for options that are set together.
    """

    name: str
    options: Options
    group: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def needs(self) -> list[str]:
        """Names of the cells that have to be finished before."""
        return references(self.options.values())

    @property
    def identity(self) -> str:
        """Equal for cells that compute the same."""
        return json.dumps({k: v for k, v in self.options.items() if k not in _MANNER}, sort_keys=True, default=str)


def expand(groups: Sequence[Group], recorded: Sequence[Cell], resolve: Resolve, stem: str) -> list[Cell]:
    """All combinations as cells, each after those that it needs.

    Args:
        groups: from :func:`read_groups`.
        recorded: cells of earlier calls: a combination that is among them keeps its name, and a new one gets another.
        resolve: completes options to a recipe, and refuses those that it cannot have: ``(base, options) -> recipe``.
        stem: name of a single cell without alternatives.

    Raises:
        ValueError: for references to nothing, or in a circle.
    """
    found: dict[str, Cell] = {}
    order = _after_needs(groups, {cell.name for cell in recorded})
    for name in order:
        members = [group for group in groups if group.name == name]
        earlier = [cell for cell in recorded if cell.group == name]
        drafts: list[Cell] = []
        for group in members:
            for combination in itertools.product(*group.axes.values()):
                options = {key: value for _, chosen in combination for key, value in chosen.items()}
                labels = {key: label for key, (label, _) in zip(group.axes, combination, strict=True) if label is not None}
                whole = _refer(resolve(group.base, options), [*found.values(), *recorded])
                drafts.append(Cell("", whole, name, labels))
        # Alternatives that come to the same (schedules of the dense model) are one cell.
        drafts = list({cell.identity: cell for cell in reversed(drafts)}.values())[::-1]
        covered = {k for g in members for axis in g.axes.values() for label, chosen in axis if label is not None for k in chosen}
        for cell in _name(drafts, earlier, [*found.values(), *recorded], covered, name, stem):
            found.setdefault(cell.name, cell)
    return list(found.values())


def references(values: Iterable[Any]) -> list[str]:
    """The names in ``{NAME}`` within texts."""
    return list(dict.fromkeys(name for value in values if isinstance(value, str) for name in _REFERENCE.findall(value)))


def substitute(options: Mapping[str, Any], folder: Path) -> Options:
    """Options with ``{NAME}`` replaced by the run folder of that cell."""
    return {
        key: _REFERENCE.sub(lambda match: str(folder / match[1]), value) if isinstance(value, str) else value
        for key, value in options.items()
    }


def write_cells(cells: Sequence[Cell], path: Path) -> None:
    """Put cells on record: what is common to all once, and what differs by cell."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell.options))
    first = cells[0].options
    common = [k for k in keys if k in first and all(k in c.options and c.options[k] == first[k] for c in cells)]
    content: dict[str, Any] = {"common": {key: first[key] for key in common}, "cells": {}}
    for cell in cells:
        entry: dict[str, Any] = {"options": {k: v for k, v in cell.options.items() if k not in common}}
        entry |= {"group": cell.group} if cell.group else {}
        entry |= {"labels": dict(cell.labels)} if cell.labels else {}
        content["cells"][cell.name] = entry
    text = f"# The cells of this sweep. 'vitrim sweep --out {path.parent.name}' goes on with those that are not finished.\n"
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(text + yaml.safe_dump(content, sort_keys=False, width=10_000, allow_unicode=True), encoding="utf-8")
    scratch.replace(path)


def read_cells(path: Path) -> list[Cell]:
    """The cells on record; none when there is no record yet.

    Raises:
        ValueError: when the file is not what :func:`write_cells` wrote.
    """
    if not path.exists():
        return []
    try:
        content = read_mapping(path)
        return [
            Cell(name, {**content["common"], **entry["options"]}, entry.get("group", ""), entry.get("labels", {}))
            for name, entry in content["cells"].items()
        ]
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no record of a sweep; take another folder for --out") from error


def _name(
    drafts: Sequence[Cell], earlier: Sequence[Cell], taken: Sequence[Cell], covered: set[str], group: str, stem: str
) -> list[Cell]:
    """Drafts with names: that of an equal earlier cell, else from the options that vary within the group."""
    known = {cell.identity: cell for cell in earlier}
    used = {cell.name: cell.identity for cell in taken}
    both = [*earlier, *drafts]
    facets = [{**{k: v for k, v in _telling(c.options).items() if k not in covered}, **c.labels} for c in both]
    named: list[Cell] = []
    for cell, tail in zip(drafts, name_all(facets, skip=_REFERENCE.search)[len(earlier) :], strict=True):
        if cell.identity in known:
            named.append(known[cell.identity])
            continue
        name = "-".join(part for part in (group, tail) if part) or stem
        if used.get(name, cell.identity) != cell.identity:
            # From the content alone, so that it does not depend on the order of the cells.
            name = f"{name}-{hashlib.sha256(cell.identity.encode()).hexdigest()[:6]}"
        used[name] = cell.identity
        named.append(Cell(name, cell.options, group, cell.labels))
    return named


def _telling(options: Options) -> Options:
    """Options that a name may speak of: the dense model has no schedule."""
    silent = {*_MANNER, "schedule"} if options.get("method", "") is None else {*_MANNER}
    return {key: value for key, value in options.items() if key not in silent}


def _refer(options: Options, cells: Sequence[Cell]) -> Options:
    """Options whose references name cells: ``{dense}`` becomes the cell of group ``dense`` with, say, the same seed."""
    for key, value in options.items():
        for name in references([value]):
            if any(cell.name == name for cell in cells):
                continue
            members = list({cell.name: cell for cell in cells if cell.group == name}.values())
            for facet in varying([cell.options for cell in members]):
                same = [c for c in members if c.options.get(facet) == options.get(facet)]
                members = same or members
            if len(members) != 1:
                many = ", ".join(cell.name for cell in members[:4])
                raise ValueError(f"{key}: '{value}': {len(members)} cells of '{name}' fit; name one of them: {many}")
            value = value.replace(f"{{{name}}}", f"{{{members[0].name}}}")
        options = {**options, key: value}
    return options


def _after_needs(groups: Sequence[Group], recorded: set[str]) -> list[str]:
    """Names of groups, each after those that it refers to."""
    names = list(dict.fromkeys(group.name for group in groups))
    needs: dict[str, list[str]] = {name: [] for name in names}
    for group in groups:
        values = [*group.base.values(), *(v for axis in group.axes.values() for _, chosen in axis for v in chosen.values())]
        for reference in references(values):
            # A member of a group may be named in full: dense-seed0 of dense.
            fits = [n for n in names if n and (reference == n or reference.startswith(f"{n}-"))]
            if not fits and reference not in recorded:
                there = ", ".join(n for n in names if n) or "none; name cells below 'cells:' in a sweep file"
                raise ValueError(f"'{{{reference}}}' names no cell; there are: {there}")
            needs[group.name] += fits
    order: list[str] = []
    while len(order) < len(names):
        ready = [name for name in names if name not in order and set(needs[name]) <= set(order)]
        if not ready:
            raise ValueError(f"cells need each other in a circle: {', '.join(n for n in names if n not in order)}")
        order += ready
    return order
