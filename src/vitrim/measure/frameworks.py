"""Agglomerative clustering of a batch of images by different libraries, from features to labels."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from torch import Tensor

from vitrim.kernels.clustering import LINKAGES, MOST, agglomerative

Cluster = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Framework:
    """A library that clusters.

    Attributes:
        name: as in tables and on the command line.
        module: what has to be importable.
        package: what installs it, by the name in package registries.
        make: from ``k`` and the linkage to a function of features ``(B, n, d)`` that gives labels ``(B, n)`` int64.
        linkages: those it has.
        cuda: whether it needs a GPU.
    """

    name: str
    module: str
    package: str
    make: Callable[[int, str], Cluster]
    linkages: tuple[str, ...] = LINKAGES
    cuda: bool = False

    def why_not(self, n: int, linkage: str, device: torch.device) -> str:
        """Why it cannot cluster this here, with the remedy; empty when it can."""
        if linkage not in self.linkages:
            return f"has {' and '.join(self.linkages)} linkage only"
        if self.module == "vitrim" and n > MOST:
            return f"clusters at most {MOST} points"
        if self.cuda and device.type != "cuda":
            return "needs a GPU: --device cuda"
        if importlib.util.find_spec(self.module) is None:
            return f"not installed: pip install {self.package}"
        return ""

    @property
    def version(self) -> str:
        """Of the installed package, or empty."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return ""


def reference_distances(features: Tensor) -> Tensor:
    """One minus the cosine similarity as the reference computes it: ``(B, n, d) -> (B, n, n)``, in the type of the features."""
    unit = features / features.norm(dim=-1, keepdim=True)
    return 1 - unit @ unit.transpose(-1, -2)


def _host(features: Tensor) -> np.ndarray[Any, Any]:
    """Distances of the whole batch on the device, then on the CPU: where the image by image libraries start."""
    distances = reference_distances(features)
    # NumPy has no bfloat16.
    return (distances.float() if distances.dtype == torch.bfloat16 else distances).cpu().numpy()


def _labels(found: Iterable[np.ndarray[Any, Any]], features: Tensor) -> Tensor:
    return torch.from_numpy(np.stack(list(found)).astype(np.int64, copy=False)).to(features.device)


def _sklearn(k: int, linkage: str) -> Cluster:
    """The reference's way: one estimator, used for image after image."""
    module: Any = importlib.import_module("sklearn.cluster")
    estimator = module.AgglomerativeClustering(n_clusters=k, metric="precomputed", linkage=linkage)
    return lambda features: _labels((estimator.fit_predict(d) for d in _host(features)), features)


def _tree(grow: Callable[[np.ndarray[Any, Any], str], np.ndarray[Any, Any]], k: int, linkage: str) -> Cluster:
    """Libraries that grow a tree from the upper triangle; the cut is SciPy's."""

    def run(features: Tensor) -> Tensor:
        distances = _host(features)
        upper = np.triu_indices(distances.shape[1], 1)
        # In double precision, as both libraries would convert it themselves.
        trees = (grow(d[upper].astype(np.float64), linkage) for d in distances)
        return _labels((fcluster(tree, k, "maxclust") - 1 for tree in trees), features)

    return run


def _scipy(k: int, linkage: str) -> Cluster:
    return _tree(scipy_linkage, k, linkage)


def _fastcluster(k: int, linkage: str) -> Cluster:
    module: Any = importlib.import_module("fastcluster")
    return _tree(lambda d, method: module.linkage(d, method, preserve_input=False), k, linkage)


def _cuml(k: int, linkage: str) -> Cluster:
    """RAPIDS, image by image on the GPU, fed features."""
    module: Any = importlib.import_module("cuml.cluster")
    estimator = module.AgglomerativeClustering(
        n_clusters=k, metric="cosine", connectivity="pairwise", linkage=linkage, output_type="cupy"
    )

    def run(features: Tensor) -> Tensor:
        found = [torch.as_tensor(estimator.fit_predict(x), device=features.device) for x in features.float().contiguous()]
        return torch.stack(found).long()

    return run


def _vitrim(k: int, linkage: str) -> Cluster:
    return lambda features: agglomerative(features, k, linkage=linkage)


# The first is what the others are compared with.
FRAMEWORKS = {
    f.name: f
    for f in (
        Framework("scikit-learn", "sklearn", "scikit-learn", _sklearn),
        Framework("scipy", "scipy", "scipy", _scipy),
        Framework("fastcluster", "fastcluster", "fastcluster", _fastcluster),
        Framework("cuml", "cuml", "cuml-cu12", _cuml, ("single",), cuda=True),
        Framework("vitrim", "vitrim", "vitrim", _vitrim),
    )
}
