from __future__ import annotations

from pathlib import Path

import pytest

from experiments import cells


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "results"
    assert cells.read(folder) == []
    assert cells.names(folder, {"sizes": (1, 2)}) == set()
    for name in ("b", "a"):
        cells.write(folder / f"{name}.json", {"name": name, "config": {"sizes": (1, 2)}})
    (folder / "c123.part").write_text('{"name": "c')  # a run killed while it wrote
    assert [cell["name"] for cell in cells.read(folder)] == ["a", "b"]
    assert cells.names(folder, {"sizes": (1, 2)}) == {"a", "b"}


def test_a_cell_is_there_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        cells.write(tmp_path / "cell.json", {"a": 1})
    assert cells.read(tmp_path) == []


def test_numbers_take_one_line_and_stay_as_they_are(tmp_path: Path) -> None:
    cell = {"config": {}, "shares": [0.25, -1e-05, 3], "names": ["a [1, x]", "b"], "more": [[1, 2], []]}
    cell["means"] = {"r": 0.5, "undefined": None, "text": {"a  b": "{1,  2}"}, "errors": {"low": -1, "high": 1e30}}
    cells.write(tmp_path / "a.json", cell)
    assert cells.read(tmp_path) == [cell]
    text = (tmp_path / "a.json").read_text()
    assert ' "shares": [ 0.25, -1e-05, 3 ],\n' in text
    assert '  "errors": { "low": -1, "high": 1e+30 }\n' in text


def test_configurations_do_not_mix(tmp_path: Path) -> None:
    cells.write(tmp_path / "a.json", {"config": {"epochs": 1}})
    with pytest.raises(ValueError, match=r"a\.json was made with \{'epochs': 1\}, but this run has \{'epochs': 2\}"):
        cells.names(tmp_path, {"epochs": 2})
    cells.write(tmp_path / "b.json", {"config": {"epochs": 2}})
    with pytest.raises(ValueError, match=r"have 2 configurations: keep those of one"):
        cells.read(tmp_path)
