"""``vitrim methods``: what there is."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from vitrim.core.catalog import Description, describe, list_methods


def methods(name: str | None = None, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the token reduction methods, or explain one.

    Args:
        name: a method, such as atc; all of them when left out.
        as_json: print JSON.
    """
    found = [describe(n) for n in ([name] if name else list_methods())]
    if as_json:
        pages = [asdict(page) for page in found]
        print(json.dumps(pages[0] if name else pages, indent=2, default=str))
    elif name:
        print(explain(found[0]))
    else:
        print(table(found))


def table(found: list[Description]) -> str:
    """One line per method, the summary in what is left of the terminal."""
    head = ("name", "family", "site", "needs", "summary")
    cells = [(d.name, d.family, d.site, ", ".join(d.needs) or "-", d.summary) for d in found]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(4)]
    left = sum(widths) + 2 * len(widths)
    # Piped output stays one line per method, for grep and awk.
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    room = max(shutil.get_terminal_size().columns - left, 30) if narrow else 10_000
    lines = []
    for row in [head, *cells]:
        start = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append(f"{start}  " + f"\n{' ' * left}".join(textwrap.wrap(row[4], room)))
    return "\n".join([*lines, "", f"vitrim methods NAME explains one, such as: vitrim methods {found[0].name}"])


def explain(page: Description) -> str:
    """The page of one method."""
    lines = [f"{page.name}: {page.summary}", ""]
    if page.text:
        lines += [page.text, ""]
    facts = {
        "paper": page.paper,
        "family": page.family,
        "reduces": f"{page.site} the block",
        "needs": ", ".join(page.needs) or "nothing",
        "no class token": page.without_cls,
    }
    lines += [f"{key:<16}{value}" for key, value in facts.items()]
    lines += ["", "settings:" if page.settings else "It has no settings."]
    for setting in page.settings:
        about = textwrap.wrap(setting.help.replace("``", ""), 100) or [""]
        lines += [f"  {setting.name}={setting.default}", *(f"      {line}" for line in about)]
    example = f"{page.name}({page.settings[0].name}={page.settings[0].default})" if page.settings else page.name
    lines += ["", f'in Python:  vitrim.reduce(model, "{example}", "keep(rate=0.5, at=[3, 6, 9])")']
    return "\n".join(lines)
