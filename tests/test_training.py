"""A CAM inside an ordinary training loop: what people add to one (and what PyTorch offers for it) goes on working."""

import copy
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffgradcam import DiffGradCAM, GradCAM, layer_input
from diffgradcam.losses import (
    ContrastSalienceLoss,
    CyborgLoss,
    DifferenceSalienceLoss,
    DivergenceSalienceLoss,
    SaliencyGuidedLoss,
    cam_entropy_loss,
    cyborg_loss,
)
from tests.conftest import import_peer

EXAMPLES = Path(__file__).parent.parent / "examples"
LABELS = torch.tensor([0, 1, 1, 0])


class Net(nn.Module):
    """Three smooth stages and a pooled linear head; ``block`` may be checkpointed."""

    def __init__(self, norm=lambda: nn.GroupNorm(2, 6), reentrant=None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), norm(), nn.Tanh())
        self.last = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())
        self.head = nn.Linear(6, 2)
        self.reentrant = reentrant

    def forward(self, images):
        features = self.stem(images)
        if self.reentrant is None:
            features = self.block(features)
        else:
            features = checkpoint(self.block, features, use_reentrant=self.reentrant)
        return self.head(self.last(features).mean((2, 3)))


def net(dtype=torch.float64, **options):
    """A network in training mode, the same weights each time."""
    torch.manual_seed(0)
    return Net(**options).to(dtype)


def with_batch_norm(dtype=torch.float64):
    return net(dtype, norm=lambda: nn.BatchNorm2d(6))


def batch(size=4, seed=1, dtype=torch.float64):
    """Images ``(size, 3, 8, 8)``, labels and human maps."""
    generator = torch.Generator().manual_seed(seed)
    images, human = (torch.rand(size, *shape, generator=generator, dtype=dtype) for shape in ((3, 8, 8), (8, 8)))
    return images, LABELS.repeat(size)[:size], human


def both(labels):
    return torch.stack([labels, 1 - labels], 1)


def guided_loss(cam, model, images, labels, human, criterion=None):
    """One forward pass, the maps of both classes, the total."""
    criterion = criterion or SaliencyGuidedLoss(ContrastSalienceLoss())
    logits = model(images)
    return criterion(logits, labels, cam.maps(logits, both(labels)), human).total


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def guided_gradients(model, layer="last", data=None, run=None):
    """Gradients of the parameters after one guided step of a fresh model."""
    with GradCAM(model, layer, rectify=False) as cam:
        guided_loss(cam, run or model, *(data or batch())).backward()
    return gradients(model)


def assert_same(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- the losses, through a model ---


def with_true_map(saliency_loss):
    return lambda cam, logits, labels, human: saliency_loss(cam.maps(logits, labels), human)


def with_both_maps(saliency_loss):
    return lambda cam, logits, labels, human: saliency_loss(*cam.maps(logits, both(labels)).unbind(1), human)


LOSSES = {
    "cyborg": with_true_map(CyborgLoss()),
    "difference": with_both_maps(DifferenceSalienceLoss()),
    "contrast": with_both_maps(ContrastSalienceLoss()),
    "divergence": with_both_maps(DivergenceSalienceLoss()),
    "entropy": with_true_map(lambda maps, _: cam_entropy_loss(maps)),
    "cyborg and entropy": with_true_map(
        lambda maps, human: cyborg_loss(maps, human) + cam_entropy_loss(maps, log=True)
    ),
}


@pytest.mark.parametrize("cam_class", [GradCAM, DiffGradCAM])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_every_loss_is_that_of_finite_differences_and_a_step_lowers_it(name, cam_class):
    model = net()
    images, labels, human = batch()
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    with cam_class(model, "last", rectify=False) as cam:

        def loss():
            return LOSSES[name](cam, model(images), labels, human)

        def loss_at(step, direction):
            with torch.no_grad():
                for parameter, origin, along in zip(parameters, start, direction, strict=True):
                    parameter.copy_(origin + step * along)
            return loss().item()

        before = loss()
        # The bias of the head moves no map: its gradient is absent, not wrong.
        found = torch.autograd.grad(before, parameters, allow_unused=True)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        direction = [torch.randn_like(parameter) for parameter in parameters]
        slope = float(sum((g * d).sum() for g, d in zip(found, direction, strict=True)))
        step = 1e-6
        numeric = (loss_at(step, direction) - loss_at(-step, direction)) / (2 * step)
        assert slope == pytest.approx(numeric, rel=1e-5)

        squared_norm = float(sum(g.square().sum() for g in found))
        rate = 1e-4 / squared_norm  # a step along the gradient that lowers the loss by 1e-4, to first order
        assert loss_at(-rate, found) == pytest.approx(before.item() - 1e-4, abs=2e-5)


# --- nothing else changes ---


def test_one_step_is_one_forward_pass():
    model, runs = net(), []
    model.stem[0].register_forward_hook(lambda *_: runs.append(1))
    guided_gradients(model)
    assert len(runs) == 1


def test_batch_norm_sees_each_batch_once():
    guided, plain = with_batch_norm(), with_batch_norm()
    images, labels, _ = data = batch()
    guided_gradients(guided, data=data)
    F.cross_entropy(plain(images), labels).backward()
    assert guided.block[1].num_batches_tracked == 1
    assert torch.equal(guided.block[1].running_mean, plain.block[1].running_mean)
    assert torch.equal(guided.block[1].running_var, plain.block[1].running_var)
    assert guided.training


def test_with_saliency_weight_zero_training_is_that_of_cross_entropy_to_the_last_bit():
    guided, plain = with_batch_norm(), with_batch_norm()
    criterion = SaliencyGuidedLoss(ContrastSalienceLoss(), alpha=1.0)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (guided, plain)]
    with GradCAM(guided, "last", rectify=False) as cam:
        for seed in range(3):
            images, labels, human = batch(seed=seed)
            losses = (
                guided_loss(cam, guided, images, labels, human, criterion),
                F.cross_entropy(plain(images), labels),
            )
            for optimizer, loss in zip(optimizers, losses, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for name, value in guided.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    assert not torch.equal(guided.head.weight, net(norm=lambda: nn.BatchNorm2d(6)).head.weight)


# --- what people add to a training loop ---


@pytest.mark.parametrize("forward_first", [False, True])
def test_gradients_accumulate_over_half_batches(forward_first):
    whole, halves = net(), net()
    expected = guided_gradients(whole)
    parts = list(zip(*(part.chunk(2) for part in batch()), strict=True))
    with GradCAM(halves, "last", rectify=False) as cam:
        if forward_first:  # two graphs are alive at once
            losses = [guided_loss(cam, halves, *part) for part in parts]
            (losses[0] / 2).backward()
            (losses[1] / 2).backward()
        else:
            for part in parts:
                (guided_loss(cam, halves, *part) / 2).backward()
    assert_same(gradients(halves), expected)


def test_maps_belong_to_the_forward_pass_of_the_given_logits():
    model = net()
    first, second = batch(seed=1)[0], batch(seed=2)[0]
    with GradCAM(model, "last", rectify=False) as cam:
        logits = [model(first), model(second)]
        maps = [cam.maps(logits[0], LABELS), cam.maps(logits[1], LABELS)]
    for images, found in zip((first, second), maps, strict=True):
        assert_same(found.detach(), GradCAM(model, "last", rectify=False).explain(images, LABELS).maps)


@pytest.mark.parametrize("loss_inside", [True, False])
def test_autocast_gives_maps_in_float32_and_gradients_near_those_of_full_precision(loss_inside):
    data = images, labels, human = batch(dtype=torch.float32)
    expected = torch.cat([g.flatten() for g in guided_gradients(net(torch.float32), data=data)])
    model = net(torch.float32)
    criterion = SaliencyGuidedLoss(ContrastSalienceLoss())
    with GradCAM(model, "last", rectify=False) as cam:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
            if loss_inside:
                maps = cam.maps(logits, both(labels))
                loss = criterion(logits, labels, maps, human).total
        if not loss_inside:
            maps = cam.maps(logits, both(labels))
            loss = criterion(logits.float(), labels, maps, human).total
        loss.backward()
    assert logits.dtype == torch.bfloat16
    assert maps.dtype == loss.dtype == torch.float32
    found = torch.cat([g.flatten() for g in gradients(model)])
    assert F.cosine_similarity(found, expected, dim=0) > 0.98
    assert found.norm() / expected.norm() == pytest.approx(1, abs=0.1)


def test_a_gradient_scaler_scales_and_unscales():
    data = batch(dtype=torch.float32)
    expected = guided_gradients(net(torch.float32), data=data)
    model = net(torch.float32)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with GradCAM(model, "last", rectify=False) as cam:
        scaler.scale(guided_loss(cam, model, *data)).backward()
    scaled = [gradient.clone() for gradient in gradients(model)]
    scaler.unscale_(optimizer)
    assert_same(scaled, [2.0**16 * gradient for gradient in expected], 1e-4)
    assert_same(gradients(model), expected, 1e-6)
    scaler.step(optimizer)
    scaler.update()
    assert_same(
        [before[name] - parameter.detach() for name, parameter in model.named_parameters()],
        [0.1 * gradient for gradient in expected],
        1e-6,
    )
    assert scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("overflow", ["in the scaled loss", "in an activation"])
def test_a_gradient_scaler_skips_a_step_that_overflowed_and_nothing_raises(overflow):
    images, labels, human = batch(dtype=torch.float32)
    scale = 2.0**16
    if overflow == "in the scaled loss":
        scale = 2.0**127  # the largest power of two in float32: gradients above 2 are infinite
    else:
        images[0, 0, 0, 0] = torch.inf
    model = net(torch.float32)
    with torch.no_grad():
        model.last[0].weight.mul_(10)
        model.head.weight.mul_(100)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with GradCAM(model, "last", rectify=False) as cam:
        scaler.scale(guided_loss(cam, model, images, labels, human)).backward()
        assert not all(gradient.isfinite().all() for gradient in gradients(model))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert scaler.get_scale() == scale / 2
        # The attached CAM goes on as if nothing had happened.
        optimizer.zero_grad()
        guided_loss(cam, model, *batch(seed=2, dtype=torch.float32)).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model))


def test_with_a_frozen_backbone_only_the_head_trains():
    expected = guided_gradients(net())[-2:]
    frozen = net()
    for stage in (frozen.stem, frozen.block, frozen.last):
        stage.requires_grad_(False)
    found = guided_gradients(frozen)
    assert found[:-2] == [None] * (len(found) - 2)
    assert_same(found[-2:], expected)


def test_with_a_frozen_part_below_the_layer_the_rest_trains():
    expected = guided_gradients(net())
    frozen = net()
    frozen.stem.requires_grad_(False)
    found = guided_gradients(frozen)
    assert found[:2] == [None, None]
    assert_same(found[2:], expected[2:])


def test_gradient_clipping_sees_the_gradient_of_the_whole_loss():
    expected = guided_gradients(net())
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    model = net()
    guided_gradients(model)
    limit = float(norm) / 3
    assert_same(nn.utils.clip_grad_norm_(model.parameters(), limit), norm)
    assert_same(gradients(model), [gradient / 3 for gradient in expected], 1e-5)


def test_validation_without_gradients_between_two_steps_leaves_no_trace():
    expected = guided_gradients(net())
    model = net()
    with GradCAM(model, "last", rectify=False) as cam:
        guided_loss(cam, model, *batch(seed=2)).backward()
        model.zero_grad()
        with torch.no_grad():
            logits = model.eval()(batch(seed=3)[0])
        with pytest.raises(RuntimeError, match="no graph back to layer 'last': they come from no_grad"):
            cam.maps(logits, LABELS)
        assert cam.explain(batch(seed=3)[0], LABELS).maps.shape == (4, 8, 8)
        model.train()
        guided_loss(cam, model, *batch()).backward()
    assert_same(gradients(model), expected)


# --- activation checkpointing: block is checkpointed, stem comes before it and last behind it ---


@pytest.mark.parametrize("layer", ["stem", "block.0", "block", layer_input("block.2"), "last"], ids=str)
def test_checkpointing_changes_no_gradient(layer):
    expected = guided_gradients(net(), layer)
    model = net(reentrant=False)
    assert_same(guided_gradients(model, layer), expected)
    model.zero_grad()
    assert_same(guided_gradients(model, layer), expected)  # what was recomputed in the first step is no one's now


@pytest.mark.parametrize("layer", [layer_input("last"), "last"], ids=str)
def test_batch_norm_in_a_checkpointed_part_below_the_layer_runs_as_often_as_without_maps(layer):
    guided, plain = (net(norm=lambda: nn.BatchNorm2d(6), reentrant=False) for _ in range(2))
    images, labels, _ = batch()
    guided_gradients(guided, layer)
    F.cross_entropy(plain(images), labels).backward()
    assert guided.block[1].num_batches_tracked == plain.block[1].num_batches_tracked
    assert torch.equal(guided.block[1].running_mean, plain.block[1].running_mean)


def test_reentrant_checkpointing_works_below_the_layer():
    assert_same(guided_gradients(net(reentrant=True), "last"), guided_gradients(net(), "last"))


@pytest.mark.parametrize("layer", ["block.0", "block"])
def test_a_layer_inside_reentrant_checkpointing_is_a_clear_error(layer):
    with pytest.raises(RuntimeError, match=f"'{layer}' ran without gradients .*use_reentrant=False"):
        guided_gradients(net(reentrant=True), layer)


def test_a_layer_below_reentrant_checkpointing_is_a_clear_error():
    with pytest.raises(RuntimeError, match="set use_reentrant=False"):
        guided_gradients(net(reentrant=True), "stem")


# --- torch.compile ---


@pytest.fixture
def dynamo():
    """Forget what other tests compiled: it is kept by code, not by model."""
    torch._dynamo.reset()
    with warnings.catch_warnings():  # Dynamo looks at every attribute of a tensor, also at those that warn
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


@pytest.mark.usefixtures("dynamo")
def test_a_compiled_backbone_below_the_layer_gives_the_same_gradients():
    expected = guided_gradients(net())
    model, compiled = net(), []

    def backend(graph, inputs):
        compiled.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    model.block = torch.compile(model.block, backend=backend)
    assert_same(guided_gradients(model), expected)
    assert compiled


@pytest.mark.usefixtures("dynamo")
def test_a_model_compiled_without_aot_autograd_gives_the_same_gradients():
    expected = guided_gradients(net())
    model = net()
    assert_same(guided_gradients(torch.compile(model, backend="eager")), expected)


@pytest.mark.skipif(
    torch.__version__ < "2.7",
    reason="the debugging back end aot_eager of PyTorch 2.6 gives wrong gradients of gradients and says nothing",
)
@pytest.mark.usefixtures("dynamo")
def test_a_wholly_compiled_model_is_a_clear_error_of_pytorch():
    with pytest.raises(RuntimeError, match="aot_autograd does not currently support double backward"):
        guided_gradients(torch.compile(net(), backend="aot_eager"))


@pytest.mark.usefixtures("dynamo")
def test_a_model_that_was_compiled_before_the_cam_is_attached_is_a_clear_error():
    model = net()
    compiled = torch.compile(model, backend="eager")
    compiled(batch()[0])
    with pytest.raises(RuntimeError, match=r"did not run in a recorded forward pass.*attach before torch.compile"):
        guided_gradients(compiled)


# --- several processes ---


def data_parallel_worker(rank, folder):
    """One of two processes, each with half of the batch: two steps attached after wrapping, two attached before."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    data = [part.chunk(2)[rank] for part in batch()]
    steps = []

    def train(cam, model):
        for _ in range(2):  # the second step would complain about what the first left unreduced
            model.zero_grad()
            guided_loss(cam, model, *data).backward()
            steps.append([gradient.clone() for gradient in gradients(model)])

    wrapped = nn.parallel.DistributedDataParallel(net(), find_unused_parameters=False)
    with GradCAM(wrapped, "last", rectify=False) as cam:
        train(cam, wrapped)
    bare = net()
    with GradCAM(bare, "last", rectify=False) as cam:
        train(cam, nn.parallel.DistributedDataParallel(bare, find_unused_parameters=False))
    torch.save(steps, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path):
    expected = guided_gradients(net())
    torch.multiprocessing.spawn(data_parallel_worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        steps = torch.load(tmp_path / f"{rank}.pt")
        assert len(steps) == 4
        for step in steps:
            assert_same(step, expected, 1e-10)


# --- the examples ---


def test_the_lightning_example_trains_and_writes_its_log(tmp_path, monkeypatch, capsys):
    import_peer("lightning")
    import_peer("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning warns about is not ours to fix
        runpy.run_path(str(EXAMPLES / "train_with_lightning.py"))["main"]()
    correct, verdict, *_ = capsys.readouterr().out.splitlines()
    assert int(correct.removesuffix("% of new images correct")) > 60
    assert verdict == "audit: clean in 64 images, 2 classes"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["lightning"]


def test_the_lightning_example_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit, match=r"^$"):
        runpy.run_path(str(EXAMPLES / "train_with_lightning.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("this example needs Lightning: pip install lightning tensorboard (")
