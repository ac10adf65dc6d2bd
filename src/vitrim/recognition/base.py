"""The base class of a recogniser, and the pieces that recognisers share: the pass through the blocks, the aggregator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrim.backbones._pooling import family_of
from vitrim.core.reduction import Reduction
from vitrim.core.registry import RECOGNISERS, SpecError, settings_of, spec
from vitrim.core.tap import Tap
from vitrim.core.tokens import Attention

Criterion = Callable[[Tensor, Tensor], Tensor]


class Recogniser(nn.Module):
    """A vision transformer with a fine-grained way of recognising; made by :func:`recognise`.

    The keyword-only constructor arguments are the settings, each stored under its own name.

    Attributes:
        vit: the ``VisionTransformer`` of timm, without its classifier. Reductions and tuning methods go on it.
        head: the classifier.
        paper: where the method comes from.
        trained: names of the parts that stay trained when the backbone is frozen.
        reads_cls: whether the method reads the class token.
        inside: where the vision transformer is, for what asks to reduce or tune the recogniser itself.
    """

    spec_name: ClassVar[str]
    paper: ClassVar[str] = ""
    trained: ClassVar[tuple[str, ...]] = ("head",)
    reads_cls: ClassVar[bool] = True
    inside: ClassVar[str] = "vit"
    vit: Any
    head: Any

    def setup(self, vit: Any, classes: int) -> None:
        """Take the backbone in and create the parameters.

        Args:
            vit: the backbone; it loses its classifier, and what the method replaces.
            classes: number of classes.

        Raises:
            SpecError: for a model that the method cannot serve; the model is then as it was.
        """
        vit.reset_classifier(0)
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of ``images (B, channels, height, width)``."""
        raise NotImplementedError

    def loss(self, images: Tensor, target: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        """The loss of a batch, with all terms of the method, and its logits ``(B, classes)``."""
        logits = self(images)
        return criterion(logits, target), logits

    @property
    def compares_classes(self) -> bool:
        """Whether :meth:`loss` needs one class for each image, as an index: no mixed images, no several labels."""
        return False

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as given."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    def extra_repr(self) -> str:
        return spec(self)


def recognise(model: nn.Module, method: str | Recogniser, *, classes: int | None = None) -> Recogniser:
    """Make a recogniser of a vision transformer. The model becomes its backbone and loses its own classifier.

    Args:
        model: a ``VisionTransformer`` of timm with a class token.
        method: spec such as ``"transfg(stride=12)"``, or a :class:`Recogniser` that has not been set up.
        classes: number of classes; those of the model's own classifier when None.

    Returns:
        The recogniser, with the model at ``vit``. Reduce and tune that one, afterwards.

    Raises:
        SpecError: for a bad spec, or a model that the method cannot serve.
        TypeError: when ``method`` is neither a spec nor a recogniser.
        ValueError: for a model that is reduced or tuned already.
    """
    recogniser = RECOGNISERS.build(method)
    if not isinstance(recogniser, Recogniser):
        raise TypeError(f"method must be a spec or a Recogniser, got {type(recogniser).__name__}")
    fits(model, recogniser.reads_cls)
    classes = int(getattr(model, "num_classes", 0)) if classes is None else classes
    if classes < 1:
        raise SpecError("the model has no classifier that tells the number of classes; give classes=...")
    recogniser.setup(model, classes)
    return recogniser.train(model.training)


def backbone_of(model: Any) -> Any:
    """The vision transformer itself, which reductions and tuning methods go on: that inside a recogniser, or the model."""
    return model.vit if isinstance(model, Recogniser) else model


def fits(model: nn.Module, reads_cls: bool = True) -> None:
    """Refuse a model that no recogniser can serve, or none that reads the class token.

    Raises:
        SpecError: saying what is missing.
        ValueError: for a model that is reduced or tuned already.
    """
    name = type(model).__name__
    if "VisionTransformer" not in family_of(model, "timm"):
        raise SpecError(f"recognisers work on the VisionTransformer of timm, not on {name}; use timm.create_model('vit_...')")
    if reads_cls and getattr(model, "cls_token", None) is None:
        raise SpecError("recognisers read the class token, which this model does not have; choose one with class_token=True")
    if reads_cls and getattr(model, "attn_pool", None) is not None:
        raise SpecError("recognisers read the class token, and this model pools by attention; create it with global_pool='token'")
    if not isinstance(getattr(model, "patch_drop", nn.Identity()), nn.Identity):
        raise SpecError("recognisers need every patch in its place; create the model with patch_drop_rate=0")
    for kind, undo in (("reduction", "reduce"), ("tuning", "tune")):
        if hasattr(model, kind):
            raise ValueError(f"this model has a {kind} already; recognise first, then {undo} recogniser.vit")


def tokens(vit: Any, images: Tensor, cls: Tensor | None = None) -> Tensor:
    """The sequence ``(B, n, C)`` that enters the first block, with ``cls (1, 1, C)`` in place of the class token if given."""
    x = vit._pos_embed(vit.patch_embed(images))
    if cls is not None:
        place: Tensor | None = None if vit.no_embed_class else vit.pos_embed
        token = cls if place is None else cls + place[:, :1]
        x = torch.cat([vit.pos_drop(token.to(x.dtype).expand(len(x), -1, -1)), x[:, 1:]], dim=1)
    return vit.norm_pre(x)


def steps(vit: Any, x: Tensor, read: Container[int] = ()) -> Iterator[tuple[int, Tensor, Attention | None]]:
    """Run the blocks one by one, with whatever a reduction or a tuning method does in them.

    Args:
        vit: the backbone.
        x: what enters the first block, from :func:`tokens`.
        read: blocks whose attention is wanted.

    Yields:
        After each block its index, the tokens ``(B, n, C)``, and its attention, or None where it is not wanted. The attention
        is that of the tokens within the block, which a reduction there may have made fewer or is still to make fewer.

    Raises:
        RuntimeError: when a block does not call ``scaled_dot_product_attention``.
    """
    _refuse_a_head(vit)
    again = vit.grad_checkpointing and torch.is_grad_enabled()
    for layer, block in enumerate(vit.blocks):
        if layer not in read:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            yield layer, x, None
            continue
        calls: list[Attention] = []
        with Tap(calls, None):  # of any length; around the checkpoint, so that recomputing records nothing
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        if not calls:
            raise RuntimeError(
                f"block {layer} shows no attention: it must call scaled_dot_product_attention (timm.layers.set_fused_attn), "
                "without the masked softmax of DynamicViT in training"
            )
        calls[0].valid = _valid(vit, layer, calls[0].keys.shape[2])
        yield layer, x, calls[0]


def run(vit: Any, x: Tensor, read: Container[int] = ()) -> tuple[Tensor, list[Attention]]:
    """Run all blocks: the last tokens ``(B, n, C)``, and the attention of the blocks in ``read``; see :func:`steps`."""
    found: list[Attention] = []
    for _, after, attention in steps(vit, x, read):
        x = after
        if attention is not None:
            found.append(attention)
    return x, found


def final_norm(vit: Any, x: Tensor) -> Tensor:
    """The model's final norm, token by token, wherever it keeps it."""
    return vit.fc_norm(vit.norm(x))


def same_tokens(attentions: list[Attention], x: Tensor, method: str) -> None:
    """Refuse blocks that do not all attend to the tokens of ``x (B, n, C)``.

    Raises:
        RuntimeError: naming the numbers of tokens.
    """
    counts = [a.keys.shape[2] for a in attentions]
    if set(counts) != {x.shape[1]}:
        raise RuntimeError(
            f"{method} multiplies the attention of all blocks, which needs the same tokens in each, but they attend to {counts} "
            f"tokens and leave {x.shape[1]}; take the reduction, cache or prompts out, or use glsim"
        )


def grid_of(vit: Any, images: Tensor) -> tuple[int, int]:
    """Height and width of the patch grid of ``images``."""
    convolution = vit.patch_embed.proj
    height, width = (
        (side - kernel) // stride + 1
        for side, kernel, stride in zip(images.shape[-2:], convolution.kernel_size, convolution.stride, strict=True)
    )
    return height, width


def aggregator(vit: Any, how: str, width: int | None = None) -> nn.Module:
    """One more block of the model's own class.

    Args:
        vit: the backbone.
        how: ``random`` for fresh weights (as published), ``last`` for those of the model's last block.
        width: width of the tokens, with a head for every 64 channels; that of the model when None.

    Raises:
        SpecError: for another word, or a width that does not fit.
    """
    if how not in ("random", "last"):
        raise SpecError(f"init is random or last; got {how!r}")
    last: Any = vit.blocks[-1]
    if width is None or width == vit.embed_dim:
        block: nn.Module = copy.deepcopy(last)
    elif how == "last" or width % 64:
        raise SpecError(f"width={width} needs init=random and a multiple of 64; leave it out for that of the model")
    else:
        norm: Any = type(last.norm1)
        block = type(last)(width, width // 64, qkv_bias=True, norm_layer=lambda dim, **kw: norm(dim, eps=last.norm1.eps, **kw))
        block = on_device_of(vit, block)
    if how == "random":
        randomise(block)
    return block.requires_grad_(True)


def randomise(module: nn.Module) -> None:
    """The published start of new parts: Xavier-uniform linear layers with biases of N(0, 1e-6), the rest by its own rule."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - torch declares it a Tensor
                nn.init.normal_(part.bias, std=1e-6)
        elif callable(reset := getattr(part, "reset_parameters", None)):
            reset()


def classifier(vit: Any, dim: int, classes: int) -> nn.Linear:
    """A linear classifier that starts at zero."""
    head = nn.Linear(dim, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return on_device_of(vit, head)


def fresh_norm(vit: Any, dim: int) -> nn.Module:
    """A norm like the model's, with its eps, as it starts."""
    like = vit.norm if hasattr(vit.norm, "eps") else vit.blocks[-1].norm1
    return on_device_of(vit, type(like)(dim, eps=like.eps))


def on_device_of(vit: nn.Module, part: Any) -> Any:
    """The new part with device and dtype of the backbone."""
    like: Any = next(vit.parameters())
    return part.to(device=like.device, dtype=like.dtype)


def class_indices(target: Tensor, term: str) -> Tensor:
    """The target as class indices ``(B,)``, which losses between images need.

    Raises:
        ValueError: for soft targets.
    """
    if target.dim() != 1 or target.is_floating_point():
        raise ValueError(f"{term} compares classes and needs class indices as targets; switch mixup and cutmix off")
    return target


def engine_of(vit: Any) -> Reduction | None:
    """What runs the blocks of a reduced or tuned backbone, with its trace; None for a plain one."""
    if hasattr(vit, "reduction"):
        return vit.reduction
    return vit.tuning.engine if hasattr(vit, "tuning") and any(t.works_in_blocks for t in vit.tuning.tuners) else None


def _valid(vit: Any, layer: int, n: int) -> Tensor | None:
    """``(B, n)`` bool, False for padding that a ragged reduction left among the tokens that attend in block ``layer``."""
    reduction = engine_of(vit)
    if reduction is None:
        return None
    state = reduction.state_after(layer if reduction.site == "before" else layer - 1)
    return None if state is None or state.valid is None or state.valid.shape[1] != n else state.valid


def _refuse_a_head(vit: Any) -> None:
    reduction = engine_of(vit)
    if reduction is not None and reduction.head is not None:
        raise ValueError("a recogniser has a classifier of its own; reduce its backbone without head=")
