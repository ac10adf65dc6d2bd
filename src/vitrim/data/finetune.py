"""Models to train further: another head, another image size, weights that fit but for these."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitrim.core.registry import SpecError
from vitrim.data.hub import no_pretrained, refuse_unreachable
from vitrim.data.models import FASHION_GEOMETRY, build_plain, parse_model, plain_geometry, require_timm_model
from vitrim.data.weights import Weights, load_into, read_weights


def model_to_train(
    name: str,
    num_classes: int,
    weights: str | Path | None = None,
    *,
    image_size: int | None = None,
    random_weights: bool = False,
    **options: Any,
) -> tuple[nn.Module, list[str]]:
    """A model for another data set: its head for ``num_classes``, the rest pretrained where that is to be had.

    Args:
        name: as for :func:`load_model`.
        num_classes: of the new head.
        weights: a safetensors file to start from, of whatever classes and image size; None takes the pretrained weights.
        image_size: side of the images, for models that must know it; the settings in ``name`` come first.
        random_weights: load nothing at all. ``timm/NAME(pretrained=false)`` only does without the pretrained weights: a file
            given as ``weights`` is loaded.
        options: further settings of the model, such as ``drop_path_rate``; None leaves the model its own.

    Returns:
        The model in training mode, and what a user should know about its weights, a line each.

    Raises:
        SpecError: for an unknown model or setting.
        FileNotFoundError: when the weights file does not exist.
        ValueError: when weights do not fit or cannot be had, with the remedy.
    """
    import timm

    library, key, settings = parse_model(name)
    for norm in ("mean", "std"):
        settings.pop(norm, None)
    pretrained = settings.pop("pretrained", True) and weights is None and not random_weights
    settings = {**{k: v for k, v in options.items() if v is not None}, **settings, "num_classes": num_classes}
    if library == "fashion":
        model: Any = build_plain({**FASHION_GEOMETRY, **_sized(image_size), **settings}, name)
        file = Path(str(resources.files("vitrim").joinpath("assets/fashion_vit.safetensors"))) if weights is None else weights
        given = read_weights(file) if pretrained or (weights is not None and not random_weights) else None
    elif library == "vit":
        if weights is None:
            raise ValueError("model 'vit' takes its geometry from a weights file; give weights, or name a model as timm/NAME")
        given = read_weights(weights)
        model = build_plain({**plain_geometry(given), **_sized(image_size), **settings}, name)
        given = None if random_weights else given
    else:
        require_timm_model(key)
        given = None if weights is None or random_weights else read_weights(weights)
        model = _create(name, key, settings, image_size, pretrained=pretrained)
    if given is None:
        return model.train(), []
    config: Any = timm.get_pretrained_cfg(key) if library == "timm" else None
    heads = (config.classifier if config is not None else None) or "head"
    return model.train(), fit_into(model, given, name, (heads,) if isinstance(heads, str) else tuple(heads))


def _sized(image_size: int | None) -> dict[str, Any]:
    return {} if image_size is None else {"img_size": image_size}


def _create(name: str, key: str, settings: dict[str, Any], image_size: int | None, pretrained: bool) -> nn.Module:
    """A timm model for images of ``image_size``, where it must know that."""
    import timm

    create: Any = timm.create_model
    if pretrained:
        refuse_unreachable(key)
    # Models without img_size (convolutional stems alone, dynamic ones) refuse the word; they take any size.
    attempts = [settings] if image_size is None or "img_size" in settings else [{"img_size": image_size, **settings}, settings]
    for i, attempt in enumerate(attempts):
        try:
            return create(key, pretrained=pretrained, **attempt)
        except TypeError as error:
            if i + 1 < len(attempts) and "img_size" in str(error):
                continue
            raise SpecError(f"model '{name}': {error}; settings are those of the timm model, such as img_size=224") from error
        except AssertionError as error:
            raise SpecError(f"model '{name}': {error}; settings are those of the timm model, such as img_size=224") from error
        except Exception as error:  # whatever the network, the hub client or timm's loading raises
            if not pretrained:
                raise SpecError(f"model '{name}': {error}") from error
            raise ValueError(no_pretrained(key, str(error).split("\n")[0])) from error
    raise SpecError(f"model '{name}' cannot be built")


def fit_into(model: nn.Module, weights: Weights, name: str, heads: tuple[str, ...] = ("head",)) -> list[str]:
    """Load weights as a start for training: the head may be of another data set, the images and patches of another size.

    A head of other shape stays as the model has it. Position embeddings of another grid are resized, bicubic with
    antialiasing as timm does, the part of the prefix tokens as it is; the patch embedding of another patch size by the
    pseudo-inverse of the resizing (FlexiViT, arXiv:2212.08013). Anything else must fit.

    Args:
        model: gets the weights.
        weights: from :func:`read_weights`.
        name: of the model, for messages.
        heads: modules that are the head.

    Returns:
        What was dropped, resized or left at its initial value, a line each.

    Raises:
        ValueError: when other keys are missing, unexpected or of another shape, saying which and what to do.
    """
    expected = model.state_dict()
    state = dict(weights.state)
    notes: list[str] = []
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for key in [k for k in state if k.split(".")[-1] == "pos_embed" and k in expected and state[k].shape != expected[k].shape]:
        if grid is not None:
            state[key], note = _resize(state[key], expected[key], grid, key)
            notes += [note] if note else []
    patch = "patch_embed.proj.weight"
    if patch in state and patch in expected and state[patch].shape != expected[patch].shape:
        state[patch], note = _resample(state[patch], expected[patch], patch)
        notes += [note] if note else []
    of_head = {k for k in {*expected, *state} if k.split(".")[0] in {*heads, "head_dist"}}
    dropped = sorted(k for k in of_head & set(state) if k not in expected or state[k].shape != expected[k].shape)
    for key in dropped:
        old = state.pop(key)
        if key.endswith("weight") and old.ndim == 2:
            notes.append(
                f"head '{key.rsplit('.', 1)[0]}' of {old.shape[0]} classes dropped: the new one starts from its initial values"
            )
    filled = {k: v for k, v in expected.items() if k in of_head or k.startswith("reduction.")}
    untrained = sorted(k for k in filled if k not in state and k not in dropped and k in of_head)
    if untrained:
        notes.append(f"not in the file, at initial values: {', '.join(untrained[:4])}{', ...' if len(untrained) > 4 else ''}")
    load_into(model, Weights(weights.path, {**filled, **state}, {}, weights.metadata), name)
    return notes


def _resample(old: Tensor, new: Tensor, key: str) -> tuple[Tensor, str]:
    """A patch embedding ``(C, channels, h, w)`` for another patch size; one that differs otherwise comes back as it is."""
    from timm.layers.patch_embed import resample_patch_embed

    if old.ndim != 4 or new.ndim != 4 or old.shape[:2] != new.shape[:2]:
        return old, ""
    resized = resample_patch_embed(old, list(new.shape[-2:]))
    return resized, f"'{key}' resampled from patches of {old.shape[-2]} x {old.shape[-1]} to {new.shape[-2]} x {new.shape[-1]}"


def _resize(old: Tensor, new: Tensor, grid: tuple[int, int], key: str) -> tuple[Tensor, str]:
    """Position embeddings ``(1, prefix + n, C)`` for another grid; those that do not fit so come back as they are."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    if old.ndim != 3 or old.shape[-1] != new.shape[-1]:
        return old, ""
    prefix = new.shape[1] - grid[0] * grid[1]
    side = round(max(old.shape[1] - prefix, 0) ** 0.5)
    if prefix < 0 or side * side != old.shape[1] - prefix or side == 0:
        return old, ""
    resized = resample_abs_pos_embed(old, list(grid), [side, side], prefix, "bicubic", antialias=True)
    return resized, f"'{key}' resized from {side} x {side} to {grid[0]} x {grid[1]} patches"
