"""The transforms of ILA: every optional step in its order, and the levels weak, medium, strong and VTAB."""

from __future__ import annotations

from vitrim.datasets.augment import AutoAugment
from vitrim.datasets.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TRANSFORMS,
    LimitAspect,
    Numbers,
    Step,
    Transform,
    check_resize,
    official,
    square,
)

CROPS = ("affine", "direct", "random_resized", "square_random", "short_random", "square_center")

_ERASE = 0.3


@TRANSFORMS.register("ila")
class Ila(Transform):
    """The training transform of ILA with every step as a setting, in the published order.

    Crop, mirrors, colour jitter, greyscale, blur, solarize, AutoAugment, RandAugment, TrivialAugment, normalise, erase.
    Evaluation: resize to (R, R) bicubic and centre crop. R is 36 for 32 pixels, 72 for 64, else int(1.34 size): 300 for 224,
    600 for 448; published for the set ncfm: ``resize`` = size + 32.

    Args:
        size: side of the square input in pixels.
        resize: R of training; by the rule when null.
        test_resize: R of evaluation; that of training when null.
        direct_test: evaluation resizes to the input's size without a crop; published for CIFAR, SVHN and Tiny ImageNet.
        crop: ``square_random`` (resize to (R, R), random crop), ``affine`` (resize, turn by up to 15 degrees and scale by 0.85
            to 1.15, random crop), ``direct`` (resize to the input's size), ``random_resized`` (8 to 100 % of the area),
            ``short_random`` (shorter side to R, random crop) or ``square_center`` (resize, centre crop).
        hflip: mirror left and right with probability 0.5.
        vflip: mirror up and down with probability 0.5.
        jitter: probability of colour jitter (brightness, contrast, saturation 0.4, hue 0.1).
        grey_prob: probability of losing the colours.
        blur: probability of a Gaussian blur, sigma 0.1 to 2, kernel 2 floor(size / 20) + 1.
        solarize: probability of inverting bright pixels, in a half of the images.
        policy: AutoAugment, ``imagenet``, ``cifar10`` or ``svhn``; the published code takes ``imagenet`` unless size is 32.
        rand: RandAugment, two operations of magnitude 9.
        trivial: TrivialAugmentWide.
        erase: probability of erasing one rectangle of 2 to 40 % of the area, set to the mean.
        erase_times: when above 0, in place of ``erase``: this many rectangles in every image, from 0.5 % of the area.
        erase_area: largest share of the area of those.
        erase_ratio: smallest aspect ratio of those; the largest is 3.3.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``; published for moe and dafb: ``half``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        resize: int | None = None,
        test_resize: int | None = None,
        direct_test: bool = False,
        crop: str = "square_random",
        hflip: bool = False,
        vflip: bool = False,
        jitter: float = 0.0,
        grey_prob: float = 0.0,
        blur: float = 0.0,
        solarize: float = 0.0,
        policy: str | None = None,
        rand: bool = False,
        trivial: bool = False,
        erase: float = 0.0,
        erase_times: int = 0,
        erase_area: float = 0.4,
        erase_ratio: float = 0.3,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(size=size, stats=stats, mean=mean, std=std)
        if crop not in CROPS:
            raise ValueError(f"crop is one of {', '.join(CROPS)}; got '{crop}'")
        chances = {"jitter": jitter, "grey_prob": grey_prob, "blur": blur, "solarize": solarize, "erase": erase}
        for name, chance in chances.items():
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} is a probability, 0 to 1; got {chance}")
        self.resize, self.test_resize, self.direct_test = resize, test_resize, direct_test
        self.side = check_resize(size, ila_resize(size) if resize is None else resize)
        self.test_side = check_resize(size, self.side if test_resize is None else test_resize)
        self.crop, self.hflip, self.vflip = crop, hflip, vflip
        self.jitter, self.grey_prob, self.blur, self.solarize = jitter, grey_prob, blur, solarize
        self.policy, self.rand, self.trivial = policy, rand, trivial
        self.erase, self.erase_times, self.erase_area, self.erase_ratio = erase, erase_times, erase_area, erase_ratio
        self._auto = [] if policy is None else [AutoAugment(policy)]

    def train_steps(self) -> list[Step]:
        return [*self._crop(), *self._mirrors(), *self._photometric(), *self._policies(), self.to_tensor(), *self._erasing()]

    def eval_steps(self) -> list[Step]:
        from torchvision.transforms import v2

        if self.direct_test:
            return [square(self.size), self.to_tensor()]
        return [square(self.test_side), v2.CenterCrop(self.size), self.to_tensor()]

    def _crop(self) -> list[Step]:
        from torchvision.transforms import v2

        bicubic = v2.InterpolationMode.BICUBIC
        if self.crop == "direct":
            return [square(self.size)]
        if self.crop == "random_resized":
            return [v2.RandomResizedCrop(self.size, interpolation=bicubic)]
        if self.crop == "square_center":
            return [square(self.side), v2.CenterCrop(self.size)]
        cut = v2.RandomCrop(self.size)
        if self.crop == "square_random":
            return [square(self.side), cut]
        if self.crop == "affine":
            turn = v2.RandomAffine(degrees=[-15.0, 15.0], scale=(0.85, 1.15), interpolation=bicubic)
            return [square(self.side), turn, cut]
        return [LimitAspect(), v2.Resize(self.side, interpolation=bicubic), cut]

    def _mirrors(self) -> list[Step]:
        from torchvision.transforms import v2

        mirrors: list[Step] = [v2.RandomHorizontalFlip()] if self.hflip else []
        return [*mirrors, v2.RandomVerticalFlip()] if self.vflip else mirrors

    def _photometric(self) -> list[Step]:
        from torchvision.transforms import v2

        steps: list[Step] = []
        if self.jitter > 0:
            steps.append(v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=self.jitter))
        if self.grey_prob > 0:
            steps.append(v2.RandomGrayscale(self.grey_prob))
        if self.blur > 0:
            steps.append(v2.RandomApply([v2.GaussianBlur(2 * (self.size // 20) + 1, (0.1, 2.0))], p=self.blur))
        if self.solarize > 0:
            steps.append(v2.RandomApply([v2.RandomSolarize(128, self.solarize)], p=0.5))
        return steps

    def _policies(self) -> list[Step]:
        from torchvision.transforms import v2

        steps: list[Step] = [*self._auto]
        if self.rand:
            steps.append(v2.RandAugment())
        if self.trivial:
            steps.append(v2.TrivialAugmentWide())
        return steps

    def _erasing(self) -> list[Step]:
        from torchvision.transforms import v2

        if self.erase_times > 0:
            area, ratio = (0.005, self.erase_area), (self.erase_ratio, 3.3)
            return [v2.RandomErasing(1.0, area, ratio) for _ in range(self.erase_times)]
        return [v2.RandomErasing(self.erase, (0.02, 0.4), (0.3, 3.3))] if self.erase > 0 else []


@TRANSFORMS.register("ila_weak")
class IlaWeak(Ila):
    """ILA's weak level: resize to (R, R), random crop, mirror.

    Args:
        size: side of the square input in pixels.
        resize: R of training; int(1.34 size) when null.
        test_resize: R of evaluation; that of training when null.
        direct_test: evaluation resizes to the input's size without a crop.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``; published for moe and dafb: ``half``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        resize: int | None = None,
        test_resize: int | None = None,
        direct_test: bool = False,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(
            size=size, resize=resize, test_resize=test_resize, direct_test=direct_test, hflip=True,
            stats=stats, mean=mean, std=std,
        )  # fmt: skip


@TRANSFORMS.register("ila_medium")
class IlaMedium(Ila):
    """ILA's medium level: weak, then TrivialAugment and erasing with probability 0.3.

    The level's label smoothing (0.1) and stochastic depth (0.1) are the recipe's ``smoothing`` and ``drop_path``.

    Args:
        size: side of the square input in pixels.
        resize: R of training; int(1.34 size) when null.
        test_resize: R of evaluation; that of training when null.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``; published for moe and dafb: ``half``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        resize: int | None = None,
        test_resize: int | None = None,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(
            size=size, resize=resize, test_resize=test_resize, hflip=True, trivial=True, erase=_ERASE,
            stats=stats, mean=mean, std=std,
        )  # fmt: skip


@TRANSFORMS.register("ila_strong")
class IlaStrong(Ila):
    """ILA's strong level: random resized crop, mirror, RandAugment, erasing with probability 0.3.

    The published configuration names RandAugment by a key that its code does not know: ``compat=official`` is without it.
    The level's label smoothing and stochastic depth (0.1), CutMix and Mixup (alpha 1, probability 0.5) are the recipe's
    ``smoothing``, ``drop_path``, ``cutmix``, ``mixup`` and ``mix_prob``.

    Args:
        size: side of the square input in pixels.
        test_resize: R of evaluation; int(1.34 size) when null.
        compat: ``official`` for what the published code really did.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        test_resize: int | None = None,
        compat: str | None = None,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        self.compat = compat
        super().__init__(
            size=size, test_resize=test_resize, crop="random_resized", hflip=True, rand=not official(compat), erase=_ERASE,
            stats=stats, mean=mean, std=std,
        )  # fmt: skip


@TRANSFORMS.register("ila_vtab")
class IlaVtab(Ila):
    """ILA on VTAB-1k: training resizes to the input's size, without a crop or a mirror.

    Evaluation resizes to R and takes the centre, as published; ``direct_test`` treats it like training.

    Args:
        size: side of the square input in pixels.
        test_resize: R of evaluation; int(1.34 size) when null.
        direct_test: evaluation resizes to the input's size too.
        stats: name of an entry of ``STATISTICS``, in place of ``mean`` and ``std``.
        mean: by channel, or one number for all of them.
        std: by channel, or one number for all of them.
    """

    def __init__(
        self,
        *,
        size: int = 224,
        test_resize: int | None = None,
        direct_test: bool = False,
        stats: str | None = None,
        mean: Numbers = IMAGENET_MEAN,
        std: Numbers = IMAGENET_STD,
    ) -> None:
        super().__init__(
            size=size, test_resize=test_resize, direct_test=direct_test, crop="direct", stats=stats, mean=mean, std=std
        )


def ila_resize(size: int) -> int:
    """ILA's rule for the side of the image that is cropped from."""
    return {32: 36, 64: 72}.get(size, int(1.34 * size))
