"""A method at work in a model: how it is set up, and what its user sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

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
        self._set_up_plugins(model, locations)
        # The attention of the block before a stage knows nothing of tokens that joined in between.
        blind = self.site == "before" and reducer.reads_attention
        protect = cache is not None and (cache.protect or reducer.carriers == "protected" or blind)
        self._protect = protect
        # The leading tokens that stay, and what joins the others: in the method's sight, or not.
        self._official = cache is not None and cache.compat == "official"
        unguarded = self._official and reducer.official_prefix == "class token"
        self.prefix = min(self.layout.prefix, 1) if unguarded else self.layout.prefix
        joins = {} if cache is None else dict(cache.joins())
        self._seen = Counter({START: self.layout.prefix - self.prefix}) + Counter({} if protect else joins)
        self._unseen = Counter({START: self.prefix}) + Counter(joins if protect else {})
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
                halves = backbone.halves(block) if self.site == "inside" else None
                self._patches.append(BlockPatch(block, layer, self, halves, backbone.positional(block)))
            self._patches += backbone.heads(model, self)
            if head is not None:
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
        return make_plan(reducer, self.schedule, patches, self.depth, self._seen, self.site == "around")

    def lengths(self, patches: int) -> list[tuple[int, int]]:
        """Sequence lengths ``(attention, mlp)`` of every block for an input of ``patches``, prefix included.

        Raises:
            ValueError: around a sub-module, where it depends on which one that is.
        """
        if self.site == "around":
            raise ValueError("lengths per block are known for the sites before, inside and after, not around a sub-module")
        return lengths(self.plan(patches), self.site, patches, self.depth, self._seen, self._unseen)

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
        if self.head is not None:
            # The model's own classifier is not run: DDP would wait for its gradients, optimisers decay it.
            self._idle = [p for p in self.backbone.idle_with_head(self._owner[0]) if p.requires_grad]
            for parameter in self._idle:
                parameter.requires_grad_(False)

    def detach(self) -> None:
        """Take the reduction out: the dense model again, bit for bit."""
        for patch in reversed(self._patches):
            patch.remove()
        self._patches.clear()
        for parameter in self._idle:
            parameter.requires_grad_(True)
        self._idle.clear()
        for model in self._owner:
            if getattr(model, "reduction", None) is self:
                del model.reduction
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

    def _set_up_plugins(self, model: nn.Module, locations: list[int]) -> None:
        if self.cache is None and self.head is None:
            return
        place = Place(
            self.layout.dim, self.depth, locations, self.layout.cls, self.backbone.class_token(model),
            self.backbone.embeds_prefix(model), self.backbone.classes(model),
        )  # fmt: skip
        for plugin in (self.cache, self.head):
            if plugin is not None:
                plugin.setup(place)
