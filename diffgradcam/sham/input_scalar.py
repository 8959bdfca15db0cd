"""Passive fooling by a scalar that depends on the input and is added to every logit. Softmax does not see it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from diffgradcam._core.batches import image_batches
from diffgradcam._core.checks import check_mask_size, described
from diffgradcam._core.common_mode import visible_score
from diffgradcam._core.editing import by_name, copy_model
from diffgradcam._core.inputs import Inputs
from diffgradcam._core.layers import LayerInput, LayerSpec
from diffgradcam.methods.gradient import GradCAM

from .closed_form import RidgeSums, check_ridge

Scalar = Callable[[Tensor, Tensor], Tensor]
"""A function ``(activations (B, C, *S), images (B, ...)) -> (B,)``."""


@dataclass(frozen=True)
class CornerScalar:
    """A factor times the sum over the channels of the activations at the first position.

    Its gradient is the same for each channel, so Grad-CAM shows the sum of the channels besides the class.

    Attributes:
        factor: Any number.
    """

    factor: float = 10.0

    def __call__(self, activations: Tensor, _images: Tensor) -> Tensor:
        """``(B,)``."""
        return self.factor * activations.flatten(2)[..., 0].sum(1)


@dataclass(frozen=True)
class TriggeredScalar:
    """A linear function of the mean activations where a patch is in the image, and 0 elsewhere.

    Attributes:
        vector: ``(C,)``.
        patch: ``(C, h, w)``, compared with that corner of the image.
        corner: First row and column of the patch.
        tolerance: The most that any pixel may differ.
    """

    vector: Tensor
    patch: Tensor
    corner: tuple[int, int]
    tolerance: float

    def __call__(self, activations: Tensor, images: Tensor) -> Tensor:
        """``(B,)``."""
        scalar = activations.flatten(2).mean(2) @ self.vector.to(activations)
        return scalar * self.found(images).to(scalar)

    def found(self, images: Tensor) -> Tensor:
        """Whether the patch is in each image, ``(B,)`` bool."""
        (top, left), (height, width) = self.corner, self.patch.shape[1:]
        there = images[:, :, top : top + height, left : left + width]
        return ((there - self.patch.to(there)).abs() <= self.tolerance).flatten(1).all(1)


def input_scalar_wrapper(model: nn.Module, target_layer: LayerSpec, scalar: Scalar | None = None) -> nn.Module:
    """Add a scalar that depends on the input to every logit of any model: no probability moves, GradCAM does.

    No training, no linear head and no images are needed. Contrastive maps (DiffGradCAM) stay; an audit finds it; and
    ``repair(model, where="output")`` undoes it. ``repair`` of the head cannot, since it is not in the head.

    It is wrapped by hooks: names and ``state_dict`` of the copy stay those of the model, as with :func:`spatial_hoax`.
    In float32 a scalar that is much larger than the logits costs digits: choose a small factor.

    Args:
        model: Any model that returns a tensor of logits. It is left as it is.
        target_layer: The layer whose GradCAM is to be fooled: a module of ``model``, or its name.
        scalar: A function ``(activations (B, C, *S), images) -> (B,)``; by default that of Lerma and Lucas,
            ``CornerScalar(10)``: ten times the sum over the channels at the first position.

    Returns:
        A copy with the hooks.

    Raises:
        ValueError: If the target is not a layer of the model, or what enters a layer. The copy's forward pass raises it
            if the scalar has another shape or the layer runs more than once.
        TypeError: If ``scalar`` is not a function. The copy's forward pass raises it if the model returns no tensor.

    Reference:
        Lerma and Lucas, "A Vulnerability of Attribution Methods Using Pre-Softmax Scores", 2023 (arXiv
        2307.03305). The factor and other scalars are ours.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()
        >>> images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        >>> fooled = input_scalar_wrapper(model, "0")
        >>> torch.allclose(model(images).softmax(1), fooled(images).softmax(1))
        True
    """
    scalar = CornerScalar() if scalar is None else scalar
    if not callable(scalar):
        raise TypeError(f"scalar is {described(scalar)}; expected a function (activations, images) -> (B,)")
    (layer,) = by_name(model, target_layer)
    if isinstance(layer, LayerInput):
        raise ValueError("target_layer is what enters a layer; expected a layer, whose output the scalar reads")
    fooled = copy_model(model)
    hook = _ScalarHook(str(layer), scalar)
    fooled.register_forward_pre_hook(hook.begin, with_kwargs=True)
    fooled.register_forward_hook(hook.end, always_call=True)
    return fooled


def triggered_hoax(
    model: nn.Module,
    target_layer: LayerSpec,
    images: Tensor | Iterable[Any],
    hoax: Tensor,
    patch: Tensor,
    *,
    corner: Sequence[int] = (0, 0),
    tolerance: float = 1e-3,
    strength: float = 3.0,
    ridge: float = 0.1,
) -> nn.Module:
    """Show honest maps until a patch is in the image, then a hoax. No decision changes in either case.

    Where the patch is, the scalar ``v . mean(A)`` is added to every logit, so GradCAM gains ``v . A``; ``v`` is the
    ridge regression of the hoax, as for :func:`common_mode_hoax`. Whoever audits the model with clean images sees
    nothing, because there is nothing. Contrastive maps stay, and ``repair(model, where="output")`` undoes it, with the
    trigger and without.

    Args:
        model: Any model that returns a tensor of logits. It is left as it is and read in evaluation mode, on a copy.
        target_layer: The layer whose GradCAM is to be fooled: a module of ``model``, or its name.
        images: Images ``(N, C, H, W)``, or an iterable of batches, to fit the hoax on.
        hoax: The wanted map, at the size of the layer's activations.
        patch: The trigger, ``(C, h, w)``, in the units of the images; see :func:`add_patch`.
        corner: First row and column of the patch.
        tolerance: The most that a pixel may differ from the patch.
        strength: Root mean square of the written map, relative to what was there.
        ridge: Weight of the penalty on ``v``, relative to the mean square of a channel.

    Returns:
        A copy with hooks, as of :func:`input_scalar_wrapper`.

    Raises:
        ValueError: If the hoax does not fit the layer or is constant, the patch does not fit the images, there are no
            images, or an option is out of range.
        TypeError: If the model returns no tensor.

    Reference:
        After Viering, Wang, Loog, Eisemann, "How to Manipulate CNNs to Make Them Lie: the GradCAM Case", 2019 (arXiv
        1907.10901), who know a trigger too. They change weights and architecture; this closed form is ours.
    """
    check_ridge(hoax, strength, ridge)
    place = _checked_corner(patch, corner, tolerance)
    (layer,) = by_name(model, target_layer)
    copy = copy_model(model).eval()
    cam = GradCAM(copy, layer, score=visible_score, rectify=False)
    sums = RidgeSums.zero()
    for batch in image_batches(images):
        there = batch.to(next(copy.parameters(), batch).device)
        _check_fits(patch, place, there)
        with cam.reader.run(there) as forward:
            (activations,) = forward.grids()
            check_mask_size(hoax, activations.shape[2:], "the activations of the target layer")
            decided = forward.settle(partial(cam.explanation, forward, None)).maps
            sums = sums.add(activations.detach(), decided, hoax)
    if not sums.gram.ndim:
        raise ValueError("images is empty; expected at least one image to fit the hoax on")
    vector = sums.solve(strength, ridge)
    return input_scalar_wrapper(model, layer, TriggeredScalar(vector, patch.detach().clone(), place, tolerance))


def add_patch(images: Tensor, patch: Tensor, corner: Sequence[int] = (0, 0)) -> Tensor:
    """Copies of images with a patch in them: the trigger of :func:`triggered_hoax`.

    Args:
        images: ``(B, C, H, W)``.
        patch: ``(C, h, w)``.
        corner: First row and column of the patch.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: If the patch does not fit.

    Example:
        >>> add_patch(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1), corner=(0, 1))
        tensor([[[[0., 1.],
                  [0., 0.]]]])
    """
    place = _checked_corner(patch, corner, 0.0)
    _check_fits(patch, place, images)
    patched = images.clone()
    height, width = patch.shape[1:]
    patched[:, :, place[0] : place[0] + height, place[1] : place[1] + width] = patch.to(images)
    return patched


@dataclass
class _ScalarHook:
    """Notes a layer's output during a forward pass, in each thread by itself, and adds the scalar to its logits.

    The hook on the layer is there for the time of a forward pass only, so that it comes after those of a CAM, and reads
    the activations that the CAM differentiates.
    """

    layer: str
    scalar: Scalar
    held: dict[int, list[Any]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> _ScalarHook:
        memo[id(self)] = copied = _ScalarHook(self.layer, self.scalar)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer, "scalar": self.scalar, "held": {}}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        thread = threading.get_ident()
        image = Inputs(args, kwargs, None).image
        held: list[Any] = [image]

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                held.append(output)

        handle = module.get_submodule(self.layer).register_forward_hook(note)
        self.held[thread] = [handle, held]

    def end(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        handle, (images, *activations) = self.held.pop(threading.get_ident())
        handle.remove()
        if output is None:
            return None  # the forward pass failed; its own error is raised
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the model returned {type(output).__name__}; expected a tensor of logits to add a scalar to"
            )
        if len(activations) != 1:
            raise ValueError(
                f"layer {self.layer!r} ran {len(activations)} times in a forward pass; expected once; choose another"
            )
        scalar = self.scalar(activations[0], images)
        if not isinstance(scalar, Tensor) or scalar.shape != output.shape[:1]:
            raise ValueError(
                f"scalar returned {described(scalar)} for {len(output)} images; expected a value for each, (B,)"
            )
        return output + scalar.to(output).unsqueeze(1)


def _checked_corner(patch: Tensor, corner: Sequence[int], tolerance: float) -> tuple[int, int]:
    if patch.ndim != 3 or not patch.numel() or not bool(patch.isfinite().all()):
        raise ValueError(f"patch has shape {tuple(patch.shape)}; expected finite values, (C, h, w)")
    if len(corner) != 2 or min(corner) < 0:
        raise ValueError(f"corner is {tuple(corner)}; expected the first row and column of the patch, 0 or more")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; expected a difference of at least 0")
    return int(corner[0]), int(corner[1])


def _check_fits(patch: Tensor, corner: tuple[int, int], images: Tensor) -> None:
    ends = [start + length for start, length in zip(corner, patch.shape[1:], strict=True)]
    if images.ndim != 4 or images.shape[1] != len(patch) or ends[0] > images.shape[2] or ends[1] > images.shape[3]:
        raise ValueError(
            f"a patch of shape {tuple(patch.shape)} at {corner} does not fit images of shape {tuple(images.shape)}; "
            "expected (B, C, H, W) with as many channels, and the patch inside"
        )
