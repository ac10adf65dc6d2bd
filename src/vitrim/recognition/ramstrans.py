"""RAMS-Trans: a second look at where the attention rollout of the first one points."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrim.core.registry import RECOGNISERS
from vitrim.core.rollout import rollout
from vitrim.recognition.base import Recogniser, classifier, final_norm, grid_of, run, same_tokens, tokens
from vitrim.recognition.crops import cut, patch_boxes


@RECOGNISERS.register("ramstrans")
class RAMSTrans(Recogniser):
    """Classify the image and a crop of it by the same blocks, and take the mean of the logits.

    The crop is the box around the patches that come first in the attention rollout of all blocks. It has a class token of its
    own, which begins as that of the model. The simplified form of the benchmark of ILA: one crop, one classifier.

    Args:
        top: number of patches that the box is drawn around; None is 8, or 16 from 448 pixels on (twice that published for the
            dogs).
    """

    paper = "Hu et al., RAMS-Trans: Recurrent Attention Multi-scale Transformer, ACM MM 2021, arXiv:2107.08192"
    trained = ("anchor_token", "head")

    def __init__(self, *, top: int | None = None) -> None:
        super().__init__()
        check_top(top)
        self.top = top

    def setup(self, vit: Any, classes: int) -> None:
        super().setup(vit, classes)
        self.anchor_token = nn.Parameter(vit.cls_token.detach().clone())
        self.head = classifier(vit, vit.embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        vit = self.vit
        x, attentions = run(vit, tokens(vit, images), range(len(vit.blocks)))
        same_tokens(attentions, x, "ramstrans")
        seen = rollout(attentions)[:, vit.num_prefix_tokens :]
        index = seen.topk(count(self.top, images, seen.shape[1]), dim=1).indices
        crops = cut(images, patch_boxes(index, grid_of(vit, images), (images.shape[2], images.shape[3])))
        again, _ = run(vit, tokens(vit, crops, self.anchor_token))
        first, second = (self.head(final_norm(vit, y[:, 0])) for y in (x, again))
        return (first + second) / 2


def check_top(top: int | None) -> None:
    """Refuse a number of patches that is none.

    Raises:
        ValueError: naming it.
    """
    if top is not None and top < 1:
        raise ValueError(f"top is a number of patches; got {top}")


def count(top: int | None, images: Tensor, patches: int) -> int:
    """How many patches to choose: ``top``, or the published default, but not more than there are."""
    default = 16 if min(images.shape[2], images.shape[3]) >= 448 else 8
    return min(default if top is None else top, patches)
