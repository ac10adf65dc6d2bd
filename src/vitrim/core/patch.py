"""Methods put over a module's own, on the instance: what survives deepcopy, pickling and ``torch.compile``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Patch:
    """One replaced method of one module instance.

    A bound method of a plain object: ``deepcopy`` and ``pickle`` follow both ends, where a closure or a partial would
    keep pointing at the original weights. A subclass defines the method called :attr:`name`.
    """

    name: ClassVar[str] = "forward"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.previous: Any = None

    def install(self) -> None:
        """Put the method over the module's own."""
        self.previous = self.module.__dict__.get(self.name)
        setattr(self.module, self.name, getattr(self, self.name))

    def remove(self) -> None:
        """Give the module its own method back."""
        if self.previous is None:
            delattr(self.module, self.name)
        else:
            setattr(self.module, self.name, self.previous)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's own method."""
        if self.previous is not None:
            return self.previous(*args, **kwargs)
        return getattr(type(self.module), self.name)(self.module, *args, **kwargs)
