from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from diffgradcam import audit, repair
from diffgradcam.robustness import AuditThresholds

pytest.importorskip("skimage", reason="the study needs scikit-image")

from experiments import cells
from experiments.audit import harmless, real, report, run, signs, zoo
from experiments.audit.zoo import ARCHITECTURES, DATA, LAYER, OPTIMIZERS, Config, Design
from experiments.saliency_guided.real import tasks
from experiments.saliency_guided.tasks import build

TINY = Config(
    calibration=1, test=2, train=64, held_out=24, images=6, digits_epochs=2, faces_epochs=1, batch=16
)._replace(digits_accuracy=0.0, faces_accuracy=0.0, fool_images=16, fool_epochs=1, photographs=(4, 12))
DIGITS = {name: source for name, source in DATA.items() if source.family == "digits"}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "DRAWS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The models.


def test_designs_are_balanced_and_the_splits_are_disjoint() -> None:
    config = Config()
    test, calibration = zoo.designs("test", config), zoo.designs("calibration", config)
    assert (len(test), len(calibration)) == (72, 24)
    for factor, levels in (("architecture", ARCHITECTURES), ("data", DATA), ("optimizer", OPTIMIZERS)):
        counts = Counter(getattr(design, factor) for design in test)
        assert counts == dict.fromkeys(levels, 72 / len(levels))
    for factor in ("weight_decay", "label_smoothing"):
        assert sorted(Counter(getattr(design, factor) for design in test).values()) == [36, 36]
    assert {design.architecture for design in calibration} == set(zoo.SEEN) < set(ARCHITECTURES)
    assert len({design.seed for design in test + calibration}) == 96
    assert len({design[:5] for design in test}) > 60  # combinations, not one block after the other


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_ends_in_a_pooled_linear_layer(architecture: str) -> None:
    features, channels = ARCHITECTURES[architecture]
    for side, cells_of_side in ((16, 8), (32, 8), (40, 10), (64, 8)):
        model = zoo.Classifier(nn.Sequential(*features(side)), channels, 3).eval()
        images = torch.randn(2, 1, side, side)
        activations = model.get_submodule(LAYER)(images)
        assert activations.shape == (2, channels, cells_of_side, cells_of_side)
        expected = torch.einsum("bcij,kc->bk", activations, model.head.weight) / cells_of_side**2 + model.head.bias
        assert torch.allclose(model(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", DIGITS)
def test_digits_are_split_and_labelled(name: str) -> None:
    side, classes, make, *_ = DATA[name]
    data, again = make(3, TINY), make(3, TINY)
    assert data.train.shape == (64, 1, side, side)
    assert data.held_out.shape == (24, 1, side, side)
    assert torch.equal(data.train, again.train)
    assert not torch.equal(data.train, make(4, TINY).train)
    assert set(data.train_labels.tolist()) == set(range(classes))
    assert torch.cdist(data.train.flatten(1), data.held_out.flatten(1)).min() > 0  # no image twice
    ten = DATA[f"10 digits, {side} px"].make(3, TINY)
    assert torch.equal(data.held_out_labels, ten.held_out_labels % 2 if classes == 2 else ten.held_out_labels)


def test_faces_keep_the_whole_face() -> None:
    data, task = DATA["faces, 40 px"].make(3, TINY), build("faces", 3, TINY.train, TINY.held_out)
    assert data.held_out.shape == (24, 1, 40, 40)
    assert torch.equal(data.train_labels, task.train.labels)
    regions = task.train._replace(images=task.train.saliency.unsqueeze(1))
    cropped = zoo._part(regions, np.random.default_rng(0))
    assert torch.allclose(cropped.sum((1, 2, 3)), task.train.saliency.sum((1, 2)))


@pytest.mark.skipif(bool(tasks.missing("fingerprints")), reason=str(tasks.missing("fingerprints")))
def test_the_prints_of_a_person_are_all_in_one_part() -> None:
    images, labels, people = zoo._all_prints()
    data = DATA["fingerprints, 64 px"].make(3, Config())
    assert data.held_out.shape == (400, 1, 64, 64)
    assert 900 < len(data.train) <= 1000
    whose = {image.numpy().tobytes(): person for image, person in zip(images, people, strict=True)}
    parts = [{whose[image.numpy().tobytes()] for image in part} for part in (data.train, data.held_out)]
    assert len(parts[0] & parts[1]) <= 1  # one print is there twice, as of persons 553 and 554
    label = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert [label[image.numpy().tobytes()] for image in data.held_out] == data.held_out_labels.tolist()
    assert set(labels.tolist()) == {0, 1}


@given(st.integers(0, 63), st.integers(1, 40), st.integers(0, 2**31))
def test_a_crop_holds_what_is_inside_and_lies_in_the_image(first: int, length: int, seed: int) -> None:
    last = min(63, first + length - 1)
    inside = torch.zeros(64, dtype=torch.bool)
    inside[first : last + 1] = True
    start = zoo._start(inside, np.random.default_rng(seed))
    assert 0 <= start <= first
    assert last < start + 40 <= 64


def test_training_learns_and_repeats() -> None:
    design = Design("plain", "odd digits, 16 px", "Adam", False, 0.0, 3)
    config = TINY._replace(train=192, held_out=100, digits_epochs=3)
    data = DATA[design.data].make(3, config)
    model = zoo.train(design, data, config)
    assert not model.training
    assert run._accuracy(model, data) > 0.7
    model, again = zoo.train(design, data, TINY), zoo.train(design, data, TINY)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for other in (design._replace(weight_decay=True), design._replace(label_smoothing=0.1)):
        assert not torch.equal(zoo.train(other, data, TINY).head.weight, model.head.weight)
    assert not torch.equal(zoo.train(design, data, TINY, mixup=True).head.weight, model.head.weight)
    taught = F.one_hot(data.train_labels).float()
    assert torch.allclose(zoo.train(design, data, TINY, targets=taught).head.weight, model.head.weight, atol=1e-5)


def test_a_model_that_is_wrong_too_often_has_not_learned() -> None:
    config = Config(digits_accuracy=0.9, faces_accuracy=0.7)
    assert [zoo.learned("10 digits, 16 px", a, config) for a in (0.89, 0.9)] == [False, True]
    assert [zoo.learned("faces, 40 px", a, config) for a in (0.69, 0.7)] == [False, True]


# What fools nobody.


def network(classes=3, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU()]
    return zoo.Classifier(nn.Sequential(*layers), 6, classes).eval()


def test_compression_changes_a_copy_by_as_much_as_it_says() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    rounded, sparse = harmless.int8(model), harmless.pruned(model)
    for old, of in ((model.head.weight, "head"), (model.features[2].weight, "features.2")):
        new = rounded.get_submodule(of).weight
        step = old.abs().flatten(1).amax(1) / 127
        steps = new.flatten(1) / step.unsqueeze(1)
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert bool(((new - old).abs().flatten(1) <= step.unsqueeze(1) * 0.501).all())
        kept = sparse.get_submodule(of).weight
        assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.06)
        assert torch.equal(kept[kept != 0], old[kept != 0])
        assert old[kept == 0].abs().max() <= old[kept != 0].abs().min()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def separable(count=120, classes=3):
    labels = torch.arange(count) % classes
    features = 0.1 * torch.rand(count, 6, generator=torch.Generator().manual_seed(0))
    features[torch.arange(count), labels] += 2
    return features, labels


def test_a_product_quantised_layer_is_made_of_few_vectors_and_has_a_common_mode() -> None:
    model, (features, labels) = repair(network(classes=20)), separable()
    assert model.head.weight.mean(0).norm() < 1e-6
    quantised = harmless.product_quantised(model, "head", features, labels)
    blocks = quantised.head.weight.view(-1, harmless._BLOCK)
    assert len(blocks.unique(dim=0)) <= len(blocks) // 2
    assert not torch.equal(quantised.head.weight, model.head.weight)
    assert quantised.head.weight.mean(0).norm() > 0.01


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"mixup": True}, {"optimizer": torch.optim.Adam}])
def test_a_new_head_learns(options) -> None:
    model, (features, labels) = network(classes=7), separable()
    torch.manual_seed(0)
    changed = harmless.new_head(model, "head", features, labels, **options)
    assert float((changed.head(features).argmax(1) == labels).float().mean()) > 0.9
    assert (changed.head.out_features, model.head.out_features) == (3, 7)
    assert torch.equal(changed.features[0].weight, model.features[0].weight)


def test_a_distilled_head_has_its_teachers_probabilities() -> None:
    model, (features, _) = network(), separable()
    with torch.no_grad():
        teacher = harmless.softened(3 * model.head(features))
    torch.manual_seed(0)
    student = harmless.new_head(model, "head", features, teacher)
    assert float((student.head(features).softmax(1) - teacher).abs().max()) < 0.15


def test_mixup_mixes_inputs_and_targets_alike() -> None:
    torch.manual_seed(0)
    values = torch.eye(5)
    inputs, targets = harmless.mixed(values, values)
    assert torch.equal(inputs, targets)
    assert torch.allclose(inputs.sum(1), torch.ones(5))
    assert bool((inputs.max(1).values < 1).any())


# The signs.


def test_the_signs_are_those_of_the_audit() -> None:
    # In float64: the network's decisions hardly depend on what is occluded, and other batches round otherwise.
    generator = torch.Generator().manual_seed(1)
    model, images = network().double(), torch.rand(9, 1, 14, 14, generator=generator, dtype=torch.float64)
    few, all_of_them = signs.Measured(model, LAYER, images), signs.Measured(model, LAYER, images, lowest="features.1")
    expected = audit(model, LAYER, images, progress=False)
    for measured in (few, all_of_them):
        for name, value in (
            ("common_mode_share", expected.common_mode_share),
            ("occlusion_gradcam", expected.gradcam_agreement),
            ("occlusion_visible", expected.visible_agreement),
            ("follows_visible", expected.visible_follows),
            ("lower_visible", expected.lower_agreement),
            ("offset", expected.offset),
        ):
            assert torch.allclose(measured.values[name], value, atol=1e-6), name
    assert few.lower == expected.lower_layer
    assert set(all_of_them.values) - set(few.values) >= {"lowest_visible", "integrated_visible", "occlusion49_visible"}
    maps = all_of_them.maps["gradcam"].flatten(1)
    others = np.corrcoef(maps.numpy())
    assert float(few.values["constancy_gradcam"][2]) == pytest.approx((others[2].sum() - 1) / 8, abs=1e-4)
    assert len(few.cell()["kept"]) == 9


def test_what_a_cover_takes_from_the_map_within_it() -> None:
    model, images = network(), torch.rand(3, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    cam = signs.GradCAM(model, LAYER, rectify=False)
    logits, classes, whole = cam.explain(images)
    drops, losses = signs._occluded(cam, images, classes, signs.logit_difference(logits, classes), whole, 2)
    hidden = images.clone()
    hidden[1, :, 3 * 2 : 6 * 2, 5 * 2 : 7 * 2] = images[1].mean()  # around the cell in row 4 and column 6
    after = cam.explain(hidden, classes)
    assert losses[1, 2, 3].item() == pytest.approx(float((whole - after.maps)[1, 6:12, 10:14].mean()), abs=1e-6)
    log_odds = signs.logit_difference(logits, classes) - signs.logit_difference(after.logits, classes)
    assert drops[1, 2, 3].item() == pytest.approx(float(log_odds[1]), abs=1e-5)


def test_the_truth_about_a_version() -> None:
    model, images = network(), torch.rand(9, 1, 14, 14, generator=torch.Generator().manual_seed(1))
    clean = signs.Measured(model, LAYER, images, lowest="features.1")
    same = clean.truth(clean)
    assert (same["agreement"], same["behaviour_kept"], same["gradcam_kept"]) == (1, 1, 1)
    assert same["gradcam_lost"] == same["diffgradcam_lost_error"] == 0
    moved = run._closed_forms(TINY)["flip"](model, images, torch.ones(14, 14), 0)
    truth = signs.Measured(moved, LAYER, images, lowest="features.1").truth(clean)
    assert truth["behaviour_kept"] == pytest.approx(1, abs=1e-4)
    assert truth["gradcam_kept"] < 0.9
    assert truth["gradcam_lost"] == pytest.approx(
        float(
            (
                clean.honesty("gradcam") - signs.Measured(moved, LAYER, images, lowest="features.1").honesty("gradcam")
            ).mean()
        ),
        abs=1e-3,
    )


# The cells.


def test_a_run_writes_cells_and_resumes(tmp_path: Path, monkeypatch) -> None:
    splits, every = ("test",), run.attacks
    names = ("common mode 1", "flip", "trained on DiffGradCAM, corner")
    monkeypatch.setattr(run, "attacks", lambda config: {name: every(config)[name] for name in names})
    monkeypatch.setattr(run, "HARMLESS", ("new head", "product-quantised"))
    monkeypatch.setattr(zoo, "DATA", DIGITS)
    run.run(tmp_path, splits, TINY)
    assert {path.name for path in tmp_path.iterdir()} == {"test-00.json", "test-01.json"}
    cell = json.loads((tmp_path / "test-01.json").read_text())
    assert cell["design"] == zoo.designs("test", TINY)[1]._asdict()
    versions = cell["versions"]
    assert list(versions) == ["clean", *names, "product-quantised"]
    for name, version in versions.items():
        assert len(version["common_mode_share"]) == len(version["integrated_gradcam"]) == 6
        if name in ("common mode 1", "flip"):  # decisions are kept by construction
            assert version["agreement"] == 1
            assert version["accuracy"] == cell["accuracy"]
            assert version["behaviour_kept"] == pytest.approx(1, abs=1e-3)
    assert versions["common mode 1"]["diffgradcam_kept"] > 0.999
    shares = [np.median(versions[name]["common_mode_share"]) for name in ("clean", "common mode 1")]
    assert shares[0] < shares[1]

    (tmp_path / "test-01abc.part").write_text('{"split": "te')  # killed while writing
    (tmp_path / "test-01.json").unlink()
    run.run(tmp_path, splits, TINY)
    assert json.loads((tmp_path / "test-01.json").read_text())["versions"] == versions
    monkeypatch.setattr(run, "train", None)
    run.run(tmp_path, splits, TINY)
    with pytest.raises(ValueError, match=r"test-00\.json was made with .*'images': 6.* this run has .*'images'"):
        run.run(tmp_path, splits, TINY._replace(images=5))


@pytest.mark.parametrize("kind", run.HARMLESS)
def test_each_harmless_change_gives_a_model(kind: str) -> None:
    design = Design("dropout", "odd digits, 16 px", "Adam", False, 0.0, 3)
    data = DATA[design.data].make(3, TINY)
    model = zoo.train(design, data, TINY)
    changed = run._harmless(kind, model, design, data, TINY)
    assert not changed.training
    with torch.no_grad():
        assert changed(data.held_out).shape == (24, 2)
        assert not torch.equal(changed(data.held_out), model(data.held_out))


def test_some_of_each_split_come_early() -> None:
    names = [(split, index) for split in run.SPLITS for index in range(run.planned(split, Config()))]
    assert Counter(split for split, _ in run._order(names)[:25]) == {"calibration": 5, "real": 5, "test": 15}
    assert sorted(run._order(names)) == sorted(names)


def test_several_cells_at_a_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "_write", Written())  # an object of this module: what a new process can import
    monkeypatch.setattr(zoo, "DATA", DIGITS)
    run.run(tmp_path, ("test",), TINY._replace(test=3), jobs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test-00", "test-01", "test-02"]


class Written:
    def __call__(self, results: Path, split: str, index: int, config: Config) -> None:
        assert config.test == 3
        (results / f"{split}-{index:02d}").touch()


def test_networks_whose_images_are_not_here_are_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(tasks.VARIABLE, str(tmp_path))
    written: list[tuple[str, int]] = []
    monkeypatch.setattr(run, "_write", lambda _results, split, index, _config: written.append((split, index)))
    run.run(tmp_path / "results", ("test",), Config())
    assert "networks for fingerprints, 64 px left out: no file" in capsys.readouterr().out
    data = {zoo.designs("test", Config())[index].data for _, index in written}
    assert data == {name for name, source in DATA.items() if not source.task}


def test_a_model_that_has_not_learned_is_counted_and_not_fooled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(zoo, "DATA", DIGITS)
    run.run(tmp_path, ("calibration",), TINY._replace(digits_accuracy=1.1))
    (cell,) = cells.read(tmp_path)
    assert (cell["learned"], cell["versions"]) == (False, {})
    assert 0 <= cell["accuracy"] <= 1


def test_attacks_that_train_show_more_of_the_mask() -> None:
    data = DATA["odd digits, 16 px"].make(0, TINY)
    config = TINY._replace(fool_epochs=8, fool_images=32)
    clean = zoo.train(Design("strided", "odd digits, 16 px", "SGD", True, 0.0, 0), data, TINY)
    images = data.train[:32]
    mask = run._mask(clean, images)
    for name, victim in (("trained on GradCAM", run.GradCAM), ("trained on DiffGradCAM", run.DiffGradCAM)):
        fooled = run.attacks(config)[name](clean, images, mask, 0)
        before, after = (
            run.mean(signs.pearson(maps, mask.expand_as(maps)))
            for maps in (victim(model, LAYER).explain(images).maps for model in (clean, fooled))
        )
        assert after > before + 0.1


def test_the_command_line_runs_what_it_is_told(tmp_path: Path, monkeypatch) -> None:
    called = {}
    monkeypatch.setattr(run, "run", lambda results, splits, jobs: called.update(r=results, s=splits, j=jobs))
    run.main(["--splits", "real", "--results", str(tmp_path), "--jobs", "3"])
    assert called == {"r": tmp_path, "s": ["real"], "j": 3}


# The real models.


class Lite(nn.Module):
    """As EfficientNet-Lite0 looks from outside, with few layers and channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below = nn.Conv2d(3, 8, 3, stride=16, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self._fc = nn.Linear(8, 1000)
        self._fc.weight.data *= 20

    def extract_features(self, images):
        return torch.relu(self.last(torch.relu(self.below(images))))


def made(*compressed):
    def halves(model):
        return [model.below, nn.ReLU()], [model.last, nn.ReLU()]

    return real.Real(compressed, Lite, halves, "_fc", lambda pixels: pixels / 255)


def test_a_real_model_is_parted_and_its_lower_half_runs_once_per_batch() -> None:
    network, images = Lite(), torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network._fc(network.extract_features(images).mean((2, 3)))
    runs: list[int] = []
    network.below.register_forward_hook(lambda *_: runs.append(1))
    model = real.classifier(made(), network)
    assert torch.allclose(model(images), logits, atol=1e-5)
    assert [name for name, module in model.named_modules() if isinstance(module, nn.Linear)] == ["head"]
    assert len(list(model.parameters())) == 4  # no attack finds those of the lower half
    copied = copy.deepcopy(model)
    assert copied.features[0] is model.features[0]
    assert copied.features[1] is not model.features[1]
    copied(images.clone().requires_grad_())
    assert len(runs) == 1
    copied(images + 1)
    assert len(runs) == 2
    assert torch.allclose(real.pooled(model, images), network.extract_features(images).mean((2, 3)), atol=1e-6)


def test_a_real_cell_has_every_version(tmp_path: Path, monkeypatch) -> None:
    pixels = 255 * torch.rand(15, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    photographs = real.Photographs(pixels[:4], pixels[:12], 90 * torch.arange(12), pixels[12:])
    monkeypatch.setattr(real, "MODELS", {"small": made("int8", "pruned")})
    monkeypatch.setattr(real, "photographs", lambda *_: photographs)
    monkeypatch.setattr(real, "missing", lambda: None)
    monkeypatch.setattr(run, "_REAL_EPOCHS", 1)
    run.run(tmp_path, ("real",), TINY)
    (cell,) = cells.read(tmp_path)
    assert cell["design"] == {"architecture": "small"}
    versions = cell["versions"]
    attacked = ["common mode 0.3", "common mode 1", "roll", "flip", "trained on DiffGradCAM"]
    assert list(versions)[:6] == ["clean", *attacked]
    assert list(versions)[-2:] == ["int8", "pruned"]
    assert len(versions) == 14
    assert versions["clean"]["lower"] == "features.0"
    for name in attacked[:4]:  # nothing of one version is in the next
        assert versions[name]["agreement"] == 1
    shares = [np.median(versions[name]["common_mode_share"]) for name in ("clean", *attacked[:4])]
    assert shares[0] < shares[1] < shares[2]
    assert shares[0] == pytest.approx(shares[3], rel=1e-3) == pytest.approx(shares[4], rel=1e-3)
    assert versions["common mode 0.3"]["gradcam_kept"] < 1
    assert versions["new head, 2 classes"]["kept"] != versions["clean"]["kept"]


def test_real_models_are_left_out_where_they_are_not(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    run.run(tmp_path / "results", ("real",), TINY)
    assert "real models left out: no file" in capsys.readouterr().out
    assert list((tmp_path / "results").iterdir()) == []


def test_photographs_are_parted(tmp_path: Path, monkeypatch) -> None:
    from PIL import Image

    folder = tmp_path / "photographs"
    folder.mkdir()
    for label in range(9):
        Image.new("RGB", (256, 256), (label, 0, 0)).save(folder / f"{label}.png")
    rows = "\n".join(f"{label}.png,{label}" for label in range(9))
    (folder / "photographs.csv").write_text(f"image,label\n{rows}\n")
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    found = real.photographs(3, 2, 5)
    assert found.audited.shape == (3, 3, 224, 224)
    assert found.taught[:, 0, 0, 0].tolist() == found.labels.tolist()  # the colour is the label
    assert torch.equal(found.attacked, found.taught[:2])
    assert not set(found.audited[:, 0, 0, 0].tolist()) & set(found.labels.tolist())


# The report.

CONFIG = Config(images=10, calibration=2, test=4)


def version(
    share: float,
    gap: float,
    agreement: float,
    follows: float,
    lost: float = 0.0,
    *,
    lower: float = 0.4,
    offset: float = -0.3,
) -> dict[str, Any]:
    """What a cell holds of one version; the images differ a little, around the given numbers."""
    around = np.array([-0.02, 0.02] * 5)
    numbers: dict[str, Any] = dict.fromkeys(("accuracy", "agreement", "behaviour_kept"), 0.95)
    for name in ("gradcam", "visible", "diffgradcam"):
        numbers |= {f"{name}_kept": 1.0, f"{name}_lost": lost, f"{name}_lost_error": 0.01}
    signs = {"common_mode_share": share, "kept": 0.9, "follows_gradcam": follows, "follows_visible": follows}
    for kind in ("occlusion", "occlusion49", "integrated"):
        signs |= {f"{kind}_gradcam": agreement - gap, f"{kind}_visible": agreement, f"{kind}_diffgradcam": agreement}
    signs |= {"constancy_gradcam": 0.1, "constancy_visible": 0.1, "response_visible": 0.8, "offset": offset}
    signs |= {"lower_visible": lower, "lowest_visible": 0.3}
    return (
        {"lower": "features.1"}
        | numbers
        | {name: (value + around * (0 if name == "common_mode_share" else 1)).tolist() for name, value in signs.items()}
    )


def write_cells(folder: Path, hidden: float = 0.3) -> None:
    """Clean maps agree by .4 and more; the adaptive attack leaves an agreement of ``hidden``."""
    for split, count in (("calibration", 2), ("test", 4), ("real", 2)):
        for index in range(count):
            clean = 0.4 + index / 10
            versions = {"clean": version(0.01, 0.0, clean, clean)}
            versions["common mode 0.3"] = version(0.08, 0.05, clean, clean, lost=0.05)
            versions["common mode 1"] = version(0.5, 0.3, clean, clean, lost=0.3)
            versions["roll"] = version(0.01, 0.0, -0.3, clean, lost=0.6)
            versions["flip"] = version(0.01, 0.0, 0.0, -0.2, lost=0.4)
            versions["trained on GradCAM"] = version(0.9, 0.4, clean, clean, lost=0.4)
            versions["trained on DiffGradCAM"] = version(0.02, 0.0, hidden, hidden, lost=0.2)
            versions["trained on DiffGradCAM, corner"] = version(0.02, 0.0, hidden, hidden, lost=0.35, lower=-0.2)
            versions[run.HARMLESS[index]] = version(0.6, 0.2, clean - 0.05, clean - 0.05, offset=-0.99)
            design: dict[str, Any] = zoo.designs("test" if split == "real" else split, CONFIG)[index]._asdict()
            if split == "real":
                design = {"architecture": list(real.MODELS)[index]}
            cell = {"split": split, "design": design, "training_seconds": 3.0, "accuracy": 0.95, "learned": True}
            cell |= {"versions": versions, "seconds": 20.0, "config": CONFIG._asdict()}
            cells.write(folder / f"{split}-{index:02d}.json", cell)


def test_versions_are_judged_by_the_library(tmp_path: Path) -> None:
    write_cells(tmp_path)
    study = report.load(tmp_path)
    verdicts = {v.name: report.judged(v).verdict for v in study.versions("test") if v.model == "test 2000"}
    assert verdicts == {
        "clean": "clean", "common mode 0.3": "clean", "common mode 1": "fooled", "roll": "fooled", "flip": "fooled",
        "trained on GradCAM": "fooled", "trained on DiffGradCAM": "clean", "trained on DiffGradCAM, corner": "fooled",
        "int8": "exposed",
    }  # fmt: skip
    few = report.judged(study.versions("test")[0], count=3)
    assert (len(few.common_mode_share), few.verdict) == (3, "could not tell")


def test_kinds_part_lies_from_what_is_none(tmp_path: Path) -> None:
    write_cells(tmp_path)
    rows = {kind.what: len(kind.versions) for kind in report.kinds(report.load(tmp_path))}
    assert rows == {
        "clean small networks": 4,
        "small networks, compressed, distilled or trained otherwise": 4,
        "real models, clean": 2,
        "real models, compressed or with a new head": 2,
        "lie: one vector for all classes": 4,
        "lie: features rolled or flipped": 8,
        "lie: fine-tuned to fool GradCAM": 4,
        "lie: fine-tuned to fool DiffGradCAM": 8,
        "lie: real models, attacked": 12,
        "no lie: attacked, honesty hardly lower": 6,
    }


def test_the_thresholds_are_chosen_on_the_calibration_networks_alone(tmp_path: Path) -> None:
    write_cells(tmp_path)
    # The least honest calibration network agrees by .35; half of its interval is 1.645 * .0211 / sqrt(10) = .011.
    # Its consistency is .375, and that interval is as wide as the agreement's.
    chosen = report.choose(report.load(tmp_path))
    assert chosen == pytest.approx({"agreement": 0.36, "honesty": 0.36, "consistency": 0.38})


def test_scores_and_areas_by_hand(tmp_path: Path) -> None:
    write_cells(tmp_path)
    study = report.load(tmp_path)
    by_name = {v.name: v for v in study.versions("test") if v.model == "test 2000"}
    default = AuditThresholds()
    assert report.score(by_name["roll"]) == pytest.approx(default.agreement + 0.3)
    assert report.score(by_name["flip"]) == pytest.approx(default.honesty + 0.1)
    assert report.score(by_name["common mode 1"]) == pytest.approx(0.3 - default.gap)
    assert report.area([0.0, 1.0], [0.5, 2.0]) == 0.75
    adaptive = [v for v in study.versions("test") if v.name == "trained on DiffGradCAM"]
    # .25 - .3, against the least honest of the others: .25 - .35, or a gap of .02 under a threshold of .1 or more.
    assert report.found_at(report.negatives(study), adaptive) == 1
    assert report.rates(adaptive)["fooled"] == 0


def test_the_report_leads_with_the_answer(tmp_path: Path) -> None:
    write_cells(tmp_path)
    report.main(["--results", str(tmp_path), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "audit.md").read_text()
    assert "the audit calls 0 of 12 models fooled that nobody attacked**, and 0 of the 4 of them that" in page
    assert "**It finds 30 of 36 lies**" in page
    assert "itself 4 of 8" in page
    assert "| lie: features rolled or flipped | 8 | 100% | 0% | 0% | 0% | 1.000 |" in page
    assert page.index("](audit.png)") < page.index("| what was done") < page.index("## How it was done")
    tables = (tmp_path / "docs" / "audit_tables.md").read_text()
    assert "**GradCAM is false, and nobody attacked.**" in page
    assert page.count("; cosine with the sum of the activations -1.010.") == 6
    assert "0.36 is the highest hundredth of the agreement, 0.36 of honesty and 0.38 of consistency" in tables
    assert "| ResNet-18 | roll | lie | 0.60 | 0.01 | -0.32 | 0.00 | 0.05 | 0.05 | fooled (behaviour) |" in tables
    assert "| 0.1 to 0.2 | 0 of 6 |" in tables
    assert "| more than 0.3 | 6 of 6 | 100% | 1.00 |" in tables
    assert "nan" not in page + tables
    for picture in ("audit.png", "audit_signs.png"):
        assert (tmp_path / "docs" / picture).stat().st_size > 10_000


def test_a_version_that_lost_its_accuracy_does_not_count(tmp_path: Path) -> None:
    write_cells(tmp_path)
    path = tmp_path / "test-01.json"
    cell = json.loads(path.read_text())
    cell["versions"]["roll"]["accuracy"] = 0.84
    cell["versions"]["flip"]["accuracy"] = 0.85
    path.write_text(json.dumps(cell))
    counts = Counter(v.name for v in report.load(tmp_path).versions("test"))
    assert (counts["roll"], counts["flip"]) == (3, 4)


def test_the_report_needs_models_that_learned(tmp_path: Path) -> None:
    write_cells(tmp_path)
    for index in range(4):
        path = tmp_path / f"test-{index:02d}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "versions": {}}))
    with pytest.raises(ValueError, match=r"no test model has learned in .*run python -m experiments\.audit"):
        report.load(tmp_path)
