"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """``e <- decay * e + (1 - decay) * w`` for every entry of the state dict, buffers included, on the device of the weights.

    The decay is constant from the first step on, as published: no warm-up and no correction. Entries in half precision are
    averaged in float32, where a step of ``1 - decay`` would otherwise round to nothing; whole numbers (such as the batch counter
    of batch norm) are copied.

    Args:
        model: the model as it is trained, without the wrapper of distributed training.
        decay: share that stays per step, such as 0.9998.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of the moving average is in [0, 1]; got {decay}")
        self.decay = decay
        self._types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self._average = {name: _wide(tensor.detach()).clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step of the optimizer.

        Raises:
            ValueError: when the model has other entries than before.
        """
        weights = model.state_dict()
        if weights.keys() != self._average.keys():
            odd = sorted(weights.keys() ^ self._average.keys())[0]
            raise ValueError(f"the model has changed since the moving average began ({odd}); make a new Ema")
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        for name, average in self._average.items():
            if average.is_floating_point():
                averages.append(average)
                currents.append(_wide(weights[name]))
            else:
                average.copy_(weights[name])
        torch._foreach_lerp_(averages, currents, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

    def weights(self) -> dict[str, Tensor]:
        """The averaged state dict, in the types of the model, for safetensors to write; it changes with the next update."""
        return {name: tensor.to(self._types[name]) for name, tensor in self._average.items()}

    def state(self) -> dict[str, Tensor]:
        """What a run needs to go on exactly: the averages as they are kept (half precision in float32)."""
        return dict(self._average)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state` (or from :meth:`weights`).

        Raises:
            ValueError: when it belongs to another model.
        """
        wrong = [n for n, t in self._average.items() if n not in state or state[n].shape != t.shape]
        wrong += [n for n in state if n not in self._average]
        if wrong:
            raise ValueError(f"the moving average belongs to another model: entry '{wrong[0]}' does not fit")
        for name, tensor in self._average.items():
            tensor.copy_(state[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[nn.Module, None, None]:
        """The model with the averaged weights, to evaluate it; its own come back at the end, bit for bit."""
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights())
        try:
            yield model
        finally:
            model.load_state_dict(own)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor
