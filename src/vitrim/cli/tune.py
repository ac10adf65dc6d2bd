"""``vitrim tune``: what parameter-efficient tuning methods there are, and what each of them trains in a model."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Annotated, Literal

from cyclopts import Parameter

from vitrim.core.registry import TUNERS, setting_help, settings_of
from vitrim.measure.published import PublishedCost, methods, published_cost
from vitrim.measure.tuned import Cost, costs

EXAMPLES = (
    "linear", "full", "bitfit", "ssf", "lora(r=8)", "adapter", "convpass", "vpt(length=10)", "vpt(length=10, deep=true)", "vqt",
    "h2t", "ila", "ila(plus=1)", "ila(plus=2)",
)  # fmt: skip


def tune(
    name: str | None = None,
    /,
    *,
    list_all: Annotated[bool, Parameter(name="--list", negative="")] = False,
    model: str = "timm/vit_base_patch16_224",
    classes: int = 200,
    train: Annotated[list[str], Parameter(consume_multiple=True)] | None = None,
    published: Literal[224, 448] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """List the parameter-efficient tuning methods with what they train in a model, or explain one.

    Args:
        name: a method such as ila, or several with settings such as "ila(plus=2) + lora(r=4)"; all of them when left out.
        list_all: list them, as without a name.
        model: timm/NAME; only its sizes are used, no weights are loaded.
        classes: number of classes of the head.
        train: parts of the model that are trained besides; head and class_token when left out.
        published: the cost table of the ILA paper, fine-grained recognisers included, at 224 or 448 pixels: as published, by the
            paper's conventions here, and plain. Nothing else is read but --json.
        as_json: print JSON.
    """
    if published is not None:
        print_published(published, as_json)
        return
    parts = ("head", "class_token") if train is None else tuple(train)
    if name is not None and not list_all and name in TUNERS.names():
        print(explain(name))
        return
    wanted = EXAMPLES if name is None or list_all else (name,)
    found = costs(wanted, model, classes, parts)
    if as_json:
        print(json.dumps([cost.as_dict() for cost in found], indent=2))
    else:
        print(table(found, model, classes, parts))


def table(found: list[Cost], model: str, classes: int, parts: tuple[str, ...]) -> str:
    """One line per method."""
    head = ("method", "trained", "of all", "GMACs", "of dense", "as papers count", "tokens at the end")
    cells = [
        (
            c.spec,
            f"{c.trained:,}",
            f"{c.trained / c.total:.2%}",
            f"{c.gmacs:.3f}",
            f"{c.gmacs / c.dense_gmacs:.1%}",
            f"{c.paper_gmacs:.3f}",
            str(c.tokens),
        )
        for c in found
    ]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *cells]
    ]
    note = f"{model}, {classes} classes; trained besides: {', '.join(parts) or 'nothing'}. GMACs: multiply-adds of one image."
    return "\n".join([*lines, "", note, "vitrim tune NAME explains one, such as: vitrim tune ila"])


def print_published(size: Literal[224, 448], as_json: bool) -> None:
    """The 18 rows of the paper, each as soon as it is counted."""
    if as_json:
        print(json.dumps([published_cost(method, size).as_dict() for method in methods()], indent=2))
        return
    width = max(len(f"{method.kind} {method.spec}") for method in methods())
    print(f"{'':<7}{'':<{width}}{'TTP in M: published, as papers':>32}{'five sets':>11}{'trained':>13}{'of':>13}", end="")
    print(f"{'GMACs: published, as papers':>30}{'plain':>9}")
    notes: list[str] = []
    for method in methods():
        cost = published_cost(method, size)
        if cost.note and cost.note not in notes:
            notes.append(cost.note)
        print(published_line(cost, width, notes.index(cost.note) + 1 if cost.note else None), flush=True)
    print(f"\nViT-B/16 at {size} pixels, parameters and GMACs with 200 classes; TTP at 448 pixels. *: everything is trained.")
    for i, note in enumerate(notes, 1):
        print(f"[{i}] {note}")


def published_line(cost: PublishedCost, width: int, note: int | None) -> str:
    """A row of the paper's table."""
    macs = "-" if cost.published_gmacs is None else f"{cost.published_gmacs:.2f}"
    method = f"{cost.kind} {cost.spec}"
    line = f"{cost.name:<7}{method:<{width}}{cost.published_ttp:>21.1f}{cost.paper_ttp:>11.1f}{cost.five_sets:>11.1f}"
    line += f"{cost.trained:>13,}{cost.total:>13,}{macs:>19}{cost.paper_gmacs:>11.2f}{cost.gmacs:>9.2f}"
    return line + (f"  [{note}]" if note else "")


def explain(name: str) -> str:
    """The page of one method."""
    cls = TUNERS.get(name)
    doc = inspect.getdoc(cls) or ""
    summary, _, rest = doc.partition("\n")
    lines = [f"{name}: {summary}", ""]
    text = rest.split("Args:")[0].strip()
    lines += [text, ""] if text else []
    lines += [f"paper           {cls.paper}"] if getattr(cls, "paper", "") else []  # pyright: ignore[reportAttributeAccessIssue]
    lines += [f"mergeable       {'yes' if getattr(cls, 'mergeable', False) else 'no'}"]
    help_of = setting_help(cls)
    settings = settings_of(cls)
    lines += ["", "settings:" if settings else "It has no settings."]
    for key, parameter in settings.items():
        about = textwrap.wrap(help_of.get(key, "").replace("``", ""), 100) or [""]
        lines += [f"  {key}={parameter.default}", *(f"      {line}" for line in about)]
    lines += ["", f'in Python:  vitrim.tune(model, "{name}")', f'in recipes: tune: "{name}"']
    return "\n".join(lines)
