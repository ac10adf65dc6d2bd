"""From a picture to the model's input: the registry of transforms and the pieces that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrim.core.registry import Registry, spec

TRANSFORMS = Registry("transform", "vitrim.datasets", families=True)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Mean and standard deviation of the channels by name, as the papers' code lists them; ``half`` is what they fall back to.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tinyin": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    "cub": ((0.3659524, 0.42010019, 0.41562049), (0.07625843, 0.04599726, 0.06182727)),
}

#: Shares of red, green and blue in grey (ITU-R 601), as Pillow converts.
GREY = (0.299, 0.587, 0.114)

_LONGEST = 8

Step = Callable[[Any], Any]
Numbers = Sequence[float] | float


class Transform(ABC):
    """How images are prepared for training and for evaluation.

    A child registers itself by ``@TRANSFORMS.register("name")``; its keyword-only constructor arguments are the settings. All
    randomness comes from the global generators of Python, NumPy and PyTorch, so that seeding them repeats an image.

    Attributes:
        size: side of the square input in pixels.
        mean: by channel, subtracted after scaling to [0, 1].
        std: by channel, divided by.

    Args:
        size: side of the square input in pixels.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
        grey: one channel instead of three.

    Raises:
        ValueError: for a size below one, an unknown name of statistics, or a wrong number of values.
    """

    spec_name: ClassVar[str]

    def __init__(
        self,
        *,
        size: int = 224,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
        grey: bool = False,
    ) -> None:
        if type(size) is not int or size < 1:
            raise ValueError(f"size is the side of the input in pixels, a whole number above 0; got {size!r}")
        if stats is not None:
            if stats not in STATISTICS:
                raise ValueError(f"no statistics '{stats}'; known: {', '.join(STATISTICS)}; or give mean=[...], std=[...]")
            mean, std = STATISTICS[stats]
        self.size = size
        self.stats = stats
        self.grey = grey
        self.mean = _per_channel("mean", mean, grey)
        self.std = _per_channel("std", std, grey)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0; got {list(self.std)}")

    @abstractmethod
    def train_steps(self) -> list[Step]:
        """What happens in training, between the conversion of the image's mode and the model."""

    @abstractmethod
    def eval_steps(self) -> list[Step]:
        """What happens in evaluation, between the conversion of the image's mode and the model."""

    def train(self) -> Pipeline:
        """The transform for training: from an image to ``(C, size, size)`` float32."""
        return Pipeline([self._mode(), *self.train_steps()])

    def eval(self) -> Pipeline:
        """The transform for evaluation, without randomness: from an image to ``(C, size, size)`` float32."""
        return Pipeline([self._mode(), *self.eval_steps()])

    def to_tensor(self) -> ToTensor:
        """Conversion to a normalised tensor with this transform's statistics."""
        return ToTensor(self.mean, self.std)

    def __repr__(self) -> str:
        return spec(self)

    def _mode(self) -> ToMode:
        return ToMode("L" if self.grey else "RGB")


class Pipeline:
    """Steps, one after the other; can be pickled for data workers."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = image
        for step in self.steps:
            value = step(value)
        return value

    def __repr__(self) -> str:
        return "\n".join(["Pipeline(", *(f"    {step!r}," for step in self.steps), ")"])


class ToMode:
    """Convert an image to a mode of Pillow, such as RGB; alpha is dropped, as the papers' code does."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.mode == self.mode else image.convert(self.mode)

    def __repr__(self) -> str:
        return f"ToMode({self.mode})"


class ToTensor:
    """Scale to [0, 1] and normalise: the numbers of torchvision's ``ToTensor`` and ``Normalize``, in contiguous memory.

    At least twice as fast as the composed transforms of torchvision v2, whose channels-last result the collation copies again.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """From ``(H, W)`` or ``(H, W, C)`` bytes to ``(C, H, W)`` float32."""
        # A copy, since the memory of an image is read-only and PyTorch wants to be able to write.
        array = image if isinstance(image, np.ndarray) else np.array(image)
        pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
        return pixels.contiguous().to(torch.float32).div_(255.0).sub_(self.mean).div_(self.std)

    def __repr__(self) -> str:
        return f"ToTensor(mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()})"


class LimitAspect:
    """Cut the ends of very long images (beyond 8 to 1) before the shorter side is resized.

    A strip of 1 x 1000 pixels would become 256 x 256000 otherwise. The centre crop that follows sees nothing of what is cut.
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        longest = _LONGEST * min(width, height)
        if max(width, height) <= longest:
            return image
        left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
        return image.crop((left, top, left + min(width, longest), top + min(height, longest)))

    def __repr__(self) -> str:
        return f"LimitAspect({_LONGEST})"


@TRANSFORMS.register("plain")
class Plain(Transform):
    """No augmentation: resize to the input's size (bicubic, aspect ratio not kept), normalise.

    Args:
        size: side of the square input in pixels.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
        grey: one channel instead of three; three values of ``mean`` and ``std`` become one by the weights of grey.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
        grey: bool = False,
    ) -> None:
        super().__init__(size=size, stats=stats, mean=mean, std=std, grey=grey)

    def train_steps(self) -> list[Step]:
        return self.eval_steps()

    def eval_steps(self) -> list[Step]:
        return [square(self.size), self.to_tensor()]


def square(side: int) -> Step:
    """Resize to ``(side, side)`` by Pillow's bicubic filter; an image of that size is passed on as it is."""
    from torchvision.transforms import v2

    return v2.Resize([side, side], interpolation=v2.InterpolationMode.BICUBIC)


def check_resize(size: int, side: int) -> int:
    """The side of the resized image, which a crop must fit into.

    Raises:
        ValueError: when it does not.
    """
    if side < size:
        raise ValueError(f"resize={side} is smaller than the crop size={size}; leave it out for the papers' rule")
    return side


def official(compat: str | None) -> bool:
    """Whether the published code's behaviour is asked for.

    Raises:
        ValueError: for another word.
    """
    if compat not in (None, "official"):
        raise ValueError(f"compat is official or none; got '{compat}'")
    return compat == "official"


def _per_channel(name: str, values: Numbers, grey: bool) -> tuple[float, ...]:
    numbers = (float(values),) if isinstance(values, int | float) else tuple(float(v) for v in values)
    if len(numbers) not in (1, 3):
        raise ValueError(f"{name} takes one number, or one for each of three channels; got {list(numbers)}")
    if grey and len(numbers) == 3:
        return (sum(share * v for share, v in zip(GREY, numbers, strict=True)),)
    return numbers if grey or len(numbers) == 3 else numbers * 3
