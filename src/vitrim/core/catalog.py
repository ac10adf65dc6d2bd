"""What methods there are, and what each of them is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from vitrim.core.reducer import Reducer
from vitrim.core.registry import METHODS, T, setting_help, settings_of


@dataclass(frozen=True)
class Setting:
    """One hyper-parameter of a method."""

    name: str
    default: object
    help: str


@dataclass(frozen=True)
class Description:
    """What a method is: the row of a table, or the page that ``vitrim methods NAME`` prints."""

    name: str
    summary: str
    text: str
    paper: str
    family: str
    site: str
    needs: tuple[str, ...]
    without_cls: str
    settings: tuple[Setting, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.summary}",
            "",
            f"  paper            {self.paper}",
            f"  family           {self.family}",
            f"  reduces          {self.site} the block",
            f"  needs            {', '.join(self.needs) or 'nothing'}",
            f"  no class token   {self.without_cls}",
        ]
        lines += [f"  {s.name}={s.default!r}: {s.help}" for s in self.settings]
        return "\n".join(lines)


def list_methods() -> list[str]:
    """Names of all token reduction methods, sorted."""
    return [name for name in METHODS.names() if name != "none"]


def describe(name: str) -> Description:
    """What the method ``name`` does and takes.

    Raises:
        SpecError: for an unknown name.
    """
    cls = cast("type[Reducer]", METHODS.get(name))
    doc = inspect.getdoc(cls) or ""
    summary, _, rest = doc.partition("\n")
    help_of = setting_help(cls)
    settings = tuple(Setting(n, p.default, help_of.get(n, "")) for n, p in settings_of(cls).items())
    text = rest.split("Args:")[0].strip()
    return Description(name, summary, text, cls.paper, cls.family, cls.site, cls.needs, cls.without_cls, settings)


def register(name: str) -> Callable[[T], T]:
    """Class decorator that makes a :class:`Reducer` known as ``name`` in specs, tables and the command line."""
    return METHODS.register(name)
