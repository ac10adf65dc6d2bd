"""Similarity of features against definitions written another way, against closed forms, and by what each measure must not see."""

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from scipy.spatial.distance import pdist

from vitrim.analysis import similarity, spectrum
from vitrim.analysis.hsic import BatchCKA, gram
from vitrim.analysis.rsa import Sample
from vitrim.analysis.similarity import MEASURES, Features, Similarity, cca, cka, compare, procrustes, pwcca, rsa, svcca

CCA = ("svcca", "pwcca", "pwcca_ba", "mean_cca", "mean_sq_cca")


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def related(n=80, p=7, q=5, seed=0):
    """Two matrices that share some directions, with features of unequal size and large means."""
    common = normal(seed, n, 4) * [3, 2, 1, 0.5]
    a = common @ normal(seed + 1, 4, p) + normal(seed + 2, n, p) + 5
    b = common @ normal(seed + 3, 4, q) + 0.5 * normal(seed + 4, n, q) - 2
    return a, b


def rotation(seed, width):
    return np.linalg.qr(normal(seed, width, width))[0]


def centred(x):
    return x - x.mean(axis=0)


# Definitions written another way: Gram matrices, generalised eigenvalues, square roots of matrices, SciPy's distances.


def cka_of_grams(a, b):
    n = len(a)
    h = np.eye(n) - 1 / n
    k, m = h @ a @ a.T @ h, h @ b @ b.T @ h
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def cca_of_covariances(a, b):
    """``Sab Sbb^-1 Sba u = rho^2 Saa u`` with its eigenvectors, of norm one in Saa."""
    a, b = centred(a), centred(b)
    cross = a.T @ b
    squares, u = linalg.eigh(cross @ np.linalg.solve(b.T @ b, cross.T), a.T @ a)
    k = min(a.shape[1], b.shape[1])
    return np.sqrt(squares[::-1][:k].clip(0)), u[:, ::-1][:, :k]


def pwcca_of_covariances(a, b):
    found, u = cca_of_covariances(a, b)
    weight = [sum(abs(np.dot(centred(a) @ u[:, i], column)) for column in centred(a).T) for i in range(len(found))]
    return np.average(found, weights=weight)


def procrustes_of_roots(a, b):
    cross = centred(a).T @ centred(b)
    small = cross.T @ cross if cross.shape[0] > cross.shape[1] else cross @ cross.T
    return np.trace(linalg.sqrtm(small)).real / np.linalg.norm(centred(a)) / np.linalg.norm(centred(b))


def principal(a, keep):
    values, directions = np.linalg.eigh(np.cov(a.T))
    share = np.cumsum(values[::-1]) / values.sum()
    return centred(a) @ directions[:, ::-1][:, : int(np.sum(share < keep)) + 1]


def rsa_of_distances(a, b):
    return stats.spearmanr(pdist(a, "correlation"), pdist(b, "correlation")).statistic


@pytest.mark.parametrize(("p", "q"), [(7, 5), (5, 7), (6, 6), (1, 4)])
def test_measures_are_their_definitions(p, q):
    a, b = related(p=p, q=q)
    assert cka(a, b) == pytest.approx(cka_of_grams(a, b), abs=1e-10)
    assert cca(a, b) == pytest.approx(cca_of_covariances(a, b)[0], abs=1e-7)
    assert pwcca(a, b) == pytest.approx(pwcca_of_covariances(a, b), abs=1e-7)
    assert procrustes(a, b) == pytest.approx(procrustes_of_roots(a, b), abs=1e-7)
    if p > 1:
        assert rsa(a, b) == pytest.approx(rsa_of_distances(a, b), abs=1e-10)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_svcca_is_cca_of_principal_components(keep):
    a, b = related()
    x, y = principal(a, keep), principal(b, keep)
    assert svcca(a, b, keep=keep) == pytest.approx(cca_of_covariances(x, y)[0].mean(), abs=1e-7)
    assert svcca(a, b, keep=1) == pytest.approx(cca(a, b).mean(), abs=1e-12)


@pytest.mark.parametrize("width", [6, 60])
def test_unbiased_cka_is_that_of_one_batch(width):
    a, b = related(n=20, p=width, q=width + 3)
    batch = BatchCKA(2)
    batch.add([gram(torch.from_numpy(x)) for x in (a, b)])
    assert cka(a, b, unbiased=True) == pytest.approx(float(batch.cka()[0, 1]), abs=1e-10)
    assert cka(Features(a), b, unbiased=True) == pytest.approx(cka(a, b, unbiased=True), abs=1e-12)


def test_unbiased_cka_does_not_rise_with_features():
    a, b = normal(1, 30, 3000), normal(2, 30, 3000)
    assert cka(a, b) > 0.95
    assert abs(cka(a, b, unbiased=True)) < 0.3


def test_closed_forms():
    e = np.eye(8)[:, :4] - 1 / 8
    x, y = linalg.orth(e)[:, :2], linalg.orth(e)[:, 2:]
    found = compare(x, y)
    assert [found[m] for m in MEASURES if m != "rsa"] == pytest.approx([0] * 7, abs=1e-12)
    # One direction in common: cos of 60 degrees between the other two.
    z = np.stack([x[:, 0], 0.5 * x[:, 1] + np.sqrt(0.75) * y[:, 0]], axis=1)
    found = compare(x, z)
    assert cca(x, z) == pytest.approx([1, 0.5])
    wanted = {"mean_cca": 0.75, "mean_sq_cca": 0.625, "svcca": 0.75, "procrustes": 0.75, "cka": 1.25 / 2}
    assert {k: found[k] for k in wanted} == pytest.approx(wanted)
    # Two directions of sizes 2 and 1 in each, nothing turned: all is explained, in whatever coordinates.
    assert compare(x * [2, 1], x)["cka"] == pytest.approx((4 + 1) / np.sqrt(17 * 2))
    assert procrustes(x * [2, 1], x) == pytest.approx(3 / np.sqrt(5 * 2))


def test_known_answers_of_the_specification():
    a, b = (np.random.RandomState(s).standard_normal((w, 40)) for s, w in ((1, 6), (2, 4)))
    b[:3] += a[:3]
    a, b = a.T, b.T
    assert cca(a, b) == pytest.approx([0.71467284, 0.70347612, 0.64315127, 0.40939413], abs=1e-8)
    assert 1 - pwcca(a, b, compat="official") == pytest.approx(0.558174468579, abs=1e-11)
    assert 1 - pwcca(b, a, compat="official") == pytest.approx(0.371693247332, abs=1e-11)
    found = compare(a, b, compat="official")
    assert found["pwcca_ba"] == found["pwcca"] == pwcca(a, b, compat="official")
    assert 1 - found["cka"] == pytest.approx(0.682884259078, abs=1e-11)
    assert 2 * (1 - found["procrustes"]) == pytest.approx(1.001590654244, abs=1e-11)
    assert (found["mean_sq_cca"], found["mean_cca"]) == pytest.approx((0.396720755367, 0.617673588523), abs=1e-11)


@pytest.mark.parametrize("n", [12, 80])
def test_what_each_measure_does_not_see(n):
    a, b = related(n=n, p=9, q=6)
    wanted = compare(a, b)
    for turned in (3 * a @ rotation(5, 9), -0.01 * a @ rotation(6, 9)):
        found = compare(turned + normal(7, 9), b)
        kept = [m for m in MEASURES if m not in ("rsa", "pwcca")]
        assert {m: found[m] for m in kept} == pytest.approx({m: wanted[m] for m in kept}, abs=1e-9)
    # An invertible map that stretches directions a hundredfold: CCA alone does not see it.
    bent = compare(a @ rotation(8, 9) @ np.diag(np.geomspace(0.1, 10, 9)) @ rotation(9, 9), b)
    assert cca(a @ np.diag(np.geomspace(0.1, 10, 9)), b) == pytest.approx(cca(a, b), abs=1e-9)
    assert bent["mean_cca"] == pytest.approx(wanted["mean_cca"], abs=1e-9)
    assert abs(bent["cka"] - wanted["cka"]) > 1e-3
    order = np.random.default_rng(0).permutation(n)
    assert compare(a[order], b[order]) == pytest.approx(wanted, abs=1e-9)
    # RSA by Pearson over the features: images may be scaled and shifted one by one, and ranks do not see a monotone map.
    assert rsa(a * (1 + normal(1, n, 1) ** 2) + normal(2, n, 1), b) == pytest.approx(wanted["rsa"], abs=1e-9)


def test_both_ways():
    a, b = related()
    there, back = compare(a, b), compare(b, a)
    assert (back.pop("pwcca_ba"), back.pop("pwcca")) == pytest.approx((there.pop("pwcca"), there.pop("pwcca_ba")), abs=1e-12)
    assert there == pytest.approx(back, abs=1e-12)
    assert tuple(compare(a, b)) == MEASURES
    assert compare(a, a) == pytest.approx(dict.fromkeys(MEASURES, 1.0), abs=1e-12)


@pytest.mark.parametrize("n", [9, 40, 700])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_are_the_whole(n, size, monkeypatch):
    """Small blocks, so that several are folded; 9 images are fewer than features."""
    monkeypatch.setattr(spectrum, "BLOCK", 32)
    a, b = related(n=n, p=11, q=8)
    a[:, 3] = 1e4 + 1e-3 * a[:, 3]
    sums = Similarity(images=25)
    for i in range(0, n, size):
        sums.add(a[i : i + size], torch.from_numpy(b[i : i + size]))
        if i == 0 and size > 2:
            sums.result()  # a look in between changes nothing
    whole = {
        "cka": cka_of_grams(a, b),
        "procrustes": procrustes(Features(a), Features(b)),
        "svcca": svcca(Features(a), Features(b)),
        "mean_cca": cca(Features(a), Features(b)).mean(),
        "pwcca": pwcca(Features(a), Features(b)),
        "pwcca_ba": pwcca(Features(b), Features(a)),
        "rsa": rsa(a, b, images=25),
    }
    found = sums.result()
    assert sums.images == n
    assert {m: found[m] for m in whole} == pytest.approx(whole, abs=1e-9)
    assert compare(a, b, images=25) == pytest.approx(found, abs=1e-9)
    prepared = Features(a, images=25), Features(b, images=25)
    assert compare(*prepared) == pytest.approx(found, abs=1e-9)


def test_small_directions_keep_their_digits():
    """Singular values over nine decades: from covariances, the small ones and their correlations would be noise."""
    a, b = related(n=3000, p=6, q=6)
    stretch = np.geomspace(1, 1e-9, 6)
    assert cca(a @ rotation(1, 6) * stretch, b * stretch) == pytest.approx(cca(a, b), abs=1e-5)


def test_fewer_images_than_features():
    a, b = normal(1, 12, 40), normal(2, 12, 30)
    sums = Similarity()
    sums.add(a, b)
    assert cca(a, b) == pytest.approx(np.ones(11))
    assert sums.forced == 11
    found = sums.result()
    assert found["cka"] == pytest.approx(cka_of_grams(a, b), abs=1e-12)
    gap = linalg.svdvals(centred(a).T @ centred(b)).sum() / np.linalg.norm(centred(a)) / np.linalg.norm(centred(b))
    assert found["procrustes"] == pytest.approx(gap, abs=1e-12)
    few = Similarity()
    few.add(*related())
    assert few.forced == 0


def test_redundant_and_constant_features_change_nothing_in_cca():
    a, b = related()
    more = np.concatenate([a, a @ normal(3, 7, 4), np.full((80, 2), 0.1)], axis=1)
    assert len(cca(more, b)) == 5
    assert cca(more, b) == pytest.approx(cca(a, b), abs=1e-10)
    assert cka(np.c_[a, np.full(80, 0.1)], b) == pytest.approx(cka(a, b), abs=1e-12)
    # As published, the mean is over the features whatever their rank.
    narrow = np.c_[b[:, :2], b[:, 0] - b[:, 1]]
    paper, official = (compare(a, narrow, compat=c)["mean_cca"] for c in similarity.COMPATS)
    assert official == pytest.approx(paper * 2 / 3, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_the_features_is_no_direction(dtype):
    """Features that sum to zero, as a layer norm leaves them: one direction less, in any precision."""
    x = torch.nn.functional.layer_norm(torch.from_numpy(related(n=60, p=8)[0] - 5), (8,))
    y = torch.from_numpy(related(n=60)[1])
    assert len(cca(x.to(dtype), torch.cat([x, x], dim=1))) == 7
    assert compare(x.to(dtype), y) == pytest.approx(compare(x, y), abs=0.03)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e8])
def test_features_that_tell_nothing_apart(value):
    a, b = np.full((50, 4), value), related(n=50)[1]
    for x, y in ((a, b), (b, a), (a, a), (a.astype(np.float32), b)):
        assert compare(x, y) == dict.fromkeys(MEASURES, 0.0)
        assert cka(x, y, unbiased=True) == 0
        assert len(cca(x, y)) == 0


def test_very_large_and_very_small_features():
    a, b = related()
    assert compare(a * 1e200, b * 1e-200) == pytest.approx(compare(a, b), abs=1e-12)


def test_rsa_of_a_sample():
    a, b = related(n=300)
    chosen = rsa(a, b, images=100, seed=1)
    assert chosen == rsa(a, b, images=100, seed=1) != rsa(a, b, images=100, seed=2)
    assert chosen == pytest.approx(rsa_of_distances(a, b), abs=0.1)
    sample, rows = Sample(100, 1), np.arange(300.0)[:, None]
    sample.add(rows[:250])
    sample.add(rows[250:])
    index = sample.rows[0][:, 0].astype(int)
    assert len(set(index)) == 100
    assert rsa_of_distances(a[index], b[index]) == pytest.approx(chosen, abs=1e-10)
    # An image of equal features correlates with none; ties share their rank.
    flat = a[:20].copy()
    flat[3] = 0.1
    with np.errstate(invalid="ignore", divide="ignore"):
        distances = np.nan_to_num(pdist(flat, "correlation"), nan=1.0)
    wanted = stats.spearmanr(distances.round(12), pdist(b[:20], "correlation")).statistic
    assert rsa(flat, b[:20]) == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(value):
    a, b = related()
    bad = b.copy()
    bad[17, 2] = value
    message = "features of b are not finite at image 17"
    for measure in (cka, cca, svcca, pwcca, procrustes, compare):
        with pytest.raises(ValueError, match=message):
            measure(a, bad)
    with pytest.raises(ValueError, match="not finite"):
        rsa(a, bad)
    sums = Similarity()
    sums.add(a[:10], b[:10])
    with pytest.raises(ValueError, match=message):
        sums.add(a[10:], bad[10:])
    # The batch does not count; the sums go on.
    sums.add(a[10:], b[10:])
    assert sums.result() == pytest.approx(compare(a, b), abs=1e-12)


def test_errors_name_the_remedy():
    a, b = related()
    for call, message in (
        (lambda: cka(a, b[:-1]), "same images in the same order; got 80 and 79"),
        (lambda: cka(Features(a), b[:-1]), "got 80 and 79"),
        (lambda: cka(a[0], b[0]), r"matrix of numbers \(images, features\)"),
        (lambda: cka(a.astype(complex), b), "complex128"),
        (lambda: cka(a[:, :0], b), "at least one feature"),
        (lambda: cka(a[:1], b[:1]), "two images or more; got 1"),
        (lambda: cka(a[:3], b[:3], unbiased=True), "4 images or more; got 3"),
        (lambda: compare(a[:2], b[:2]), "three images or more; got 2"),
        (lambda: Similarity().result(), "two images or more; got 0"),
        (lambda: rsa(a, b, images=2), "three images or more; got images=2"),
        (lambda: rsa(Features(a, seed=1), Features(b)), "one choice of images"),
        (lambda: svcca(a, b, keep=0), r"share of the variance in \(0, 1\]; got 0"),
        (lambda: Similarity(keep=99), "got 99"),
        (lambda: pwcca(a, b, compat="oficial"), "one of paper, official; got 'oficial'"),
        (lambda: Similarity(compat="x"), "got 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    sums = Similarity()
    sums.add(a, b)
    with pytest.raises(ValueError, match="columns in the batches before"):
        sums.add(a[:, 1:], b)


def test_an_svd_that_does_not_converge_is_tried_again(monkeypatch):
    a, b = related()
    wanted, real, calls = compare(a, b), np.linalg.svd, []

    def fails_first(x, *args, **kwargs):
        calls.append(x.shape)
        if len(calls) % 2:
            raise np.linalg.LinAlgError("SVD did not converge")
        return real(x, *args, **kwargs)

    monkeypatch.setattr(np.linalg, "svd", fails_first)
    assert compare(a, b) == pytest.approx(wanted, abs=1e-10)
    assert len(calls) > 4
