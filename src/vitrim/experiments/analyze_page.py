"""The page of an analysis: figures, sortable tables, and on a pair the images with both patterns."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitrim.experiments.analyze_figures import FAMILY, HEADLINE, LABELS
from vitrim.experiments.analyze_pairs import By, Pair
from vitrim.experiments.analyze_tables import FAMILIES, Row, Rows, difference
from vitrim.experiments.report_page import Picture, document, figure

_STYLE = """
body { padding-bottom: 22rem; }
tr[data-pair] { cursor: pointer; } tbody tr.on td { background: #e8eef5; } figure [id^="pair-"] { cursor: pointer; }
figure g.on path { stroke: #d55e00 !important; stroke-width: 2.2 !important; }
td.faint { color: #8a8a8a; }
#tray { position: fixed; left: 0; right: 0; bottom: 0; max-height: 21rem; overflow: auto; background: #fff;
  border-top: 2px solid #1b1b1b; padding: .6rem 1.4rem .8rem; box-shadow: 0 -4px 18px #0000001f; }
#tray[hidden] { display: none; } #tray .images { display: flex; gap: 1.6rem; } #tray .images > div { flex: none; }
#tray img { display: block; height: 92px; margin: .15rem 0; }
#tray h3 { font-size: .95rem; margin: 0 3rem .3rem 0; font-weight: 600; }
#tray .who { font-size: .8rem; color: #5c5c5c; line-height: 1.2; margin-top: .25rem; } #tray .file { font-size: .8rem; }
#tray button { position: absolute; top: .45rem; right: 1.2rem; font: inherit; border: 0; background: none; cursor: pointer; }
.notes li { max-width: 60rem; } .keys { font-size: .87rem; }
@media print { body { padding-bottom: 0; } #tray { display: none; } }
"""

_SCRIPT = """
const seen = JSON.parse(document.getElementById("examples").textContent), tray = document.getElementById("tray");
let held = null;
function mark(number) {
  for (const old of document.querySelectorAll(".on")) old.classList.remove("on");
  if (number === null) return;
  for (const one of document.querySelectorAll(`tr[data-pair="${number}"], [id="pair-${number}"]`)) one.classList.add("on");
}
function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}
function show(number) {
  mark(number);
  if (number === null) { tray.hidden = true; return; }
  const pair = seen.pairs[number], images = make("div", "", "images");
  const [a, b] = [pair.a, pair.b].map(i => ({name: seen.runs[i], pictures: seen.pictures[i] || []}));
  for (let i = 0; i < Math.max(a.pictures.length, b.pictures.length); i++) {
    const column = make("div");
    const files = [pair.a, pair.b].map(r => (seen.names[r] || [])[i]).filter(Boolean);
    column.append(make("div", [...new Set(files)].join(" and "), "file"));
    for (const side of [a, b]) {
      column.append(make("div", side.name, "who"));
      if (!side.pictures[i]) { column.append(make("div", "reduces nothing", "who")); continue; }
      column.append(Object.assign(make("img"), {src: side.pictures[i], alt: `${side.name}: ${files[0]}`}));
    }
    images.append(column);
  }
  const close = Object.assign(make("button", "close"), {onclick: () => { held = null; show(null); }});
  tray.replaceChildren(make("h3", `${a.name}  and  ${b.name}${pair.text}`), images, close);
  tray.hidden = false;
}
function listen(node, number) {
  node.addEventListener("mouseenter", () => { if (held === null) show(number); });
  node.addEventListener("mouseleave", () => { if (held === null) show(null); });
  node.addEventListener("click", () => { held = held === number ? null : number; show(held); });
}
for (const row of document.querySelectorAll("tr[data-pair]")) {
  listen(row, Number(row.dataset.pair));
  row.tabIndex = 0;
  row.addEventListener("keydown", event => { if (event.key === "Enter") row.click(); });
}
for (const cell of document.querySelectorAll('figure [id^="pair-"]')) listen(cell, Number(cell.id.slice(5)));
document.addEventListener("keydown", event => { if (event.key === "Escape") { held = null; show(null); } });
"""

_WHAT = {
    "rate": "differ in the rate of their schedule alone; A keeps more tokens",
    "capacity": "differ in the size of the model alone; A is the larger",
    "method": "differ in the method alone",
    "dataset": "were trained on different data and are otherwise the same",
}
_KEYS = (
    "Features are compared by CKA of the recorded tokens, kept patches by IoU, merged patches by AMI, both against chance (0 is "
    "what chance gives, 1 equal), maps of token depth by Pearson's correlation. In the pictures patches that were dropped fade; "
    "patches of one token have its mean colour and a line around them; amber ones are fused into one token."
)


def analysis_page(
    title: str,
    by: By,
    pairs: Sequence[Pair],
    tables: Mapping[str, Rows],
    pictures: Sequence[Picture],
    examples: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    files: Mapping[str, str],
) -> str:
    """The page as HTML text.

    Args:
        title: of the page.
        by: what the runs of a pair differ in.
        pairs: all pairs.
        tables: rows by name: runs, each family, correlations.
        pictures: the figures.
        examples: what :func:`draw_examples` gave for each run, by name.
        notes: what the reader should know, a line each.
        files: name to CSV text of what can be saved.
    """
    runs = tables["runs"]
    intro = f"{len(runs)} runs, {len(pairs)} pairs that {_WHAT[by]}."
    parts = [f'<h1>{html.escape(title)}</h1>\n<p>{html.escape(intro)}</p>\n<p class="soft keys">{_KEYS}</p>']
    if notes:
        lines = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        parts.append(f'<details class="notes"><summary>Notes ({len(notes)})</summary><ul class="small">{lines}</ul></details>')
    parts += [figure(picture) for picture in pictures]
    parts.append(_pairs(pairs, tables))
    if tables["correlations"]:
        parts.append(_correlations(tables["correlations"]))
    parts.append(_runs(runs))
    parts.append('<aside id="tray" hidden aria-live="polite"></aside>')
    numbers = {run["run"]: i for i, run in enumerate(runs)}
    data = {
        "runs": list(numbers), "pictures": [examples.get(name, {}).get("pictures", []) for name in numbers],
        "names": [examples.get(name, {}).get("names", []) for name in numbers],
        "pairs": [{"a": numbers[p.a.name], "b": numbers[p.b.name], "text": _points(difference(p))} for p in pairs],
    }  # fmt: skip
    embedded = json.dumps(data).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="examples">{embedded}</script>')
    return document(title, parts, files, style=_STYLE, script=_SCRIPT)


def _pairs(pairs: Sequence[Pair], tables: Mapping[str, Rows]) -> str:
    """One row for each pair: the leading measure of each family, block by block."""
    columns: list[tuple[str, Any]] = []
    values: dict[tuple[int, str, Any], float | None] = {}
    for family in FAMILIES:
        for row in tables[family]:
            if row["measure"] == HEADLINE[family]:
                place = (family, row.get("block"))
                columns += [] if place in columns else [place]
                values[row["pair"], *place] = row["mean"] if "mean" in row else row["value"]
    columns.sort(key=lambda c: (FAMILIES.index(c[0]), -1 if c[1] is None else c[1]))
    heads = ["A", "B", "accuracy A", "accuracy B", "A - B", *(_head(family, block) for family, block in columns)]
    rows: list[str] = []
    for number, pair in enumerate(pairs):
        change = difference(pair)
        numbers = [(_or_none(pair.a.accuracy), 1), (_or_none(pair.b.accuracy), 1), (change, 1)]
        numbers += [(values.get((number, *column)), 2) for column in columns]
        cells = "".join(_cell(value, digits) for value, digits in numbers)
        names = "".join(f'<td class="text">{html.escape(run.name)}</td>' for run in (pair.a, pair.b))
        rows.append(f'<tr data-pair="{number}">{names}{cells}</tr>')
    saves = "".join(
        f'<button data-save="csv:pairs_{family}">{FAMILY[family].capitalize()} as CSV</button>'
        for family in FAMILIES
        if tables[family]
    )
    hint = "Hover over a pair, here or in a matrix, to see example images with both patterns; a click holds them."
    return _table("pairs", "Pairs", hint, saves, heads, 2, rows)


def _head(family: str, block: Any) -> str:
    name = LABELS[HEADLINE[family]]
    name = {"pruning": "kept: " + name, "merging": "merged: " + name, "maps": "depth: " + name}.get(family, name)
    return name if block is None else f"{name}, block {block}"


def _correlations(rows: Rows) -> str:
    heads = [
        "group", "similarity of", "measure", "block", "pairs", "Spearman", "95% interval", "p", "p (Holm)", "p (BH)", "Kendall",
        "95% interval", "p (Holm)",
    ]  # fmt: skip
    lines: list[str] = []
    for row in rows:
        texts = (row["group"], FAMILY[row["family"]], LABELS[row["measure"]])
        cells = "".join(f'<td class="text">{html.escape(text)}</td>' for text in texts)
        cells += _cell(row["block"], 0) + _cell(row["n"], 0)
        for name in ("spearman", "kendall"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            cells += _cell(row[name], 2) + _interval(low, high)
            cells += "".join(_p(row[f"{name}_p{kind}"]) for kind in (("", "_holm", "_bh") if name == "spearman" else ("_holm",)))
        lines.append(f"<tr>{cells}</tr>")
    hint = (
        "Rank correlation of each measure with the difference in accuracy: minus one where more alike always means nearer in "
        "accuracy. Intervals are bootstrapped, drawing runs and not pairs (all pairs of a run share its accuracy); p is "
        "corrected over all rows of all pairs, and over all rows of single groups."
    )
    return _table(
        "correlations", "Correlations", hint, '<button data-save="csv:correlations">Table as CSV</button>', heads, 3, lines
    )


def _runs(rows: Rows) -> str:
    heads = ["run", "accuracy", "images", "tokens left", "reduces by", "model", "data"]
    lines: list[str] = []
    for row in rows:
        cells = f'<td class="text">{html.escape(row["run"])}</td>{_cell(row["accuracy"], 1)}{_cell(row["images"], 0)}'
        cells += _cell(row["tokens_left"], 1)
        texts = (_kind(row), row["model"], f"{row['data']}, {row['split']}")
        cells += "".join(f'<td class="text">{html.escape(text)}</td>' for text in texts)
        lines.append(f"<tr>{cells}</tr>")
    saves = '<button data-save="csv:runs">Table as CSV</button>'
    return _table("runs", "Runs", "What a run does is read from its token maps.", saves, heads, 1, lines, (4, 5, 6))


def _kind(row: Row) -> str:
    found = [text for key, text in (("prunes", "keeping patches"), ("merges", "merging")) if row[key]]
    return " and ".join(found) or ("nothing" if row["tokens_left"] is None else "dropping and merging")


def _table(
    key: str, heading: str, hint: str, saves: str, heads: Sequence[str], texts: int, rows: Sequence[str], more: Sequence[int] = ()
) -> str:
    top = "".join(
        f'<th scope="col"{" class=" + chr(34) + "text" + chr(34) if i < texts or i in more else ""}><button>{html.escape(head)}'
        "</button></th>"
        for i, head in enumerate(heads)
    )
    return (
        f'<h2>{heading}</h2>\n<p>{hint}</p>\n<p class="save">{saves}</p>\n<p><input data-filter="{key}" type="search" '
        'placeholder="Show rows with these words" aria-label="Show rows with these words"></p>\n'
        f'<div class="scroll"><table id="{key}"><thead><tr>{top}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></div>'
    )


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return '<td data-key=""></td>'
    return f'<td data-key="{value!r}">{_sign(value, digits)}</td>'


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return '<td data-key=""></td>'
    return f'<td data-key="{low!r}">{_sign(low)} to {_sign(high)}</td>'


def _p(value: float | None) -> str:
    if value is None:
        return '<td data-key=""></td>'
    text = "&lt; .001" if value < 0.001 else f"{value:.3f}"
    return f'<td data-key="{value!r}"{"" if value < 0.05 else " class=" + chr(34) + "faint" + chr(34)}>{text}</td>'


def _sign(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "\u2212")


def _points(change: float | None) -> str:
    return "" if change is None else f": accuracy {change:+.1f} points".replace("-", "\u2212")


def _or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
