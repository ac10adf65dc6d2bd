"""A method at work in a model: how it is set up, and what its user sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vitrim.core.backbone import Backbone
from vitrim.core.cache import Cache, Head, Place
from vitrim.core.patch import Patch
from vitrim.core.planning import lengths, make_plan, warn_of_a_cap
from vitrim.core.reducer import Reducer
from vitrim.core.registry import SpecError, spec
from vitrim.core.running import AroundPatch, BlockPatch, Runner
from vitrim.core.schedule import START, Schedule
from vitrim.core.sites import inner_module, resolve_site
from vitrim.core.state import Memory, State
from vitrim.core.trace import Trace

if TYPE_CHECKING:
    from vitrim.core.tuning import Tuning


class Reduction(Runner):
    """A method at work in a model; made by :func:`vitrim.reduce`, found at ``model.reduction``.

    Attributes:
        stages: one reducer per reducing block; their parameters are the only ones that a reduction adds.
        schedule: the schedule.
        site: where the blocks reduce.
        layout: token layout of the model.
        depth: number of blocks.
        seed: seed of methods with randomness.
        cache: what carries tokens across blocks, or None.
        head: the classifier that reads several blocks, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        reducer: Reducer,
        schedule: Schedule,
        site: str | None = None,
        seed: int = 0,
        cache: Cache | None = None,
        head: Head | None = None,
        tuning: Tuning | None = None,
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
        if self.site == "around" and (cache is not None or head is not None):
            raise SpecError("a cache or a head works with the sites before, inside and after a block, not around a sub-module")
        self._memory = Memory()
        nominal = self.layout.grid[0] * self.layout.grid[1] if self.layout.grid else None
        locations = sorted(schedule.targets(nominal or 196, self.depth))
        self.cache, self.head = cache, head
        self._tuners = [] if tuning is None else [tuning]  # in a list, so that it is no sub-module
        self._set_up_plugins(model, locations)
        self._check_tuning(tuning, locations)
        # The attention of the block before a stage knows nothing of tokens that joined in between.
        blind = self.site == "before" and reducer.reads_attention
        protect = cache is not None and (cache.protect or reducer.carriers == "protected" or blind)
        self._protect = protect
        # The leading tokens that stay, and what joins the others: in the method's sight, or not.
        self._official = cache is not None and cache.compat == "official"
        unguarded = self._official and reducer.official_prefix == "class token"
        self.prefix = min(self.layout.prefix, 1) if unguarded else self.layout.prefix
        joins = {} if cache is None else dict(cache.joins())
        self._seen = Counter({START: self.layout.prefix - self.prefix})
        self._unseen = Counter({START: self.prefix})
        (self._unseen if protect else self._seen).update(joins)
        plan = self._make_plan(reducer, nominal or 196)
        if nominal:
            self._memory.plans[nominal] = plan
        layers = sorted(set(plan) | set(locations))
        self.layers = layers
        self._index = {layer: i for i, layer in enumerate(layers)}
        self._memory.states.update(dict.fromkeys(range(self.depth)))
        self._memory.steps.update(dict.fromkeys(layers))
        self._memory.groups.update(dict.fromkeys(range(self.depth)))
        self._memory.taps.update(dict.fromkeys(range(self.depth)))
        self._memory.guests.update(dict.fromkeys(range(self.depth)))
        self._memory.steps.update(dict.fromkeys(self._shrinking(nominal or 196)))
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
            self.to(device=reference.device, dtype=reference.dtype)
        self.train(model.training)
        self._positional = any(backbone.positional(block) for block in blocks)
        self._patches: list[Patch] = []
        if self.site == "around":
            for layer in layers:
                self._patches.append(AroundPatch(inner_module(blocks[layer], inner), layer, self))
        else:
            for layer, block in enumerate(blocks):
                halves = backbone.halves(block) if self.site == "inside" or tuning is not None else None
                self._patches.append(BlockPatch(block, layer, self, halves, backbone.positional(block)))
            self._patches += backbone.heads(model, self)
            if self.reading_head is not None:
                self._patches.append(backbone.classifier(model, self))
        if nominal:  # last, so that a refusal comes alone
            warn_of_a_cap(self.method, reducer, plan, schedule, nominal, self.depth, self._seen.total())
        self._idle: list[nn.Parameter] = []
        self._owner = [model]  # in a list, or the model would become a sub-module of its own sub-module

    # -- public ---------------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace:
        """The maps of the last forward pass, by block."""
        plan = self.plan(self._memory.patches) if self._memory.patches else {}
        plan = plan.keys() | self._shrinking(self._memory.patches)
        steps = {k: v for k, v in self._memory.steps.items() if v is not None and k in plan}
        joins = {} if self.cache is None else self.cache.joins()
        return Trace(steps, self.layout.prefix, joins)

    def plan(self, patches: int) -> dict[int, int]:
        """Patch tokens after each reducing block for an input of ``patches``; an upper bound for ragged methods."""
        if patches not in self._memory.plans:
            if "patch count" in self._reducer[0].needs:
                built = next(iter(self._memory.plans), None)
                raise ValueError(f"{self.method} has parameters for inputs of {built} patches; this one has {patches}")
            self._memory.plans[patches] = self._make_plan(self._reducer[0], patches)
        return self._memory.plans[patches]

    def _make_plan(self, reducer: Reducer, patches: int) -> dict[int, int]:
        return make_plan(reducer, self.schedule, patches, self.depth, self._joins(patches), self.site == "around")

    def _joins(self, patches: int) -> Counter[int]:
        """Tokens that join within the method's sight, by block; those that a tuner takes away count negative."""
        joins = Counter(self._seen)
        for layer, (_, before, after) in self._shrinking(patches).items():
            joins[layer] += after[0] * after[1] - before[0] * before[1]
        return joins

    def lengths(self, patches: int) -> list[tuple[int, int]]:
        """Sequence lengths ``(attention, mlp)`` of every block for an input of ``patches``, prefix included.

        Raises:
            ValueError: around a sub-module, where it depends on which one that is.
        """
        if self.site == "around":
            raise ValueError("lengths per block are known for the sites before, inside and after, not around a sub-module")
        return lengths(self.plan(patches), self.site, patches, self.depth, self._joins(patches), self._unseen)

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
        if self.reading_head is not None:
            # The model's own classifier is not run: DDP would wait for its gradients, optimisers decay it.
            model = self._owner[0]
            norm = self.backbone.final_norm(model) if self.reading_head.uses_norm else None
            used = set() if norm is None else {id(p) for p in norm.parameters()}
            self._idle = [p for p in self.backbone.idle_with_head(model) if p.requires_grad and id(p) not in used]
            for parameter in self._idle:
                parameter.requires_grad_(False)

    def detach(self) -> None:
        """Take the reduction out: the dense model again, bit for bit. A tuned model stays tuned."""
        for patch in reversed(self._patches):
            patch.remove()
        self._patches.clear()
        for parameter in self._idle:
            parameter.requires_grad_(True)
        self._idle.clear()
        for model in self._owner:
            if getattr(model, "reduction", None) is self:
                del model.reduction
                for tuning in self._tuners:
                    tuning.resume()
        self._owner.clear()

    @property
    def final(self) -> State | None:
        """The tokens after the last block of the last forward pass."""
        return self._memory.states.get(self.depth - 1)

    def state_after(self, layer: int) -> State | None:
        """The tokens after block ``layer`` in the last forward pass."""
        return self._memory.states.get(layer)

    def extra_repr(self) -> str:
        extras = "".join(
            f", {kind}={spec(part)}" for kind, part in (("cache", self.cache), ("head", self.head)) if part is not None
        )
        return f"{self.method}, {spec(self.schedule)}, site={self.site}{extras}"

    def _check_tuning(self, tuning: Tuning | None, locations: list[int]) -> None:
        """Refuse what a tuned model cannot have done to it."""
        if tuning is None:
            return
        if self.head is not None and tuning.head is not None:
            raise SpecError(f"{tuning.spec} has a classifier of its own; leave head= out")
        if self.site == "around":
            raise SpecError("a tuned model is reduced at the sites before, inside and after a block, not around a sub-module")
        late = 1 if self.site == "before" else 0  # a block that reduces before itself comes after the shrinking of the last
        for layer, (tuner, _, _) in (tuning.shrinks(self.layout.grid) if locations else {}).items():
            if locations[0] - late < layer or (locations[0] == layer and not late):
                raise SpecError(
                    f"{tuner.spec_name} makes the patch grid smaller after block {layer} and needs a token in every cell; "
                    f"let {self.method} reduce from block {layer + 1} on, as in share(rate=0.5, at=[{layer + 1}])"
                )

    def _set_up_plugins(self, model: nn.Module, locations: list[int]) -> None:
        if self.cache is None and self.head is None:
            return
        place = Place(
            self.layout.dim, self.depth, locations, self.layout.cls, self.backbone.class_token(model),
            self.backbone.embeds_prefix(model), self.backbone.classes(model), self.backbone.final_norm(model),
            self.layout.prefix, self.layout.grid,
        )  # fmt: skip
        for plugin in (self.cache, self.head):
            if plugin is not None:
                plugin.setup(place)
