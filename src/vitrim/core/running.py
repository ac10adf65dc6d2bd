"""The engine: runs the blocks of a model with a reducer between, before, after or around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.backbone import Backbone, Halves, Layout
from vitrim.core.cache import Cache, Head, join
from vitrim.core.patch import Patch
from vitrim.core.reducer import Policy, Reducer
from vitrim.core.state import Memory, State
from vitrim.core.tap import Tap, key_bias
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention, Tokens
from vitrim.core.trace import Step


class Runner(nn.Module):
    """The forward pass of a :class:`vitrim.core.reduction.Reduction`, which sets all of this up.

    Attributes:
        prefix: leading tokens that the method leaves alone.
    """

    backbone: Backbone
    layout: Layout
    site: str
    depth: int
    seed: int
    prefix: int
    proportional: bool
    weighted: bool
    reads_attention: bool
    stages: nn.ModuleList
    cache: Cache | None
    head: Head | None
    _memory: Memory
    _index: dict[int, int]
    _positional: bool
    _protect: bool
    _official: bool
    _owner: list[nn.Module]

    def plan(self, patches: int) -> dict[int, int]:
        """Tokens after each reducing block for an input of ``patches``; an upper bound for ragged methods."""
        raise NotImplementedError

    def classify(self, pre_logits: bool = False) -> Tensor:
        """Logits ``(B, classes)`` of the head for the last forward pass, or the features ``(B, F)`` before its last layer.

        Raises:
            RuntimeError: when the blocks have not been run.
        """
        assert self.head is not None
        found = [self._memory.taps[layer] for layer in self.head.taps]
        taps = [tap for tap in found if tap is not None]
        if len(taps) != len(found):
            raise RuntimeError("the head reads the blocks, which have not been run; call the model from its input on")
        features = self.head.features(taps)
        return features if pre_logits else self.head.logits(features)

    def run_block(self, patch: BlockPatch, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one block with whatever happens before, inside and after it."""
        layer = patch.layer
        x, state = self._enter(layer, x)
        keep = self.plan(state.patches).get(layer)
        if keep is not None and self.site == "before":
            entered = state
            x, state = self._step(layer, keep, x, state, state.attention)
            if layer and not torch.is_grad_enabled():
                # Queries, keys and values of the block before have done their work; a recomputation would need them again.
                self._memory.states[layer - 1] = replace(entered, attention=None)
        reading = self.reads_attention and self._reads_at(layer, state.patches)
        halves = patch.halves if keep is not None and self.site == "inside" else None
        bias = state.bias
        positions = state.positions if patch.positional else None
        if positions is not None:
            index = positions[:, self.layout.prefix :] - self.layout.prefix
            args, kwargs = self.backbone.move_positions(args, kwargs, index, self.cache is not None)
        calls: list[Attention] = []
        if halves is None and bias is None and state.policy is None and positions is None and not reading:
            out = patch.original(x, *args, **kwargs)
        else:
            with Tap(calls, state.n, bias, state.policy, positions, state.valid, self._official):
                out = patch.original(x, *args, **kwargs) if halves is None else halves.attention(patch.module, x, *args, **kwargs)
            if not calls:
                raise _no_attention_seen(patch.module)
        attention = calls[0] if reading else None
        x = out[0] if isinstance(out, tuple) else out
        if keep is not None and self.site != "before":
            x, state = self._step(layer, keep, x, state, attention)
        if halves is not None:
            x = halves.mlp(patch.module, x)
        wanted = attention if self.site == "before" else None
        if self.cache is not None:
            x, state = self._carry(self.cache, layer, x, state)
        if self.head is not None and layer in self.head.taps:
            self._memory.taps[layer] = x[:, self.layout.cls or 0].clone()  # a view would hold the whole sequence
        self._memory.states[layer] = replace(state, attention=wanted)
        return (x, *out[1:]) if isinstance(out, tuple) and halves is None else x

    def run_around(self, patch: AroundPatch, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pool before a sub-module and lift after it."""
        state = State(x.shape[1], x.shape[1] - self.layout.prefix)
        keep = self.plan(state.patches).get(patch.layer)
        self._memory.patches = state.patches
        if keep is None:
            return patch.original(x, *args, **kwargs)
        pooled, state = self._step(patch.layer, keep, x, state, None)
        out = patch.original(pooled, *args, **kwargs)
        y = out[0] if isinstance(out, tuple) else out
        lifted = state.maps[-1].lift(y)
        return (lifted, *out[1:]) if isinstance(out, tuple) else lifted

    def _enter(self, layer: int, x: Tensor) -> tuple[Tensor, State]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._memory.guard(layer, x)
        if layer == 0:
            self._memory.patches = x.shape[1] - self.layout.prefix
            state = State(x.shape[1], x.shape[1] - self.layout.prefix)
            tokens = None if self.cache is None else self.cache.start()
            if self.cache is not None and tokens is not None:
                tokens = self.backbone.embed(self._owner[0], tokens.expand(x.shape[0], -1, -1))
                x, state = join(x, state, tokens, protect=self._protect, positional=self._positional)
            if self.cache is not None:
                marks = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if self._official else None
                state = replace(state, window=self.cache.window(state.n), carried=marks)
            return x, state
        state = self._memory.states.get(layer - 1)
        if state is None:
            raise RuntimeError(f"block {layer} was run without block {layer - 1} before it; run the model from its first block")
        if state.n != x.shape[1]:
            raise RuntimeError(
                f"block {layer} got {x.shape[1]} tokens where block {layer - 1} left {state.n}; with gradient checkpointing, run "
                "backward before the next forward pass"
            )
        return x, state

    def _carry(self, cache: Cache, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """What the cache does after block ``layer``: put tokens back, then take a new group."""
        groups = self._memory.groups
        # Two steps: Dynamo cannot trace an assignment within a comprehension.
        cached = [groups[i] for i in cache.returning(layer)]
        back = [group for group in cached if group is not None]
        if back:
            state = replace(state, window=state.n)
            tokens = torch.cat(back, dim=1)
            x, state = join(x, state, tokens, protect=self._protect, positional=self._positional)
        if cache.collects(layer):
            groups[layer] = cache.collect(x, state)
        return x, state

    def _reads_at(self, layer: int, patches: int) -> bool:
        return (layer + 1 if self.site == "before" else layer) in self.plan(patches)

    def _step(self, layer: int, keep: int, x: Tensor, state: State, attention: Attention | None) -> tuple[Tensor, State]:
        stage: Any = self.stages[self._index[layer]]
        prefix = self.prefix
        size = torch.ones(x.shape[:2], device=x.device) if state.size is None else state.size
        grid = self.layout.grid
        if grid is None or grid[0] * grid[1] != state.patches:
            side = int(state.patches**0.5)
            grid = (side, side) if side * side == state.patches else None
        n = state.n - state.suffix
        tokens = Tokens(
            x[:, :n], size[:, :n], prefix, self.layout.cls, grid, layer, self.depth, _first(state.valid, n),
            _first(state.policy, n), self.training, self.seed, None if attention is None else attention.first(n), state.maps,
            _first(state.carried, n),
        )  # fmt: skip
        answer = stage(tokens, keep)
        if isinstance(answer, Policy):
            same = TokenMap.identity(x.shape[0], x.shape[1], x.device)
            policy = torch.nn.functional.pad(answer.keep, (0, state.suffix), value=1.0)
            self._memory.steps[layer] = Step(same, size, policy)
            return x, replace(state, policy=policy)
        answer = answer.with_suffix(state.suffix)
        source = x
        if type(stage).value is not Reducer.value:
            source = torch.cat([x[:, :prefix], stage.value(x[:, prefix:n]), x[:, n:]], dim=1)
        y = answer.pool(source, mass=size if self.weighted else None)
        maps = (*state.maps, answer.detach())
        step = Step(maps[-1], maps[-1].mass(size))
        self._memory.steps[layer] = step
        positions = state.positions
        # A selection of all tokens leaves them where they are; anything else may have moved them, also at equal number.
        if self._positional and not (answer.source is not None and answer.m == state.n):
            index = answer.representative()
            positions = index if state.positions is None else state.positions.gather(1, index)
        bias = key_bias(step.size if self.proportional else None, answer.valid)
        carried = None if state.carried is None or answer.source is None else state.carried.gather(1, answer.source)
        return y, State(
            answer.m, state.patches, step.size, answer.valid, bias, maps=maps, positions=positions,
            suffix=state.suffix, window=state.window, carried=carried,
        )  # fmt: skip


class BlockPatch(Patch):
    """The forward of one block, under the engine."""

    def __init__(self, block: nn.Module, layer: int, reduction: Runner, halves: type[Halves] | None, positional: bool) -> None:
        super().__init__(block)
        self.layer = layer
        self.reduction = reduction
        self.halves = halves
        self.positional = positional

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block; arguments as the block's own forward."""
        return self.reduction.run_block(self, x, args, kwargs)


class AroundPatch(Patch):
    """The forward of a sub-module on fewer tokens: pool before, lift after."""

    def __init__(self, module: nn.Module, layer: int, reduction: Runner) -> None:
        super().__init__(module)
        self.layer = layer
        self.reduction = reduction

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the sub-module; arguments as its own forward."""
        return self.reduction.run_around(self, x, args, kwargs)


def _first(of: Tensor | None, n: int) -> Tensor | None:
    return None if of is None else of[:, :n]


def _no_attention_seen(block: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"no call of scaled_dot_product_attention was seen in {type(block).__module__}.{type(block).__name__}; switch the "
        "model to it: fused_attn=True in timm (timm.layers.set_fused_attn), attn_implementation='sdpa' in transformers"
    )
