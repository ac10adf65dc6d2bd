"""Deterministic splits: the first images of each class to one side, the last to the other."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from vitrim.datasets.base import DataError, Item


def head_and_tail(labels: Sequence[Hashable], share: float, cap: int | None = None) -> tuple[list[int], list[int]]:
    """Positions of the head and of the tail of every class: of n rows, the first floor(n * share) are its head.

    Args:
        labels: class of each row, in file order.
        share: of the head, 0 to 1.
        cap: keep the first ``cap`` rows of each head only (few-shot); what is cut off is in neither part.

    Returns:
        Two lists of positions, class by class in the order of the class ids, rows of a class in file order.

    Raises:
        ValueError: for a share outside 0 to 1 or a cap below 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is a number from 0 to 1; got {share}")
    if cap is not None and cap < 1:
        raise ValueError(f"the number of images of a class is 1 or more; got {cap}")
    groups: dict[Hashable, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    exact = Fraction(str(share))  # 0.29 * 100 in floating point is below 29
    head: list[int] = []
    tail: list[int] = []
    for label in _in_order(groups):
        rows = groups[label]
        cut = math.floor(len(rows) * exact)
        head += rows[:cut] if cap is None else rows[:cut][:cap]
        tail += rows[cut:]
    return head, tail


def data_split(items: Sequence[Item], share: float, cap: int | None = None) -> tuple[list[Item], list[Item]]:
    """Head and tail of every class of a list of items, see :func:`head_and_tail`; multi-label items form one group.

    Args:
        items: in file order.
        share: of the head, 0 to 1.
        cap: keep the first ``cap`` items of each head only.
    """
    labels = [item.target if isinstance(item.target, int) else 0 for item in items]
    head, tail = head_and_tail(labels, share, cap)
    return [items[i] for i in head], [items[i] for i in tail]


def first_of_each_class(items: Sequence[Item], count: int) -> list[Item]:
    """The few-shot subset: the first ``count`` items of each class, class by class."""
    return data_split(items, 1.0, count)[0]


def carve(items: Sequence[Item], split: str, *, val: float = 0.0, test: float = 0.0) -> list[Item]:
    """One split of a list that has none: ``test`` is the tail of each class, ``val`` the tail of what is left.

    Args:
        items: all images.
        split: train, val, trainval or test.
        val: share of the images that are not test images.
        test: share of all images.
    """
    rest, last = data_split(items, _rest(test)) if test else (list(items), [])
    if split in ("test", "trainval"):
        return last if split == "test" else rest
    head, tail = data_split(rest, _rest(val)) if val else (rest, [])
    return tail if split == "val" else head


@dataclass(frozen=True)
class SplitFiles:
    """What ``split_csv`` wrote.

    Attributes:
        train: file of the heads.
        test: file of the tails, or None when there are none.
        train_rows: number of rows.
        test_rows: number of rows.
        classes: number of classes.
    """

    train: Path
    test: Path | None
    train_rows: int
    test_rows: int
    classes: int


def split_csv(
    file: Path,
    *,
    train_percent: float = 0.8,
    save_name_train: str = "train",
    save_name_test: str = "val",
    max_images_per_class: int | None = None,
    overwrite: bool = False,
) -> SplitFiles:
    """Split a CSV with the columns ``class_id`` and ``dir`` into two beside it, without randomness.

    Of each class, the first floor(n * train_percent) rows in file order go to the first file, the rest to the second; classes
    follow each other by their id, which need not be contiguous. An empty second file is not written.

    Args:
        file: the CSV; other columns are kept.
        train_percent: share of the first file, 0 to 1.
        save_name_train: name of the first file, without ``.csv``.
        save_name_test: name of the second file.
        max_images_per_class: rows of each class in the first file at most, for few-shot sets.
        overwrite: replace files that have other content.

    Raises:
        DataError: when the file is no such CSV, an output would replace the input or, unasked, another file.
    """
    header, rows = read_rows(file, ["class_id", "dir"])
    column = header.index("class_id")
    head, tail = head_and_tail([row[column] for row in rows], train_percent, max_images_per_class)
    if not head:
        raise DataError(f"'{file}': train_percent={train_percent:g} leaves no rows for the first file; use a larger share")
    outputs = [(_beside(file, save_name_train), head), *([(_beside(file, save_name_test), tail)] if tail else [])]
    if len({path for path, _ in outputs}) < len(outputs):
        raise DataError(f"both files would be '{outputs[0][0]}'; give --save-name-train and --save-name-test two names")
    texts = [(path, _text(header, [rows[i] for i in positions])) for path, positions in outputs]
    for path, text in texts:
        if path.resolve() == file.resolve():
            raise DataError(f"'{path}' is the file that is split; choose another --save-name-train or --save-name-test")
        if not overwrite and path.exists() and path.read_text(encoding="utf-8-sig") != text:
            raise DataError(f"'{path}' exists with other content; choose another name, or --overwrite")
    for path, text in texts:
        path.write_text(text, encoding="utf-8", newline="")
    second = outputs[1][0] if tail else None
    return SplitFiles(outputs[0][0], second, len(head), len(tail), len({row[column] for row in rows}))


def read_rows(file: Path, columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV that must have the given columns; blank lines are left out.

    Raises:
        DataError: when a column is missing, a row is short, or the file is no UTF-8 text.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            table = list(csv.reader(opened))
    except FileNotFoundError as error:
        raise DataError(f"'{file}' does not exist; give the path of a CSV with the columns {', '.join(columns)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{file}' is no CSV in UTF-8 ({error}); save it as comma-separated UTF-8 text") from error
    header = [name.strip() for name in table[0]] if table else []
    absent = [name for name in columns if name not in header]
    if absent:
        raise DataError(f"'{file}' has no column '{absent[0]}'; its first line has: {', '.join(header) or 'nothing'}")
    rows: list[list[str]] = []
    for number, row in enumerate(table[1:], start=2):
        if any(cell.strip() for cell in row):
            if len(row) < len(header):
                raise DataError(f"'{file}' line {number} has {len(row)} of {len(header)} cells; complete or remove it")
            rows.append(row)
    return header, rows


def _rest(share: float) -> float:
    return float(1 - Fraction(str(share)))  # 1 - 0.9 in floating point is not 0.1


def _in_order(labels: Sequence[Hashable] | dict[Hashable, list[int]]) -> list[Hashable]:
    """Class ids by number where all are numbers (10 after 9), else by text."""
    try:
        return sorted(labels, key=lambda label: int(str(label)))
    except ValueError:
        return sorted(labels, key=str)


def _beside(file: Path, name: str) -> Path:
    return file.parent / (name if name.endswith(".csv") else f"{name}.csv")


def _text(header: list[str], rows: list[list[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()
