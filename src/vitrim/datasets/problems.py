"""What can be wrong with lists of items, without opening an image; each finding is one line with its remedy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath

from vitrim.datasets.base import DataSet, Item

SHOWN = 5

Splits = Mapping[str, list[Item]]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        kind: one word or two, such as ``missing files``.
        text: one line: what, where, and the remedy.
        names: all files concerned, as paths below the root.
    """

    kind: str
    text: str
    names: tuple[str, ...] = ()


def some(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def labels_outside(dataset: DataSet, splits: Splits) -> list[Problem]:
    """Targets that are no class index."""
    count = len(dataset.classes)
    found: list[Problem] = []
    for split, items in splits.items():
        bad = [item for item in items if any(not 0 <= t < count for t in targets(item))]
        if bad:
            wrong = sorted({t for item in bad for t in targets(item) if not 0 <= t < count})
            text = (
                f"{split}: {len(bad)} images have labels outside the {count} classes (0 to {count - 1}): labels "
                f"{some([str(t) for t in wrong])}; files {some([item.path for item in bad], 3)}; correct the labels"
            )
            found.append(Problem("labels", text, tuple(item.path for item in bad)))
    return found


def empty_classes(dataset: DataSet, splits: Splits) -> list[Problem]:
    """Classes without an image in a training split; in the others a class may be absent."""
    found: list[Problem] = []
    names = dataset.classes
    for split in ("trainval", "train"):
        if split not in splits:
            continue
        seen = {t for item in splits[split] for t in targets(item)}
        empty = [i for i in range(len(names)) if i not in seen]
        if empty:
            shown = [str(i) if names[i] == str(i) else f"{i} ({names[i]})" for i in empty[:SHOWN]]
            more = f" and {len(empty) - SHOWN} more" if len(empty) > SHOWN else ""
            remedy = "number classes from 0" if empty == [0] else "add images, or number the classes from 0 without gaps"
            text = f"{split}: {len(empty)} of {len(names)} classes have no images: {', '.join(shown)}{more}; {remedy}"
            found.append(Problem("empty classes", text))
            break  # train lacks what trainval lacks
    return found


def missing_files(dataset: DataSet, splits: Splits) -> list[Problem]:
    """Files that lists name and that do not exist, and the folder where they seem to be."""
    found: list[Problem] = []
    for split, items in splits.items():
        gone = dataset.missing(items)
        if gone:
            names = [item.path for item in gone]
            place = likely_folder(dataset, names[0])
            hint = f"they seem to be in '{place[0]}': {place[1]}" if place else "obtain them, or correct the paths"
            text = f"{split}: {len(gone)} of {len(items)} files do not exist: {some(names)}; {hint}"
            found.append(Problem("missing files", text, tuple(names)))
    return found


def likely_folder(dataset: DataSet, path: str) -> tuple[str, str] | None:
    """Where below the root a file of this name lies, and what to write so that it is found; None when nowhere."""
    wanted = PurePosixPath(path)
    best: tuple[int, str] | None = None
    looked = 0
    for folder, subfolders, files in os.walk(dataset.folder):
        subfolders.sort()
        looked += 1 + len(files)
        if wanted.name in files:
            relative = PurePosixPath(os.path.relpath(os.path.join(folder, wanted.name), dataset.folder).replace(os.sep, "/"))  # noqa: PTH118 - os.walk
            common = _common_tail(relative.parts, wanted.parts)
            if best is None or common > best[0]:
                best = (common, relative.as_posix())
        if looked > 200_000:  # a minute on slow file systems; hints are not worth more
            break
    if best is None:
        return None
    common, there = best
    base = "/".join(PurePosixPath(there).parts[:-common])
    given = "/".join(wanted.parts[:-common])
    if hasattr(dataset, "images") and given == str(getattr(dataset, "images", "")).strip("/"):
        return base or ".", f"write images={base or repr('')}"
    return base or ".", f"the list says '{given or '.'}'; correct its paths or move the folder"


def duplicate_rows(splits: Splits) -> list[Problem]:
    """The same file listed twice in a split, or in two splits that must not share images."""
    found: list[Problem] = []
    for split, items in splits.items():
        again = [path for path, n in Counter(item.path for item in items).items() if n > 1]
        if again:
            labels: dict[str, set[int | tuple[int, ...]]] = {}
            for item in items:
                labels.setdefault(item.path, set()).add(item.target)
            torn = [path for path in again if len(labels[path]) > 1]
            what = f", {len(torn)} of them with different labels" if torn else ""
            text = f"{split}: {len(again)} files are listed more than once{what}: {some(torn or again)}; remove the lines"
            found.append(Problem("duplicates", text, tuple(again)))
    for one, other in apart(splits):
        both = sorted({item.path for item in splits[one]} & {item.path for item in splits[other]})
        if both:
            text = f"{len(both)} files are in both {one} and {other}: {some(both)}; remove them from one of the two"
            found.append(Problem("leakage", text, tuple(both)))
    return found


def apart(splits: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of splits that must not share an image."""
    # The images of train and val are meant to be in trainval.
    return [p for p in combinations(splits, 2) if "trainval" not in p or "test" in p]


def wrong_counts(dataset: DataSet, splits: Splits) -> list[Problem]:
    """Counts that differ from the published ones."""
    have = {"classes": len(dataset.classes), **{split: len(items) for split, items in splits.items()}}
    return [
        Problem("counts", f"{key}: {have[key]:,} found, {count:,} published; the set is incomplete or another version")
        for key, count in dataset.expected.items()
        if key in have and have[key] != count
    ]


def targets(item: Item) -> tuple[int, ...]:
    """The classes of an item."""
    return (item.target,) if isinstance(item.target, int) else item.target


def _common_tail(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
