"""AutoAugment, Cutout, shifts and symmetries: published tables, definitions by hand, and statistics of what is drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.datasets.pictures import picture, seed
from vitrim.datasets.augment import AutoAugment, Cutout, apply
from vitrim.datasets.transforms_small import ShiftAndFlip


def test_cutout_covers_one_rectangle_of_one_colour() -> None:
    image = Image.new("RGB", (30, 20), (1, 2, 3))
    areas, colours = [], set()
    seed(0)
    for _ in range(2000):
        array = np.asarray(Cutout(0.5)(image))
        covered = (array != (1, 2, 3)).any(-1)
        ys, xs = np.nonzero(covered)
        assert covered[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
        assert len({tuple(c) for c in array[covered]}) == 1
        colours.add(tuple(array[ys[0], xs[0]]))
        areas.append(covered.sum())
    assert max(areas) == 15 * 10
    # The sides are int(0.5 * 30 + 0.5) and int(0.5 * 20 + 0.5); the mean over all centres, clipped, side by side.
    expected = np.prod(
        [np.mean([min(c - s // 2 + s, n) - max(c - s // 2, 0) for c in range(n)]) for n, s in ((30, 15), (20, 10))]
    )
    assert np.mean(areas) == pytest.approx(expected, rel=0.02)
    assert len(colours) > 1900


# The table of the published code, as `operation magnitude@probability`, two by two.
SHORT = {
    "po": "Posterize", "ro": "Rotate", "so": "Solarize", "ac": "AutoContrast", "eq": "Equalize", "in": "Invert", "co": "Color",
    "cn": "Contrast", "sh": "Sharpness", "br": "Brightness", "sX": "ShearX", "sY": "ShearY", "tX": "TranslateX",
    "tY": "TranslateY",
}  # fmt: skip
TABLE = {
    "imagenet": """po8@.4+ro9@.6 so5@.6+ac5@.6 eq8@.8+eq3@.6 po7@.6+po6@.6 eq7@.4+so4@.2 eq4@.4+ro8@.8 so3@.6+eq7@.6
        po5@.8+eq2@1 ro3@.2+so8@.6 eq8@.6+po6@.4 ro8@.8+co0@.4 ro9@.4+eq2@.6 eq7@0+eq8@.8 in4@.6+eq8@1 co4@.6+cn8@1
        ro8@.8+co2@1 co8@.8+so7@.8 sh7@.4+in8@.6 sX5@.6+eq9@1 co0@.4+eq3@.6 eq7@.4+so4@.2 so5@.6+ac5@.6 in4@.6+eq8@1
        co4@.6+cn8@1 eq8@.8+eq3@.6""",
    "cifar10": """in7@.1+cn6@.2 ro2@.7+tX9@.3 sh1@.8+sh3@.9 sY8@.5+tY9@.7 ac8@.5+eq2@.9 sY7@.2+po7@.3 co3@.4+br7@.6
        sh9@.3+br9@.7 eq5@.6+eq1@.5 cn7@.6+sh5@.6 co7@.7+tX8@.5 eq7@.3+ac8@.4 tY3@.4+sh6@.2 br6@.9+co8@.2 so2@.5+in3@0
        eq0@.2+ac0@.6 eq8@.2+eq4@.6 co9@.9+eq6@.6 ac4@.8+so8@.2 br3@.1+co0@.7 so5@.4+ac3@.9 tY9@.9+tY9@.7 ac2@.9+so3@.8
        eq8@.8+in3@.1 tY9@.7+ac1@.9""",
    "svhn": """sX4@.9+in3@.2 sY8@.9+in5@.7 eq5@.6+so6@.6 in3@.9+eq3@.6 eq1@.6+ro3@.9 sX4@.9+ac3@.8 sY8@.9+in5@.4
        sY5@.9+so6@.2 in6@.9+ac1@.8 eq3@.6+ro3@.9 sX4@.9+so3@.3 sY8@.8+in4@.7 eq5@.9+tY6@.6 in4@.9+eq7@.6 cn3@.3+ro4@.8
        in5@.8+tY2@0 sY6@.7+so8@.4 in4@.6+ro4@.8 sY7@.3+tX3@.9 sX6@.1+in5@.6 so2@.7+tY7@.6 sY4@.8+in8@.8 sX9@.7+tY3@.8
        sY5@.8+ac3@.7 sX2@.7+in5@.1""",
}


@pytest.mark.parametrize("policy", TABLE)
def test_autoaugment_has_the_published_policies(policy: str) -> None:
    def entry(text: str) -> tuple[str, float, int | None]:
        operation, chance = text.split("@")
        name = SHORT[operation[:-1]]
        return name, float(chance), None if name in ("AutoContrast", "Equalize", "Invert") else int(operation[-1])

    published = [tuple(entry(half) for half in pair.split("+")) for pair in TABLE[policy].split()]
    assert len(published) == 25
    assert Counter(map(tuple, AutoAugment(policy).pairs)) == Counter(published)


def test_autoaugment_draws_pairs_uniformly_and_operations_by_their_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    done: Counter[str] = Counter()
    monkeypatch.setattr("vitrim.datasets.augment.apply", lambda image, name, step: done.update([name]) or image)
    augment, image = AutoAugment("imagenet"), picture(8, 8)
    expected: Counter[str] = Counter()
    for pair in augment.pairs:
        for name, chance, _ in pair:
            expected[name] += chance / 25
    seed(0)
    for _ in range(5000):
        augment(image)
    for name, mean in expected.items():
        assert done[name] / 5000 == pytest.approx(mean, abs=0.035), name


def shear_by_hand(array: np.ndarray, shift: float) -> np.ndarray:
    """Nearest translation along x: output pixel j shows input pixel j + shift, or grey 128."""
    out = np.full_like(array, 128)
    for j in range(array.shape[1]):
        source = int(np.floor(j + 0.5 + shift))
        if 0 <= source < array.shape[1]:
            out[:, j] = array[:, source]
    return out


def test_operations_of_autoaugment() -> None:
    image = picture(30, 30)
    array = np.asarray(image)

    def of(name: str, step: int, sign: int | None = None) -> np.ndarray:
        return np.asarray(apply(image, name, step, sign))

    for sign in (-1, 1):
        np.testing.assert_array_equal(of("TranslateX", 9, sign), shear_by_hand(array, sign * 30 * 150 / 331))
        np.testing.assert_array_equal(
            of("TranslateY", 6, sign).swapaxes(0, 1), shear_by_hand(array.swapaxes(0, 1), sign * 20 * 150 / 331)
        )
        for name, enhancer in (("Color", ImageEnhance.Color), ("Brightness", ImageEnhance.Brightness)):
            np.testing.assert_array_equal(of(name, 5, sign), np.asarray(enhancer(image).enhance(1 + sign * 0.5)))
    np.testing.assert_array_equal(of("Solarize", 0), array)
    np.testing.assert_array_equal(of("Solarize", 9), 255 - array)
    np.testing.assert_array_equal(of("Solarize", 3), np.where(array < 256 * 2 / 3, array, 255 - array))
    bits = [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    for step, kept in enumerate(bits):
        np.testing.assert_array_equal(of("Posterize", step), array & (256 - 2 ** (8 - kept)))
    np.testing.assert_array_equal(of("Invert", 4), 255 - array)
    np.testing.assert_array_equal(of("Equalize", 4), np.asarray(ImageOps.equalize(image)))
    # Composited over grey, as the published code rotates.
    turned = image.convert("RGBA").rotate(20)
    composed = Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")
    np.testing.assert_array_equal(of("Rotate", 6), np.asarray(composed))


def test_directions_of_autoaugment_s_operations() -> None:
    """Rotation turns one way only; shears, translations and factors go both ways."""
    image = picture(24, 24)
    seed(0)
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Sharpness", "Brightness"):
        drawn = {apply(image, name, 7).tobytes() for _ in range(30)}
        assert drawn == {apply(image, name, 7, sign).tobytes() for sign in (-1, 1)}
        assert len(drawn) == 2, name
    assert len({apply(image, "Rotate", 7).tobytes() for _ in range(30)}) == 1
    # A row k below the top moves by 0.3 k: the lower rows of the sheared image run out to the grey fill.
    sheared = np.asarray(apply(Image.new("RGB", (20, 20)), "ShearX", 9, 1))
    assert [int((row[:, 0] == 128).sum()) for row in sheared[[0, 10, 19]]] == pytest.approx([0, 3, 6], abs=1)


def test_small_shifts_uniformly() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    move = ShiftAndFlip(8, 2, flip=False, transpose=False, border="edge")
    padded = np.pad(np.asarray(image), 2, mode="edge")
    windows = {padded[i : i + 8, j : j + 8].tobytes(): (i, j) for i in range(5) for j in range(5)}
    seed(0)
    found = Counter(windows[move(image).tobytes()] for _ in range(2500))
    assert len(found) == 25
    assert max(abs(n - 100) for n in found.values()) < 50


def test_small_reflects_at_the_border() -> None:
    image = picture(8, 8)
    padded = np.pad(np.asarray(image), ((3, 3), (3, 3), (0, 0)), mode="reflect")
    windows = {padded[i : i + 8, j : j + 8].tobytes() for i in range(7) for j in range(7)}
    move = ShiftAndFlip(8, 3, flip=False, transpose=False, border="reflect")
    seed(1)
    assert {move(image).tobytes() for _ in range(1000)} == windows


@pytest.mark.parametrize(("flip", "transpose", "count"), [(False, False, 1), (True, False, 2), (True, True, 8), (False, True, 4)])
def test_small_symmetries_are_equally_likely(flip: bool, transpose: bool, count: int) -> None:
    image = picture(6, 6)
    array = np.asarray(image)
    symmetries = {np.rot90(a, k).tobytes() for a in (array, array[:, ::-1]) for k in range(4)}
    move = ShiftAndFlip(6, 0, flip=flip, transpose=transpose, border="reflect")
    seed(0)
    found = Counter(move(image).tobytes() for _ in range(400 * count))
    assert set(found) <= symmetries
    assert len(found) == count
    assert max(abs(n - 400) for n in found.values()) < 100
