"""What every method should compute, written as loops over Python numbers: one image, class, channel, position each.

Nothing of the library is used here. Weightings take activations and gradients of one image as arrays ``(C, *S)``;
scores take the logits ``(K,)`` of one image and a class.
"""

import math

import numpy as np
import torch


def explain(model, layer, images, classes, score, weighting, grid=lambda x: x):
    """Signed maps ``(B, N, *S)`` of the classes ``(B, N)``."""
    rows = []
    for image, row in zip(images, classes.tolist(), strict=True):
        maps = []
        for category in row:
            activations, gradients = activations_and_gradients(model, layer, image, lambda z, c=category: score(z, c))
            maps.append(weighting(grid(activations)[0].numpy(), grid(gradients)[0].numpy()))
        rows.append(np.stack(maps))
    return torch.from_numpy(np.stack(rows))


def activations_and_gradients(model, layer, image, score):
    """The layer's output for one image, ``(1, ...)``, and the gradient of the score with respect to it."""
    recorded = []

    def record(_module, _args, output):
        recorded.append(output if output.requires_grad else output.requires_grad_())

    handle = dict(model.named_modules())[layer].register_forward_hook(record)
    try:
        logits = model(image.unsqueeze(0))[0]
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(score(logits), recorded[0])
    return recorded[0].detach(), gradient


# Scores


def logit(z, c):
    return z[c]


def difference(baseline):
    def score(z, c):
        return z[c] - baseline([z[j] for j in range(len(z)) if j != c])

    return score


def logsumexp(others):
    return torch.log(sum(torch.exp(z) for z in others))


def largest(others):
    best = others[0]
    for z in others[1:]:
        best = z if z > best else best
    return best


def mean(others):
    return sum(others) / len(others)


def against(other):
    return lambda z, c: z[c] - z[other]


def finer(alpha=1.0, comparisons=3):
    def score(z, c):
        distances = sorted((abs(float(z[j].detach() - z[c].detach())), j) for j in range(len(z)) if j != c)
        compared = [j for _, j in distances[:comparisons]]
        total = sum(torch.exp(z[j]) for j in range(len(z)))
        p = {j: torch.exp(z[j]) / total for j in compared}  # differentiated too
        return sum(p[j] * (z[c] - alpha * z[j]) for j in compared) / sum(p.values())

    return score


# Weightings, each to the signed map (*S)


def gradcam(activations, gradients):
    result = np.zeros(activations.shape[1:])
    for a, g in zip(activations, gradients, strict=True):
        alpha = sum(float(g[s]) for s in np.ndindex(g.shape)) / g.size
        for s in np.ndindex(a.shape):
            result[s] += alpha * float(a[s])
    return result


def gradcam_plus_plus(activations, gradients):
    """The published formula; only for activations that are nowhere negative."""
    assert activations.min() >= 0
    result = np.zeros(activations.shape[1:])
    for a, g in zip(activations, gradients, strict=True):
        total = sum(float(a[s]) for s in np.ndindex(a.shape))
        weight = 0.0
        for s in np.ndindex(g.shape):
            x = float(g[s])
            if x > 0:
                weight += x**2 / (2 * x**2 + total * x**3) * x
        for s in np.ndindex(a.shape):
            result[s] += weight * float(a[s])
    return result


def xgradcam(activations, gradients):
    result = np.zeros(activations.shape[1:])
    for a, g in zip(activations, gradients, strict=True):
        total = sum(float(a[s]) for s in np.ndindex(a.shape))
        weight = sum(float(a[s]) * float(g[s]) for s in np.ndindex(a.shape)) / total if total else 0.0
        for s in np.ndindex(a.shape):
            result[s] += weight * float(a[s])
    return result


def layercam(activations, gradients):
    return _positions(activations, gradients, lambda a, g: max(g, 0.0) * a)


def hirescam(activations, gradients):
    return _positions(activations, gradients, lambda a, g: g * a)


def gradcam_elementwise(activations, gradients):
    return _positions(activations, gradients, lambda a, g: max(g * a, 0.0))


def eigencam(activations, _gradients):
    return principal_component(activations)


def eigen_gradcam(activations, gradients):
    return principal_component(activations * gradients)


def seg_eigencam(activations, gradients):
    component = principal_component(activations * np.abs(gradients))
    return -component if abs(component.min()) > abs(component.max()) else component


def principal_component(channels):
    """Of one image, ``(C, *S)``: its largest singular vector, with its sign chosen."""
    centred = _centred(channels)
    left, values, _ = np.linalg.svd(centred.T)
    return _turned(left[:, 0] * values[0], centred).reshape(channels.shape[1:])


def kpcacam(kernel=None):
    """``kernel(x, y)`` of the centred channels of two positions; by default tanh(x . y / C + 1)."""

    def weighting(activations, _gradients):
        centred = _centred(activations)
        points = centred.T
        if kernel is None:
            matrix = np.array([[math.tanh(x @ y / len(x) + 1) for y in points] for x in points])
        else:
            matrix = np.array([[kernel(x, y) for y in points] for x in points])
        n = len(points)
        centring = np.eye(n) - np.full((n, n), 1 / n)
        values, vectors = np.linalg.eigh(centring @ matrix @ centring)
        component = vectors[:, -1] * math.sqrt(max(values[-1], 0.0))
        return _turned(component, centred).reshape(activations.shape[1:])

    return weighting


def _centred(channels):
    return np.stack([one.flatten() - sum(one.flatten().tolist()) / one.size for one in channels])


def _turned(component, centred):
    agreement = sum(float(component[s]) * sum(float(one[s]) for one in centred) for s in range(len(component)))
    possible = sum(abs(float(component[s])) * sum(abs(float(one[s])) for one in centred) for s in range(len(component)))
    if abs(agreement) < 1e-8 * possible:
        agreement = max(component, key=abs)
    return -component if agreement < 0 else component


def fem(k):
    def weighting(activations, _gradients):
        result = np.zeros(activations.shape[1:])
        for a in activations:
            mean = sum(float(a[s]) for s in np.ndindex(a.shape)) / a.size
            variance = sum((float(a[s]) - mean) ** 2 for s in np.ndindex(a.shape)) / a.size
            unusual = sum(float(a[s]) > mean + k * math.sqrt(variance) for s in np.ndindex(a.shape))
            for s in np.ndindex(a.shape):
                result[s] += unusual / a.size * float(a[s])
        return result

    return weighting


def _positions(activations, gradients, product):
    result = np.zeros(activations.shape[1:])
    for a, g in zip(activations, gradients, strict=True):
        for s in np.ndindex(a.shape):
            result[s] += product(float(a[s]), float(g[s]))
    return result


# Maps


def resize(array, size):
    """Linear interpolation along one axis after the other, pixel centres at half integers."""
    for axis, new in enumerate(size):
        old = array.shape[axis]
        slices = []
        for i in range(new):
            position = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = math.floor(position)
            high = min(low + 1, old - 1)
            part = position - low
            slices.append((1 - part) * array.take(low, axis) + part * array.take(high, axis))
        array = np.stack(slices, axis)
    return array
