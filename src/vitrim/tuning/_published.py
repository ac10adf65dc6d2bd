"""The names of the published ILA checkpoints, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_BACKBONE = (
    (r"patch_embedding\.", "patch_embed.proj."),
    (r"class_token$", "cls_token"),
    (r"positional_embedding\.pos_embedding$", "pos_embed"),
    (r"encoder\.blocks\.(\d+)\.proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.blocks\.(\d+)\.(norm1|norm2|attn)\.", r"blocks.\1.\2."),
    (r"encoder\.blocks\.(\d+)\.pwff\.", r"blocks.\1.mlp."),
    (r"encoder_norm\.", "norm."),
    (r"head\.head\.(?:1\.)?", "head."),
)
_MODULE = (
    (r"adapter_down\.", "down."),
    (r"adapter_up\.", "up."),
    (r"adapter_cls\.", "token."),
    (r"ds_conv\.", "skip."),
    (r"norm([13])\.(?:1\.)?", r"norm\1.norm."),
    (r"adapter_conv\.0\.", "conv."),
    (r"adapter_conv\.1\.[01]\.", "norm2.norm."),
    (r"adapter_conv\.2\.", "mix."),
    (r"adapter_conv\.", "conv."),
)


def from_published(
    tensors: Mapping[str, Tensor], *, at: Sequence[int] = (3, 7), between: Sequence[int] = (), prompts: str = "vpt"
) -> dict[str, Tensor]:
    """Weights of the ILA code base by the names of a tuned timm model: for ``load_state_dict`` after :func:`vitrim.tune`.

    Args:
        tensors: of a checkpoint's ``model`` entry.
        at: the blocks that modules follow which make the grid smaller (``--ila_ds_locs``).
        between: the blocks that the other modules follow (``--ila_locs``).
        prompts: whose the prompts are: ``vpt`` or ``vqt``.
    """
    # A block in both lists has a module of the second kind alone.
    places = {"ila_ds": [i for i in sorted(at) if i not in between], "ila": sorted(between)}
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _translate(name.removeprefix("model."), places, prompts, any("adapter_conv.weight" in n for n in tensors))
        named[new] = tensor.flatten(1) if ".token.weight" in new else tensor
    if prompts == "vqt":
        named = {re.sub(r"^head\.", "tuning.vqt.head.classifier.", name): tensor for name, tensor in named.items()}
    return _join_qkv(named)


def _translate(name: str, places: Mapping[str, Sequence[int]], prompts: str, convolves: bool) -> str:
    found = re.match(r"(?:encoder\.)?(ila_ds|ila)\.(\d+)\.(.*)", name)
    if found:
        kind, n, rest = found.groups()
        return f"tuning.ila.{'smaller' if kind == 'ila_ds' else 'same'}.{places[kind][int(n)]}.{_rename(rest, _MODULE)}"
    found = re.match(r"(?:encoder\.)?blocks\.(\d+)\.adapter_(attn|pwffn)\.(.*)", name)
    if found:
        layer, half, rest = found.groups()
        kind = "convpass" if convolves else "adapter"
        return f"tuning.{kind}.{'attention' if half == 'attn' else 'mlp'}.{layer}.{_rename(rest, _MODULE)}"
    if name in ("encoder.prompt", "positional_embedding.prompt"):
        return f"tuning.{prompts}.{'queries' if prompts == 'vqt' else 'prompts'}"
    return _rename(name, _BACKBONE)


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, new in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", new, name, count=1)
    return name


def _join_qkv(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three linear layers to the one of timm."""
    joined: dict[str, Tensor] = {}
    for name, tensor in named.items():
        found = re.match(r"(blocks\.\d+\.attn)\.proj_([qkv])\.(.*)", name)
        if found is None:
            joined[name] = tensor
        elif found.group(2) == "q":
            stem, _, kind = found.groups()
            joined[f"{stem}.qkv.{kind}"] = torch.cat([named[f"{stem}.proj_{letter}.{kind}"] for letter in "qkv"])
    return joined
