"""``diffgradcam train`` and ``evaluate``, from a folder of images to figures."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

click_testing = pytest.importorskip("click.testing", reason="the command needs pip install click")
pytest.importorskip("sklearn", reason="AUROC needs the extra metrics")

from diffgradcam.cli import main  # noqa: E402
from diffgradcam.data import SaliencyDataset  # noqa: E402
from diffgradcam.training import SmallNet, write_checkpoint  # noqa: E402

ROOT = Path(__file__).parent.parent
SMALL = ["--size", "16", "--epochs", "2", "--batch-size", "16", "--resamples", "20"]
FACTORY = """
from torch import nn

def make():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), *head)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """80 images: noise, or noise with a bright square of one of two kinds, marked; five patients have several."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    rows = []
    for i in range(80):
        pixels = random.integers(0, 120, (20, 24, 3), dtype=np.uint8)
        marked = np.zeros((20, 24), np.uint8)
        kind = ("live", "live", "print", "mask")[i % 4]
        if kind != "live":
            y, x = random.integers(0, 14, 2)
            pixels[y : y + 6, x : x + 6, 0 if kind == "print" else 2] = 255
            marked[y : y + 6, x : x + 6] = 255
        Image.fromarray(pixels).save(root / f"{i}.png")
        Image.fromarray(marked).save(root / f"{i}_map.png")
        saliency = f"{i}_map.png" if kind != "live" and i % 8 != 2 else ""
        patient = f"p{i % 5}" if i < 20 else ""
        rows.append((f"{i}.png", "bona fide" if kind == "live" else "attack", kind, saliency, patient))
    write(root / "data.csv", rows)
    return root


def write(path, rows, header=("image", "label", "group", "saliency", "patient")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def rows(folder):
    with (folder / "data.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def call(*arguments, code=0):
    result = click_testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def train(folder, out, *arguments, code=0):
    return call("train", folder / "data.csv", "--attack", "attack", "--out", out, *SMALL, *arguments, code=code)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return out, train(folder, out, "--all-groups", "--seeds", "2", "--json")


def test_it_writes_weights_metrics_and_a_report(folder, trained):
    out, result = trained
    found = json.loads(result.stdout)
    assert json.loads((out / "metrics.json").read_text()) == found
    assert [run["run"] for run in found["runs"]] == [
        f"without-{group}-{seed}" for seed in (0, 1) for group in ("mask", "print")
    ]
    values = [run["open"]["decisions"]["auroc"]["value"] for run in found["runs"]]
    assert found["mean"]["open"]["decisions"]["auroc"]["mean"] == pytest.approx(np.mean(values))
    assert found["mean"]["open"]["decisions"]["auroc"]["sd"] == pytest.approx(np.std(values, ddof=1))
    for run in found["runs"]:
        place = out / run["run"]
        assert {path.name for path in place.iterdir()} == {"model.safetensors", "metrics.json"}
        figures = run["closed"]["decisions"]["auroc"]
        assert figures["low"] <= figures["value"] <= figures["high"]
        assert set(run["closed"]["maps"]) == {"true", "difference"}
        with safe_open(place / "model.safetensors", "pt") as file:
            about = json.loads(file.metadata()["diffgradcam"])
        assert about["classes"] == ["bona fide", "attack"]
        assert about["settings"]["epochs"] == 2
        assert about["together"] == "patient"
        assert about["hold_out"] == run["hold_out"]
        seen = set(about["seen"]["names"])
        kinds = {row[2] for row in rows(folder) if row[0] in seen}
        assert run["hold_out"] not in kinds
        known = {row[4] for row in rows(folder) if row[0] in seen} - {""}
        assert known == set(about["seen"]["together"])
    page = (out / "report.html").read_text()
    assert "before training" in page
    assert "after training" in page
    assert "people" in page
    assert "80 images: 40 bona fide, 40 attack; 30 have a human map; split by patient" in result.stderr
    assert "run 4 of 4: without-print-1" in result.stderr


def test_the_same_command_again_trains_nothing_and_says_the_same(folder, trained):
    out, result = trained
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    (out / "without-mask-0" / "state.safetensors").write_bytes(b"left by a process that was killed at the very end")
    again = train(folder, out, "--all-groups", "--seeds", "2", "--json")
    assert json.loads(again.stdout) == json.loads(result.stdout)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*")} == before


def test_a_run_that_is_missing_is_trained_again_with_the_same_numbers(folder, trained):
    out, result = trained
    place = out / "without-mask-1"
    weights = (place / "model.safetensors").read_bytes()
    for path in place.iterdir():
        path.unlink()
    assert json.loads(train(folder, out, "--all-groups", "--seeds", "2", "--json").stdout) == json.loads(result.stdout)
    assert (place / "model.safetensors").read_bytes() == weights


def test_other_options_do_not_mix_with_runs_that_exist(folder, trained):
    out, _ = trained
    result = train(folder, out, "--all-groups", "--alpha", "0.9", code=1)
    assert "is of other options or other images: choose another folder with --out" in result.stderr
    write(folder / "fewer.csv", rows(folder)[:-4])
    result = call(
        "train",
        folder / "fewer.csv",
        "--attack",
        "attack",
        "--out",
        out,
        *SMALL,
        "--all-groups",
        "--seeds",
        "2",
        code=1,
    )
    assert "is of other options or other images" in result.stderr


def test_words_for_people(folder, trained):
    out, _ = trained
    text = train(folder, out, "--all-groups", "--seeds", "2").stdout
    assert "closed set, 4 runs:" in text
    assert "open set, 4 runs:" in text
    assert "  apcer_at_bpcer_1" in text
    assert "+- " in text
    assert f"written to {out}" in text


def test_evaluate_leaves_out_what_the_model_was_trained_on(folder, trained):
    out, result = trained
    checkpoint = out / "without-mask-0" / "model.safetensors"
    found = json.loads(call("evaluate", checkpoint, folder / "data.csv", "--json", "--resamples", "0").stdout)
    run = json.loads(result.stdout)["runs"][0]
    for part in ("closed", "open"):
        # The tests of training were of the same images, so the figures are the same.
        assert found[part]["images"] == run[part]["images"]
        for name, figures in found[part]["decisions"].items():
            assert figures["value"] == pytest.approx(run[part]["decisions"][name]["value"]), name
        assert found[part]["maps"]["true"]["energy"]["value"] == pytest.approx(
            run[part]["maps"]["true"]["energy"]["value"], abs=1e-5
        )


def test_evaluate_takes_other_images(folder, trained, tmp_path):
    out, _ = trained
    for i, row in enumerate(rows(folder)[:8]):
        Image.open(folder / row[0]).save(tmp_path / f"new{i}.png")
    new = [(f"new{i}.png", row[1], row[2], "", "") for i, row in enumerate(rows(folder)[:8])]
    write(tmp_path / "other.csv", new)
    checkpoint = out / "without-mask-0" / "model.safetensors"
    result = call("evaluate", checkpoint, tmp_path / "other.csv", "--json", "--resamples", "20")
    found = json.loads(result.stdout)
    assert found["closed"]["images"] == {"0": 4, "1": 2}
    assert found["open"]["images"] == {"0": 4, "1": 2}
    assert found["open"]["maps"] == {}
    assert "8 images; the model was not trained on 8 of them" in result.stderr
    write(tmp_path / "wrong.csv", [(name, "cat" if i else "attack", *rest) for i, (name, _, *rest) in enumerate(new)])
    result = call("evaluate", checkpoint, tmp_path / "wrong.csv", code=1)
    assert "has the labels ['cat', 'attack'], but the model was trained on ['bona fide', 'attack']" in result.stderr
    (tmp_path / "x.safetensors").write_bytes(b"no")
    result = call("evaluate", tmp_path / "x.safetensors", tmp_path / "other.csv", code=1)
    assert "cannot be read as safetensors" in result.stderr
    write_checkpoint(tmp_path / "x.safetensors", {}, {"layer": "features"})
    result = call("evaluate", tmp_path / "x.safetensors", tmp_path / "other.csv", code=1)
    assert "does not say model, classes, size, mean, std, together, seen" in result.stderr


def test_a_model_of_ones_own_and_the_preset(folder, tmp_path):
    factory = tmp_path / "model.py"
    factory.write_text(FACTORY)
    out = tmp_path / "runs"
    arguments = ["--model", f"{factory}:make", "--preset", "cyborg", "--lr", "0.01", "--test", "0.3", "--json"]
    found = json.loads(train(folder, out, *arguments).stdout)
    assert found["runs"][0]["open"] is None
    about = json.loads((out / "closed-0" / "metrics.json").read_text())["about"]
    settings = about["settings"]
    assert (settings["optimizer"], settings["learning_rate"], settings["schedule"]) == ("sgd", 0.01, "step")
    assert (settings["epochs"], settings["batch_size"], settings["explained"]) == (2, 16, "predicted")
    assert about["layer"] == "1"
    again = ["evaluate", out / "closed-0" / "model.safetensors", folder / "data.csv", "--resamples", "0"]
    assert "a file is run only where you name it: add --model" in call(*again, code=1).stderr
    factory.rename(tmp_path / "moved.py")
    call(*again, "--model", f"{tmp_path / 'moved.py'}:make")
    (tmp_path / "wide.py").write_text(FACTORY.replace("4", "5"))
    result = call(*again, "--model", f"{tmp_path / 'wide.py'}:make", code=1)
    assert "are not those of" in result.stderr


def test_seeds_differ_in_their_weights_from_the_start():
    from diffgradcam.cli._trainable import build_model

    built = build_model("small", size=16)
    first, again, other = (built.make(seed).features[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert isinstance(built.make(0), SmallNet)


def test_bad_rows_are_named_before_anything_trains(folder, tmp_path):
    good = rows(folder)
    for row in good[:12]:
        (tmp_path / row[0]).write_bytes((folder / row[0]).read_bytes())
    (tmp_path / "3.png").write_bytes((folder / "3.png").read_bytes()[:300])
    bad = [(row[0], row[1], row[2], "", "") for row in good[:12]]
    write(tmp_path / "data.csv", bad)
    result = train(tmp_path, tmp_path / "runs", code=1)
    assert "data.csv, row 5: cannot read '3.png'" in result.stderr
    bad[5] = ("gone.png", *bad[5][1:])
    bad[7] = ("too.png", *bad[7][1:])
    write(tmp_path / "data.csv", bad)
    result = train(tmp_path, tmp_path / "runs", code=1)
    assert "data.csv, row 7: no file 'gone.png'" in result.stderr
    assert "; data.csv, row 9: no file 'too.png'" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_many_bad_rows_are_counted(tmp_path):
    write(tmp_path / "data.csv", [(f"{i}.png", "0", "", "", "") for i in range(14)])
    with pytest.raises(FileNotFoundError, match=r"row 2: no file '0.png'.*row 11: no file '9.png'.*; and 4 more rows"):
        SaliencyDataset(tmp_path, tmp_path / "data.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "spoof"], "--attack is 'spoof': expected one of the labels, 'attack', 'bona fide'"),
        (["--hold-out", "replay"], "no group 'replay': expected one of live, mask, print"),
        (["--hold-out", "mask", "--all-groups"], "--hold-out and --all-groups exclude each other"),
        (["--alpha", "much"], "'much'; expected a number from 0 to 1, dynamic or dynamic-detached"),
        (["--alpha", "2"], "alpha is 2.0; expected the weight of the classification"),
        (["--together", "clinic"], "data.csv has no column 'clinic': expected one of image, label, group"),
        (["--model", "resnet18"], "did you mean torchvision:resnet18"),
        (["--pretrained"], "small starts from scratch"),
        (["--layer", "layer9"], "no layer 'layer9' of small has positions"),
        (["--mean", "0.5,0.5,0.5", "--std", "0.2"], "expected one number each"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_options_that_make_no_sense(folder, tmp_path, arguments, message):
    result = click_testing.CliRunner().invoke(
        main,
        ["train", str(folder / "data.csv"), "--attack", "attack", "--out", str(tmp_path / "o"), *SMALL, *arguments],
    )
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_labels_of_another_kind_need_a_word(folder, tmp_path):
    result = call("train", folder / "data.csv", "--out", tmp_path / "runs", code=1)
    assert "labels are 'attack' and 'bona fide': say which one is the attack with --attack" in result.stderr
    write(tmp_path / "three.csv", [(row[0], str(i % 3), "", "", "") for i, row in enumerate(rows(folder))])
    result = call("train", tmp_path / "three.csv", "--root", folder, "--out", tmp_path / "runs", code=1)
    assert "three.csv has the labels 0, 1, 2: expected two" in result.stderr


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)
def test_torchrun_runs_the_same_command(folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "diffgradcam.cli", "train", str(folder / "data.csv"), "--attack", "attack",
               "--out", str(tmp_path / "two"), "--loss", "ce", "--json", *SMALL]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"][0]["run"] == "closed-0"
    assert (tmp_path / "two" / "closed-0" / "model.safetensors").is_file()
