"""Augmentations that torchvision and timm do not have in the papers' form: AutoAugment with Pillow's ops, and Cutout."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

POLICIES = ("imagenet", "cifar10", "svhn")

_GREY = 128
_STEPS = 10
_FACTORS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Sharpness": ImageEnhance.Sharpness,
    "Brightness": ImageEnhance.Brightness,
}


class AutoAugment:
    """AutoAugment (Cubuk et al., CVPR 2019) as the code of ILA runs it: one of 25 pairs of operations, each with its chance.

    The tables of policies are torchvision's, the operations are not: rotations have a positive sign only, shears are bicubic,
    the fill is grey 128, and solarize starts at 256.

    Args:
        policy: ``imagenet``, ``cifar10`` or ``svhn``.

    Raises:
        ValueError: for an unknown policy.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise ValueError(f"no AutoAugment policy '{policy}'; known: {', '.join(POLICIES)}")
        from torchvision import transforms

        self.policy = policy
        self.pairs = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy)).policies

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation, chance, step in random.choice(self.pairs):
            if random.random() < chance:
                image = apply(image, operation, step or 0)
        return image

    def __repr__(self) -> str:
        return f"AutoAugment({self.policy})"


def apply(image: Image.Image, operation: str, step: int, sign: int | None = None) -> Image.Image:
    """One operation of AutoAugment.

    Args:
        image: RGB or grey.
        operation: in torchvision's names, such as ``ShearX``.
        step: of the magnitude, 0 to 9.
        sign: 1 or -1 where the operation has two directions; drawn when None.
    """
    if sign is None and (operation in _FACTORS or operation[:-1] in ("Shear", "Translate")):
        sign = random.choice((-1, 1))
    sign = sign or 1
    if operation in _FACTORS:
        return _FACTORS[operation](image).enhance(1 + sign * _range(0.0, 0.9, step))
    if operation == "Rotate":
        return image.rotate(_range(0.0, 30.0, step), Image.Resampling.NEAREST, fillcolor=_fill(image))
    if operation[:-1] == "Shear":
        slope = sign * _range(0.0, 0.3, step)
        matrix = (1, slope, 0, 0, 1, 0) if operation == "ShearX" else (1, 0, 0, slope, 1, 0)
        return _affine(image, matrix, Image.Resampling.BICUBIC)
    if operation[:-1] == "Translate":
        along_x = operation == "TranslateX"
        shift = sign * _range(0.0, 150 / 331, step) * (image.width if along_x else image.height)
        return _affine(image, (1, 0, shift * along_x, 0, 1, shift * (not along_x)), Image.Resampling.NEAREST)
    if operation == "Posterize":
        return ImageOps.posterize(image, round(_range(8.0, 4.0, step)))
    if operation == "Solarize":
        return ImageOps.solarize(image, _range(256.0, 0.0, step))  # pyright: ignore[reportArgumentType] - compares only
    plain = {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize, "Invert": ImageOps.invert}
    return plain[operation](image)


class Cutout:
    """Cover one rectangle with one random colour, in every image (DeVries and Taylor, 2017).

    The centre is uniform over the pixels (NumPy's generator), the colour uniform (Python's), and the rectangle is clipped.

    Args:
        share: of the image's sides that the rectangle's sides have.

    Raises:
        ValueError: for a share outside 0 to 1.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"cutout is a share of the image's side, 0 to 1; got {share}")
        self.share = share

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = (int(self.share * side + 0.5) for side in image.size)
        left = int(np.random.randint(image.width)) - width // 2
        top = int(np.random.randint(image.height)) - height // 2
        colour = tuple(random.randint(0, 255) for _ in image.getbands())
        image = image.copy()
        box = (max(left, 0), max(top, 0), min(left + width, image.width), min(top + height, image.height))
        image.paste(colour[0] if len(colour) == 1 else colour, box)
        return image

    def __repr__(self) -> str:
        return f"Cutout({self.share})"


def _range(first: float, last: float, step: int) -> float:
    """The magnitude at one of ten equal steps."""
    return first + (last - first) * step / (_STEPS - 1)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=_fill(image))


def _fill(image: Image.Image) -> Any:
    bands = len(image.getbands())
    return _GREY if bands == 1 else (_GREY,) * bands
