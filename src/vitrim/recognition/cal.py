"""CAL: attention maps that are trained by what they change (counterfactual attention learning)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.registry import RECOGNISERS
from vitrim.recognition.base import Criterion, Recogniser, class_indices, final_norm, grid_of, on_device_of, run, tokens
from vitrim.recognition.crops import attended, attention_boxes, cut

# Threshold and padding of the crops in evaluation, by number of passes; eight are these and the image, twice: mirrored too.
CROPS: dict[int, tuple[tuple[float, float], ...]] = {
    1: (),
    2: ((0.1, 0.05),),
    8: ((0.3, 0.1), (0.2, 0.1), (0.1, 0.05)),
}


@RECOGNISERS.register("cal")
class CounterfactualAttention(Recogniser):
    """Attention maps over the patches, bilinear pooling with them, and a loss on what they change against random maps.

    Training runs the image, then a crop and a copy with a part dropped, each after one map drawn at random: three images for
    one. The final tokens lie on the patch grid; merged ones are put back to all their places, so that reductions go with it.

    Args:
        maps: number of attention maps.
        passes: images per image in evaluation: 2 averages the image and a crop and is the default, for its cost; 8, the published
            default, averages three crops besides the image, and the mirror image of all; 1 is the image alone.
        centre_rate: how far a class's feature centre moves towards the features of a batch.
        compat: ``paper`` moves a centre by the mean over the images of its class in the batch; ``official`` by the last one.
    """

    paper = "Rao et al., Counterfactual Attention Learning (CAL), ICCV 2021, arXiv:2108.08728"
    reads_cls: ClassVar[bool] = False

    head: Any
    centres: Tensor

    def __init__(self, *, maps: int = 32, passes: int = 2, centre_rate: float = 0.05, compat: str = "paper") -> None:
        super().__init__()
        if maps < 1:
            raise ValueError(f"maps is 1 or more; got {maps}")
        if passes not in CROPS:
            raise ValueError(f"passes is 1, 2 or 8; got {passes}")
        if compat not in ("paper", "official"):
            raise ValueError(f"compat is paper or official; got {compat!r}")
        self.maps, self.passes, self.centre_rate, self.compat = maps, passes, centre_rate, compat

    def setup(self, vit: Any, classes: int) -> None:
        super().setup(vit, classes)
        self.head = on_device_of(vit, BilinearAttention(vit.embed_dim, self.maps, classes))
        # A buffer: it is saved with the weights and goes to the device with them. At least float32, or small steps are lost.
        like = self.head.classifier.weight
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.register_buffer("centres", torch.zeros(classes, like.shape[1], dtype=dtype, device=like.device))

    def feature_map(self, images: Tensor) -> Tensor:
        """The normed patch tokens after the last block in their places, ``(B, C, height, width)``."""
        x, _ = run(self.vit, tokens(self.vit, images))
        x = final_norm(self.vit, x)
        x = x[:, self.vit.num_prefix_tokens :]
        reduction = getattr(self.vit, "reduction", None)
        steps = None if reduction is None else reduction.trace.patches()
        if steps is not None:
            x = steps.lift(x)
        height, width = grid_of(self.vit, images)
        if x.shape[1] != height * width:
            height = width = int(x.shape[1] ** 0.5)  # a grid that a tuning method made smaller
        if x.shape[1] != height * width:
            raise RuntimeError(
                f"cal needs the patch tokens on a grid, and {x.shape[1]} are none; take out what adds tokens to them"
            )
        return x.mT.unflatten(2, (height, width))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            x = self.feature_map(images)
            return self.head.logits(self.head.pool(x, self.head.attend(x)))
        views = (images, images.flip(-1)) if self.passes == 8 else (images,)
        found: list[Tensor] = []
        for view in views:
            logits, attention = self._look(view)
            found.append(logits)
            for theta, padding in CROPS[self.passes]:
                boxes = attention_boxes(attention.mean(dim=1, keepdim=True).float(), _size(view), theta, padding)
                found.append(self._look(cut(view, boxes))[0])
        return torch.stack(found).mean(dim=0)

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and attention maps of one pass."""
        x = self.feature_map(images)
        attention = self.head.attend(x)
        return self.head.logits(self.head.pool(x, attention)), attention

    @property
    def compares_classes(self) -> bool:
        return True

    def loss(self, images: Tensor, target: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor]:
        labels = class_indices(target, "cal")
        x = self.feature_map(images)
        attention = self.head.attend(x)
        features = self.head.pool(x, attention)
        raw = self.head.logits(features)
        effect = raw - self.head.logits(self.head.pool(x, self.head.counterfactual(attention)))
        centres = self._move_centres(features.detach(), labels) if self.training else F.normalize(self.centres[labels], dim=-1)
        with torch.no_grad():
            parts = self.crop_and_drop(images, attention.detach())
        y = self.feature_map(parts)
        part_attention = self.head.attend(y)
        part_logits = self.head.logits(self.head.pool(y, part_attention))
        part_effect = part_logits - self.head.logits(self.head.pool(y, self.head.counterfactual(part_attention)))
        effects = torch.cat([effect, part_effect])
        total = counterfactual(raw, part_logits, effects, features, centres, labels, criterion)
        return total, (raw + part_logits[: len(images)]) / 2

    def crop_and_drop(self, images: Tensor, attention: Tensor) -> Tensor:
        """A crop and a dropped copy of each image ``(2B, channels, height, width)``, after two of its maps drawn at random.

        A map is drawn with the root of its sum as weight. The crop holds what is above 40 to 60 % of the map's maximum, the
        copy loses what is above 20 to 50 %; shares and maps are drawn from torch's global generator.
        """
        batch = len(images)
        weights = (attention.float().sum(dim=(2, 3)) + 1e-6).sqrt()
        chosen = torch.multinomial(weights, 2, replacement=True)
        first, second = attention[torch.arange(batch, device=images.device).unsqueeze(1), chosen].float().split(1, dim=1)
        share = torch.rand(2, batch, device=images.device)
        boxes = attention_boxes(first, _size(images), 0.4 + 0.2 * share[0], 0.1)
        dropped = images.masked_fill(attended(second, _size(images), 0.2 + 0.3 * share[1]), 0)
        return torch.cat([cut(images, boxes), dropped])

    @torch.no_grad()
    def _move_centres(self, features: Tensor, labels: Tensor) -> Tensor:
        """Centres of the images' classes of unit length as they are, ``(B, F)``; then each moves towards the features."""
        centres = F.normalize(self.centres[labels], dim=-1)
        steps = features.to(self.centres.dtype) - centres
        labels, steps = _of_all_processes(labels), _of_all_processes(steps)
        if self.compat == "paper":
            same = (labels[:, None] == labels).to(steps.dtype)
            steps = same @ steps / same.sum(dim=1, keepdim=True)
        # Rows of one class are alike now. Copied first: the loss holds the old centres, and autograd the buffer's version.
        moved = self.centres.clone()
        moved[labels] = moved[labels] + self.centre_rate * steps
        self.centres.copy_(moved)
        return centres


class BilinearAttention(nn.Module):
    """Attention maps, bilinear attention pooling with them, and a linear classifier.

    Args:
        dim: channels of the feature map.
        maps: number of attention maps.
        classes: number of classes.
    """

    def __init__(self, dim: int, maps: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, maps, 1, bias=False)
        self.norm = nn.BatchNorm2d(maps, eps=1e-3)
        self.classifier = nn.Linear(maps * dim, classes, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        """Attention maps ``(B, maps, height, width)`` of ``x (B, C, height, width)``."""
        return F.relu(self.norm(self.conv(x)))

    def pool(self, x: Tensor, attention: Tensor) -> Tensor:
        """Unit-length features ``(B, maps * C)``: for each map the mean of the attended features, with signed roots."""
        pooled = torch.einsum("bmhw,bchw->bmc", attention, x) / attention[0, 0].numel()
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32)).flatten(1)
        return F.normalize(pooled.sign() * (pooled.abs() + 1e-6).sqrt(), dim=-1)

    def counterfactual(self, attention: Tensor) -> Tensor:
        """Maps that know nothing: uniform in [0, 2) in training, one in evaluation."""
        return torch.rand_like(attention) * 2 if self.training else torch.ones_like(attention)

    def logits(self, features: Tensor) -> Tensor:
        """``(B, classes)`` of the features ``(B, maps * C)``."""
        return self.classifier((100 * features).to(self.classifier.weight.dtype))


def counterfactual(
    raw: Tensor,
    parts: Tensor,
    effects: Tensor,
    features: Tensor,
    centres: Tensor,
    labels: Tensor,
    criterion: Criterion = F.cross_entropy,
) -> Tensor:
    """The loss of CAL for images and two parts of each.

    Args:
        raw: logits of the images ``(B, C)``.
        parts: logits of the parts ``(2B, C)``.
        effects: logits minus those under random attention, of images and parts ``(3B, C)``.
        features: features of the images ``(B, F)``.
        centres: feature centres of the images' classes ``(B, F)``.
        labels: ``(B,)``.
        criterion: classification loss, a mean over images.
    """
    plain = criterion(raw, labels) / 3 + criterion(parts, labels.repeat(2)) * 2 / 3
    return plain + criterion(effects, labels.repeat(3)) + ((features - centres) ** 2).sum() / len(features)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def _of_all_processes(x: Tensor) -> Tensor:
    """The rows of all processes of a distributed run, so that they move their centres alike; batches are of equal size."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    gathered = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, x.contiguous())
    return torch.cat(gathered)
