"""The loop of ``diffgradcam.training``: the plain one for cross-entropy; the same after a kill and in parallel."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from tqdm import tqdm

from diffgradcam import GradCAM
from diffgradcam.losses import CyborgLoss, SaliencyGuidedLoss
from diffgradcam.tokens import tokens_to_grid
from diffgradcam.training import (
    InMemory,
    Prepare,
    Settings,
    SmallNet,
    agreement,
    augmented,
    evaluate_model,
    fit,
    loop,
    predict,
    read_checkpoint,
    with_classes,
    write_checkpoint,
)

pytest.importorskip("safetensors", reason="checkpoints need the extra store")
pytest.importorskip("sklearn", reason="AUROC needs the extra metrics")

ROOT = Path(__file__).parent.parent
gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this build of PyTorch has no gloo, with which processes without GPUs talk to each other",
)


def squares(count=48, seed=0):
    """Noise; class 1 has a bright square at a place that differs, which is its human map."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 16, 16, generator=generator)
    labels = torch.arange(count) % 2
    saliency = torch.zeros(count, 16, 16)
    for i, (y, x) in enumerate(torch.randint(0, 11, (count, 2), generator=generator).tolist()):
        if labels[i]:
            images[i, :, y : y + 5, x : x + 5] += 2
            saliency[i, y : y + 5, x : x + 5] = 1
    return InMemory(images, labels, saliency, labels == 1)


class Tiny(nn.Module):
    """One convolution, batch norm, dropout and a pooled linear head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 5, 2, 2), nn.BatchNorm2d(6), nn.ReLU())
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(6, 2)

    def forward(self, images):
        return self.fc(self.drop(self.features(images)).mean((2, 3)))


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny()


FAST = Settings(loss="contrast", epochs=3, batch_size=16, learning_rate=0.01)


def weights(fitted):
    return {name: value.clone() for name, value in fitted.model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run(settings=FAST, checkpoint=None, **options):
    return fit(
        tiny(), squares(), settings, layer="features", validation=squares(20, 1), checkpoint=checkpoint, **options
    )


def test_without_maps_and_frills_it_is_the_plain_loop():
    data = squares()
    settings = Settings(
        loss="ce", epochs=2, batch_size=16, optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01,
        schedule="constant", class_weights=False, augment="none", select="last",
    )  # fmt: skip
    seen = []

    class Recording(InMemory):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    model = tiny()
    model.drop.p = 0.0
    fitted = fit(model, Recording(data.images, data.labels), settings, layer="features")
    expected = tiny()
    expected.drop.p = 0.0
    optimizer = torch.optim.SGD(expected.parameters(), 0.1, 0.9, weight_decay=0.01)
    assert len(seen) == 96
    assert sorted(seen[:48]) == sorted(seen[48:]) == list(range(48))
    assert seen[:48] != seen[48:]
    for start in range(0, 96, 16):
        part = seen[start : start + 16]
        optimizer.zero_grad()
        F.cross_entropy(expected(data.images[part]), data.labels[part]).backward()
        optimizer.step()
    for name, value in expected.state_dict().items():
        assert torch.allclose(fitted.model.state_dict()[name], value, atol=1e-6), name
    assert not fitted.model.training


def test_one_step_is_the_guided_loss_with_the_map_of_the_class_that_was_asked_for():
    data = squares(16)
    settings = Settings(
        loss="cyborg", explained="predicted", alpha="dynamic", epochs=1, batch_size=16, optimizer="sgd",
        learning_rate=0.1, momentum=0, weight_decay=0, schedule="constant", class_weights=False, augment="none",
        select="last",
    )  # fmt: skip
    model = tiny()
    model.drop.p = 0.0
    fitted = fit(model, data, settings, layer="features")
    expected = tiny().train()
    expected.drop.p = 0.0
    with GradCAM(expected, ["features"], rectify=False) as cam:
        logits = expected(data.images)
        maps = cam.maps(logits, logits.argmax(1))
        total = SaliencyGuidedLoss(CyborgLoss(), "dynamic")(
            logits, data.labels, maps, data.saliency, data.has_saliency
        ).total
    total.backward()
    for name, parameter in expected.named_parameters():
        assert torch.allclose(fitted.model.state_dict()[name], parameter - 0.1 * parameter.grad, atol=1e-6), name
    assert fitted.history[0].loss == pytest.approx(float(total.detach()), abs=1e-6)


@pytest.mark.parametrize("loss", ["ce", "cyborg", "difference", "contrast", "divergence", "camal"])
def test_every_loss_trains_and_is_repeatable(loss):
    settings = replace(FAST, loss=loss, epochs=1)
    first, second = run(settings), run(settings)
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(run(replace(settings, seed=1))))
    assert first.history == second.history
    assert (first.history[0].saliency == 0) == (loss == "ce")


def test_the_best_epoch_is_kept_and_the_first_of_equals():
    fitted = run(replace(FAST, epochs=6))
    scores = [epoch.score for epoch in fitted.history]
    assert fitted.selected == 1 + scores.index(max(scores))
    logits, labels = predict(fitted.model, squares(20, 1))
    order = (logits[:, 1] - logits[:, 0]).numpy()
    wins = (order[labels == 1][:, None] > order[labels == 0][None]).mean()
    assert wins == pytest.approx(max(scores))
    assert run(replace(FAST, select="last")).selected == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_training_that_stopped_between_epochs_ends_with_the_same_numbers(tmp_path, optimizer, monkeypatch):
    settings = replace(FAST, optimizer=optimizer, augment="affine", blur=True)
    whole = run(settings)
    original, scored = loop._score, []

    def killed(*arguments):
        scored.append(1)
        if len(scored) == 2:
            raise KeyboardInterrupt("between epochs")
        return original(*arguments)

    monkeypatch.setattr(loop, "_score", killed)
    with pytest.raises(KeyboardInterrupt, match=r"^between epochs$"):
        run(settings, tmp_path / "state.safetensors")
    monkeypatch.setattr(loop, "_score", original)
    assert len(read_checkpoint(tmp_path / "state.safetensors").about["history"]) == 1
    torch.rand(7)  # another state of the generator than before
    again = run(settings, tmp_path / "state.safetensors")
    assert same(weights(whole), weights(again))
    assert whole.history == again.history
    assert whole.selected == again.selected


PARALLEL = Settings(
    loss="cyborg", epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.05, augment="none", select="best",
    class_weights=False,
)  # fmt: skip


def plain(seed=0):
    torch.manual_seed(seed)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)]
    return nn.Sequential(nn.Conv2d(1, 6, 5, 2, 2), nn.ReLU(), *head)


def fit_plain():
    data = squares(16)
    everywhere = InMemory(data.images, data.labels, data.saliency + 0.1 * data.images[:, 0].abs())
    return fit(plain(), everywhere, PARALLEL, layer="1", validation=squares(20, 1))


def one_of_two(rank, path):
    """What each of the two processes of the next test runs."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{path}/meet", rank=int(rank), world_size=2)
    write_checkpoint(Path(path) / f"{rank}.safetensors", fit_plain().model.state_dict(), {})
    distributed.destroy_process_group()


@gloo
def test_two_processes_train_what_one_does(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    code = "from tests.test_train_loop import *; one_of_two({}, {!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", code.format(rank, str(tmp_path))], cwd=ROOT, env=environment)
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    first, second = (read_checkpoint(tmp_path / f"{rank}.safetensors").tensors for rank in range(2))
    assert same(first, second)
    alone = fit_plain().model.state_dict()
    for name, value in alone.items():
        assert torch.allclose(first[name], value, atol=1e-5), name


def test_mixed_precision_trains_about_the_same():
    full, mixed = run(replace(FAST, epochs=1)), run(replace(FAST, epochs=1, amp=True))
    assert mixed.history[0].loss == pytest.approx(full.history[0].loss, rel=0.05)
    assert mixed.history[0].loss != full.history[0].loss
    assert all(value.dtype in (torch.float32, torch.int64) for value in mixed.model.state_dict().values())


def test_flips_turn_image_and_map_together():
    images = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 4).repeat(40, 1, 1, 1)
    saliency = images[:, 0].clone()
    flipped, maps = augmented(images, saliency, "flip", torch.Generator().manual_seed(0))
    assert torch.equal(flipped[:, 0], maps)
    mirrored = (maps == saliency.flip(2)).flatten(1).all(1)
    assert 5 < int(mirrored.sum()) < 35
    assert torch.equal(maps[~mirrored], saliency[~mirrored])


def test_affine_changes_move_image_and_map_together_and_not_far():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    blob = torch.exp(-((y - 12) ** 2 + (x - 30) ** 2) / 18).repeat(64, 1, 1)
    images, maps = augmented(blob[:, None], blob, "affine", torch.Generator().manual_seed(0))
    assert torch.allclose(images[:, 0], maps)
    centre = torch.stack([(maps * axis).sum((1, 2)) / maps.sum((1, 2)) for axis in (y, x)], 1)
    away = torch.stack([centre[:, 0] - 12, torch.minimum((centre[:, 1] - 30).abs(), (centre[:, 1] - 17).abs())], 1)
    assert away.abs().amax() < 6.0
    assert away.abs().mean() > 0.5
    assert len({round(float(value), 3) for value in centre[:, 0]}) > 50


def test_prepare_brings_thin_marks_to_the_size():
    saliency = torch.zeros(64, 64)
    saliency[:, 31] = 1
    image, small = Prepare((16, 8), (0.5,) * 3, (0.5,) * 3)(torch.full((3, 64, 64), 0.75), saliency)
    assert image.shape == (3, 16, 8)
    assert torch.allclose(image, torch.tensor(0.5))
    assert torch.allclose(small.sum(1), torch.tensor(1 / 8))
    grey, _ = Prepare((4, 4))(torch.tensor([0.1, 0.2, 0.6])[:, None, None].expand(3, 8, 8), saliency[:8, :8])
    assert torch.allclose(grey, torch.full((1, 4, 4), (0.3 - 0.5) / 0.25))


def test_evaluation_of_a_model_that_only_sees_brightness():
    """Class 1 is a bright square and the map is the image, so every number is known."""
    data = squares(40, 3)
    clean = InMemory(data.saliency[:, None], data.labels, data.saliency, data.has_saliency)
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model[3].bias.copy_(torch.tensor([0.05, 0.0]))
    found = evaluate_model(model, clean, layer="0", resamples=50)
    assert found.images == {0: 20, 1: 20}
    assert {name: value.value for name, value in found.decisions.items()} == {
        "auroc": 1, "eer": 0, "apcer_at_bpcer_1": 0, "accuracy": 1, "apcer": 0, "bpcer": 0, "acer": 0,
    }  # fmt: skip
    assert found.decisions["auroc"].low == found.decisions["auroc"].high == 1
    for name in ("true", "difference"):
        assert {key: round(value.value, 6) for key, value in found.maps[name].items()} == {
            "energy": 1, "pointing": 1, "iou": 1, "pearson": 1,
        }  # fmt: skip
    without = evaluate_model(model, InMemory(clean.images, clean.labels), layer="0", resamples=0)
    assert without.maps == {}
    assert without.decisions["auroc"] == (1, None, None)


def test_agreement_by_hand():
    human = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    found = agreement(torch.tensor([[[3.0, 1.0], [-2.0, 0.0]]]), human)
    assert {key: round(float(value), 4) for key, value in found.items()} == {
        "energy": 0.75, "pointing": 1.0, "iou": 1.0,
        "pearson": round(float(np.corrcoef([3, 1, -2, 0], [1, 0, 0, 0])[0, 1]), 4),
    }  # fmt: skip


def test_the_small_network_and_another_number_of_classes():
    assert SmallNet(3, 1)(torch.zeros(2, 1, 17, 40)).shape == (2, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000, bias=False))
    first = model[1]
    assert with_classes(model, 2) is model
    assert model[1] is first
    assert (model[3].out_features, model[3].bias) == (2, None)
    last = model[3]
    assert with_classes(model, 2)[3] is last
    with pytest.raises(ValueError, match="Conv2d has no linear layer to replace"):
        with_classes(nn.Conv2d(3, 5, 1), 2)


def test_what_cannot_be_trained():
    data = squares(8)
    with pytest.raises(ValueError, match="select='best' needs validation images"):
        fit(tiny(), data, FAST, layer="features")
    with pytest.raises(ValueError, match="8 training images for a batch of 16"):
        fit(tiny(), data, replace(FAST, select="last"), layer="features")
    with pytest.raises(ValueError, match="the loss is no longer finite in epoch 1"):
        fit(
            tiny(), squares(), replace(FAST, loss="ce", select="last", learning_rate=1e30, optimizer="sgd"),
            layer="features",
        )  # fmt: skip


def test_a_batch_that_processes_cannot_share(monkeypatch):
    monkeypatch.setattr(loop, "place", lambda: (0, 3))
    with pytest.raises(ValueError, match="a batch of 16 for 3 processes: expected a multiple of them"):
        run()


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(tmp_path):
    run(replace(FAST, epochs=1), tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match=r"was made with .*'epochs': 1.* but this training has .*'epochs': 2"):
        run(replace(FAST, epochs=2), tmp_path / "state.safetensors")


def test_checkpoints_need_a_package(tmp_path, monkeypatch):
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^a checkpoint needs safetensors"):
        write_checkpoint(tmp_path / "x.safetensors", {}, {})
    with pytest.raises(ImportError, match=r"^a checkpoint needs safetensors"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_files_that_are_no_checkpoints(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="has no settings of a training in it"):
        read_checkpoint(path)


def test_a_finished_training_that_is_started_again_has_the_best_weights(tmp_path):
    settings = replace(FAST, epochs=6)
    first = run(settings, tmp_path / "state.safetensors")
    assert first.selected < 6
    again = run(settings, tmp_path / "state.safetensors")
    assert same(weights(first), weights(again))
    assert (again.selected, again.history) == (first.selected, first.history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t, a: (t | {"model.fc.weight": torch.zeros(3, 6)}, a),
            r"'fc.weight' are torch.float32, \(3, 6\); expected",
        ),
        (
            lambda t, a: (t | {"best.fc.bias": torch.zeros(2).double()}, a),
            r"torch.float64, \(2,\); expected torch.float32",
        ),
        (
            lambda t, a: ({k: v for k, v in t.items() if k != "best.fc.bias"}, a),
            "'fc.bias' are missing; expected torch",
        ),
        (lambda t, a: (t | {"model.more": torch.zeros(1)}, a), r"'more' are torch.float32, \(1,\); expected missing"),
        (
            lambda t, a: (t | {"optimizer.0.exp_avg": torch.zeros(2)}, a),
            "the state '0.exp_avg' of the optimizer is torch",
        ),
        (
            lambda t, a: ({k: v for k, v in t.items() if k != "optimizer.0.exp_avg"}, a),
            "has other parts for some weights",
        ),
        (lambda t, a: (t, a | {"history": [[1, "2", 3, 4, 5]]}), "its history holds something else than numbers"),
        (lambda t, a: (t, a | {"selected": 0}), "it selects epoch 0 of 1"),
        (lambda t, a: (t, a | {"selected": 2}), "it selects epoch 2 of 1"),
        (
            lambda t, a: (t, {k: v for k, v in a.items() if k != "groups"}),
            "cannot be gone on with .'groups'.; delete it",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_with(tmp_path, change, message):
    path = tmp_path / "state.safetensors"
    run(replace(FAST, epochs=1), path)
    stored = read_checkpoint(path)
    write_checkpoint(path, *change(stored.tensors, stored.about))
    with pytest.raises(ValueError, match=message):
        run(replace(FAST, epochs=1), path)


def test_tensors_that_share_their_memory_are_written_whole(tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    write_checkpoint(tmp_path / "x.safetensors", {"a": tensor, "b": tensor.T, "c": tensor[1:]}, {"d": 1})
    stored = read_checkpoint(tmp_path / "x.safetensors")
    assert same(stored.tensors, {"a": tensor, "b": tensor.T, "c": tensor[1:]})
    assert stored.about == {"d": 1}
    assert not stored.part("a")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_optimizer_is_the_one_of_the_settings(name):
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    model = tiny()
    model.fc.bias.requires_grad_(False)
    found = loop._optimizer(model, Settings(optimizer=name, learning_rate=0.3, weight_decay=0.2, momentum=0.7))
    assert type(found) is kind
    (group,) = found.param_groups
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.7)) == (0.3, 0.2, 0.7)
    assert [id(each) for each in group["params"]] == [id(each) for each in model.parameters() if each.requires_grad]


def test_class_weights_are_those_of_the_labels_and_only_if_they_are_wanted():
    labels = torch.tensor([0, 0, 0, 1])
    data = InMemory(torch.zeros(4, 1, 2, 2), labels)
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    given = torch.tensor([0, 1])
    each = F.cross_entropy(logits, given, reduction="none")
    for wanted, weight in ((False, torch.ones(2)), (True, torch.tensor([4 / 6, 4 / 2]))):
        criterion = loop._criterion(Settings(loss="ce", class_weights=wanted), data, torch.device("cpu"))
        assert float(criterion(logits, given)) == pytest.approx(float((each * weight).sum() / weight.sum()))
        guided = loop._criterion(Settings(loss="cyborg", class_weights=wanted), data, torch.device("cpu"))
        found = guided.class_weights
        assert found is None if not wanted else torch.allclose(found, weight)


def test_labels_are_read_without_images():
    class NoImages(InMemory):
        def __getitem__(self, index):
            raise AssertionError("an image was read")

    data = NoImages(torch.zeros(4, 1, 2, 2), torch.tensor([3, 1, 2, 0]))
    assert loop.labels_of(data).tolist() == [3, 1, 2, 0]
    assert loop.labels_of(torch.utils.data.Subset(data, [2, 0])).tolist() == [2, 3]
    assert loop.labels_of(list(InMemory(torch.zeros(2, 1, 2, 2), torch.tensor([5, 4])))).tolist() == [5, 4]


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_only_if_it_is_wanted(capfd, progress, monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread that outlives the bar
    run(replace(FAST, epochs=1, seed=7), progress=progress)
    shown = capfd.readouterr().err
    assert ("contrast, seed 7: 100%" in shown) == progress
    assert progress or not shown


def test_tokens_are_brought_to_a_grid_while_training():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Conv2d(1, 6, 4, 4), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.mix(self.embed(x).flatten(2).transpose(1, 2)).relu().mean(1))

    def trained(transform):
        torch.manual_seed(0)
        return fit(
            Tokens(), squares(), replace(FAST, epochs=1, select="last"), layer="mix", reshape_transform=transform
        )

    grid = trained(tokens_to_grid)
    turned = trained(lambda tokens: tokens_to_grid(tokens).flip(3))
    assert grid.history[0].saliency != turned.history[0].saliency


def test_each_epoch_and_each_process_has_an_augmentation_of_its_own(monkeypatch):
    seeds, original = [], loop.augmented

    def noted(images, saliency, how, generator):
        seeds.append(generator.initial_seed())
        return original(images, saliency, how, generator)

    monkeypatch.setattr(loop, "augmented", noted)
    run()
    assert seeds == [loop._mixed(0, epoch, "augmentation 0") for epoch in range(3) for _ in range(3)]
    assert len({loop._mixed(0, epoch, f"augmentation {rank}") for epoch in range(3) for rank in range(3)}) == 9


def test_the_order_of_images_is_that_of_the_seed_and_the_epoch():
    data = InMemory(torch.arange(8.0).view(8, 1, 1, 1), torch.zeros(8, dtype=torch.long))

    def order(seed, epoch, rank=0, world=1):
        batches = loop._batches(data, Settings(batch_size=4, seed=seed), epoch, rank, world, 0)
        return [batch.image.flatten().int().tolist() for batch in batches]

    whole = torch.randperm(8, generator=torch.Generator().manual_seed(loop._mixed(5, 2, "order"))).tolist()
    assert order(5, 2) == [whole[:4], whole[4:]]
    assert [order(5, 2, rank, 2) for rank in (0, 1)] == [[whole[rank:4:2], whole[4 + rank :: 2]] for rank in (0, 1)]
    assert order(5, 2) != order(5, 3)
    assert order(5, 2) != order(6, 2)


@pytest.mark.parametrize(("loss", "times"), [("ce", 0), ("contrast", 3)])
def test_attention_runs_unfused_where_maps_are_trained(monkeypatch, loss, times):
    entered, original = [], loop.twice_differentiable
    monkeypatch.setattr(loop, "twice_differentiable", lambda: entered.append(1) or original())
    run(replace(FAST, loss=loss))
    assert len(entered) == times


@pytest.mark.parametrize("blur", [False, True])
def test_human_maps_are_blurred_if_it_is_wanted(blur):
    found = loop._criterion(Settings(loss="cyborg", blur=blur, class_weights=False), squares(4), torch.device("cpu"))
    assert found.blur == ((0.1, 2.0) if blur else None)


def test_the_bar_of_a_training_that_goes_on_begins_where_it_was(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    for _ in range(2):
        capfd.readouterr()
        run(replace(FAST, epochs=1), tmp_path / "state.safetensors", progress=True)
    assert " 3/3 [" in capfd.readouterr().err


def test_gradients_are_scaled_on_a_gpu_alone(tmp_path):
    run(replace(FAST, epochs=1, amp=True), tmp_path / "state.safetensors")
    assert read_checkpoint(tmp_path / "state.safetensors").about["scaler"] == {}
