"""Fooling by the input: a small change of an image that moves the map and not the decision. The model stays."""

from __future__ import annotations

import copy
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from diffgradcam._core.base import TrainableCAM
from diffgradcam._core.batches import check_images
from diffgradcam._core.checks import check_count, check_mask_size, check_mask_varies
from diffgradcam._core.editing import in_training
from diffgradcam._core.outputs import Classes, class_index
from diffgradcam._core.tensors import normal, outside_inference_mode
from diffgradcam._core.wrappers import inner_model
from diffgradcam.heatmaps import rectify
from diffgradcam.metrics.similarity import pearson

_FIRST_STEP = 0.25  # of epsilon
_PENALTY = 1.0


class Perturbed(NamedTuple):
    """Changed images and what the change did, one value per image.

    Attributes:
        images: ``(B, C, *S)``, no pixel farther than ``epsilon`` from the given images.
        kept: Pearson's r of the rectified map with that of the given image.
        reached_before: Pearson's r of the map of the given image with the hoax.
        reached: The same of the changed image.
        kl: Divergence of the changed image's probabilities from the given image's, in nats.
    """

    images: Tensor
    kept: Tensor
    reached_before: Tensor
    reached: Tensor
    kl: Tensor


def perturb(
    cam: TrainableCAM,
    images: Tensor,
    hoax: Tensor,
    epsilon: float,
    classes: Classes = None,
    *,
    keep: float = 0.01,
    steps: int = 40,
    limits: tuple[float, float] | None = None,
    softplus: float | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Perturbed:
    """Change images by at most ``epsilon`` a pixel so that the map shows a hoax and the decision stays.

    Projected gradient steps of the sign, from large to small, on Pearson's r of the map with the hoax, with a penalty
    where the probabilities move. Of each image the best version is returned whose decision is that of the given image
    and whose probabilities diverge by at most ``keep``; the image itself where there is none.

    A map from gradients depends on the image through the activations and through their weights. In a network of ReLUs
    the weights change by jumps, which have no gradient: the steps then follow the activations alone, which is enough
    for the maps of a last layer. With ``softplus`` the steps are taken on a copy of the model whose ``nn.ReLU`` modules
    (functional ReLUs stay) are ``softplus(beta x) / beta``; every version is judged on the model itself.

    Args:
        cam: Any trainable explainer: its score, layer, weighting and map are what is attacked. Neither it nor its model
            is changed; where part of the model is in training mode, a copy in evaluation mode is attacked.
        images: ``(B, C, *S)``, as the model takes them.
        hoax: The wanted map, at the size of the maps.
        epsilon: The most that a pixel changes, in the units of ``images``: after normalisation that is 1/255 divided by
            the standard deviation for one grey level. The bound holds exactly.
        classes: Whose map is moved: None (the decision of the given image), one class for all, or ``(B,)``.
        keep: Bound of the divergence KL(given, changed) of each image, in nats.
        steps: How many; each costs a forward and a double backward pass, and an explanation of where it leads.
        limits: Lowest and highest value of a pixel; by default there are none.
        softplus: ``beta`` of the smooth copy, such as 10; by default the steps are taken on the model itself.
        batch_size: Images at once.
        progress: Show a progress bar.

    Returns:
        See :class:`Perturbed`.

    Raises:
        ValueError: If the hoax does not fit the maps or is constant, or an option is out of range.
        TypeError: If ``cam`` is not trainable, or images are not a tensor.

    Reference:
        After Dombrowski et al., "Explanations can be manipulated and geometry is to blame", NeurIPS 2019 (arXiv
        1906.07983), who move gradient maps to a hoax and use softplus. Recent ones: eXIAA (arXiv 2511.10088), a single
        step without access to the model; X-Shift (arXiv 2605.16651), on patch features. The bound on the divergence
        and the choice among the steps are ours.
    """
    if not isinstance(cam, TrainableCAM):
        raise TypeError(f"cam is {type(cam).__name__}; expected a trainable CAM, such as GradCAM(model, layers)")
    check_images(images)
    _check_options(hoax, epsilon, keep, steps, limits, softplus, batch_size)
    judge = cam.replace()
    if in_training(inner_model(cam.model)):
        judge = copy.deepcopy(judge)
        judge.model.eval()
    surrogate = judge if softplus is None else _smooth(judge, softplus)
    index = None if classes is None else class_index(torch.zeros(len(images), _count(judge, images)), classes)
    parts = []
    starts = range(0, len(images), batch_size)
    with outside_inference_mode(), tqdm(total=steps * len(starts), desc="perturb", disable=not progress) as bar:
        for start in starts:
            rows = slice(start, start + batch_size)
            attack = _Attack(judge, surrogate, normal(images[rows].detach()), hoax, epsilon, keep, limits)
            attack.begin(None if index is None else index[rows])
            for step in range(steps):
                attack.step(_FIRST_STEP * epsilon * (1 + math.cos(math.pi * step / steps)) / 2)
                bar.update()
            parts.append(attack.result())
    return Perturbed(*(torch.cat(values) for values in zip(*parts, strict=True)))


class _Attack:
    """One batch: the given images, the best versions so far, and the version of now."""

    def __init__(
        self,
        judge: TrainableCAM,
        surrogate: TrainableCAM,
        images: Tensor,
        hoax: Tensor,
        epsilon: float,
        keep: float,
        limits: tuple[float, float] | None,
    ) -> None:
        self.judge, self.surrogate, self.images, self.keep = judge, surrogate, images, keep
        self.low, self.high = _ball(images, epsilon)
        if limits is not None:
            # Pixels that are out of the limits stay where they are.
            self.low = torch.minimum(images, self.low.clamp_min(limits[0]))
            self.high = torch.maximum(images, self.high.clamp_max(limits[1]))
        self.hoax = hoax.to(images.device)
        self.now = images

    def begin(self, classes: Tensor | None) -> None:
        """What the given images show."""
        found = self.judge.explain(self.images, classes)
        check_mask_size(self.hoax, found.maps.shape[1:], "the maps")
        self.logits, self.classes, self.maps = found.logits, found.classes, rectify(found.maps)
        self.hoax = self.hoax.to(self.maps.dtype).expand_as(self.maps)
        self.before = pearson(self.maps, self.hoax)
        self.best, self.best_maps = self.images, self.maps
        self.reached, self.kl = self.before, torch.zeros_like(self.before)

    def step(self, size: float) -> None:
        """One step of the sign, pulled back into the bounds, and a look at where it leads."""
        with torch.enable_grad():
            point = self.now.clone().requires_grad_()
            with self.surrogate as cam:
                logits = cam.output(inner_model(cam.model)(point.clone()))
                maps = cam.maps(logits, self.classes)
            fooling = 1 - (pearson(maps, self.hoax) + pearson(rectify(maps), self.hoax)) / 2
            excess = (self.divergence(logits) / self.keep - 0.5).relu()
            loss = (fooling + _PENALTY * excess).sum()
            (gradient,) = torch.autograd.grad(loss, point)
        moved = self.now - size * gradient.nan_to_num().sign()
        self.now = torch.minimum(torch.maximum(moved, self.low), self.high)
        self.look()

    def look(self) -> None:
        """Keep the versions that are within the bounds and reach more than the best so far."""
        found = self.judge.explain(self.now, self.classes)
        maps, kl = rectify(found.maps), self.divergence(found.logits)
        reached = pearson(maps, self.hoax)
        same = found.logits.argmax(1) == self.logits.argmax(1)
        better = same & (kl <= self.keep) & (reached > self.reached)

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)

        self.best, self.best_maps = chosen(self.now, self.best), chosen(maps, self.best_maps)
        self.reached, self.kl = chosen(reached, self.reached), chosen(kl.to(self.kl), self.kl)

    def divergence(self, logits: Tensor) -> Tensor:
        """KL of the probabilities from those of the given images, ``(B,)``."""
        old, new = self.logits.log_softmax(1), logits.log_softmax(1)
        return F.kl_div(new, old, reduction="none", log_target=True).sum(1)

    def result(self) -> Perturbed:
        """The best versions."""
        return Perturbed(self.best, pearson(self.best_maps, self.maps), self.before, self.reached, self.kl)


def _ball(images: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of each pixel whose difference to it is at most epsilon after rounding too."""
    bound = torch.tensor(epsilon, dtype=images.dtype)
    if float(bound) > epsilon:  # it was rounded up
        bound = torch.nextafter(bound, torch.zeros_like(bound))
    bound = bound.to(images.device)
    low, high = images - bound, images + bound
    low = torch.where(images - low > bound, torch.nextafter(low, images), low)
    high = torch.where(high - images > bound, torch.nextafter(high, images), high)
    return low, high


def _smooth(cam: TrainableCAM, beta: float) -> TrainableCAM:
    """The same CAM of a copy of its model, whose ReLU modules are softplus."""
    smooth = copy.deepcopy(cam)
    for module in smooth.model.modules():
        if isinstance(module, nn.ReLU):
            vars(module)["forward"] = functools.partial(F.softplus, beta=beta)
    return smooth


def _count(cam: TrainableCAM, images: Tensor) -> int:
    with torch.no_grad():
        return int(cam.output(inner_model(cam.model)(images[:1])).shape[1])


def _check_options(
    hoax: Tensor,
    epsilon: float,
    keep: float,
    steps: int,
    limits: tuple[float, float] | None,
    softplus: float | None,
    batch_size: int,
) -> None:
    check_mask_varies(hoax)
    for name, value in (("epsilon", epsilon), ("keep", keep)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number above 0")
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(f"limits is {limits}; expected the lowest and the highest value of a pixel, as (0.0, 1.0)")
    if softplus is not None and not 0 < softplus < math.inf:
        raise ValueError(f"softplus is {softplus}; expected beta, a finite number above 0, such as 10, or None")
