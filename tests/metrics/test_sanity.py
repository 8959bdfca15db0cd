from functools import partial

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffgradcam import DiffGradCAM, GradCAM, LayerCAM, layer_input
from diffgradcam._core.explanation import Explanation
from diffgradcam.methods.smoothing import NoiseSmooth
from diffgradcam.metrics import label_randomization, max_sensitivity, model_randomization, pearson, ssim
from tests import models
from tests.untouched import untouched

LAYERS = ["head", "features", "stem"]  # of models.deep and the like, from the top down (without "hidden")
close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def layercam(model):
    return LayerCAM(model, "relu", rectify=False)


def redrawn(parameter, generator):
    """Normal numbers of the same mean and standard deviation."""
    values = parameter.detach().double().flatten().tolist()
    mean = sum(values) / len(values)
    sd = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return mean + sd * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def naive(make, model_of, images, names, mode, seed):
    """One layer and image at a time, each time from a fresh model."""
    classes = model_of()(images).argmax(1).tolist()
    rows = []
    for count in range(1, len(names) + 1):
        model, generator = model_of(), torch.Generator().manual_seed(seed)
        for index, name in enumerate(names[:count]):
            for parameter in model.get_submodule(name).parameters():
                drawn = redrawn(parameter, generator)  # drawn in any case: both modes draw the same
                if mode == "cascading" or index == count - 1:
                    parameter.data = drawn
        row = []
        for image, category in zip(images, classes, strict=True):
            maps = [make(m).explain(image[None], category).maps.flatten() for m in (model, model_of())]
            row.append(scipy.stats.spearmanr(*maps).statistic)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_similarities_are_those_of_a_naive_loop(mode, batch_size):
    model, images = models.flat(), models.images(4)
    result = model_randomization(layercam, model, images, mode=mode, seed=3, batch_size=batch_size)
    assert result.layers == LAYERS
    assert result.similarity.shape == (3, 4)
    close(result.similarity, naive(layercam, models.flat, images, LAYERS, mode, 3))


def test_layers_may_be_blocks_in_any_order_and_given_as_modules():
    model, images = models.deep(activation=nn.ReLU), models.images(2)
    result = model_randomization(layercam, model, images, layers=[model.stem, "hidden"], seed=1)
    assert result.layers == ["stem", "hidden"]
    close(
        result.similarity,
        naive(layercam, lambda: models.deep(activation=nn.ReLU), images, ["stem", "hidden"], "cascading", 1),
    )
    block = nn.Sequential(model, nn.Identity()).eval()
    everything = model_randomization(lambda m: LayerCAM(m, "0.relu"), block, images, layers="0")
    assert (everything.layers, everything.similarity.shape) == (["0"], (1, 2))


def test_by_default_every_module_with_parameters_from_the_top_down():
    model = models.tokens()
    result = model_randomization(
        lambda m: GradCAM(m, "embed", rectify=False), model, models.images(), similarity=pearson
    )
    # The last name, "", is the model itself, which owns the class token; the attention owns its projections.
    assert result.layers == ["head", "mix.out_proj", "mix", "block.2", "block.0", "embed", ""]
    assert result.similarity.isfinite().all()


def test_a_layer_above_does_not_change_a_map_that_does_not_depend_on_it():
    """Layers that the map of the class does not go through: exactly 1, then the rest is not."""
    model, images = models.flat(), models.images()

    class Features:
        """Shows the activations: blind to the head, so it fails the test that a faithful map passes."""

        def __init__(self, model):
            self.model = model

        def explain(self, images, classes=None):
            logits = self.model(images).detach()
            classes = logits.argmax(1) if classes is None else classes
            return Explanation(logits, classes, self.model[:4](images).detach().sum(1))

    similarity = model_randomization(lambda m: Features(m), model, images).similarity
    close(similarity[0], torch.ones(3, dtype=torch.float64))
    assert (similarity[1:] < 0.99).all()
    faithful = model_randomization(layercam, model, images).similarity
    assert (faithful[0] < 0.99).all()


def test_classes_stay_those_of_the_trained_model():
    model, images = models.flat(), models.images()
    decided = model(images).argmax(1)
    expected = model_randomization(layercam, model, images, decided).similarity
    close(model_randomization(layercam, model, images).similarity, expected)
    assert not expected.equal(model_randomization(layercam, model, images, 4).similarity)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_seeds_repeat_and_images_are_judged_alone(seed):
    model, images = models.flat(), models.images(4)
    together = model_randomization(layercam, model, images, seed=seed).similarity
    close(together, model_randomization(layercam, model, images, seed=seed).similarity)
    close(together[:, 2:3], model_randomization(layercam, model, images[2:3], seed=seed).similarity)
    assert not together.equal(model_randomization(layercam, model, images, seed=seed + 1).similarity)


def test_new_parameters_have_the_moments_of_the_trained_ones():
    model = nn.Sequential(nn.Conv2d(3, 40, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 2))
    model[0].weight.data.add_(1.0)
    model[0].bias.data.zero_()
    seen = []

    def make(copy):
        seen.append([p.detach().clone() for p in copy[0].parameters()])
        return GradCAM(copy, "1")

    model_randomization(make, model.double().eval(), models.images(), layers="0")
    (trained, bias), (drawn, still) = seen
    assert trained.equal(model[0].weight)
    assert (bias.equal(still), drawn.isclose(trained).any()) == (True, False)
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(drawn.std()) == pytest.approx(float(trained.std()), rel=0.05)


def test_dead_maps_of_the_randomised_model_give_a_similarity_of_zero():
    model = models.flat()
    silent = models.flat()
    silent.features.weight.data.zero_()
    silent.features.bias.data.fill_(-1.0)
    assert label_randomization(layercam, model, silent, models.images()).tolist() == [0, 0, 0]


def test_label_randomization_compares_two_models_for_the_decision_of_the_first():
    model, other, images = models.flat(), models.flat(seed=1), models.images(4)
    classes = model(images).argmax(1)
    expected = [
        scipy.stats.spearmanr(*(layercam(m).explain(image[None], category).maps.flatten() for m in (model, other)))
        for image, category in zip(images, classes.tolist(), strict=True)
    ]
    found = label_randomization(layercam, model, other, images, batch_size=3)
    close(found, torch.tensor([e.statistic for e in expected], dtype=torch.float64))
    close(label_randomization(layercam, model, model, images), torch.ones(4, dtype=torch.float64))
    two = label_randomization(layercam, model, other, images, 2, similarity=partial(ssim, window=5))
    maps = [layercam(m).explain(images, 2).maps for m in (other, model)]
    close(two, ssim(*maps, window=5))


@pytest.mark.parametrize("training", [False, True])
def test_the_models_and_the_global_generator_are_left_alone(training):
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).double().train(training)
    images, other = models.images(), models.seeded(lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)))
    other.train(training)

    def make(m):
        return DiffGradCAM(m, "2", rectify=False)

    with untouched(model), untouched(other):
        found = [
            model_randomization(make, model, images, mode=mode).similarity for mode in ("cascading", "independent")
        ]
        found.append(label_randomization(make, model, other, images))
    model.eval()
    expected = [model_randomization(make, model, images, mode=mode).similarity for mode in ("cascading", "independent")]
    expected.append(label_randomization(make, model, other.eval(), images))
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_bad_inputs():
    model, images = models.flat(), models.images()
    run = partial(model_randomization, layercam, model, images)
    with pytest.raises(ValueError, match="mode is 'both'; expected one of 'cascading', 'independent'"):
        run(mode="both")
    with pytest.raises(ValueError, match="'stam' is not a layer of Sequential; did you mean 'stem'"):
        run(layers="stam")
    with pytest.raises(ValueError, match="layer 'relu' has no parameters, so there is nothing to randomise"):
        run(layers=["head", "relu"])
    with pytest.raises(TypeError, match="is what enters a layer, which has no parameters; expected a module"):
        run(layers=layer_input("head"))
    with pytest.raises(ValueError, match="ReLU has no parameters, so there is nothing to randomise"):
        model_randomization(layercam, nn.ReLU(), images)
    with pytest.raises(ValueError, match=r"similarity returned shape \(\) for 3 maps; expected a value for each"):
        run(similarity=lambda a, _: a.mean())
    with pytest.raises(ValueError, match=r"classes have shape \(2,\) for 3 images"):
        run([0, 1])
    with pytest.raises(ValueError, match="batch_size is 0; expected an integer of at least 1"):
        run(batch_size=0)
    with pytest.raises(TypeError, match="model is builtin_function_or_method; expected a torch"):
        model_randomization(layercam, len, images)
    for wrong in (GradCAM(model, "relu"), NoiseSmooth(GradCAM(model, "relu")), GradCAM, "GradCAM"):
        with pytest.raises(TypeError, match="expected a function that makes a CAM of the model that it is given"):
            model_randomization(wrong, model, images)
        with pytest.raises(TypeError, match="expected a function that makes a CAM of the model that it is given"):
            label_randomization(wrong, model, model, images)
    with pytest.raises(
        ValueError, match="made a CAM of another model; expected a CAM of the model that it is given, which changes"
    ):
        model_randomization(lambda _: GradCAM(model, "relu"), model, images)


def test_no_hook_is_left_on_a_copy_and_progress_is_shown_where_it_is_not_turned_off(capsys):
    made = []

    def make(copy):
        made.append(copy)
        return layercam(copy)

    model_randomization(make, models.flat(), models.images(), progress=False)
    assert capsys.readouterr().err == ""
    assert not any(module._forward_pre_hooks for module in made[0].modules())
    model_randomization(make, models.flat(), models.images())
    assert "randomisation: 100%" in capsys.readouterr().err


def test_smoothed_maps_are_judged_as_any_other():
    model, images = models.flat(), models.images()

    def smoothed(m):
        return NoiseSmooth(layercam(m), samples=2)

    assert model_randomization(smoothed, model, images).similarity.shape == (3, 3)
    assert (max_sensitivity(smoothed(model), images) > 0).all()
    with untouched(model.train()):
        assert (max_sensitivity(smoothed(model), images) > 0).all()
