"""The committed pages of results are what the committed cells say."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import claims
from experiments.audit import report as audit
from experiments.faithfulness import report as faithfulness
from experiments.lies import report as lies
from experiments.saliency_guided import report as saliency
from experiments.saliency_guided.real import report as real
from experiments.sham import report as sham

PAGES = Path(__file__).parent.parent / "docs" / "results"


@pytest.mark.parametrize(
    ("page", "write"),
    [
        ("sham.md", lambda: sham.markdown(sham.load())),
        ("sham_tables.md", lambda: sham.tables(sham.load())),
        ("lies.md", lambda: lies.markdown(lies.load())),
        ("lies_tables.md", lambda: lies.tables(lies.load())),
        ("audit.md", lambda: audit.markdown(audit.load())),
        ("saliency_guided.md", lambda: saliency.markdown(saliency.load(), saliency.real_sections())),
        ("faithfulness.md", lambda: faithfulness.markdown(faithfulness.load())),
        ("faithfulness_tables.md", lambda: faithfulness.tables(faithfulness.load())),
        (
            "claims.md",
            lambda: claims.markdown(
                claims.diffgradcam(sham.load(), lies.load()),
                claims.divisive(saliency.load(), real.load()),
                claims.answers(lies.load(), saliency.load(), real.load()),
            ),
        ),
    ],
)
def test_a_page_is_what_its_cells_say(page: str, write: Callable[[], str]) -> None:
    assert (PAGES / page).read_text(encoding="utf-8") == write()


@pytest.mark.parametrize("page", ["sham", "lies", "audit", "faithfulness", "claims"])
def test_a_page_leads_with_one_figure_three_sentences_and_one_table(page: str) -> None:
    blocks = (PAGES / f"{page}.md").read_text(encoding="utf-8").split("\n\n")
    assert blocks[0].startswith("# ")
    assert f"]({page}.png)" in blocks[1]
    assert (PAGES / f"{page}.png").exists()
    assert all(block.startswith("**") for block in blocks[2:5])
    assert blocks[5].startswith("| ")
    assert "## How it was done" in blocks


def test_what_the_answers_say_in_words_is_what_the_cells_say() -> None:
    """The numbers of an answer are computed; its words are not, so they are checked here."""
    attacks = sham.load()
    for setting in attacks.settings:
        assert attacks.decisions(setting, "common mode", "agreement", "fitted").low == 1
        assert attacks.map(setting, "common mode", "GradCAM", "kept", "fitted").mean < sham.RUINED
        for attack in ("spatial", "SHAM on GradCAM", "SHAM on DiffGradCAM logsumexp"):
            assert attacks.map(setting, attack, "DiffGradCAM logsumexp", "kept", "fitted").mean < sham.RUINED
        seen, others = (
            attacks.map(setting, "SHAM on GradCAM", "GradCAM", "reached_after", part).mean
            for part in ("fitted", "held_out")
        )
        assert seen > others


def test_what_the_answer_on_lies_says_in_words_is_what_the_cells_say() -> None:
    results = lies.load()
    common = results.verdicts(("common mode",), ("GradCAM",), "held_out")
    assert common["lie"] > common.total() / 2
    shared = results.verdicts(lies.SHARED, lies.CONTRASTIVE, "held_out")
    assert not shared["lie"] + shared["change"]
    assert lies.shared_loss(results) < 1e-4
    for setting in results.settings:  # the wrapper's rounding is in the references, not in the maps
        for row in results.rows(setting, "wrapper", "DiffGradCAM mean", "held_out"):
            assert row["kept"][0] > 0.9999
    aimed, _, runs = lies.aimed(results)
    assert 0 < aimed <= runs
    weights = results.verdicts(lies.ON_WEIGHTS, lies.EXPLAINERS, "held_out")
    assert weights["lie"] > 0
    assert weights["change"] + weights["unclear"] > 0
