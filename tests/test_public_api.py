"""Public names and signatures change only with the changelog; tests/public_api.py says how."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import diffgradcam
from tests.public_api import FILE, Entry, public_names, read, updated, write

ROOT = Path(__file__).parent.parent
ENTRIES = read(FILE.read_text("utf-8"))


def test_names_and_signatures_are_those_on_file():
    version, now = diffgradcam.__version__, public_names()
    after = updated(ENTRIES, now, version)
    different = sorted(name for name in {*after, *ENTRIES} if after.get(name) != ENTRIES.get(name))
    assert not different, (
        f"{len(different)} public names have changed, such as {different[:5]}; if that is meant, run "
        "python -m tests.public_api, and say it in CHANGELOG.md"
    )


def test_what_takes_long_to_import_is_imported_when_it_is_used():
    code = """
import sys, diffgradcam
late = {f"diffgradcam.{name}" for name in ("cli", "data", "metrics", "robustness", "sham", "training", "visualize")}
assert not late & set(sys.modules), late & set(sys.modules)
from diffgradcam import *
assert "diffgradcam.robustness" in sys.modules
from diffgradcam.robustness import audit as same
assert audit is same is diffgradcam.audit
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_file_is_as_it_is_written():
    assert write(ENTRIES) == FILE.read_text("utf-8")


def test_what_this_version_changes_is_in_the_changelog():
    missing = unmentioned(ENTRIES, diffgradcam.__version__, (ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert not missing, f"CHANGELOG.md does not mention {missing}"


def test_no_version_lies_ahead():
    newest = Version(diffgradcam.__version__)
    for name, entry in ENTRIES.items():
        for version in filter(None, (entry.added, entry.changed, entry.removed)):
            assert Version(version) <= newest, name


def unmentioned(entries, version, changelog):
    """Names that a version adds, changes or removes, and that its section, the newest, does not have.

    The first version adds everything: its section says what there is, not every name of it. A member is mentioned
    where its class is.
    """
    if all(entry.added == version for entry in entries.values()):
        return []
    section = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    words = set(re.findall(r"\w+", section))
    touched = [name for name, entry in entries.items() if version in (entry.added, entry.changed, entry.removed)]
    return [name for name in touched if not words & set(name.split(".")[-2:])]


class TestUpdates:
    def test_the_first_file(self):
        assert updated({}, {"a": "(x)"}, "1.0.0") == {"a": Entry("(x)", "1.0.0")}

    def test_what_is_new_in_a_version_changes_freely_within_it(self):
        entries = {"a": Entry("(x)", "1.0.0"), "b": Entry("", "1.0.0")}
        assert updated(entries, {"a": "(y)"}, "1.0.0") == {"a": Entry("(y)", "1.0.0")}

    def test_later_changes_are_kept(self):
        entries = {"same": Entry("(x)", "1.0.0"), "other": Entry("(x)", "1.0.0"), "gone": Entry("(x)", "1.0.0")}
        after = updated(entries, {"same": "(x)", "other": "(x, y=1)", "new": ""}, "1.1.0")
        assert after == {
            "same": Entry("(x)", "1.0.0"),
            "other": Entry("(x, y=1)", "1.0.0", "1.1.0"),
            "gone": Entry("(x)", "1.0.0", "", "1.1.0"),
            "new": Entry("", "1.1.0"),
        }
        assert updated(after, {"same": "(x)", "other": "(x, y=1)", "new": ""}, "1.1.0") == after
        assert updated(after, {"same": "(x)", "other": "(x, y=1)", "new": "", "gone": "()"}, "1.2.0")["gone"] == Entry(
            "()", "1.2.0"
        )
        assert read(write(after)) == after

    def test_the_changelog_must_name_what_changes(self):
        entries = {
            "diffgradcam.old": Entry("(x)", "1.0.0"),
            "diffgradcam.changed": Entry("(x)", "1.0.0", "1.1.0"),
            "diffgradcam.New.method": Entry("(x)", "1.1.0"),
        }
        log = "# Changelog\n\n## [Unreleased]\n\n- {}\n\n## [1.0.0] - 2026-01-31\n\n- `changed` and `New`.\n"
        assert unmentioned(entries, "1.1.0", log.format("nothing")) == ["diffgradcam.changed", "diffgradcam.New.method"]
        assert unmentioned(entries, "1.1.0", log.format("`New`, `changed(x)`")) == []
        assert unmentioned({"a": Entry("", "1.0.0")}, "1.0.0", log) == []

    @pytest.mark.parametrize("line", ["a", "a(x)  # 1.0.0", "a  # added 1.0.0, gone 1.1.0"])
    def test_a_line_that_is_none(self, line):
        with pytest.raises(AssertionError, match=re.escape(line)):
            read(line)


def test_defaults_are_told_without_addresses_and_annotations():
    names = public_names()
    assert names["diffgradcam.layer_input"] == "(module_or_name, argument=None)"
    assert "output=find_logits" in names["diffgradcam.audit"]
    assert names["diffgradcam.scores.LogitDifference"] == "(baseline='logsumexp')"
    assert names["diffgradcam.AugSmooth"] == names["diffgradcam.methods.smoothing.AugSmooth"]
    assert "diffgradcam.BaseCAM.explain" in names
    assert "diffgradcam.GradCAM.explain" not in names  # as in BaseCAM
    assert not any(" at 0x" in signature for signature in names.values())
