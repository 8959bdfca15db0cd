"""ENGINE: joins score, layer, weighting and map."""

from __future__ import annotations

import contextlib
import copy
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from .. import heatmaps, scores, weightings
from ..methods.smoothing import AugSmooth
from ..targets import OutputTarget, read_targets, target_gradients
from .forward import Explanation, Pass, columns, rows_of
from .gradients import activation_gradients, class_blocks, linear_maps, pooled_linear_maps, score_gradients, widen
from .layers import Recorder, Target, changed_meanwhile, eagerly, find_layers, inner_model
from .outputs import Classes, check_finite, check_grid, class_index, find_logits

_FEW_CLASSES = 64  # so many vector-Jacobian products cost less than asking whether there is a closed form

_Self = TypeVar("_Self", bound="BaseCAM")
Reduction = Callable[[Tensor], Tensor]
Fusion = Callable[[list[Tensor], Sequence[int]], Tensor]
Cotangents = Callable[..., Tensor]


def channel_sum(channels: Tensor) -> Tensor:
    """The sum over the channels, ``(B, C, *S) -> (B, *S)``."""
    return channels.sum(1)


class BaseCAM(ABC):
    """A class activation map: a weighted sum of the activations of a layer, explaining a score.

    Three ways of use: call it for NumPy heat maps at input size, :meth:`explain` for tensors at layer resolution, or
    attach it (``with``) and take differentiable :meth:`maps` of your own forward pass. The model is never altered: no
    change of weights or mode, no ``.grad``, no hook that outlives the call or the ``with`` block. In training mode its
    forward pass updates the statistics of batch norm, as any does.

    Args:
        model: Any module that returns logits ``(B, K)``. Wrappers (DataParallel, DistributedDataParallel,
            ``torch.compile``) are taken off: explanations run the inner module.
        target_layers: One or several layers: modules, dotted names, or :func:`~diffgradcam.layer_input` of either. Maps
            of several layers are resized to the largest of them and averaged.
        reshape_transform: Brings activations into the form ``(B, C, *S)``, as for the tokens of a vision transformer.
        score: What is explained: ``(logits (B, K), classes (B,)) -> (B,)``, see :mod:`diffgradcam.scores`.
        rectify: Keep only the evidence for the class (ReLU). With False the map is signed.
        output: Takes the logits out of what the model returns. By default the tensor itself, or its ``logits``.

    Raises:
        ValueError: If a target layer is not a layer of the model; the message suggests names.
        TypeError: If the model or a target layer is of the wrong kind.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        score: scores.Score = scores.logit,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
        for name, function in (("score", score), ("output", output)):
            if not callable(function):
                raise TypeError(f"{name} is {function!r}; expected a function")
        if reshape_transform is not None and not callable(reshape_transform):
            raise TypeError(f"reshape_transform is {reshape_transform!r}; expected a function or None")
        self.model = model
        self.target_layers = target_layers
        self.reshape_transform = reshape_transform
        self.score = score
        self.rectify = rectify
        self.output = output
        self.outputs: Tensor | None = None
        self._prepare()

    def _prepare(self) -> None:
        model = inner_model(self.model)
        self._recorder = Recorder(find_layers(model, self.target_layers), model)
        weakref.finalize(self, self._recorder.detach)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_recorder"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()  # a copy is not attached

    reduction: Reduction = staticmethod(channel_sum)
    """From the weighted activations of a layer to its map, ``(B, C, *S) -> (B, *S)``."""

    fusion: Fusion = staticmethod(heatmaps.average)
    """From the maps of the layers, ``(M, *S)`` each, to one of a given size, as
    :func:`diffgradcam.heatmaps.average` does."""

    @abstractmethod
    def weighting(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Weights of the activations: a static function of :mod:`diffgradcam.weightings`, or a method with options.

        Args:
            activations: ``(B, C, *S)``.
            gradients: Gradient of the score with respect to them, ``(B, C, *S)``.

        Returns:
            Weights that broadcast to ``(B, C, *S)``.
        """

    def explain(self, input_tensor: Any, classes: Classes = None, *args: Any, **kwargs: Any) -> Explanation:
        """Decide and explain in one forward pass, at about the price of inference.

        Nothing is back-propagated below the target layer. Works under ``no_grad`` and ``inference_mode`` and for frozen
        models.

        Args:
            input_tensor: The input of the model, usually images ``(B, 3, H, W)``.
            classes: None (argmax), an int or ``(B,)`` for one map an image, ``(B, N)`` for several, ``"top5"`` for the
                five with the largest logits (or any other number), ``"all"`` for all.
            *args: Further arguments of the model.
            **kwargs: Further keyword arguments of the model.

        Returns:
            ``(logits, classes, maps)``, see :class:`Explanation`. Maps are not scaled; half precision is widened.

        Raises:
            TypeError: If the model returns no tensor of logits, or classes are not integers.
            ValueError: If classes are out of range or of the wrong shape, an activation or a logit is NaN or infinite,
                the layer has no spatial dimensions, or the model has lazy layers that never ran.
            RuntimeError: If a layer did not run, ran more than once, or the output does not depend on it.
        """
        with self._forward(input_tensor, args, kwargs) as forward:
            return self._explanation(forward, classes)

    def maps(self, logits: Tensor, classes: Classes = None) -> Tensor:
        """Differentiable maps of the forward pass that you already made, for a loss on them.

        Attach first (``with cam:`` or :meth:`attach`), run the model yourself, then ask for maps as often as you like
        before ``backward``. Values are not checked for NaN, so that a gradient scaler can do its work.

        Args:
            logits: What the forward pass returned, ``(B, K)``, with its graph, rows in the order of the images.
            classes: As in :meth:`explain`. Both classes of a binary task: ``torch.stack([y, 1 - y], 1)``.

        Returns:
            Maps at the resolution of the layer, ``(B, h, w)`` or ``(B, N, h, w)``, in the graph: a loss on them reaches
            every parameter that they depend on.

        Raises:
            RuntimeError: Before any recorded forward pass, if it ran without gradients, or if the logits do not come
                from it.
            ValueError: As in :meth:`explain`.
            TypeError: As in :meth:`explain`.
        """
        if not isinstance(logits, Tensor):
            raise TypeError(f"maps() takes the logits tensor of your forward pass, not {type(logits).__name__}")
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            index = class_index(logits, classes)
            forward = Pass(logits, self._recorder.activations(logits))
            self._check_positions(self._recorder, forward, self._recorder.image_dims)
            return self._fuse(self._class_maps(forward, columns(index), create_graph=True), index)

    def attach(self: _Self) -> _Self:
        """Record every forward pass from now on, until :meth:`detach`; ``with`` does both."""
        self._recorder.attach()
        return self

    def detach(self) -> None:
        """Stop recording: remove the hooks."""
        self._recorder.detach()

    def __enter__(self: _Self) -> _Self:
        return self.attach()

    def __exit__(
        self, exception: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **kwargs: Any,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Heat maps at input size: the call of pytorch-grad-cam.

        Args:
            input_tensor: Images, ``(B, C, H, W)`` (or with one or three spatial dimensions), on any device.
            targets: One target for each image, see :mod:`diffgradcam.utils.model_targets`, or class indices; None is
                the class with the largest logit.
            aug_smooth: Average over six versions of each image, mirrored or not, times 0.9, 1 and 1.1: as
                :class:`~diffgradcam.AugSmooth`.
            eigen_smooth: First principal component of the weighted activations instead of their sum: as
                :class:`~diffgradcam.EigenSmooth`.
            **kwargs: Further keyword arguments of the model.

        Warns:
            UserWarning: If batch norm or dropout is in training mode: the maps are then of this batch and this draw.

        Returns:
            float32, ``(B, H, W)``, each map scaled to [0, 1]; signed maps to [-1, 1] with 0 kept at 0. The logits of
            the call are in ``outputs``.

        Raises:
            TypeError: As :meth:`explain`.
            ValueError: As :meth:`explain`; for a wrong number of targets; for a target that is a score of its own where
                this CAM has chosen another score.
            RuntimeError: As :meth:`explain`.
        """
        if not isinstance(input_tensor, Tensor):
            raise TypeError(
                f"input_tensor is {type(input_tensor).__name__}; expected a tensor of images (B, C, H, W), such as "
                "diffgradcam.utils.image.preprocess_image makes it (explain() takes whatever the model takes)"
            )
        cam = self.with_reduction(heatmaps.principal_component) if eigen_smooth else self
        if aug_smooth:
            augmented = AugSmooth(cam)
            smoothed = augmented(input_tensor, targets, **kwargs)
            self.outputs = augmented.outputs
            return smoothed
        _warn_of_training_mode(self.model)
        images = input_tensor.to(next(self.model.parameters(), input_tensor).device)
        found = cam._heatmaps(images, targets, kwargs).numpy()
        self.outputs = cam.outputs
        return found

    def with_score(self: _Self, score: scores.Score) -> _Self:
        """A copy that explains another score."""
        other = copy.copy(self)
        other.score = score
        return other

    def with_reduction(self: _Self, reduction: Reduction) -> _Self:
        """A copy that collapses weighted channels in another way than to their sum, if it sums them."""
        if self.reduction is not channel_sum:
            return self
        other = copy.copy(self)
        other.reduction = reduction
        return other

    def _heatmaps(
        self, input_tensor: Tensor, targets: Sequence[OutputTarget | int] | None, kwargs: dict[str, Any]
    ) -> Tensor:
        with self._forward(input_tensor, (), kwargs) as forward:
            self.outputs = forward.logits.detach()
            scale = heatmaps.minmax if self.rectify else heatmaps.scale_signed
            layers = [scale(self._rectified(layer.squeeze(1))) for layer in self._asked_maps(forward, targets)]
            fused = scale(self.fusion(layers, input_tensor.shape[2:])).float().cpu()
            check_finite("the map", fused)
            return fused

    def _asked_maps(self, forward: Pass, targets: Sequence[OutputTarget | int] | None) -> list[Tensor]:
        """Signed maps of the targets of the call: one tensor ``(B, 1, *S)`` for each layer."""
        classes, callables = read_targets(targets, len(forward.logits))
        if callables is None:
            return self._class_maps(forward, class_index(forward.logits, classes).unsqueeze(1))
        if self.score is not scores.logit:
            raise ValueError(
                f"target {type(callables[0]).__name__} is a score of its own, but this {type(self).__name__} "
                "explains another score; give ClassifierOutputTarget(class), or explain this target with GradCAM"
            )
        return self._target_maps(forward, callables)

    def _how_it_runs(self) -> object:
        """Equal for CAMs that can share a forward pass, if they also explain the same layers of one model."""
        return type(self)._forward

    @contextlib.contextmanager
    def _forward(self, input_tensor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Pass]:
        """Run the model without gradients up to the first target layer, and with them from there to the logits."""
        model = inner_model(self.model)
        with torch.inference_mode(False), torch.no_grad(), _no_autocast_cache(), contextlib.ExitStack() as stack:
            modules = list(model.modules())
            stack.enter_context(eagerly(modules))
            recorder = stack.enter_context(Recorder(self._recorder.layers, cut=True))
            inputs = [_normal(value) for value in (input_tensor, *args)]
            options = {name: _normal(value) for name, value in kwargs.items()}
            weights = _counted_weights(modules)
            versions = [weight._version for weight in weights]
            logits = self.output(model(*inputs, **options))
            recorder.detach()
            if not isinstance(logits, Tensor):
                raise TypeError(f"output= returned {type(logits).__name__}; expected the tensor of logits")
            if logits.ndim == 0:
                raise ValueError(
                    "the model's output is a single number for the whole batch; expected a row for each image"
                )
            device = logits.device.type
            mixed = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
            stack.enter_context(torch.autocast(device, enabled=False))
            torch.set_grad_enabled(False)  # the graph is there; what is computed from it needs none
            check_finite("the output", logits)

            def run(others: Tensor, rows: Tensor) -> Tensor:
                further = [rows_of(value, rows, len(logits)) for value in inputs[1:]]
                named = {name: rows_of(value, rows, len(logits)) for name, value in options.items()}
                with torch.no_grad(), torch.autocast(device, mixed[1], mixed[0], cache_enabled=False):
                    return self.output(model(others, *further, **named))

            @contextlib.contextmanager
            def again(images: Any) -> Iterator[Pass]:
                with (
                    torch.autocast(device, mixed[1], mixed[0], cache_enabled=False),
                    self._forward(images, args, kwargs) as other,
                ):
                    yield other

            forward = Pass(logits, recorder.activations(logits), run, inputs[0], again)
            for layer, activations in zip(recorder.layers, forward.activations, strict=True):
                check_finite(f"the activation of layer {layer.name}", activations)
            dims = input_tensor.ndim - 2 if isinstance(input_tensor, Tensor) else 1
            self._check_positions(recorder, forward, dims)
            yield forward
            # Another thread trains it: what was made is of no one state.
            if [weight._version for weight in weights] != versions:
                raise RuntimeError(changed_meanwhile())

    def _explanation(self, forward: Pass, classes: Classes) -> Explanation:
        index = class_index(forward.logits, classes)
        maps = self._fuse(self._class_maps(forward, columns(index)), index)
        check_finite("the map", maps)  # gradients overflow in half precision where activations and logits do not
        return Explanation(forward.logits.detach(), index, maps)

    def _check_positions(self, recorder: Recorder, forward: Pass, image_dims: int) -> None:
        for layer, activations in zip(recorder.layers, forward.activations, strict=True):
            check_grid(layer.name, self._grid(activations), forward.logits, image_dims)

    def _class_maps(self, forward: Pass, classes: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        """Signed maps of each class ``(B, N)``: one tensor ``(B, N, *S)`` for each layer."""
        return self._score_maps(forward, self.score, classes, create_graph=create_graph)

    def _target_maps(self, forward: Pass, targets: Sequence[OutputTarget]) -> list[Tensor]:
        """Signed maps of one target for each image: one tensor ``(B, 1, *S)`` for each layer."""
        return self._cotangent_maps(forward, partial(target_gradients, targets))

    def _score_maps(
        self, forward: Pass, score: scores.Score, classes: Tensor, *, create_graph: bool = False
    ) -> list[Tensor]:
        if classes.shape[1] > _FEW_CLASSES and not create_graph:
            closed = self._closed_form(forward)
            if closed is not None:
                return [linear_maps(closed, score, forward.logits, classes)]
        numbers = sum(tensor.shape[1:].numel() for tensor in (forward.logits, *forward.activations))
        done = [
            self._cotangent_maps(forward, partial(score_gradients, score, classes=block), create_graph=create_graph)
            for block in class_blocks(classes, numbers)
        ]
        return [torch.cat(layer, 1) for layer in zip(*done, strict=True)]

    def _closed_form(self, forward: Pass) -> Tensor | None:
        """The maps of all logits, ``(B, K, *S)``, where a map is linear in the score and the head pooled and linear."""
        mean_gradient = self.weighting in (weightings.gradcam, weightings.hirescam)
        plain = type(self)._gradients is BaseCAM._gradients and self.reduction is channel_sum
        if not (mean_gradient and plain):
            return None
        maps = pooled_linear_maps(inner_model(self.model), forward.logits, forward.activations, self._grid)
        return None if maps is None else maps[0]

    def _cotangent_maps(self, forward: Pass, cotangents: Cotangents, *, create_graph: bool = False) -> list[Tensor]:
        """Signed maps of what ``cotangents(logits, create_graph=) -> (B, N, *O)`` differentiates."""
        gradients = self._gradients(forward, cotangents, create_graph=create_graph)
        return [self._layer_maps(*layer) for layer in zip(forward.activations, gradients, strict=True)]

    def _gradients(self, forward: Pass, cotangents: Cotangents, *, create_graph: bool = False) -> list[Tensor]:
        """Gradients ``(B, N, ...)`` of each layer."""
        vectors = cotangents(forward.logits, create_graph=create_graph)
        return activation_gradients(forward.logits, forward.activations, vectors, create_graph=create_graph)

    def _layer_maps(self, activations: Tensor, gradients: Tensor) -> Tensor:
        grid = self._grid(activations)
        maps = [self._layer_map(grid, self.weighting(grid, self._grid(gradient))) for gradient in gradients.unbind(1)]
        return torch.stack(maps, 1)

    def _layer_map(self, grid: Tensor, weights: Tensor) -> Tensor:
        weighted = weights * grid
        if weighted.shape != grid.shape:
            raise ValueError(
                f"the weighting returned shape {tuple(weights.shape)}, which does not broadcast to the activations "
                f"{tuple(grid.shape)}"
            )
        return self.reduction(weighted)

    def _grid(self, tensor: Tensor) -> Tensor:
        return widen(tensor if self.reshape_transform is None else self.reshape_transform(tensor))

    def _rectified(self, maps: Tensor) -> Tensor:
        return heatmaps.rectify(maps) if self.rectify else maps

    def _fuse(self, layers: list[Tensor], classes: Tensor) -> Tensor:
        """Fuse the layers' maps ``(B, N, *S)`` at the size of the largest, in the shape of the classes."""
        maps = [self._rectified(layer.flatten(0, 1)) for layer in layers]
        size = max((layer.shape[1:] for layer in maps), key=torch.Size.numel)
        return self.fusion(maps, size).reshape(*classes.shape, *size)


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast keeps the weights that it casts, in PyTorch 2.6 also without their graph, for the caller's next step."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _warn_of_training_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training and isinstance(module, _BatchNorm | _DropoutNd):
            warnings.warn(
                f"the model is in training mode ({name or 'itself'}, {type(module).__name__}): its maps depend on the "
                "batch and on chance, and batch norm is updated; call model.eval() first",
                stacklevel=3,
            )
            return


def _counted_weights(modules: list[nn.Module]) -> list[nn.Parameter]:
    """Those whose changes in place autograd counts: all but those made in inference mode."""
    weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
    if any(map(is_lazy, weights)):
        raise ValueError("the model has lazy layers without parameters yet; run it once, on any batch, first")
    return [weight for weight in weights if not weight.is_inference()]


def _normal(value: Any) -> Any:
    """A tensor that autograd may save, also where the caller made it under ``inference_mode``."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
