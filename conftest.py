"""What every doctest may use without importing it, and the random numbers that it draws."""

import pytest
import torch

# They import trainers of other libraries, and have no doctests.
collect_ignore_glob = ["diffgradcam/integrations/[lh]*.py"]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object], request: pytest.FixtureRequest) -> None:
    doctest_namespace.update(torch=torch, nn=torch.nn)
    if hasattr(request.node, "dtest"):  # a doctest: each draws the same numbers every time
        torch.manual_seed(1)
