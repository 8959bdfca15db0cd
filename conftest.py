"""What every doctest may use without importing it."""

import pytest
import torch

# They import trainers of other libraries, and have no doctests.
collect_ignore_glob = ["diffgradcam/integrations/[lh]*.py"]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace.update(torch=torch, nn=torch.nn)
