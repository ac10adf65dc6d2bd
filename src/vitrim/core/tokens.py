"""What a reducer may look at: the tokens of one layer and, lazily, the attention of its block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrim.core.tokenmap import TokenMap


class Attention:
    """Queries, keys and values as they stood at ``scaled_dot_product_attention``; weights only on request.

    Keys are after rotary positions and q/k norms: the attention that the model really computes.

    Attributes:
        queries: ``(B, heads, n, d)``.
        keys: ``(B, heads, n, d)``.
        values: ``(B, heads, n, d)``.
        bias: additive bias of the logits that broadcasts to ``(B, heads, n, n)``, or None. It holds the
            log-sizes of proportional attention and ``-inf`` for padding.
        valid: ``(B, n)`` bool, False for padding, or None.
    """

    def __init__(
        self, queries: Tensor, keys: Tensor, values: Tensor, scale: float, bias: Tensor | None = None, valid: Tensor | None = None
    ) -> None:
        repeat = queries.shape[1] // keys.shape[1]
        self.queries = queries
        self.keys = keys if repeat == 1 else keys.repeat_interleave(repeat, dim=1)
        self.values = values if repeat == 1 else values.repeat_interleave(repeat, dim=1)
        self.scale = scale
        self.bias = bias
        self.valid = valid

    def first(self, n: int) -> Attention:
        """What the first ``n`` tokens are and get: the weights stay as they are, those of the later tokens are not shown."""
        return self if n == self.queries.shape[2] else _FirstOf(self, n)

    def mean_key(self) -> Tensor:
        """``(B, n, d)``: keys averaged over the heads, the usual merging metric."""
        return self.keys.mean(dim=1)

    def from_token(self, i: int) -> Tensor:
        """``(B, heads, n)``: how token ``i`` spreads its attention. O(n) time and memory."""
        return self._rows(i, i + 1).squeeze(2)

    def received(self) -> Tensor:
        """``(B, heads, n)``: attention that each token gets, summed over the queries.

        The weights of some queries at a time are computed and added up, a million of them (which a cache holds) rather than
        all. Padding asks nothing: its rows are left out, or the sum would depend on the longest image of the batch.
        """
        heads, n = self.queries.shape[1:3]
        some = 2**20
        if self.queries.is_cpu and not torch.compiler.is_compiling() and heads * n * n < some:
            # A few images at a time, with all their queries. Traced programs have one size for any batch.
            images = some // (heads * n * n)
            return torch.cat([part._asked(0, n) for part in self._split(images)])
        chunk = max(16, min(256, some // (heads * n)))
        total = self._asked(0, min(chunk, n))
        for start in range(chunk, n, chunk):
            total = total + self._asked(start, min(start + chunk, n))
        return total

    def _split(self, images: int) -> Iterator[Attention]:
        """The same for ``images`` of the batch at a time."""
        batch = len(self.queries)
        for start in range(0, batch, images):
            part = slice(start, start + images)
            bias = self.bias if self.bias is None or len(self.bias) == 1 else self.bias[part]
            valid = None if self.valid is None else self.valid[part]
            yield Attention(self.queries[part], self.keys[part], self.values[part], self.scale, bias, valid)

    def weights(self) -> Tensor:
        """``(B, heads, n, n)``: the whole attention matrix. O(n^2); prefer :meth:`from_token` or :meth:`received`."""
        return self._rows(0, self.queries.shape[2])

    def _asked(self, start: int, stop: int) -> Tensor:
        rows = self._rows(start, stop)
        return (rows if self.valid is None else rows * self.valid[:, None, start:stop, None]).sum(dim=2)

    def _rows(self, start: int, stop: int) -> Tensor:
        logits = (self.queries[:, :, start:stop] * self.scale) @ self.keys.transpose(-2, -1)
        if self.bias is not None:
            bias = self.bias if self.bias.shape[-2] == 1 else self.bias[..., start:stop, :]
            logits = logits + bias
        return logits.float().softmax(dim=-1).to(self.values.dtype)


class _FirstOf(Attention):
    """See :meth:`Attention.first`."""

    def __init__(self, whole: Attention, n: int) -> None:
        valid = None if whole.valid is None else whole.valid[:, :n]
        super().__init__(whole.queries[:, :, :n], whole.keys[:, :, :n], whole.values[:, :, :n], whole.scale, whole.bias, valid)
        self.whole = whole
        self.n = n

    def received(self) -> Tensor:
        return self.whole.received()[..., : self.n]

    def _rows(self, start: int, stop: int) -> Tensor:
        return self.whole._rows(start, stop)[..., : self.n]


@dataclass
class Tokens:
    """Everything that a reducer may look at.

    Attributes:
        x: ``(B, n, C)`` residual stream, prefix tokens first.
        size: ``(B, n)`` number of original tokens that each token stands for.
        prefix: number of leading tokens (class, distillation, registers, prompts) that must survive.
        cls: position of the class token, or None.
        grid: patch grid ``(height, width)`` of the input, or None when unknown.
        layer: index of the block.
        depth: number of blocks of the model.
        valid: ``(B, n)`` bool, False for padding of a ragged earlier stage; None when all are real.
        policy: ``(B, n)`` keep decisions of an earlier stage of mask-based training, or None.
        training: whether the model is in training mode.
        seed: seed of the reduction, for :meth:`uniform`.
        carried: ``(B, n)`` bool, True for tokens that a cross-layer cache put back, where it is ``compat=official``; else None.
    """

    x: Tensor
    size: Tensor
    prefix: int
    cls: int | None
    grid: tuple[int, int] | None
    layer: int
    depth: int
    valid: Tensor | None = None
    policy: Tensor | None = None
    training: bool = False
    seed: int = 0
    _attention: Attention | None = None
    _maps: Sequence[TokenMap] = field(default_factory=tuple)
    carried: Tensor | None = None

    @property
    def patches(self) -> Tensor:
        """``(B, n - prefix, C)``: the tokens that may be reduced."""
        return self.x[:, self.prefix :]

    @property
    def attention(self) -> Attention:
        """Attention of this block (sites ``inside`` and ``after``) or of the previous one (site ``before``).

        Raises:
            RuntimeError: at a site where none has been computed.
        """
        if self._attention is None:
            raise RuntimeError(
                f"layer {self.layer}: no attention was recorded before this point; choose site='inside' or 'after', "
                "or a method that does not read attention"
            )
        return self._attention

    @property
    def origin(self) -> TokenMap:
        """Map from the original tokens to these, composed over all earlier stages."""
        total = TokenMap.identity(self.x.shape[0], self.x.shape[1], self.x.device)
        if not self._maps:
            return total
        total = self._maps[0]
        for step in self._maps[1:]:
            total = total.then(step)
        return total

    def class_attention(self) -> Tensor:
        """``(B, heads, n)``: attention of the class token; without one, the mean attention that a token receives.

        Both are non-negative and sum to one over the tokens.
        """
        if self.cls is not None:
            return self.attention.from_token(self.cls)
        queries = self.x.shape[1] if self.valid is None else self.valid.sum(dim=1).view(-1, 1, 1)
        return self.attention.received() / queries

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1).

        In training they come from the global generator. In evaluation they are a hash of (seed, layer, position): a
        block that runs again repeats itself, the same on every device, and ``torch.compile`` can trace it.
        """
        if self.training:
            return torch.rand(shape, device=self.x.device)
        count = 1
        for extent in shape:
            count *= extent
        # Weyl sequence through the golden ratio, offset by seed and layer; float64 keeps 30 good bits.
        start = ((self.seed * 1000003 + self.layer + 1) * 0.7548776662466927) % 1.0
        index = torch.arange(1, count + 1, dtype=torch.float64, device=self.x.device)
        mixed = torch.frac(torch.sin(index * 12.9898 + start * 78.233) * 43758.5453).abs()
        return mixed.float().clamp_max(1 - 2**-24).view(shape)
