"""HOW without gradients: the model runs again and again on perturbed inputs, and the change of the score is the weight.

Score-CAM and its relatives mask the image with each channel of the layer; Ablation-CAM takes one channel of the layer
away at a time. Both obey ``score=``: a contrast there makes a contrastive method. One run on the perturbed inputs
serves all classes that are explained. The price is a forward pass for each channel of each image (times ``samples``).
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn, final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import heatmaps, scores
from .._core.base import BaseCAM
from .._core.checks import check_count, check_scores, check_std, described
from .._core.forward import Pass
from .._core.gradients import class_blocks, widen
from .._core.layers import Layer, Target
from .._core.outputs import Classes, check_finite, find_logits
from ..targets import OutputTarget

_SHOW_AFTER_SECONDS = 2

Measure = Callable[[Tensor, Tensor], Tensor]
Inputs = Callable[[Tensor, Tensor], Tensor]
Change = Callable[[Tensor], Tensor]


class PerturbationCAM(BaseCAM):
    """A CAM whose weights come from running the model on perturbed inputs. It needs no gradient.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`. Every layer costs a forward pass for each of its channels.
        reshape_transform: As :class:`BaseCAM`.
        score: As :class:`BaseCAM`. Scores of perturbed inputs are compared with one another, so its unit matters: see
            the method.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.
        batch_size: How many perturbed inputs run at once.
        progress: Show a progress bar, for what takes longer than two seconds.

    Raises:
        ValueError: If ``batch_size`` is not at least 1; otherwise as :class:`BaseCAM`.
        TypeError: As :class:`BaseCAM`.
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
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        check_count("batch_size", batch_size)
        super().__init__(model, target_layers, reshape_transform, score=score, rectify=rectify, output=output)
        self.batch_size = batch_size
        self.progress = progress

    @staticmethod
    def weighting(activations: Tensor, gradients: Tensor) -> Tensor:
        """There is none: the weights are no function of gradients."""
        raise NotImplementedError("the weights come from running the model, not from gradients")

    def maps(self, logits: Tensor, classes: Classes = None) -> NoReturn:
        """There are none to train with: the model that made the weights ran without gradients.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no differentiable maps: its weights come from running the model on perturbed "
            "inputs, without gradients; use explain() for maps to look at, and a gradient CAM such as GradCAM for maps "
            "to train with"
        )

    @abstractmethod
    def _weights(self, forward: Pass, layer: Layer, grid: Tensor, measure: Measure, bar: tqdm[NoReturn]) -> Tensor:
        """Weights of the channels of one layer, ``(B, N, C)``, from its activations ``(B, C, *S)``."""

    def _runs(self, channels: int) -> int:
        """How many forward passes an image costs."""
        return channels

    def _class_maps(
        self,
        forward: Pass,
        classes: Tensor,
        *,
        create_graph: bool = False,  # noqa: ARG002  (only maps() asks for one)
    ) -> list[Tensor]:
        return self._measured_maps(forward, partial(_class_scores, self.score, classes))

    def _target_maps(self, forward: Pass, targets: Sequence[OutputTarget]) -> list[Tensor]:
        return self._measured_maps(forward, partial(_target_scores, targets))

    def _measured_maps(self, forward: Pass, measure: Measure) -> list[Tensor]:
        forward = forward._replace(logits=forward.logits.detach())
        grids = [self._grid(activations.detach()) for activations in forward.activations]
        total = sum(len(grid) * self._runs(grid.shape[1]) for grid in grids)
        maps = []
        with tqdm(total=total, desc=type(self).__name__, disable=not self.progress, delay=_SHOW_AFTER_SECONDS) as bar:
            for layer, grid in zip(self._recorder.layers, grids, strict=True):
                weights = self._weights(forward, layer, grid, measure, bar)
                spread = weights.to(grid).view(*weights.shape, *[1] * (grid.ndim - 2))
                maps.append(torch.stack([self._layer_map(grid, each) for each in spread.unbind(1)], 1))
        return maps

    def _each_channel(
        self, forward: Pass, channels: int, inputs: Inputs, measure: Measure, bar: tqdm[NoReturn]
    ) -> Tensor:
        """Measure the model on an input for each image and channel, ``(B, N, C)``."""
        # Indices on the CPU are good for tensors on any device; some inputs may be on another than the logits.
        pairs = torch.arange(len(forward.logits) * channels)
        measured = []
        for block in torch.split(pairs, self.batch_size):
            rows = block // channels
            measured.append(measure(self._run(forward, inputs(rows, block % channels), rows), rows))
            bar.update(len(block))
        values = torch.cat(measured) if measured else measure(forward.logits, pairs)
        result = values.view(len(forward.logits), channels, values.shape[1]).transpose(1, 2)
        check_finite("the score under perturbation", result)
        return result

    @staticmethod
    def _run(forward: Pass, inputs: Tensor, rows: Tensor) -> Tensor:
        assert forward.run is not None  # only maps() makes a pass without, and it refuses
        return forward.run(inputs, rows)


class _MaskingCAM(PerturbationCAM):
    """Weights are a softmax over the channels of the score of the image masked with each channel."""

    samples = 1

    def _runs(self, channels: int) -> int:
        return self.samples * channels

    def _changes(self, _size: torch.Size) -> Iterator[Change]:
        """What is done to a mask before it multiplies the image, ``samples`` times; their scores are averaged."""
        yield lambda masks: masks

    def _weights(self, forward: Pass, _layer: Layer, grid: Tensor, measure: Measure, bar: tqdm[NoReturn]) -> Tensor:
        images = _images(self, forward)
        total = torch.zeros((), device=grid.device)
        for change in self._changes(images.shape[2:]):

            def masked(rows: Tensor, channels: Tensor, change: Change = change) -> Tensor:
                masks = change(heatmaps.minmax(heatmaps.resize(grid[rows, channels], images.shape[2:])))
                return (images[rows] * masks.unsqueeze(1).to(images.device)).to(images.dtype)

            total = total + self._each_channel(forward, grid.shape[1], masked, measure, bar)
        return (total / self.samples).softmax(2)


@final
class ScoreCAM(_MaskingCAM):
    """Score-CAM: channels weighted by the score of the image seen through them. Arguments as :class:`PerturbationCAM`.

    Each channel, enlarged to the image and scaled to [0, 1], multiplies the image; the weights are the softmax, over
    the channels, of the scores: ``w_k = softmax_k(score(image * mask_k))``. A channel that is constant marks nothing:
    its mask is 0, the black image.

    The paper weights by the *increase* of confidence over a baseline image. That is the same number for every channel,
    so it cancels in the softmax; no score needs one, a probability or not. What the score means stays in the weights,
    since the softmax takes its exponential:

    ========================  ============================================================================
    score                     the weight of a channel is proportional to
    ========================  ============================================================================
    ``log_probability``       the probability of the class on the masked image (the authors' code, scaled)
    ``logit_difference``      its odds ``p / (1 - p)``: "contrastive Score-CAM"
    ``logit`` (the default)   ``exp(z_c)``: moves with what all logits share, and can be fooled by it
    ========================  ============================================================================

    Reference:
        Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR Workshops
        2020.

    Example:
        >>> from diffgradcam.scores import logit_difference
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> contrastive = ScoreCAM(model, "0", score=logit_difference, batch_size=16)
        >>> contrastive.explain(torch.rand(5, 3, 8, 8), "all").maps.shape  # both classes from the same 20 forward runs
        torch.Size([5, 2, 6, 6])
    """


@final
class SSCAM(_MaskingCAM):
    """Smoothed Score-CAM: :class:`ScoreCAM` with noise on the masks.

    ``w_k = softmax_k(mean_i score(image * (mask_k + noise_i)))`` with Gaussian noise for every pixel. The ``samples``
    noises are the same for every channel and image, so that channels are compared under equal conditions and an image's
    map does not depend on the batch that it comes in.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`PerturbationCAM`.
        reshape_transform: As :class:`BaseCAM`.
        samples: How many noises; each costs a forward pass for every channel.
        std: Standard deviation of the noise. Masks are in [0, 1], so the usual 2 is a lot.
        seed: Of the noise. The global random numbers are left alone.
        score: As :class:`ScoreCAM`.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.
        batch_size: As :class:`PerturbationCAM`.
        progress: As :class:`PerturbationCAM`.

    Raises:
        ValueError: If ``samples`` or ``batch_size`` is not at least 1, or ``std`` is negative or not finite.

    Reference:
        Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", 2020 (arXiv 2006.14255), in
        the reading of the library torch-cam: noise on the enlarged, scaled mask. Noise that all channels share is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        samples: int = 35,
        std: float = 2.0,
        seed: int = 0,
        score: scores.Score = scores.logit,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        check_count("samples", samples)
        check_std(std)
        super().__init__(
            model,
            target_layers,
            reshape_transform,
            score=score,
            rectify=rectify,
            output=output,
            batch_size=batch_size,
            progress=progress,
        )
        self.samples = samples
        self.std = std
        self.seed = seed

    def _changes(self, size: torch.Size) -> Iterator[Change]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.samples):
            noise = self.std * torch.randn(size, generator=generator, dtype=torch.float64)
            yield lambda masks, noise=noise: masks + noise.to(masks)  # type: ignore[misc]


@final
class ISCAM(_MaskingCAM):
    """Integrated Score-CAM: :class:`ScoreCAM` with the scores averaged over masks that grow step by step.

    ``w_k = softmax_k(mean_i score(a_i image * mask_k))``, ``i = 1 ... N``, with the steps ``j / N`` summed up:
    ``a_i = 1 / N + ... + i / N = i (i + 1) / 2N``. That is torch-cam's form; the paper was not read. Mind that it is no
    path from black to the masked image: it goes on to ``(N + 1) / 2`` times the image, 5.5 times for 10 samples.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`PerturbationCAM`.
        reshape_transform: As :class:`BaseCAM`.
        samples: ``N``; each costs a forward pass for every channel. 1 is Score-CAM.
        score: As :class:`ScoreCAM`.
        rectify: As :class:`BaseCAM`.
        output: As :class:`BaseCAM`.
        batch_size: As :class:`PerturbationCAM`.
        progress: As :class:`PerturbationCAM`.

    Raises:
        ValueError: If ``samples`` or ``batch_size`` is not at least 1.

    Reference:
        Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", 2020 (arXiv 2010.03023), in the
        reading of the library torch-cam.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        samples: int = 10,
        score: scores.Score = scores.logit,
        rectify: bool = True,
        output: Callable[[Any], Tensor] = find_logits,
        batch_size: int = 32,
        progress: bool = True,
    ) -> None:
        check_count("samples", samples)
        super().__init__(
            model,
            target_layers,
            reshape_transform,
            score=score,
            rectify=rectify,
            output=output,
            batch_size=batch_size,
            progress=progress,
        )
        self.samples = samples

    def _changes(self, _size: torch.Size) -> Iterator[Change]:
        for i in range(1, self.samples + 1):
            yield partial(torch.mul, i * (i + 1) / (2 * self.samples))


@final
class AblationCAM(PerturbationCAM):
    """Ablation-CAM: channels weighted by how far the score drops without them. Arguments as :class:`PerturbationCAM`.

    ``w_k = score - score without channel k``: the channel is set to 0 in the layer's output (or input, for
    :func:`~diffgradcam.layer_input`) and the model runs again. With ``reshape_transform`` it is set to 0 wherever the
    grid's channel comes from; a class token, which is no part of the grid, stays.

    The paper divides the drop by the score itself. All channels of a map share that number, so it scales the map and
    nothing else, unless the score is negative, where it would turn evidence for a class into evidence against it, or 0.
    A contrast is both, and 0 where the model cannot decide. So the drop stays as it is, in the unit of the score.

    Reference:
        Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
        Localization", WACV 2020, without the division.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> logits, classes, maps = AblationCAM(model, "0").explain(torch.rand(5, 3, 8, 8))
        >>> maps.shape
        torch.Size([5, 6, 6])
    """

    def _weights(self, forward: Pass, layer: Layer, grid: Tensor, measure: Measure, bar: tqdm[NoReturn]) -> Tensor:
        images, count = _batch(self, forward), len(forward.logits)
        ablated: list[Tensor] = []

        def unchanged(rows: Tensor, channels: Tensor) -> Tensor:
            ablated[:] = [channels]  # what the hook takes away from these rows
            return images[rows]

        with _change(layer, lambda tensor: self._without(tensor, ablated[0])):
            without = self._each_channel(forward, grid.shape[1], unchanged, measure, bar)
        return measure(forward.logits, torch.arange(count)).unsqueeze(2) - without

    def _without(self, tensor: Tensor, channels: Tensor) -> Tensor:
        """Set one channel of the grid to 0 in each row of a layer's activations, wherever the grid takes it from."""
        with torch.enable_grad():
            source = tensor.detach().requires_grad_()
            channel = self._grid(source)[torch.arange(len(channels)), channels]
            if not channel.requires_grad:
                raise ValueError(
                    "reshape_transform= detaches the activations, so AblationCAM cannot tell which of them make a "
                    "channel; use tensor operations (permute, reshape, indexing) in it"
                )
            (origin,) = torch.autograd.grad(channel.sum(), source)
        return tensor.masked_fill(origin != 0, 0)


@contextlib.contextmanager
def _change(layer: Layer, change: Change) -> Iterator[None]:
    """Change what leaves (or enters) a layer, in this thread."""
    thread = threading.get_ident()

    def leaving(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return change(output) if threading.get_ident() == thread else None

    def entering(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (change(args[0]), *args[1:]) if threading.get_ident() == thread else None

    if layer.entering:
        handle = layer.module.register_forward_pre_hook(entering)
    else:
        handle = layer.module.register_forward_hook(leaving)
    try:
        yield
    finally:
        handle.remove()


def _batch(cam: BaseCAM, forward: Pass) -> Tensor:
    """The first argument of the model, if it has a row for each image."""
    images, count = forward.images, len(forward.logits)
    if not isinstance(images, Tensor) or images.ndim == 0 or len(images) != count:
        what = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{type(cam).__name__} runs the model on one image at a time in different versions, but the model's first "
            f"argument is {what}; expected a tensor with {count} rows, one for each row of the logits"
        )
    return images


def _images(cam: BaseCAM, forward: Pass) -> Tensor:
    images = _batch(cam, forward)
    if images.ndim < 3 or not images.is_floating_point():
        raise TypeError(
            f"{type(cam).__name__} masks images, but the model's first argument is a tensor of {images.dtype} of shape "
            f"{tuple(images.shape)}; expected floating-point images (B, C, H, W), or with one or three spatial "
            "dimensions"
        )
    return images


def _class_scores(score: scores.Score, classes: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
    """The score of each class that is explained of image ``rows``, ``(M, K) -> (M, N)``."""
    values = []
    for block in class_blocks(classes[rows], logits.shape[1]):
        repeated = widen(logits).unsqueeze(1).expand(-1, block.shape[1], -1).flatten(0, 1)
        found = score(repeated, block.reshape(-1))
        check_scores(found, repeated)
        values.append(found.view(block.shape))
    return torch.cat(values, 1)


def _target_scores(targets: Sequence[OutputTarget], output: Tensor, rows: Tensor) -> Tensor:
    """The target of image ``rows`` on each output, ``(M, *O) -> (M, 1)``."""
    values = []
    for index, row in zip(rows.tolist(), widen(output), strict=True):
        value = targets[index](row)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(
                f"target {type(targets[index]).__name__} returned {described(value)} for an output of shape "
                f"{tuple(row.shape)}; expected a single number"
            )
        values.append(value.reshape(()))
    return torch.stack(values).unsqueeze(1) if values else output.new_zeros(0, 1)
