"""The official modules of CLCA on models whose weights and images follow a written rule: logits, gradients, lengths, cost.

A parameter is a function of its official name alone, so that the numbers below can be recomputed anywhere. They were
recorded by running the official modules on models of timm (float32, CPU); gradients are those of mean cross-entropy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tests.parity.clca import HEADS, METHODS, cache_spec, head_spec, schedule_spec
from tests.parity.models import LEARNED
from vitrim.core.attach import reduce
from vitrim.measure.flops import count_flops, parameters
from vitrim.training.gradients import gradient_record, tracked

# method; model; changes to the configuration; lengths before tokens return; logits 0-3 of image 0; 0-1 of image 1; norm of all
LOGITS = """\
vit;tiny;base;37x12;-1.55270 +0.51646 +1.20623 -0.13899;-1.71010 +0.39930;4.27095
vit;tiny;clca;38 38 38 38 44 44 44 50 50 50 56 58;-0.11419 +0.69754 -0.44527 +0.54918;-0.28639 +0.73462;3.50719
topk;tiny;base;37x3 19x3 10x3 6x3;-1.47243 +0.50525 +1.13876 +0.06039;-1.86209 +0.53945;3.87697
topk;tiny;clca;38x3 20 26 26 14 20 20 11 17 19;-0.22997 +0.56683 -0.08044 +0.34676;-0.41715 +0.60400;3.38459
evit;tiny;base;37x3 20x3 12x3 8x3;-1.45064 +0.42905 +1.14300 +0.11737;-1.84734 +0.43595;3.97644
evit;tiny;clca;38x3 21 27 27 15 21 21 12 18 20;-0.20468 +0.69416 -0.08598 +0.42283;-0.46512 +0.73542;3.49635
dyvit;tiny;base;37x3 19x3 10x3 5x3;-1.33959 +0.73083 +1.53667 +0.20490;-0.94820 +0.52135;4.41965
dyvit;tiny;clca;38x3 19 25 25 12 18 18 9 15 17;-0.63335 +0.61717 -0.34688 +0.56615;-0.44619 +0.62994;3.63905
ats;tiny;base;37x3 20x3 10x3 5x3;-1.36760 +0.46427 +0.93549 +0.23056;-1.37586 +0.14846;3.85192
ats;tiny;clca;38x3 20 26 26 10 16 16 5 11 13;-0.37032 +0.67250 -0.32065 +0.59204;-0.38759 +0.67688;3.44811
tome;tiny;base;37x3 19x3 10x3 6x3;-1.77297 +0.03442 +1.08992 +0.00304;-1.94025 -0.26043;4.12346
tome;tiny;clca;38x3 20 26 26 17 23 23 18 24 26;-0.35573 +0.88584 -0.49354 +0.60675;-0.29048 +0.75125;3.97425
dpcknn;tiny;base;37x3 19x3 10x3 5x3;-1.54976 +0.35259 +0.94355 +0.14167;-1.87584 -0.44546;4.09923
dpcknn;tiny;clca;38x3 20 26 26 17 23 23 18 24 26;-0.49605 +0.88871 -0.26018 +0.54180;-0.44306 +0.89925;3.93130
sit;tiny;base;37x3 19x3 10x3 5x3;-2.78573 -0.67007 +1.01633 +0.11543;-2.45658 -0.07379;4.60480
sit;tiny;clca;38x3 19 25 25 10 16 16 5 11 13;+0.42044 +1.32968 -0.42237 +0.69238;-0.59808 +1.05664;4.70644
patchmerger;tiny;base;37x3 19x3 10x3 5x3;-1.47229 +0.01035 +1.21983 -0.23154;-2.02780 +0.04997;4.03320
patchmerger;tiny;clca;38x3 19 25 25 10 16 16 5 11 13;-0.28613 +1.01062 -0.38701 +0.67889;-0.28311 +0.69499;4.24682
evit;tiny;cla;37x3 20x3 12x3 8x3;-0.02668 +0.42453 +0.06876 +0.48470;-0.33609 +0.56704;3.45596
evit;tiny;clc;38x3 21 27 27 15 21 21 12 18 20;-1.62674 +0.45926 +0.90864 -0.03866;-1.53174 +0.67590;3.77243
evit;tiny;clca num_clr=2;39x3 21 30 30 17 26 26 15 24 27;-0.41707 +0.67635 +0.11056 +0.49762;-0.45714 +0.57579;3.54294
evit;tiny;clca num_clr=0;37x3 20 23 23 13 16 16 10 13 14;-0.08784 +0.38559 -0.01359 +0.42958;-0.34632 +0.52812;3.62890
evit;tiny;clca clc_include_gap=0;38x3 21 24 24 14 17 17 10 13 14;-0.07125 +0.68785 -0.01621 +0.37882;-0.47725 +0.82051;3.44845
evit;tiny;clca clc_pool_cls=1;38x3 21 27 27 15 21 21 12 18 20;-0.20974 +0.69337 -0.08266 +0.43291;-0.45942 +0.73876;3.50956
evit;tiny;clca clc_pool_clr=1;38x3 21 27 27 15 21 21 12 18 20;-0.20591 +0.69611 -0.08416 +0.42322;-0.47077 +0.73717;3.49407
evit;tiny;clca clc_recover_at_last=0;38x3 21 27 27 15 21 21 12 18 18;-0.19647 +0.67944 -0.09130 +0.41527;-0.45413 +0.71768;3.50075
evit;tiny;clca ifa_dws_conv_groups=0;38x3 21 27 27 15 21 21 12 18 20;-1.16700 -2.28571 -1.45231 -1.57786;-0.21427 -1.43979;4.26926
evit;tiny;clca ifa_dws_conv_groups=4;38x3 21 27 27 15 21 21 12 18 20;+0.22288 +0.54562 +0.70331 -0.53112;+0.23120 +0.13960;3.05744
evit;tiny;base num_clr=1;38x3 21x3 12x3 8x3;-1.39545 +0.43279 +1.06481 +0.18483;-1.43784 +0.56161;3.65694
evit;deit3;clca;38x3 21 27 27 15 21 21 12 18 20;-0.61903 +0.26733 +0.09170 +0.16605;-0.70715 +0.23164;1.72964
evit;clip;clca;38x3 21 27 27 15 21 21 12 18 20;+1.00759 -0.93263 -1.52402 +1.27758;+0.91753 -0.91965;4.48467
dpcknn;dinov2;clca;70x3 38 44 44 28 34 34 26 32 34;-0.13594 +0.33183 +0.12655 +0.48623;-0.62830 +0.15037;1.49932
evit;dinov2;clca;70x3 37 43 43 23 29 29 16 22 24;-0.13778 +0.31111 +0.26461 +0.49643;-0.50763 +0.11017;1.44164
"""

# method; configuration; loss; gradient record; norms of the gradients of cls_token, clr, pos_embed; tensors in the record
GRADIENTS = """\
vit;base;2.765064;.67360 .060438 .076696 .0058519 .0083293;.48513 - .51255;77
vit;clca;2.282025;.29904 .047560 .038667 .0054642 .0061925;.38933 .12162 .44972;81
topk;base;2.770921;.63599 .059440 .071947 .0060024 .0083234;.45850 - .49615;77
topk;clca;2.340149;.29202 .047552 .038564 .0056337 .0062198;.38765 .13896 .46235;81
evit;base;2.737278;.69374 .060133 .077954 .0059663 .0082359;.44671 - .48142;77
evit;clca;2.372502;.29307 .048565 .038902 .0057501 .0062511;.38944 .14296 .46480;81
ats;base;2.932009;.60085 .061073 .068925 .0062863 .0085420;.48301 - .52269;77
ats;clca;2.398607;.30265 .051025 .040238 .0057915 .0063315;.41718 .16467 .49848;81
tome;base;2.709822;.63749 .058753 .071921 .0058424 .0077848;.39555 - .42604;77
tome;clca;2.291639;.31622 .049258 .041249 .0055805 .0061120;.34900 .11035 .41306;81
dpcknn;base;2.693491;.58980 .062330 .067539 .0067967 .0090852;.40224 - .44384;80
dpcknn;clca;2.351351;.30039 .057385 .043271 .0067397 .0076268;.39410 .20472 .49569;84
sit;base;2.687392;.43089 .046454 .050151 .0049022 .0073074;.27477 - .31148;89
sit;clca;2.160571;.32549 .047933 .044653 .0052535 .0059787;.32050 .15553 .40620;93
patchmerger;base;2.501429;.71353 .058640 .077461 .0061420 .0075689;.35121 - .42275;83
patchmerger;clca;2.367143;.32632 .057622 .046255 .0067707 .0064734;.38911 .20590 .55093;87
"""

# DeiT-3 B/16, 448 px, 1938 classes. method; keep rate; configuration; lengths before tokens return; GMACs of torchprofile
COST = """\
vit;1;base;785x12;78.533
vit;1;clca;786x4 792x3 798x3 804 806;79.523
topk;.1;base;785x3 80x3 9x3 2x3;24.740
topk;.1;clca;786x3 80 86 86 10 16 16 3 9 11;25.118
topk;.7;base;785x3 550x3 386x3 271x3;50.091
topk;.7;clca;786x3 551 557 557 391 397 397 279 285 287;50.802
evit;.1;base;785x3 81x3 10x3 3x3;24.803
evit;.1;clca;786x3 81 87 87 11 17 17 4 10 12;25.181
evit;.25;clca;786x3 199 205 205 53 59 59 17 23 25;29.000
evit;.5;clca;786x3 395 401 401 202 208 208 106 112 114;38.779
evit;.7;base;785x3 551x3 387x3 273x3;50.183
evit;.7;clca;786x3 552 558 558 392 398 398 280 286 288;50.875
dyvit;.1;base;785x3 79x3 8x3 1x3;22.714
dyvit;.1;clca;786x3 79 85 85 9 15 15 2 8 10;23.073
dyvit;.7;base;785x3 549x3 385x3 269x3;49.592
dyvit;.7;clca;786x3 549 555 555 388 394 394 275 281 283;50.170
tome;.1;base;785x3 393x3 322x3 315x3;45.430
tome;.1;clca;786x3 394 400 400 329 335 335 328 334 336;46.282
tome;.7;base;785x3 549x3 385x3 269x3;50.017
tome;.7;clca;786x3 550 556 556 392 398 398 282 288 290;50.882
dpcknn;.1;base;785x3 79x3 8x3 2x3;21.903
dpcknn;.1;clca;786x3 80 86 86 15 21 21 15 21 23;22.656
dpcknn;.7;base;785x3 549x3 385x3 269x3;47.949
dpcknn;.7;clca;786x3 550 556 556 392 398 398 282 288 290;48.805
sit;.1;base;785x3 79x3 8x3 1x3;22.208
sit;.1;clca;786x3 79 85 85 8 14 14 1 7 9;22.514
sit;.7;base;785x3 549x3 385x3 269x3;49.309
sit;.7;clca;786x3 549 555 555 385 391 391 269 275 277;49.663
patchmerger;.1;base;785x3 79x3 8x3 1x3;21.975
patchmerger;.1;clca;786x3 79 85 85 8 14 14 1 7 9;22.278
patchmerger;.7;base;785x3 549x3 385x3 269x3;49.088
patchmerger;.7;clca;786x3 549 555 555 385 391 391 269 275 277;49.440
ats;.1;base;785x3 79x3 8x3 1x3;
ats;.1;clca;786x3 79 85 85 8 14 14 1 7 9;
"""

# The same model. method; keep rate; configuration; parameters in millions
PARAMETERS = """\
evit;.1;base;87.758
evit;.1;cla;90.026
evit;.1;clc;87.759
evit;.1;clca;90.027
dyvit;.1;base;90.643
dyvit;.1;clca;92.912
dpcknn;.1;base;87.761
dpcknn;.1;clca;90.029
sit;.1;base;88.681
sit;.1;clca;90.950
sit;.7;base;89.111
sit;.7;clca;91.380
patchmerger;.1;base;87.828
patchmerger;.1;clca;90.097
patchmerger;.7;base;88.684
patchmerger;.7;clca;90.953
"""

# At 224 px: EViT's keep rate (1: plain ViT); GMACs; with cache and head
COST_224 = """\
.1;5.639;5.966
.25;6.535;6.967
.5;8.825;9.324
.7;11.617;12.184
1;17.574;18.377
"""

UNUSED = 768 * 1000 + 1000  # the classifier of 1000 classes that officially stays beside the head
OFFICIAL = METHODS | {"ats": "ats(compat=official)"}
MODELS = {
    "tiny": ("vit_tiny_patch16_224", 96),
    "deit3": ("deit3_small_patch16_224", 96),
    "clip": ("vit_base_patch16_clip_224", 96),
    "dinov2": ("vit_small_patch14_reg4_dinov2", 112),
}
PLAIN = {
    "ifa_head": False, "ifa_dws_conv_groups": 2, "clc": False, "clc_include_gap": True, "clc_pool_cls": False,
    "clc_pool_clr": False, "clc_recover_at_last": True, "num_clr": 0, "reduction_loc": [3, 6, 9],
}  # fmt: skip
PARTS = {"base": {}, "cla": {"ifa_head": True}, "clc": {"clc": True, "num_clr": 1}}
PARTS["clca"] = PARTS["cla"] | PARTS["clc"]


def rows(table: str) -> Any:
    found = [line.split(";") for line in table.splitlines()]
    names = ["-".join(row[:2] if row[1] in ("base", "clca") else row[:3]) for row in found]
    ids = [re.sub(r"[ =]", "_", name) for name in names]
    heavy = {"clip"}  # 86 million parameters by the rule take three seconds
    marks = [pytest.mark.heavy if heavy & set(row) else () for row in found]
    return pytest.mark.parametrize("row", [pytest.param(r, id=i, marks=m) for r, i, m in zip(found, ids, marks, strict=True)])


def configuration(text: str, rate: float) -> dict[str, Any]:
    part, *changes = text.split()
    return PLAIN | PARTS[part] | {"keep_rate": [rate]} | {k: int(v) for k, v in (c.split("=") for c in changes)}


def lengths(text: str) -> list[int]:
    found: list[int] = []
    for run in text.split():
        length, _, times = run.partition("x")
        found += [int(length)] * int(times or 1)
    return found


def numbers(text: str) -> list[float]:
    return [float(v) for v in text.split()]


# -- the rule ------------------------------------------------------------------------------------------------------------


def uniform(name: str, n: int) -> np.ndarray:
    """``n`` numbers in [0, 1) that follow from the name."""
    start = sum((j + 1) * ord(c) for j, c in enumerate(name)) % 9973
    return np.modf(np.abs(np.sin(np.arange(1, n + 1) * 12.9898 + start * 0.7071) * 43758.5453))[0]


def filled(name: str, shape: torch.Size) -> Tensor:
    """The value of a parameter by its official name."""
    u = uniform(name, shape.numel()) - 0.5
    last = name.rpartition(".")[2]
    if last == "scale":
        u = np.ones_like(u)
    elif name.endswith("gamma"):
        u = 0.5 + 0.2 * u
    elif len(shape) == 1:
        u = 0.2 * u + name.endswith("weight")
    elif name not in ("cls_token", "clr", "pos_embed", "reg_token") and not name.endswith("queries"):
        u = 3 * u / math.sqrt(shape.numel() / shape[0])
    return torch.from_numpy(u.astype(np.float32)).reshape(shape)


def pictures(batch: int, size: int) -> Tensor:
    shape = (batch, 3, size, size)
    return torch.from_numpy((4 * (uniform("input", math.prod(shape)) - 0.5)).astype(np.float32)).reshape(shape)


def official_name(name: str, method: str, groups: int) -> str:
    """The official name of a parameter of a reduced model."""
    if name == "reduction.cache.clr":
        return "clr"
    if name.startswith("reduction.head."):
        module, _, leaf = name.removeprefix("reduction.head.").rpartition(".")
        place = next(place for place, ours in HEADS[groups > 0].items() if ours == module)
        return f"ifa_head.{place}.{leaf}"
    return name.replace("reduction.stages", LEARNED.get(method, ""))


def build(method: str, model_name: str, config: dict[str, Any]) -> nn.Module:
    name, size = MODELS[model_name]
    with torch.device("meta"):  # every value follows below
        model = timm.create_model(name, img_size=size, num_classes=10)
    model.to_empty(device="cpu")
    patches = (size // (14 if "patch14" in name else 16)) ** 2
    reduce(
        model,
        OFFICIAL.get(method, method),
        schedule_spec(method, config, patches),
        cache=cache_spec(config),
        head=head_spec(config),
    )
    suffix = "reduction.cache.pos"  # officially the end of pos_embed
    named = dict(model.named_parameters())
    with torch.no_grad():
        for ours, parameter in named.items():
            if ours == "pos_embed" and suffix in named:
                n = parameter.shape[1]
                whole = filled("pos_embed", torch.Size([1, n + named[suffix].shape[1], parameter.shape[2]]))
                parameter.copy_(whole[:, :n])
                named[suffix].copy_(whole[:, n:])
            elif ours != suffix:
                parameter.copy_(filled(official_name(ours, method, config["ifa_dws_conv_groups"]), parameter.shape))
    return model


# -- tests ---------------------------------------------------------------------------------------------------------------


def test_the_rule_gives_the_recorded_numbers() -> None:
    np.testing.assert_allclose(uniform("input", 4), [0.141047008, 0.738541530, 0.867401320, 0.058146915], atol=1e-9)
    np.testing.assert_allclose(uniform("head.weight", 3), [0.944939023, 0.666650113, 0.811388612], atol=1e-9)
    np.testing.assert_allclose(pictures(1, 96)[0, 0, 0, :3], [-1.435812, 0.954166, 1.469605], atol=1e-6)


@rows(LOGITS)
def test_logits(row: list[str]) -> None:
    method, model_name, changes, lengths_wanted, first, second, norm = row
    model = build(method, model_name, configuration(changes, 0.5)).eval()
    outputs: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: outputs.append(out.shape[1]))
    with torch.no_grad():
        logits = model(pictures(2, MODELS[model_name][1])).numpy()
    carrying = model.reduction.cache
    joins = {} if carrying is None else carrying.joins()
    assert [n - joins.get(i, 0) for i, n in enumerate(outputs)] == lengths(lengths_wanted)
    np.testing.assert_allclose(logits[0, :4], numbers(first), atol=2e-5)
    np.testing.assert_allclose(logits[1, :2], numbers(second), atol=2e-5)
    assert np.linalg.norm(logits) == pytest.approx(float(norm), abs=2e-5)


@rows(GRADIENTS)
def test_gradients(row: list[str]) -> None:
    method, changes, loss_wanted, record, norms, tensors = row
    model = build(method, "tiny", configuration(changes, 0.5)).train()
    loss = nn.functional.cross_entropy(model(pictures(8, 96)), torch.arange(8))
    loss.backward()
    assert loss.item() == pytest.approx(float(loss_wanted), abs=3e-6)
    gradients: dict[str, Any] = {name: p.grad for name, p in model.named_parameters()}
    suffix = gradients.get("reduction.cache.pos")
    positions = model.pos_embed
    if suffix is not None:
        positions = nn.Parameter(torch.cat([model.pos_embed, model.reduction.cache.pos], dim=1))
        positions.grad = torch.cat([model.pos_embed.grad, suffix], dim=1)
    for name, wanted in zip(("cls_token", "reduction.cache.clr", "pos_embed"), norms.split(), strict=True):
        gradient = positions.grad if name == "pos_embed" else gradients.get(name)
        assert (gradient is None) == (wanted == "-"), name
        if gradient is not None:
            assert gradient.double().norm().item() == pytest.approx(float(wanted), rel=1e-4), name
    parts = {id(model.pos_embed), *(id(p) for n, p in model.named_parameters() if n == "reduction.cache.pos")}
    counted = [p for p in tracked(model) if id(p) not in parts] + [positions]
    if not model.head.weight.requires_grad:
        counted.append(model.head.weight)  # officially the classifier that is not run counts too, as zeros
    assert len(counted) == int(tensors)
    torch.testing.assert_close(gradient_record(counted), torch.tensor(numbers(record)), rtol=2e-4, atol=0)


@cache
def large(size: int, name: str = "deit3_base_patch16_224", classes: int = 1938) -> nn.Module:
    """A model of base size without memory behind its weights: lengths and costs need none."""
    with torch.device("meta"):
        return timm.create_model(name, img_size=size, num_classes=classes).eval()


@contextmanager
def reduced_large(model: nn.Module, size: int, method: str, rate: str, changes: str) -> Iterator[Any]:
    config = configuration(changes, float(rate))
    schedule = schedule_spec(method, config, (size // 16) ** 2)
    with torch.device("meta"):
        reduction = reduce(model, OFFICIAL.get(method, method), schedule, cache=cache_spec(config), head=head_spec(config))
    yield reduction
    reduction.detach()


def gmacs(model: Any, reduction: Any, size: int) -> float:
    """Multiply-adds as torchprofile counts them: ours, and one for every value out of a norm, a scale, and q in attention."""
    image = torch.zeros(1, 3, size, size, device="meta")
    scaled = int(hasattr(model.blocks[0].ls1, "gamma"))
    rows = reduction.lengths((size // 16) ** 2)
    small = sum((2 + scaled) * attention + (1 + scaled) * mlp for attention, mlp in rows)
    if isinstance(model.norm_pre, nn.LayerNorm):
        small += rows[0][0]
    if reduction.head is None:
        small += rows[-1][1]  # the last norm, which is none of the head's
    return count_flops(model, image).gflops + 768 * small / 1e9


@pytest.mark.filterwarnings("ignore:.*cannot remove so many tokens")  # ToMe at 0.1, as published
@rows(COST)
def test_lengths_and_cost(row: list[str]) -> None:
    method, rate, changes, lengths_wanted, wanted = row
    model = large(448)
    with reduced_large(model, 448, method, rate, changes) as reduction:
        assert [mlp for _, mlp in reduction.lengths(784)] == lengths(lengths_wanted)
        if wanted:
            assert gmacs(model, reduction, 448) == pytest.approx(float(wanted), rel=1.5e-4)


@rows(COST_224)
def test_cost_at_224_pixels(row: list[str]) -> None:
    rate, base, clca = row
    model = large(224)
    method = "vit" if rate == "1" else "evit"
    for changes, wanted in (("base", base), ("clca", clca)):
        with reduced_large(model, 224, method, rate, changes) as reduction:
            assert gmacs(model, reduction, 224) == pytest.approx(float(wanted), rel=1.5e-4)


def test_cost_of_the_published_command() -> None:
    model = large(448, "vit_base_patch16_clip_224", 1110)
    with reduced_large(model, 448, "evit", ".1", "clca") as reduction:
        assert gmacs(model, reduction, 448) == pytest.approx(25.175, rel=1.5e-4)
        assert round((parameters(model, trainable=True) + UNUSED) / 1e6, 3) == 88.738


@rows(PARAMETERS)
def test_parameters(row: list[str]) -> None:
    method, rate, changes, millions = row
    model = large(448)
    with reduced_large(model, 448, method, rate, changes) as reduction:
        # Officially the norm goes with this head; ours stays, frozen.
        count = parameters(model, trainable=True) + (UNUSED if reduction.head is not None else 0)
        assert round(count / 1e6, 3) == float(millions)
