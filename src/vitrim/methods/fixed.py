"""Fixed radial patterns: the baseline that looks at no image."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrim.core.reducer import Policy, Reducer
from vitrim.core.registry import METHODS
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens

PATTERNS = ("l1", "l2", "linf")


@METHODS.register("fixed")
class Fixed(Reducer):
    """Keep the patches within a radius of the image centre, the same for every image.

    Published as masks over a sequence of full length; here the tokens really leave, which gives the same result.

    Args:
        pattern: norm of the radius: l1 (diamond), l2 (disc) or linf (square).
        min_radius: radius just after the last block that reduces, in patches; 0 is the distance of the centre cell.
            Only for contiguous patterns.
        contiguous: shrink the radius evenly in every block from the first to the last location of the schedule, whose
            rates are then ignored; False keeps, at each location, the attainable number nearest to the schedule's.
    """

    family = "fixed"
    site = "before"
    carriers = "protected"
    paper = "Haurum et al., Which Tokens to Use?, ICCVW 2023, arXiv:2308.04657"

    def __init__(self, *, pattern: str = "l1", min_radius: float = 1.0, contiguous: bool = True) -> None:
        super().__init__()
        if pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}; got {pattern!r}")
        self.pattern = pattern
        self.min_radius = min_radius
        self.contiguous = contiguous

    def plan(self, course: Course) -> dict[int, int]:
        targets = course.schedule.targets(course.patches, course.depth)
        if not targets:
            return {}
        side = _side(course.patches)
        distance = radius(side, side, self.pattern)
        if self.contiguous:
            wanted = self._shrinking(distance, min(targets), max(targets))
        else:
            wanted = {block: _nearest_count(distance, target) for block, target in targets.items()}
        counts: dict[int, int] = {}
        left = course.patches
        for block, count in wanted.items():
            if 0 < count < left:
                counts[block] = left = count
        return counts

    def _shrinking(self, distance: Tensor, first: int, last: int) -> dict[int, int]:
        """Patches within evenly shrinking radii. A first block of 0 shifts the radii by one, as published."""
        corner = float(distance[0, 0])
        end = self.min_radius if self.min_radius > 0 else float(distance[distance.shape[0] // 2, distance.shape[1] // 2])
        radii = [corner] * max(first - 1, 0) + torch.linspace(corner, end, last - first + 3).tolist()
        return {block: int((distance <= radii[block]).sum()) for block in range(first, last + 1)}

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        if t.grid is None:
            raise ValueError("fixed patterns need to know the patch grid; this input is not square")
        n = t.x.shape[1] - t.prefix
        # Patches inside a radius are the first of this order, so that a count says which ones they are.
        order = radius(*t.grid, self.pattern).flatten().argsort(stable=True)
        present, staying = order[:n].sort().values, order[:keep].sort().values
        index = torch.searchsorted(present, staying).to(t.x.device).expand(t.x.shape[0], keep)
        return TokenMap.select(index, n).with_prefix(t.prefix)


def radius(height: int, width: int, pattern: str) -> Tensor:
    """``(height, width)`` float32 distances of the cells from the centre.

    Kept in float32 and on the CPU: rounding splits some equal distances in two, and the published masks depend on it.
    """
    y = torch.linspace(-height // 2, height // 2, height).abs().unsqueeze(1)
    x = torch.linspace(-width // 2, width // 2, width).abs().unsqueeze(0)
    if pattern == "l1":
        return x + y
    if pattern == "l2":
        return (x**2 + y**2).sqrt()
    return torch.maximum(x.expand(height, width), y.expand(height, width))


def _nearest_count(distance: Tensor, target: int) -> int:
    """The number of cells within some radius that is nearest to ``target``, the smaller on ties."""
    counts = [int((distance <= value).sum()) for value in distance.unique()]
    return min(counts, key=lambda count: abs(count - target))


def _side(patches: int) -> int:
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"fixed patterns need a square patch grid; {patches} patches are none")
    return side
