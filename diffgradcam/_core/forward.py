"""One forward pass that reads layers: the only one of the library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from . import messages
from .axes import grid_of
from .deferred import DeferredChecks
from .errors import HeadIsNotPooledLinear, NotTraceable
from .gradients import activation_gradients
from .inputs import ImageOf, Inputs, following_rows
from .layers import Layer, LayerSpec, Run, find_layers
from .outputs import Classes, check_rows, class_index, find_logits
from .pooled_linear import PooledLinearMaps, linear_maps, pooled_linear_maps, recorded_head
from .recorder import CutRecorder, Recorded
from .requests import ClassRequest, Request
from .tensors import outside_inference_mode, take, widen
from .tracing import current_trace
from .upper import Change, FromLayer
from .wrappers import any_compiled, every_module, force_eager, inner_model

_T = TypeVar("_T")
_AS_IT_IS = contextlib.nullcontext()
_PROBABILITY_TOLERANCE = 1e-3
_FEW_CLASSES = 10  # so many maps cost less one by one than asking whether there is a closed form
Output = Callable[[Any], Tensor]
ReshapeTransform = Callable[[Tensor], Tensor]


class Recording:
    """Logits, and the activations of layers that they were computed from.

    Args:
        reader: What reads the layers.
        logits: ``(B, K)``, or whatever the model puts out, with the graph down to the activations.
        recorded: What was recorded of each layer.
        image: The shape of the image argument; None if there is none.

    Raises:
        ValueError: If the activations of a layer are not a grid of places in the image, for each image.
    """

    def __init__(
        self, reader: LayerReader, logits: Tensor, recorded: Sequence[Recorded], image: tuple[int, ...] | None
    ) -> None:
        self.logits = logits
        self.used = [each.activations is not None for each in recorded]
        self.layers = [each.layer for each in recorded if each.activations is not None]
        self.activations = [each.activations for each in recorded if each.activations is not None]
        self._reader = reader
        self._grids: list[ReshapeTransform] = []
        given = reader.reshape_transform
        for layer, tensor in zip(self.layers, self.activations, strict=True):
            if given is None:
                check_rows(layer.name, tensor, logits)
            self._grids.append(reader.grid_of(layer, tensor, image))
            if given is not None:
                check_rows(layer.name, self._grids[-1](tensor), logits)

    @property
    def names(self) -> str:
        """The names of the layers, for messages."""
        return ", ".join(layer.name for layer in self.layers)

    def add(self, layers: Sequence[Layer], activations: Sequence[Tensor]) -> None:
        """Read more than the layers that were asked for.

        Args:
            layers: What is read.
            activations: ``(B, C, *S)`` of each, in the graph of the logits.
        """
        self.layers += layers
        self.activations += activations
        self._grids += [lambda tensor: tensor] * len(layers)
        self.used += [True] * len(layers)

    def to_grid(self, tensor: Tensor, number: int = 0) -> Tensor:
        """Activations of a layer, or their gradients, as ``(B, C, *S)``, in float32 or wider.

        Args:
            tensor: The activations or gradients.
            number: Which of the layers that were used.

        Returns:
            ``(B, C, *S)``.
        """
        return widen(self._grids[number](tensor))

    def grids(self) -> list[Tensor]:
        """The activations of each layer that was used, ``(B, C, *S)``."""
        return [self.to_grid(tensor, number) for number, tensor in enumerate(self.activations)]

    def blocks(self, request: Request) -> Sequence[Request]:
        """A request in parts, which bound the memory of what is computed for each thing asked for."""
        blocks = request.blocks(sum(tensor.shape[1:].numel() for tensor in (self.logits, *self.activations)))
        if len(blocks) > 1 and current_trace() is not None:
            raise NotTraceable(
                "so many classes need a gradient each, and a graph takes at most 64; all classes have a closed form "
                "where GradCAM, DiffGradCAM or HiResCAM explains the layer that is pooled before the linear layer; "
                "elsewhere give fewer, such as classes='top5'"
            )
        return blocks

    def gradients(self, request: Request, *, create_graph: bool = False) -> list[Tensor]:
        """The gradients of what is asked for, with respect to the activations of each layer that was used.

        Args:
            request: What is asked for, ``N`` things of each image.
            create_graph: Keep the graph, so that the result can be differentiated.

        Returns:
            ``(B, N, ...)`` for each layer, in the form of its activations.
        """
        head = None if create_graph else recorded_head(self.logits, self.activations)
        if head is not None:
            return [head.at_activations(request.products(self.logits, head.weight))]
        cotangents = request.cotangents(self.logits, create_graph=create_graph)
        return activation_gradients(
            self.logits,
            self.activations,
            cotangents,
            create_graph=create_graph,
            independent=lambda: messages.independent(self.names, self._reader.model_to_run()),
        )

    def every_layer(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Add a map of zeros for each layer that was not used.

        Args:
            maps: Of each layer that was used, ``(B, N, *S)``.

        Returns:
            Of each layer; zeros have one position.
        """
        if all(self.used):
            return list(maps)
        given = iter(maps)
        zeros = maps[0].new_zeros(*maps[0].shape[:2], *[1] * (maps[0].ndim - 2))
        return [next(given) if used else zeros for used in self.used]


class ForwardPass(Recording):
    """A forward pass that the library made, and what it takes to make others like it.

    Values are checked in one go at the end of the block that :meth:`LayerReader.run` opens, see
    :class:`~.deferred.DeferredChecks`.
    """

    def __init__(
        self,
        reader: LayerReader,
        inputs: Inputs,
        logits: Tensor,
        recorded: Sequence[Recorded],
        autocast: torch.dtype | None,
    ) -> None:
        self.inputs = inputs
        self._autocast = autocast
        self._closed_form_holds = True
        self._following: tuple[Tensor, ...] | None = None
        super().__init__(reader, logits, recorded, inputs.image_shape)
        self.checks = DeferredChecks()
        self.checks.require_finite("the output", logits)
        for layer, tensor in zip(self.layers, self.activations, strict=True):
            self.checks.require_finite(f"the activation of layer {layer.name}", tensor)

        if current_trace() is None and reader.first_time() and logits.ndim == 2 and logits.shape[1] > 1 and len(logits):
            off = ((logits.sum(1) - 1).abs().amax() + (-logits.amin()).clamp_min(0)).detach()
            self.checks.notice(off < _PROBABILITY_TOLERANCE, messages.probabilities)

    @property
    def image(self) -> Any:
        """The image argument of the model, or None."""
        return self.inputs.image

    def classes(self, classes: Classes) -> Tensor:
        """Class indices, ``(B,)`` or ``(B, N)``, see :func:`~.outputs.class_index`."""
        return class_index(self.logits, classes, self.checks.require)

    def linear_maps(self, request: Request) -> Tensor | None:
        """The maps of a method whose weights are the gradients, where these are the same at all positions.

        A head that autograd recorded is known. For many classes it pays to look for every other head of this kind, and
        to take the maps of the logits for granted until :meth:`settle` has checked them.

        Args:
            request: What is asked for, ``N`` things of each image.

        Returns:
            Signed maps ``(B, N, *S)``; None if the gradients may differ between the positions.
        """
        if isinstance(request, ClassRequest) and request.classes.shape[1] > _FEW_CLASSES:
            maps = self._logit_maps()
            return None if maps is None else linear_maps(maps, request.score, self.logits, request.classes)
        head = recorded_head(self.logits, self.activations) if self._reader.reshape_transform is None else None
        if head is None:
            return None
        features = self._grids[0](self.activations[0])  # they themselves, or with the last axis as the second
        if head.channels != (1 if features is self.activations[0] else features.ndim - 1):
            return None
        return head.maps(request.products(self.logits, head.weight), widen(features))

    def _logit_maps(self) -> Tensor | None:
        found = self.pooled_linear_maps() if self._closed_form_holds else None
        if found is None:
            return None
        self.checks.require(found.holds, HeadIsNotPooledLinear)
        return found.maps

    def pooled_linear_maps(self) -> PooledLinearMaps | None:
        """The maps of all logits and whether they hold, see :func:`~.pooled_linear.pooled_linear_maps`."""
        if not all(self.used):
            return None
        return pooled_linear_maps(self._reader.model_to_run(), self.logits, self.activations, self.to_grid)

    def settle(self, compute: Callable[[], _T]) -> _T:
        """Compute something, then check all that it took for granted, in one wait for the device.

        Args:
            compute: Is called again where the head turns out to be of another kind than the closed form expects.

        Returns:
            What it returns.

        Raises:
            ValueError: If an activation, a logit or a result is not finite.
        """
        try:
            result = compute()
            self.checks.verify()
        except HeadIsNotPooledLinear:
            self._closed_form_holds = False
            result = compute()
            self.checks.verify()
        return result

    def again(self, images: Any) -> contextlib.AbstractContextManager[ForwardPass]:
        """The same forward pass, with its graph, for other images in place of the image.

        Args:
            images: As many as the images, in the same order.

        Returns:
            A context manager, as of :meth:`LayerReader.run`.
        """
        return self._again(self.inputs.replaced(images))

    def on_rows(self, images: Tensor, rows: Tensor) -> Tensor:
        """The model's output for other images, without gradients.

        Args:
            images: ``(M, ...)``, in place of the image.
            rows: Which of the images each was made from, ``(M,)``. Arguments that have a row for each image follow.

        Returns:
            ``(M, K)``.
        """
        return self._run_without_graph(self._versions(images, rows))

    def from_layer(self, number: int, change: Change) -> FromLayer:
        """The model with other activations of a layer, from there on where that is possible, see :class:`.FromLayer`.

        Args:
            number: Which of the layers that were used.
            change: Makes the other activations.

        Returns:
            A function of versions of the images.
        """
        model, image = self._reader.model_to_run(), self.image

        def whole(rows: Tensor) -> Tensor:
            return self.on_rows(image[rows.to(image.device)], rows)

        def replica(replicated: nn.Module, rows: Tensor) -> Tensor:
            return self._run_without_graph(self._versions(take(image, rows), rows), replicated)

        return FromLayer(model, self.layers[number], whole, replica, change, self.logits.detach())

    def _versions(self, images: Tensor, rows: Tensor) -> Inputs:
        return self.inputs.replaced(images, rows, self.find_following())

    def find_following(self) -> tuple[Tensor, ...]:
        """Other arguments of the model that have a row for each image, found out once: see :func:`.following_rows`."""
        if self._following is None:
            self._following = following_rows(self.inputs, self.logits.detach(), self._run_without_graph)
        return self._following

    def _run_without_graph(self, inputs: Inputs, model: nn.Module | None = None) -> Tensor:
        _refuse_to_trace()
        model = self._reader.model_to_run() if model is None else model
        with torch.no_grad(), self.mixed_precision():
            return self._reader.output(model(*inputs.args, **inputs.kwargs))

    @contextlib.contextmanager
    def _again(self, inputs: Inputs) -> Iterator[ForwardPass]:
        _refuse_to_trace()
        with self.mixed_precision(), self._reader.run_on(inputs) as other:
            yield other

    def mixed_precision(self) -> torch.autocast:
        """The autocast that the forward pass was made under."""
        enabled = self._autocast is not None
        return torch.autocast(self.logits.device.type, self._autocast, enabled, cache_enabled=False)


class LayerReader:
    """Runs a model and reads what its layers put out.

    Args:
        model: The model, wrapped or not.
        target_layers: See :func:`~.layers.find_layers`.
        reshape_transform: Brings activations into the form ``(B, C, *S)``.
        output: Takes the logits out of what the model returns.
        image: Which argument is the image, see :class:`~.inputs.Inputs`.
        run: Which run of a layer that runs several times.
        graph: Whether a graph from the layers to the logits is needed.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a target layer is not a layer of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        output: Output = find_logits,
        *,
        image: ImageOf = None,
        run: Run = None,
        graph: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {type(model).__name__}; expected a torch.nn.Module")
        if not callable(output):
            raise TypeError(f"output is {output!r}; expected a function")
        if reshape_transform is not None and not callable(reshape_transform):
            raise TypeError(f"reshape_transform is {reshape_transform!r}; expected a function or None")
        self.model = model
        self.layers = find_layers(inner_model(model), target_layers, run)
        self.reshape_transform = reshape_transform
        self.output = output
        self.image = image
        self.graph = graph
        self._ran = False
        self._grids: dict[Layer, tuple[object, ReshapeTransform]] = {}

    def first_time(self) -> bool:
        """Whether this is asked for the first time: what is noticed of a model is said once."""
        first, self._ran = not self._ran, True
        return first

    def differences(self, other: LayerReader) -> list[str]:
        """In what another reader differs, so that no forward pass serves both; empty if one does."""
        same = {
            "the model": inner_model(self.model) is inner_model(other.model),
            # One layer may go by several names: what is read counts.
            "the target layers": [layer[:-1] for layer in self.layers] == [layer[:-1] for layer in other.layers],
            "how the model runs": type(self) is type(other),
            "output=": self.output == other.output,
            "reshape_transform=": self.reshape_transform == other.reshape_transform,
            "image=": self.image == other.image,
        }
        return [what for what, holds in same.items() if not holds]

    def model_to_run(self) -> nn.Module:
        """The model without what wraps it."""
        return inner_model(self.model)

    def grid_of(self, layer: Layer, activations: Tensor, image: tuple[int, ...] | None) -> ReshapeTransform:
        """As :func:`~.axes.grid_of`; what was found out without a transform is kept until another shape comes."""
        if self.reshape_transform is not None or current_trace() is not None:
            return grid_of(layer, self.model_to_run(), activations, image, self.reshape_transform)
        shapes = (activations.shape, image)
        known = self._grids.get(layer)
        if known is None or known[0] != shapes:
            known = self._grids[layer] = shapes, grid_of(layer, self.model_to_run(), activations, image)
        return known[1]

    def run(self, *args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[ForwardPass]:
        """Run the model without gradients up to the first layer, and with them from there to the logits.

        Args:
            *args: Of the model.
            **kwargs: Of the model.

        Returns:
            A context manager of the :class:`ForwardPass`. Within its block autocast and gradients are off. At its end
            values are checked, and that no weight has changed meanwhile.

        Raises:
            TypeError: If the model returns no tensor of logits.
            ValueError: If an activation or a logit is not finite, activations are not a grid of positions, or the model
                has lazy layers that never ran.
            LayerDidNotRun: If no layer ran.
            RuntimeError: If the logits do not depend on any layer.
        """
        messages.refuse_old_arguments(kwargs)
        return self.run_on(Inputs(args, kwargs, self.image))

    @contextlib.contextmanager
    def run_on(self, inputs: Inputs) -> Iterator[ForwardPass]:
        """As :meth:`run`, with arguments that were read before."""
        model = self.model_to_run()
        survey = _survey(model, graph=self.graph)
        eager = force_eager() if survey.compiled else _AS_IT_IS
        # cuDNN has no backward pass of a recurrent layer in evaluation mode; PyTorch's own has.
        native = torch.backends.cudnn.flags(enabled=False) if survey.recurrent and self.graph else _AS_IT_IS
        with outside_inference_mode(), torch.no_grad(), _NoAutocastCache(), eager, native:
            with CutRecorder(self.layers, graph=self.graph) as recorder:
                logits = self.output(model(*inputs.args, **inputs.kwargs))
            _check_logits(logits)
            torch.set_grad_enabled(False)  # the graph is there; what is computed from it needs none
            device = logits.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            with _AS_IT_IS if autocast is None else torch.autocast(device, enabled=False):
                recorded = recorder.recorded(model)
                if self.graph and not logits.requires_grad:
                    raise RuntimeError(messages.independent(", ".join(layer.name for layer in self.layers), model))
                forward = ForwardPass(self, inputs, logits, recorded, autocast)
                with forward.checks:
                    yield forward
            if [weight._version for weight in survey.weights] != survey.versions:
                raise RuntimeError(messages.changed_meanwhile())  # another thread trains the model


def _refuse_to_trace() -> None:
    if current_trace() is not None:
        raise NotTraceable("it runs the model again, on changed images, and a graph holds one forward pass")


def _check_logits(logits: object) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"output= returned {type(logits).__name__}; expected the tensor of logits")
    if logits.ndim == 0:
        raise ValueError("the model's output is a single number for the whole batch; expected a row for each image")


class _NoAutocastCache:
    """Autocast keeps the weights that it casts, in PyTorch 2.6 also without their graph, for the caller's next step."""

    def __enter__(self) -> None:
        self._before = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.set_autocast_cache_enabled(self._before)


class _Survey(NamedTuple):
    """What matters of the modules and weights of a model before it runs.

    Attributes:
        compiled: Whether a module runs compiled code.
        recurrent: Whether a module is recurrent.
        weights: Those whose changes in place autograd counts: all but those made in inference mode.
        versions: Of each of these, how often it was changed so far.
    """

    compiled: bool
    recurrent: bool
    weights: list[nn.Parameter]
    versions: list[int]


def _survey(model: nn.Module, *, graph: bool) -> _Survey:
    """Look at each module and weight once. For a small model this is a good part of what an explanation costs."""
    modules = every_module(model)
    weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
    if nn.UninitializedParameter in set(map(type, weights)):
        raise ValueError("the model has lazy layers without parameters yet; run it once, on any batch, first")
    try:
        versions = [weight._version for weight in weights]
    except RuntimeError as error:  # nobody counts the changes of those made in inference mode
        if graph:
            raise RuntimeError(messages.inference_weights()) from error
        weights = [weight for weight in weights if not weight.is_inference()]
        versions = [weight._version for weight in weights]
    recurrent = any(issubclass(kind, nn.RNNBase) for kind in set(map(type, modules)))
    return _Survey(any_compiled(modules), recurrent, weights, versions)
