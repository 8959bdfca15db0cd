"""Mutations of a random sample: ``python -m tests.mutation_sample`` (``make mutation-sample``).

``make mutation`` makes every small error in the formulas and takes hours. This makes some in each module, always the
same ones for a seed, and prints how many the tests noticed and the names of the others (``mutmut show NAME``).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_UNNOTICED = (None, 0, 33)  # exit codes of the tests: they did not run, passed, or there are none


def run(each: int, seed: int, jobs: int) -> None:
    """Make the mutations and print what became of them.

    Args:
        each: How many in each module.
        seed: Of the choice.
        jobs: Processes.
    """
    command = [str(Path(sys.executable).parent / "mutmut"), "run", "--max-children", str(jobs)]
    subprocess.run([*command, "diffgradcam.heatmaps.x_minmax__mutmut_1"], cwd=ROOT, check=True)  # makes all of them
    rng = random.Random(seed)
    chosen = {module: rng.sample(names, min(each, len(names))) for module, names in _mutants().items() if names}
    subprocess.run([*command, *(name for names in chosen.values() for name in names)], cwd=ROOT, check=True)
    missed: list[str] = []
    for module, names in chosen.items():
        codes = _codes(module)
        unnoticed = [name for name in names if codes[name] in _UNNOTICED]
        missed += unnoticed
        print(f"{module.stem.removesuffix('.py')}: {len(names) - len(unnoticed)} of {len(names)}")
    total = sum(map(len, chosen.values()))
    print(f"all: {total - len(missed)} of {total} ({(total - len(missed)) / total:.1%})", *missed, sep="\n")


def _mutants() -> dict[Path, list[str]]:
    """Every mutant, by the file that remembers those of its module."""
    return {path: sorted(_codes(path)) for path in sorted((ROOT / "mutants" / "diffgradcam").rglob("*.meta"))}


def _codes(path: Path) -> dict[str, int | None]:
    """The exit code of the tests for each mutant."""
    codes: dict[str, int | None] = json.loads(path.read_text())["exit_code_by_key"]
    return codes


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation_sample", description=__doc__)
    parser.add_argument("--each", type=int, default=40, help="mutations in each module (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    run(options.each, options.seed, options.jobs)


if __name__ == "__main__":
    main()
