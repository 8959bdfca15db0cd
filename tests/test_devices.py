"""On an accelerator all is as on the CPU: the same values, on the device where the documentation says so.

A case is a function of a model and images. It runs on the CPU and on the pretend accelerator, which computes on the CPU
too, in float32; the tolerance is for sums in another order.
"""

import copy
import tempfile
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

import diffgradcam as dgc
from diffgradcam import losses, metrics, sham, targets
from diffgradcam.data import explain_dataset
from diffgradcam.heatmaps import minmax
from diffgradcam.scores import logit_difference, two_logits
from diffgradcam.visualize import overlay
from tests import models
from tests.methods import METHODS
from tests.pretend_device import DEVICE, PretendTensor, held, pretend_device

IMAGES = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1])
SOME = torch.tensor([True, False, True])
MASK = sham.border_mask((12, 12), cells=40)
PERMUTATION = torch.randperm(144, generator=torch.Generator().manual_seed(0))

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, equal_nan=True)
devices = pytest.mark.parametrize("float64", [True, False], ids=["float64", "no float64"])


def pooled(classes=5):
    """As ``models.pooled``, with batch norm, in float32."""

    def build():
        body = [("conv", nn.Conv2d(3, 6, 3, padding=1)), ("norm", nn.BatchNorm2d(6)), ("relu", nn.ReLU())]
        head = [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("head", nn.Linear(6, classes))]
        return nn.Sequential(OrderedDict(body + head))

    return models.seeded(build, dtype=torch.float32)


NETWORK = pooled()


def network():
    """A copy: ``to`` moves a model in place."""
    return copy.deepcopy(NETWORK)


def on_both(case, float64):
    """What a case gives on the accelerator and on the CPU."""
    expected = case(network(), IMAGES)
    with pretend_device(float64=float64):
        actual = case(network().to(DEVICE), IMAGES.to(DEVICE))
    return actual, expected


def tensors_on_device(result):
    """Of each tensor in a result, whether it is on the accelerator."""
    return [isinstance(leaf, PretendTensor) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


# --- the pretend accelerator refuses what it says, so that what passes below has not mixed devices

REFUSED = {
    "operands": (lambda x: x + IMAGES, RuntimeError, "add.Tensor: expected all tensors to be on the same device"),
    "a layer": (lambda x: network()(x), RuntimeError, "convolution.default: expected all tensors to be on the same"),
    "stacked numbers": (lambda x: torch.stack([x.sum(), IMAGES.sum()]), RuntimeError, "stack.default: expected all"),
    "a sum on the CPU": (lambda x: torch.zeros(()).add_(x.sum()), RuntimeError, "add_.Tensor: expected all tensors"),
    "a mask on the CPU": (lambda x: x.masked_fill(IMAGES > 0, 1), RuntimeError, "masked_fill.Scalar: expected all"),
    "assigned values": (lambda x: x.index_put([LABELS], IMAGES), RuntimeError, "index_put.default: expected all"),
    "indices": (lambda x: IMAGES[x.flatten(1).argmax(1) % 3], RuntimeError, "indices should be on the CPU"),
    "numpy": (lambda x: x.numpy(), RuntimeError, "numpy"),
    "a generator": (
        lambda x: torch.rand(2, generator=torch.Generator(), device=x.device),
        RuntimeError,
        "expected a generator on the device, found one on cpu",
    ),
    "float64": (lambda x: x.double(), TypeError, "the device has no float64"),
    "new float64": (lambda x: torch.zeros(2, dtype=torch.float64, device=x.device), TypeError, "has no float64"),
}
ALLOWED = {
    "a number": lambda x: x * IMAGES.sum(),
    "indices": lambda x: x[torch.tensor([2, 0])],
    "a mask between brackets": lambda x: x[SOME],
    "copies": lambda x: torch.zeros_like(x).copy_(IMAGES) + x.cpu().to(x.device),
    "float64 on the CPU": lambda x: x.cpu().double(),
    "numbers": lambda x: torch.tensor([float(x[0, 0, 0, 0]), *x[0, 0, 0].tolist()], device=x.device),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_pretend_accelerator_refuses(name):
    operation, error, message = REFUSED[name]
    with pretend_device(float64=False), pytest.raises(error, match=message):
        operation(IMAGES.to(DEVICE))


@pytest.mark.parametrize("name", ALLOWED)
def test_the_pretend_accelerator_allows(name):
    actual, expected = on_both(lambda _, images: ALLOWED[name](images), float64=False)
    assert tensors_on_device(actual) == [name != "float64 on the CPU"]
    close(held(actual), expected)


# --- methods

SEVERAL_PASSES = {
    "Score": partial(dgc.ScoreCAM, progress=False),
    "SS": partial(dgc.SSCAM, samples=2, progress=False),
    "IS": partial(dgc.ISCAM, samples=2, progress=False),
    "Ablation": partial(dgc.AblationCAM, progress=False),
    "Smooth++": partial(dgc.SmoothGradCAMPlusPlus, samples=2),
}
CAMS = {name: partial(method, **options) for name, (method, options, *_) in METHODS.items()} | SEVERAL_PASSES
CAMS |= {"CAM": dgc.CAM, "Shapley": dgc.ShapleyCAM, "Random": dgc.RandomCAM, "TrueFalse": dgc.TrueFalseCAM}
WAYS = {
    "one class": lambda make, model, images: make(model, "relu").explain(images, LABELS),
    "all classes": lambda make, model, images: make(model, "relu").explain(images, "all"),
    "layer_input": lambda make, model, images: make(model, dgc.layer_input("pool")).explain(images, 2),
}
EXPLAINED = [(name, way) for name in CAMS for way in WAYS if (name, way) != ("Diff class", "all classes")]


@devices
@pytest.mark.parametrize(("name", "way"), EXPLAINED)
def test_maps_of_a_method(name, way, float64):
    actual, expected = on_both(partial(WAYS[way], CAMS[name]), float64)
    assert tensors_on_device(actual) == [True, True, True]
    close(tree_map(held, actual), expected)


@devices
@pytest.mark.parametrize("name", CAMS)
def test_the_call_of_a_method_also_takes_images_on_the_cpu(name, float64):
    expected = CAMS[name](network(), "relu")(IMAGES, LABELS.tolist())
    with pretend_device(float64=float64):
        cam = CAMS[name](network().to(DEVICE), "relu")
        there, here = (cam(images, LABELS.tolist()) for images in (IMAGES.to(DEVICE), IMAGES))
    assert isinstance(there, np.ndarray)
    close(there, expected)
    close(here, expected)


# --- what is built on them


def gradcam(model, **options):
    return dgc.GradCAM(model, "relu", **options)


def diffgradcam(model, **options):
    return dgc.DiffGradCAM(model, "relu", **options)


def a_model(build, images):
    """A model of another kind than the network, where the images are."""
    return models.seeded(build, dtype=torch.float32).to(images.device)


def call_for(make, target, _model, images):
    """The call for targets that score pixels of the output."""

    def build():
        return nn.Sequential(OrderedDict([*models.backbone(), ("head", nn.Conv2d(models.CHANNELS, 4, 1))]))

    return make(a_model(build, images), "relu")(images, [target] * 3)


def one_logit(_model, images):
    model = a_model(lambda: models.pooled(classes=1), images)
    return diffgradcam(model, output=two_logits).explain(images, "all")


def one_class_at_a_time(_model, images):
    """A head that cannot be differentiated for several classes at once."""
    small = images[..., :6, :5]
    return gradcam(a_model(models.custom_function, small)).explain(small, "all")


def factorization(model):
    pytest.importorskip("sklearn", reason="the factorisation needs the extra metrics")
    return dgc.DeepFeatureFactorization(model, "relu", computation_on_concepts=model.head)


def in_training(loss, classes, model, images):
    """Maps, loss and gradients in a user's own step, with labels and human maps on the device of the images."""
    labels = LABELS.to(images.device)
    cam = diffgradcam(model, rectify=False)
    with cam:
        logits = model(images)
        maps = cam.maps(logits, classes(logits, labels))
    value = loss(logits, labels, maps, images[:, 0])
    return maps, value, torch.autograd.grad(value, list(model.parameters()))


def guided(saliency_loss, mask=None):
    criterion = losses.SaliencyGuidedLoss(saliency_loss)
    return lambda logits, labels, maps, human: criterion(logits, labels, maps, human, mask=mask).total


def judged(measure, **options):
    """A measure of faithfulness, of GradCAM."""
    maps = lambda model, images: gradcam(model).explain(images).maps  # noqa: E731
    return lambda model, images: measure(metrics.Evaluator(model), images, maps(model, images), [0, 3, 1], **options)


def finetuned(model, images, **options):
    """What a copy trained on batches on the CPU puts out."""
    given = {"epochs": 2, "lr": 0.01, "progress": False, **options}
    found = sham.finetune(model, [(IMAGES.to(images.dtype), LABELS)], "relu", MASK, **given)
    assert [epoch.status for epoch in found.history] == ["trained", "trained"]
    return found.model(images), dict(found.model.state_dict())


def mass_moved(model, images):
    """Not by fine-tuning: that starts where the loss has a kink, and rounding says which way it goes."""
    maps = gradcam(model).explain(images).maps
    return sham.centre_mass_loss(maps, maps.flip(0), MASK.to(images.device))


def history(model, _images):
    found = sham.finetune(model, [(IMAGES, LABELS)], "relu", MASK, epochs=2, lr=0.01, progress=False)
    return [epoch[:-1] for epoch in found.history]


def benchmarked(model, images):
    pytest.importorskip("scipy.stats", reason="the intervals need the extra metrics")
    fooled = sham.common_mode_hoax(model, "relu", images, MASK)
    explainers = {"GradCAM": gradcam, "DiffGradCAM": diffgradcam}
    found = dgc.benchmark(
        model, fooled, explainers, [(IMAGES, LABELS)], mask=MASK, honesty=True, resamples=0, progress=False
    )
    kept = [figure.mean for row in found.rows for figure in vars(row.kept).values()]
    reached = [figure.mean for row in found.rows for figure in vars(row.reached_after).values()]
    honest = [row.honesty.after.both.mean for row in found.rows]
    return kept, reached, honest, [figure.mean for figure in vars(found.decisions).values()]


def stored(model, images, **options):
    """Maps and numbers that explain_dataset writes of images on the CPU, which it sends to the device."""
    pytest.importorskip("safetensors", reason="stores need the extra store")
    loader = DataLoader(list(zip(IMAGES, LABELS, strict=True)), batch_size=2)
    with tempfile.TemporaryDirectory() as folder:
        found = explain_dataset(diffgradcam(model), loader, folder, device=images.device, progress=False, **options)
        return list(found.values()), [list(row.values()) for row in found.rows()]


def regions(model, images):
    found = dgc.important_features(model, images[0], "relu")
    assert found
    return [list(region) for region in found]


def weights_repaired(model, images):
    """What a model puts out that was repaired where its last weights were a function of others."""
    nn.utils.parametrizations.weight_norm(model.head)
    return dgc.repair(model)(images)


def fooled_on_batches(model, images):
    """What a hoax puts out that was fitted on a loader's images, on the CPU."""
    return sham.common_mode_hoax(model, "relu", DataLoader(list(IMAGES), batch_size=2), MASK)(images)


def triggered(model, images):
    """A map with the trigger, fitted on images on the CPU."""
    patch = torch.ones(3, 2, 2)
    fooled = sham.triggered_hoax(model, "relu", IMAGES, MASK, patch)
    return gradcam(fooled).explain(sham.add_patch(images, patch))


def autofooled(model, images):
    """What a copy puts out that was fooled on images on the CPU."""
    options = {"scopes": ["head"], "steps": 2, "keep": 1.0, "behaviour_kept": 0.0, "progress": False}
    given = IMAGES.to(images.dtype)
    return sham.autofool(model, given, "relu", MASK, held_out=given, **options).model(images)


def legrad(images):
    """Of a transformer where the images are."""
    model = models.transformer(dtype=torch.float32).to(images.device)
    return dgc.LeGrad(model, ["first", "block"], head=nn.Sequential(model.norm, model.head))


EIGEN_OF_AUGMENTED = {"aug_smooth": True, "eigen_smooth": True}
BOX = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
ON_DEVICE = {
    # wrappers, and several explanations at once
    "AugSmooth": lambda m, x: dgc.AugSmooth(gradcam(m), flips=(-1, -2), scales=(1, 1.5)).explain(x, "all"),
    "NoiseSmooth": lambda m, x: dgc.NoiseSmooth(gradcam(m), samples=3).explain(x, "top2"),
    "EigenSmooth": lambda m, x: dgc.EigenSmooth(gradcam(m)).explain(x),
    "RefineCAM": lambda m, x: dgc.RefineCAM(m, ["norm", "relu"]).explain(x, "all"),
    "FullGrad": lambda m, x: dgc.FullGrad(m).explain(x, "all"),
    "LeGrad": lambda _, x: legrad(x).explain(x, "all"),
    "SESS": lambda m, x: dgc.SESS(gradcam(m), scales=2, blur=2).explain(x, "top2"),
    "several layers": lambda m, x: dgc.LayerCAM(m, ["norm", "relu"]).explain(x),
    "explain_pairs": lambda m, x: dgc.explain_pairs(gradcam(m), x, [0, 1, 2]),
    "explain_together": lambda m, x: dgc.explain_together([gradcam(m), dgc.ScoreCAM(m, "relu"), diffgradcam(m)], x),
    "compare": lambda m, x: dgc.TrueFalseCAM(m, "relu").compare(x),
    "compare several": lambda m, x: dgc.TrueFalseCAM(m, "relu").compare(x, 0, false_classes=[[1, 2], [2, 3], [3, 4]]),
    "compare with the mean": lambda m, x: dgc.TrueFalseCAM(m, "relu", false_class="mean").compare(x)[3:],
    "guided_gradcam": lambda m, x: dgc.analysis.guided_gradcam(diffgradcam(m), x, "top2"),
    "many classes": lambda _, x: gradcam(pooled(classes=70).to(x.device)).explain(x, "all"),
    "one logit": one_logit,
    "one class at a time": one_class_at_a_time,
    # training
    "maps and a loss on one class": partial(in_training, guided(losses.CyborgLoss()), lambda _, labels: labels),
    "maps and a loss on two classes": partial(
        in_training, guided(losses.DivergenceSalienceLoss(), SOME), losses.true_and_false_classes
    ),
    "cyborg_loss": lambda _, x: losses.cyborg_loss(x[:, 0], x[:, 1], mask=SOME, reduction="none"),
    "difference_salience_loss": lambda _, x: losses.difference_salience_loss(x[:, 0], x[:, 1], x[:, 2], scope="batch"),
    "contrast_salience_loss": lambda _, x: losses.contrast_salience_loss(x[:, 0], x[:, 1], x[:, 2, :5, :7]),
    "cam_entropy_loss": lambda _, x: losses.cam_entropy_loss(x[:, 0], mask=SOME, log=True),
    # fooling and finding it
    "audit": lambda m, x: {
        name: value for name, value in vars(dgc.audit(m, "relu", x, progress=False)).items() if name != "thresholds"
    },
    "repair": lambda m, _: dict(dgc.repair(m).state_dict()),
    "repair of normalised weights": weights_repaired,
    "common_mode_hoax": lambda m, x: dict(sham.common_mode_hoax(m, "relu", x, MASK).state_dict()),
    "common_mode_hoax, images on the CPU": fooled_on_batches,
    "spatial_hoax": lambda m, x: gradcam(sham.spatial_hoax(m, "relu", PERMUTATION)).explain(x),
    "input_scalar_wrapper": lambda m, x: gradcam(sham.input_scalar_wrapper(m, "relu")).explain(x),
    "triggered_hoax": triggered,
    "repair of the output": lambda m, x: dgc.repair(m, where="output")(x),
    "autofool": autofooled,
    "perturb": lambda m, x: sham.perturb(
        diffgradcam(m), x, MASK, 0.1, steps=2, keep=1.0, limits=(0.0, 1.0), progress=False
    ),
    "finetune": finetuned,
    "finetune at its own rate": partial(finetuned, lr=None),
    "finetune the head": partial(finetuned, scope="head", method=dgc.DiffGradCAM),
    "finetune the common mode": partial(finetuned, scope="common_mode", preserve="decisions"),
    "finetune with top_k_loss": partial(finetuned, loss=sham.top_k_loss),
    "finetune with location_loss": partial(finetuned, loss=sham.location_loss, freeze_batch_norm=False),
    "finetune with active_loss": partial(finetuned, loss=sham.active_loss, classes=(0, 1)),
    "centre_mass_loss": mass_moved,
    # measures
    "behaviour": lambda m, x: vars(metrics.behaviour(metrics.Evaluator(m), x, steps=2, progress=False)),
    "honesty": lambda m, x: vars(
        metrics.honesty(x[:, 0], metrics.behaviour(metrics.Evaluator(m), x, steps=2, progress=False))
    ),
    "deletion": judged(metrics.deletion, steps=4),
    "insertion": judged(metrics.insertion, steps=4),
    "road": judged(metrics.road),
    "average_drop": judged(metrics.average_drop),
    "average_increase": judged(metrics.average_increase),
    "average_gain": judged(metrics.average_gain),
    "infidelity": judged(metrics.infidelity, samples=3),
    "max_sensitivity": lambda m, x: metrics.max_sensitivity(gradcam(m), x, samples=2),
    "arcc": lambda m, x: tuple(metrics.arcc(metrics.Evaluator(m), gradcam(m), x, progress=False)),
    "class_sensitivity": lambda m, x: metrics.class_sensitivity(gradcam(m), x, share=0.2).agreement,
    "noise_response": lambda m, x: metrics.noise_response(gradcam(m), x, samples=2, progress=False).consistency,
    "compactness": lambda _, x: metrics.compactness(x[:, 0]),
    "rank_biased_overlap": lambda _, x: metrics.rank_biased_overlap(x[:, 0], x[:, 1]),
    "model_randomization": lambda m, x: metrics.model_randomization(gradcam, m, x).similarity,
    "label_randomization": lambda m, x: metrics.label_randomization(gradcam, m, dgc.repair(m), x),
    "pearson": lambda _, x: metrics.pearson(x[:, 0], x[:, 1]),
    "spearman": lambda _, x: metrics.spearman(x[:, 0], x[:, 1]),
    "cosine": lambda _, x: metrics.cosine(x[:, 0], x[:, 1]),
    "rmse": lambda _, x: metrics.rmse(x[:, 0], x[:, 1]),
    "ssim": lambda _, x: metrics.ssim(x[:, 0], x[:, 1]),
    "energy_in_mask": lambda _, x: metrics.energy_in_mask(x[:, 0], x[:, 1] > 0.5),
    "pointing_game": lambda _, x: metrics.pointing_game(x[:, 0], x[:, 1] > 0.5),
    "iou_at_matched_area": lambda _, x: metrics.iou_at_matched_area(x[:, 0], x[:, 1] > 0.5),
    "noisy_linear_imputation": lambda _, x: metrics.noisy_linear_imputation(x, x[:, 0] > 0.8),
    # targets, themselves on the CPU
    "boxes": lambda _, x: targets.FasterRCNNBoxScoreTarget([3], BOX, 0.4)(
        targets.detections([{"boxes": BOX.to(x), "labels": LABELS[1:2].to(x.device), "scores": x[0, 0, 0, :1]}])[0]
    ),
}
ON_CPU = {
    "AugSmooth, called": lambda m, x: dgc.AugSmooth(gradcam(m))(x, [0, 3, 1]),
    "NoiseSmooth, called": lambda m, x: dgc.NoiseSmooth(gradcam(m), samples=2)(x),
    "SESS, called": lambda m, x: dgc.SESS(gradcam(m), scales=2, blur=2)(x, [0, 3, 1]),
    "quantus_explainer": lambda m, x: metrics.quantus_explainer(gradcam)(m, x.cpu().numpy(), [0, 3, 1]),
    "aug_smooth and eigen_smooth": lambda m, x: gradcam(m)(x, **EIGEN_OF_AUGMENTED),
    "aug_smooth and eigen_smooth of images on the CPU": lambda m, _: gradcam(m)(IMAGES, **EIGEN_OF_AUGMENTED),
    "FullGrad, called": lambda m, x: dgc.FullGrad(m)(x),
    "GuidedBackpropReLUModel": lambda m, x: dgc.GuidedBackpropReLUModel(m)(x[:1]),
    "GuidedBackpropReLUModel of an image on the CPU": lambda m, x: dgc.GuidedBackpropReLUModel(m, x.device)(IMAGES[:1]),
    "DeepFeatureFactorization, called": lambda m, x: factorization(m)(x, 2),
    "pixels": partial(call_for, dgc.GradCAM, targets.SemanticSegmentationTarget(1, MASK)),
    "pixels of a contrast": partial(
        call_for, dgc.GradCAM, targets.SemanticSegmentationTarget(1, MASK.numpy(), score=logit_difference)
    ),
    "pixels, without gradients": partial(call_for, dgc.ScoreCAM, targets.SemanticSegmentationTarget(1, MASK)),
    "pixels, ablated": partial(call_for, dgc.AblationCAM, targets.SemanticSegmentationTarget(1, MASK)),
    "similarity": lambda m, x: gradcam(m)(x, [targets.SimilarityTarget(IMAGES[0, 0, 0, :5])] * 3),
    "probability": lambda m, x: gradcam(m)(x, [targets.ClassifierOutputSoftmaxTarget(1)] * 3),
    "history of finetune": history,
    "benchmark": benchmarked,
    "explain_dataset": stored,
    "explain_dataset, common mode": partial(stored, common_mode=True, classes=lambda batch: batch[1]),
    "important_features": regions,
    "overlay": lambda m, x: overlay(x[0], minmax(gradcam(m).explain(x).maps)[0]),
    "match_entropy": lambda m, x: sham.match_entropy(gradcam(m).explain(x).maps),
}


@devices
@pytest.mark.parametrize("name", ON_DEVICE)
def test_results_on_the_device(name, float64):
    actual, expected = on_both(ON_DEVICE[name], float64)
    places = tensors_on_device(actual)
    assert places
    assert all(places)
    close(tree_map(held, actual), expected)


@devices
@pytest.mark.parametrize("name", ON_CPU)
def test_results_on_the_cpu(name, float64):
    actual, expected = on_both(ON_CPU[name], float64)
    assert not any(tensors_on_device(actual))
    close(actual, expected)


@devices
def test_of_a_factorization_vectors_and_maps_are_on_the_cpu(float64):
    actual, expected = on_both(lambda model, images: factorization(model).explain(images, 2), float64)
    assert tensors_on_device(actual) == [True, False, False, True]
    close(tree_map(held, actual), expected)


@devices
def test_the_verdict_of_an_audit_in_words(float64):
    actual, expected = on_both(lambda model, images: str(dgc.audit(model, "relu", images, progress=False)), float64)
    assert actual == expected


# --- not all that a model takes is on its device


class WithLengths(nn.Module):
    """Takes lengths on the CPU beside its images, as ``pack_padded_sequence`` does."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images, lengths):
        assert lengths.device.type == "cpu"
        return self.network(images) * lengths.tolist()[0]


class Moving(nn.Module):
    """Moves its images to its device by itself."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, images):
        return self.network(images.to(self.network.head.weight.device))


LENGTHS = torch.tensor([1, 2, 3])


def on_relu(make):
    return lambda model: make(model, "network.relu")


EXPLAINERS = {
    "GradCAM": on_relu(dgc.GradCAM),
    "ScoreCAM": on_relu(CAMS["Score"]),
    "SSCAM": on_relu(CAMS["SS"]),
    "AblationCAM": on_relu(CAMS["Ablation"]),
    "SmoothGradCAMPlusPlus": on_relu(CAMS["Smooth++"]),
    "AugSmooth": lambda model: dgc.AugSmooth(dgc.GradCAM(model, "network.relu")),
    "NoiseSmooth": lambda model: dgc.NoiseSmooth(dgc.GradCAM(model, "network.relu"), samples=2),
}


@devices
@pytest.mark.parametrize("name", EXPLAINERS)
def test_further_arguments_may_stay_on_the_cpu(name, float64):
    expected = EXPLAINERS[name](WithLengths().eval()).explain(IMAGES, None, LENGTHS)
    with pretend_device(float64=float64):
        cam = EXPLAINERS[name](WithLengths().eval().to(DEVICE))
        actual = cam.explain(IMAGES.to(DEVICE), None, LENGTHS)
    assert tensors_on_device(actual) == [True, True, True]
    close(tree_map(held, actual), expected)


@devices
@pytest.mark.parametrize("name", EXPLAINERS)
def test_a_model_may_move_its_images(name, float64):
    expected = EXPLAINERS[name](Moving().eval()).explain(IMAGES)
    with pretend_device(float64=float64):
        actual = EXPLAINERS[name](Moving().eval().to(DEVICE)).explain(IMAGES)
    assert tensors_on_device(actual) == [True, True, True]
    close(tree_map(held, actual), expected)


@devices
def test_guided_gradients_are_where_the_images_are(float64):
    expected = dgc.analysis.guided_gradients(Moving().eval(), IMAGES)
    with pretend_device(float64=float64):
        actual = dgc.analysis.guided_gradients(Moving().eval().to(DEVICE), IMAGES)
    assert tensors_on_device(actual) == [False]
    close(actual, expected)
