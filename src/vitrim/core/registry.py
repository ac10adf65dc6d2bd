"""Names for things: the registries and the spec grammar ``name(key=value, ...)``."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


class SpecError(ValueError):
    """A spec that cannot be parsed, an unknown name or a setting that does not exist; the message names the remedy."""


class Registry:
    """Named classes of one kind: those of a package (one file each, file name = spec name) and those added by hand.

    Args:
        kind: the word used in messages, such as ``"method"``.
        package: dotted name of the package whose modules hold the built-in entries, imported on first use.
        families: modules register names other than their own, any number each; the first look imports all of them.
    """

    def __init__(self, kind: str, package: str | None = None, *, families: bool = False) -> None:
        self.kind = kind
        self.package = package
        self.families = families
        self._entries: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: make the class known as ``name``.

        Raises:
            SpecError: when another class already has this name.
        """

        def add(cls: T) -> T:
            known = self._entries.get(name)
            if known is not None and known.__qualname__ != cls.__qualname__:
                raise SpecError(f"{self.kind} '{name}' exists already ({known.__module__}.{known.__qualname__})")
            self._entries[name] = cls
            cls.spec_name = name  # type: ignore[attr-defined]
            return cls

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        if self.families:
            self._import_all()
            return sorted(self._entries)
        return sorted(set(self._entries) | set(self._modules()))

    def get(self, name: str) -> type:
        """The class called ``name``.

        Raises:
            SpecError: for an unknown name, with the nearest known one.
        """
        if name not in self._entries and self.families:
            self._import_all()
        elif name not in self._entries and name in self._modules():
            importlib.import_module(f"{self.package}.{name}")
        if name not in self._entries:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(self.names())}"
            raise SpecError(f"unknown {self.kind} '{name}'; {hint}")
        return self._entries[name]

    def build(self, spec: Any) -> Any:
        """An instance from a spec string; an object that is no string is returned as it is.

        Raises:
            SpecError: for bad syntax, an unknown name or setting, or a value that the class refuses.
        """
        if not isinstance(spec, str):
            return spec
        name, args, settings = parse_spec(spec)
        cls = self.get(name)
        check_settings(name, cls, args, settings)
        try:
            return cls(*args, **settings)
        except SpecError:
            raise
        except (TypeError, ValueError) as error:
            raise SpecError(f"{self.kind} '{spec}': {error}") from error

    def _import_all(self) -> None:
        for module in self._modules():
            importlib.import_module(f"{self.package}.{module}")

    def _modules(self) -> list[str]:
        if self.package is None:
            return []
        paths = importlib.import_module(self.package).__path__
        return [m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_")]


METHODS = Registry("method", "vitrim.methods")
SCHEDULES = Registry("schedule")
BACKBONES = Registry("backbone", "vitrim.backbones")
CACHES = Registry("cache", "vitrim.caching")
HEADS = Registry("head", "vitrim.heads")
TUNERS = Registry("tuning method", "vitrim.tuning")
RECOGNISERS = Registry("recogniser", "vitrim.recognition", families=True)


def parse_spec(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split ``name(key=value, ...)`` into name, positional values and settings.

    Bare words and bare paths (``data/cub``, ``train.csv``) are strings; ``none`` and ``null`` are None; ``true`` and ``false``
    are booleans, in any case.

    Raises:
        SpecError: when the text is not of that form.
    """
    try:
        node = ast.parse(_quote_paths(text.strip()), mode="eval").body
    except SyntaxError as error:
        raise SpecError(f"cannot read '{text}': write name(key=value, ...), such as keep(rate=0.5, at=[3, 6, 9])") from error
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise SpecError(f"cannot read '{text}': write name(key=value, ...), such as keep(rate=0.5, at=[3, 6, 9])")
    settings: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise SpecError(f"'{text}': ** is not allowed in a spec")
        settings[keyword.arg] = _value(keyword.value, text)
    return node.func.id, [_value(arg, text) for arg in node.args], settings


# Quoted text, or a bare value that has a dot, a slash or a tilde in it.
_BARE = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<=[=\[,(])(\s*)([\w./~:@+-]*[./~][\w./~:@+-]*)(?=\s*[,)\]])""")


def _quote_paths(text: str) -> str:
    """Put quotes around bare paths, so that ``cub(root=data/cub)`` needs none; numbers and quoted text stay."""

    def quote(found: re.Match[str]) -> str:
        value = found.group(2)
        if value is None or (value.strip("./") and not re.search("[A-Za-z_~]", value)):
            return found.group()
        try:
            float(value)
        except ValueError:
            return f"{found.group(1)}{value!r}"
        return found.group()

    return _BARE.sub(quote, text)


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        words = {"true": True, "false": False, "none": None, "null": None}
        return words.get(node.id.lower(), node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, text) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise SpecError(f"'{text}': {ast.unparse(node)} is no number, word or list") from error


def settings_of(cls: type) -> dict[str, inspect.Parameter]:
    """The settings of a registered class: the parameters of its constructor, in order."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def check_settings(name: str, cls: type, args: list[Any], settings: dict[str, Any]) -> None:
    """Refuse settings that the constructor does not have, naming those that it has.

    Raises:
        SpecError: for an unknown setting or a positional value where only keywords are taken.
    """
    known = settings_of(cls)
    listing = f"it has: {', '.join(known)}" if known else "it has none"
    for key in settings:
        if key not in known:
            raise SpecError(f"{name} has no setting '{key}'; {listing}")
    positional = [p for p in known.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(positional):
        raise SpecError(f"{name}: write settings by name, as in {name}({next(iter(known), 'key')}=...); {listing}")


def spec(obj: Any) -> str:
    """Canonical text of an object made from a spec: ``name(key=value, ...)`` with defaults left out."""
    if isinstance(obj, str):
        name, args, settings = parse_spec(obj)
        return format_spec(name, args, settings)
    shown = {}
    for key, parameter in settings_of(type(obj)).items():
        value = getattr(obj, key)
        if not _same(value, parameter.default):
            shown[key] = value
    # The name of its own class: an unregistered child of a registered class goes by its class name.
    return format_spec(vars(type(obj)).get("spec_name", type(obj).__name__), [], shown)


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return list(value) == list(default)
    return type(value) is type(default) and value == default


def format_spec(name: str, args: list[Any], settings: dict[str, Any]) -> str:
    """The text ``name(value, ..., key=value, ...)``."""
    parts = [_text(a) for a in args] + [f"{k}={_text(v)}" for k, v in settings.items()]
    return f"{name}({', '.join(parts)})" if parts else name


def _text(value: Any) -> str:
    if isinstance(value, str):
        plain = value.isidentifier() and value.lower() not in ("true", "false", "none", "null")
        return value if plain else repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    return repr(value)


def setting_help(cls: type) -> dict[str, str]:
    """Help of every setting, from the ``Args`` section of the class or constructor docstring."""
    doc = inspect.getdoc(cls) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.M | re.S)
    if section is None:
        return {}
    found = {}
    for entry in re.finditer(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section.group(1), re.M | re.S):
        found[entry.group(1)] = " ".join(entry.group(2).split())
    return found
