"""Reads a vision transformer block by block while it runs: tokens, attention, and the maps that lead back to the patches."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vitrim.analysis.course import Course
from vitrim.analysis.layer import Layer
from vitrim.core.backbone import find_backbone
from vitrim.core.tap import Tap
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention


class Reader:
    """Runs a model and shows every block to a visitor, so that no more than one block is held.

    Works on models of every backbone, reduced by :func:`vitrim.reduce` or not. Attention is what
    ``scaled_dot_product_attention`` computes there, biases included.

    Args:
        model: the model.
        attention: read attention too.

    Raises:
        ValueError: for a model whose patch grid is not known before it runs.
    """

    def __init__(self, model: nn.Module, attention: bool = True) -> None:
        backbone = find_backbone(model)
        self.model = model
        self.blocks = backbone.blocks(model)
        self.layout = backbone.layout(model)
        self.depth = len(self.blocks)
        self._reads = attention
        self._norm: Any = getattr(model, "norm", None)
        self.final: Tensor | None = None
        self.origin: TokenMap | None = None

    def run(self, images: Tensor, visit: Callable[[Layer], object]) -> Any:
        """Run a batch and call ``visit`` after every block.

        Args:
            images: ``(B, C, H, W)``, as the model takes them.
            visit: gets each :class:`Layer`, while the model waits. What it does not keep is freed.

        Returns:
            What the model returned. ``final`` holds the tokens ``(B, n, C)`` after the model's norm then, ``origin`` their map.

        Raises:
            RuntimeError: when a block does not call ``scaled_dot_product_attention``.
            ValueError: when the number of tokens changed and no map says how.
        """
        calls: list[Attention] = []
        course = Course(self.model, self.layout.prefix, self.layout.grid)
        self.final = self.origin = None

        def before(module: nn.Module, inputs: Any, keywords: Any) -> None:  # noqa: ARG001 - the signature of PyTorch
            calls.clear()
            course.enter(inputs[0] if inputs else keywords["x"])

        def after(layer: int) -> Callable[..., None]:
            def take(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001 - the signature of PyTorch
                x = output[0] if isinstance(output, tuple) else output
                if self._reads and not calls:
                    raise _no_attention_seen(module)
                call = calls[0] if calls else None
                step = course.attend(layer, None if call is None else call.keys.shape[2])
                attended = course.attended
                seen = None if call is None else _exact(call, course.guests_first, attended)
                calls.clear()
                origin = self.origin = course.leave(layer, x.shape[1])
                layout = self.layout
                visit(Layer(layer, x.detach(), origin, seen, attended, step, layout.prefix, layout.cls, course.grid))

            return take

        def end(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001 - the signature of PyTorch
            self.final = output.detach()

        hooks: list[Any] = [self.blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
        hooks += [block.register_forward_hook(after(i)) for i, block in enumerate(self.blocks)]
        hooks += [self._norm.register_forward_hook(end)] if isinstance(self._norm, nn.Module) else []
        try:
            with _watch(calls if self._reads else None):
                return self.model(images)
        finally:
            for hook in hooks:
                hook.remove()


class _Watch(Tap):
    """A tap that takes attention over any number of tokens, and changes nothing."""

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Some tokens may only ask (VQT); fewer queries than keys are no self-attention (pooled heads).
        self.length = key.shape[-2] if query.shape[-2] >= key.shape[-2] else -1
        return super()._attend(query, key, value, *args, **kwargs)


@contextmanager
def _watch(calls: list[Attention] | None) -> Generator[None]:
    if calls is None:
        yield
        return
    with _Watch(calls, -1):
        yield


def _exact(seen: Attention, guests_first: bool, attended: TokenMap | None) -> Attention:
    """The same in float32, so that weights are not rounded to the precision of the model; without queries that are no keys."""
    asks, n = seen.queries.shape[2], seen.keys.shape[2]
    own = slice(asks - n, None) if guests_first else slice(n)
    bias = None if seen.bias is None else seen.bias.detach().float()
    bias = bias if bias is None or bias.shape[-2] == 1 else bias[..., own, :]
    parts = [part.detach().float() for part in (seen.queries[:, :, own], seen.keys, seen.values)]
    return Attention(parts[0], parts[1], parts[2], seen.scale, bias, None if attended is None else attended.valid)


def _no_attention_seen(block: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"no call of scaled_dot_product_attention was seen in {type(block).__module__}.{type(block).__name__}; switch the model "
        "to it: fused_attn=True in timm (timm.layers.set_fused_attn, no TIMM_FUSED_ATTN=0)"
    )
