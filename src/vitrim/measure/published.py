"""The cost table of the ILA paper (arXiv:2409.11051): as published, by the same conventions here, and plain.

The backbone is ViT-B/16 of timm. Nothing is computed: models and images have shapes and no values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from vitrim.core.attach import reduce, tune
from vitrim.core.registry import RECOGNISERS
from vitrim.measure.flops import parameters
from vitrim.measure.tuned import both_macs_of_shapes, build_model, total_trained

CLASSES = 200  # of the published multiply-adds, and of the rows that are tuned in full
# The published models of some heads have no class token; theirs is the norm before the pooling.
NO_CLS = "class_token=false, global_pool=avg, fc_norm=false"


@dataclass(frozen=True)
class Method:
    """A row of the paper's table.

    Attributes:
        name: as the paper abbreviates it; a star says that everything is trained.
        kind: whether ``spec`` is one of ``vitrim.tune``, of ``vitrim.recognise``, or a ``head`` of ``vitrim.reduce``.
        spec: the method.
        ttp: published total tunable parameters in millions.
        gmacs: multiply-adds / 1e9 of the published code under torchprofile, at 224 and at 448 pixels; None where there is no
            number. The paper's figure shows them rounded.
        train: parts of the backbone that are trained besides.
        model: further settings of the model.
        note: why the numbers differ from the published ones.
    """

    name: str
    kind: Literal["tune", "recognise", "head"]
    spec: str
    ttp: float
    gmacs: tuple[float | None, float | None] = (None, None)
    train: Sequence[str] = ("head", "class_token")
    model: str = ""
    note: str = ""

    @property
    def full(self) -> bool:
        """Whether everything is trained."""
        return self.name.endswith("*")


_ROWS = "one row of the product of attention matrices is computed, not all"
_TABLE = (
    Method("ViT", "tune", "linear", 1.7, (17.566996, 78.509612)),
    Method(
        "MPNC", "head", "mpncov", 4.9, (17.484707, 78.434586), (), NO_CLS,
        "covariance and its root count; the published code hides them from its profiler",
    ),
    Method("IFA", "head", "ifacls", 1.7, (17.566855, 78.509019)),
    Method("TrFG", "recognise", "transfg", 37.2, (17.122335, 130.145837), note=_ROWS),
    Method(
        "FFVT", "recognise", "ffvt", 37.2, (17.081430, 72.974001),
        note="the class token's row and column of attention are computed again, as fused attention hands none out",
    ),
    Method("CAL", "recognise", "cal(passes=8)", 55.6, (139.917608, None), (), NO_CLS),
    Method(
        "RAMS", "recognise", "ramstrans", 1.7, (35.219160, 162.350130),
        note="one row of the roll-out is computed, not all; but from attention computed again, as fused attention hands none out",
    ),
    Method("GLSim", "recognise", "glsim", 37.2, (35.148608, 157.035645)),
    Method(
        "VQT", "tune", "vqt(length=5)", 106.0, (17.948354, 78.945160),
        note="the queries get keys and values too, which are cut off afterwards",
    ),
    Method("VPT-S", "tune", "vpt", 2.1, (26.972923, 90.083141)),
    Method("VPT-D", "tune", "vpt(deep=true)", 6.3, (26.972846, 90.083065)),
    Method("ConvP", "tune", "convpass", 3.4, (17.631449, 78.766439)),
    Method("ADPT", "tune", "adapter", 3.3, (17.628725, 78.755587)),
    Method("TrFG*", "recognise", "transfg(stride=12)", 434.3, (31.496514, None), note=_ROWS),
    Method(
        "SIMT*", "recognise", "simtrans", 497.0, (17.949619, None),
        note="the published model holds 10,184,144 more parameters, which nothing reads, and multiplies whole adjacency matrices",
    ),
    Method(
        "CSD*", "tune", "full", 432.0,
        note="by its parameters a plain ViT, which is counted here; vitrim does not have the method",
    ),
    Method("ILA+", "tune", "ila(plus=1)", 2.6, (13.114010, 66.959246)),
    Method("ILA++", "tune", "ila(plus=2)", 3.5, (13.142481, 67.088889)),
)  # fmt: skip


def methods() -> tuple[Method, ...]:
    """The 18 rows of the paper's table, in its order."""
    return _TABLE


@dataclass(frozen=True)
class PublishedCost:
    """A row of the paper's table beside what is counted here.

    Attributes:
        name: as in the paper.
        kind: what the method is to vitrim: ``tune``, ``recognise`` or ``head``.
        spec: the method.
        size: side of the images in pixels.
        published_ttp: total tunable parameters in millions, as published.
        paper_ttp: the same by the paper's rule, here.
        five_sets: what the five data sets of the table really train, in millions; both at 448 pixels, as the table.
        trained: trained parameters with 200 classes.
        total: parameters in use with 200 classes; a classifier whose place a head has taken is not in use.
        published_gmacs: multiply-adds / 1e9 of the published code; None where there is no number.
        paper_gmacs: the same as torchprofile counts, here.
        gmacs: multiply-adds / 1e9 of products of matrices and convolutions alone.
        note: why numbers differ.
    """

    name: str
    kind: str
    spec: str
    size: int
    published_ttp: float
    paper_ttp: float
    five_sets: float
    trained: int
    total: int
    published_gmacs: float | None
    paper_gmacs: float
    gmacs: float
    note: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def published_cost(method: Method, size: Literal[224, 448] = 448) -> PublishedCost:
    """Count a row of the paper's table.

    Args:
        method: the row.
        size: side of the images in pixels, which multiply-adds and parameters are counted at.
    """
    model = assemble(method, CLASSES, size)
    macs, paper = both_macs_of_shapes(model, (3, size, size))
    ttp, five = total_of(method)
    return PublishedCost(
        method.name,
        method.kind,
        method.spec,
        size,
        method.ttp,
        ttp,
        five,
        parameters(model, trainable=True),
        parameters(model) - _idle(model),
        method.gmacs[size == 448],
        paper / 1e9,
        macs / 1e9,
        method.note,
    )


def total_of(method: Method) -> tuple[float, float]:
    """Total tunable parameters of a row in millions: by the paper's rule, and what the five data sets of the table train."""
    # A classifier is linear in the number of classes, and so is all that it is part of.
    base, more = (parameters(assemble(method, classes, 448), trainable=True) for classes in (CLASSES, CLASSES + 1))
    paper, five = total_trained(lambda classes: base + (classes - CLASSES) * (more - base), full=method.full)
    return paper / 1e6, five / 1e6


def assemble(method: Method, classes: int, size: int) -> nn.Module:
    """The model of a row on the meta device, with what it trains."""
    settings = f"img_size={size}" + (f", {method.model}" if method.model else "")
    with torch.device("meta"):
        model: Any = build_model(f"timm/vit_base_patch16_224({settings})", classes)
        base = "full" if method.full else "linear"
        if method.kind == "tune":
            tune(model, method.spec, train=method.train)
        elif method.kind == "recognise":
            recogniser = RECOGNISERS.build(method.spec)
            recogniser.setup(model, classes)
            tune(recogniser.vit, base, train=method.train)
            return recogniser
        else:
            tune(model, base, train=method.train)
            reduce(model, "none", head=method.spec)
    return model


def _idle(model: Any) -> int:
    """Parameters of the classifier whose place a head has taken: it is frozen, and comes back when the method is taken out."""
    return sum(p.numel() for p in getattr(model, "vit", model).get_classifier().parameters() if not p.requires_grad)
