"""Methods that run the model on perturbed inputs, against loops: one image, channel and sample at a time."""

import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from diffgradcam import TrainableCAM, explain_together, layer_input
from diffgradcam._core.batches import images_at_once
from diffgradcam.heatmaps import minmax, principal_component, resize
from diffgradcam.methods.perturbation import ISCAM, SSCAM, AblationCAM, ScoreCAM
from diffgradcam.scores import log_probability, logit_difference, probability
from diffgradcam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget
from tests import models, oracles
from tests.conftest import import_peer
from tests.methods import WORDS, exact
from tests.untouched import untouched

QUIET = {"progress": False}
HEADS = [models.pooled, models.flat, models.deep, models.max_pooled]
METHODS = {
    "ScoreCAM": ScoreCAM,
    "SSCAM": partial(SSCAM, samples=2, std=0.5, seed=3),
    "ISCAM": partial(ISCAM, samples=3),
    "AblationCAM": AblationCAM,
}
MASKING = [name for name in METHODS if name != "AblationCAM"]
CLASSES = torch.tensor([0, 3, 1])
every_method = pytest.mark.parametrize("name", METHODS)


def ours(name, model, layer, **options):
    return METHODS[name](model, layer, **QUIET, **options)


def halves(model, layer):
    """A sequential model up to the layer, and from there on."""
    at = [name for name, _ in model.named_children()].index(layer) + 1
    return model[:at], model[at:]


def changes(name, size):
    """What each method does to a mask, sample after sample."""
    if name == "SSCAM":
        generator = torch.Generator().manual_seed(3)
        noises = [0.5 * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
        return [lambda mask, noise=noise: mask + noise for noise in noises]
    if name == "ISCAM":
        return [lambda mask, a=a: a * mask for a in (1 / 3, 1 / 3 + 2 / 3, 1 / 3 + 2 / 3 + 3 / 3)]
    return [lambda mask: mask]


def loop(name, model, layer, image, category, score=oracles.logit):
    """The signed map of one image and class."""
    before, after = halves(model, layer)
    with torch.no_grad():
        activations = before(image.unsqueeze(0))
        measured = []
        for k, channel in enumerate(activations[0]):
            if name == "AblationCAM":
                less = activations.clone()
                less[0, k] = 0
                drop = score(after(activations)[0], category) - score(after(less)[0], category)
                measured.append(float(drop))
                continue
            mask = torch.from_numpy(oracles.resize(channel.numpy(), image.shape[1:]))
            low, high = mask.min(), mask.max()
            mask = (mask - low) / (high - low) if high > low else torch.zeros_like(mask)
            samples = [image * change(mask) for change in changes(name, image.shape[1:])]
            total = sum(float(score(model(sample.unsqueeze(0))[0], category)) for sample in samples)
            measured.append(total / len(samples))
        if name != "AblationCAM":
            total = sum(math.exp(value) for value in measured)
            measured = [math.exp(value) / total for value in measured]
        return sum(weight * channel for weight, channel in zip(measured, activations[0], strict=True))


def loops(name, model, layer, images, classes, score=oracles.logit):
    rows = []
    for image, row in zip(images, classes.reshape(len(images), -1).tolist(), strict=True):
        rows.append(torch.stack([loop(name, model, layer, image, c, score) for c in row]))
    maps = torch.stack(rows)
    return maps.reshape(*classes.shape, *maps.shape[2:])


@every_method
@pytest.mark.parametrize("head", HEADS)
def test_a_method_equals_loops(name, head):
    model, images = head(), models.images()
    signed = ours(name, model, "features", rectify=False, batch_size=5).explain(images, CLASSES)
    exact(signed.logits, model(images).detach())
    assert torch.equal(signed.classes, CLASSES)
    exact(signed.maps, loops(name, model, "features", images, CLASSES))
    assert float(signed.maps.abs().max()) > 1e-3
    exact(ours(name, model, "features").explain(images, CLASSES).maps, signed.maps.relu())


@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
@pytest.mark.parametrize("classes", WORDS)
def test_classes_in_all_forms(name, classes):
    model, images = models.deep(), models.images()
    explanation = ours(name, model, "relu", rectify=False).explain(images, classes)
    exact(explanation.maps, loops(name, model, "relu", images, explanation.classes))


@every_method
@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(name, dims):
    model, images = models.flat(dims=dims), models.images(dims=dims)
    maps = ours(name, model, "relu", rectify=False).explain(images, CLASSES).maps
    exact(maps, loops(name, model, "relu", images, CLASSES))


@every_method
def test_a_contrast_as_score(name):
    model, images = models.deep(), models.images()
    cam = ours(name, model, "features", rectify=False, score=logit_difference)
    exact(
        cam.explain(images, CLASSES).maps,
        loops(name, model, "features", images, CLASSES, oracles.difference(oracles.logsumexp)),
    )


@every_method
def test_a_layer_of_lower_resolution_and_two_layers_together(name):
    model, images = models.two_sizes(), models.images()
    small, large = (ours(name, model, layer).explain(images, CLASSES).maps for layer in ("small", "features"))
    exact(small, loops(name, model, "small", images, CLASSES).relu())
    assert small.shape[1:] == (3, 2)
    both = ours(name, model, ["small", "features"]).explain(images, CLASSES).maps
    exact(both, (resize(small, large.shape[1:]) + large) / 2)


@every_method
def test_a_common_vector_moves_the_plain_method_but_not_its_contrast(name):
    images = models.images()

    def maps(model, **options):
        return ours(name, model, "features", rectify=False, **options).explain(images, CLASSES).maps

    clean, fooled = models.pooled(), models.pooled()
    with torch.no_grad():
        fooled.head.weight += 5 * torch.linspace(-1, 1, models.CHANNELS)
    exact(maps(fooled, score=logit_difference), maps(clean, score=logit_difference))
    assert float((maps(fooled) - maps(clean)).abs().max()) > 0.1


def test_what_the_weight_of_score_cam_means():
    """With one channel bright at a time, the map is the weights themselves."""
    model, images = models.deep(), models.images()
    odds = probability(model(images), CLASSES) / (1 - probability(model(images), CLASSES))
    exact(logit_difference(model(images), CLASSES).exp(), odds)
    masks = minmax(model[:3](images).flatten(0, 1)).view(3, models.CHANNELS, *images.shape[2:])
    seen = (images.unsqueeze(1) * masks.unsqueeze(2)).flatten(0, 1)
    p = probability(model(seen), CLASSES.repeat_interleave(models.CHANNELS)).view(3, models.CHANNELS)
    for score, values in ((log_probability, p), (logit_difference, p / (1 - p))):
        weights = values / values.sum(1, keepdim=True)
        expected = torch.einsum("bk,bkhw->bhw", weights, model[:3](images))
        exact(ScoreCAM(model, "features", score=score, rectify=False).explain(images, CLASSES).maps, expected.detach())


@every_method
def test_one_run_serves_all_classes_in_batches(name):
    model, images = models.deep(), models.images()
    sizes = []
    handle = model.head.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    samples = {"SSCAM": 2, "ISCAM": 3}.get(name, 1)
    for classes in (None, "all"):
        sizes.clear()
        ours(name, model, "relu", batch_size=4).explain(images, classes)
        runs = [3] + [4, 4, 4, 4, 2] * samples  # 3 images, 6 channels each
        if name == "AblationCAM":  # what lies below is noted, handed out as a test, and one result is compared
            runs[1:2] = [3, 3, 4, 1]
        assert sizes == runs
    handle.remove()


@every_method
def test_neither_the_batch_nor_the_batch_size_matters(name):
    model, images = models.deep(), models.images(5)
    together = ours(name, model, "relu", batch_size=64).explain(images, 2).maps
    exact(ours(name, model, "relu", batch_size=1).explain(images, 2).maps, together)
    alone = [ours(name, model, "relu").explain(image.unsqueeze(0), 2).maps[0] for image in images]
    exact(torch.stack(alone), together)
    assert ours(name, model, "relu").explain(images[:0], 2).maps.shape == (0, 6, 5)


@every_method
@pytest.mark.parametrize("layer", ["relu", layer_input("relu")])
def test_the_strongest_channels_alone(name, layer):
    """As if the model of the loops had no other channels to weight."""
    model, images = models.deep(), models.images()
    chosen = ours(name, model, layer, rectify=False, channels=2, batch_size=4).explain(images, CLASSES).maps
    for image, category, found in zip(images, CLASSES.tolist(), chosen, strict=True):
        name_of_layer = "relu" if layer == "relu" else "features"
        activations = halves(model, name_of_layer)[0](image.unsqueeze(0))[0].detach()
        strongest = activations.square().sum((1, 2)).argsort(descending=True)[:2]
        weights = channel_weights(name, model, name_of_layer, image, category)[strongest]
        if name != "AblationCAM":  # the softmax over these two
            weights = weights / weights.sum()
        exact(found, torch.einsum("k,khw->hw", weights, activations[strongest]))
    everything = ours(name, model, layer, channels=99).explain(images, CLASSES).maps
    exact(everything, ours(name, model, layer).explain(images, CLASSES).maps)


def channel_weights(name, model, layer, image, category):
    """The weights of all channels, of the loop over an image: those of maps with one channel bright at a time."""
    activations = halves(model, layer)[0](image.unsqueeze(0))[0].detach()
    signed = loop(name, model, layer, image, category)
    return torch.linalg.lstsq(activations.flatten(1).T, signed.flatten().unsqueeze(1)).solution[:, 0]


class _LittleMemory(nn.Module):
    """Runs on at most so many images at once, as a device with little memory would."""

    def __init__(self, most):
        super().__init__()
        self.inner, self.most, self.seen = models.deep(), most, []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.seen.append(len(x))
        return self.inner(x)


@every_method
def test_the_batch_size_is_halved_where_memory_runs_out(name):
    images = models.images()
    expected = ours(name, models.deep(), "relu").explain(images, CLASSES).maps
    model = _LittleMemory(5)
    exact(ours(name, model, "inner.relu").explain(images, CLASSES).maps, expected)
    assert max(model.seen) == 4  # of 18
    exact(ours(name, model, "inner.relu", batch_size=7).explain(images, CLASSES).maps, expected)
    model.most = 0
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        ours(name, model, "inner.relu").explain(images)


def test_the_batch_size_that_is_chosen():
    one = torch.zeros(())
    assert images_at_once(one.expand(1, 3, 32, 32)) == 64
    assert images_at_once(one.expand(1, 3, 112, 112)) == 16
    assert images_at_once(one.expand(1, 3, 224, 224)) == 4
    assert images_at_once(one.expand(1, 1, 10_000, 10_000)) == 1
    assert images_at_once(one.to("meta").expand(1, 3, 112, 112)) == 256
    assert images_at_once(one.to("meta").expand(1, 3, 224, 224)) == 222
    assert images_at_once({"words": one}) == 32


# Where there is nothing to see


@every_method
def test_zero_activations_give_a_zero_map(name):
    model = models.pooled()
    with torch.no_grad():
        model.features.weight.zero_()
        model.features.bias.fill_(-1)
    assert torch.equal(ours(name, model, "relu").explain(models.images()).maps, torch.zeros(3, 6, 5).double())
    assert not ours(name, model, "relu")(models.images()).any()


@every_method
def test_a_constant_channel_is_finite_and_equals_the_loops(name):
    model, images = models.deep(), models.images()
    with torch.no_grad():
        model.features.weight[2] = 0
        model.features.bias[2] = 0.7
    maps = ours(name, model, "features", rectify=False).explain(images, CLASSES).maps
    assert bool(maps.isfinite().all())
    exact(maps, loops(name, model, "features", images, CLASSES))


def test_the_drop_keeps_its_sign_where_the_score_is_negative_or_zero():
    """The paper's division by the score would turn the map over, or make it infinite."""
    model, images = models.pooled(classes=2), models.images(1)
    one, other = (
        AblationCAM(model, "relu", score=logit_difference, rectify=False).explain(images, c).maps for c in (0, 1)
    )
    exact(one, -other)  # evidence for the one is evidence against the other, whichever score is negative
    with torch.no_grad():
        difference = logit_difference(model(images), torch.tensor([0]))
        model.head.bias[0] -= difference[0]  # undecided: both scores are 0
        assert float(logit_difference(model(images), torch.tensor([0])).abs()) < 1e-12
    exact(AblationCAM(model, "relu", score=logit_difference, rectify=False).explain(images, 0).maps, one)


def test_ablation_of_a_pooled_linear_head_by_hand():
    """Without channel k the logit drops by its weight times the channel's mean."""
    model, images = models.pooled(), models.images()
    activations = model[:4](images)
    drops = model.head.weight[CLASSES] * activations.mean((2, 3))
    expected = torch.einsum("bk,bkhw->bhw", drops, activations).detach()
    exact(AblationCAM(model, "relu", rectify=False).explain(images, CLASSES).maps, expected)


# Noise


def test_smoothed_score_cam_follows_its_seed_and_leaves_global_random_numbers_alone():
    model, images = models.deep(), models.images()

    def maps(**options):
        return SSCAM(model, "relu", samples=2, **QUIET, **options).explain(images, 0).maps

    state = torch.get_rng_state()
    first = maps(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(maps(seed=1), first)
    assert float((maps(seed=2) - first).abs().max()) > 1e-6


def test_without_noise_or_steps_they_are_score_cam():
    model, images = models.deep(), models.images()
    expected = ScoreCAM(model, "relu").explain(images, "all").maps
    exact(SSCAM(model, "relu", samples=2, std=0).explain(images, "all").maps, expected)
    exact(ISCAM(model, "relu", samples=1).explain(images, "all").maps, expected)


# The call


@every_method
def test_the_call_scales_the_explained_map(name):
    model, images = models.two_sizes(), models.images()
    maps = ours(name, model, "small").explain(images, CLASSES).maps
    expected = minmax(resize(minmax(maps), images.shape[2:])).numpy().astype(np.float32)
    np.testing.assert_allclose(ours(name, model, "small")(images, CLASSES.tolist()), expected, atol=1e-6)
    targets = [lambda logits, c=c: logits[c] for c in CLASSES.tolist()]  # scores of their own
    np.testing.assert_allclose(ours(name, model, "small")(images, targets), expected, atol=1e-6)


@every_method
def test_eigen_smoothing_takes_the_weighted_channels(name):
    model, images = models.deep(), models.images()
    channels = model[:4](images).detach()
    smooth = ours(name, model, "relu")(images, CLASSES.tolist(), eigen_smooth=True)
    # The weights follow from the maps of unit channels: the plain map is linear in the channels.
    weights = torch.linalg.lstsq(
        channels.flatten(2).transpose(1, 2),
        ours(name, model, "relu", rectify=False).explain(images, CLASSES).maps.flatten(1).unsqueeze(2),
    ).solution
    expected = minmax(principal_component(weights.unsqueeze(3) * channels).relu())
    np.testing.assert_allclose(smooth, expected.numpy(), atol=1e-5)


@every_method
def test_the_score_of_a_segmentation_mask(name):
    model = models.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    images, mask = models.images(), torch.zeros(6, 5)
    mask[:3] = 1
    pooled = nn.Sequential(*model, _SumOver(mask)).double()
    heat = ours(name, model, "1")(images, [SemanticSegmentationTarget(2, mask)] * 3)
    np.testing.assert_allclose(heat, ours(name, pooled, "1")(images, [2, 2, 2]), atol=1e-6)
    assert heat.max() > 0.99


class _SumOver(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return (x * self.mask).sum((2, 3))


# Models as people have them


@every_method
def test_what_enters_a_layer(name):
    model, images = models.deep(), models.images()
    expected = ours(name, model, "features").explain(images, CLASSES).maps
    exact(ours(name, model, layer_input("relu")).explain(images, CLASSES).maps, expected)


@every_method
def test_an_in_place_relu_after_the_layer_changes_nothing(name):
    images = models.images()
    expected = ours(name, models.densenet(inplace=False), "features").explain(images, CLASSES).maps
    exact(ours(name, models.densenet(inplace=True), "features").explain(images, CLASSES).maps, expected)


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_changes_in_any_mode(name, mode):
    model = models.deep()
    expected = ours(name, model, "relu").explain(models.images(), "all").maps
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with mode(), untouched(model):
        maps = ours(name, model, "relu").explain(models.images(), "all").maps
    exact(maps.clone(), expected)
    assert not maps.requires_grad


@every_method
def test_nothing_stays_behind_after_an_exception(name):
    model, calls = models.deep(), []

    def fails_later(logits, classes):
        calls.append(1)
        if len(calls) == 3:
            raise ArithmeticError("stop")
        return logits.gather(1, classes.unsqueeze(1)).squeeze(1)

    cam = ours(name, model, "relu", score=fails_later, batch_size=2)
    with untouched(model), pytest.raises(ArithmeticError, match="stop"):
        cam.explain(models.images())
    assert len(calls) == 3


class _Scaled(nn.Module):
    """Further arguments: one row for each image, and one for all."""

    def __init__(self):
        super().__init__()
        self.inner = models.deep()

    def forward(self, x, gain, *, power=1, shift=None):
        return self.inner(x) * gain.unsqueeze(1) ** power + shift


@every_method
def test_further_arguments_follow_the_images(name):
    images, gain, shift = models.images(), torch.tensor([0.5, 1.0, 2.0]).double(), torch.randn(3, 5).double()
    maps = ours(name, _Scaled(), "inner.relu", batch_size=4).explain(images, CLASSES, gain, power=2, shift=shift).maps
    for i in range(3):
        one = ours(name, _Scaled(), "inner.relu").explain(
            images[i : i + 1], CLASSES[i : i + 1], gain[i : i + 1], power=2, shift=shift[i : i + 1]
        )
        exact(maps[i], one.maps[0])


class _SeesDtype(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = models.deep(dtype=torch.float32)
        self.seen = []

    def forward(self, x):
        logits = self.inner(x)
        self.seen.append(logits.dtype)
        return logits


@every_method
def test_perturbed_inputs_run_under_the_callers_autocast(name):
    model, images = _SeesDtype(), models.images(dtype=torch.float32)
    expected = ours(name, model, "inner.relu").explain(images, CLASSES).maps
    assert set(model.seen) == {torch.float32}
    model.seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16), untouched(model):
        maps = ours(name, model, "inner.relu").explain(images, CLASSES).maps
    assert set(model.seen) == {torch.bfloat16}
    assert len(model.seen) > 1
    assert maps.dtype == torch.float32
    assert float((maps - expected).abs().max()) < 0.1 * float(expected.abs().max())


@every_method
def test_half_precision_is_near_single(name):
    images = models.images(dtype=torch.float32)
    expected = ours(name, models.deep(dtype=torch.float32), "relu").explain(images, CLASSES).maps
    maps = ours(name, models.deep(dtype=torch.bfloat16), "relu").explain(images.bfloat16(), CLASSES).maps
    assert maps.dtype == torch.float32
    assert float((maps - expected).abs().max()) < 0.1 * float(expected.abs().max())


def _grid(tokens):
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (6, 5))


def test_ablation_of_tokens_takes_the_channel_from_the_grid_alone():
    model, images = models.tokens(), models.images()
    maps = AblationCAM(model, "block", _grid, rectify=False).explain(images, CLASSES).maps
    with torch.no_grad():
        patches = model.embed(images).flatten(2).transpose(1, 2)
        tokens = model.block(torch.cat([model.token.expand(3, -1, -1), patches], 1))
        for i, category in enumerate(CLASSES.tolist()):
            expected = torch.zeros(6, 5).double()
            for k in range(models.CHANNELS):
                less = tokens.clone()
                less[:, 1:, k] = 0
                full, without = (
                    model.head(model.mix(t, t, t, need_weights=False)[0][:, 0])[i, category] for t in (tokens, less)
                )
                expected += (full - without) * _grid(tokens)[i, k]
            exact(maps[i], expected)
    assert ScoreCAM(model, "block", _grid).explain(images, CLASSES).maps.shape == (3, 6, 5)


def test_methods_share_a_forward_pass():
    model, images = models.deep(), models.images()
    cams = [ours(name, model, "relu") for name in METHODS]
    for cam, shared in zip(cams, explain_together(cams, images, CLASSES), strict=True):
        exact(shared.maps, cam.explain(images, CLASSES).maps)


def test_another_thread_sees_no_ablation():
    model, images = models.deep(), models.images()
    with torch.no_grad():
        expected = model(images)
    elsewhere = []

    def meanwhile(logits, classes):
        def look():
            with torch.no_grad():
                elsewhere.append(model(images))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return logits.gather(1, classes.unsqueeze(1)).squeeze(1)

    AblationCAM(model, "relu", score=meanwhile, batch_size=6).explain(images)
    assert len(elsewhere) == 4
    assert all(torch.equal(logits, expected) for logits in elsewhere)


def test_ablation_in_a_model_compiled_in_place():
    """Compiled code ignores hooks that come later, so the perturbed inputs must not run it."""
    torch.compiler.reset()
    images, model = models.images(), models.deep()
    expected = AblationCAM(models.deep(), "relu").explain(images, CLASSES).maps
    model.compile(backend="eager")
    model(images)
    exact(AblationCAM(model, "relu").explain(images, CLASSES).maps, expected)
    torch.compiler.reset()


def test_no_progress_bar_for_what_is_quick(capfd):
    for progress in (True, False):
        ScoreCAM(models.deep(), "relu", progress=progress).explain(models.images())
    assert capfd.readouterr() == ("", "")


# Errors


@every_method
def test_there_are_no_maps_to_train_with(name):
    cam = ours(name, models.deep(), "relu")
    assert not isinstance(cam, TrainableCAM)
    assert not hasattr(cam, "maps")


@every_method
@pytest.mark.parametrize("option", ["batch_size", "channels"])
@pytest.mark.parametrize("wrong", [0, -1, 2.0, True])
def test_bad_batch_sizes_and_numbers_of_channels(name, option, wrong):
    with pytest.raises(ValueError, match=f"{option} is {wrong!r}; expected an integer of at least 1"):
        ours(name, models.deep(), "relu", **{option: wrong})


@pytest.mark.parametrize("method", [SSCAM, ISCAM])
def test_bad_samples(method):
    with pytest.raises(ValueError, match="samples is 0; expected an integer of at least 1"):
        method(models.deep(), "relu", samples=0)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_bad_noise(wrong):
    with pytest.raises(ValueError, match=f"std is {wrong!r}; expected a standard deviation, a finite number of at"):
        SSCAM(models.deep(), "relu", std=wrong)


class _TakesDictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = models.deep()

    def forward(self, inputs):
        return self.inner(inputs["images"])


class _TakesNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = models.deep()

    def forward(self, seed):
        return self.inner(models.images(seed))


class _Embeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 5, 3, padding=1)

    def forward(self, words):
        return self.conv(self.embed(words).transpose(1, 2)).mean(2)


@every_method
def test_inputs_that_cannot_be_perturbed(name):
    model = _TakesDictionary()
    maps = ours(name, model, "inner.relu").explain({"images": models.images()}, [0, 1, 2]).maps
    exact(maps, ours(name, model.inner, "relu").explain(models.images(), [0, 1, 2]).maps)
    with pytest.raises(
        TypeError, match=f"{name} runs the model .* argument is NoneType; expected a tensor with 3 rows"
    ):
        ours(name, _TakesNumber(), "inner.relu").explain(3)
    words = torch.tensor([[1, 2, 3, 4]])
    model = models.seeded(_Embeds)
    if name == "AblationCAM":
        assert ours(name, model, "conv").explain(words).maps.shape == (1, 4)
    else:
        message = rf"{name} masks images, but .* torch.int64 of shape \(1, 4\); expected floating-point images"
        with pytest.raises(TypeError, match=message):
            ours(name, model, "conv").explain(words)


@every_method
def test_scores_and_targets_of_the_wrong_shape(name):
    model, images = models.deep(), models.images()
    with pytest.raises(ValueError, match=r"the score returned float for logits .* expected one value per image"):
        ours(name, model, "relu", score=lambda *_: 3.0).explain(images)
    with pytest.raises(ValueError, match=r"the score returned shape \(\d+, 5\) .* expected one value per image"):
        ours(name, model, "relu", score=lambda logits, _classes: logits).explain(images)
    with pytest.raises(ValueError, match=r"target function returned shape \(5,\) .*; expected a single number"):
        ours(name, model, "relu")(images, [lambda logits: logits] * 3)
    with pytest.raises(ValueError, match=r"target function returned float .*; expected a single number"):
        ours(name, model, "relu")(images, [lambda _logits: 1.0] * 3)


@every_method
def test_a_score_that_is_not_finite_under_perturbation(name):
    model, images = models.deep(), models.images()
    known = model(images).detach()

    def fails_on_others(logits, classes):
        same = (logits.unsqueeze(1) - known).abs().amax(2).amin(1) < 1e-9
        return torch.where(same, logits.gather(1, classes.unsqueeze(1)).squeeze(1), torch.nan)

    with pytest.raises(ValueError, match="the score under perturbation of image 0 is NaN or infinite"):
        ours(name, model, "relu", score=fails_on_others).explain(images)


def test_a_reshape_transform_that_detaches():
    with pytest.raises(ValueError, match="reshape_transform= detaches the activations, so AblationCAM cannot tell"):
        AblationCAM(models.tokens(), "block", lambda tokens: _grid(tokens).detach()).explain(models.images())


# The libraries that people know


def theirs_close(ours, theirs):
    assert theirs.max() > 0.99
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def silent(monkeypatch):
    """pytorch-grad-cam shows a progress bar for every image."""
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("layer", ["features", "relu"])
def test_score_cam_equals_pytorch_grad_cam_where_nothing_is_enlarged(pytorch_grad_cam, layer):
    # It enlarges masks with aligned corners, which moves them by up to half a cell: no difference at equal size.
    model, images = models.flat(dtype=torch.float32), models.images(dtype=torch.float32)
    targets = [ClassifierOutputTarget(c) for c in CLASSES.tolist()]
    with pytorch_grad_cam.ScoreCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        theirs = cam(input_tensor=images, targets=targets)
    theirs_close(ScoreCAM(model=model, target_layers=[model.get_submodule(layer)])(images, targets), theirs)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("head", [models.flat, models.two_sizes])
def test_ablation_cam_equals_pytorch_grad_cam_where_activations_and_scores_are_not_negative(pytorch_grad_cam, head):
    # It does not set channels of a layer with negative values to 0, as the paper does, but to -10 million; and it
    # divides by the score, which turns the map over where the score is negative.
    model, images = head(dtype=torch.float32), models.images(dtype=torch.float32)
    with torch.no_grad():
        model.head.bias += 100
    layer = model[-4] if head is models.two_sizes else model.relu
    targets = [ClassifierOutputTarget(c) for c in CLASSES.tolist()]

    def theirs():
        with pytorch_grad_cam.AblationCAM(model=model, target_layers=[layer], batch_size=4) as cam:
            return cam(input_tensor=images, targets=targets)

    ours = AblationCAM(model=model, target_layers=[layer])(images, targets)
    theirs_close(ours, theirs())
    with torch.no_grad():
        model.head.bias -= 200
    theirs_close(AblationCAM(model=model, target_layers=[layer])(images, targets), ours)
    signed = AblationCAM(model, layer, rectify=False).explain(images, CLASSES).maps
    turned = minmax(resize(minmax((-signed).relu()), images.shape[2:]))
    np.testing.assert_allclose(theirs(), turned.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("dims", [2, 3])
def test_masking_methods_equal_torchcam_where_nothing_is_enlarged(name, dims):
    # It scales masks before it enlarges them, not after as the paper does; at equal size there is no difference.
    # For smoothed Score-CAM it draws other noise for every channel: here it gets ours.
    methods = import_peer("torchcam.methods")
    model, images = models.deep(dims=dims, dtype=torch.float32), models.images(dims=dims, dtype=torch.float32)
    options = {"SSCAM": {"num_samples": 2, "std": 0.5}, "ISCAM": {"num_samples": 3}}.get(name, {})
    with getattr(methods, name)(model, "relu", **options) as cam, torch.no_grad():
        if name == "SSCAM":
            cam._distrib = _OurNoise(images.shape[2:])
        model(images)
        (theirs,) = cam(CLASSES.tolist(), normalized=False)
    maps = ours(name, model, "relu").explain(images, CLASSES).maps
    assert float(maps.abs().max()) > 1e-3
    torch.testing.assert_close(maps, theirs, rtol=1e-4, atol=1e-5)


class _OurNoise:
    def __init__(self, size):
        self.size, self.generator = size, torch.Generator().manual_seed(3)

    def sample(self, shape):
        return (0.5 * torch.randn(self.size, generator=self.generator, dtype=torch.float64)).float().expand(shape)
