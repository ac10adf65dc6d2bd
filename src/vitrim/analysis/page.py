"""One self-contained HTML page about a sweep: table, plot and pictures, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.9rem; margin-bottom: .2rem; } h2 { font-size: 1.25rem; margin-top: 2.4rem; }
p.lead { font-size: 1.1rem; color: #444; margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #e3e3e3; }
th { border-bottom: 2px solid #1a1a1a; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.group { font-weight: 600; color: #555; padding-top: 1rem; text-align: left; }
img { max-width: 100%; height: auto; } figure { margin: 1.2rem 0; } figcaption { color: #555; font-size: .9rem; }
pre { background: #f5f5f5; padding: .9rem 1.1rem; border-radius: 6px; overflow-x: auto; font-size: .9rem; }
footer { color: #777; font-size: .85rem; margin-top: 3rem; border-top: 1px solid #e3e3e3; padding-top: .8rem; }
@media print { body { margin: 0; max-width: none; } h2, figure, table { break-inside: avoid; } }
"""


def heading(text: str) -> str:
    """A section heading."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    """A block of code."""
    return f"<pre><code>{html.escape(text)}</code></pre>"


def table(head: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> str:
    """A table whose rows stand in named groups; an empty name has no line of its own."""
    lines = ["<table><thead><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in head), "</tr></thead><tbody>"]
    for name, rows in groups:
        if name:
            lines.append(f'<tr><td class="group" colspan="{len(head)}">{html.escape(name)}</td></tr>')
        for row in rows:
            lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "".join([*lines, "</tbody></table>"])


def figure(picture: Image.Image | Path, caption: str) -> str:
    """A picture inside the page, with a caption that also describes it to those who cannot see it."""
    if isinstance(picture, Path):
        data = picture.read_bytes()
    else:
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        data = stream.getvalue()
    encoded = base64.b64encode(data).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}</figcaption></figure>'


def page(title: str, lead: str, parts: Sequence[str], footer: str) -> str:
    """The whole page."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{"".join(parts)}'
        f"<footer>{html.escape(footer)}</footer></body></html>\n"
    )
