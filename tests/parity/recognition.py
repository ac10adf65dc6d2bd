"""Whole tiny recognisers, and what they choose by: configurations of the official repository, read as vitrim's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from tests.parity import attention_tools as saliency
from tests.parity import golden
from tests.parity.models import Outcome
from vitrim.core.rollout import mutual, product, rollout, similarity
from vitrim.core.tokens import Attention
from vitrim.recognition.base import Recogniser, recognise
from vitrim.recognition.crops import attention_boxes, cut
from vitrim.recognition.selection import parts, take

METHODS = ("transfg", "transfg_aux", "ffvt", "ramstrans", "glsim", "glsim_l1_mask", "glsim_l2")
COMPONENTS = ("attention_tools", "glsim_and_crop")
# Names of the official modules besides those of the backbone.
PARTS = {
    "aggregator.blocks.0": "aggregator",
    "aggregator_norm": "norm",
    "anchor_class_token": "anchor_token",
    "reducer": "reduce",
    "head_reducer.0": "head",  # what classifies in RAMS-Trans; its own "head" is idle
    "head": "head",
}


def known(case: dict[str, Any]) -> bool:
    """Whether this file runs the case."""
    if case["kind"] == "component":
        return case["id"] in COMPONENTS
    return case["kind"] == "model" and case["official_repo"] == "DownSamplingInterLayerAdapter" and case["method"] in METHODS


def run(case: dict[str, Any]) -> Outcome:
    """Run a case and compare everything that was recorded."""
    if case["kind"] == "model":
        return run_model(case)
    out = Outcome()
    if case["id"] == "glsim_and_crop":
        glsim_and_crop(case, golden.arrays(case), out)
    else:
        attention_tools(case, golden.arrays(case), out)
        saliency.attention_tools(case, golden.arrays(case), out)
    return out


def spec(case: dict[str, Any]) -> str:
    """The recogniser of an official configuration."""
    config = case["config"]
    if config["selector"] == "psm":
        return f"transfg(contrast={0.1 if config.get('classifier_aux') == 'cont' else 0.0})"
    if config["selector"] == "maws":
        return f"ffvt(tokens={config['selector_num_tokens']})"
    if config["selector"] == "rollout":
        return f"ramstrans(top={config['selector_num_tokens']})"
    return (
        f"glsim(top={config['selector_num_tokens']}, metric={config.get('sim_metric', 'cos')}, crop={config['crop_mode']}, "
        f"width={config['representation_size']})"
    )


def vit_of(config: dict[str, Any]) -> VisionTransformer:
    """The backbone of an official configuration."""
    return VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dim=config["hidden_size"],
        depth=12,
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        num_classes=config["num_classes"],
        norm_layer=partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
    )


def renamed(given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Official parameters under the names of timm, and ``vit.`` before those of the backbone."""
    given = {name.removeprefix("model."): value for name, value in given.items()}
    if "head_reducer.0.weight" in given:
        given = {name: value for name, value in given.items() if not name.startswith("head.")}
    for name, value in given.items():
        found = re.fullmatch(r"(.*)\.attn\.proj_q\.(weight|bias)", name)
        if found:
            block, leaf = found.groups()
            value = torch.cat([given[f"{block}.attn.proj_{part}.{leaf}"] for part in "qkv"])
            name = f"{block}.attn.qkv.{leaf}"
        elif ".proj_" in name:
            continue
        else:
            name = re.sub(r"(blocks\.\d+)\.proj\.", r"\1.attn.proj.", name)
        yield _place(name.replace(".pwff.", ".mlp.")), value


def _place(name: str) -> str:
    for official, ours in PARTS.items():
        if name.startswith(official) and not name.startswith("head.head"):
            return ours + name.removeprefix(official)
    for official, ours in (
        ("encoder.blocks.", "blocks."),
        ("encoder_norm.", "norm."),
        ("patch_embedding.", "patch_embed.proj."),
        ("class_token", "cls_token"),
        ("positional_embedding.pos_embedding", "pos_embed"),
    ):
        if name.startswith(official):
            return "vit." + ours + name.removeprefix(official)
    return "unused." + name


def build(case: dict[str, Any]) -> Recogniser:
    """The recogniser with the parameters of the case."""
    model = recognise(vit_of(case["config"]), spec(case)).eval()
    ours = dict(renamed(golden.weights(case)))
    wanted = model.state_dict()
    model.load_state_dict({name: ours[name] for name in wanted}, strict=True)
    return model


def run_model(case: dict[str, Any]) -> Outcome:
    """Run a ``model`` case: logits, tokens of the first pass, and the crops."""
    wanted, out, model, images = golden.arrays(case), Outcome(), build(case), golden.images()
    kept = images.clone()
    blocks: list[Tensor] = []
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, o: blocks.append(o.detach())) for b in model.vit.blocks]
    hooks.append(model.vit.patch_embed.register_forward_hook(lambda m, i, o: seen.append(i[0])))
    with torch.no_grad():
        logits = model(images)
    for hook in hooks:
        hook.remove()
    blocks = blocks[: len(model.vit.blocks)]
    atol, rtol = 1e-5, 1e-5
    out.number("logits", logits, wanted["logits"], atol, rtol)
    out.number("cls_per_layer", torch.stack([b[:, 0] for b in blocks]), wanted["cls_per_layer"], 3 * atol, rtol)
    out.decision("tokens_per_layer", [b.shape[1] for b in blocks] == wanted["tokens_per_layer"].tolist())
    last = len(blocks) - 1
    out.number("tokens_img0", blocks[last][0], wanted[f"tokens_img0/{last}"], 3 * atol, rtol)
    if "crops_mean" in wanted:
        out.number("crops_img0_ds4", seen[1][0, :, ::4, ::4], wanted["crops_img0_ds4"], 3 * atol, rtol)
        out.number("crops_mean", seen[1].mean(dim=(2, 3)), wanted["crops_mean"], atol, rtol)
        out.number("crops_absmean", seen[1].abs().mean(dim=(1, 2, 3)), wanted["crops_absmean"], atol, rtol)
    if "aux" in wanted:
        with torch.no_grad():
            out.number("aux", model.features(images), wanted["aux"], atol, rtol)  # type: ignore[operator]
    out.decision("the images are left as they were", torch.equal(images, kept))
    return out


def attention_of(scores: Tensor) -> Attention:
    """The attention with these logits ``(B, heads, n, n)``."""
    nothing = scores.new_zeros(*scores.shape[:3], 1)
    return Attention(nothing, nothing, nothing, 1.0, bias=scores)


def attention_tools(case: dict[str, Any], a: dict[str, np.ndarray], out: Outcome) -> None:
    """TransFG's parts, FFVT's tokens and the rollout; the rest of the case belongs to pictures."""
    scores, feats = torch.from_numpy(a["scores"]), torch.from_numpy(a["feats"])
    attentions = [attention_of(layer) for layer in scores]
    out.number("rollout_ds", rollout(attentions, None), a["rollout_ds"], 1e-5)
    out.number("row 0 of the rollout", rollout(attentions), a["rollout_ds"][:, 0], 1e-5)
    whole = product(attentions, None)
    out.number("row 0 of the product", product(attentions), whole[:, :, 0], 1e-6)
    x = feats[-1]
    out.number("psm", torch.cat([x[:, :1], take(x, parts(attentions))], dim=1), a["psm"], 0.0)
    k = case["config"]["maws_tokens"]
    best = [take(f, mutual(at).topk(k, dim=1).indices) for f, at in zip(feats, attentions, strict=True)]
    out.number("maws_tokens", torch.cat([x[:, :1], *best], dim=1), a["maws_tokens"], 0.0)


def glsim_and_crop(case: dict[str, Any], a: dict[str, np.ndarray], out: Outcome) -> None:
    """The patches most like the class token, and crops where an attention map is high."""
    tokens = torch.from_numpy(a["tokens"])
    for metric in ("cos", "l1", "l2"):
        index = similarity(tokens[:, 0], tokens[:, 1:], metric).topk(8, dim=1).indices
        out.decision(f"indices/{metric}", (index.numpy() == a[f"indices/{metric}"]).all())
    images, maps = golden.images()[:2], torch.from_numpy(a["attention_map"])
    for name, wanted in a.items():
        found = re.fullmatch(r"crop/theta([\d.]+)_pad([\d.]+)", name)
        if found:
            boxes = attention_boxes(maps, (224, 224), float(found[1]), float(found[2]))
            out.number(name, cut(images, boxes)[:, :, ::8, ::8], wanted, case["atol_suggested"])
