"""TransFG: the patches that each head draws most from, classified by one more block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import RECOGNISERS, SpecError
from vitrim.recognition.base import (
    Criterion,
    Recogniser,
    aggregator,
    class_indices,
    classifier,
    final_norm,
    run,
    same_tokens,
    tokens,
)
from vitrim.recognition.losses import contrastive
from vitrim.recognition.selection import parts, take


@RECOGNISERS.register("transfg")
class TransFG(Recogniser):
    """Let one more block see the class token and one part per head only.

    The attention matrices of all blocks but the last are multiplied, head by head; the patch in which the row of the class
    token is largest is the part of that head. Class token and parts go through a block that takes the place of the last one,
    and through the model's norm. With ``contrast``, the features of different classes are pushed apart.

    Args:
        stride: distance of the patches in pixels, smaller than a patch for overlapping ones (12 in the paper); position
            embeddings are resampled. None leaves the model's own.
        contrast: weight of the contrastive loss; 0 is without it, 0.1 the published setting.
        margin: cosine of different classes that costs nothing in the contrastive loss.
        init: start of the added block: ``random`` (as published), or ``last``, the pretrained last block.
    """

    paper = "He et al., TransFG: A Transformer Architecture for Fine-Grained Recognition, AAAI 2022, arXiv:2103.07976"
    trained = ("aggregator", "head")

    def __init__(self, *, stride: int | None = None, contrast: float = 0.0, margin: float = 0.4, init: str = "random") -> None:
        super().__init__()
        if stride is not None and stride < 1:
            raise ValueError(f"stride is a number of pixels; got {stride}")
        self.stride, self.contrast, self.margin = stride, contrast, margin
        self.init = init

    def setup(self, vit: Any, classes: int) -> None:
        if len(vit.blocks) < 2:
            raise SpecError("transfg puts a block of its own in place of the last one; it needs a model of two blocks or more")
        block = aggregator(vit, self.init)
        if self.stride is not None:
            overlap(vit, self.stride)
        super().setup(vit, classes)
        vit.blocks = vit.blocks[:-1]
        self.aggregator = block
        self.head = classifier(vit, vit.embed_dim, classes)

    def features(self, images: Tensor) -> Tensor:
        """``(B, C)`` what is classified: the class token after the added block and the norm."""
        vit = self.vit
        x, attentions = run(vit, tokens(vit, images), range(len(vit.blocks)))
        same_tokens(attentions, x, "transfg")
        index = parts(attentions, vit.num_prefix_tokens)
        x = self.aggregator(torch.cat([x[:, :1], take(x, index)], dim=1))
        return final_norm(vit, x[:, 0])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    @property
    def compares_classes(self) -> bool:
        return self.contrast != 0

    def loss(self, images: Tensor, target: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        logits = self.head(features)
        loss = criterion(logits, target)
        if self.contrast:
            labels = class_indices(target, "the contrastive loss")
            loss = loss + self.contrast * contrastive(features, labels, self.margin)
        return loss, logits


def overlap(vit: Any, stride: int) -> None:
    """Let the patches of a model overlap, in place: stride of the convolution, grid, and resampled position embedding.

    Raises:
        SpecError: when the patches are not made by one convolution, or the image size is not known.
    """
    embed = vit.patch_embed
    convolution = getattr(embed, "proj", None)
    if not isinstance(convolution, nn.Conv2d) or embed.img_size is None or getattr(embed, "dynamic_img_pad", False):
        raise SpecError("overlapping patches need a patch embedding of one convolution, of known image size and without padding")
    sides = zip(embed.img_size, convolution.kernel_size, strict=True)
    height, width = ((side - kernel) // stride + 1 for side, kernel in sides)
    old = embed.grid_size
    convolution.stride = (stride, stride)
    embed.grid_size, embed.num_patches = (height, width), height * width
    if vit.pos_embed is None or (height, width) == tuple(old):
        return
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    kept, cells = vit.pos_embed.data[:, :prefix], vit.pos_embed.data[:, prefix:]
    plane = cells.transpose(1, 2).reshape(1, -1, *old).float()
    plane = F.interpolate(plane, size=(height, width), mode="bilinear", align_corners=True)
    resampled = torch.cat([kept, plane.flatten(2).transpose(1, 2).to(kept.dtype)], dim=1)
    vit.pos_embed = nn.Parameter(resampled, requires_grad=vit.pos_embed.requires_grad)
