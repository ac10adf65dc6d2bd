"""Images of a user: one file, a folder, class sub-folders, or a ``labels.csv`` with files or an ``images.tar``.

Commands that read images end with 0 also when some files were skipped (they are listed and counted), and with 2 when nothing
could be used or the call was wrong.
"""

from __future__ import annotations

import csv
import io
import tarfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vitrim.data.embedded import rotation

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".jfif",
    ".avif",
    ".heic",
    ".heif",
)
_LONGEST_LIST = 20


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images read from disk, ready for a model.

    Attributes:
        images: ``(N, C, H, W)`` float32.
        files: name of each image below the folder.
        labels: ``(N,)`` int64, or None when there are none that fit the model.
        classes: name of each label, or None.
        skipped: ``(file, reason)`` of each file that could not be used.
        notes: what else a user should be told, such as why labels are not used.
    """

    images: Tensor
    files: list[str]
    labels: Tensor | None = None
    classes: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def report(self) -> list[str]:
        """Lines for the user: one for each skipped file, their count, and the notes."""
        lines = [f"skipped {name}: {reason}" for name, reason in self.skipped[:_LONGEST_LIST]]
        if len(self.skipped) > _LONGEST_LIST:
            lines.append(f"... and {len(self.skipped) - _LONGEST_LIST} more")
        if self.skipped:
            lines.append(f"{len(self)} images used, {len(self.skipped)} files skipped")
        return lines + self.notes


@dataclass(frozen=True)
class _Entry:
    """One candidate: its name, how to get its bytes, its class."""

    name: str
    read: Callable[[], bytes]
    label: str | None = None


def load_folder(
    path: str | Path,
    transform: Callable[[Image.Image], Tensor],
    limit: int | None = None,
    *,
    classes: Mapping[str, int] | Sequence[str] | None = None,
    split: str | None = None,
) -> ImageSet:
    """Read images from a folder (recursive, sorted) or a single file.

    When every image sits in a sub-folder, the first-level sub-folders are the classes. A ``labels.csv`` with columns ``file``
    and ``label`` (and perhaps ``split``) comes first; its files may lie in ``images.tar`` beside it. Broken files are
    skipped and listed.

    Args:
        path: folder or image.
        transform: of the model, see :class:`vitrim.data.models.LoadedModel`.
        limit: number of images; spread evenly over the classes, if there are any.
        classes: names of the model's classes (in order, or with their index), to which sub-folder names are matched.
        split: the part of a ``labels.csv`` to read, such as ``test``.

    Raises:
        FileNotFoundError: when there is nothing at ``path``.
        ValueError: when no image can be used, with the first reasons.
    """
    root = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of images, 1 or more; got {limit}")
    if not root.exists():
        raise FileNotFoundError(f"images: '{root}' does not exist; give an image or a folder with images in it")
    with _entries(root, split) as entries:
        if not entries:
            raise ValueError(
                f"images: no image files in '{root}'; put {', '.join(EXTENSIONS[:4])} ... files there, or in sub-folders"
            )
        tensors, used, skipped = _read(entries, transform, limit)
    if not used:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise ValueError(f"images: none of the {len(skipped)} files in '{root}' can be read ({reasons}); check the path")
    # Labels come from all entries, so that a limit or a skipped file does not renumber the classes.
    labels, names, notes = _number([e.label for e in entries], [e.label for e in used], classes)
    return ImageSet(torch.stack(tensors), [e.name for e in used], labels, names, skipped, notes)


def open_image(source: str | Path | bytes) -> Image.Image:
    """Decode an image completely, turned upright as its EXIF orientation says, in RGB.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no image, or a damaged one.
    """
    if not isinstance(source, bytes):
        file = Path(source)
        if not file.is_file():
            kind = "is a folder; give one image file" if file.is_dir() else "does not exist; give the path of an image file"
            raise FileNotFoundError(f"image: '{source}' {kind}")
        source = file.read_bytes()
    try:
        with warnings.catch_warnings():
            # Odd metadata and huge pictures are warned about by the decoder; a huge one is an error here, odd metadata is fine.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source))
            image.load()
            return _on_white(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError("no image, or a format that Pillow cannot read" if source else "empty file") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error ... for damaged files
        raise ValueError(f"damaged image ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; transparent parts become white, as viewers show them, since what hides beneath is arbitrary."""
    if image.mode.startswith("I") or image.mode == "F":
        low, high = image.getextrema()
        span = max(float(high) - float(low), 1e-9)  # pyright: ignore
        grey = image.convert("F").point(lambda v: (v - float(low)) * (255.0 / span))  # pyright: ignore
        return grey.convert("L").convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _read(
    entries: list[_Entry], transform: Callable[[Image.Image], Tensor], limit: int | None
) -> tuple[list[Tensor], list[_Entry], list[tuple[str, str]]]:
    """Decode until the limit is reached, one of each class in turn; in the order of the entries."""
    order = list(range(len(entries)))
    if limit is not None and entries[0].label is not None:
        number = {name: i for i, name in enumerate(sorted({e.label or "" for e in entries}))}
        order = rotation([number[e.label or ""] for e in entries])
    found: dict[int, Tensor] = {}
    skipped = {}
    for i in order:
        if limit is not None and len(found) >= limit:
            break
        try:
            found[i] = transform(open_image(entries[i].read()))
        except (ValueError, OSError) as error:
            skipped[i] = (entries[i].name, str(error))
    used = sorted(found)
    return [found[i] for i in used], [entries[i] for i in used], [skipped[i] for i in sorted(skipped)]


@contextmanager
def _entries(root: Path, split: str | None) -> Generator[list[_Entry]]:
    """The candidates at ``root``; archives stay open meanwhile."""
    if root.is_file():
        if root.suffix.lower() in (".tar", ".zip", ".npz"):
            raise ValueError(f"images: '{root}' is an archive; unpack it, or give the folder with images.tar and labels.csv")
        yield [_Entry(root.name, root.read_bytes)]
    elif (root / "labels.csv").is_file():
        with _from_csv(root, split) as entries:
            yield entries
    else:
        if split is not None:
            raise ValueError(f"images: split='{split}' needs a labels.csv with a column 'split' in '{root}'")
        yield _from_files(root)


def _from_files(root: Path) -> list[_Entry]:
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in EXTENSIONS)
    parts = [p.relative_to(root).parts for p in files if not any(s.startswith(".") for s in p.relative_to(root).parts)]
    labelled = all(len(p) > 1 for p in parts)
    return [_Entry("/".join(p), root.joinpath(*p).read_bytes, p[0] if labelled else None) for p in parts]


@contextmanager
def _from_csv(root: Path, split: str | None) -> Generator[list[_Entry]]:
    with (root / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or []
    if not {"file", "label"} <= set(columns):
        raise ValueError(
            f"images: '{root / 'labels.csv'}' needs columns 'file' and 'label'; it has: {', '.join(columns) or 'none'}"
        )
    if split is not None:
        splits = sorted({r.get("split") or "" for r in rows} - {""})
        if split not in splits:
            raise ValueError(f"images: labels.csv has no split '{split}'; it has: {', '.join(splits) or 'none'}")
        rows = [r for r in rows if r["split"] == split]
    archive = root / "images.tar"
    if not archive.is_file():
        yield [_Entry(r["file"], (root / r["file"]).read_bytes, r["label"]) for r in rows]
        return
    with tarfile.open(archive) as tar:
        yield [_Entry(r["file"], lambda name=r["file"]: _member(tar, name), r["label"]) for r in rows]


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError as error:
        raise ValueError("not in images.tar") from error
    if file is None:
        raise ValueError("no plain file in images.tar")
    return file.read()


def _number(
    every: list[str | None], used: list[str | None], classes: Mapping[str, int] | Sequence[str] | None
) -> tuple[Tensor | None, list[str] | None, list[str]]:
    """Labels as the model counts them: ``(labels, names, notes)``."""
    names = sorted({n for n in every if n is not None}, key=lambda n: (int(n), n) if n.isdecimal() else (0, n))
    if not names or None in every:
        return None, None, []
    known = dict(classes) if isinstance(classes, Mapping) else {c: i for i, c in enumerate(classes or ())}
    folded = {_fold(k): v for k, v in known.items()}
    if known and all(_fold(n) in folded for n in names):
        index = {n: folded[_fold(n)] for n in names}
        by_index = {i: c for c, i in reversed(known.items())}
        full: list[str] | None = [by_index.get(i, str(i)) for i in range(max(known.values()) + 1)]
    elif all(n.isdecimal() for n in names) and (not known or int(names[-1]) <= max(known.values())):
        index, full = {n: int(n) for n in names}, None
    elif not known or len(names) == len(set(known.values())):
        index, full = {n: i for i, n in enumerate(names)}, names
    else:
        strange = next(n for n in names if _fold(n) not in folded)
        note = (
            f"labels not used: the model has {len(set(known.values()))} classes, and sub-folder '{strange}' is none; name "
            f"sub-folders as the model names its classes ({', '.join(list(known)[:3])}, ...) or by their numbers"
        )
        return None, None, [note]
    return torch.tensor([index[n or ""] for n in used]), full, []


def _fold(name: str) -> str:
    """Names as they are compared: ``Ankle_boot`` is ``ankle boot``, and ``t-shirt_top`` is ``t-shirt/top``."""
    return " ".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())
