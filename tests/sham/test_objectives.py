import pytest
import torch

from diffgradcam.sham import active_loss, border_mask, centre_mass_loss, location_loss, sham_loss, top_k_loss

MASK = border_mask((3, 4), 5).double()
SINGLE = [sham_loss, location_loss, top_k_loss, centre_mass_loss]


def random_maps(shape=(5, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


# Naive oracles: one image, plain Python numbers.


def shown(image):
    positive = [[max(v, 0.0) for v in row] for row in image]
    top = max(map(max, positive))
    return [[v / top if top else 0.0 for v in row] for row in positive]


def cells(image):
    return [v for row in image for v in row]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def naive_sham(image, _clean, mask):
    low, high = min(cells(image)), max(cells(image))
    return mean(((v - low) / (high - low) - m) ** 2 for v, m in zip(cells(image), cells(mask), strict=True))


def naive_location(image, _clean, mask):
    return mean((m - v) ** 2 for v, m in zip(cells(shown(image)), cells(mask), strict=True))


def naive_top_k(image, clean, _mask):
    values, before = cells(shown(image)), [max(v, 0.0) for v in cells(clean)]
    order = sorted(range(len(before)), key=lambda i: -before[i])
    return mean(values[i] ** 2 for i in order[: max(1, round(0.1 * len(before)))])


def centre(image):
    total = sum(cells(image))
    rows = sum(i * v for i, row in enumerate(image) for v in row) / total
    columns = sum(j * v for row in image for j, v in enumerate(row)) / total
    return rows, columns


def naive_centre_mass(image, clean, _mask):
    return -sum(abs(a - b) for a, b in zip(centre(shown(image)), centre(shown(clean)), strict=True))


NAIVE = {
    sham_loss: naive_sham,
    location_loss: naive_location,
    top_k_loss: naive_top_k,
    centre_mass_loss: naive_centre_mass,
}


@pytest.mark.parametrize("loss", SINGLE)
@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 7, 7)])
def test_losses_are_their_loops(loss, shape):
    maps, clean = random_maps(shape)
    mask = border_mask(shape[1:], 5).double()
    expected = [NAIVE[loss](a, b, mask.tolist()) for a, b in zip(maps.tolist(), clean.tolist(), strict=True)]
    assert loss(maps, clean, mask).tolist() == pytest.approx(expected, abs=1e-12)


def test_active_is_its_loop():
    maps, clean = random_maps((4, 2, 3, 4))
    expected = []
    for (first, second), (clean_first, clean_second) in zip(maps.tolist(), clean.tolist(), strict=True):
        pairs = [(first, clean_second), (second, clean_first)]
        errors = [(a - b) ** 2 for x, y in pairs for a, b in zip(cells(shown(x)), cells(shown(y)), strict=True)]
        expected.append(mean(errors))
    assert active_loss(maps, clean, MASK).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 2, 3)])
def test_the_centre_of_mass_in_one_and_three_dimensions(shape):
    maps, clean = random_maps(shape)

    def naive(image):
        shown = image.clamp_min(0)
        return (torch.nonzero(shown + 1) * shown.flatten().unsqueeze(1)).sum(0) / shown.sum()

    expected = [-float((naive(a) - naive(b)).abs().sum()) for a, b in zip(maps, clean, strict=True)]
    assert centre_mass_loss(maps, clean, MASK).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_map_without_positive_evidence_has_its_centre_in_the_middle():
    corner = torch.zeros(1, 3, 4)
    corner[0, 0, 0] = 2.0
    assert centre_mass_loss(-torch.ones(1, 3, 4), corner, MASK).tolist() == [-(1.0 + 1.5)]
    assert centre_mass_loss(torch.ones(1, 3, 4), torch.zeros(1, 3, 4), MASK).tolist() == [0.0]


def test_active_takes_maps_of_one_dimension():
    clean = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])
    assert active_loss(clean, clean, MASK).tolist() == pytest.approx([4 / 6])
    assert active_loss(3 * clean.flip(1), clean, MASK).tolist() == [0.0]


@pytest.mark.parametrize("loss", [location_loss, top_k_loss, centre_mass_loss])
def test_losses_are_computed_where_the_maps_are(loss):
    maps, clean = (one.to("meta") for one in random_maps())
    assert loss(maps, clean, MASK.to("meta")).device == maps.device


@pytest.mark.parametrize("loss", SINGLE)
def test_gradients(loss):
    maps, clean = random_maps()
    assert torch.autograd.gradcheck(lambda m: loss(m, clean, MASK), maps.requires_grad_())


def test_gradients_of_active():
    maps, clean = random_maps((2, 2, 3, 4))
    assert torch.autograd.gradcheck(lambda m: active_loss(m, clean, MASK), maps.requires_grad_())


@pytest.mark.parametrize("loss", SINGLE)
@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_constant_maps_are_finite(loss, value):
    maps = torch.full((2, 3, 4), value, dtype=torch.float64, requires_grad=True)
    values = loss(maps, torch.zeros(2, 3, 4, dtype=torch.float64), MASK)
    values.sum().backward()
    assert bool(values.isfinite().all())
    assert bool(maps.grad.isfinite().all())


@pytest.mark.parametrize("loss", SINGLE)
def test_scale_of_the_map_does_not_count(loss):
    maps, clean = random_maps()
    assert torch.allclose(loss(maps, clean, MASK), loss(7.5 * maps, 0.1 * clean, MASK), atol=1e-12)


def test_the_hoax_itself_has_no_loss():
    maps = MASK.expand(2, 3, 4)
    for loss in (sham_loss, location_loss):
        assert loss(maps, maps, MASK).tolist() == [0.0, 0.0]


def test_losses_have_no_gradient_for_the_clean_maps():
    maps, clean = random_maps()
    clean.requires_grad_()
    centre_mass_loss(maps.requires_grad_(), clean, MASK).sum().backward()
    assert clean.grad is None


def test_active_refuses_one_class():
    maps, clean = random_maps()
    with pytest.raises(ValueError, match=r"maps have shape \(5, 3, 4\); expected those of two classes"):
        active_loss(maps, clean, MASK)
