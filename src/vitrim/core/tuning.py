"""Tuning methods at work in a model: what is frozen, what is trained, and how the trained part is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.backbone import Backbone
from vitrim.core.cache import Head
from vitrim.core.parts import parameters_of
from vitrim.core.patch import Patch
from vitrim.core.recompute import recomputed
from vitrim.core.reducer import KeepAll
from vitrim.core.reduction import Reduction
from vitrim.core.registry import SpecError, spec
from vitrim.core.schedule import R
from vitrim.core.tuner import Arrangement, Grid, Ground, Half, Tuner


class Tuning(nn.Module):
    """Tuning methods at work in a model; made by :func:`vitrim.tune`, found at ``model.tuning``.

    Every tuner is a sub-module under its own name: the parameters that it adds are at ``tuning.NAME.*``.

    Attributes:
        tuners: the methods at work, in order; a combination such as ILA++ counts as its parts.
        parts: parts of the model itself that are trained besides.
        ground: the model.
        recompute: the backward pass computes the hidden layers of the MLPs again.
    """

    def __init__(
        self, model: nn.Module, backbone: Backbone, tuners: Sequence[Tuner], parts: Sequence[str], recompute: bool = False
    ) -> None:
        super().__init__()
        # In a list, or the model would become a sub-module of its own sub-module.
        self._ground = [Ground(model, backbone, backbone.layout(model), backbone.blocks(model))]
        self.parts = tuple(parts)
        self.recompute = recompute
        self._given = list(tuners)  # plain lists: the modules are registered under their names
        self.tuners = [part for tuner in tuners for part in tuner.expand()]
        self._refuse_doubles()
        for tuner in self.tuners:
            tuner.setup(self.ground)
            self.add_module(tuner.spec_name, tuner)
        self._own = set().union(*(parameters_of(self.ground, part) for part in parts))
        self._own = self._own.union(*(tuner.trained(self.ground) for tuner in self.tuners))
        self._check()
        self._hosts = [tuner for tuner in self.tuners if self._brings_guests(tuner)]
        self._shrinks: dict[Grid | None, dict[int, tuple[Tuner, Grid, Grid]]] = {}
        reference = next(model.parameters(), None)
        if reference is not None:
            self.to(device=reference.device, dtype=reference.dtype)
        self.train(model.training)
        self._patches: list[Patch] = []
        self._frozen: dict[str, bool] = {}
        self._engine: list[Reduction] = []

    # -- public ---------------------------------------------------------------------------------------------------

    @property
    def ground(self) -> Ground:
        """The model that is tuned, and how it is read.

        Raises:
            RuntimeError: after :meth:`detach`.
        """
        if not self._ground:
            raise RuntimeError("this tuning has been detached; tune the model again")
        return self._ground[0]

    @property
    def spec(self) -> str:
        """The methods as text, which :func:`vitrim.tune` takes."""
        return " + ".join(spec(tuner) for tuner in self._given)

    def trained(self) -> dict[str, nn.Parameter]:
        """All parameters that are trained, by their names in the model."""
        return {name: p for name, p in self.ground.model.named_parameters() if p.requires_grad}

    def count(self) -> tuple[int, int]:
        """Number of trained parameters, and of all parameters."""
        every = list(self.ground.model.parameters())
        return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)

    def state(self) -> dict[str, Tensor]:
        """What the tuning has learned: trained parameters of the model, and all tensors of the tuners, by their names."""
        tensors = {name: p.detach() for name, p in self.ground.model.named_parameters() if name in self._own}
        return tensors | {f"tuning.{name}": tensor.detach() for name, tensor in self.state_dict().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` of an equal tuning gave.

        Raises:
            ValueError: when names or shapes differ; nothing is changed then.
        """
        targets = {n: p for n, p in self.ground.model.named_parameters() if n in self._own}
        own: dict[str, Tensor] = {f"tuning.{n}": t for n, t in self.state_dict(keep_vars=True).items()}
        wanted = {**targets, **own}
        lost, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
        if lost or extra:
            shown = ", ".join(([f"'{lost[0]}' is missing"] if lost else []) + ([f"'{extra[0]}' is unknown"] if extra else []))
            raise ValueError(f"these weights are of another tuning ({shown}); tune the model as it was when they were saved")
        for name, target in wanted.items():
            if target.shape != tensors[name].shape:
                got, want = tuple(tensors[name].shape), tuple(target.shape)
                raise ValueError(f"'{name}' has shape {got}, this model wants {want}; tune the model that they were saved from")
        with torch.no_grad():
            for name, target in wanted.items():
                target.copy_(tensors[name])

    def attach(self) -> None:
        """Freeze the model and put the methods to work; :func:`vitrim.tune` does."""
        model = self.ground.model
        self._frozen = {name: p.requires_grad for name, p in model.named_parameters() if not name.startswith("tuning.")}
        for name, parameter in model.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(name in self._own)
        for tuner in self.tuners:
            self._patches += tuner.patches(self.ground)
        if self.recompute:
            self._patches += recomputed(self.ground.blocks)
        for patch in self._patches:
            patch.install()
        self.resume()

    def suspend(self) -> None:
        """Stop the engine of its own, so that a reduction's can take over; its patches over single modules stay."""
        while self._engine:
            self._engine.pop().detach()

    def resume(self) -> None:
        """Start an engine of its own, where one is needed."""
        if not any(tuner.works_in_blocks or tuner.head is not None for tuner in self.tuners):
            return
        engine = Reduction(self.ground.model, self.ground.backbone, KeepAll(), R(0), "after", tuning=self)
        engine.attach()
        self._engine.append(engine)

    @property
    def engine(self) -> Reduction:
        """What runs the blocks: the model's reduction, or an engine that removes nothing.

        Raises:
            RuntimeError: for methods that do nothing between the blocks.
        """
        reduction = getattr(self.ground.model, "reduction", None)
        if isinstance(reduction, Reduction):
            return reduction
        if not self._engine:
            raise RuntimeError(f"{self.spec} does nothing between the blocks, so that there is no trace of it")
        return self._engine[0]

    def detach(self) -> None:
        """Take the methods out: the model as it was, except for the parts of its own that were trained.

        Raises:
            ValueError: while the tokens of the model are reduced.
        """
        self._refuse_while_reduced("detach")
        model = self.ground.model
        self.suspend()
        for patch in reversed(self._patches):
            patch.remove()
        self._patches.clear()
        for name, parameter in model.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(self._frozen[name])
        if getattr(model, "tuning", None) is self:
            del model.tuning
        self._ground.clear()

    def merge(self) -> None:
        """Write the methods into the weights and detach: the plain model computes the same, at its own cost.

        Raises:
            SpecError: for a method that is no change of the weights.
        """
        self._refuse_while_reduced("merge")
        stuck = [tuner.spec_name for tuner in self.tuners if not tuner.mergeable]
        if stuck:
            raise SpecError(f"{stuck[0]} computes something that no weights of the plain model can; only lora, ssf and methods "
                            "without layers of their own can be merged")  # fmt: skip
        for tuner in self.tuners:
            tuner.merge(self.ground)
        self.detach()

    # -- what the engine asks -------------------------------------------------------------------------------------

    @property
    def head(self) -> Head | None:
        """The classifier that takes the place of the model's own, or None."""
        return next((tuner.head for tuner in self.tuners if tuner.head is not None), None)

    @property
    def host(self) -> Tuner | None:
        """The tuner that brings guests, or None."""
        return self._hosts[0] if self._hosts else None

    def _brings_guests(self, tuner: Tuner) -> bool:
        return any(tuner.guest_count(layer) for layer in range(self.ground.depth))

    def beside(self, half: Half) -> list[Tuner]:
        """The tuners that add something to a half of every block."""
        return [tuner for tuner in self.tuners if half in tuner.beside]

    def add(self, half: Half, layer: int, n: Tensor, at: Arrangement) -> Tensor | None:
        """What all tuners together add to a half of a block, or None."""
        total = None
        for tuner in self.beside(half):
            more = tuner.add(half, layer, n, at)
            total = more if total is None else total + more
        return total

    def behind(self, layer: int, x: Tensor, at: Arrangement) -> Tensor:
        """Tokens after a block, after what the tuners do to them one by one."""
        for tuner in self.tuners:
            x = tuner.behind(layer, x, at)
        return x

    def shrinks(self, grid: Grid | None) -> dict[int, tuple[Tuner, Grid, Grid]]:
        """The blocks after which the grid gets smaller: which tuner does it, from what grid, to what grid."""
        if grid in self._shrinks:
            return self._shrinks[grid]
        steps = self._shrinks[grid] = {}
        for layer in range(self.ground.depth):
            for tuner in self.tuners:
                after = None if grid is None else tuner.shrink(layer, grid)
                if after is not None and grid is not None:
                    steps[layer] = (tuner, grid, after)
                    grid = after
        return steps

    # -- checks ---------------------------------------------------------------------------------------------------

    def _refuse_while_reduced(self, what: str) -> None:
        if isinstance(getattr(self.ground.model, "reduction", None), Reduction):
            raise ValueError(f"the tokens of this model are reduced; call model.reduction.detach() before {what}")

    def _refuse_doubles(self) -> None:
        names = [tuner.spec_name for tuner in self.tuners]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise SpecError(f"{twice} is named twice; give a tuning method once, with all its settings")

    def _check(self) -> None:
        ground = self.ground
        hosts = [tuner for tuner in self.tuners if self._brings_guests(tuner)]
        heads = [t for t in self.tuners if t.head is not None]
        for kind, found in (("bring tokens of their own", hosts), ("bring a classifier of their own", heads)):
            if len(found) > 1:
                raise SpecError(f"{found[0].spec_name} and {found[1].spec_name} both {kind}; use one of them")
        adding = [tuner.spec_name for tuner in self.tuners if tuner.beside]
        for block in ground.blocks if adding else ():
            halves = ground.backbone.halves(block)
            if halves is None or not halves.takes_beside:
                raise SpecError(f"{adding[0]} adds to attention and MLP, and it is not known how in {type(block).__name__}")

    def extra_repr(self) -> str:
        return f"train={list(self.parts)}"


def split_specs(text: str) -> list[str]:
    """``"ila + adapter(dim=4)"`` to its specs."""
    found, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "+" and depth == 0:
            found.append(text[start:i].strip())
            start = i + 1
    return [*found, text[start:].strip()]


def read_tuners(method: Any, registry: Any) -> list[Tuner]:
    """Tuners from what a user gives: a spec, several of them joined by ``+`` or in a list, or :class:`Tuner` objects.

    Raises:
        SpecError: for a bad spec.
        TypeError: for something else.
    """
    given = split_specs(method) if isinstance(method, str) else list(method) if isinstance(method, list | tuple) else [method]
    tuners: list[Tuner] = []
    for one in given:
        built = registry.build(one)
        if not isinstance(built, Tuner):
            raise TypeError(f"tuning method must be a spec or a Tuner, got {type(built).__name__}")
        tuners.append(built)
    return tuners
