"""The engine: runs the blocks of a model with a reducer between, before, after or around them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitrim.core.backbone import Backbone, Halves, Layout
from vitrim.core.cache import Cache, Head, join
from vitrim.core.hosting import TunedBlock, grid_of, padded
from vitrim.core.patch import Patch
from vitrim.core.reducer import Policy, Reducer
from vitrim.core.state import Memory, State
from vitrim.core.tap import Tap, key_bias
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention, Tokens
from vitrim.core.trace import Step
from vitrim.core.tuner import Arrangement, Grid, Tuner

if TYPE_CHECKING:
    from vitrim.core.tuning import Tuning


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
    _tuners: list[Tuning]
    _memory: Memory
    _index: dict[int, int]
    _positional: bool
    _protect: bool
    _official: bool
    _owner: list[nn.Module]

    def plan(self, patches: int) -> dict[int, int]:
        """Tokens after each reducing block for an input of ``patches``; an upper bound for ragged methods."""
        raise NotImplementedError

    @property
    def _tuning(self) -> Tuning | None:
        return self._tuners[0] if self._tuners else None

    @property
    def reading_head(self) -> Head | None:
        """The head that reads the blocks: the one given, or that of the tuning."""
        if self.head is None and self._tuning is not None:
            return self._tuning.head
        return self.head

    def _shrinking(self, patches: int) -> dict[int, tuple[Tuner, Grid, Grid]]:
        """The blocks after which a tuner makes the grid smaller, for an input of ``patches``."""
        return {} if self._tuning is None else self._tuning.shrinks(grid_of(self.layout, patches))

    def classify(self, pre_logits: bool = False) -> Tensor:
        """Logits ``(B, classes)`` of the head for the last forward pass, or the features ``(B, F)`` before its last layer.

        Raises:
            RuntimeError: when the blocks have not been run.
        """
        head = self.reading_head
        assert head is not None
        found = [self._memory.taps[layer] for layer in head.taps]
        taps = [tap for tap in found if tap is not None]
        if len(taps) != len(found):
            raise RuntimeError("the head reads the blocks, which have not been run; call the model from its input on")
        features = head.features(taps)
        return features if pre_logits else head.logits(features)

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
        inside = keep is not None and self.site == "inside"
        work = None if self._tuning is None else TunedBlock(self._tuning, layer, self.layout.prefix)
        halves = patch.halves if inside or (work is not None and work.beside) else None
        if work is not None:
            x = work.let_in(x, self._memory)
        out, attention = self._attend(patch, halves, work, x, state, reading, args, kwargs)
        x = out[0] if isinstance(out, tuple) else out
        if inside:
            x, state = self._step(layer, keep or 0, x, state, attention)
        if halves is not None:
            x = halves.mlp(patch.module, x, **({} if work is None else work.along("mlp", state)))
        if work is not None:
            x = work.let_out(x, state, self._memory)
        if keep is not None and self.site == "after":
            x, state = self._step(layer, keep, x, state, attention)
        if work is not None and layer in self._shrinking(state.patches):
            x, state = self._down_sample(work, x, state)
        wanted = attention if self.site == "before" else None
        if self.cache is not None:
            x, state = self._carry(self.cache, layer, x, state)
        head = self.reading_head
        if head is not None and layer in head.taps:
            self._memory.taps[layer] = head.take(
                layer, x, self.layout.cls, self._memory.guests[layer], state.mass(self.layout.prefix)
            )
        self._memory.states[layer] = replace(state, attention=wanted)
        return (x, *out[1:]) if isinstance(out, tuple) and halves is None else x

    def _attend(
        self, patch: BlockPatch, halves: Any, work: TunedBlock | None, x: Tensor, state: State, reading: bool,
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> tuple[Any, Attention | None]:  # fmt: skip
        """The attention half of a block, or all of it when it is not cut, and its attention when somebody reads that."""
        guests = x.shape[1] - state.n
        positions = state.positions if patch.positional else None
        if guests and patch.positional and positions is None:
            positions = torch.arange(state.n, device=x.device).expand(x.shape[0], state.n)
        positions = padded(positions, guests, 0)
        if positions is not None:
            index = positions[:, self.layout.prefix :] - self.layout.prefix
            neutral = self.cache is not None or bool(guests)
            args, kwargs = self.backbone.move_positions(args, kwargs, index, neutral)
        bias, policy = padded(state.bias, guests, 0.0), padded(state.policy, guests, 1.0)
        askers = 0 if work is None or not guests else work.askers(guests)
        if work is not None and halves is not None:
            kwargs = kwargs | work.along("attention", state)
        calls: list[Attention] = []
        if bias is None and policy is None and positions is None and not reading and not askers:
            if halves is None:
                return patch.original(x, *args, **kwargs), None
            return halves.attention(patch.module, x, *args, **kwargs), None
        with Tap(calls, x.shape[1], bias, policy, positions, padded(state.valid, guests, True), self._official, askers):
            out = patch.original(x, *args, **kwargs) if halves is None else halves.attention(patch.module, x, *args, **kwargs)
        if not calls:
            raise _no_attention_seen(patch.module)
        return out, calls[0] if reading else None

    def _down_sample(self, work: TunedBlock, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Let a tuner make the patch grid smaller."""
        tuner, before, after = self._shrinking(state.patches)[work.layer]
        n, m = before[0] * before[1], after[0] * after[1]
        y, answer = tuner.down_sample(work.layer, x, Arrangement(self.layout.prefix, before))
        answer = answer.with_prefix(self.layout.prefix).with_suffix(state.n - self.layout.prefix - n)
        size = torch.ones(y.shape[:2], device=y.device)
        self._memory.steps[work.layer] = Step(answer, size)
        positions, carried = state.positions, state.carried
        if self._positional:
            index = answer.representative()
            positions = index if positions is None else positions.gather(1, index)
        if carried is not None:
            carried = torch.cat([carried[:, : self.layout.prefix + m], carried[:, self.layout.prefix + n :]], dim=1)
        maps = (*state.maps, answer)
        window = None if state.window is None else min(state.window, y.shape[1])
        return y, replace(
            state, n=y.shape[1], maps=maps, whole=len(maps), grid=after, positions=positions, carried=carried, window=window
        )

    def run_around(self, patch: AroundPatch, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pool before a sub-module and lift after it."""
        patches = x.shape[1] - self.layout.prefix
        state = State(x.shape[1], patches, grid=grid_of(self.layout, patches))
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
            patches = self._memory.patches = x.shape[1] - self.layout.prefix
            state = State(x.shape[1], patches, grid=grid_of(self.layout, patches))
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
        size = torch.ones(x.shape[0], state.n, device=x.device) if state.size is None else state.size
        n = state.n - state.suffix
        guests = x.shape[1] - state.n
        tokens = Tokens(
            x[:, :n], size[:, :n], prefix, self.layout.cls, state.grid, layer, self.depth, _first(state.valid, n),
            _first(state.policy, n), self.training, self.seed, None if attention is None else attention.first(n), state.maps,
            _first(state.carried, n),
        )  # fmt: skip
        answer = stage(tokens, keep)
        if isinstance(answer, Policy):
            same = TokenMap.identity(x.shape[0], state.n, x.device)
            policy = torch.nn.functional.pad(answer.keep, (0, state.suffix), value=1.0)
            self._memory.steps[layer] = Step(same, size, policy)
            return x, replace(state, policy=policy)
        every = answer.with_suffix(state.suffix + guests)
        answer = answer.with_suffix(state.suffix)
        source = x
        if type(stage).value is not Reducer.value:
            source = torch.cat([x[:, :prefix], stage.value(x[:, prefix:n]), x[:, n:]], dim=1)
        y = every.pool(source, mass=padded(size, guests, 1.0) if self.weighted else None)
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
            suffix=state.suffix, window=state.window, carried=carried, grid=state.grid, whole=state.whole,
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
