"""The classes that explain: a score, a layer, a weighting and a map, joined."""

from __future__ import annotations

import copy
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import Unpack

from .. import heatmaps
from ..scores import Logit, Score, ScoreFunction, as_score
from ..targets import OutputTarget, read_targets
from ..weightings import Weighting, is_linear
from . import messages
from .axes import input_channels
from .class_names import GivenClassNames, as_class_names
from .explanation import Explanation
from .forward import ForwardPass, LayerReader, Output, Recording, ReshapeTransform
from .inputs import ImageOf, Inputs, positional
from .layers import LayerSpec, Run
from .naming import callable_name
from .outputs import Classes, asserted, class_index, find_logits
from .recorder import GraphRecorder
from .requests import ClassRequest, Request, TargetRequest
from .tensors import columns, plain
from .versions import Array, Augmentations, averaged_call
from .wrappers import inner_model

_Self = TypeVar("_Self", bound="BaseCAM")
_Trainable = TypeVar("_Trainable", bound="TrainableCAM")
Reduction = Callable[[Tensor], Tensor]
Fusion = Callable[[list[Tensor], Sequence[int]], Tensor]


class CAMOptions(TypedDict, total=False):
    """The options of every method, see :class:`BaseCAM`."""

    reduction: Reduction
    fusion: Fusion
    rectify: bool
    output: Output
    image: ImageOf
    run: Run
    class_names: GivenClassNames | None


class ScoredOptions(CAMOptions, total=False):
    """The options of a method that explains a score, see :class:`ScoredCAM`."""

    score: ScoreFunction


class TrainableOptions(CAMOptions, total=False):
    """The options of a method from gradients whose score is chosen, see :class:`TrainableCAM`."""

    weighting: Weighting


class BaseCAM(ABC):
    """A class activation map: a weighted sum of the activations of a layer.

    Call it for NumPy heat maps at input size, or use :meth:`explain` for tensors at layer resolution. The model is
    never altered: no change of weights or mode, no ``.grad``, no hook that outlives the call. In training mode its
    forward pass updates the statistics of batch norm, as any does.

    Args:
        model: Any module that returns logits ``(B, K)``. Wrappers (DataParallel, DistributedDataParallel,
            ``torch.compile``) are taken off: explanations run the inner module.
        target_layers: One or several layers: modules, dotted names, or :func:`~diffgradcam.layer_input` of either. Maps
            of several layers are resized to the largest of them and averaged.
        reshape_transform: Brings activations into the form ``(B, C, *S)``, as for the tokens of a vision transformer.
        reduction: From the weighted activations of a layer to its map, ``(B, C, *S) -> (B, *S)``; by default their sum
            over the channels.
        fusion: From the maps of several layers, ``(M, *S)`` each, to one of a given size; by default
            :func:`diffgradcam.heatmaps.average`.
        rectify: Keep only the evidence for the class (ReLU). With False the map is signed.
        output: Takes the logits out of what the model returns. By default the tensor itself, or its ``logits``.
        image: Which argument of the model is the image: a position, a keyword, or a function of ``(args, kwargs)`` that
            returns it. By default the first floating-point tensor that can be images.
        run: Which run is meant of a layer that runs several times in a forward pass: ``"first"``, ``"last"``, a number,
            or ``"all"``, whose maps are fused as those of several layers are.
        class_names: The names of the model's classes, for people to read: a list with one for each class in order, or a
            mapping from class indices to names. What the CAM explains shows them, see :class:`Explanation`.

    Raises:
        ValueError: If a target layer is not a layer of the model; the message suggests names. When explaining, if the
            class names are not those of the model's classes.
        TypeError: If the model, a target layer or an option is of the wrong kind.
    """

    score: Score = Logit()
    """What is explained. A method without a score is asked about the logit, and shows the same map for every class."""

    reduction: Reduction = staticmethod(heatmaps.channel_sum)
    fusion: Fusion = staticmethod(heatmaps.average)

    needs_graph: ClassVar[bool] = True
    """Whether gradients from the logits to the layers are needed."""

    choices: ClassVar[tuple[str, ...]] = ("reduction", "fusion", "rectify")

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        reduction: Reduction | None = None,
        fusion: Fusion | None = None,
        rectify: bool = True,
        output: Output = find_logits,
        image: ImageOf = None,
        run: Run = None,
        class_names: GivenClassNames | None = None,
    ) -> None:
        self.model = model
        self.target_layers = target_layers
        self.reshape_transform = reshape_transform
        self.output = output
        self.image = image
        self.run = run
        self.class_names = as_class_names(class_names)
        self.rectify = rectify
        self.outputs: Tensor | None = None
        self._choose(reduction=reduction, fusion=fusion)
        self._prepare()

    def __new__(cls: type[_Self], *_: Any, **options: Any) -> _Self:
        """Name what replaces options of old releases of pytorch-grad-cam."""
        for name in messages.OLD_OPTIONS.keys() & options.keys():
            raise TypeError(messages.OLD_OPTIONS[name])
        return super().__new__(cls)

    def _choose(self, **functions: Callable[..., Any] | None) -> None:
        """Take options that are functions; None leaves what the class has."""
        for name, function in functions.items():
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"{name} is {function!r}; expected a function")
            setattr(self, name, as_score(function) if name == "score" else function)

    def _prepare(self) -> None:
        self._reader = self._make_reader()

    def _make_reader(self) -> LayerReader:
        return LayerReader(
            self.model,
            self.target_layers,
            self.reshape_transform,
            self.output,
            image=self.image,
            run=self.run,
            graph=self.needs_graph,
        )

    @property
    def reader(self) -> LayerReader:
        """What runs the model and reads its layers."""
        return self._reader

    def replace(self: _Self, **changes: Any) -> _Self:
        """A copy with other choices.

        Args:
            **changes: Of ``score``, ``weighting``, ``reduction``, ``fusion`` and ``rectify``, those that this method
                has.

        Returns:
            The copy, which is not attached.

        Raises:
            TypeError: If the method has no such choice, or a value is of the wrong kind.

        Example:
            >>> from diffgradcam import GradCAM
            >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> GradCAM(model, "0").replace(rectify=False).rectify
            False
        """
        unknown = [name for name in changes if name not in self.choices]
        if unknown:
            raise TypeError(f"{type(self).__name__} has no choice of {unknown[0]!r}; expected one of {self.choices}")
        other = copy.copy(self)
        if "rectify" in changes:
            other.rectify = changes.pop("rectify")
        other._choose(**changes)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_reader", "_recorder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()  # a copy is not attached

    def __enter__(self: _Self) -> _Self:
        """Nothing to begin; scripts for pytorch-grad-cam use CAMs in a ``with`` block."""
        return self

    def __exit__(
        self, exception: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to end."""
        return

    def __repr__(self) -> str:
        """What the method explains, where, and how."""
        chosen = ", ".join(f"{name}={value}" for name, value in self._described().items())
        layers = ", ".join(layer.name for layer in self._reader.layers)
        return f"{type(self).__name__}({type(inner_model(self.model)).__name__}, [{layers}], {chosen})"

    def _described(self) -> dict[str, str]:
        """The choices, for the repr: the functions by their names, and what differs from the usual."""
        found = {}
        if self.reduction is not BaseCAM.reduction:
            found["reduction"] = callable_name(self.reduction)
        if self.fusion is not BaseCAM.fusion:
            found["fusion"] = callable_name(self.fusion)
        found["rectify"] = str(self.rectify)
        if self.class_names:
            found["class_names"] = str(self.class_names)
        return found

    def explain(
        self,
        input_tensor: Any = None,
        classes: Classes | Sequence[OutputTarget | int] = None,
        *args: Any,
        **kwargs: Any,
    ) -> Explanation:
        """Decide and explain in one forward pass, at about the price of inference.

        Nothing is back-propagated below the target layer. Works under ``no_grad`` and ``inference_mode`` and for frozen
        models.

        Args:
            input_tensor: The first argument of the model, usually images ``(B, 3, H, W)``. Leave it out for a model
                that is called with keyword arguments alone: ``cam.explain(**processor(...))``.
            classes: None (argmax), an int or ``(B,)`` for one map an image, ``(B, N)`` for several, ``"top5"`` for the
                five with the largest logits (or any other number), ``"all"`` for all. Or what the call takes as
                ``targets``: a list with a target for each image.
            *args: Further arguments of the model.
            **kwargs: Further keyword arguments of the model.

        Returns:
            ``(logits, classes, maps)``, see :class:`Explanation`. Maps are not scaled; half precision is widened.

        Raises:
            TypeError: If the model returns no tensor of logits, or classes are not integers.
            ValueError: If classes are out of range or of the wrong shape, an activation or a logit is NaN or infinite,
                the layer has no spatial dimensions, or the model has lazy layers that never ran.
            RuntimeError: If no layer ran, a layer ran more than once, or the output does not depend on any.
        """
        with self._reader.run(*positional(input_tensor, args, kwargs), **kwargs) as forward:
            return forward.settle(lambda: self.explanation(forward, classes))

    def __call__(
        self,
        input_tensor: Any = None,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        *,
        size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Array:
        """Heat maps at input size: the call of pytorch-grad-cam.

        Args:
            input_tensor: The first argument of the model, usually images ``(B, C, H, W)``, on any device. Leave it out
                for a model that is called with keyword arguments alone.
            targets: One target for each image, see :mod:`diffgradcam.utils.model_targets`, or class indices; None is
                the class with the largest logit.
            aug_smooth: Average over six versions of each image, mirrored or not, times 0.9, 1 and 1.1: as
                :class:`~diffgradcam.AugSmooth`.
            eigen_smooth: First principal component of the weighted activations instead of their sum: as
                :class:`~diffgradcam.EigenSmooth`.
            size: The size of the heat maps, as many numbers as a map has dimensions; by default the spatial size of the
                images, where that is certain.
            **kwargs: Further keyword arguments of the model.

        Warns:
            UserWarning: If batch norm or dropout is in training mode: the maps are then of this batch and this draw.

        Returns:
            float32, ``(B, H, W)``, each map scaled to [0, 1]; signed maps to [-1, 1] with 0 kept at 0. The logits of
            the call are in ``outputs``.

        Raises:
            TypeError: As :meth:`explain`.
            ValueError: As :meth:`explain`; for a wrong number of targets; for a target that is a score of its own where
                this CAM has chosen another score; if the size of the heat maps is not certain.
            RuntimeError: As :meth:`explain`.
        """
        messages.refuse_old_arguments(kwargs)
        cam = self.summed_by_principal_component() if eigen_smooth else self
        inputs = Inputs(positional(input_tensor, (), kwargs), kwargs, self.image)
        if inputs.image is None:
            raise TypeError(
                f"input_tensor is {type(input_tensor).__name__}; expected a tensor of images (B, C, H, W), such as "
                "diffgradcam.utils.image.preprocess_image makes it, or what else the model takes"
            )
        if aug_smooth:
            smoothed, self.outputs = averaged_call(cam, Augmentations(), inputs, targets, size=size)
            return smoothed
        _warn_of_training_mode(self.model)
        parameter = next(self.model.parameters(), None)
        if parameter is not None:
            inputs = inputs.to(parameter.device)
        with cam._reader.run_on(inputs) as forward:
            self.outputs = cam.outputs = forward.logits.detach()
            return forward.settle(lambda: cam._heatmaps(forward, targets, size)).cpu().numpy()

    def summed_by_principal_component(self: _Self) -> _Self:
        """A copy that takes the first principal component of weighted channels, where this one takes their sum."""
        return self.replace(reduction=heatmaps.principal_component) if self._sums_channels() else self

    def explanation(self, forward: ForwardPass, classes: Classes | Sequence[OutputTarget | int]) -> Explanation:
        """Explain a forward pass that was made for this CAM, or for another one that reads the same layers.

        Args:
            forward: The forward pass, not yet checked, see :meth:`ForwardPass.settle`.
            classes: As :meth:`explain`.

        Returns:
            As :meth:`explain`.
        """
        self.class_names.check(forward.logits)
        index, request = self._request(forward, classes)
        maps = self.fuse(self.layer_maps(forward, request), index)
        forward.checks.require_finite("the map", maps)  # gradients overflow in half precision where logits do not
        logits = plain(forward.logits.detach())
        return Explanation(logits, plain(index), plain(maps), class_names=self.class_names, signed=not self.rectify)

    @abstractmethod
    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """Signed maps of each layer.

        Args:
            forward: The forward pass.
            request: What is asked for, ``N`` things of each image.

        Returns:
            ``(B, N, *S)`` for each layer.
        """

    def layer_map(self, activations: Tensor, weights: Tensor) -> Tensor:
        """The signed map of one layer: the reduction of weights times activations.

        Args:
            activations: ``(B, C, *S)``.
            weights: Broadcast to them.

        Returns:
            ``(B, *S)``.

        Raises:
            ValueError: If the weights do not broadcast to the activations.
        """
        weighted = weights * activations
        if weighted.shape != activations.shape:
            raise ValueError(
                f"the weighting returned shape {tuple(weights.shape)}, which does not broadcast to the activations "
                f"{tuple(activations.shape)}"
            )
        return self.reduction(weighted)

    def fuse(self, layers: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Rectify the maps of the layers, if asked for, and fuse them at the size of the largest.

        Args:
            layers: Signed maps ``(B, N, *S)`` of each layer.
            classes: ``(B,)`` or ``(B, N)``.

        Returns:
            ``(B, *S)`` or ``(B, N, *S)``, as the classes are.
        """
        maps = [self._rectified(layer.flatten(0, 1)) for layer in layers]
        size = max((layer.shape[1:] for layer in maps), key=torch.Size.numel)
        return self.fusion(maps, size).reshape(*classes.shape, *size)

    def _request(self, forward: ForwardPass, classes: Classes | Sequence[OutputTarget | int]) -> tuple[Tensor, Request]:
        """Classes, or targets as the call takes them, as class indices and what is asked for."""
        if isinstance(classes, Sequence) and not isinstance(classes, str) and any(map(callable, classes)):
            named, callables = read_targets(classes, len(forward.logits))
            if callables is not None:
                self._check_own_score(callables)
                return forward.logits.new_full((len(callables),), -1, dtype=torch.long), TargetRequest(callables)
            classes = named
        index = forward.classes(classes)  # type: ignore[arg-type]
        return index, ClassRequest(self.score, columns(index))

    def _check_own_score(self, targets: Sequence[OutputTarget]) -> None:
        if self.score != Logit():
            raise ValueError(
                f"target {type(targets[0]).__name__} is a score of its own, but this {type(self).__name__} "
                "explains another score; give ClassifierOutputTarget(class), or explain this target with GradCAM"
            )

    def _heatmaps(
        self, forward: ForwardPass, targets: Sequence[OutputTarget | int] | None, size: Sequence[int] | None
    ) -> Tensor:
        named, callables = read_targets(targets, len(forward.logits))
        _, request = self._request(forward, named if callables is None else callables)
        scale = heatmaps.minmax if self.rectify else heatmaps.scale_signed
        layers = [scale(self._rectified(layer.squeeze(1))) for layer in self.layer_maps(forward, request)]
        if size is None:
            size = forward.inputs.spatial_size(layers[0].ndim - 1, input_channels(inner_model(self.model)))
        found = scale(self.fusion(layers, size)).float()
        forward.checks.require_finite("the map", found)
        return found

    def _rectified(self, maps: Tensor) -> Tensor:
        return heatmaps.rectify(maps) if self.rectify else maps

    def _sums_channels(self) -> bool:
        return self.reduction is BaseCAM.reduction


class ScoredCAM(BaseCAM):
    """A class activation map of a score.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        score: What is explained: a score of :mod:`diffgradcam.scores`, or a function ``(logits (B, K), classes (B,)) ->
            (B,)``.
        **options: As :class:`BaseCAM`.

    Raises:
        ValueError: As :class:`BaseCAM`.
        TypeError: As :class:`BaseCAM`.
    """

    choices: ClassVar[tuple[str, ...]] = ("score", *BaseCAM.choices)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        score: ScoreFunction | None = None,
        **options: Unpack[CAMOptions],
    ) -> None:
        self._choose(score=score)
        super().__init__(model, target_layers, reshape_transform, **options)

    def _described(self) -> dict[str, str]:
        return {"score": callable_name(self.score), **super()._described()}


class TrainableCAM(ScoredCAM):
    """A class activation map from gradients: weights of the activations that are a function of their gradients.

    A published method is a choice of score, weighting, reduction and fusion with a name. Each is an argument, and a
    subclass sets it as a class attribute. Three ways of use: the call and :meth:`explain` of :class:`BaseCAM`, and
    attached (``with``) for differentiable :meth:`maps` of your own forward pass, to train with.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        score: As :class:`ScoredCAM`.
        weighting: From activations and gradients, both ``(B, C, *S)``, to weights that broadcast to them, see
            :mod:`diffgradcam.weightings`.
        **options: As :class:`BaseCAM`.

    Raises:
        ValueError: As :class:`BaseCAM`.
        TypeError: As :class:`BaseCAM`; if there is no weighting.
    """

    weighting: Weighting

    choices: ClassVar[tuple[str, ...]] = ("score", "weighting", *BaseCAM.choices)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        weighting: Weighting | None = None,
        **options: Unpack[ScoredOptions],
    ) -> None:
        self._choose(weighting=weighting)
        if not callable(getattr(self, "weighting", None)):
            raise TypeError(
                f"{type(self).__name__} has no weighting; pass weighting= a function of diffgradcam.weightings, or set "
                "weighting = staticmethod(...) in the class"
            )
        super().__init__(model, target_layers, reshape_transform, **options)

    def _prepare(self) -> None:
        super()._prepare()
        self._image_shape: tuple[int, ...] | None = None
        self._recorder = GraphRecorder(self._reader.layers, inner_model(self.model), _Note(weakref.ref(self)))
        weakref.finalize(self, self._recorder.detach)

    def attach(self: _Trainable) -> _Trainable:
        """Record every forward pass from now on, until :meth:`detach`; ``with`` does both."""
        self._recorder.attach()
        return self

    def detach(self) -> None:
        """Stop recording: remove the hooks."""
        self._recorder.detach()

    def __enter__(self: _Trainable) -> _Trainable:
        """Attach."""
        return self.attach()

    def __exit__(
        self, exception: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()

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
            ValueError: As :meth:`explain`. On a CUDA device, classes out of range fail an assertion there instead, as
                in PyTorch's cross-entropy: a training step must not wait for the device.
            TypeError: As :meth:`explain`.
        """
        if not isinstance(logits, Tensor):
            raise TypeError(f"maps() takes the logits tensor of your forward pass, not {type(logits).__name__}")
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            index = class_index(logits, classes, asserted)
            recorded = self._recorder.recorded(logits)
            recording = Recording(self._reader, logits, recorded, self._image_shape)
            request = ClassRequest(self.score, columns(index))
            return self.fuse(self._in_blocks(recording, request, create_graph=True), index)

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`."""
        maps = forward.linear_maps(request) if self._has_closed_form() else None
        if maps is not None:
            return forward.every_layer([maps])
        return self._in_blocks(forward, request)

    def gradients(self, recording: Recording, request: Request, *, create_graph: bool = False) -> list[Tensor]:
        """What the weighting is given: the gradients ``(B, N, ...)`` of each layer, in the form of its activations."""
        return recording.gradients(request, create_graph=create_graph)

    def _in_blocks(self, recording: Recording, request: Request, *, create_graph: bool = False) -> list[Tensor]:
        """Signed maps ``(B, N, *S)`` of each layer, so many of the ``N`` at once as memory allows."""
        grids = recording.grids()
        done = []
        for block in recording.blocks(request):
            gradients = self.gradients(recording, block, create_graph=create_graph)
            done.append(
                [self._weighted(recording, number, grids[number], rows) for number, rows in enumerate(gradients)]
            )
        whole = done[0] if len(done) == 1 else [torch.cat(layer, 1) for layer in zip(*done, strict=True)]
        return recording.every_layer(whole)

    def _weighted(self, recording: Recording, number: int, grid: Tensor, gradients: Tensor) -> Tensor:
        rows = [recording.to_grid(row, number) for row in gradients.unbind(1)]
        maps = [self.layer_map(grid, self.weighting(grid, row)) for row in rows]
        return torch.stack(maps, 1) if len(maps) > 1 else maps[0].unsqueeze(1)

    def _has_closed_form(self) -> bool:
        """Whether nothing that a subclass or an argument changed stands between the logits' maps and this one's."""
        kind = type(self)
        unchanged = (
            kind.layer_map is BaseCAM.layer_map
            and kind.gradients is TrainableCAM.gradients
            and kind._in_blocks is TrainableCAM._in_blocks
            and kind._weighted is TrainableCAM._weighted
        )
        return unchanged and self._sums_channels() and is_linear(self.weighting)

    def _described(self) -> dict[str, str]:
        described = super()._described()
        return {"score": described.pop("score"), "weighting": callable_name(self.weighting), **described}


class _Note:
    """Notes the shape of the image in each forward pass of the caller."""

    def __init__(self, cam: weakref.ref[TrainableCAM]) -> None:
        self._cam = cam

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cam = self._cam()
        if cam is not None:
            cam._image_shape = Inputs(args, kwargs, cam.image).image_shape


def _warn_of_training_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training and isinstance(module, _BatchNorm | _DropoutNd):
            warnings.warn(
                f"the model is in training mode ({name or 'itself'}, {type(module).__name__}): its maps depend on the "
                "batch and on chance, and batch norm is updated; call model.eval() first",
                stacklevel=3,
            )
            return
