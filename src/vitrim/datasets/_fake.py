"""Tiny drawn images for the fake twins: each class has its hue, gradient and stripes, under noise; equal on every machine."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

#: images of each class in the training and in the test part of a twin
TRAIN, TEST = 10, 4
CLASSES = 4


def hue(label: int, classes: int) -> np.ndarray:
    """The colour of a class: ``(3,)`` float in 0..255, hues evenly spaced."""
    return np.array(colorsys.hsv_to_rgb(label / classes, 0.75, 0.9)) * 255


def draw(name: str, label: int, classes: int = CLASSES, size: tuple[int, int] | None = None) -> Image.Image:
    """An image of a class.

    Args:
        name: seeds position and noise; different names give different images.
        label: class index.
        classes: how many there are.
        size: width and height in pixels; drawn from 36 to 56 otherwise.
    """
    rng = np.random.RandomState(crc32(name.encode()))
    width, height = size or (int(rng.randint(36, 57)), int(rng.randint(36, 57)))
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    angle = np.pi * label / classes + rng.uniform(-0.1, 0.1)
    along = x * np.cos(angle) + y * np.sin(angle)
    stripes = 1 + 0.35 * np.sin(2 * np.pi * ((label % 5 + 2) * along + rng.uniform()))
    pixels = hue(label, classes) * (0.35 + 0.4 * along * stripes + 0.2 * stripes)[..., None]
    return _image(pixels + rng.normal(0, 12, (height, width, 3)))


def draw_several(name: str, labels: Sequence[int], classes: int = CLASSES) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """An image with one coloured box for each label, and the boxes as ``(x, y, width, height)`` in pixels."""
    rng = np.random.RandomState(crc32(name.encode()))
    side = 64
    pixels = np.full((side, side, 3), 110.0)
    boxes: list[tuple[int, int, int, int]] = []
    for label in labels:
        width, height = (int(v) for v in rng.randint(14, 34, 2))
        left, top = int(rng.randint(0, side - width)), int(rng.randint(0, side - height))
        pixels[top : top + height, left : left + width] = hue(label, classes)
        boxes.append((left, top, width, height))
    return _image(pixels + rng.normal(0, 10, pixels.shape)), boxes


def save(root: Path, path: str, image: Image.Image) -> None:
    """Write an image below the root, in the format of its suffix."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 92} if file.suffix.lower() in (".jpg", ".jpeg") else {}
    image.save(file, **options)


def place(root: Path, path: str, label: int, classes: int = CLASSES, size: tuple[int, int] | None = None) -> None:
    """Draw an image of a class and write it below the root."""
    save(root, path, draw(path, label, classes, size))


def write(root: Path, path: str, lines: Iterable[object]) -> None:
    """Write a text list, one line each."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def labels(train: int = TRAIN, test: int = TEST, classes: int = CLASSES) -> list[tuple[bool, int, int]]:
    """What a twin holds, class by class: ``(in the training part, label, running number from 1 within the class)``."""
    return [(n <= train, label, n) for label in range(classes) for n in range(1, train + test + 1)]


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def strip_date(path: Path) -> None:
    """Overwrite the 116 bytes of text that begin a MATLAB 5 file: SciPy writes the date there, and twins must not differ."""
    content = path.read_bytes()
    path.write_bytes(b"MATLAB 5.0 MAT-file, fake twin".ljust(116) + content[116:])
