"""Heads that replace the classifier, and CAL: configurations of the official repository, read as vitrim's."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitrim
from tests.parity import golden
from tests.parity.models import Outcome
from vitrim.core.cache import Place
from vitrim.core.registry import HEADS
from vitrim.recognition.cal import BilinearAttention, CounterfactualAttention

CLASSIFIERS = ("pool", "flatten", "mpncov", "blp", "lrblp", "iblp", "ifacls")
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "proj": "attn.proj",
    "pwff.fc1": "mlp.fc1",
    "pwff.fc2": "mlp.fc2",
}
OUTER = {
    "patch_embedding": "patch_embed.proj",
    "class_token": "cls_token",
    "positional_embedding.pos_embedding": "pos_embed",
    "encoder_norm": "norm",
}
HEAD = {  # official module of a head: name in vitrim
    "head.blp_head": "classifier",
    "head.lr_proj": "reduce",
    "head.head.1": "classifier",
    "head.mpncov.conv_dr_block.0": "project",
    "head.mpncov.conv_dr_block.1": "norm",
    "head.ifa_head.0": "mix",
    "head.ifa_head.3": "norm",
    "head.ifa_head.4": "classifier",
}
CAL = {"attentions.conv": "conv", "attentions.bn": "norm", "fc": "classifier"}


def known(case: dict[str, Any]) -> bool:
    """Whether the case is a head or CAL."""
    if case["id"] == "mpncov_bap":
        return True
    method = str(case["method"])
    return case["kind"] == "model" and case["id"].startswith("dsila_") and (method.startswith("cal_") or bool(_classifier(case)))


def _classifier(case: dict[str, Any]) -> str | None:
    name = case["config"].get("classifier")
    heads = case["id"].startswith("dsila_head_") or case["method"] == "vit_pool"
    return name if heads and name in CLASSIFIERS else None


def backbone(case: dict[str, Any], given: dict[str, Tensor]) -> VisionTransformer:
    """The plain model of a case, without a class token where the official code has none."""
    weights = dict(timm_names(given))
    cls = weights["pos_embed"].shape[1] == 197
    config = case["config"]
    model = VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dim=config["hidden_size"],
        depth=12,
        num_heads=config["num_attention_heads"],
        num_classes=10,
        class_token=cls,
        global_pool="token" if cls else "avg",
        fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-12),
    )
    state = model.state_dict()
    model.load_state_dict({k: weights.get(k, v) for k, v in state.items()})
    missing = [k for k in state if k not in weights and not k.startswith("head.")]
    assert not missing, missing
    return model.eval()


def timm_names(given: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Parameters of the plain model under timm's names; the later of two equal names wins."""
    plain = {re.sub(r"^model\.(encoder\.0\.)?", "", k): v for k, v in given.items()}
    found: list[tuple[str, Tensor]] = []
    for name, value in plain.items():
        stem, _, leaf = name.rpartition(".")
        block = re.match(r"encoder\.blocks\.(\d+)\.(.+)$", stem)
        if name in OUTER:
            found.append((OUTER[name], value))
        elif stem in OUTER:
            found.append((f"{OUTER[stem]}.{leaf}", value))
        elif block and block[2] in BLOCK:
            found.append((f"blocks.{block[1]}.{BLOCK[block[2]]}.{leaf}", value))
    for i in range(12):
        for leaf in ("weight", "bias"):
            thirds = [plain[f"encoder.blocks.{i}.attn.proj_{part}.{leaf}"] for part in "qkv"]
            found.append((f"blocks.{i}.attn.qkv.{leaf}", torch.cat(thirds)))
    return found


def part(given: dict[str, Tensor], prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    """The parameters under ``prefix`` with other names."""
    out: dict[str, Tensor] = {}
    for name, value in given.items():
        stem, _, leaf = name.removeprefix(prefix).rpartition(".")
        if name.startswith(prefix) and stem in names:
            out[f"{names[stem]}.{leaf}"] = value
    return out


def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load all parameters, and statistics where recorded."""
    state = module.state_dict()
    load_all = {k: v.view_as(state[k]) for k, v in weights.items()}
    missing = [k for k, _ in module.named_parameters() if k not in load_all]
    assert not missing, missing
    module.load_state_dict(state | load_all)


def _head_spec(name: str, config: dict[str, Any]) -> str:
    return f"{name}(dim={config['class_proj_size']})" if name in ("mpncov", "lrblp") else name


def run(case: dict[str, Any]) -> Outcome:
    """Run a case and compare everything that was recorded."""
    if case["kind"] == "component":
        outcome = Outcome()
        mpncov_bap(golden.arrays(case), outcome)
        return outcome
    wanted, out, given = golden.arrays(case), Outcome(), golden.weights(case)
    model: Any = backbone(case, given)
    blocks: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, y: blocks.append(y)) for b in model.blocks]
    images, name = golden.images(), _classifier(case)
    with torch.inference_mode():
        if name:
            reduction = vitrim.reduce(model, "none", head=_head_spec(name, case["config"]))
            assert reduction.head is not None
            load(reduction.head, part(given, "model.", HEAD))
            logits = model(images)
        else:
            cal = CounterfactualAttention(passes=2 if case["config"]["cal_single_crop"] else 8)
            cal.setup(model, 10)
            load(cal.eval().head, part(given, "model.dfsm.", CAL))
            logits = cal(images)
    for hook in hooks:
        hook.remove()
    atol, rtol = case["atol_suggested"], case["rtol_suggested"]
    # Tighter than suggested: these are the same operations.
    out.number("logits", logits, wanted["logits"], 1e-5, 1e-5)
    first = blocks[:12]
    out.number("cls_per_layer", torch.stack([b[:, 0] for b in first]), wanted["cls_per_layer"], 3 * atol, rtol)
    out.number("tokens_img0/11", first[11][0], wanted["tokens_img0/11"], 3 * atol, rtol)
    out.decision("tokens_per_layer", [b.shape[1] for b in first] == wanted["tokens_per_layer"].tolist())
    return out


Arrays = dict[str, np.ndarray]


def mpncov_bap(a: Arrays, out: Outcome) -> None:
    """MPN-COV, and attention pooling with its counterfactual."""
    x = torch.from_numpy(a["x"])
    weights = {name: torch.from_numpy(value) for name, value in a.items()}
    head: Any = HEADS.build("mpncov(dim=6)")
    head.setup(Place(20, 12, [], None, None, False, 10, None, 0))
    mapped = part(weights, "mpncov/", {"conv_dr_block.0": "project", "conv_dr_block.1": "norm"})
    load(head.eval(), mapped | {f"classifier.{k}": v for k, v in head.classifier.state_dict().items()})
    pooling = BilinearAttention(20, 8, 10).eval()
    load(pooling, part(weights, "bap/", CAL))
    with torch.inference_mode():
        out.number("mpncov", head.features([x.flatten(2).mT]), a["mpncov_out"][..., 0], 1e-5)
        attention = pooling.attend(x)
        features, fake = pooling.pool(x, attention), pooling.pool(x, pooling.counterfactual(attention))
        out.number("feature matrix", features, a["bap_feature_matrix"], 1e-5, 1e-5)
        raw = pooling.logits(features)
        out.number("logits", raw, a["bap_logits"], 1e-5, 1e-5)
        out.number("counterfactual", raw - pooling.logits(fake), a["bap_counterfactual_logits"], 1e-5, 1e-5)
        out.number("attention map", attention.mean(dim=1, keepdim=True), a["bap_attention_map"], 1e-5)
