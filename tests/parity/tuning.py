"""Tuned models of the ILA and CLCA code bases: how their configurations read in vitrim, and the comparison with the records."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

import vitrim
from tests.parity import golden
from tests.parity.models import Outcome
from vitrim.tuning._published import from_published

PATHS = {"convpass": "both", "ours": "mlp", "pfeiffer": "sequential"}
ILA = re.compile(r"dsila_(vit_(cls|pool)$|adapter|convpass|ila|vpt|vqt|timmvit)")


def known(case: dict[str, Any]) -> bool:
    """Whether the case is one of a tuned model."""
    return case["kind"] == "model" and bool(ILA.match(case["id"]) or case["method"] in ("h2t", "vqt"))


def translate(case: dict[str, Any]) -> str | None:
    """The spec of an official configuration; None for the plain model."""
    config = case["config"]
    at = f"at={config['reduction_loc']}" if config.get("reduction_loc") else ""
    if case["method"] == "h2t":
        return f"h2t({at})"
    if case["method"] == "vqt" and "num_query_tokens" in config:
        return f"vqt({', '.join(filter(None, ['length=' + str(config['num_query_tokens']), at]))}, compat=official)"
    parts: list[str] = []
    if config.get("ila"):
        parts.append(_ila(config, timm="embed_dim" in config))
    if config.get("adapter"):
        dim = config.get("adapter_dim", config.get("embed_dim", 0) // 96)
        settings = [f"dim={dim}", f"path={PATHS[config.get('adapter_path', 'convpass')]}"]
        if config["adapter"] == "convpass":
            settings.append(f"kernel={config.get('adapter_kernel_size', 3)}")
        parts.append(f"{config['adapter']}({', '.join(settings)})")
    prompt = config.get("prompt")
    if prompt:
        deep = ", deep=true" if prompt == "vpt_deep" else ""
        parts.append(f"{prompt.partition('_')[0]}(length={config['prompt_len']}{deep})")
    return " + ".join(parts) or None


def _ila(config: dict[str, Any], timm: bool) -> str:
    settings = [f"dim={config.get('adapter_dim', 8)}", f"kernel={config.get('ila_ds_kernel_size', 3)}"]
    settings += [f"at={config.get('ila_ds_locs', [3, 7])}", f"multiplier={config.get('ila_dws_conv_groups', 1)}"]
    locations = [] if timm else config.get("ila_locs", [-1])
    settings.append("plus=1" if locations == [-1] else f"between={locations}")
    settings.append(f"dilation={config.get('ila_dilation', 1)}")
    norms = [config.get(f"ila_norm{i}", "bn") or "none" for i in (1, 2, 3)]
    settings.append(f"norms=[{', '.join(norms)}]")
    settings.append(f"separate={str(config.get('ila_cls_conv', True)).lower()}")
    kind = {"avg_pool": "pool", "conv": "conv"}.get(config.get("ila_ds_conv_type", ""), "depthwise")
    settings.append(f"residual={kind if config.get('ila_ds_conv', True) else 'none'}")
    settings.append(f"padding={str(config.get('ila_padding', False)).lower()}")
    return f"ila({', '.join(settings)})"


def build(case: dict[str, Any]) -> nn.Module:
    """The tuned model with the recorded weights."""
    config = case["config"]
    pooled = config.get("classifier") == "pool"
    eps = 1e-12 if "hidden_size" in config else 1e-6
    model = VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dim=config.get("embed_dim", 48),
        depth=config.get("depth", 12),
        num_heads=3,
        num_classes=10,
        norm_layer=partial(nn.LayerNorm, eps=eps),
        class_token=not pooled,
        global_pool="avg" if pooled else "token",
        fc_norm=False,
    )
    spec = translate(case)
    if spec is not None:
        vitrim.tune(model, spec)
    tensors = _weights(case)
    own = model.state_dict()
    deeper = tuple(f"blocks.{layer}." for layer in range(config.get("depth", 12), 12))
    unread = [n for n in tensors if n not in own and not n.startswith(("cls_token", "head", "norm", *deeper))]
    assert not unread, f"names that the model does not have: {unread[:4]}"
    # The classifier that a head replaces was never recorded.
    lost = [n for n in own if n not in tensors and not n.startswith("head.") and "num_batches_tracked" not in n]
    assert not lost, f"names without weights: {lost[:4]}"
    fitting = {n: t for n, t in tensors.items() if n in own and own[n].shape == t.shape}
    model.load_state_dict(fitting, strict=False)
    return model.eval()


def _weights(case: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {name.removeprefix("model."): tensor for name, tensor in golden.weights(case).items()}
    if case["method"] == "vqt" and "num_query_tokens" in case["config"]:
        tensors["tuning.vqt.queries"] = tensors.pop("query_prompt_embeddings")
    if case["method"] in ("h2t", "vqt") and "hidden_size" not in case["config"]:
        return {re.sub(r"^head\.", f"tuning.{case['method']}.head.classifier.", name): t for name, t in tensors.items()}
    config = case["config"]
    at = config.get("ila_ds_locs", [3, 7])
    between = config.get("ila_locs", [-1]) if config.get("ila") and "embed_dim" not in config else []
    between = [i for i in range(12) if i not in at] if between == [-1] else between
    return from_published(tensors, at=at, between=between, prompts="vqt" if config.get("prompt") == "vqt" else "vpt")


def run(case: dict[str, Any]) -> Outcome:
    """Compare logits and the tokens after the blocks."""
    out = Outcome()
    wanted = golden.arrays(case)
    model: Any = build(case)
    tokens: dict[int, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _m, _i, y, layer=layer: tokens.__setitem__(layer, y))
        for layer, block in enumerate(model.blocks)
    ]
    with torch.no_grad():
        logits = model(golden.images())
    for handle in handles:
        handle.remove()
    out.number("logits", logits, wanted["logits"], case["atol_suggested"], case["rtol_suggested"])
    lengths = [tokens[layer].shape[1] for layer in sorted(tokens)]
    if "prompt" not in case["config"] and case["method"] not in ("vqt",):
        recorded = [int(n) for n in wanted["tokens_per_layer"]]
        out.decision("tokens per block", _after_blocks(case, lengths) == recorded)
    return out


def _after_blocks(case: dict[str, Any], lengths: list[int]) -> list[int]:
    """The recorded lengths are those of a block itself, before the module that follows it."""
    return [lengths[0], *lengths[:-1]] if case["config"].get("ila") else lengths
