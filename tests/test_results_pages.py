"""The committed pages of results are what the committed cells say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import claims
from experiments.faithfulness import report as faithfulness
from experiments.saliency_guided import report as saliency
from experiments.saliency_guided.real import report as real
from experiments.sham import report as sham

PAGES = Path(__file__).parent.parent / "docs" / "results"


@pytest.mark.parametrize(
    ("page", "write"),
    [
        ("sham.md", lambda: sham.markdown(sham.load())),
        ("saliency_guided.md", lambda: saliency.markdown(saliency.load(), saliency.real_sections())),
        ("faithfulness.md", lambda: faithfulness.markdown(faithfulness.load())),
        (
            "claims.md",
            lambda: claims.markdown(claims.diffgradcam(sham.load()), claims.divisive(saliency.load(), real.load())),
        ),
    ],
)
def test_a_page_is_what_its_cells_say(page: str, write: Callable[[], str]) -> None:
    assert (PAGES / page).read_text(encoding="utf-8") == write()
