"""The engine: runs the blocks of a model with a reducer between, before, after or around them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.backbone import Backbone, Halves
from vitrim.core.patch import Patch
from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import SpecError, spec
from vitrim.core.schedule import Counts, R, Schedule
from vitrim.core.sites import inner_module, resolve_site
from vitrim.core.state import Memory, State
from vitrim.core.tap import Tap, key_bias
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention, Tokens
from vitrim.core.trace import Step, Trace


class Reduction(nn.Module):
    """A method at work in a model; made by :func:`vitrim.reduce`, found at ``model.reduction``.

    Attributes:
        stages: one reducer per reducing block; their parameters are the only ones that a reduction adds.
        schedule: the schedule.
        site: where the blocks reduce.
        layout: token layout of the model.
        depth: number of blocks.
        seed: seed of methods with randomness.
    """

    def __init__(
        self, model: nn.Module, backbone: Backbone, reducer: Reducer, schedule: Schedule, site: str | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        blocks = backbone.blocks(model)
        self.backbone = backbone
        self.layout = backbone.layout(model)
        self.schedule = schedule
        self.depth = len(blocks)
        self.seed = seed
        self.method = spec(reducer)
        self._reducer = [reducer.fresh()]  # for planning; in a list, so that it is no sub-module
        self.site, inner = resolve_site(site or reducer.site, backbone, blocks)
        self._memory = Memory()
        nominal = self.layout.grid[0] * self.layout.grid[1] if self.layout.grid else None
        plan = self._make_plan(reducer, nominal or 196)
        if nominal:
            self._memory.plans[nominal] = plan
        layers = sorted(set(plan) | set(schedule.targets(nominal or 196, self.depth)))
        self.layers = layers
        self._index = {layer: i for i, layer in enumerate(layers)}
        self._memory.states.update(dict.fromkeys(range(self.depth)))
        self._memory.steps.update(dict.fromkeys(layers))
        if self.site == "before" and reducer.reads_attention and 0 in self._index:
            raise SpecError(f"{self.method} reads the attention of the block before; block 0 has none: start at block 1")
        if self.site == "around" and reducer.reads_attention:
            raise SpecError(f"{self.method} reads attention, which is not there yet around a module; use metric=tokens")
        self.proportional = reducer.proportional
        self.weighted = reducer.weighted
        self.reads_attention = reducer.reads_attention
        self.stages = nn.ModuleList()
        for layer in layers:
            stage = reducer.fresh()
            if "patch count" in stage.needs and nominal is None:
                raise SpecError(f"{self.method} has parameters for one number of patches; this model takes any image size")
            stage.setup(self.layout.dim, plan.get(layer, 1))
            self.stages.append(stage)
        reference = next(model.parameters(), None)
        if reference is not None:
            self.stages.to(device=reference.device, dtype=reference.dtype)
        self.train(model.training)
        self._positional = any(backbone.positional(block) for block in blocks)
        self._patches: list[Patch] = []
        if self.site == "around":
            for layer in layers:
                self._patches.append(AroundPatch(inner_module(blocks[layer], inner), layer, self))
        else:
            for layer, block in enumerate(blocks):
                halves = backbone.halves(block) if self.site == "inside" else None
                self._patches.append(BlockPatch(block, layer, self, halves, backbone.positional(block)))
            self._patches += backbone.heads(model, self)
        if nominal:  # last, so that a refusal comes alone
            _warn_of_a_cap(self.method, reducer, plan, schedule, nominal, self.depth)
        self._owner = [model]  # in a list, or the model would become a sub-module of its own sub-module

    # -- public ---------------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The maps of the last forward pass, by block."""
        plan = self.plan(self._memory.patches) if self._memory.patches else {}
        return Trace({k: v for k, v in self._memory.steps.items() if v is not None and k in plan}, self.layout.prefix)

    def plan(self, patches: int) -> dict[int, int]:
        """Patch tokens after each reducing block for an input of ``patches``; an upper bound for ragged methods."""
        if patches not in self._memory.plans:
            if "patch count" in self._reducer[0].needs:
                built = next(iter(self._memory.plans), None)
                raise ValueError(f"{self.method} has parameters for inputs of {built} patches; this one has {patches}")
            self._memory.plans[patches] = self._make_plan(self._reducer[0], patches)
        return self._memory.plans[patches]

    def _make_plan(self, reducer: Reducer, patches: int) -> dict[int, int]:
        if self.site != "around":
            return reducer.plan(self.schedule, patches, self.depth)
        # Every block starts from all tokens again: each has a plan of its own.
        targets = self.schedule.targets(patches, self.depth)
        if isinstance(self.schedule, R):
            removals = self.schedule.removals(self.depth)
            targets = {block: patches - removals[block] for block in targets}
        counts: dict[int, int] = {}
        for block, target in targets.items():
            counts |= reducer.plan(Counts([max(target, 1)], at=[block]), patches, self.depth)
        return counts

    def lengths(self, patches: int) -> list[tuple[int, int]]:
        """Sequence lengths ``(attention, mlp)`` of every block for an input of ``patches``, prefix included.

        Raises:
            ValueError: around a sub-module, where it depends on which one that is.
        """
        if self.site == "around":
            raise ValueError("lengths per block are known for the sites before, inside and after, not around a sub-module")
        plan, now, rows = self.plan(patches), patches, []
        for layer in range(self.depth):
            after = plan.get(layer, now)
            seen = after if self.site == "before" else now
            done = now if self.site == "after" else after
            rows.append((seen + self.layout.prefix, done + self.layout.prefix))
            now = after
        return rows

    def load_learned(self, weights: Mapping[str, Tensor]) -> bool:
        """Load the learned part if ``weights`` hold all of it, by the names of :meth:`state_dict`.

        The weights may hold the parts of several methods: their names differ.

        Returns:
            Whether nothing is left untrained; True for methods without parameters.
        """
        wanted = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if not all(name in weights and weights[name].shape == shape for name, shape in wanted.items()):
            return False
        self.load_state_dict({name: weights[name] for name in wanted})
        return True

    def attach(self) -> None:
        """Put the reduction over the blocks; :func:`vitrim.reduce` does."""
        for patch in self._patches:
            patch.install()

    def detach(self) -> None:
        """Take the reduction out: the dense model again, bit for bit."""
        for patch in reversed(self._patches):
            patch.remove()
        self._patches.clear()
        for model in self._owner:
            if getattr(model, "reduction", None) is self:
                del model.reduction
        self._owner.clear()

    def extra_repr(self) -> str:
        return f"{self.method}, {spec(self.schedule)}, site={self.site}"

    # -- engine ---------------------------------------------------------------------------------------------------

    @property
    def final(self) -> State | None:
        """The tokens after the last block of the last forward pass."""
        return self._memory.states.get(self.depth - 1)

    def state_after(self, layer: int) -> State | None:
        """The tokens after block ``layer`` in the last forward pass."""
        return self._memory.states.get(layer)

    def run_block(self, patch: BlockPatch, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one block with whatever happens before, inside and after it."""
        layer = patch.layer
        state = self._enter(layer, x)
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
            args, kwargs = self.backbone.move_positions(args, kwargs, positions[:, self.layout.prefix :] - self.layout.prefix)
        calls: list[Attention] = []
        if halves is None and bias is None and state.policy is None and positions is None and not reading:
            out = patch.original(x, *args, **kwargs)
        else:
            with Tap(calls, state.n, bias, state.policy, positions, state.valid):
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

    def _enter(self, layer: int, x: Tensor) -> State:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._memory.guard(layer, x)
        if layer == 0:
            self._memory.patches = x.shape[1] - self.layout.prefix
            return State(x.shape[1], x.shape[1] - self.layout.prefix)
        state = self._memory.states.get(layer - 1)
        if state is None:
            raise RuntimeError(f"block {layer} was run without block {layer - 1} before it; run the model from its first block")
        if state.n != x.shape[1]:
            raise RuntimeError(
                f"block {layer} got {x.shape[1]} tokens where block {layer - 1} left {state.n}; with gradient checkpointing, run "
                "backward before the next forward pass"
            )
        return state

    def _reads_at(self, layer: int, patches: int) -> bool:
        return (layer + 1 if self.site == "before" else layer) in self.plan(patches)

    def _step(self, layer: int, keep: int, x: Tensor, state: State, attention: Attention | None) -> tuple[Tensor, State]:
        stage: Any = self.stages[self._index[layer]]
        prefix = self.layout.prefix
        size = torch.ones(x.shape[:2], device=x.device) if state.size is None else state.size
        grid = self.layout.grid
        if grid is None or grid[0] * grid[1] != state.patches:
            side = int(state.patches**0.5)
            grid = (side, side) if side * side == state.patches else None
        tokens = Tokens(
            x, size, prefix, self.layout.cls, grid, layer, self.depth, state.valid, state.policy, self.training, self.seed,
            attention, state.maps,
        )  # fmt: skip
        answer = stage(tokens, keep)
        if isinstance(answer, Policy):
            same = TokenMap.identity(x.shape[0], x.shape[1], x.device)
            self._memory.steps[layer] = Step(same, size, answer.keep)
            return x, replace(state, policy=answer.keep)
        source = x
        if type(stage).value is not Reducer.value:
            source = torch.cat([x[:, :prefix], stage.value(x[:, prefix:])], dim=1)
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
        return y, State(answer.m, state.patches, step.size, answer.valid, bias, maps=maps, positions=positions)


class BlockPatch(Patch):
    """The forward of one block, under the engine."""

    def __init__(self, block: nn.Module, layer: int, reduction: Reduction, halves: type[Halves] | None, positional: bool) -> None:
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

    def __init__(self, module: nn.Module, layer: int, reduction: Reduction) -> None:
        super().__init__(module)
        self.layer = layer
        self.reduction = reduction

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the sub-module; arguments as its own forward."""
        return self.reduction.run_around(self, x, args, kwargs)


def _warn_of_a_cap(method: str, reducer: Reducer, plan: dict[int, int], schedule: Schedule, patches: int, depth: int) -> None:
    """Say so when a method keeps far more tokens than the schedule asks for, as ToMe does at low rates."""
    if reducer.family == "fixed" or isinstance(schedule, R):
        return
    for block, target in schedule.targets(patches, depth).items():
        kept = plan.get(block, patches)
        if kept > 1.5 * target + 1:
            counts = ", ".join(str(count) for count in plan.values())
            warnings.warn(
                f"{method} cannot remove so many tokens: block {block} keeps {kept} where {spec(schedule)} asks for {target}; "
                f"counts are {counts}. Reduce at more blocks, or choose a method without this limit, such as atc",
                stacklevel=4,
            )
            return


def _no_attention_seen(block: nn.Module) -> RuntimeError:
    return RuntimeError(
        f"no call of scaled_dot_product_attention was seen in {type(block).__module__}.{type(block).__name__}; switch the "
        "model to it: fused_attn=True in timm (timm.layers.set_fused_attn), attn_implementation='sdpa' in transformers"
    )
