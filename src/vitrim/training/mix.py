"""Mixup and CutMix with soft targets, repeatable at every step: timm's, and the variant of ILA.

Both find an image's partner in the batch of the same process, as the published code does. Runs with mixing are repeatable with
any number of processes, but not equal between numbers of processes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.mixup import Mixup, one_hot
from torch import Tensor

from vitrim.training.seeds import seed_of

_KINDS = ("timm", "ila")
_MODES = ("batch", "pair", "elem")


class Mix:
    """timm's Mixup and CutMix (Zhang et al., ICLR 2018; Yun et al., ICCV 2019), a function of the step.

    In mode ``batch`` one mixing coefficient is drawn for a batch, CutMix with chance ``switch`` when both are on, and image i is
    mixed with image B - 1 - i. The coefficient of CutMix is corrected to the area of the box after clipping.

    Args:
        classes: number of classes.
        mixup: alpha of Mixup's Beta distribution; 0 is off.
        cutmix: alpha of CutMix's; 0 is off.
        prob: share of batches that are mixed.
        switch: share of mixed batches that take CutMix when both are on.
        smoothing: label smoothing, of unmixed batches too.
        mode: coefficients by ``batch``, by ``pair`` or for each image (``elem``).
        seed: of the run.

    Raises:
        ValueError: when both are off, or a value is out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        prob: float = 1.0,
        switch: float = 0.5,
        smoothing: float = 0.1,
        mode: str = "batch",
        seed: int = 0,
    ) -> None:
        _check(mixup, cutmix, prob=prob, switch=switch, smoothing=smoothing)
        if mode not in _MODES:
            raise ValueError(f"mode of mixing is one of {', '.join(_MODES)}; got '{mode}'")
        self.seed = seed
        self.mixer = Mixup(mixup, cutmix, None, prob, switch, mode, label_smoothing=smoothing, num_classes=classes)

    def __call__(self, images: Tensor, targets: Tensor, *, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Mix a batch; ``images`` is changed in place.

        Args:
            images: ``(B, C, H, W)`` floating point, B even.
            targets: ``(B,)`` class indices.
            step: of the run; forward passes of one step that mix separately need different numbers.
            rank: of the process.

        Returns:
            The images and ``(B, classes)`` float32 targets whose rows sum to one.

        Raises:
            ValueError: for multi-label targets or an odd batch.
        """
        _check_targets(targets)
        if len(images) % 2:
            raise ValueError(f"mixup and cutmix mix pairs, and this batch has {len(images)} images; set an even batch_size")
        # timm draws from NumPy's global generator, which nothing else should notice.
        with _numpy_seed(seed_of(self.seed, "mix", step, rank)):
            return self.mixer(images, targets)


class IlaMix:
    """The mixing of ILA: in a share of the batches, every image with one that a random permutation gives.

    CutMix's box has sides int(size * sqrt(1 - lambda)) around a uniform centre, clipped, and lambda becomes its complement's
    share of the area. The published loss, lambda L(y) + (1 - lambda) L(y'), is the cross-entropy with these soft targets, with
    label smoothing too.

    Args:
        classes: number of classes.
        mixup: alpha of Mixup's Beta distribution; 0 is off.
        cutmix: alpha of CutMix's; 0 is off.
        prob: share of batches that are mixed.
        switch: share of mixed batches that take CutMix when both are on.
        smoothing: label smoothing, of unmixed batches too.
        seed: of the run.

    Raises:
        ValueError: when both are off, or a value is out of its range.
    """

    def __init__(
        self,
        classes: int,
        *,
        mixup: float = 1.0,
        cutmix: float = 1.0,
        prob: float = 0.5,
        switch: float = 0.5,
        smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        _check(mixup, cutmix, prob=prob, switch=switch, smoothing=smoothing)
        self.classes = classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.prob = prob
        self.switch = switch
        self.smoothing = smoothing
        self.seed = seed

    def __call__(self, images: Tensor, targets: Tensor, *, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Mix a batch of any size; arguments and result as for :class:`Mix`, but ``images`` is left as it is."""
        _check_targets(targets)
        soft = soft_targets(targets, self.classes, self.smoothing)
        rng = np.random.default_rng(seed_of(self.seed, "mix", step, rank))
        if rng.random() >= self.prob:
            return images, soft
        cut = self.mixup == 0 or (self.cutmix > 0 and rng.random() < self.switch)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))
        partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
        if cut:
            top, bottom, left, right = box(images.shape[-2], images.shape[-1], share, rng)
            images = images.clone()
            images[..., top:bottom, left:right] = images[partner][..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            images = torch.lerp(images[partner], images, share)
        return images, torch.lerp(soft[partner], soft, share)


def build_mix(
    classes: int,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    prob: float = 1.0,
    switch: float = 0.5,
    smoothing: float = 0.0,
    kind: str = "timm",
    multilabel: bool = False,
    seed: int = 0,
) -> Mix | IlaMix | None:
    """The mixing of a recipe, or None when both alphas are 0.

    Raises:
        ValueError: for a multi-label data set, an unknown kind, or a value out of its range.
    """
    if mixup == 0 and cutmix == 0:
        return None
    if multilabel:
        raise ValueError("mixup and cutmix mix single labels, and this data set is multi-label; set mixup: 0 and cutmix: 0")
    if kind not in _KINDS:
        raise ValueError(f"kind of mixing is one of {', '.join(_KINDS)}; got '{kind}'")
    cls = Mix if kind == "timm" else IlaMix
    return cls(classes, mixup=mixup, cutmix=cutmix, prob=prob, switch=switch, smoothing=smoothing, seed=seed)


def soft_targets(targets: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """One-hot rows ``(B, classes)`` float32 with smoothing s: s / classes everywhere, 1 - s more at the label."""
    off = smoothing / classes
    return one_hot(targets, classes, on_value=1 - smoothing + off, off_value=off)


def box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """CutMix's box for a share of the area that stays: ``(top, bottom, left, right)`` in pixels, clipped to the image."""
    side = float(np.sqrt(1 - share))
    ends: list[int] = []
    for length in (height, width):
        extent = int(length * side)
        first = int(rng.integers(length)) - extent // 2
        ends += [max(first, 0), min(first + extent, length)]
    return ends[0], ends[1], ends[2], ends[3]


@contextmanager
def _numpy_seed(number: int) -> Generator[None]:
    state = np.random.get_state()
    np.random.seed(number)
    try:
        yield
    finally:
        np.random.set_state(state)


def _check(mixup: float, cutmix: float, **shares: float) -> None:
    if mixup < 0 or cutmix < 0 or mixup + cutmix == 0:
        raise ValueError(f"one of mixup and cutmix is above 0, none below; got mixup={mixup}, cutmix={cutmix}")
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} of mixing is a share, 0 to 1; got {value}")


def _check_targets(targets: Tensor) -> None:
    if targets.ndim != 1 or targets.is_floating_point():
        raise ValueError(
            f"mixup and cutmix take class indices (B,), got {targets.dtype} {tuple(targets.shape)}; multi-label data sets need "
            "mixup: 0 and cutmix: 0"
        )
