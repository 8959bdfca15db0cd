"""The arguments of a model: which of them is the image, and the same arguments for other images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .axes import image_size
from .checks import described
from .tensors import normal, outside_inference_mode

ImageOf = int | str | Callable[[tuple[Any, ...], dict[str, Any]], Tensor] | None

_MOST_FOLLOWERS = 3


class Inputs:
    """The arguments of one forward pass.

    Args:
        args: Positional arguments: tensors, or lists and dictionaries of them, or anything else.
        kwargs: Keyword arguments, likewise.
        image: Which of them is the image: a position, a keyword, or a function of ``(args, kwargs)`` that returns it.
            By default the first floating-point tensor that can be images, ``(B, C, *S)``, or else the first tensor.

    Raises:
        TypeError: If ``image`` is something else, or names no tensor.
        ValueError: If there is no such argument.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], image: ImageOf = None) -> None:
        with outside_inference_mode():
            self.args: tuple[Any, ...] = mapped(args, normal)
            self.kwargs: dict[str, Any] = mapped(kwargs, normal)
        self.image: Any = self._find(image)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape of the image argument; None if there is none."""
        return tuple(self.image.shape) if isinstance(self.image, Tensor) else None

    def spatial_size(self, dims: int, channels: int | None = None) -> tuple[int, ...]:
        """The spatial size of the image, which heat maps are resized to.

        Args:
            dims: How many dimensions a map has.
            channels: How many the model takes, see :func:`~.axes.input_channels`.

        Returns:
            As many numbers.

        Raises:
            ValueError: If the image is not ``(B, C, *S)`` with as many spatial dimensions.
        """
        size = None if self.image_shape is None else image_size(self.image_shape, channels)
        if size is not None and len(size) == dims:
            return size
        raise ValueError(
            f"the size of the heat maps is not certain: the maps have {dims} dimensions, and the image is "
            f"{described(self.image)}, not (B, C, *S) with as many; pass size=, such as size={(224,) * dims}, or use "
            "explain() for maps at the resolution of the layer"
        )

    def to(self, device: torch.device) -> Inputs:
        """The same arguments with their tensors on a device."""
        other = object.__new__(Inputs)
        other.image = self.image

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device == device:
                return value
            moved = value.to(device)
            if value is self.image:
                other.image = moved
            return moved

        other.args, other.kwargs = mapped(self.args, move), mapped(self.kwargs, move)
        return other

    def replaced(self, images: Tensor, rows: Tensor | None = None, following: tuple[Tensor, ...] = ()) -> Inputs:
        """The same arguments for other images.

        Args:
            images: ``(M, ...)``, in place of the image.
            rows: Which image each of them was made from, ``(M,)``.
            following: The tensors, of :meth:`candidates`, that have a row for each image: their rows go along.

        Returns:
            The arguments, those given untouched.
        """

        def change(value: Any) -> Any:
            if value is self.image:
                return images
            if rows is not None and any(value is each for each in following):
                return value[rows.to(value.device)]
            return value

        other = object.__new__(Inputs)
        other.args, other.kwargs, other.image = mapped(self.args, change), mapped(self.kwargs, change), images
        return other

    def candidates(self, batch: int) -> tuple[Tensor, ...]:
        """Other tensors with as many rows as there are images, each once: perhaps a row for each image, perhaps not."""
        found: dict[int, Tensor] = {
            id(value): value
            for value in _leaves((self.args, self.kwargs))
            if isinstance(value, Tensor) and value is not self.image and value.ndim and len(value) == batch
        }
        return tuple(found.values())

    def _find(self, image: ImageOf) -> Any:
        if image is None:
            return _first_image((self.args, self.kwargs))
        if isinstance(image, bool) or not (isinstance(image, int | str) or callable(image)):
            raise TypeError(f"image is {image!r}; expected a position, a keyword, or a function of (args, kwargs)")
        if callable(image):
            found: Any = image(self.args, self.kwargs)
            if not any(found is value for value in _leaves((self.args, self.kwargs))):
                raise ValueError(
                    f"image= returned {described(found)} that is not an argument of the model; return one of the "
                    "tensors of (args, kwargs) itself, such as lambda args, kwargs: args[0]['image']"
                )
        else:
            named = by_name(self.args, self.kwargs)
            if image not in named:
                raise ValueError(
                    f"image is {image!r}, but the model was called with the arguments {list(named)}; name one of these"
                )
            found = _first_image(named[image])
        if not isinstance(found, Tensor):
            raise TypeError(f"image={image!r} is {described(found)}; expected a tensor")
        return found


def positional(input_tensor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The positional arguments of the model.

    Args:
        input_tensor: The first; None also where it was left out.
        args: Those that follow.
        kwargs: The keyword arguments.

    Returns:
        All of them: none for a model that is called with keyword arguments alone.
    """
    return () if input_tensor is None and kwargs and not args else (input_tensor, *args)


def following_rows(inputs: Inputs, logits: Tensor, run: Callable[[Inputs], Tensor]) -> tuple[Tensor, ...]:
    """Which other arguments have a row for each image, found out by running the model on one of them.

    As many rows as images prove nothing: two prompts for two images may be of both. So the model runs on the last image
    alone, with the rows of the candidates or with all of them, until its logits are those that it had before.

    Args:
        inputs: The arguments.
        logits: What the model made of them, ``(B, K)``.
        run: Runs the model, without gradients.

    Returns:
        The tensors of the arguments that follow the images.

    Raises:
        ValueError: If no choice gives the same logits.
    """
    batch = len(logits)
    if len(inputs.image) != batch:
        raise ValueError(
            f"the image argument is {described(inputs.image)} for {batch} rows of logits; expected one row for each; "
            "where another argument is the image, name it with image="
        )
    candidates = inputs.candidates(batch)
    if not candidates:
        return ()
    rows = torch.full((1 if batch > 1 else 2,), batch - 1)
    if len(candidates) <= _MOST_FOLLOWERS:
        for count in range(len(candidates), -1, -1):
            for following in itertools.combinations(candidates, count):
                if _same_logits(inputs, logits, run, rows, following):
                    return following
    shapes = ", ".join(str(tuple(value.shape)) for value in candidates)
    raise ValueError(
        f"other arguments, of shape {shapes}, have as many rows as there are images, and running one image alone does "
        "not tell whether these rows belong to the images; give one image at a time, and put the model in evaluation "
        "mode if a part of it is in training mode"
    )


def _same_logits(
    inputs: Inputs, logits: Tensor, run: Callable[[Inputs], Tensor], rows: Tensor, following: tuple[Tensor, ...]
) -> bool:
    images = inputs.image[rows.to(inputs.image.device)]
    try:
        again = run(inputs.replaced(images, rows, following))
    except Exception:  # a model can raise anything where shapes do not fit
        return False
    before = logits[rows.to(logits.device)]
    if not isinstance(again, Tensor) or again.shape != before.shape:
        return False
    scale = before.detach().abs().amax() if before.numel() else before.new_zeros(())
    return bool(((again - before).abs() <= 1e-3 * scale + 1e-6).all())


def by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Arguments by position or keyword."""
    named: dict[int | str, Any] = dict(enumerate(args))
    named.update(kwargs)
    return named


def _first_image(value: Any) -> Any:
    """The first floating-point tensor that can be images; else the first of floating point; else the first."""
    floating = other = None
    for leaf in _leaves(value):
        if not isinstance(leaf, Tensor):
            continue
        if not leaf.is_floating_point():
            other = leaf if other is None else other
        elif leaf.ndim > 2:
            return leaf
        elif floating is None:
            floating = leaf
    return other if floating is None else floating


def _leaves(value: Any) -> Iterator[Any]:
    if type(value) in (list, tuple):
        for each in value:
            yield from _leaves(each)
    elif type(value) is dict:
        for each in value.values():
            yield from _leaves(each)
    else:
        yield value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Lists, tuples and dictionaries with their leaves changed; other containers are leaves."""
    if type(value) in (list, tuple):
        return type(value)([mapped(each, change) for each in value])
    if type(value) is dict:
        return {name: mapped(each, change) for name, each in value.items()}
    return change(value)
