import math

import pytest
import torch

from vitrim.analysis.hsic import BatchCKA, gram, hsic, summarise


def wave(shape, amplitude, phase):
    """The filling rule of the known answers: amplitude times sin(1.7 j + phase)."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(1.7 * index + phase)).view(shape)


@pytest.fixture(scope="module")
def layers():
    shapes = [((6, 2, 17, 17), 1, 0.1), ((6, 2, 17, 17), 2, 0.9), ((6, 2, 10, 10), 3, 0.4), ((6, 2, 8, 8), 1.5, 2.2)]
    return [wave(*args).softmax(-1) for args in shapes]


def test_known_answers(layers):
    grams = [gram(x) for x in layers]
    found = hsic(torch.stack(grams))
    wanted = [0.3492077148, 0.7834432566, -0.6557764698, 0.6004562252]
    assert torch.allclose(found[0], torch.tensor(wanted, dtype=torch.float64), atol=1e-9)
    assert found[1, 1] == pytest.approx(1.7787394844, abs=1e-9)
    sums = BatchCKA(4)
    sums.add(grams)
    sums.add(grams)
    cka = sums.cka()
    upper = torch.tensor([0.99405281, -0.59063407, 0.93003258, -0.58893916, 0.93353952, -0.57391585], dtype=torch.float64)
    assert torch.allclose(cka[torch.triu_indices(4, 4, 1).unbind()], upper, atol=1e-8)
    assert torch.allclose(cka.diagonal(), torch.ones(4, dtype=torch.float64))
    summary = summarise(cka)
    row = (summary.change[0], summary.change_std[0], summary.bend[0], summary.bend_std[0], summary.mean[0], summary.overall)
    assert row == pytest.approx((1.0371, 0.893578, 0.82138, 1.071068, 0.444484, 0.184023), abs=1e-4)


def test_known_answer_of_features():
    sums = BatchCKA(2)
    sums.add([gram(wave((4, 17, 6), 1, p)) for p in (0.3, 1.3)])
    assert float(sums.cka()[0, 1]) == pytest.approx(0.99996709, abs=1e-8)


def test_it_is_a_ratio_of_averages():
    torch.manual_seed(0)
    batches = [[gram(torch.randn(5, 12)), gram(torch.randn(5, 9))] for _ in range(3)]
    sums = BatchCKA(2)
    for grams in batches:
        sums.add(grams)
    mean = torch.stack([hsic(torch.stack(grams)) for grams in batches]).mean(dim=0)
    if mean[0, 0] > 0 and mean[1, 1] > 0:
        assert torch.allclose(sums.cka()[0, 1], mean[0, 1] / (mean[0, 0] * mean[1, 1]).sqrt())
    assert torch.allclose(sums.hsic(), mean)


def test_half_precision_does_not_overflow():
    torch.manual_seed(0)
    x = torch.randn(6, 50, 400) * 30 + 40
    half, whole = gram(x.half()), gram(x)
    assert half.dtype == torch.float64
    assert half.isfinite().all()
    assert torch.allclose(half, whole, rtol=2e-3)


def test_small_batches_are_left_out_and_counted():
    sums = BatchCKA(1)
    sums.add([gram(torch.randn(3, 4))])
    assert (sums.images, sums.left_out) == (0, 3)
    with pytest.raises(ValueError, match="larger batch"):
        sums.cka()
    with pytest.raises(ValueError, match="4 images or more; got 3"):
        hsic(torch.zeros(1, 3, 3))


def test_a_layer_that_tells_nothing_apart_is_no_nan():
    torch.manual_seed(0)
    sums = BatchCKA(2)
    sums.add([gram(torch.ones(5, 7)), gram(torch.randn(5, 7))])
    # Orthogonal images: the unbiased estimate of HSIC with itself is negative or zero, never a root of it.
    sums.total[0, 0] = -0.5
    cka = sums.cka()
    assert cka.isfinite().all()
    assert sums.flat()[0] == 0
    assert (cka[0] == 0).all()
