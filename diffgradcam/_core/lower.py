"""Which layer lies below another, found by running the model once on an image.

What names and the order of registration say of a model may be wrong; what its autograd graph says is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from .axes import grid_of
from .layers import Layer, LayerSpec, find_layers
from .recorder import Recorder, Seen
from .tensors import normal, outside_inference_mode
from .wrappers import eagerly

_MIXED = 0.03
"""How much the gradient of one place must depend on another, of how much it depends on any. What comes from all places
alike, as through a gate, does not count: it moves nothing."""
_PADDING = (_CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd)
"""What they put out is larger than what entered them: its places are not those of the image."""
_TRIES = 32  # layers, each of which costs a backward pass for one image


class _Event(NamedTuple):
    """Activations at the moment they left a layer, or entered it.

    Attributes:
        layer: The layer.
        tensor: The activations.
        edge: Where they are in the graph; what later happens to the tensor in place does not change it.
    """

    layer: Layer
    tensor: Tensor
    edge: GradientEdge


def find_lower_layer(
    model: nn.Module,
    target_layers: LayerSpec | Sequence[LayerSpec],
    image: Tensor,
    output: Callable[[Any], Tensor],
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
) -> str | None:
    """The nearest layer below the target layer that says something else about where.

    Everything that the logits have of the image passes through it, it runs once, at least something that mixes
    neighbouring places lies between the two, such as a convolution of 3 x 3 cells, and its grid is not coarser. It
    costs a forward pass and a few short backward passes for one image.

    Args:
        model: In evaluation mode, without wrappers. It is left as it is.
        target_layers: As a CAM takes them; of several, the lowest counts.
        image: A batch of one, as the model takes it.
        output: Takes the logits out of what the model returns.
        reshape_transform: As a CAM takes it.

    Returns:
        A dotted name; None if there is no such layer, or nothing below the target layer can be differentiated.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten())
        >>> find_lower_layer(model, "3", torch.rand(1, 3, 8, 8), lambda outputs: outputs)
        '1'
    """
    targets = find_layers(model, target_layers)
    names = [Layer(module, False, None, "all", name) for name, module in model.named_modules() if name]
    names = [layer for layer in names if not isinstance(layer.module, (torch.jit.ScriptModule, *_PADDING))]
    with outside_inference_mode(), torch.enable_grad(), eagerly(model):
        pixels = normal(image.detach()).clone().requires_grad_(image.is_floating_point())
        with _Watcher([*targets, *names], targets=len(targets)) as watcher:
            try:
                logits = output(model(pixels.clone()))  # a copy: the first layer may work in place
            except RuntimeError:  # it runs, but not so that autograd can follow
                return None
        if watcher.target is None or not logits.requires_grad:
            return None
        starts = {edge.node for edge in watcher.starts}
        if pixels.requires_grad:
            starts.add(get_gradient_edge(pixels).node)
        cuts = _cuts(get_gradient_edge(logits).node, starts)

        def on_grid(event: _Event, values: Tensor) -> Tensor:
            return grid_of(event.layer, model, event.tensor, tuple(image.shape), reshape_transform)(values)

        upper = on_grid(watcher.target, watcher.target.tensor)
        strongest = upper.detach().square().sum(1)[0].argmax()  # there the gradient is least likely to be 0
        place = [int(index) for index in torch.unravel_index(strongest, upper.shape[2:])]
        # With weights of any kind: the plain sum is constant behind a layer norm, and its gradient only rounding.
        weights = torch.rand(upper.shape[1], generator=torch.Generator().manual_seed(0)).to(upper)
        values = weights @ upper[0].flatten(1)[:, strongest]
        below = [
            event
            for event in reversed(watcher.below)
            if watcher.runs[event.layer.name] == 1 and event.edge.node in cuts
        ]
        for event in below[:_TRIES]:
            try:
                size = on_grid(event, event.tensor).shape[2:]
            except ValueError:  # no places in the image
                continue
            if len(size) != len(place) or any(a < b for a, b in zip(size, upper.shape[2:], strict=True)):
                continue
            try:
                (gradient,) = torch.autograd.grad(values, [event.edge], retain_graph=True, allow_unused=True)
            except RuntimeError:  # an operation that has no gradient
                return None
            if gradient is not None and _mixes(on_grid(event, gradient), place, upper.shape[2:]):
                return event.layer.name
    return None


class _Watcher(Recorder):
    """Notes what leaves every layer until the first of the target layers has run, and starts a graph where none is.

    Args:
        layers: The target layers, then all others.
        targets: How many target layers there are.

    Attributes:
        below: What left a layer before the target layer was reached, in that order.
        runs: How often each layer ran in all.
        starts: Where the graph was started.
        target: What the target layer puts out, or what enters it.
    """

    def __init__(self, layers: Sequence[Layer], *, targets: int) -> None:
        super().__init__(layers)
        self._targets = targets
        self.below: list[_Event] = []
        self.runs: Counter[str] = Counter()
        self.starts: list[GradientEdge] = []
        self.target: _Event | None = None

    def record(self, index: int, seen: Seen) -> Tensor | None:
        """See :meth:`Recorder.record`."""
        tensor, layer = seen.tensor, self.layers[index]
        self.runs[layer.name] += index >= self._targets
        if self.target is not None or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return None
        if not torch.is_grad_enabled():
            return None
        passed_on = None
        if not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
            self.starts.append(get_gradient_edge(tensor))
            passed_on = tensor.clone()  # a leaf may not be changed in place
        event = _Event(layer, tensor, get_gradient_edge(tensor))
        if index < self._targets:
            self.target = event._replace(tensor=tensor.clone())  # which stays, whatever is done in place later
        else:
            self.below.append(event)
        return passed_on


def _cuts(output: Node, starts: set[Node]) -> set[Node]:
    """The nodes that every way from the output to a start passes through."""
    leading = _leading(output, starts)
    waiting = Counter(child for node in leading for child in _children(node) & leading)
    cuts, open_nodes, ready = set(), {output}, [output]
    while ready:
        node = ready.pop()
        if len(open_nodes) == 1:
            cuts.add(node)
        if node not in starts:  # a way that ended at a start stays open: no later node is on it
            open_nodes.discard(node)
        for child in _children(node) & leading:
            open_nodes.add(child)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    return cuts


def _leading(output: Node, starts: set[Node]) -> set[Node]:
    """The nodes from which a way leads to a start."""
    leading: set[Node] = set()
    seen, stack = {output}, [(output, iter(_children(output)))]
    while stack:
        node, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            if node in starts or _children(node) & leading:
                leading.add(node)
        elif child not in seen:
            seen.add(child)
            stack.append((child, iter(_children(child))))
    return leading


def _children(node: Node) -> set[Node]:
    return {child for child, _ in node.next_functions if child is not None}


def _mixes(gradient: Tensor, place: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a place of a grid of a size depends on other places of the layer, given its gradient ``(1, C, h, w)``."""
    rows = gradient.cpu().double()[0].flatten(1)
    strength = (rows - rows.median(1, keepdim=True).values).norm(dim=0).view(gradient.shape[2:])
    spans = zip(place, strength.shape, size, strict=True)
    own = tuple(slice(index * of // cells, -(-(index + 1) * of // cells)) for index, of, cells in spans)
    others = strength.clone()
    others[own] = 0
    return float(others.max()) > _MIXED * float(strength.max())
