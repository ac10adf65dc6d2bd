"""GLSim: a second look at the patches that are most like the whole image."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitrim.core.registry import RECOGNISERS
from vitrim.core.rollout import METRICS, similarity
from vitrim.recognition.base import (
    Criterion,
    Recogniser,
    aggregator,
    class_indices,
    classifier,
    engine_of,
    final_norm,
    fresh_norm,
    grid_of,
    on_device_of,
    randomise,
    run,
    tokens,
)
from vitrim.recognition.crops import black, cut, patch_boxes
from vitrim.recognition.losses import consistency, contrastive, supervised_contrastive
from vitrim.recognition.ramstrans import check_top, count
from vitrim.recognition.selection import anywhere

CROPS = ("crop", "mask", "crop_mask")
AUXILIARIES = (None, "cls", "pool", "shared", "cont", "multi_cont", "consistency")


@RECOGNISERS.register("glsim")
class GLSim(Recogniser):
    """Look again at the patches whose tokens are most like the class token, and let one more block see both looks.

    The first pass gives the class token and the patch tokens after the norm; the box around the most similar patches is cut out
    and enlarged, and goes through the same blocks with a class token of its own. The two class tokens go through an added block
    with a norm of its own, and its first token is classified. On a reduced backbone a patch is as similar as the token that
    stands for it; patches that were dropped are not chosen.

    Args:
        top: number of patches that the box is drawn around; None is 8, or 16 from 448 pixels on (twice that published for the
            dogs).
        metric: similarity: ``cos``, or the distance ``l1`` or ``l2``.
        crop: what the second look sees: the box (``crop``), the image with the box blackened (``mask``), or in training one of
            the two by chance for each image (``crop_mask``; the box in evaluation).
        anchor: ``similarity`` chooses the patches, or ``random`` does, for comparison.
        reducer: what the added block sees: the two class tokens (``cls``), or ``all`` tokens of both looks.
        classify: ``cls`` classifies the first token; ``avg_cls`` and ``max_cls`` take the mean or maximum of the logits of both.
        init: start of the added block: ``random`` (as published), ``last``, a copy of the pretrained last block, or None for no
            added block.
        width: width of the added block, behind a linear map; None is that of the model.
        aux: an auxiliary loss: a second classifier on both class tokens (``cls``) or their mean (``pool``), the classifier on the
            second token as well (``shared``), TransFG's contrastive loss on what is classified (``cont``), a contrastive loss on
            projected class tokens as views (``multi_cont``), or ``consistency`` of the predictions of both.
        aux_weight: its weight.
        supervised: let ``multi_cont`` take all images of a class for views of each other.
        compat: ``official`` leaves out the logarithm in ``consistency``, as the published code does.
    """

    paper = (
        "Rios et al., Global-Local Similarity for Efficient Fine-Grained Image Recognition with ViTs, ICIP 2024, arXiv:2407.12891"
    )
    trained = ("anchor_token", "reduce", "aggregator", "norm", "head", "aux_head")

    def __init__(
        self,
        *,
        top: int | None = None,
        metric: str = "cos",
        crop: str = "crop",
        anchor: str = "similarity",
        reducer: str = "cls",
        classify: str = "cls",
        init: str | None = "random",
        width: int | None = None,
        aux: str | None = None,
        aux_weight: float = 0.1,
        supervised: bool = False,
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        check_top(top)
        for name, value, known in (
            ("metric", metric, METRICS),
            ("crop", crop, CROPS),
            ("anchor", anchor, ("similarity", "random")),
            ("reducer", reducer, ("cls", "all")),
            ("classify", classify, ("cls", "avg_cls", "max_cls")),
            ("init", init, ("random", "last", None)),
            ("aux", aux, AUXILIARIES),
            ("compat", compat, ("paper", "official")),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(str(k) for k in known)}; got {value!r}")
        if init is None and width is not None:
            raise ValueError("width is that of the added block, which init=none leaves out")
        self.top, self.metric, self.crop, self.anchor = top, metric, crop, anchor
        self.reducer, self.classify, self.init, self.width = reducer, classify, init, width
        self.aux, self.aux_weight, self.supervised, self.compat = aux, aux_weight, supervised, compat

    def setup(self, vit: Any, classes: int) -> None:
        dim = self.width or vit.embed_dim
        block = None if self.init is None else aggregator(vit, self.init, self.width)
        super().setup(vit, classes)
        self.anchor_token = nn.Parameter(vit.cls_token.detach().clone())
        self.reduce = nn.Identity() if dim == vit.embed_dim else _fresh_linear(vit, vit.embed_dim, dim)
        self.aggregator = nn.Identity() if block is None else block
        self.norm = nn.Identity() if block is None else fresh_norm(vit, dim)
        self.head = classifier(vit, dim, classes)
        self.aux_head = nn.Identity()
        if self.aux in ("cls", "pool"):
            self.aux_head = classifier(vit, dim, classes)
        elif self.aux == "multi_cont":
            self.aux_head = _fresh_linear(vit, dim, 2 * dim)

    def looks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, n, C)`` of the image and of what was looked at again, each after the model's norm."""
        vit = self.vit
        first = final_norm(vit, run(vit, tokens(vit, images))[0])
        with torch.no_grad():
            seen = self.second_look(images, self.chosen(first, images))
        return first, final_norm(vit, run(vit, tokens(vit, seen, self.anchor_token))[0])

    def chosen(self, x: Tensor, images: Tensor) -> Tensor:
        """``(B, k)`` the patches to look at again, by the tokens ``x (B, n, C)`` of the first look at ``images``."""
        height, width = grid_of(self.vit, images)
        patches = height * width
        k = count(self.top, images, patches)
        if self.anchor == "random":
            return anywhere(len(x), patches, k, self.training, x.device)
        alike = similarity(x[:, 0], x[:, self.vit.num_prefix_tokens :], self.metric)
        return self._on_patches(alike, patches).topk(k, dim=1).indices

    def second_look(self, images: Tensor, index: Tensor) -> Tensor:
        """What the second pass sees of ``images``, given the chosen patches ``index (B, k)``."""
        boxes = patch_boxes(index, grid_of(self.vit, images), (images.shape[2], images.shape[3]))
        if self.crop == "mask":
            return black(images, boxes)
        crops = cut(images, boxes)
        if self.crop == "crop" or not self.training:
            return crops
        by_chance = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(by_chance, crops, black(images, boxes))

    def forward(self, images: Tensor) -> Tensor:
        return self._both(images)[0]

    @property
    def compares_classes(self) -> bool:
        return self.aux == "cont" or (self.aux == "multi_cont" and self.supervised)

    def loss(self, images: Tensor, target: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        logits, views, fused = self._both(images)
        loss = criterion(logits, target)
        if self.aux is not None:
            loss = loss + self.aux_weight * self._auxiliary(views, fused, target, criterion)
        return loss, logits

    def _both(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(B, classes)``, and the two class tokens ``(B, 2, C)`` before and after the added block."""
        first, second = self.looks(images)
        at = 1 if self.reducer == "cls" else first.shape[1]
        if self.reducer == "cls":
            first, second = first[:, :1], second[:, :1]
        views = self.reduce(torch.cat([first, second], dim=1))
        fused = self.norm(self.aggregator(views))
        views, fused = (torch.stack([x[:, 0], x[:, at]], dim=1) for x in (views, fused))
        if self.classify == "cls":
            return self.head(fused[:, 0]), views, fused
        logits = self.head(fused)
        return (logits.mean(dim=1) if self.classify == "avg_cls" else logits.amax(dim=1)), views, fused

    def _auxiliary(self, views: Tensor, fused: Tensor, target: Tensor, criterion: Criterion) -> Tensor:
        if self.aux == "cls":
            return torch.stack([criterion(self.aux_head(view), target) for view in views.unbind(dim=1)]).mean()
        if self.aux == "pool":
            return criterion(self.aux_head(views.mean(dim=1)), target)
        if self.aux == "shared":
            return criterion(self.head(fused[:, 1]), target)
        if self.aux == "cont":
            return contrastive(fused[:, 0], class_indices(target, "the contrastive loss"))
        if self.aux == "multi_cont":
            labels = class_indices(target, "the supervised contrastive loss") if self.supervised else None
            return supervised_contrastive(self.aux_head(views), labels)
        return consistency(self.head(fused), official=self.compat == "official")

    def _on_patches(self, alike: Tensor, patches: int) -> Tensor:
        """Similarities ``(B, n)`` of the tokens that are left as those of the patches ``(B, patches)`` of the image."""
        engine = engine_of(self.vit)
        if engine is not None:
            total = engine.trace.patches()
            if total is not None and (total.n, total.m) == (patches, alike.shape[1]):
                lowest = alike.new_full((len(alike), patches, 1), torch.finfo(alike.dtype).min)
                return total.lift(alike.unsqueeze(-1), lowest).squeeze(-1)
        if alike.shape[1] != patches:
            raise RuntimeError(
                f"glsim finds {alike.shape[1]} tokens for {patches} patches and cannot say where they lie; only a "
                "reduction or a tuning method of vitrim may change their number"
            )
        return alike


def _fresh_linear(vit: Any, into: int, out: int) -> nn.Module:
    layer = nn.Linear(into, out)
    randomise(layer)
    return on_device_of(vit, layer)
