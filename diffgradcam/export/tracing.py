"""A model and its maps as one graph: what ``explain`` computes is traced, gradients included, not written anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .._core.base import BaseCAM
from .._core.editing import in_training
from .._core.errors import NotTraceable
from .._core.tracing import Trace, tracing
from .._core.wrappers import inner_model
from ..methods.smoothing import SmoothedCAM
from .operators import DECOMPOSITIONS

AnyCAM = BaseCAM | SmoothedCAM
FixedClasses = str | int | Sequence[int]
_TOLERANCE = 1e-4  # relative to the largest value of each output; a graph of another formula is further off
_OPEN_SIZE = 97  # of the traced batch: a number that equals no other size, so that nothing is concluded from it


class ModelWithMaps(nn.Module):
    """A model that returns its decision and the reason: ``(logits, classes, maps)``, without autograd.

    :func:`with_maps` makes it. It takes images of the size that it was made with, in batches of any size. Its weights
    are those of the model, by the same names below ``computation.model``; none requires gradients.

    Args:
        graph: What computes all three.
        size: The shape of one image.
        dtype: Of the images.
        explains: What the maps are, for people to read.
    """

    def __init__(self, graph: fx.GraphModule, size: Sequence[int], dtype: torch.dtype, explains: str) -> None:
        super().__init__()
        self.computation = graph
        self.size = tuple(size)
        self.dtype = dtype
        self.explains = explains

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decide and explain.

        Args:
            images: ``(B, *size)``.

        Returns:
            As :meth:`diffgradcam.BaseCAM.explain`: logits ``(B, K)``; classes ``(B,)`` or ``(B, N)``; maps ``(B, h,
            w)`` or ``(B, N, h, w)``.

        Raises:
            ValueError: If the images are of another size.
        """
        if tuple(images.shape[1:]) != self.size:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (B, {', '.join(map(str, self.size))}), the size "
                "that the graph was made with; resize them, or make another graph with example images of their size"
            )
        logits, classes, maps = self.computation(images)
        return logits, classes, maps

    def extra_repr(self) -> str:
        """What the maps are."""
        return self.explains


def with_maps(cam: AnyCAM, example_images: Tensor, classes: FixedClasses = "argmax") -> ModelWithMaps:
    """A module that returns what ``cam.explain(images)`` returns, with no hook and no autograd at run time.

    What ``explain`` does is traced once, gradients included: the score, the weighting, the reduction, the fusion, the
    transform of tokens, and whatever a subclass changed. A gradient becomes the operations that compute it, so the
    module can be compiled, exported and run elsewhere: ``torch.compile(fullgraph=True)``, ``torch.export``, and
    ``torch.onnx.export``, for which there is :func:`~diffgradcam.export.write_onnx`.

    The module is compared with ``explain`` on the example images before it is returned. Values are not checked for NaN
    at run time, and no error can be raised there: where a class would be contrasted with itself its map is 0.

    Args:
        cam: A CAM of a model in evaluation mode, or :class:`~diffgradcam.EigenSmooth` of one.
        example_images: Real images ``(B, *size)``, on the device of the model. Any number of them may be given later,
            all of this size.
        classes: ``"argmax"``; ``"top5"`` or any other number; ``"all"``; a class; or several, the same for every image.

    Returns:
        The module.

    Raises:
        TypeError: If ``cam`` is not a CAM, ``example_images`` is not a floating-point tensor, or ``classes`` is of
            another kind.
        ValueError: If the model is in training mode; otherwise as ``explain``.
        RuntimeError: If it cannot be one graph: the method runs the model many times, as ScoreCAM and the smoothing
            methods do, or draws random numbers, as RandomCAM; or the model, or a function of yours, decides by the
            values of tensors what to compute. The message names the reason.

    Example:
        >>> from diffgradcam import DiffGradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> module = with_maps(DiffGradCAM(model, "0"), torch.rand(2, 3, 8, 8), "all")
        >>> logits, classes, maps = module(torch.rand(5, 3, 8, 8))
        >>> logits.shape, classes.shape, maps.shape
        (torch.Size([5, 2]), torch.Size([5, 2]), torch.Size([5, 2, 6, 6]))
    """
    _check(cam, example_images, classes)
    images = example_images.detach()

    def explain(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, index, maps = cam.explain(batch, _asked(classes, batch))
        return logits, index, maps

    trace = Trace(_pooled_linear_head(cam, images))
    try:
        with tracing(trace), _one_way_to_attend():
            graph = _traced(explain, images)
    except NotTraceable as error:
        raise NotTraceable(f"{_name(cam)} cannot be one graph: {error}") from error
    except Exception as error:  # PyTorch and the model raise all sorts
        explain(images)  # if something else is wrong, its own error says so
        raise NotTraceable(f"{_name(cam)} cannot be one graph: {_short(error)}") from error
    named = _with_names(graph, inner_model(cam.model))
    module = ModelWithMaps(named, images.shape[1:], images.dtype, f"{cam!r}, {classes=}")
    for batch in (images, images[:1]):
        _compare(cam, module, batch, explain(batch))
    return module


def _check(cam: object, images: object, classes: FixedClasses) -> None:
    if not isinstance(cam, AnyCAM):
        given = f"the class {cam.__name__}" if isinstance(cam, type) else type(cam).__name__
        raise TypeError(f"cam is {given}; expected a CAM, such as DiffGradCAM(model, 'layer4')")
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim < 2 or not images.numel():
        what = f"{images.dtype}, {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"example_images are {what}; expected a floating-point tensor of images, (B, C, H, W)")
    if not isinstance(classes, str | int) and not _are_classes(classes):
        raise TypeError(
            f"classes is {classes!r}; expected 'argmax', 'all', 'top5' or another number, a class, or a list of "
            "classes, the same for every image"
        )
    if in_training(cam.model):
        raise ValueError(
            "the model is in training mode, in which it depends on the batch and on chance; call model.eval() first"
        )


def _are_classes(classes: Sequence[int]) -> bool:
    try:
        index = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError):  # of no kind that a tensor has
        return False
    return index.ndim == 1 and not index.is_floating_point() and index.dtype != torch.bool


def _asked(classes: FixedClasses, images: Tensor) -> Any:
    """The classes in the form that ``explain`` takes them in."""
    if isinstance(classes, str):
        return None if classes == "argmax" else classes
    if isinstance(classes, int):
        return classes
    return torch.as_tensor(classes).expand(images.shape[0], -1)


def _pooled_linear_head(cam: AnyCAM, images: Tensor) -> Tensor | None:
    """The weight of the layer that makes the logits, if they are that layer of the mean over the positions."""
    if not isinstance(cam, BaseCAM) or not cam.needs_graph:
        return None
    with cam.reader.run(images) as forward:
        found = forward.pooled_linear_maps()
        return found.weight if found is not None and bool(found.holds) else None


@contextlib.contextmanager
def _one_way_to_attend() -> Iterator[None]:
    """Attention as products and a softmax, not as one operator that few runtimes have."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _PlainPooling(TorchFunctionMode):
    """Pooling to one position as a mean. PyTorch's own may change strides in place, which no other runtime can."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.adaptive_avg_pool2d:
            bound = dict(zip(("input", "output_size"), args, strict=False)) | kwargs
            if bound["output_size"] in (1, (1, 1), [1, 1]):
                return bound["input"].mean((-2, -1), keepdim=True)
        return function(*args, **kwargs)


def _traced(function: Callable[[Tensor], Any], images: Tensor) -> fx.GraphModule:
    """All operators that a function of images runs, autograd's included, for batches of any size."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    sizes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (images.ndim - 1)
    batch = images.new_empty(_OPEN_SIZE, *images.shape[1:])
    fake = mode.from_tensor(batch, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
    with mode, _PlainPooling(), torch.autograd.set_multithreading_enabled(False):
        graph = make_fx(function, DECOMPOSITIONS, "symbolic", _allow_non_fake_inputs=True)(fake)
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            raise NotTraceable(f"it draws random numbers ({node.target})")
    return graph


def _with_names(graph: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Name the weights in a graph as the model does; none requires gradients."""
    names = {id(tensor): f"model.{name}" for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    held: dict[str, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            node.target = names.get(id(value), node.target)
            held[node.target] = nn.Parameter(value.detach(), False) if isinstance(value, nn.Parameter) else value
    return fx.GraphModule(held, graph.graph)


def _compare(cam: AnyCAM, module: ModelWithMaps, images: Tensor, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    try:
        found = module(images)
    except RuntimeError as error:
        raise NotTraceable(f"{_name(cam)} cannot be one graph for any number of images: {_short(error)}") from error
    for name, one, other in zip(("logits", "classes", "maps"), found, expected, strict=True):
        if one.shape != other.shape or not _near(one, other, torch.finfo(images.dtype).eps):
            raise NotTraceable(
                f"{_name(cam)} cannot be one graph: its {name} of the example images differ from those of explain(): "
                "what it computes depends on more than the images, or on how many they are"
            )


def _near(found: Tensor, expected: Tensor, eps: float) -> bool:
    if not found.is_floating_point():
        return torch.equal(found, expected)
    tolerance = max(_TOLERANCE, 4 * eps) * expected.abs().amax() + eps
    return bool(((found - expected).abs() <= tolerance).all())


def _name(cam: AnyCAM) -> str:
    return f"{type(cam).__name__} of {type(inner_model(cam.model)).__name__}"


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
