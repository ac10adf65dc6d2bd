"""The transforms of "Which tokens to use?" and ATC, from timm: deit, nabirds, multilabel."""

from __future__ import annotations

import math

from PIL import Image, ImageOps

from vitrim.datasets.augment import Cutout
from vitrim.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, TRANSFORMS, LimitAspect, Numbers, Step, Transform, square

RANDAUGMENT = "rand-m9-mstd0.5-inc1"


@TRANSFORMS.register("deit")
class Deit(Transform):
    """timm's ImageNet recipe as DeiT sets it: random resized crop, mirror, RandAugment, erasing by noise.

    Evaluation: shorter side to floor(size / crop_pct), bicubic, centre crop. Touvron et al., ICML 2021; the training of
    "Which tokens to use?" and ATC on ImageNet.

    Args:
        size: side of the square input in pixels.
        policy: of timm's augmentations; null for colour jitter in its place.
        jitter: of brightness, contrast and saturation, when there is no policy.
        erase: probability of erasing a rectangle of 2 to 33 % of the area.
        erase_mode: ``pixel`` (noise), ``rand`` (one colour) or ``const`` (the mean).
        crop_pct: side of the evaluated crop over the shorter side of the image.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        policy: str | None = RANDAUGMENT,
        jitter: float = 0.3,
        erase: float = 0.25,
        erase_mode: str = "pixel",
        crop_pct: float = 0.875,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(size=size, stats=stats, mean=mean, std=std)
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct is above 0 and at most 1; got {crop_pct}")
        if erase_mode not in ("pixel", "rand", "const"):
            raise ValueError(f"erase_mode is pixel, rand or const; got '{erase_mode}'")
        self.policy = policy
        self.jitter = jitter
        self.erase = erase
        self.erase_mode = erase_mode
        self.crop_pct = crop_pct
        self._stages = timm_stages(self, policy, jitter)

    def train_steps(self) -> list[Step]:
        from timm.data.random_erasing import RandomErasing

        crop, augment = self._stages
        steps = [*crop, *augment, self.to_tensor()]
        if self.erase > 0:
            steps.append(RandomErasing(self.erase, mode=self.erase_mode, max_count=1, device="cpu"))
        return steps

    def eval_steps(self) -> list[Step]:
        from torchvision.transforms import v2

        shorter = v2.Resize(math.floor(self.size / self.crop_pct), interpolation=v2.InterpolationMode.BICUBIC)
        return [LimitAspect(), shorter, v2.CenterCrop(self.size), self.to_tensor()]


@TRANSFORMS.register("nabirds")
class Nabirds(Deit):
    """The NABirds recipe of "Which tokens to use?" and ATC: deit with colour jitter in place of RandAugment.

    Args:
        size: side of the square input in pixels.
        jitter: of brightness, contrast and saturation.
        erase: probability of erasing a rectangle of 2 to 33 % of the area by noise.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        jitter: float = 0.3,
        erase: float = 0.25,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(size=size, policy=None, jitter=jitter, erase=erase, stats=stats, mean=mean, std=std)


@TRANSFORMS.register("multilabel")
class MultiLabel(Transform):
    """The COCO and NUS-WIDE recipe of "Which tokens to use?" and ATC: nothing is cropped, since every object counts.

    Train: resize to (size, size) bicubic, Cutout, RandAugment, normalise; no mirror, no erasing. Evaluation: the resize alone.
    RandAugment is taken to be the one of the ImageNet recipe.

    Args:
        size: side of the square input in pixels.
        cutout: side of the covered rectangle over the image's; 0 for none.
        policy: of timm's augmentations, or null.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        cutout: float = 0.5,
        policy: str | None = RANDAUGMENT,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(size=size, stats=stats, mean=mean, std=std)
        self.cutout = cutout
        self.policy = policy
        self._cover = [Cutout(cutout)] if cutout else []
        self._augment = timm_stages(self, policy, None)[1]

    def train_steps(self) -> list[Step]:
        return [square(self.size), *self._cover, *self._augment, self.to_tensor()]

    def eval_steps(self) -> list[Step]:
        return [square(self.size), self.to_tensor()]


def timm_stages(transform: Transform, policy: str | None, jitter: float | None) -> tuple[list[Step], list[Step]]:
    """The first two stages of timm's training transform: crop and mirror, augmentation.

    timm sets what the published runs had: translations up to int(0.45 size) pixels, the mean colour as fill.

    Raises:
        ValueError: for a policy that timm cannot read.
    """
    from timm.data.transforms_factory import transforms_imagenet_train

    try:
        stages = transforms_imagenet_train(
            img_size=transform.size,
            color_jitter=jitter,  # pyright: ignore[reportArgumentType] - None is no jitter
            auto_augment=policy,
            interpolation="bicubic",
            mean=transform.mean,
            std=transform.std,
            separate=True,
        )
    except (AssertionError, ValueError) as error:
        known = f"{RANDAUGMENT}, augmix-m3-w3, original, or none"
        raise ValueError(f"timm cannot read policy '{policy}'; write one of its, such as {known}") from error
    crop, augment = (list(stage.transforms) for stage in stages[:2])  # pyright: ignore - typed as one Compose
    for step in augment:
        for operation in [*getattr(step, "ops", ()), *(op for pair in getattr(step, "policy", ()) for op in pair)]:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = posterize
    return crop, augment


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the leading bits of every channel; the image is black without any, as the published runs had it.

    timm asks for no bits at its largest magnitude, which Pillow refuses from version 13 on.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
