"""The HTML page of a report: one file that needs nothing else, whose figures and tables can be saved."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 80rem; margin: 2.2rem auto; padding: 0 1.4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { margin: .4rem 0; max-width: 54rem; } .soft { color: #5c5c5c; } .small { font-size: .87rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; margin: .8rem 0; min-width: 100%; }
th, td { padding: .28rem .6rem; text-align: right; border-bottom: 1px solid #e6e6e6; font-variant-numeric: tabular-nums;
  white-space: nowrap; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #1b1b1b; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } td.wrap { white-space: normal; min-width: 18rem; }
th button { all: unset; cursor: pointer; } th button:hover, th button:focus-visible { text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after { content: " \\2193"; }
td.best { font-weight: 700; } tbody tr:hover td { background: #f5f5f3; }
input { font: inherit; padding: .25rem .5rem; border: 1px solid #b5b5b5; border-radius: 4px; width: 18rem; max-width: 100%; }
.save { font-size: .87rem; } .save button { font: inherit; color: #0b5394; background: none; border: 0; padding: 0 .7rem 0 0;
  cursor: pointer; } .save button:hover { text-decoration: underline; }
figure { margin: .6rem 0; } figure svg { max-width: 100%; height: auto; display: block; }
summary { cursor: pointer; margin: 1.2rem 0 .3rem; font-weight: 600; }
@media print { body { margin: 0; font-size: 11px; max-width: none; } h2, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } .save, input { display: none; } }
"""

_SCRIPT = """
"use strict";
const texts = JSON.parse(document.getElementById("files").textContent);
function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function svgText(figure) {
  const svg = figure.querySelector("svg").cloneNode(true);
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return new XMLSerializer().serializeToString(svg);
}
async function png(figure) {
  const [, , width, height] = figure.querySelector("svg").getAttribute("viewBox").split(" ").map(Number), scale = 3;
  const image = new Image();
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(figure));
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), {width: width * scale, height: height * scale});
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise(done => canvas.toBlob(done, "image/png"));
}
for (const button of document.querySelectorAll("[data-save]")) button.onclick = async () => {
  const [kind, name] = button.dataset.save.split(":"), figure = document.getElementById(name);
  if (kind === "csv") save(name + ".csv", new Blob([texts[name]], {type: "text/csv"}));
  if (kind === "svg") save(name + ".svg", new Blob([svgText(figure)], {type: "image/svg+xml"}));
  if (kind === "png") save(name + ".png", await png(figure));
};
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const sort = index => {
    const head = heads[index], text = head.classList.contains("text") || index === 0;
    const down = head.getAttribute("aria-sort") === "descending" || (text && head.getAttribute("aria-sort") !== "ascending");
    for (const cell of heads) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const key = row => { const k = row.cells[index].dataset.key; return k === undefined ? row.cells[index].textContent : k; };
    const number = [...body.rows].every(row => !isNaN(Number(key(row))));
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = number ? Number(x) - Number(y) : x.localeCompare(y, "en", {numeric: true});
      return down ? order : -order;
    });
    body.append(...rows);
  };
  heads.forEach((cell, i) => { cell.querySelector("button").onclick = () => sort(i); });
}
for (const table of document.querySelectorAll("table[id]")) sortable(table);
for (const field of document.querySelectorAll("[data-filter]")) field.oninput = event => {
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean), texts = "th, td:first-child, td.text";
  const told = row => [...row.querySelectorAll(texts)].map(cell => cell.textContent).join(" ").toLowerCase();
  for (const row of document.getElementById(field.dataset.filter).tBodies[0].rows)
    row.hidden = !words.every(word => told(row).includes(word));
};
"""


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        key: its file name without ending.
        heading: over it.
        text: what it shows.
        svg: the figure.
    """

    key: str
    heading: str
    text: str
    svg: str


def page(
    title: str,
    intro: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: Sequence[Sequence[float | None]],
    higher: Sequence[bool | None],
    pictures: Sequence[Picture],
    unfinished: Sequence[tuple[str, str, str]],
    files: Mapping[str, str],
) -> str:
    """The page as HTML text.

    Args:
        title: of the page.
        intro: what it is about.
        heads: headings of the table: setting, seeds, numbers.
        rows: its texts.
        keys: the numbers behind them, for sorting; None where there is none.
        higher: for each column of numbers, whether more is better; None where none is best.
        pictures: the figures.
        unfinished: id, state and note of the runs that are not finished.
        files: name to CSV text of what can be saved: ``settings`` and ``runs``.
    """
    parts = [f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(intro)}</p>", _table(heads, rows, keys, higher)]
    parts += [figure(picture) for picture in pictures]
    if unfinished:
        parts.append(_unfinished(unfinished))
    return document(title, parts, files)


def document(title: str, parts: Sequence[str], files: Mapping[str, str], *, style: str = "", script: str = "") -> str:
    """A page of its own: tables with an id sort by their headings (buttons), figures and ``files`` can be saved.

    Args:
        title: in the browser's tab.
        parts: HTML, one below the other.
        files: name to CSV text of what a button with ``data-save="csv:NAME"`` saves.
        style: more CSS.
        script: more JavaScript, run at the end.
    """
    # "</" would end the script element.
    data = json.dumps(dict(files)).replace("</", "<\\/")
    body = "\n".join([
        *parts, f'<script type="application/json" id="files">{data}</script>\n<script>{_SCRIPT}{script}</script>',
    ])  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], keys: Sequence[Sequence[float | None]], higher: Sequence[bool | None]
) -> str:
    top = "".join(f'<th scope="col"><button>{html.escape(head)}</button></th>' for head in heads)
    best: list[float | None] = []
    for i, more in enumerate(higher):
        found = [row[i] for row in keys if row[i] is not None]
        best.append(None if more is None or len(found) < 2 else (max if more else min)(v for v in found if v is not None))
    lines: list[str] = []
    for row, numbers in zip(rows, keys, strict=True):
        cells = [f"<td>{html.escape(row[0])}</td>", f"<td>{row[1]}</td>"]
        for text, number, top_value in zip(row[2:], numbers, best, strict=True):
            mark = ' class="best"' if number is not None and number == top_value else ""
            cells.append(f'<td{mark} data-key="{"" if number is None else repr(number)}">{html.escape(text)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<h2>Settings</h2>\n"
        '<p class="save"><button data-save="csv:settings">Table as CSV</button><button data-save="csv:runs">Every run with every '
        'option as CSV</button></p>\n<p><input data-filter="settings" type="search" placeholder="Show rows with these words" '
        'aria-label="Show rows with these words"></p>\n'
        f'<div class="scroll"><table id="settings"><thead><tr>{top}</tr></thead>\n<tbody>{chr(10).join(lines)}'
        "</tbody></table></div>\n"
        '<p class="soft small">A click on a heading sorts. Bold: the best of its column.</p>'
    )


def figure(picture: Picture) -> str:
    """A figure with its heading and what it shows, to be saved as SVG or PNG."""
    # The size stands in viewBox; without a height of its own the drawing keeps its shape on narrow screens.
    opened = re.match(r"<svg\b[^>]*>", picture.svg)
    tag = opened.group(0) if opened else "<svg>"
    width = re.search(r'width="([\d.]+)pt"', tag)
    plain = re.sub(r'\s(?:width|height)="[^"]*"', "", tag)
    label = html.escape(picture.heading, quote=True)
    points = f"{float(width.group(1)) * 4 / 3:.0f}px" if width else "100%"
    svg = picture.svg.replace(tag, f'{plain[:-1]} role="img" aria-label="{label}" style="width: {points}">', 1)
    saves = "".join(f'<button data-save="{kind}:{picture.key}">Save as {kind.upper()}</button>' for kind in ("svg", "png"))
    return (
        f"<h2>{html.escape(picture.heading)}</h2>\n<p>{html.escape(picture.text)}</p>\n"
        f'<figure id="{picture.key}">{svg}</figure>\n<p class="save">{saves}</p>'
    )


def _unfinished(runs: Sequence[tuple[str, str, str]]) -> str:
    lines = "\n".join(
        f'<tr><td>{html.escape(name)}</td><td class="text">{html.escape(state)}</td>'
        f'<td class="text wrap">{html.escape(note)}</td></tr>'
        for name, state, note in runs
    )
    head = '<tr><th>run</th><th class="text">state</th><th class="text">note</th></tr>'
    return (
        f"<details><summary>{len(runs)} runs are not finished; they count in no mean</summary>"
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{lines}</tbody></table></div></details>'
    )
