"""The report of ``vitrim demo``: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrim.core.catalog import describe
from vitrim.core.registry import parse_spec
from vitrim.measure.report import cells_of
from vitrim.measure.sweep import DENSE, Row

_COLUMNS = {
    "method": "Method", "what": "What it does", "tokens": "Tokens left", "GFLOPs": "GFLOPs", "FLOP speed-up": "FLOPs",
    "speed-up": "Measured", "top-1 %": "Top-1 %", "agree %": "Same as dense %",
}  # fmt: skip
_LEFT = ("method", "what", "tokens")
_MIME = {".png": "image/png", ".svg": "image/svg+xml"}

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 62rem; margin: 2.2rem auto; padding: 0 1.4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.1rem 0 .5rem; }
p { margin: .5rem 0; max-width: 48rem; } .soft { color: #5c5c5c; } .small { font-size: .87rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; margin: .8rem 0; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #1b1b1b; }
th.left, td.left { text-align: left; } td.what { white-space: normal; min-width: 13rem; color: #454545; }
tr.dense td { background: #f5f5f3; } tr.group td { text-align: left; white-space: normal; padding-top: 1rem; color: #5c5c5c; }
td.best { font-weight: 700; } code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f5f5f3; padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; }
img { max-width: 100%; height: auto; display: block; margin: .8rem 0; } img.sheet { width: 46rem; }
footer { margin: 2.5rem 0 1rem; padding-top: .8rem; border-top: 1px solid #e6e6e6; }
@media print { body { margin: 0; font-size: 11px; max-width: none; } h2, img, table, pre { break-inside: avoid; }
  h2 { break-after: avoid; } img.sheet { max-height: 22cm; width: auto; } pre { white-space: pre-wrap; } }
"""

_CODE = """import timm, torch, vitrim

model = timm.create_model("deit_small_patch16_224", pretrained=True).eval()
reduction = vitrim.reduce(model, "tome", "keep(rate=0.5, at=[3, 6, 9])")
logits = model(torch.randn(8, 3, 224, 224))
reduction.detach()   # the dense model again"""

_COMMANDS = """vitrim inspect photo.jpg --model timm/deit_small_patch16_224 --reduce tome --reduce topk
vitrim bench --model timm/deit_small_patch16_224 --images DIR --methods all --rates 0.7 0.5
vitrim bench --model timm/NAME --weights FILE.safetensors --images DIR"""


def page(rows: Sequence[Row], schedule: str, images: int, environment: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """The report as HTML text.

    Args:
        rows: the dense row and those of all methods.
        schedule: spec of the schedule.
        images: number of images behind the accuracies.
        environment: machine and versions, for the last line.
        pictures: ``plot``, ``methods`` and ``stages``; those that are missing leave their section out.
    """
    parts = [f"<h1>Token reduction on a small vision transformer</h1>\n{_intro(rows, schedule, images)}"]
    parts.append(f"<h2>Accuracy, work and time</h2>\n{_table(rows)}\n{_reading()}")
    captions = {
        "plot": ("Accuracy against measured speed", "Up and to the right is better; the grey line is the dense model."),
        "methods": ("What is left of each image", _LEGEND),
        "stages": (
            "Stage by stage",
            "The same image after each stage. Methods that reduce in more blocks are shown at three of them.",
        ),
    }
    for key, (heading, text) in captions.items():
        if key in pictures:
            kind = "plot" if key == "plot" else "sheet"
            alt = html.escape(heading, quote=True)
            parts.append(f'<h2>{heading}</h2>\n<p>{text}</p>\n<img class="{kind}" alt="{alt}" src="{_embed(pictures[key])}">')
    parts.append(f"<h2>On your own model</h2>\n<pre>{html.escape(_CODE)}</pre>\n<p>From the command line:</p>")
    parts.append(f"<pre>{html.escape(_COMMANDS)}</pre>")
    told = ", ".join(f"{k} {v}" for k, v in environment.items() if v is not None)
    parts.append(
        f'<footer class="soft small"><p>Measured with {html.escape(told)}. Images: Fashion-MNIST, Copyright 2017 Zalando SE, MIT '
        "licence; H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747, 2017.</p></footer>"
    )
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
        f'initial-scale=1">\n<title>vitrim demo</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )


_LEGEND = (
    "After the last stage. <b>Pruning</b>: dropped patches fade to white; what stays is outlined. <b>Fusing</b> (EViT):"
    " patches that share the fused token are tinted. <b>Merging</b>: every token is filled with the mean colour of its "
    "patches and outlined; patches that are still on their own keep the image. Soft merging is drawn by the token that "
    "takes most of each patch, so that few tokens may seem to take everything."
)


def in_order(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows that speak for their method, best first; rows of untrained methods; rows that failed."""
    methods = [row for row in rows if row.method != DENSE]
    ranked = sorted(
        (row for row in methods if not row.failed), key=lambda r: -(r.top1 if r.top1 is not None else r.agreement or 0)
    )
    untrained = [row for row in ranked if "untrained" in row.note]
    return [row for row in ranked if row not in untrained], untrained, [row for row in methods if row.failed]


def _intro(rows: Sequence[Row], schedule: str, images: int) -> str:
    """What was done, and the one result to remember."""
    text = (
        f"<p>The model that comes with vitrim, a ViT with 12 blocks and 196 patch tokens, classifies {images} test images of "
        f"Fashion-MNIST: first as it is, then with each method at <code>{html.escape(schedule)}</code>: half of the tokens leave "
        "at three places. The model stays frozen: nothing of it is tuned for the reduction.</p>"
    )
    dense = next((row for row in rows if row.method == DENSE), None)
    good, _, _ = in_order(rows)
    if dense is None or dense.top1 is None or not good or good[0].top1 is None:
        return text
    best, accuracy = good[0], 100 * good[0].top1
    return (
        f"{text}\n<p>Best here: <b>{html.escape(best.method)}</b> with {accuracy:.1f} % of the images right (dense: "
        f"{100 * dense.top1:.1f} %), at {dense.gflops / best.gflops:.1f} times less work and "
        f"{best.speedup:.2f} times the speed.</p>"
    )


def _table(rows: Sequence[Row]) -> str:
    good, untrained, failed = in_order(rows)
    heads = "".join(f"<th{_side(c)}>{title}</th>" for c, title in _COLUMNS.items())
    lines = [f"<tr>{heads}</tr>"]
    lines += [_line(row, "dense") for row in rows if row.method == DENSE]
    best = {column: max((_value(row, column) for row in good), default=0.0) for column in ("speed-up", "top-1 %", "agree %")}
    lines += [_line(row, "", best) for row in good]
    if untrained:
        lines.append(
            _group(
                "Untrained: these methods score, weigh or mix tokens with parameters of their own, which start at "
                "random and have to be trained. Their work and time are right; their accuracy says nothing about the "
                "method."
            )
        )
        lines += [_line(row, "") for row in untrained]
    if failed:
        lines.append(_group("Not measured: " + "; ".join(f"{row.method}: {row.note}" for row in failed)))
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def _reading() -> str:
    return (
        '<p class="soft small">GFLOPs are 1e9 multiply-adds per image, the method\'s own work included. FLOPs: how many '
        "times fewer. Measured: how many times faster than the dense model on this machine, timed in turns with it; "
        "small models on a CPU gain less than large ones on a GPU. Papers train or fine-tune with the reduction in "
        "place, which helps pruning most; this table shows what the methods do to a model that was never prepared for "
        "them.</p>"
    )


def _line(row: Row, kind: str, best: Mapping[str, float] | None = None) -> str:
    cells = cells_of(row)
    cells["what"] = _what(row)
    parts = []
    for column in _COLUMNS:
        classes = ["left"] * (column in _LEFT) + ["what"] * (column == "what")
        if best and column in best and _value(row, column) == best[column]:
            classes.append("best")
        named = f' class="{" ".join(classes)}"' if classes else ""
        parts.append(f"<td{named}>{html.escape(cells[column])}</td>")
    return f"<tr{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{''.join(parts)}</tr>"


def _what(row: Row) -> str:
    if row.method == DENSE:
        return "The model as it is."
    told = describe(parse_spec(row.method)[0])
    summary = told.summary[:1].upper() + told.summary[1:]
    learned = "parameters" in told.needs and "untrained" not in row.note
    return f"{summary} Learned part trained beforehand." if learned else summary


def _value(row: Row, column: str) -> float:
    return {"speed-up": row.speedup, "top-1 %": row.top1 or 0.0, "agree %": row.agreement or 0.0}[column]


def _group(text: str) -> str:
    return f'<tr class="group"><td colspan="{len(_COLUMNS)}">{html.escape(text)}</td></tr>'


def _side(column: str) -> str:
    return ' class="left"' if column in _LEFT else ""


def _embed(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"data:{_MIME[path.suffix]};base64,{data}"
