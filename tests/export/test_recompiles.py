"""torch.compile makes one graph of a reduced model, once, whatever the images are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.config
from torch._dynamo.utils import counters

import vitrim
from tests.export.models import images, short_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


QUICK = ("topk", "tome", "kmedoids", "sit")
each = [pytest.param(m, marks=() if m in QUICK else pytest.mark.heavy) for m in vitrim.list_methods()]


@pytest.mark.parametrize("method", each)
@pytest.mark.parametrize("fresh", [True, pytest.param(False, marks=pytest.mark.heavy)], ids=["fresh", "after an eager pass"])
def test_one_graph(method: str, fresh: bool) -> None:
    model = short_model(method)
    torch.compiler.reset()
    counters.clear()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    parts = images()[:9].split(3)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        if not fresh:
            model(parts[0])
        for part in parts:
            torch.testing.assert_close(compiled(part), model(part), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
