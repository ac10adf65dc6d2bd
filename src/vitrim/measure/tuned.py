"""What tuning costs: trained parameters and multiply-adds, by the plain convention and by that of the ILA paper.

The paper counts with torchprofile, which adds one operation for each element that a norm, a product or a mean gives to the
multiply-adds of matrix products and convolutions. And its "total tunable parameters" (TTP) are neither of one data set nor the
sum over those of its table: five times the mean over ten data sets for frozen models, five times a head of 200 classes else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitrim.core.attach import tune
from vitrim.data.models import parse_model, require_timm_model
from vitrim.measure.flops import count_flops, parameters

# Classes of the ten ultra-fine-grained sets whose mean the TTP column takes, and the five of the paper's table.
UFGIR_CLASSES = {
    "cotton": 80, "soyageing": 198, "soyageingr1": 198, "soyageingr3": 198, "soyageingr4": 198, "soyageingr5": 198,
    "soyageingr6": 198, "soygene": 1110, "soyglobal": 1938, "soylocal": 200,
}  # fmt: skip
TABLE_SETS = ("cotton", "soyageing", "soygene", "soyglobal", "soylocal")


@dataclass(frozen=True)
class Cost:
    """What a tuning method costs on a model.

    Attributes:
        spec: the method.
        trained: trained parameters.
        total: all parameters.
        gmacs: multiply-adds / 1e9 of one image, in evaluation.
        paper_gmacs: the same as torchprofile counts.
        dense_gmacs: multiply-adds / 1e9 of the model without the method.
        tokens: sequence length after the last block.
    """

    spec: str
    trained: int
    total: int
    gmacs: float
    paper_gmacs: float
    dense_gmacs: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def costs(
    specs: Iterable[str],
    model: str = "timm/vit_base_patch16_224",
    classes: int = 200,
    train: Sequence[str] = ("head", "class_token"),
) -> list[Cost]:
    """The costs of tuning methods on a model of timm, from shapes alone: nothing is computed.

    Args:
        specs: the methods.
        model: ``timm/NAME(settings)``.
        classes: number of classes.
        train: parts of the model that are trained besides.

    Raises:
        SpecError: for an unknown method or setting, or a model that a method cannot serve.
        ValueError: for an unknown model.
    """
    with torch.device("meta"):
        plain = build_model(model, classes)
    image = _input(plain)
    dense = both_macs_of_shapes(plain, image)[0] / 1e9
    found: list[Cost] = []
    for spec in specs:
        with torch.device("meta"):
            tuned = build_model(model, classes)
            tuning = tune(tuned, spec, train=train)
        lengths: list[int] = []
        blocks: Any = tuned.blocks
        blocks[-1].register_forward_hook(lambda _m, _i, y, into=lengths: into.append(int(y.shape[1])))
        trained, total = tuning.count()
        macs, paper = both_macs_of_shapes(tuned, image)
        found.append(Cost(tuning.spec, trained, total, macs / 1e9, paper / 1e9, dense, lengths[0]))
    return found


def total_trained(count: Callable[[int], int], *, full: bool = False) -> tuple[float, float]:
    """Trained parameters of five runs: as the ILA paper counts them, and really over the five data sets of its table.

    Args:
        count: trained parameters by the number of classes.
        full: the rule for fully tuned models: five times those of a head of 200 classes.

    Returns:
        The paper's number and the sum over the five sets.
    """
    sizes = list(UFGIR_CLASSES.values())
    mean = sum(count(classes) for classes in sizes) / len(sizes)
    return 5 * (count(200) if full else mean), float(sum(count(UFGIR_CLASSES[name]) for name in TABLE_SETS))


def trained_parameters(spec: str, classes: int, model: str = "timm/vit_base_patch16_224", **options: Any) -> int:
    """Trained parameters of a method on a model of timm, without memory for the weights."""
    with torch.device("meta"):
        built = build_model(model, classes)
        tune(built, spec, **options)
    return parameters(built, trainable=True)


def both_macs(model: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Multiply-adds of a forward pass: plain, and as torchprofile counts, with one per element of a norm, product or mean."""
    extra = _Elementwise()
    with extra:
        plain = count_flops(model, *inputs).macs
    return plain, plain + extra.count


def both_macs_of_shapes(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int]:
    """As :func:`both_macs` for one image in evaluation, from shapes alone: nothing is computed, and weights need no memory.

    Args:
        model: on the meta device, where it may have been built; it loses its values.
        image: channels, height and width.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # As on a CPU: its attention is one operator, which the meta device takes apart, with products that would be counted.
        model.to_empty(device="cpu").eval()
        return both_macs(model, torch.zeros(1, *image))


def build_model(model: str, classes: int) -> nn.Module:
    """A model of timm, with random weights.

    Args:
        model: ``timm/NAME(settings)``.
        classes: number of classes.

    Raises:
        ValueError: for an unknown model.
    """
    import timm

    library, key, settings = parse_model(model)
    if library != "timm":
        raise ValueError(f"model '{model}': give timm/NAME, such as timm/vit_base_patch16_224")
    require_timm_model(key)
    create: Any = timm.create_model
    return create(key, **{**settings, "pretrained": False, "num_classes": classes})


class _Elementwise(TorchDispatchMode):
    """Counts what torchprofile counts besides products of matrices."""

    ONE = (
        "aten::native_layer_norm",
        "aten::native_batch_norm",
        "aten::cudnn_batch_norm",
        "aten::_native_batch_norm_legit_no_training",
        "aten::mul",
        "aten::mean",
        "aten::avg_pool2d",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        first = out[0] if isinstance(out, tuple | list) else out
        if isinstance(first, Tensor) and first.is_floating_point():
            if name in self.ONE:
                self.count += prod(first.shape)
            elif name == "aten::upsample_bilinear2d":
                self.count += 4 * prod(first.shape)
        return out


def _input(model: Any) -> tuple[int, int, int]:
    config = model.pretrained_cfg
    size = getattr(model.patch_embed, "img_size", None)
    channels = model.patch_embed.proj.in_channels
    return (channels, *size) if size else tuple(config["input_size"])
