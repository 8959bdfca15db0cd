import sys

import numpy as np
import pytest
import torch
from torch import nn

from diffgradcam.analysis.concepts import DeepFeatureFactorization, factorize
from diffgradcam.heatmaps import minmax
from tests import models, oracles
from tests.methods import exact
from tests.untouched import untouched

pytest.importorskip("sklearn")


def mixture(shape=(2, 4, 5), concepts=3, channels=7):
    """Non-negative activations that are a sum of concepts, each with places where it is alone."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(concepts, channels, generator=generator, dtype=torch.float64)
    maps = torch.rand(concepts, *shape, generator=generator, dtype=torch.float64)
    maps = (maps * (torch.rand(maps.shape, generator=generator) > 0.6)).transpose(0, 1)
    return vectors, maps, torch.einsum("bn...,nc->bc...", maps, vectors)


def residual(found, activations):
    rebuilt = torch.einsum("bn...,nc->bc...", found.maps, found.vectors)
    return float((rebuilt - activations).norm() / activations.norm())


@pytest.mark.parametrize("shape", [(2, 20), (2, 4, 5), (2, 3, 4, 2)])
def test_a_sum_of_concepts_is_taken_apart(shape):
    vectors, maps, activations = mixture(shape)
    found = factorize(activations, 3, iterations=5000)
    assert found.vectors.shape == vectors.shape
    assert found.maps.shape == maps.shape
    assert float(found.maps.min()) >= 0
    assert float(found.vectors.min()) >= 0
    assert residual(found, activations) < 0.01
    # Each true map is one of the found ones, up to order and scale.
    true, ours = (m.transpose(0, 1).flatten(1) for m in (maps, found.maps))
    agreement = nn.functional.cosine_similarity(true.unsqueeze(1), ours.unsqueeze(0), dim=2)
    assert float(agreement.amax(1).min()) > 0.9
    assert sorted(agreement.argmax(1).tolist()) == [0, 1, 2]


def test_one_concept_is_the_best_approximation_of_rank_one():
    _, _, activations = mixture()
    left, values, right = np.linalg.svd(activations.transpose(0, 1).flatten(1).numpy(), full_matrices=False)
    best = values[0] * np.outer(left[:, 0], right[0])  # non-negative, as the matrix is
    found = factorize(activations, 1)
    rebuilt = np.outer(found.vectors[0], found.maps[:, 0].flatten())
    np.testing.assert_allclose(rebuilt, best, rtol=0, atol=1e-3 * np.abs(best).max())


def test_fewer_concepts_explain_less_and_the_seed_decides():
    _, _, activations = mixture()
    one, two, three = (residual(factorize(activations, n), activations) for n in (1, 2, 3))
    assert one > two > three
    first, again, other = (factorize(activations, 3, seed=seed).maps for seed in (4, 4, 5))
    exact(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_channels_with_negative_values_are_shifted_and_their_concepts_back():
    vectors, _, activations = mixture()
    shift = torch.tensor([1.0, 0, 0, 2, 0, 0, 0]).double().view(1, -1, 1, 1)
    plain, shifted = factorize(activations, 3), factorize(activations - shift, 3)
    lowest = (activations - shift).amin((0, 2, 3)).clamp_max(0)
    moved = activations - shift - lowest.view(1, -1, 1, 1)
    exact(shifted.maps, factorize(moved, 3).maps)
    exact(shifted.vectors, factorize(moved, 3).vectors + lowest)
    assert plain.vectors.shape == vectors.shape


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zero_and_constant_activations_are_finite(value):
    found = factorize(torch.full((2, 3, 4, 4), value), 2)
    assert found.maps.isfinite().all()
    assert found.vectors.isfinite().all()
    rebuilt = torch.einsum("bn...,nc->bc...", found.maps, found.vectors)
    torch.testing.assert_close(rebuilt, torch.full((2, 3, 4, 4), value), rtol=0, atol=0.02)


def test_half_precision_is_widened():
    _, _, activations = mixture()
    found = factorize(activations.bfloat16(), 3)
    assert found.maps.dtype == torch.float32
    assert residual(found, activations.float()) < 0.05


# --- of a model


def activations_of(model, images):
    return model.relu(model.features(model.act(model.stem(images)))).detach()


def test_explain_factorises_the_layer_and_scores_the_concepts():
    model, images = models.pooled(), models.images(4)
    with untouched(model):
        found = DeepFeatureFactorization(model, "relu", computation_on_concepts=model.head).explain(images, 3, seed=2)
    vectors, maps = factorize(activations_of(model, images), 3, seed=2)
    exact(found.logits, model(images).detach())
    exact(found.vectors, vectors)
    exact(found.maps, maps)
    exact(found.scores, (vectors @ model.head.weight.T + model.head.bias).detach())
    assert not found.scores.requires_grad
    assert DeepFeatureFactorization(model, "relu").explain(images, 3).scores is None


def test_the_call_gives_scaled_maps_at_input_size():
    model, images = models.two_sizes(), models.images()
    concepts, heat, scores = DeepFeatureFactorization(model, model.last, computation_on_concepts=model.head)(images, 2)
    small = DeepFeatureFactorization(model, "last", computation_on_concepts=model.head).explain(images, 2)
    assert concepts.dtype == heat.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(concepts, small.vectors.T, rtol=1e-6)
    np.testing.assert_allclose(scores, small.scores, rtol=1e-5)
    assert heat.shape == (3, 2, 6, 5)
    for b in range(3):
        for n in range(2):
            expected = oracles.resize(minmax(small.maps[b, n : n + 1])[0].numpy(), (6, 5))
            np.testing.assert_allclose(heat[b, n], expected, rtol=0, atol=1e-5)
    assert len(DeepFeatureFactorization(model, "last")(images, 2)) == 2


def test_tokens_through_a_reshape_transform():
    model, images = models.tokens(), models.images()

    def grid(tokens):
        return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 6, 5)

    found = DeepFeatureFactorization(model, "block", grid, model.head).explain(images, 2)
    assert found.maps.shape == (3, 2, 6, 5)
    assert found.vectors.shape == (2, models.CHANNELS)
    assert found.scores.shape == (2, 5)


@pytest.mark.filterwarnings("default")
def test_it_works_without_gradients_and_says_when_the_solver_has_not_converged():
    from sklearn.exceptions import ConvergenceWarning

    model, images = models.pooled(), models.images()
    expected = DeepFeatureFactorization(model, "relu").explain(images, 2).maps
    with torch.inference_mode():
        exact(DeepFeatureFactorization(model, "relu").explain(images, 2).maps, expected)
    with pytest.warns(ConvergenceWarning, match="Maximum number of iterations 1 reached"):
        factorize(activations_of(model, images), 2, iterations=1)


def test_the_head_computes_in_its_own_precision_under_autocast():
    model, images = models.pooled(dtype=torch.float32), models.images(dtype=torch.float32)
    for head in (model.head, lambda vectors: model.head(vectors)):
        factorization = DeepFeatureFactorization(model, "relu", computation_on_concepts=head)
        with torch.autocast("cpu", torch.bfloat16):
            found = factorization.explain(images, 3)
        assert found.logits.dtype == torch.bfloat16
        assert found.scores.dtype == torch.float32
        exact(found.scores, model.head(found.vectors))


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), 2), r"activations have shape \(2, 3\); expected \(B, C, \*S\)"),
        ((torch.ones(2, 3, 4), 0), "components is 0; expected an integer of at least 1"),
        ((torch.ones(2, 3, 4), 2.5), r"components is 2\.5; expected an integer of at least 1"),
    ],
)
def test_bad_inputs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        factorize(*arguments)


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}; expected a whole number, 0 or more"):
        factorize(torch.ones(2, 3, 4), 2, seed=seed)


def test_numbers_of_numpy_are_numbers():
    activations = mixture()[2]
    found, expected = factorize(activations, np.int64(3), seed=np.int64(1)), factorize(activations, 3, seed=1)
    exact(found.maps, expected.maps)
    exact(found.vectors, expected.vectors)


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(
        ImportError, match=r"factorize\(\) needs scikit-learn, which is not installed; pip install scikit-learn$"
    ):
        factorize(torch.ones(2, 3, 4), 2)


def test_what_a_cam_refuses_is_refused():
    with pytest.raises(ValueError, match="'rleu' is not a layer of Sequential; did you mean 'relu'"):
        DeepFeatureFactorization(models.pooled(), "rleu")
    with pytest.raises(TypeError, match="computation_on_concepts is 3; expected a function or None"):
        DeepFeatureFactorization(models.pooled(), "relu", computation_on_concepts=3)
