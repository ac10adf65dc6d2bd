"""The tables of an analysis for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrim.experiments.analyze_correlations import ALL
from vitrim.experiments.analyze_figures import FAMILY, HEADLINE, LABELS
from vitrim.experiments.analyze_tables import FAMILIES, Rows
from vitrim.training.checkpoint import write_text

# The measures of each family in the paper, in its order.
SHOWN = {
    "features": ("cka", "pwcca", "procrustes"), "pruning": ("iou", "adjusted_iou"), "merging":
    ("homogeneity", "completeness", "nmi", "ami"),
    "maps": ("pcc", "scc", "sim", "js", "emd"),
}  # fmt: skip
_LONG = 40  # rows that fit on a page


def write_latex(folder: Path, tables: Mapping[str, Rows], correlations: Rows) -> list[Path]:
    """A table for each family, and one of the correlations over all pairs; the paths."""
    found = {family: _family(family, tables[family]) for family in FAMILIES if tables[family]}
    if any(row["group"] == ALL for row in correlations):
        found["correlations"] = _correlations(correlations)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tex"):
        old.unlink()
    for name, text in found.items():
        write_text(folder / f"{name}.tex", text)
    return [folder / f"{name}.tex" for name in found]


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)


def _family(family: str, rows: Rows) -> str:
    """Pairs in rows; measures, and under them blocks, in columns: mean, and deviation over images where there is one."""
    measures = [name for name in SHOWN[family] if any(row["measure"] == name for row in rows)]
    blocks = list(dict.fromkeys(row.get("block") for row in rows))
    found = {(row["pair"], row["measure"], row.get("block")): row for row in rows}
    pairs = {row["pair"]: row for row in rows}
    spans = [f"\\multicolumn{{{len(blocks)}}}{{c}}{{{escape(LABELS[name])}}}" for name in measures]
    rules = [rf"\cmidrule(lr){{{4 + i * len(blocks)}-{3 + (i + 1) * len(blocks)}}}" for i in range(len(measures))]
    under = [str(block) for _ in measures for block in blocks]
    head = [["", "", "", *spans], ["A", "B", r"$\Delta$", *under]] if blocks != [None] else [["A", "B", r"$\Delta$", *spans]]
    body = [
        [escape(row["a"]), escape(row["b"]), _number(row["difference"], 1, sign=True),
         *(_cell(found.get((pair, name, block))) for name in measures for block in blocks)]
        for pair, row in pairs.items()
    ]  # fmt: skip
    where = "" if blocks == [None] else " by block"
    spread = r"; mean $\pm$ standard deviation over images" if "mean" in rows[0] else ""
    caption = rf"Similarity of {FAMILY[family]}{where}. $\Delta$: accuracy of A minus that of B in percentage points{spread}."
    return _table("ll" + "r" * (1 + len(measures) * len(blocks)), head, rules if blocks != [None] else [], body, caption, family)


def _correlations(rows: Rows) -> str:
    head = [["", "measure", "block", "$n$", r"$\rho$", r"95\% interval", r"$p$", r"$p$ (Holm)", r"$\tau$"]]
    body = [
        [escape(FAMILY[row["family"]]), escape(LABELS[row["measure"]]),
         "" if row["block"] is None else str(row["block"]), str(row["n"]), _number(row["spearman"], 2, sign=True),
         f"[{_number(row['spearman_low'], 2)}, {_number(row['spearman_high'], 2)}]", _p(row["spearman_p"]),
         _p(row["spearman_p_holm"]), _number(row["kendall"], 2, sign=True)]
        for row in rows if row["group"] == ALL and row["measure"] in (*SHOWN[row["family"]], HEADLINE[row["family"]])
    ]  # fmt: skip
    caption = (
        "Spearman's $\\rho$ (bootstrap interval) and Kendall's $\\tau$ of similarity and difference in accuracy over all pairs. "
        "Runs are drawn, not pairs, which share runs."
    )
    return _table("lllrrcrrr", head, [], body, caption, "correlations")


def _table(
    columns: str, head: Sequence[Sequence[str]], rules: Sequence[str], body: Sequence[Sequence[str]], caption: str, label: str
) -> str:
    lines = [f"  {' & '.join(row)} \\\\" for row in head]
    if rules:
        lines.insert(1, f"  {' '.join(rules)}")
    top = ["  \\toprule", *lines, "  \\midrule"]
    rows = [f"  {' & '.join(row)} \\\\" for row in body]
    if len(body) > _LONG:
        return "\n".join([
            "% needs \\usepackage{booktabs,longtable}", f"\\begin{{longtable}}{{{columns}}}",
            f"  \\caption{{{caption}}}\\label{{tab:{label}}}\\\\",
            *top, "  \\endhead", *rows, "  \\bottomrule", "\\end{longtable}", "",
        ])  # fmt: skip
    return "\n".join([
        "% needs \\usepackage{booktabs}", "\\begin{table}", "  \\centering", f"  \\caption{{{caption}}}\\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{{columns}}}", *top, *rows, "  \\bottomrule", "  \\end{tabular}", "\\end{table}", "",
    ])  # fmt: skip


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "--"
    if "mean" in row:
        return "--" if row["mean"] is None else f"${row['mean']:.2f} \\pm {row['std']:.2f}$"
    return _number(row["value"], 2)


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    return "--" if value is None else f"${value:{'+' if sign else ''}.{digits}f}$"


def _p(value: float | None) -> str:
    if value is None:
        return "--"
    return "$<.001$" if value < 0.001 else f"${value:.3f}$"
