"""Find the layers that can be explained, by running the model once on two square images and reading the shapes."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._core.axes import channel_axis
from .._core.layers import LayerInput, LayerSpec

Form = Literal["grid", "channels last", "tokens"]

_INPUT = "input:"
# What enters the attention of the last block of a transformer, by the names of torchvision, timm and transformers.
# After it only the class token counts, and the patches have no gradient any more.
_BEFORE_ATTENTION = ("ln_1", "norm1", "norm_out", "layernorm_before")
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Place:
    """A layer that can be explained.

    Attributes:
        name: Dotted name, or ``input:`` and a dotted name for what enters it.
        shape: Of its activations for one image, without the batch: ``(C, h, w)``, ``(h, w, C)`` or ``(N, C)``.
        form: Which of the three shapes it is.
    """

    name: str
    shape: tuple[int, ...]
    form: Form

    @property
    def target(self) -> LayerSpec:
        """As a CAM takes it."""
        return parse_layer(self.name)


class ExplainableLayers(NamedTuple):
    """The layers and their inputs that a dry run found.

    Attributes:
        outputs: Of the layers that ran once and whose output has positions, in the order they ran.
        inputs: The same for what enters layers.
        default: What is explained if no layer is named; None if nothing has positions.
    """

    outputs: list[Place]
    inputs: list[Place]
    default: Place | None

    def offered(self) -> list[Place]:
        """The layers to choose from, the last one first: grids, and of the tokens only the default."""
        places = [place for place in reversed(self.outputs) if place.form != "tokens" or place == self.default]
        return places if self.default is None or self.default in places else [self.default, *places]


class _Event(NamedTuple):
    """A tensor with positions, entering or leaving a module."""

    name: str
    entering: bool
    tensor: Tensor
    form: Form

    def place(self) -> Place:
        return Place((_INPUT if self.entering else "") + self.name, tuple(self.tensor.shape[1:]), self.form)


def parse_layer(name: str) -> LayerSpec:
    """A layer as written in a shell: a dotted name, or ``input:`` and a dotted name.

    Args:
        name: Such as ``"layer4"`` or ``"input:avgpool"``.

    Returns:
        A target layer for any CAM class.

    Example:
        >>> parse_layer("layer4"), parse_layer("input:avgpool")
        ('layer4', LayerInput(layer='avgpool', argument=None))
    """
    return LayerInput(name.removeprefix(_INPUT)) if name.startswith(_INPUT) else name


def find_explainable_layers(model: nn.Module, channels: int, size: int) -> ExplainableLayers:
    """Run the model once and find the layers whose activations have positions, and depend on the image.

    The default is the last of them: the activations that are pooled or flattened next. For a transformer of tokens it
    is what enters the attention of the last block; for other models of tokens, the last tokens, if there are as many
    as the last grid has cells.

    Args:
        model: In evaluation mode. It is left as it is.
        channels: Of the image.
        size: Side of the square image; because it is square, a grid can be told from channels.

    Returns:
        See :class:`ExplainableLayers`.

    Raises:
        ValueError: If the model does not run on such an image.
    """
    events, runs = _dry_run(model, channels, size)
    # Weights of attention, (B, heads, N, N), look like a grid; they go from each of N tokens to each.
    counts = {event.tensor.shape[1] for event in events if event.form == "tokens"}
    events = [event for event in events if event.form != "grid" or event.tensor.shape[2] not in counts]
    once = [event for event in events if runs[event.name] == 1]
    outputs, inputs = ([event.place() for event in once if event.entering is entering] for entering in (False, True))
    return ExplainableLayers(outputs, inputs, _default(events, runs))


def form_of(module: nn.Module, model: nn.Module, shape: torch.Size | tuple[int, ...], size: int) -> Form | None:
    """What the activations of one square image look like; None if they have no positions.

    Args:
        module: What puts them out, or what they enter.
        model: The model.
        shape: Of the activations, with the batch.
        size: Side of the image.

    Returns:
        ``"grid"`` for ``(B, C, h, w)``, ``"channels last"`` for ``(B, h, w, C)``, ``"tokens"`` for ``(B, N, C)``.

    Example:
        >>> norm = nn.LayerNorm(768)
        >>> form_of(norm, norm, (1, 7, 7, 768), 224), form_of(norm, norm, (1, 197, 768), 224)
        ('channels last', 'tokens')
    """
    if len(shape) not in (3, 4):
        return None
    axis = channel_axis(module, model, shape, (size, size))
    if len(shape) == 3:
        return "tokens" if axis == 2 and shape[1] > 1 else None
    if axis is None:
        return None
    rows, columns = (length for number, length in enumerate(shape) if number not in (0, axis))
    return ("grid" if axis == 1 else "channels last") if rows == columns > 1 else None


def _dry_run(model: nn.Module, channels: int, size: int) -> tuple[list[_Event], Counter[str]]:
    events: list[_Event] = []
    runs: Counter[str] = Counter()

    def note(name: str, module: nn.Module, entering: bool, tensor: Any) -> None:
        # As many rows as images: not windows, heads or parts of an image. Rows that differ: no positional embedding.
        if not isinstance(tensor, Tensor) or tensor.shape[:1] != images.shape[:1] or torch.equal(tensor[0], tensor[1]):
            return
        form = form_of(module, model, tensor.shape, size)
        if form is not None:
            events.append(_Event(name, entering, tensor, form))

    def entered(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        runs[name] += 1
        note(name, module, True, args[0] if args else None)

    def left(name: str, module: nn.Module, _args: object, output: Any) -> None:
        if not isinstance(module, _ADAPTIVE):  # their output is what they were told to make of any input
            note(name, module, False, output)

    parameter = next(model.parameters(), torch.zeros(()))
    ramp = torch.linspace(-1, 1, channels * size * size, dtype=parameter.dtype, device=parameter.device)
    images = torch.stack([torch.zeros_like(ramp), ramp]).view(2, channels, size, size)
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(partial(entered, name)).remove)
                hooks.callback(module.register_forward_hook(partial(left, name)).remove)
        try:
            model(images)
        except Exception as error:  # a model can raise anything
            raise ValueError(
                f"{type(model).__name__} does not run on images of shape {tuple(images.shape)}: "
                f"{' '.join(str(error).split())[:300]}; give the size that it takes with --size, and as many --mean "
                "and --std as it has channels"
            ) from error
    return events, runs


def _default(events: list[_Event], runs: Counter[str]) -> Place | None:
    once = [index for index, event in enumerate(events) if runs[event.name] == 1]
    grid = max((index for index in once if events[index].form != "tokens"), default=None)
    attention = max((index for index in once if _before_attention(events[index])), default=None)
    if attention is not None and (grid is None or attention > grid):
        return events[attention].place()
    if grid is None:
        return None
    last = events[grid]
    # Blocks of tokens without attention, such as gated MLPs: pooled where a grid would be.
    if events[once[-1]].form == "tokens" and events[once[-1]].tensor.shape[1] == _cells(last):
        last = events[once[-1]]
    # The same tensor goes by the name of what made it, unless that made others too (a shared activation).
    maker = [event for event in events if event.tensor is last.tensor and not event.entering][-1:]
    return maker[0].place() if maker and runs[maker[0].name] == 1 else last.place()


def _cells(grid: _Event) -> int:
    _, *lengths = grid.tensor.shape
    lengths.pop(0 if grid.form == "grid" else -1)
    return lengths[0] * lengths[1]


def _before_attention(event: _Event) -> bool:
    return event.form == "tokens" and not event.entering and event.name.split(".")[-1] in _BEFORE_ATTENTION
