"""The transforms of CLCA: the levels weak, medium and strong."""

from __future__ import annotations

import math

from vitrim.datasets.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TRANSFORMS,
    Numbers,
    Step,
    Transform,
    check_resize,
    official,
    square,
)


@TRANSFORMS.register("weak")
class Weak(Transform):
    """The pipeline of CLCA's experiments: square resize (224 from 256, 448 from 512), random crop, mirror.

    Train: resize to (R, R) bicubic without keeping the aspect ratio, random crop, mirror with probability 0.5, TrivialAugment
    if asked, normalise, erase if asked. Evaluation: the same resize and a centre crop. CLCA, ICASSP 2025.

    Args:
        size: side of the square input in pixels.
        resize: R, side of the image that is cropped from; floor(size / 0.875) when null.
        trivial: TrivialAugmentWide after the mirror.
        erase: probability of erasing a rectangle of 2 to 40 % of the area, set to the mean.
        erase_times: how often erasing is tried.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``; published for moe and dafb: ``half``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    #: whether training crops at random places and sizes, and applies RandAugment, as the strong level says
    strong = False

    def __init__(
        self,
        *,
        size: int = 224,
        resize: int | None = None,
        trivial: bool = False,
        erase: float = 0.0,
        erase_times: int = 1,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(size=size, stats=stats, mean=mean, std=std)
        if not 0 <= erase <= 1:
            raise ValueError(f"erase is a probability, 0 to 1; got {erase}")
        self.resize = resize
        self.side = check_resize(size, math.floor(size / 0.875) if resize is None else resize)
        self.trivial = trivial
        self.erase = erase
        self.erase_times = erase_times

    def train_steps(self) -> list[Step]:
        from torchvision.transforms import v2

        bicubic = v2.InterpolationMode.BICUBIC
        steps: list[Step] = [square(self.side), v2.RandomCrop(self.size)]
        if self.strong:
            steps = [v2.RandomResizedCrop(self.size, interpolation=bicubic)]
        steps.append(v2.RandomHorizontalFlip())
        if self.strong:
            steps.append(v2.RandAugment())
        if self.trivial:
            steps.append(v2.TrivialAugmentWide())
        steps.append(self.to_tensor())
        if self.erase > 0:
            steps += [v2.RandomErasing(self.erase, (0.02, 0.4), (0.3, 3.3)) for _ in range(self.erase_times)]
        return steps

    def eval_steps(self) -> list[Step]:
        from torchvision.transforms import v2

        return [square(self.side), v2.CenterCrop(self.size), self.to_tensor()]


@TRANSFORMS.register("medium")
class Medium(Weak):
    """CLCA's medium level: weak, then TrivialAugment and erasing with probability 0.3.

    This is what the published configuration says. Its keys for label smoothing, stochastic depth and erasing are unknown to
    the published code, which drops them: with ``compat=official`` only TrivialAugment is added, as in the published runs.
    The level's label smoothing (0.1) and stochastic depth (0.1) are the recipe's ``smoothing`` and ``drop_path``.

    Args:
        size: side of the square input in pixels.
        resize: side of the image that is cropped from; floor(size / 0.875) when null.
        compat: ``official`` for what the published code really did.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``; published for moe and dafb: ``half``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        resize: int | None = None,
        compat: str | None = None,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        self.compat = compat
        erase = 0.0 if official(compat) else 0.3
        super().__init__(size=size, resize=resize, trivial=True, erase=erase, stats=stats, mean=mean, std=std)


@TRANSFORMS.register("strong")
class Strong(Weak):
    """CLCA's strong level: random resized crop, mirror, RandAugment, erasing with probability 0.3.

    This is what the published configuration says, with torchvision's defaults. None of its keys is known to the published
    code: ``compat=official`` is the weak level. The level's label smoothing, stochastic depth (0.1), Mixup and CutMix are the
    recipe's ``smoothing``, ``drop_path``, ``mixup`` and ``cutmix``.

    Args:
        size: side of the square input in pixels.
        resize: side of the image that evaluation crops from; floor(size / 0.875) when null.
        compat: ``official`` for what the published code really did.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        resize: int | None = None,
        compat: str | None = None,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        self.compat = compat
        self.strong = not official(compat)
        super().__init__(size=size, resize=resize, erase=0.3 if self.strong else 0.0, stats=stats, mean=mean, std=std)
