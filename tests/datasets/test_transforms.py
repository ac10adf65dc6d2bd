"""Transforms against the papers' tables: what comes out of every pipeline, in which order, and with which statistics."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1

from tests.datasets.pictures import picture, seed
from vitrim.core.registry import SpecError, setting_help, settings_of, spec
from vitrim.datasets.transforms import STATISTICS, TRANSFORMS, LimitAspect, ToTensor, Transform
from vitrim.datasets.transforms_ila import ila_resize

NAMES = [
    "deit", "ila", "ila_medium", "ila_strong", "ila_vtab", "ila_weak", "medium", "multilabel", "nabirds", "plain", "small",
    "strong", "weak",
]  # fmt: skip
# Every step on, so that the laws below see all of them.
FULL = {
    "ila": "ila(size=32, crop=affine, hflip=true, vflip=true, jitter=1.0, grey_prob=0.5, blur=1.0, solarize=0.5, policy=svhn,"
    " rand=true, trivial=true, erase_times=2)",
    "small": "small(size=32, transpose=true)",
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build(text: str) -> Transform:
    return TRANSFORMS.build(text)


def sized(name: str, size: int = 32) -> Transform:
    return build(FULL.get(name, f"{name}(size={size})"))


def plain_tensor(image: Image.Image, statistics=IMAGENET) -> Tensor:
    return v1.Compose([v1.ToTensor(), v1.Normalize(*statistics)])(image)


def test_the_registry() -> None:
    # A page of the documentation registers one of its own.
    assert [n for n in TRANSFORMS.names() if TRANSFORMS.get(n).__module__.startswith("vitrim")] == NAMES
    for name in NAMES:
        cls = TRANSFORMS.get(name)
        assert set(setting_help(cls)) == set(settings_of(cls)), name


@pytest.mark.parametrize("name", NAMES)
def test_specs_make_the_same_again(name: str) -> None:
    made = sized(name)
    again = build(spec(made))
    assert repr(made.train()) == repr(again.train())
    assert repr(made.eval()) == repr(again.eval())
    assert (made.size, made.mean, made.std) == (again.size, again.mean, again.std)


@pytest.mark.parametrize("name", NAMES)
def test_odd_images(name: str) -> None:
    made = sized(name)
    odd = [
        picture(mode="L"), picture(mode="RGBA"), picture(mode="P"), picture(mode="CMYK"), picture(mode="1"),
        picture(1, 1000), picture(1000, 1), picture(1, 1), picture(3, 2), picture(32, 32), picture(36, 36),
    ]  # fmt: skip
    for image in odd:
        before = image.copy()
        for transform in (made.train(), made.eval()):
            seed(0)
            found = transform(image)
            assert found.shape == (3, 32, 32)
            assert found.dtype == torch.float32
            assert found.is_contiguous()
            assert found.isfinite().all()
        assert image.mode == before.mode
        assert image.tobytes() == before.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_pickles_and_batches(name: str) -> None:
    made = sized(name)
    train, evaluate = made.train(), made.eval()
    copy = pickle.loads(pickle.dumps(train))
    images = [picture(seed=i) for i in range(3)]
    seed(7)
    expected = [train(i) for i in images]
    seed(7)
    torch.testing.assert_close([copy(i) for i in images], expected, rtol=0, atol=0)
    torch.testing.assert_close(evaluate(images[0]), pickle.loads(pickle.dumps(evaluate))(images[0]), rtol=0, atol=0)
    seed(8)
    changed = not all(torch.equal(train(i), e) for i, e in zip(images, expected, strict=True))
    assert changed == (name not in ("plain", "ila_vtab"))


@pytest.mark.parametrize("statistics", STATISTICS)
def test_the_tensor_is_that_of_torchvision(statistics: str) -> None:
    image = picture()
    torch.testing.assert_close(
        ToTensor(*STATISTICS[statistics])(image), plain_tensor(image, STATISTICS[statistics]), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("weak(size=224)", 256), ("weak(size=448)", 512), ("medium(size=448)", 512), ("weak(size=224, resize=240)", 240),
        ("strong(size=384)", 438), ("ila_weak(size=224)", 300), ("ila_weak(size=448)", 600), ("ila_medium(size=32)", 36),
        ("ila_strong(size=64)", 72), ("ila_vtab(size=224)", 300), ("ila(size=224, test_resize=256)", 256),
    ],
)  # fmt: skip
def test_resize_rules_of_evaluation(text: str, side: int) -> None:
    made = build(text)
    image = picture(90, 70)
    first = (side - made.size) / 2
    start = round(first)
    crop = image.resize((side, side), Image.Resampling.BICUBIC).crop((start, start, start + made.size, start + made.size))
    torch.testing.assert_close(made.eval()(image), plain_tensor(crop), rtol=0, atol=0)


def test_resize_rule_of_ila() -> None:
    assert [ila_resize(s) for s in (32, 64, 224, 384, 448)] == [36, 72, 300, 514, 600]


@pytest.mark.parametrize(
    "text", ["plain(size=20)", "multilabel(size=20)", "ila_vtab(size=20, direct_test=true)", "small(size=20)"]
)
def test_evaluation_without_a_crop(text: str) -> None:
    made, image = build(text), picture()
    squeezed = image.resize((20, 20), Image.Resampling.BICUBIC)
    torch.testing.assert_close(made.eval()(image), plain_tensor(squeezed, (made.mean, made.std)), rtol=0, atol=0)


@pytest.mark.parametrize("text", ["deit(size=28)", "nabirds(size=28)"])
def test_evaluation_keeps_the_aspect_for_timm(text: str) -> None:
    image = picture(80, 40)
    crop = image.resize((64, 32), Image.Resampling.BICUBIC).crop((18, 2, 46, 30))
    torch.testing.assert_close(build(text).eval()(image), plain_tensor(crop), rtol=0, atol=0)


def test_long_strips_are_cut_around_their_middle() -> None:
    strip = picture(1000, 10)
    assert LimitAspect()(strip).tobytes() == strip.crop((460, 0, 540, 10)).tobytes()
    assert LimitAspect()(picture(80, 10)).size == (80, 10)
    assert LimitAspect()(picture(10, 81)).size == (10, 80)


def crop_positions(text: str, draws: int) -> Counter[tuple[int, int, bool]]:
    """Where the crops of weak transforms come from, and whether they are mirrored; the image already has the resized size."""
    made = build(text)
    side = made.side
    rows, columns = np.mgrid[0:side, 0:side]
    image = Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8))
    train, found = made.train(), Counter()
    seed(0)
    for _ in range(draws):
        tensor = train(image)
        pixels = (tensor * torch.tensor(made.std).view(3, 1, 1) + torch.tensor(made.mean).view(3, 1, 1)) * 255
        mirrored = bool(pixels[1, 0, 0] > pixels[1, 0, -1])
        found[round(float(pixels[0, 0, 0])), round(float(pixels[1, 0].min())), mirrored] += 1
    return found


@pytest.mark.parametrize("text", ["weak(size=21)", "ila_weak(size=21, resize=24)"])
def test_crops_and_mirrors_are_uniform(text: str) -> None:
    """4 x 4 places, mirrored or not: 32 cells of 50, give or take five standard deviations."""
    found = crop_positions(text, 1600)
    assert len(found) == 32
    assert all(0 <= row <= 3 and 0 <= column <= 3 for row, column, _ in found)
    assert max(abs(n - 50) for n in found.values()) < 5 * np.sqrt(50)


def steps(text: str) -> list[str]:
    return [type(step).__name__ for step in build(text).train().steps]


def test_the_order_of_ila() -> None:
    assert steps(FULL["ila"]) == [
        "ToMode", "Resize", "RandomAffine", "RandomCrop", "RandomHorizontalFlip", "RandomVerticalFlip", "RandomApply",
        "RandomGrayscale", "RandomApply", "RandomApply", "AutoAugment", "RandAugment", "TrivialAugmentWide", "ToTensor",
        "RandomErasing", "RandomErasing",
    ]  # fmt: skip
    text = repr(build(FULL["ila"]).train())
    places = [text.index(word) for word in ("ColorJitter", "RandomGrayscale", "GaussianBlur", "RandomSolarize", "AutoAugment")]
    assert places == sorted(places)


def test_the_settings_of_ila_s_steps() -> None:
    made = build("ila(size=224, crop=affine, jitter=0.8, blur=0.3, solarize=0.2, erase_times=3, erase_area=0.2, erase_ratio=0.5)")
    by_name: dict[str, list] = {}
    for step in made.train().steps:
        by_name.setdefault(type(step).__name__, []).append(step)
    jitter, blur, solarize = by_name["RandomApply"]
    assert (jitter.p, blur.p, solarize.p) == (0.8, 0.3, 0.5)
    assert jitter.transforms[0].hue == (-0.1, 0.1)
    assert jitter.transforms[0].saturation == (0.6, 1.4)
    assert list(blur.transforms[0].kernel_size) == [23, 23]
    assert list(blur.transforms[0].sigma) == [0.1, 2.0]
    assert (solarize.transforms[0].p, solarize.transforms[0].threshold) == (0.2, 128)
    assert [(e.p, e.scale, e.ratio) for e in by_name["RandomErasing"]] == [(1.0, (0.005, 0.2), (0.5, 3.3))] * 3
    assert list(by_name["RandomAffine"][0].degrees) == [-15, 15]
    assert list(by_name["RandomAffine"][0].scale) == [0.85, 1.15]


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ("direct", ["Resize"]), ("random_resized", ["RandomResizedCrop"]), ("square_random", ["Resize", "RandomCrop"]),
        ("short_random", ["LimitAspect", "Resize", "RandomCrop"]), ("square_center", ["Resize", "CenterCrop"]),
    ],
)  # fmt: skip
def test_the_crops_of_ila(crop: str, expected: list[str]) -> None:
    assert steps(f"ila(crop={crop})") == ["ToMode", *expected, "ToTensor"]


def test_the_levels() -> None:
    square = ["ToMode", "Resize", "RandomCrop", "RandomHorizontalFlip"]
    area = ["ToMode", "RandomResizedCrop", "RandomHorizontalFlip"]
    trivial, erase = "TrivialAugmentWide", "RandomErasing"
    assert steps("weak") == [*square, "ToTensor"]
    assert steps("weak(trivial=true, erase=0.2, erase_times=2)") == [*square, trivial, "ToTensor", erase, erase]
    assert steps("medium") == [*square, trivial, "ToTensor", erase]
    assert steps("medium(compat=official)") == [*square, trivial, "ToTensor"]
    assert steps("strong") == [*area, "RandAugment", "ToTensor", erase]
    assert steps("strong(compat=official)") == steps("weak")
    assert steps("ila_weak") == [*square, "ToTensor"]
    assert steps("ila_medium") == [*square, trivial, "ToTensor", erase]
    assert steps("ila_strong") == [*area, "RandAugment", "ToTensor", erase]
    assert steps("ila_strong(compat=official)") == [*area, "ToTensor", erase]
    assert steps("ila_vtab") == ["ToMode", "Resize", "ToTensor"]
    for text in ("medium", "strong", "ila_medium", "ila_strong"):
        erasing = build(text).train().steps[-1]
        assert (erasing.p, erasing.scale, erasing.ratio, erasing.value) == (0.3, (0.02, 0.4), (0.3, 3.3), [0])


def test_the_recipe_of_timm() -> None:
    assert steps("deit") == [
        "ToMode", "RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment", "ToTensor", "RandomErasing",
    ]  # fmt: skip
    _, crop, _, augment, _, erase = build("deit(size=224)").train().steps
    assert (crop.scale, crop.ratio, crop.interpolation) == ((0.08, 1.0), (3 / 4, 4 / 3), v1.InterpolationMode.BICUBIC)
    assert augment.num_layers == 2
    assert len(augment.ops) == 15
    for op in augment.ops:
        assert (op.magnitude, op.magnitude_std) == (9, 0.5)
        assert op.hparams["translate_const"] == 100
        assert op.kwargs["fillcolor"] == (124, 116, 104)
    assert any(op.name == "SolarizeIncreasing" for op in augment.ops)
    assert (erase.probability, erase.min_area, erase.max_area, erase.mode) == (0.25, 0.02, 1 / 3, "pixel")
    birds = build("nabirds(size=224)").train().steps
    assert [type(s).__name__ for s in birds][3] == "ColorJitter"
    assert birds[3].brightness == birds[3].contrast == birds[3].saturation == (0.7, 1.3)
    assert birds[3].hue is None


def test_timm_s_own_transform_gives_the_same_image() -> None:
    from timm.data import create_transform

    theirs = create_transform(
        64, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25,
        re_mode="pixel", re_count=1,
    )  # fmt: skip
    ours = build("deit(size=64)").train()
    for number in range(12):
        image = picture(90, 80, seed=number)
        seed(number)
        expected = theirs(image)
        seed(number)
        torch.testing.assert_close(ours(image), expected, rtol=0, atol=0)


@pytest.mark.parametrize("policy", ["rand-m10-mstd0-inc1-p1", "rand-m0-mstd0-p1", "augmix-m10-w3", "original", "v0", "3a"])
def test_no_magnitude_of_timm_is_refused_by_pillow(policy: str) -> None:
    """Magnitude 10 of the published RandAugment keeps no bits: a black image, and an error from Pillow 13 on."""
    train = build(f"deit(size=16, policy='{policy}')").train()
    seed(0)
    for number in range(150):
        assert train(picture(16, 16, seed=number)).isfinite().all()
    strongest = build("deit(size=16, policy='rand-m10-mstd0-inc1-p1', erase=0)").train().steps[3]
    [step] = [op for op in strongest.ops if op.name.startswith("Posterize")]
    assert step(picture()).tobytes() == Image.new("RGB", (48, 40)).tobytes()
    gentle = build("deit(size=16, policy='rand-m5-mstd0-inc1-p1')").train().steps[3]
    [step] = [op for op in gentle.ops if op.name.startswith("Posterize")]
    assert (np.asarray(step(picture())) == np.asarray(picture()) & 0b11000000).all()


def test_multilabel_covers_but_does_not_crop() -> None:
    assert steps("multilabel") == ["ToMode", "Resize", "Cutout", "RandAugment", "ToTensor"]
    assert steps("multilabel(cutout=0, policy=none)") == ["ToMode", "Resize", "ToTensor"]


def test_small_in_grey() -> None:
    made = build("small(size=16, grey=true, mean=0.286, std=0.353)")
    image = picture(16, 16)
    found = made.eval()(image)
    expected = (np.asarray(image.convert("L"), dtype=np.float32) / 255 - 0.286) / 0.353
    np.testing.assert_allclose(found.numpy()[0], expected, rtol=1e-5, atol=1e-6)
    assert found.shape == made.train()(image).shape == (1, 16, 16)


def test_statistics() -> None:
    assert (build("weak").mean, build("weak").std) == IMAGENET
    assert build("weak(stats=half)").mean == (0.5, 0.5, 0.5)
    assert build("weak(mean=[0.1, 0.2, 0.3], std=0.2)").std == (0.2, 0.2, 0.2)
    assert build("ila_weak(stats=cub)").std == (0.07625843, 0.04599726, 0.06182727)
    grey = build("plain(size=8, grey=true)")
    assert grey.mean == pytest.approx([0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406])
    assert len(grey.std) == 1


@pytest.mark.parametrize("name", ["plain", "weak", "medium", "multilabel", "ila_weak", "ila_vtab"])
def test_an_image_of_the_right_size_is_not_resampled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sized(name)
    side = getattr(made, "test_side", getattr(made, "side", made.size))
    image = picture(side, side)
    monkeypatch.setattr(Image.Image, "resize", None)
    assert made.eval()(image).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("week(size=224)", "did you mean 'weak'"),
        ("weak(side=224)", "it has: size, resize"),
        ("weak(size=0)", "whole number above 0"),
        ("weak(size=2.5)", "whole number above 0"),
        ("weak(size=224, resize=100)", "smaller than the crop size=224"),
        ("weak(erase=2)", "erase is a probability"),
        ("weak(stats=imagnet)", "known: imagenet, half"),
        ("weak(mean=[0.5, 0.5])", "one for each of three channels"),
        ("weak(std=0)", "std must be above 0"),
        ("medium(compat=paper)", "compat is official or none"),
        ("deit(policy=trivial)", "rand-m9-mstd0.5-inc1"),
        ("deit(policy='rand-q9')", "rand-m9-mstd0.5-inc1"),
        ("multilabel(policy=weak)", "rand-m9-mstd0.5-inc1"),
        ("deit(erase_mode=white)", "pixel, rand or const"),
        ("deit(crop_pct=0)", "crop_pct is above 0"),
        ("multilabel(cutout=3)", "cutout is a share"),
        ("ila(crop=middle)", "crop is one of affine, direct"),
        ("ila(jitter=-1)", "jitter is a probability"),
        ("ila(policy=coco)", "known: imagenet, cifar10, svhn"),
        ("ila(size=64, resize=32)", "smaller than the crop"),
        ("small(size=8, shift=8)", "0 to size - 1"),
        ("small(border=zero)", "reflect or edge"),
    ],
)
def test_refusals_name_the_remedy(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words.replace("(", r"\(")):
        build(text)
