"""A report about runs: one HTML page, a Markdown table, and the figures as files."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vitrim.experiments.report_data import Setting, Value, metrics_of, settings_of
from vitrim.experiments.report_page import Picture, page
from vitrim.experiments.rows import columns_of, to_csv
from vitrim.experiments.runs import Run, find_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        head: its heading.
        get: the number of a setting.
        digits: decimals; None for three figures.
        scale: factor before it is shown.
        higher: whether more is better, so that the best can be marked; None where that cannot be said.
    """

    head: str
    get: Callable[[Setting], Value | None]
    digits: int | None = 2
    scale: float = 1.0
    higher: bool | None = None

    def text(self, setting: Setting) -> str:
        """The number with its spread, empty where there is none."""
        value = self.get(setting)
        if value is None:
            return ""
        mean = value.mean * self.scale
        digits = self.digits
        if digits is None:
            digits = 0 if not mean else max(0, 2 - math.floor(math.log10(abs(mean))))
        # The spread in the decimals of the mean, so that both can be compared at a glance.
        spread = f" ± {value.std * self.scale:.{digits}f}" if value.std is not None and self._spreads else ""
        return f"{mean:.{digits}f}{spread}"

    @property
    def _spreads(self) -> bool:
        return self.head not in ("GFLOPs", "parameters M", "trained M")


class Report:
    """Runs, put together by setting.

    Args:
        runs: finished or not.
        title: of the page.

    Raises:
        ValueError: when there are no runs.
    """

    def __init__(self, runs: Sequence[Run], title: str = "Runs") -> None:
        if not runs:
            raise ValueError("no runs to report; a run is a folder with config.yaml, as vitrim train writes it")
        self.runs, self.title = list(runs), title
        self.settings = settings_of(self.runs)
        self.metrics = metrics_of(self.settings)
        self.metric = self.metrics[0] if self.metrics else "top1"
        measured = [s for s in self.settings if s.finished]
        # All from the same clock: speeds of evaluation where every setting has one.
        self.evaluated = bool(measured) and all(s.speed(True) is not None for s in measured)

    @cached_property
    def columns(self) -> list[Column]:
        """The columns that have a number."""
        found = [Column(_heads.get(m, m), _metric(m), higher=m != "loss") for m in self.metrics]
        found.append(Column(f"best {_heads.get(self.metric, self.metric)}", _metric(self.metric, "best"), higher=True))
        found.append(Column("GFLOPs", lambda s: s.fact("gflops"), None))
        found.append(Column(self.speed_label, lambda s: s.speed(self.evaluated), None))
        found.append(Column("parameters M", lambda s: s.fact("parameters"), 2, 1e-6))
        found.append(Column("trained M", lambda s: s.fact("trainable"), 2, 1e-6))
        found.append(Column("minutes", lambda s: s.fact("seconds"), None, 1 / 60))
        found.append(Column("largest gradient", lambda s: s.gradients[0], None))
        found.append(Column("gradient deviation", lambda s: s.gradients[1], None))
        shown: list[Column] = []
        for column in found:
            values = [column.get(s) for s in self.settings]
            # Nothing is said twice: the best as the last, all parameters as trained.
            if any(values) and not any(values == [other.get(s) for s in self.settings] for other in shown):
                shown.append(column)
        return shown

    @property
    def speed_label(self) -> str:
        """What the speeds are speeds of."""
        return "images/s" if self.evaluated else "training images/s"

    @cached_property
    def figures(self) -> dict[str, tuple[str, str, Figure]]:
        """File name to heading, explanation and figure, of those for which there are numbers."""
        from vitrim.experiments import report_figures as draw

        bars = "Bars: standard deviation over seeds."
        name = draw.NAMES.get(self.metric, self.metric)
        found: dict[str, tuple[str, str, Figure | None]] = {
            "accuracy-gflops": (
                "Accuracy against work",
                f"Up and to the left is better; the grey line is the dense model. GFLOPs are 1e9 multiply-adds an image. {bars}",
                draw.accuracy_against(self.settings, self.metric, lambda s: s.fact("gflops"), "GFLOPs"),
            ),
            "accuracy-speed": (
                "Accuracy against measured speed",
                f"Up and to the right is better. {'The forward pass alone.' if self.evaluated else _IN_TRAINING} {bars}",
                draw.accuracy_against(self.settings, self.metric, lambda s: s.speed(self.evaluated), self.speed_label),
            ),
            "training-accuracy": (
                "Accuracy over the training",
                "Mean over seeds; the band spans the lowest and the highest.",
                draw.training_curves(self.settings, "eval", self.metric, name),
            ),
            "training-loss": (
                "Loss over the training",
                "The training loss. Mean over seeds; the band spans the lowest and the highest.",
                draw.training_curves(self.settings, "train", "loss", "training loss"),
            ),
            "gradients-gflops": (
                "Gradient stability against work",
                f"The largest absolute entry of any gradient, mean over all steps; lower is calmer. {bars}",
                draw.gradients_against(self.settings, lambda s: s.fact("gflops"), "GFLOPs"),
            ),
            "gradients-steps": (
                "Gradient stability over the training",
                "The largest absolute entry of any gradient (max_grad_all of gradients.csv); neighbouring steps averaged.",
                draw.gradient_curves(self.settings),
            ),
        }
        return {key: (head, text, figure) for key, (head, text, figure) in found.items() if figure is not None}

    def rows(self) -> list[list[str]]:
        """The table as text: setting, seeds, numbers."""
        return [[s.name, str(len(s.finished)), *(column.text(s) for column in self.columns)] for s in self.settings]

    def heads(self) -> list[str]:
        """The headings of :meth:`rows`."""
        return ["setting", "seeds", *(column.head for column in self.columns)]

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [f"| {' | '.join(self.heads())} |", f"| :-- |{' --: |' * (len(self.heads()) - 1)}"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows()]
        return "\n".join(lines) + "\n"

    def settings_csv(self) -> str:
        """The table as CSV: mean and standard deviation in columns of their own, in full."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        columns = self.columns
        writer.writerow(["setting", "seeds", *(head for c in columns for head in (c.head, f"{c.head} std"))])
        for setting in self.settings:
            values = [column.get(setting) for column in columns]
            numbers = [n for c, v in zip(columns, values, strict=True) for n in _scaled(v, c.scale)]
            writer.writerow([setting.name, len(setting.finished), *numbers])
        return out.getvalue()

    def runs_csv(self) -> str:
        """Every run with every option, as CSV."""
        rows = [run.row() for run in self.runs]
        return to_csv(rows, columns_of(rows))

    def html(self) -> str:
        """The page."""
        from vitrim.experiments.report_figures import to_svg

        pictures = [Picture(key, head, text, to_svg(figure, key)) for key, (head, text, figure) in self.figures.items()]
        states = Counter(run.state for run in self.runs)
        told = ", ".join(f"{count} {state}" for state, count in states.most_common())
        intro = f"{len(self.runs)} runs ({told}), {len(self.settings)} settings; means ± standard deviations over seeds."
        unfinished = [(run.id, run.state, run.note) for run in self.runs if run.state != "finished"]
        columns = self.columns
        keys = [[v.mean if (v := column.get(s)) else None for column in columns] for s in self.settings]
        return page(
            self.title, intro, self.heads(), self.rows(), keys, [column.higher for column in columns],
            pictures, unfinished, {"settings": self.settings_csv(), "runs": self.runs_csv()},
        )  # fmt: skip

    def write_figures(self, folder: Path) -> list[Path]:
        """Each figure as SVG and PNG; the paths."""
        from vitrim.experiments.report_figures import to_png, to_svg

        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for key, (_, _, figure) in self.figures.items():
            written += [folder / f"{key}.svg", folder / f"{key}.png"]
            written[-2].write_text(to_svg(figure, key), encoding="utf-8")
            written[-1].write_bytes(to_png(figure))
        return written


def gather(places: Sequence[Path]) -> list[Run]:
    """The runs in or below several folders, each once; ids tell the places apart where there are several."""
    found: dict[Path, Run] = {}
    for place in places:
        for run in find_runs(place):
            found.setdefault(run.folder.resolve(), run)
    return list(found.values())


_IN_TRAINING = (
    "Images a second in training; vitrim eval measures the forward pass alone, and the figure takes it where all runs have it."
)
_heads = {"top1": "top-1 %", "top5": "top-5 %", "mAP": "mAP %", "CF1": "CF1 %", "OF1": "OF1 %"}


def _metric(name: str, which: str = "last") -> Callable[[Setting], Value | None]:
    return lambda setting: setting.value(name, which)


def _scaled(value: Value | None, scale: float) -> tuple[float | str, float | str]:
    if value is None:
        return "", ""
    return value.mean * scale, "" if value.std is None else value.std * scale
