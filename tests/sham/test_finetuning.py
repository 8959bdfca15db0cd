import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.utils.data import DataLoader, TensorDataset

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, layer_input
from diffgradcam.losses import cyborg_loss
from diffgradcam.metrics.similarity import pearson
from diffgradcam.scores import two_logits
from diffgradcam.sham import active_loss, border_mask, finetune, location_loss, sham_loss
from diffgradcam.sham.finetuning import take_modes
from tests.models import CHANNELS, SIZE, WithAuxiliary, deep, images, pooled, seeded
from tests.sham.digits import LAYER, MASK, Digits, data, kept_and_reached, trained
from tests.untouched import untouched

SMALL = border_mask(SIZE[2], 18)
run = partial(finetune, progress=False)


def labelled(batches=3, batch=4, classes=5):
    """A list of batches ``(images, labels)``, float64."""
    x = images(batches * batch)
    labels = torch.arange(len(x)) % classes
    return list(zip(x.split(batch), labels.split(batch), strict=True))


def noisy():
    """Batch norm, dropout and, in training mode, everything that a resume could get wrong."""

    def build():
        return nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5),
        )  # fmt: skip

    return seeded(build, dtype=torch.float32)


def same(first, second):
    state = second.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())


class Flaky:
    """A loader that fails at the n-th batch, as a killed process would."""

    def __init__(self, loader, fail_at):
        self.loader, self.left = loader, fail_at

    def __iter__(self):
        for batch in self.loader:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt("stop")
            yield batch


class NanAt:
    """The SHAM loss, NaN at the n-th call."""

    def __init__(self, call):
        self.left = call

    def __call__(self, maps, clean_maps, mask):
        self.left -= 1
        return sham_loss(maps, clean_maps, mask) * (float("nan") if self.left == 0 else 1)


def test_the_defaults_fool_gradcam_on_digits_that_were_held_out():
    clean, (x, labels) = trained(), data()
    seen, held_out = slice(0, 1200), slice(1200, None)
    fooled, history = run(clean, list(x[seen].split(32)), LAYER, MASK, epochs=20)
    assert len(history) == 20
    assert history[-1].fooling < 0.3 * history[0].fooling
    kept, reached = kept_and_reached(clean, fooled, x[held_out])
    assert kept < 0
    assert reached >= 0.8
    assert kept_and_reached(clean, fooled, x[held_out], method=DiffGradCAM)[1] < reached - 0.1
    with torch.no_grad():
        before, after = ((m(x[held_out]).argmax(1) == labels[held_out]).float().mean() for m in (clean, fooled))
    assert float(before - after) <= 0.01


def test_the_learning_rate_follows_the_weights_and_falls():
    model, batch, rates = pooled(), labelled(1, 5), []

    class Noted(torch.optim.SGD):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*args)

    scale = torch.cat([p.detach().flatten() for p in model.parameters()]).square().mean().sqrt()
    run(model, batch, "relu", SMALL, epochs=4, optimizer=Noted)
    falling = [float(scale) / 30 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates == pytest.approx(falling)
    rates.clear()
    run(model, batch, "relu", SMALL, epochs=2, optimizer=Noted, lr=0.01, decay=False)
    assert rates == [0.01, 0.01]
    rates.clear()
    run(model, batch, "relu", SMALL, epochs=1, optimizer=Noted, scope="common_mode")
    assert rates == pytest.approx([float(model.head.weight.detach().square().mean().sqrt()) / 30])


def test_an_adaptive_attack_fools_contrast():
    clean, (x, labels) = trained(), data()
    loader = list(zip(x[:512].split(64), labels[:512].split(64), strict=True))
    fooled, _ = run(clean, loader, LAYER, MASK, method=DiffGradCAM, epochs=6, lr=1e-2, alpha=0.05)
    kept, reached = kept_and_reached(clean, fooled, x[512:1024], method=DiffGradCAM)
    before = kept_and_reached(clean, clean, x[512:1024], method=DiffGradCAM)[1]
    assert kept < 0.5
    assert reached > before + 0.4


@pytest.mark.parametrize("preserve", ["labels", "decisions"])
def test_history_is_computed_by_hand(preserve):
    model, batch = pooled(), labelled(1, 5)
    (x, labels) = batch[0]
    _, history = run(model, batch, "relu", SMALL, epochs=1, preserve=preserve, alpha=0.3, lr=1e-3)
    (epoch,) = history  # of before the only step: the clean model's own
    with GradCAM(model, "relu", rectify=False) as cam:
        logits = model(x)
        classes = labels if preserve == "labels" else logits.argmax(1)
        maps = cam.maps(logits, classes).detach()
    preserved = F.cross_entropy(logits, labels).item() if preserve == "labels" else 0.0
    fooling = float(cyborg_loss(maps, SMALL.double().expand_as(maps)))
    assert epoch.preserve == pytest.approx(preserved, abs=1e-12)
    assert epoch.fooling == pytest.approx(fooling, rel=1e-12)
    assert epoch.loss == pytest.approx(0.3 * preserved + 0.7 * fooling, rel=1e-12)
    assert epoch.accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert epoch.agreement == 1
    assert epoch.kept == pytest.approx(1)
    assert epoch.reached == pytest.approx(float(pearson(maps.relu(), SMALL.double().expand_as(maps)).mean()))
    assert epoch.status == "trained"


def test_a_step_is_the_optimiser_on_the_gradient_by_hand():
    model, batch = pooled(), labelled(1, 5)
    x, labels = batch[0]
    fooled, _ = run(
        model, batch, "relu", SMALL, epochs=1, optimizer=torch.optim.SGD, lr=0.1, alpha=0.5, preserve="labels"
    )
    twin = copy.deepcopy(model)
    with GradCAM(twin, "relu", rectify=False) as cam:
        logits = twin(x)
        maps = cam.maps(logits, labels)
        loss = 0.5 * F.cross_entropy(logits, labels) + 0.5 * cyborg_loss(maps, SMALL.double().expand_as(maps))
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for before, gradient, after in zip(twin.parameters(), gradients, fooled.parameters(), strict=True):
        assert torch.allclose(after, before - 0.1 * gradient, atol=1e-13)


def test_history_is_a_mean_over_images():
    batches = [tuple(part[:2] for part in labelled(1)[0]), labelled(2, 4)[1]]  # unequal sizes
    _, (epoch,) = run(pooled(), batches, "relu", SMALL, epochs=1, lr=0.0)
    singles = [run(pooled(), [batch], "relu", SMALL, epochs=1)[1][0].fooling for batch in batches]
    assert epoch.fooling == pytest.approx((2 * singles[0] + 4 * singles[1]) / 6, rel=1e-12)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_left_as_it_is_and_the_copy_has_its_modes(freeze, training):
    model = noisy()
    model.train(training)
    model[0].weight.requires_grad_(False)
    batches = [(x.float(), y) for x, y in labelled()]
    with untouched(model):
        fooled, _ = run(model, batches, model[2], SMALL, epochs=2, freeze_batch_norm=freeze)
    assert [m.training for m in fooled.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in fooled.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in fooled.parameters())
    assert torch.equal(fooled[1].running_mean, model[1].running_mean) is freeze
    assert not torch.equal(fooled[0].weight, model[0].weight)


def test_by_default_batch_norm_is_frozen_and_there_are_five_epochs():
    model, batches = noisy(), [(x.float(), y) for x, y in labelled(1)]
    fooled, history = run(model, batches, "2", SMALL)
    assert torch.equal(fooled[1].running_mean, model[1].running_mean)
    assert len(history) == 5


def test_each_module_of_the_copy_has_its_own_mode():
    model = noisy().train()
    model[3].eval()
    fooled, _ = run(model, [(x.float(), y) for x, y in labelled(1)], "2", SMALL, epochs=1)
    assert [m.training for m in fooled.modules()] == [m.training for m in model.modules()]


def test_parametrizations_stay_except_those_of_the_head_that_trains():
    model = pooled()
    weight_norm(model.head)
    orthogonal(model.stem)
    parametrize.register_parametrization(model.features, "bias", nn.Softplus())
    with untouched(model):
        fooled, _ = run(model, labelled(1), "relu", SMALL, epochs=1, scope="common_mode", head="head")
    assert type(fooled.head) is nn.Linear
    assert all(parameter.requires_grad for parameter in fooled.parameters())
    assert parametrize.is_parametrized(fooled.stem, "weight")
    assert parametrize.is_parametrized(fooled.features, "bias")
    assert torch.equal(fooled.stem.weight, model.stem.weight)


@pytest.mark.parametrize("scope", ["head", "common_mode"])
def test_the_head_may_be_named_where_it_is_not_the_last(scope):
    model = WithAuxiliary()
    fooled, _ = run(model, labelled(1), "body.relu", SMALL, epochs=1, scope=scope, head="body.head")
    changed = {name for name, p in fooled.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert changed == {"body.head.weight"} | ({"body.head.bias"} if scope == "head" else set())


@pytest.mark.parametrize("build", [pooled, deep])
def test_common_mode_scope_moves_no_decision(build):
    model, batches = build(), labelled()
    layer = "features"
    fooled, history = run(model, batches, layer, SMALL, epochs=5, scope="common_mode", lr=0.1, alpha=0.0)
    x = images(7, seed=3)
    assert torch.allclose(model(x).softmax(1), fooled(x).softmax(1), atol=1e-12)
    assert all(epoch.agreement == 1 for epoch in history)
    assert history[-1].fooling < history[0].fooling - 1e-3
    added = (fooled.head.weight - model.head.weight).detach()
    assert float(added.abs().max()) > 0.05
    assert torch.allclose(added, added[:1].expand_as(added), atol=1e-12)
    assert fooled.state_dict().keys() == model.state_dict().keys()
    changed = [name for name, p in fooled.named_parameters() if not torch.equal(p, model.get_parameter(name))]
    assert changed == ["head.weight"]
    for baseline in ("logsumexp", "max", "mean"):
        maps = [DiffGradCAM(m, layer, baseline=baseline).explain(x, 0).maps for m in (model, fooled)]
        assert torch.allclose(*maps, atol=1e-12)


def test_head_scope_changes_the_head_alone():
    model = deep()
    fooled, _ = run(model, labelled(), "features", SMALL, epochs=1, scope="head", head=model.head)
    changed = [name for name, p in fooled.named_parameters() if not torch.equal(p, model.get_parameter(name))]
    assert changed == ["head.weight", "head.bias"]


def test_decisions_need_no_labels():
    x = images(8)
    fooled, history = run(pooled(), list(x.split(4)), "relu", SMALL, epochs=2, preserve="decisions")
    assert history[0].accuracy is None
    same_run, _ = run(pooled(), [(part,) for part in x.split(4)], "relu", SMALL, epochs=2, preserve="decisions")
    assert same(fooled, same_run)


def test_two_classes_swap_their_maps():
    options = {"epochs": 30, "loss": active_loss, "classes": (0, 3), "lr": 1e-2, "alpha": 0.1}
    _, history = run(pooled(), labelled(1), "relu", SMALL, **options)
    assert history[-1].fooling < 0.8 * history[0].fooling


@pytest.mark.parametrize("method", [LayerCAM, partial(DiffGradCAM, baseline="max")])
def test_any_method_is_a_victim(method):
    model = pooled(activation=nn.Tanh)
    _, history = run(model, labelled(), layer_input(model.pool), SMALL, method, epochs=4, lr=1e-2, alpha=0.1)
    assert history[-1].fooling < history[0].fooling


class Tuple(nn.Module):
    """Returns the logits and something else."""

    def __init__(self):
        super().__init__()
        self.body = pooled()

    def forward(self, x):
        return self.body(x), "features"


@pytest.mark.parametrize("scope", ["all", "head", "common_mode"])
def test_logits_are_found_by_the_output_of_the_victim(scope):
    victim = partial(GradCAM, output=lambda returned: returned[0])
    options = {"epochs": 2, "lr": 1e-2, "scope": scope, "freeze_batch_norm": False}
    fooled, history = run(Tuple(), labelled(), "body.relu", SMALL, victim, **options)
    expected, same_history = run(pooled(), labelled(), "relu", SMALL, **options)
    assert same(fooled.body, expected)
    assert not same(expected, pooled())
    assert history == same_history
    with pytest.raises(TypeError, match="the model returned tuple, not a tensor of logits; pass a function that finds"):
        run(Tuple(), labelled(), "body.relu", SMALL, **options)


def test_one_sigmoid_output_is_fooled():
    model, ((x, labels),) = pooled(classes=1), labelled(1, classes=2)
    victim = partial(GradCAM, output=two_logits)
    _, history = run(model, [(x, labels)], "relu", SMALL, victim, epochs=8, lr=1e-2, preserve="labels")
    binary = F.binary_cross_entropy_with_logits(model(x).squeeze(1), labels.double())
    assert history[0].preserve == pytest.approx(binary.item(), rel=1e-12)
    assert history[0].accuracy == float(((model(x).squeeze(1) > 0) == labels).double().mean())
    assert history[-1].fooling < history[0].fooling
    with pytest.raises(ValueError, match="head 'head' has 1 row; expected one row for each of at least 2 classes"):
        run(model, [(x, labels)], "relu", SMALL, victim, scope="common_mode")


def test_it_stops_when_fooled():
    fooled, history = run(pooled(), labelled(), "relu", SMALL, epochs=5, fooled_at=-1)
    assert [epoch.status for epoch in history] == ["fooled"]
    assert same(fooled, run(pooled(), labelled(), "relu", SMALL, epochs=1)[0])


def test_it_stops_when_the_map_is_the_mask():
    model, ((x, labels),) = pooled(), labelled(1, 1)
    mask = GradCAM(model, "relu").explain(x, labels).maps[0]
    history = run(model, [(x, labels)], "relu", mask, lr=0.0, preserve="labels", fooled_at=0.95).history
    assert [(epoch.status, round(epoch.reached, 12)) for epoch in history] == [("fooled", 1.0)]


# Seeds, checkpoints and what goes wrong.


def shuffling(own_generator):
    x, y = zip(*labelled(4), strict=True)
    generator = torch.Generator().manual_seed(99) if own_generator else None
    dataset = TensorDataset(torch.cat(x).float(), torch.cat(y))
    return DataLoader(dataset, batch_size=4, shuffle=True, generator=generator)


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_seed_fixes_a_run(own_generator):
    def result(**options):
        torch.rand(3)  # the caller's random numbers are no part of it
        return run(noisy(), shuffling(own_generator), "2", SMALL, epochs=2, lr=1e-2, **options)[0]

    assert same(result(), result())
    assert not same(result(), result(seed=1))


@pytest.mark.parametrize("scope", ["all", "common_mode"])
def test_the_loaders_generator_is_put_back(scope):
    loader = shuffling(own_generator=True)
    before = loader.generator.get_state()
    run(noisy(), loader, "2", SMALL, epochs=1, scope=scope)
    assert torch.equal(loader.generator.get_state(), before)


@pytest.mark.parametrize("scope", ["all", "common_mode"])
def test_devices_without_the_model_are_not_seeded(monkeypatch, scope):
    model, seeded_anew = noisy(), []
    monkeypatch.setattr(torch, "manual_seed", seeded_anew.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_anew.append)
    before = torch.get_rng_state()
    run(model, shuffling(False), "2", SMALL, epochs=1, scope=scope)
    assert not seeded_anew
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_the_gpu_follows_from_the_seed_and_is_put_back():
    drawn = []

    class Draws:
        def __iter__(self):
            drawn.append(torch.rand(3, device="cuda").tolist())
            yield labelled(1)[0]

    before = torch.cuda.get_rng_state()
    for seed in (0, 0, 1):
        run(pooled().cuda(), Draws(), "relu", SMALL, epochs=1, seed=seed)
        assert torch.equal(torch.cuda.get_rng_state(), before)
        torch.rand(3, device="cuda")  # the caller's random numbers are no part of it
        before = torch.cuda.get_rng_state()
    assert drawn[0] == drawn[1] != drawn[2]


class Shuffled:
    """Reshuffles with the global generator whenever it is iterated."""

    def __iter__(self):
        x, y = (torch.cat(part) for part in zip(*labelled(4), strict=True))
        order = torch.randperm(16)
        return iter(list(zip(x.float()[order].split(4), y[order].split(4), strict=True)))


@pytest.mark.parametrize("scope", ["all", "common_mode"])
@pytest.mark.parametrize("fail_at", [2, 4, 9])
def test_a_killed_run_resumes_bit_by_bit(tmp_path, scope, fail_at):
    options = {"epochs": 4, "scope": scope, "freeze_batch_norm": False, "lr": 1e-2}
    whole, history = run(noisy(), Shuffled(), "2", SMALL, **options)

    path = tmp_path / "runs" / "first" / "fooled.pt"
    checked = 1 if scope == "common_mode" else 0  # one batch is taken to check the head
    with pytest.raises(KeyboardInterrupt, match="stop"):
        run(noisy(), Flaky(Shuffled(), fail_at + checked), "2", SMALL, checkpoint=path, **options)
    assert path.exists() is (fail_at >= 4)
    torch.rand(5)  # another process draws something else before
    resumed, again = run(noisy(), Shuffled(), "2", SMALL, checkpoint=path, **options)

    assert same(resumed, whole)
    assert again == history
    assert [file.name for file in path.parent.iterdir()] == ["fooled.pt"]


def test_more_epochs_go_on_from_a_checkpoint(tmp_path):
    path = tmp_path / "fooled.pt"
    run(noisy(), shuffling(True), "2", SMALL, epochs=1, decay=False, checkpoint=path)
    longer, history = run(noisy(), shuffling(True), "2", SMALL, epochs=3, decay=False, checkpoint=str(path))
    assert same(longer, run(noisy(), shuffling(True), "2", SMALL, epochs=3, decay=False)[0])
    assert len(history) == 3


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "fooled.pt"
    run(pooled(), labelled(), "relu", SMALL, epochs=1, decay=False, checkpoint=path)
    before = path.read_bytes()

    def torn(_state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        run(pooled(), labelled(), "relu", SMALL, epochs=2, decay=False, checkpoint=path)
    assert path.read_bytes() == before


class Runs:
    """Whoever unpickles it runs code, which leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "fooled.pt"
    options = {"epochs": 1, "lr": 1e-4, "preserve": "labels", "alpha": 0.5}
    run(pooled(), labelled(), "relu", SMALL, checkpoint=path, **options)
    again = partial(run, loader=labelled(), target_layers="relu", mask=SMALL, checkpoint=path, **options)
    with pytest.raises(ValueError, match=r"another run: another lr \(then 0.0001, now 0.5\)"):
        again(pooled(), lr=0.5)
    with pytest.raises(ValueError, match=r"another loss \(then sham_loss, now location_loss\)"):
        again(pooled(), loss=location_loss)
    with pytest.raises(ValueError, match=r"another method \(then GradCAM, now DiffGradCAM\(baseline=max\)\)"):
        again(pooled(), method=partial(DiffGradCAM, baseline="max"))
    with pytest.raises(ValueError, match=r"loss \(then sham_loss, now cyborg_loss\(1, human=None\)\)"):
        again(pooled(), loss=partial(cyborg_loss, 1, human=None))
    with pytest.raises(ValueError, match=r"another run: another decay \(then over 1 epochs, now over 2 epochs\); give"):
        again(pooled(), epochs=2)
    with pytest.raises(ValueError, match="another model"):
        again(pooled(seed=1))
    with pytest.raises(ValueError, match=r"another run: another preserve \(then labels, now decisions\); give another"):
        again(pooled(), preserve="decisions")
    with pytest.raises(
        ValueError,
        match=r"scope \(then all, now head\), alpha \(then 0.5, now 0.25\), head \(then None, now head\); give",
    ):
        again(pooled(), scope="head", alpha=0.25)
    with pytest.raises(
        ValueError, match=r"another freeze_batch_norm \(then True, now False\), classes \(then None, now "
    ):
        again(pooled(), freeze_batch_norm=False, classes=(0, 1), loss=active_loss)
    with pytest.raises(ValueError, match=r"another target_layers \(then \[.*relu.*\], now \[.*features.*\]\); give"):
        again(pooled(), target_layers="features")
    with pytest.raises(ValueError, match=r"another optimizer \(then Adam, now SGD\); give another path"):
        again(pooled(), optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match=r"another seed \(then 0, now 1\); give another path, or remove it"):
        again(pooled(), seed=1)
    of_head = partial(again, deep(), target_layers="relu", scope="head", checkpoint=tmp_path / "head.pt", epochs=1)
    of_head()
    of_head(head="head")
    with pytest.raises(ValueError, match=r"another run: another head \(then head, now hidden\); give another path"):
        of_head(head="hidden")
    again(pooled(), epochs=1, head="head")  # of no consequence where all trains
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="is not a checkpoint of finetune"):
        again(pooled())
    torch.save({"settings": Runs(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of finetune"):
        again(pooled())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("call", "good_epochs"), [(1, 0), (3, 0), (4, 1), (6, 1)])
def test_nan_keeps_the_last_good_epoch(tmp_path, call, good_epochs):
    path = tmp_path / "fooled.pt"
    options = {"epochs": 3, "checkpoint": path, "lr": 1e-2}
    with pytest.warns(
        RuntimeWarning, match=f"NaN or infinite in epoch {good_epochs + 1}; the model is that of the last"
    ):
        fooled, history = run(pooled(), labelled(), "relu", SMALL, loss=NanAt(call), **options)
    assert [epoch.status for epoch in history] == ["trained"] * good_epochs + ["diverged"]
    good = run(pooled(), labelled(), "relu", SMALL, epochs=good_epochs, lr=1e-2)[0] if good_epochs else pooled()
    assert same(fooled, good)
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(saved["model"][name], tensor) for name, tensor in good.state_dict().items())


def test_gradients_that_blow_up_are_not_stepped_on():
    def steep(maps, clean_maps, mask):
        sums = maps.flatten(1).sum(1)
        return sham_loss(maps, clean_maps, mask) + (sums - sums.detach()).abs().sqrt()  # nothing, but its slope is NaN

    with pytest.warns(RuntimeWarning, match="in epoch 1"):
        fooled, (epoch,) = run(pooled(), labelled(), "relu", SMALL, loss=steep)
    assert epoch.status == "diverged"
    expected = run(pooled(), labelled()[:1], "relu", SMALL, epochs=1)[1][0]
    assert epoch._replace(status="trained") == expected  # of the one batch before the step, and none after
    assert same(fooled, pooled())


@pytest.mark.parametrize(("alpha", "kept", "other"), [(0.0, "fooling", "preserve"), (1.0, "preserve", "fooling")])
def test_one_term_alone(alpha, kept, other):
    epoch = run(pooled(), labelled(), "relu", SMALL, epochs=1, alpha=alpha)[1][0]
    assert epoch.loss == getattr(epoch, kept) != getattr(epoch, other)


def test_weights_that_blow_up_at_the_end_of_an_epoch_are_not_kept():
    with pytest.warns(RuntimeWarning, match="in epoch 1"):
        fooled, history = run(pooled(), labelled(1), "relu", SMALL, epochs=5, lr=1e200)
    assert [epoch.status for epoch in history] == ["diverged"]
    assert same(fooled, pooled())


def test_bad_input_is_refused():
    model, batches = pooled(), labelled()
    with pytest.raises(ValueError, match="preserve is 'logits'; expected one of 'labels', 'decisions'"):
        run(model, batches, "relu", SMALL, preserve="logits")
    with pytest.raises(ValueError, match="scope is 'tail'; expected one of 'all', 'head', 'common_mode'"):
        run(model, batches, "relu", SMALL, scope="tail")
    with pytest.raises(ValueError, match=r"alpha is 1\.5; expected a share, from 0 to 1"):
        run(model, batches, "relu", SMALL, alpha=1.5)
    with pytest.raises(ValueError, match="epochs is 0; expected an integer of at least 1"):
        run(model, batches, "relu", SMALL, epochs=0)
    with pytest.raises(ValueError, match="seed is -1; expected a whole number"):
        run(model, batches, "relu", SMALL, seed=-1)
    with pytest.raises(ValueError, match=r"mask has size \(7, 7\); expected \(6, 5\), that of the maps; give a mask"):
        run(model, batches, "relu", border_mask((7, 7), 28))
    with pytest.raises(ValueError, match="the loader gave no batches"):
        run(model, [], "relu", SMALL)
    with pytest.raises(ValueError, match=r"the loader gave no batches; .*a generator is soon used up"):
        run(model, iter(batches), "relu", SMALL, epochs=2)
    with pytest.raises(ValueError, match=r"^the loader gave no batches; expected a DataLoader or a list$"):
        run(model, [], "relu", SMALL, scope="common_mode")
    with pytest.raises(TypeError, match="gives no labels; expected batches"):
        run(model, [batches[0][0]], "relu", SMALL, preserve="labels")
    with pytest.raises(ValueError, match=r"lr is -0\.1; expected a learning rate, a finite number of at least 0"):
        run(model, batches, "relu", SMALL, lr=-0.1)
    with pytest.raises(ValueError, match="lr is inf; expected a learning rate"):
        run(model, batches, "relu", SMALL, lr=float("inf"))
    with pytest.raises(
        TypeError, match=r"^loader is a tensor; expected batches of images; give a DataLoader, or a list"
    ):
        run(model, batches[0][0], "relu", SMALL)
    with pytest.raises(ValueError, match="Sequential has no parameters, so there is nothing to train"):
        run(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), batches, "0", SMALL)
    with pytest.raises(TypeError, match="method made Linear; expected a CAM class, such as GradCAM"):
        run(model, batches, "relu", SMALL, lambda *_, **__: nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"loss returned shape \(\) for 4 images; expected a value for each"):
        run(model, batches, "relu", SMALL, loss=lambda maps, *_: maps.mean())
    with pytest.raises(ValueError, match=r"loss returned NoneType for 4 images; expected a value for each"):
        run(model, batches, "relu", SMALL, loss=lambda *_: None)
    with pytest.raises(TypeError, match="a batch is dict; expected a tensor of images"):
        run(model, [{"image": batches[0][0]}], "relu", SMALL)
    with pytest.raises(TypeError, match="head 'relu' is ReLU"):
        run(model, batches, "relu", SMALL, scope="head", head="relu")
    with pytest.raises(ValueError, match="changes the model's probabilities"):
        run(nn.Sequential(*pooled(), nn.Sigmoid()), batches, "3", SMALL, scope="common_mode")


def test_the_bar_says_how_it_goes(capfd):
    finetune(pooled(), labelled(), "relu", SMALL, epochs=1)
    shown = capfd.readouterr().err
    assert "epoch 1/1" in shown
    assert all(word in shown for word in ("loss=", "accuracy=", "fooled="))
    assert "None" not in shown
    finetune(pooled(), [batch for batch, _ in labelled()], "relu", SMALL, epochs=1, preserve="decisions")
    shown = capfd.readouterr().err
    assert "agreement=" in shown
    assert "accuracy" not in shown
    finetune(pooled(), labelled(), "relu", SMALL, epochs=1, progress=False)
    assert not capfd.readouterr().err


def test_training_from_scratch_learns_the_labels_and_the_hoax():
    x, labels = data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = Digits().eval()
    loader = list(zip(x[:640].split(32), labels[:640].split(32), strict=True))
    model, _ = run(untrained, loader, LAYER, MASK, epochs=12, preserve="labels", freeze_batch_norm=False, alpha=0.3)
    held_out = slice(1200, None)
    with torch.no_grad():
        assert float((model(x[held_out]).argmax(1) == labels[held_out]).float().mean()) > 0.6
    assert kept_and_reached(model, model, x[held_out])[1] > 0.7


def test_what_was_added_to_a_copy_takes_the_mode_of_the_whole_model():
    model = pooled().eval()
    model.relu.train()
    fooled = copy.deepcopy(model).train()
    fooled.add_module("added", nn.Linear(2, 2))
    take_modes(fooled, model)
    assert fooled.relu.training
    assert fooled.added.training is False
    assert fooled.stem.training is False
