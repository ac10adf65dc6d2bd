"""The official implementations on a DeiT-Ti whose weights and images follow a written rule, at rates the vectors leave out.

Every parameter is drawn from a generator seeded with the CRC of its official name, so that the numbers below can be
recomputed anywhere. They were recorded by running the official modules; gradients are L2 norms of mean cross-entropy.
"""

# ruff: noqa: E501 - rows of a table
from __future__ import annotations

import csv
import io
import zlib

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import vitrim

OFFICIAL = {
    "dynamicvit": "score_predictor",
    "dpcknn": "cluster_layers",
    "sinkhorn": "cluster_layers",
    "patchmerger": "cluster_layers",
}
OFFICIAL["sit"] = "cluster_layers"

# ATS at 0.7 with exact distances, as in float64: the float32 numbers of the official code carry the noise of its cdist.
# method; schedule rate; logits 0-3 of image 0; of image 1; mean and standard deviation of all logits
LOGITS = """\
topk;0.7;0.149810 -0.704688 -1.199281 1.857102;-0.169779 -0.224942 -0.609361 1.647904;-0.027388/0.986486
topk;0.5;0.124324 -0.640958 -1.161315 1.830232;0.030948 -0.050378 -0.393066 1.427303;-0.026550/0.983305
topk;0.25;-0.062768 -0.833470 -0.821540 2.057934;0.002636 0.242497 -0.241870 1.258803;-0.027665/0.984400
evit;0.7;0.164482 -0.718750 -1.204029 1.849974;-0.159636 -0.239824 -0.604144 1.652867;-0.027222/0.986560
evit;0.5;0.122290 -0.687967 -1.177369 1.852458;0.047210 -0.061159 -0.403694 1.447639;-0.026438/0.983500
evit;0.25;0.010462 -0.867331 -0.907000 2.005089;0.026856 0.186945 -0.251537 1.311206;-0.027822/0.982186
dynamicvit;0.7;0.195790 -0.928516 -1.294346 1.998845;0.024470 -0.313950 -0.714886 1.734781;-0.030880/0.984411
dynamicvit;0.5;0.099001 -1.012933 -1.293307 2.159632;-0.021060 -0.473823 -0.770177 1.568699;-0.029737/0.986879
dynamicvit;0.25;0.512217 -1.037764 -1.303131 2.290730;-0.166294 -0.646710 -0.726385 1.695662;-0.025533/0.985755
ats;0.7;0.094982 -0.769898 -1.207196 1.855336;-0.049830 -0.222804 -0.620916 1.526595;
ats;0.5;0.197625 -0.777325 -1.231813 1.892805;-0.218371 -0.088622 -0.755407 1.758259;-0.028836/0.976312
ats;0.25;0.058024 -0.720402 -1.045374 1.850448;0.301533 -0.247353 -0.830477 1.000836;-0.030723/0.981472
tome;0.7;0.104353 -0.848983 -1.402717 2.031213;-0.075373 -0.374280 -0.877844 1.750280;-0.023956/0.989887
tome;0.5;0.100839 -0.931737 -1.470648 2.131356;-0.014241 -0.393565 -0.922194 1.809293;-0.021125/0.994632
tome;0.25;0.099577 -0.916938 -1.447773 2.126091;-0.010130 -0.392811 -0.910204 1.789837;-0.022125/0.994080
dpcknn;0.7;0.019938 -0.915755 -1.390201 1.987443;-0.141696 -0.363839 -0.709556 1.623368;-0.028750/0.989057
dpcknn;0.5;0.075557 -0.951082 -1.426130 1.975134;-0.133576 -0.325119 -0.788157 1.696226;-0.024353/0.991529
dpcknn;0.25;0.031000 -0.977253 -1.365500 1.970934;0.136631 -0.117699 -0.818318 1.769713;-0.019768/0.989505
kmedoids;0.7;0.119856 -0.821924 -1.156144 1.772121;-0.115598 -0.215554 -0.899119 1.524963;-0.032897/0.983433
kmedoids;0.5;0.258570 -0.913806 -1.161120 1.726522;-0.183780 -0.342122 -0.875391 1.541993;-0.030463/0.981570
kmedoids;0.25;0.397439 -1.185965 -1.046652 1.789262;-0.268259 -0.056504 -0.662402 1.543393;-0.027499/0.981215
sinkhorn;0.7;0.676882 -1.096075 -0.463829 1.355263;0.601820 -0.956085 -0.311692 1.584781;-0.031973/0.959437
sinkhorn;0.5;0.710538 -1.039170 -0.543468 1.351943;0.654121 -0.864206 -0.375593 1.589536;-0.029868/0.959111
sinkhorn;0.25;0.818659 -0.925093 -0.785366 1.381751;0.810673 -0.553846 -0.568106 1.667560;-0.020534/0.962007
patchmerger;0.7;0.402771 -1.084499 -1.346821 1.478553;0.178918 -0.716852 -1.110420 1.669592;-0.003823/0.989918
patchmerger;0.5;0.447984 -1.116092 -1.209473 1.521827;0.243410 -0.791245 -1.147292 1.677737;-0.003976/0.986765
patchmerger;0.25;0.551684 -0.910492 -1.099945 1.608196;0.479660 -0.922233 -1.033021 1.770396;-0.003781/0.986423
sit;0.7;0.655155 -0.626236 -1.334815 2.016623;0.616880 0.062038 -0.994074 1.815035;-0.014520/1.001150
sit;0.5;0.654998 -0.625422 -1.328045 2.019993;0.615853 0.063046 -0.986636 1.817490;-0.014456/1.000948
sit;0.25;0.685405 -0.672315 -1.255616 2.024491;0.638650 0.018835 -0.926186 1.810664;-0.015207/0.999200
fixed(pattern=l1);0.9;0.043292 -0.814057 -1.316592 1.893533;-0.076852 -0.417942 -0.787253 1.630865;-0.034602/0.983668
fixed(pattern=l2);0.9;0.089895 -0.773122 -1.352646 1.917232;-0.083459 -0.387179 -0.711011 1.591478;-0.033233/0.982596
fixed(pattern=linf);0.9;0.056608 -0.917598 -1.305737 1.940420;0.026473 -0.495120 -0.724276 1.599028;-0.035857/0.982002
fixed(pattern=l2, contiguous=False);0.7;0.116859 -0.862942 -1.345418 2.013320;-0.040970 -0.363222 -0.855740 1.591374;-0.028687/0.986055
dpcknn(equal_weight=True);0.5;0.014232 -0.868255 -1.552393 2.064835;-0.083310 -0.248804 -0.838848 1.802792;-0.023296/0.992014
"""

# method; rate; loss; norms of cls_token, pos_embed, patch_embed.proj.weight, blocks.3.attn.qkv.weight, head.weight; learned
GRADIENTS = """\
topk;0.7;8.015347;0.585565 0.610350 4.892583 3.747767 9.746751;
evit;0.7;8.020202;0.588129 0.612879 4.899611 3.751806 9.747102;
ats;0.25;8.125287;0.585541 0.626252 6.218351 3.555022 9.771496;
tome;0.7;8.228984;0.558801 0.582213 4.672382 3.917903 9.750739;
dpcknn;0.7;8.171618;0.575085 0.600138 4.909504 3.974696 9.737284;score.weight 0.342807
kmedoids;0.7;8.211556;0.593515 0.618037 4.931402 3.730191 9.735921;
sinkhorn(compat=official);0.7;8.047204;0.395409 0.418259 3.866883 8.038198 9.681825;v 0.000115
patchmerger;0.7;8.493879;0.490385 0.610966 10.196421 5.301550 9.782911;queries 0.328989 norm.weight 0.602850 norm.bias 0.919667
sit;0.7;8.202661;0.438556 0.469396 4.696291 6.620044 9.844090;scale 0.006450 weight.1.weight 0.100335 weight.3.weight 0.064448
fixed(pattern=l2);0.7;8.092875;0.595563 0.625894 5.493296 3.747504 9.730865;
"""


def rows(table: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(table), delimiter=";") if row]


def filled(name: str, shape: torch.Size) -> Tensor:
    """The value of a parameter by its official name."""
    g = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name in ("cls_token", "pos_embed"):
        g = 0.5 * g
    elif name.endswith(".scale"):
        g = 1 + 0.1 * g
    elif name.endswith((".queries", ".v")):
        pass
    elif g.ndim >= 2:
        g = g / np.sqrt(np.prod(g.shape[1:]))
    elif name.endswith("weight"):
        g = 1 + 0.1 * g
    else:
        g = 0.1 * g
    return torch.from_numpy(g.astype(np.float32))


def reduced_deit(method: str, rate: str) -> nn.Module:
    torch.set_num_threads(1)
    model = timm.create_model("deit_tiny_patch16_224")
    vitrim.reduce(model, method, f"keep(rate={rate}, at=[3, 6, 9])")
    prefix = OFFICIAL.get(method.split("(")[0], "")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(filled(name.replace("reduction.stages", prefix), parameter.shape))
    return model


def pictures() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32))


def test_the_rule_gives_the_recorded_parameters() -> None:
    assert zlib.crc32(b"head.bias") == 976205810
    np.testing.assert_allclose(filled("head.bias", torch.Size([1000]))[:3], [0.0268708, -0.0343229, -0.0717884], atol=1e-7)
    np.testing.assert_allclose(filled("norm.weight", torch.Size([192]))[:3], [1.0067959, 1.1642958, 1.0924609], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*cannot remove so many tokens")  # ToMe at 0.25, as published
@pytest.mark.parametrize("row", rows(LOGITS), ids=lambda r: f"{r[0]}-{r[1]}")
def test_logits(row: list[str]) -> None:
    method, rate, first, second, moments = row
    model = reduced_deit(method, rate).eval()
    with torch.no_grad():
        logits = model(pictures()).numpy()
    wanted = [[float(v) for v in text.split()] for text in (first, second)]
    np.testing.assert_allclose(logits[:, :4], wanted, atol=2e-5)
    if moments:
        mean, std = (float(v) for v in moments.split("/"))
        np.testing.assert_allclose([logits.mean(), logits.std(ddof=1)], [mean, std], atol=2e-6)


@pytest.mark.parametrize("row", rows(GRADIENTS), ids=lambda r: r[0])
def test_gradients(row: list[str]) -> None:
    method, rate, loss_wanted, norms, learned = row
    model = reduced_deit(method, rate).train()
    loss = nn.functional.cross_entropy(model(pictures()), torch.tensor([1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(float(loss_wanted), abs=2e-5)
    parameters = dict(model.named_parameters())
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.3.attn.qkv.weight", "head.weight"]
    wanted = dict(zip(names, map(float, norms.split()), strict=True))
    pairs = learned.split()
    wanted |= {f"reduction.stages.0.{n}": float(v) for n, v in zip(pairs[::2], pairs[1::2], strict=True)}
    for name, norm in wanted.items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        assert gradient.double().norm().item() == pytest.approx(norm, rel=2e-4, abs=2e-6), name


def decide(log_probability: Tensor) -> Tensor:
    """Straight-through decisions without Gumbel noise: the more likely channel, with the gradient of its probability."""
    soft = log_probability.softmax(dim=-1)
    hard = nn.functional.one_hot(soft.argmax(dim=-1), 2).to(soft.dtype)
    return (hard - soft.detach() + soft)[..., 0]


def test_dynamicvit_training() -> None:
    """Masked training with straight-through decisions: logits, every term of the published loss, and gradients."""
    teacher = timm.create_model("deit_tiny_patch16_224").eval()
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            parameter.copy_(filled(name, parameter.shape))
        goal = teacher.forward_features(pictures())
        goal_logits = teacher.forward_head(goal)
    model = reduced_deit("dynamicvit", "0.7").train()
    for stage in model.reduction.stages:
        stage.sample = decide
        with torch.no_grad():
            stage.out_conv[4].bias.copy_(torch.tensor([0.3, -0.3]))
    features = model.forward_features(pictures())
    logits = model.forward_head(features)
    np.testing.assert_allclose(
        logits[:, :4].detach(),
        [[0.073918, -0.768007, -1.305790, 1.916934], [-0.108108, -0.311856, -0.789259, 1.677766]],
        atol=2e-5,
    )
    decisions = [step.policy[:, 1:] for step in model.reduction.trace.values()]
    assert [d.sum(dim=1).tolist() for d in decisions] == [[192, 194]] * 3
    np.testing.assert_allclose(features[0, 1, :3].detach(), [-0.632991, 0.157087, -0.203474], atol=2e-5)
    cross = nn.functional.cross_entropy(logits, torch.tensor([1, 2]))
    ratio = sum(((d.mean(dim=1) - 0.7 ** (i + 1)) ** 2).mean() for i, d in enumerate(decisions)) / 3
    target = goal_logits.log_softmax(dim=-1)
    divergence = nn.functional.kl_div(logits.log_softmax(dim=-1), target, log_target=True, reduction="batchmean")
    kept = decisions[-1].detach() > 0.5
    tokens = nn.functional.mse_loss(features[:, 1:][kept], goal[:, 1:][kept])
    assert cross.item() == pytest.approx(8.132993, abs=2e-5)
    assert ratio.item() == pytest.approx(0.245874, abs=2e-6)
    assert divergence.item() == pytest.approx(6.18e-5, abs=1e-6)
    assert tokens.item() == pytest.approx(1.0128e-4, abs=1e-6)
    (cross + 2 * ratio + 0.5 * divergence + 0.5 * tokens).backward()
    parameters = dict(model.named_parameters())
    wanted = {
        "cls_token": 0.590420, "pos_embed": 0.613755, "patch_embed.proj.weight": 4.744281, "head.weight": 9.728196,
        "reduction.stages.0.out_conv.4.weight": 0.709181, "reduction.stages.2.in_conv.1.weight": 0.491995,
    }  # fmt: skip
    for name, norm in wanted.items():
        assert parameters[name].grad.double().norm().item() == pytest.approx(norm, rel=3e-4), name
