"""Weights from safetensors files: read without unpickling, checked against the model before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weights file holds.

    Attributes:
        path: the file.
        state: tensors of the model by name.
        reduction: tensors of a learned reduction, names as ``model.reduction`` has them.
        tuning: tensors of tuning methods, names as ``model.tuning`` has them.
        metadata: the strings in the header of the file.
    """

    path: Path
    state: dict[str, Tensor]
    reduction: dict[str, Tensor]
    metadata: dict[str, str]
    tuning: dict[str, Tensor] = field(default_factory=dict)


def read_weights(path: str | Path) -> Weights:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a pickled checkpoint (it could run code), a damaged file, or numbers that are not finite.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"weights: '{path}' {kind}; give a .safetensors file")
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_STARTS) or (path.suffix in (".pth", ".pt", ".bin", ".pkl", ".ckpt") and start[:1] != b"{"):
        raise ValueError(_convert_first(path))
    try:
        with safe_open(str(path), "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights: '{path}' is no readable safetensors file ({error}); download or convert it again") from error
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"weights: '{key}' in '{path}' holds NaN or infinite numbers, so every prediction would be void; "
                "save an earlier checkpoint of that training run"
            )
    state = {k: v for k, v in tensors.items() if not k.startswith(("reduction.", "tuning."))}
    reduction, tuning = (
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)} for prefix in ("reduction.", "tuning.")
    )
    return Weights(path, state, reduction, metadata, tuning)


def load_into(model: nn.Module, weights: Weights, name: str) -> None:
    """Load the weights into the model, all or nothing.

    Raises:
        ValueError: when keys are missing, unexpected or of another shape, saying which and what to do.
    """
    expected = model.state_dict()
    missing = [k for k in expected if k not in weights.state]
    unexpected = [k for k in weights.state if k not in expected]
    shapes = [k for k, v in weights.state.items() if k in expected and v.shape != expected[k].shape]
    if missing or unexpected or shapes:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing ({_some(missing)})")
        if unexpected:
            parts.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
        if shapes:
            told = [f"{k} {_shape(weights.state[k])} in the file, {_shape(expected[k])} in the model" for k in shapes[:_SHOWN]]
            parts.append(f"{len(shapes)} of another shape ({'; '.join(told)}{', ...' if len(shapes) > _SHOWN else ''})")
        remedy = _remedy(expected, weights.state, missing, unexpected, shapes, name)
        raise ValueError(f"weights: '{weights.path}' does not fit {name}: {', '.join(parts)}; {remedy}")
    model.load_state_dict(weights.state)


def _remedy(
    expected: dict[str, Any], state: dict[str, Tensor], missing: list[str], unexpected: list[str], shapes: list[str], name: str
) -> str:
    """What to do about a checkpoint that does not fit, from the kind of misfit."""
    base = name.split("(")[0]
    prefixes = {k.split(".", 1)[0] for k in unexpected}
    if unexpected and not set(state) & set(expected):
        if len(prefixes) == 1 and all(k.split(".", 1)[-1] in expected for k in unexpected):
            return f"its names start with '{prefixes.pop()}.': strip that from the keys and save it again"
        return "its names are not those of timm: convert it to timm's names, or choose the model that it was saved from"
    if not missing and not unexpected:
        if "patch_embed.proj.weight" in shapes:
            ours, theirs = expected["patch_embed.proj.weight"].shape, state["patch_embed.proj.weight"].shape
            if ours[0] == theirs[0] and ours[2:] == theirs[2:]:
                return f"it takes images of {theirs[1]} channels: give {base}(in_chans={theirs[1]})"
        if shapes == ["pos_embed"]:
            return _image_size_remedy(expected, state, base)
        if all("head" in k or "classifier" in k for k in shapes):
            return f"its head is for {state[shapes[0]].shape[0]} classes: leave num_classes out or give that number"
    if all("head" in k or "fc" in k.split(".")[0] for k in missing) and missing and not unexpected and not shapes:
        return "it was saved without a classification head: give num_classes=0 for features only, or weights with a head"
    plain = {"pos_embed", "cls_token", "head.weight", "blocks.0.attn.qkv.weight"} <= set(state)
    other = ", or vit, which reads a plain ViT's geometry from the file" if plain else ""
    return f"it was saved from another model: name that one, as in timm/NAME(img_size=224){other}"


def _image_size_remedy(expected: dict[str, Any], state: dict[str, Tensor], base: str) -> str:
    patch = expected["patch_embed.proj.weight"].shape[-1]
    tokens = state["pos_embed"].shape[1]
    for prefix in (0, 1, 2, 4, 5):
        side = round(max(tokens - prefix, 0) ** 0.5)
        if side and side * side == tokens - prefix:
            return f"its position embeddings are for {side} x {side} patches: give {base}(img_size={side * patch})"
    return f"its position embeddings are for {tokens} tokens: give the image size that it was trained at, {base}(img_size=...)"


def _convert_first(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    return (
        f"weights: '{path}' is a pickled checkpoint, which can run code when it is opened; vitrim reads safetensors only. "
        "Convert it once, where you trust it:\n"
        f'  state = torch.load("{path.name}", map_location="cpu", weights_only=True); state = state.get("model", state);\n'
        f'  safetensors.torch.save_file({{k: v.clone().contiguous() for k, v in state.items()}}, "{target}")'
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(str(d) for d in tensor.shape) or "scalar"
