"""The direction of imports, read from the sources: one-way, and each third-party library in the file that is about it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrim

ROOT = Path(vitrim.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if not p.name.startswith("."))

# What each package may import of vitrim, besides itself.
MAY: dict[str, set[str]] = {
    "core": set(),
    "kernels": {"core"},
    "methods": {"core", "kernels"},
    "backbones": {"core"},
    "caching": {"core"},
    "heads": {"core"},
    "tuning": {"core", "methods", "kernels", "backbones"},
    "recognition": {"core", "methods", "kernels", "backbones"},
    "data": {"core"},
    "datasets": {"core", "data"},
    "tasks": {"core"},
    "export": {"core", "methods", "kernels", "backbones"},
    "measure": {"core", "methods", "kernels", "backbones", "data"},
    "analysis": {"core", "methods", "kernels", "backbones", "data"},
}
LAST = {"training", "experiments", "cli"}

# Third-party libraries by package; anything else must be a file's own subject.
THIRD: dict[str, set[str]] = {
    "core": {"torch"},
    "kernels": {"torch", "numpy", "numba", "triton"},
    "methods": {"torch", "numpy"},
    "backbones": {"torch"},
    "caching": {"torch"},
    "heads": {"torch"},
    "tasks": {"torch"},
}


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names of the modules that a file imports, imports for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def checking_only(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names |= {m.module or "" for m in node.body if isinstance(m, ast.ImportFrom)}
    return names


def package(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


named = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


@named
def test_direction(path: Path) -> None:
    here = package(path)
    if not here or here in LAST:
        return
    assert here in MAY, f"say in this test what {here} may import"
    for name in set(imports(path)) - checking_only(path):
        parts = name.split(".")
        if parts[0] == "vitrim" and len(parts) > 1:
            assert parts[1] in MAY[here] | {here}, f"{here} imports {name}"


@named
def test_third_party(path: Path) -> None:
    allowed = THIRD.get(package(path))
    if allowed is None:
        return
    found = {n.split(".")[0] for n in imports(path)} - {"vitrim", "__future__"} - set(sys.stdlib_module_names)
    assert found <= allowed | {path.stem}, f"{found - allowed} in {path.name}"


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "backbones").glob("*.py") if p.stem != "__init__"))
def test_backbones_import_no_library_and_not_each_other(name: str) -> None:
    found = set(imports(ROOT / "backbones" / f"{name}.py"))
    assert all(n.split(".")[0] in {"torch", "vitrim"} or n.split(".")[0] in sys.stdlib_module_names for n in found)
    assert not {n for n in found if n.startswith("vitrim.backbones.") and not n.rsplit(".", 1)[1].startswith("_")}


def test_import_loads_nothing_heavy() -> None:
    """`import vitrim` is free, and listing the methods loads none of the model libraries."""
    code = (
        "import sys, vitrim; assert 'torch' not in sys.modules, 'torch'; vitrim.list_methods(); "
        "heavy = {'timm', 'transformers', 'open_clip', 'torchvision', 'matplotlib', 'scipy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
