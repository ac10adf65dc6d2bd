"""Models by name: the embedded one, any of timm, or a plain vision transformer whose geometry its weights tell."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrim.core.registry import SpecError, parse_spec
from vitrim.data.embedded import FASHION_MEAN, FASHION_STD, fashion, fashion_learned
from vitrim.data.hub import no_pretrained, refuse_unreachable
from vitrim.data.weights import Weights, load_into, read_weights

FASHION_GEOMETRY = {
    "img_size": 28, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 96, "depth": 12, "num_heads": 3,
}  # fmt: skip
_KNOWN = "fashion, timm/NAME such as timm/deit_small_patch16_224, or vit with --weights FILE"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with what is needed to feed it and to read its answers.

    Attributes:
        model: in evaluation mode.
        name: the spec that it was loaded by.
        transform: from an image to ``(C, H, W)`` float32.
        input_size: ``(C, H, W)`` of the transformed images.
        mean: per channel, as subtracted by the transform.
        std: per channel, as divided by.
        classes: names of the classes, or None when unknown.
        class_index: every known name of a class (also ImageNet's ``n01440764``) and its index.
        reduction: weights of a learned reduction that stood in the weights file, for ``model.reduction.load_state_dict``.
        random: whether the weights are random, so that predictions mean nothing.
    """

    model: nn.Module
    name: str
    transform: Callable[[Image.Image], Tensor]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: list[str] | None = None
    class_index: dict[str, int] = field(default_factory=dict)
    reduction: dict[str, Tensor] = field(default_factory=dict)
    random: bool = False

    def unnormalise(self, image: Tensor) -> np.ndarray:
        """``(C, H, W)`` as the transform gives it, back to an RGB picture ``(H, W, 3)`` uint8."""
        return unnormalise(image, self.mean, self.std)


def unnormalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """``(C, H, W)``, normalised with this mean and deviation, back to an RGB picture ``(H, W, 3)`` uint8."""
    shape = (-1, 1, 1)
    plain = image.detach().cpu().float() * torch.as_tensor(std).view(shape) + torch.as_tensor(mean).view(shape)
    # Clipped before the cast: values beyond the range of a byte would wrap around.
    pixels = plain.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


class Grey:
    """Transform for models of one channel: grey levels, resized, normalised."""

    def __init__(self, size: tuple[int, int], mean: float, std: float) -> None:
        self.size = size
        self.mean = mean
        self.std = std

    def __call__(self, image: Image.Image) -> Tensor:
        """``(1, H, W)`` float32."""
        height, width = self.size
        grey = image.convert("L")
        if grey.size != (width, height):
            grey = grey.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(grey)).float().div(255)
        return ((pixels - self.mean) / self.std).unsqueeze(0)


def load_model(
    name: str = "fashion",
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    *,
    random_weights: bool = False,
) -> LoadedModel:
    """Load a model with its transform and class names.

    Args:
        name: ``fashion`` (comes with vitrim), ``timm/NAME`` with settings of the model where needed, as in
            ``timm/vit_small_patch14_dinov2(img_size=224)``, or ``vit`` for a plain ``VisionTransformer`` of timm whose geometry
            is read from ``weights`` (heads of 64 channels unless ``vit(num_heads=...)``). ``mean`` and ``std`` are settings too.
        weights: a safetensors file with timm's names; None takes the pretrained weights.
        num_classes: number of classes; read from the weights when None.
        device: where the model goes.
        random_weights: do without weights; same as ``timm/NAME(pretrained=false)``.

    Raises:
        SpecError: for an unknown model or setting.
        FileNotFoundError: when the weights file does not exist.
        ValueError: when weights do not fit or cannot be had, with the remedy.
    """
    library, key, settings = parse_model(name)
    norms = {k: _per_channel(settings.pop(k)) for k in ("mean", "std") if k in settings}
    random_weights = random_weights or not settings.pop("pretrained", True)
    if num_classes is not None:
        settings["num_classes"] = num_classes
    if weights is not None and random_weights:
        raise ValueError("weights and random weights exclude each other; give one of them")
    if library == "fashion":
        loaded = _fashion(name, weights, settings, random_weights)
    elif library == "vit":
        loaded = _plain(name, weights, settings, norms)
    else:
        loaded = _timm(name, key, weights, settings, norms, random_weights)
    loaded.model.eval().to(device)
    return loaded


def parse_model(name: str) -> tuple[str, str, dict[str, Any]]:
    """Library, name of the model there, settings."""
    match = re.fullmatch(r"\s*(?:(\w+)/)?([\w.\-/]+?)\s*(\(.*\))?\s*", name, re.S)
    if match is None:
        raise SpecError(f"cannot read model '{name}'; it is {_KNOWN}")
    library, key, call = match.groups()
    _, args, settings = parse_spec(f"model{call or ''}")
    if args:
        raise SpecError(f"model '{name}': write settings by name, as in {name.split('(')[0]}(img_size=224)")
    if library is None and key in ("fashion", "vit"):
        return key, key, settings
    if library == "timm":
        return "timm", key, settings
    import timm

    hint = f"did you mean 'timm/{key}'?" if library is None and timm.is_model(key) else f"it is {_KNOWN}"
    raise SpecError(f"unknown model '{name}'; {hint}")


def _fashion(name: str, path: str | Path | None, settings: dict[str, Any], random: bool) -> LoadedModel:
    model = build_plain({**FASHION_GEOMETRY, **settings}, name)
    file = Path(str(resources.files("vitrim").joinpath("assets/fashion_vit.safetensors"))) if path is None else Path(path)
    reduction = {}
    if not random:
        weights = read_weights(file)
        load_into(model, weights, name)
        reduction = weights.reduction if path is not None else fashion_learned()
    size = _input_size(model)
    classes = fashion(10).classes
    grey = Grey(size[1:], FASHION_MEAN, FASHION_STD)
    return LoadedModel(
        model, name, grey, size, (FASHION_MEAN,), (FASHION_STD,), classes, _index(classes), reduction, random
    )  # fmt: skip


def _plain(name: str, path: str | Path | None, settings: dict[str, Any], norms: dict[str, tuple[float, ...]]) -> LoadedModel:
    if path is None:
        raise ValueError("model 'vit' takes its geometry from a weights file; give --weights FILE, or name a model as timm/NAME")
    weights = read_weights(path)
    model = build_plain({**plain_geometry(weights), **settings}, name)
    load_into(model, weights, name)
    return _finish(model, name, weights, norms, whole=True)


def _timm(
    name: str, key: str, path: str | Path | None, settings: dict[str, Any], norms: dict[str, tuple[float, ...]], random: bool
) -> LoadedModel:
    import timm

    require_timm_model(key)
    weights = None if path is None else read_weights(path)
    if weights is not None:
        config: Any = timm.get_pretrained_cfg(key)
        heads = config.classifier if config is not None else "head"
        head = weights.state.get(f"{heads if isinstance(heads, str) else (heads or ('head',))[0]}.weight")
        if head is not None:
            settings.setdefault("num_classes", head.shape[0])
    pretrained = weights is None and not random
    if pretrained:
        refuse_unreachable(key)
    try:
        model: Any = timm.create_model(key, pretrained=pretrained, **settings)
    except (TypeError, AssertionError) as error:
        raise SpecError(f"model '{name}': {error}; settings are those of the timm model, such as img_size=224") from error
    except Exception as error:  # whatever the network, the hub client or timm's loading raises
        if not pretrained:
            raise SpecError(f"model '{name}': {error}") from error
        raise ValueError(no_pretrained(key, str(error).split("\n")[0])) from error
    if weights is not None:
        load_into(model, weights, name)
    return _finish(model, name, weights, norms, random)


def require_timm_model(key: str) -> None:
    """Refuse a name that timm does not know, with the nearest.

    Raises:
        SpecError: in that case.
    """
    import timm

    if not timm.is_model(key):
        near = difflib.get_close_matches(key.split(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join('timm/' + n for n in near)}?" if near else "timm.list_models() lists them"
        raise SpecError(f"timm has no model '{key}'; {hint}")


def _finish(
    model: Any, name: str, weights: Weights | None, norms: dict[str, tuple[float, ...]], random: bool = False, whole: bool = False
) -> LoadedModel:
    """Transform and class names of a timm model; ``whole`` images lose no border to a centre crop."""
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    size = _input_size(model)
    meta = {} if weights is None else weights.metadata
    config = resolve_model_data_config(model)
    config["input_size"] = size
    for key in ("mean", "std"):
        values = norms.get(key) or (_per_channel(json.loads(meta[key])) if key in meta else tuple(config[key]))
        if len(values) != size[0]:
            values = (sum(values) / len(values),) * size[0]
        config[key] = values
    if whole:
        config["crop_pct"] = 1.0
    if size[0] == 1:
        transform: Callable[[Image.Image], Tensor] = Grey(size[1:], config["mean"][0], config["std"][0])
    elif size[0] == 3:
        transform = _Rgb(create_transform(**config, is_training=False))
    else:
        raise ValueError(f"model '{name}' takes {size[0]} channels; only grey (1) and RGB (3) images can be read from files")
    classes, index = _class_names(model, meta)
    reduction = {} if weights is None else weights.reduction
    return LoadedModel(model, name, transform, size, config["mean"], config["std"], classes, index, reduction, random)


class _Rgb:
    """A timm transform that takes any image mode."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image.convert("RGB"))


def build_plain(settings: dict[str, Any], name: str) -> nn.Module:
    """A plain ``VisionTransformer`` of timm.

    Raises:
        SpecError: for a setting that it does not have.
    """
    from timm.models import VisionTransformer

    try:
        return VisionTransformer(**settings)
    except (TypeError, AssertionError) as error:
        raise SpecError(f"model '{name}': {error}; settings are those of timm's VisionTransformer") from error


def plain_geometry(weights: Weights) -> dict[str, Any]:
    """Geometry of a plain VisionTransformer from the shapes of its weights."""
    state = weights.state
    needed = ("pos_embed", "patch_embed.proj.weight", "head.weight", "cls_token", "blocks.0.mlp.fc1.weight")
    absent = [k for k in needed if k not in state]
    if absent:
        raise ValueError(
            f"weights: '{weights.path}' is no plain VisionTransformer of timm (no {', '.join(absent)}); name the model that it "
            "was saved from as timm/NAME"
        )
    dim, channels, height, width = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    return {
        "img_size": (side * height, side * width), "patch_size": (height, width), "in_chans": channels, "embed_dim": dim,
        "depth": depth, "num_heads": max(dim // 64, 1), "num_classes": state["head.weight"].shape[0],
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
    }  # fmt: skip


def _input_size(model: Any) -> tuple[int, int, int]:
    from timm.data.config import resolve_model_data_config

    size = tuple(resolve_model_data_config(model)["input_size"])
    embed = getattr(model, "patch_embed", None)
    height, width = getattr(embed, "img_size", None) or size[1:]
    projection = getattr(embed, "proj", None)
    channels = getattr(projection, "in_channels", size[0])
    return int(channels), int(height), int(width)


def _class_names(model: Any, meta: dict[str, str]) -> tuple[list[str] | None, dict[str, int]]:
    if "classes" in meta:
        classes = [str(c) for c in json.loads(meta["classes"])]
        return classes, _index(classes)
    if getattr(model, "num_classes", None) != 1000:
        return None, {}
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    classes = [info.index_to_description(i) for i in range(1000)]
    return classes, _index(classes) | {info.index_to_label_name(i): i for i in range(1000)}


def _index(classes: list[str]) -> dict[str, int]:
    return {c: i for i, c in enumerate(classes)}


def _per_channel(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),)
