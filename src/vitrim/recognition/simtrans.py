"""SIM-Trans: where the attended patches lie around the most attended one, learned by a graph network."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import RECOGNISERS, SpecError
from vitrim.recognition.base import Criterion, Recogniser, class_indices, final_norm, grid_of, on_device_of, steps, tokens

LEVELS = 3  # blocks, counted from the last


@RECOGNISERS.register("simtrans")
class StructureInformation(Recogniser):
    """Add to the class token where the attended patches lie, after each of the last three blocks, and classify all three.

    The patches that the class token attends to more than to the mean are the nodes of a graph: distance and angle to the most
    attended patch, joined by products of attention. What two graph layers make of that patch's node is added to the class token.
    The normed class tokens after the three blocks, side by side, go through batch norms and two linear layers.

    Args:
        hidden: width between the two graph layers.
        width: width between the two layers of the classifier.
        dropout: dropout of the graph layers, in training only.
        margin: weight of the margin loss between the images of a batch, on the features before the classifier; the published code
            defines that loss and does not use it.
    """

    paper = "Sun et al., SIM-Trans: Structure Information Modeling Transformer for FGVC, ACM MM 2022, arXiv:2208.14607"
    trained = ("structure", "head")

    def __init__(self, *, hidden: int = 512, width: int = 1024, dropout: float = 0.1, margin: float = 0.0) -> None:
        super().__init__()
        if hidden < 1 or width < 1:
            raise ValueError(f"hidden and width are 1 or more; got hidden={hidden}, width={width}")
        if not 0 <= dropout < 1 or margin < 0:
            raise ValueError(f"dropout is in [0, 1) and margin 0 or more; got dropout={dropout}, margin={margin}")
        self.hidden, self.width, self.dropout, self.margin = hidden, width, dropout, margin

    def setup(self, vit: Any, classes: int) -> None:
        if len(vit.blocks) < LEVELS:
            raise SpecError(f"simtrans reads the last {LEVELS} blocks, and this model has {len(vit.blocks)}")
        super().setup(vit, classes)
        dim, features = vit.embed_dim, LEVELS * vit.embed_dim
        self.structure = on_device_of(vit, Structure(dim, self.hidden, self.dropout))
        head = nn.Sequential(
            nn.BatchNorm1d(features),
            nn.Linear(features, self.width),
            nn.BatchNorm1d(self.width),
            nn.ELU(),
            nn.Linear(self.width, classes),
        )
        self.head = on_device_of(vit, head)

    def features(self, images: Tensor) -> Tensor:
        """The normed class tokens after the last three blocks ``(B, 3 C)``, with what the structure adds to each."""
        last = range(len(self.vit.blocks) - LEVELS, len(self.vit.blocks))
        found: list[Tensor] = []
        for layer, x, attention in steps(self.vit, tokens(self.vit, images), read=last):
            if attention is None:
                continue
            row = self._on_grid(attention.from_token(0).float(), images, layer)
            # In place, as published: the next block goes on with this tensor.
            x[:, 0] = x[:, 0] + self.structure(row).to(x.dtype)
            found.append(final_norm(self.vit, x[:, :1]).squeeze(1))
        return torch.cat(found, dim=1)

    def _on_grid(self, row: Tensor, images: Tensor, layer: int) -> Tensor:
        """Attention ``(B, heads, n)`` of the class token as maps ``(B, heads, height, width)`` over the patches."""
        maps = row[..., self.vit.num_prefix_tokens :]
        height, width = grid_of(self.vit, images)
        if maps.shape[-1] != height * width:
            height = width = math.isqrt(maps.shape[-1])  # a grid that a tuning method made smaller
        if maps.shape[-1] != height * width or height == 0:
            raise RuntimeError(
                f"simtrans reads where the patches lie, and the {maps.shape[-1]} patch tokens in block {layer} are no grid; take "
                "the reduction, cache or prompts out, or use ffvt or glsim with a reduction"
            )
        return maps.unflatten(-1, (height, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    @property
    def compares_classes(self) -> bool:
        return self.margin != 0

    def loss(self, images: Tensor, target: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        logits = self.head(features)
        total = criterion(logits, target)
        if self.margin:
            total = total + self.margin * margin_loss(features, class_indices(target, "simtrans(margin=...)"))
        return total, logits


class Structure(nn.Module):
    """The graph network over the attended patches; what it leaves at the most attended one.

    Args:
        dim: width of the result.
        hidden: width between the two layers.
        dropout: dropout, in training only: once after the second layer, twice after the first, as published.
    """

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(2, hidden).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.second = nn.Parameter(torch.empty(hidden, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, dim)`` of attention maps ``(B, heads, height, width)``.

        The adjacency is the outer product of ``weight`` with itself: a product with it is a weighted sum over the nodes, scaled,
        and takes no square matrix. Of the second layer only the row of the anchor is used, so only that one is computed.
        """
        nodes, weight, anchor = coordinates(maps)
        with torch.autocast(maps.device.type, enabled=False):
            gathered = weight.unsqueeze(1) @ nodes @ self.first.to(nodes.dtype)
            between = self.dropout(F.leaky_relu(weight.unsqueeze(-1) * gathered, 0.2))
            between = self.dropout(F.relu(between))
            gathered = (weight.unsqueeze(1) @ between @ self.second.to(nodes.dtype)).squeeze(1)
            return self.dropout(F.leaky_relu(weight.gather(1, anchor.unsqueeze(1)) * gathered, 0.2))


def coordinates(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the attended patches lie.

    Args:
        maps: attention ``(B, heads, height, width)`` of the class token.

    Returns:
        ``(B, n, 2)`` distance and angle to the anchor, the distance in sides of the grid and the angle in [0, 1], zero where the
        attention summed over heads is not above its mean; ``(B, n)`` mean attention over heads, zero in the same places; and
        ``(B,)`` the anchor, the patch with the largest.
    """
    batch, _, height, width = maps.shape
    total = maps.sum(dim=1)
    marked = (total > total.mean(dim=(1, 2), keepdim=True)).to(maps.dtype).flatten(1)
    weight = maps.mean(dim=1).flatten(1) * marked
    anchor = weight.argmax(dim=1)
    places = torch.arange(height * width, device=maps.device).expand(batch, -1)
    down = (places.div(width, rounding_mode="floor") - anchor.div(width, rounding_mode="floor").unsqueeze(1)).to(
        maps.dtype
    ) / height
    right = (places % width - (anchor % width).unsqueeze(1)).to(maps.dtype) / width
    angle = (torch.atan2(right, down) / math.pi + 1) / 2
    return torch.stack([torch.hypot(down, right), angle], dim=-1) * marked.unsqueeze(-1), weight, anchor


def margin_loss(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Images of one class alike, those of other classes unlike unless they are far enough away.

    With ``e = (1 - cosine) / 2``, another image costs ``1 + cosine`` when its e is at most the mean e of the image's own class
    plus the margin.

    Args:
        features: ``(B, D)``.
        labels: ``(B,)``.
        margin: the margin.
    """
    unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    cosine = unit @ unit.T
    far = (1 - cosine) / 2
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    own = (far * others).sum(dim=1, keepdim=True) / (same.sum(dim=1, keepdim=True) - 1 + 1e-6)
    close = ~same & (margin + own - far >= 0)
    return torch.where(same, 1 - cosine, (1 + cosine) * close).mean()
