"""Methods without gradients: the model runs on perturbed inputs, and the change of the score is the weight.

Score-CAM and its relatives mask the image with each channel of the layer; Ablation-CAM takes one channel of the layer
away at a time. Both obey ``score=``: a contrast there makes a contrastive method. One run on the perturbed inputs
serves all classes that are explained. The price is a forward pass for each channel of each image (times ``samples``);
for what is taken away at the layer, what lies above the layer. ``channels=`` perturbs the strongest channels alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NoReturn, final

import torch
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

from .. import heatmaps
from .._core.base import ScoredCAM, ScoredOptions
from .._core.batches import activations_at_once, images_at_once, in_batches
from .._core.checks import check_count, check_std
from .._core.forward import ForwardPass, ReshapeTransform
from .._core.layers import LayerSpec
from .._core.outputs import check_finite
from .._core.registry import register
from .._core.requests import Request
from .._core.tensors import outside_inference_mode, spread
from .._core.versions import noises

_SHOW_AFTER_SECONDS = 2

Inputs = Callable[[Tensor, Tensor], Tensor]
Change = Callable[[Tensor], Tensor]


class PerturbationOptions(ScoredOptions, total=False):
    """The options of a method that perturbs, see :class:`PerturbationCAM`."""

    batch_size: int | None
    channels: int | None
    progress: bool


@dataclass(frozen=True)
class Channels:
    """The channels of a layer that are perturbed: all of them, or the strongest.

    Attributes:
        number: Of the layer, among those that were used.
        index: Which channels of the layer they are, ``(B, k)``.
        grid: Their activations, ``(B, k, *S)``.
    """

    number: int
    index: Tensor
    grid: Tensor


class PerturbationCAM(ScoredCAM):
    """A CAM whose weights come from running the model on perturbed inputs. It needs no gradient.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`. Every layer costs a forward pass for each of its channels.
        reshape_transform: As :class:`BaseCAM`.
        batch_size: How many perturbed inputs run at once. By default it follows from their size: on a CPU 4 of 224 x
            224 pixels, on a GPU 222; and half as many whenever the device runs out of memory.
        channels: Perturb only so many channels, of each image those with the most energy (sum of squares); the others
            get no weight. By default all.
        progress: Show a progress bar, for what takes longer than two seconds.
        **options: As :class:`ScoredCAM`. Scores of perturbed inputs are compared with one another, so the unit of
            ``score`` matters: see the method.

    Raises:
        ValueError: If ``batch_size`` or ``channels`` is not at least 1; otherwise as :class:`BaseCAM`.
        TypeError: As :class:`BaseCAM`.
    """

    needs_graph: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        batch_size: int | None = None,
        channels: int | None = None,
        progress: bool = True,
        **options: Unpack[ScoredOptions],
    ) -> None:
        for name, count in (("batch_size", batch_size), ("channels", channels)):
            if count is not None:
                check_count(name, count)
        super().__init__(model, target_layers, reshape_transform, **options)
        self.batch_size = batch_size
        self.channels = channels
        self.progress = progress

    @abstractmethod
    def channel_weights(
        self, forward: ForwardPass, channels: Channels, request: Request, bar: tqdm[NoReturn]
    ) -> Tensor:
        """Weights of channels of one layer.

        Args:
            forward: The forward pass of the images as they are.
            channels: The channels, ``k`` of each image.
            request: What is asked for, ``N`` numbers of each image.
            bar: The progress bar, one step for each forward pass of an image.

        Returns:
            ``(B, N, k)``.
        """

    def runs(self, channels: int) -> int:
        """How many forward passes an image costs, for so many channels."""
        return channels

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`."""
        forward.checks.verify()  # before many forward passes are made
        _batch(self, forward)
        forward.find_following()  # before anything is taken away
        chosen = [self._strongest(number, grid) for number, grid in enumerate(forward.grids())]
        total = sum(len(channels.grid) * self.runs(channels.grid.shape[1]) for channels in chosen)
        maps = []
        with tqdm(total=total, desc=type(self).__name__, disable=not self.progress, delay=_SHOW_AFTER_SECONDS) as bar:
            for channels in chosen:
                grid = channels.grid
                weights = self.channel_weights(forward, channels, request, bar).to(grid)
                rows = [self.layer_map(grid, spread(row, grid.ndim)) for row in weights.unbind(1)]
                maps.append(torch.stack(rows, 1))
        return forward.every_layer(maps)

    def each_channel(
        self, forward: ForwardPass, channels: int, inputs: Inputs, request: Request, bar: tqdm[NoReturn]
    ) -> Tensor:
        """Measure the model on an input for each image and channel.

        Args:
            forward: The forward pass of the images as they are.
            channels: How many, ``k``.
            inputs: Makes inputs of images and channels, both ``(M,)``.
            request: What is measured, ``N`` numbers.
            bar: The progress bar.

        Returns:
            ``(B, N, k)``.
        """

        def logits(rows: Tensor, which: Tensor) -> Tensor:
            return forward.on_rows(inputs(rows, which), rows)

        return self.each_run(forward, channels, logits, images_at_once(forward.image), request, bar)

    def each_run(
        self,
        forward: ForwardPass,
        channels: int,
        logits: Inputs,
        at_once: int,
        request: Request,
        bar: tqdm[NoReturn],
    ) -> Tensor:
        """As :meth:`each_channel`, for a method that runs the model in a way of its own.

        Args:
            forward: As :meth:`each_channel`.
            channels: As :meth:`each_channel`.
            logits: What the model makes ``(M, K)`` of images and channels, both ``(M,)``.
            at_once: How many to run at once, unless ``batch_size`` says it.
            request: As :meth:`each_channel`.
            bar: As :meth:`each_channel`.

        Returns:
            As :meth:`each_channel`.
        """

        def measure(part: slice) -> Tensor:
            # Indices on the CPU are good for tensors on any device; some inputs may be on another than the logits.
            pairs = torch.arange(part.start, part.stop)
            rows = pairs // channels
            values = request.values(logits(rows, pairs % channels), rows)
            bar.update(len(pairs))
            return values

        count = len(forward.logits) * channels
        size = at_once if self.batch_size is None else self.batch_size
        measured = list(in_batches(count, size, measure))
        values = torch.cat(measured) if measured else request.values(forward.logits, torch.arange(0))
        result = values.view(len(forward.logits), channels, values.shape[1]).transpose(1, 2)
        check_finite("the score under perturbation", result)
        return result

    def _strongest(self, number: int, grid: Tensor) -> Channels:
        count = grid.shape[1]
        if self.channels is None or self.channels >= count:
            return Channels(number, torch.arange(count, device=grid.device).expand(len(grid), -1), grid)
        energy = grid.flatten(2).square().sum(2)
        index = energy.argsort(dim=1, descending=True, stable=True)[:, : self.channels]
        return Channels(number, index, grid[torch.arange(len(grid), device=grid.device).unsqueeze(1), index])


class _MaskingCAM(PerturbationCAM):
    """Weights are a softmax over the channels of the score of the image masked with each channel."""

    samples = 1

    def runs(self, channels: int) -> int:
        """See :meth:`PerturbationCAM.runs`."""
        return self.samples * channels

    def _changes(self, _size: torch.Size) -> Iterator[Change]:
        """What is done to a mask before it multiplies the image, ``samples`` times; their scores are averaged."""
        yield lambda masks: masks

    def channel_weights(
        self, forward: ForwardPass, channels: Channels, request: Request, bar: tqdm[NoReturn]
    ) -> Tensor:
        """See :meth:`PerturbationCAM.channel_weights`."""
        images, grid = _images(self, forward), channels.grid
        total = torch.zeros((), device=grid.device)
        for change in self._changes(images.shape[2:]):

            def masked(rows: Tensor, which: Tensor, change: Change = change) -> Tensor:
                masks = change(heatmaps.minmax(heatmaps.resize(grid[rows, which], images.shape[2:])))
                return (images[rows] * masks.unsqueeze(1).to(images.device)).to(images.dtype)

            total = total + self.each_channel(forward, grid.shape[1], masked, request, bar)
        return (total / self.samples).softmax(2)


@register()
@final
class ScoreCAM(_MaskingCAM):
    """Score-CAM: channels weighted by the score of the image seen through them.

    Arguments as :class:`PerturbationCAM`. Each channel, enlarged to the image and scaled to [0, 1], multiplies the
    image; the weights are the softmax, over the channels, of the scores: ``w_k = softmax_k(score(image * mask_k))``. A
    channel that is constant marks nothing: its mask is 0, the black image.

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


@register(command=False)
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
        **options: As :class:`PerturbationCAM`.

    Raises:
        ValueError: If ``samples`` or ``batch_size`` is not at least 1, or ``std`` is negative or not finite.

    Reference:
        Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", 2020 (arXiv 2006.14255), in
        the reading of the library torch-cam: noise on the enlarged, scaled mask. Noise that all channels share is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        samples: int = 35,
        std: float = 2.0,
        seed: int = 0,
        **options: Unpack[PerturbationOptions],
    ) -> None:
        check_count("samples", samples)
        check_std(std)
        super().__init__(model, target_layers, reshape_transform, **options)
        self.samples = samples
        self.std = std
        self.seed = seed

    def _changes(self, size: torch.Size) -> Iterator[Change]:
        for drawn in noises(size, self.samples, self.seed):
            noise = self.std * drawn
            yield lambda masks, noise=noise: masks + noise.to(masks)  # type: ignore[misc]


@register(command=False)
@final
class ISCAM(_MaskingCAM):
    """Integrated Score-CAM: :class:`ScoreCAM` with the scores averaged over masks that grow step by step.

    ``w_k = softmax_k(mean_i score(a_i image * mask_k))``, ``i = 1 ... N``, with the steps ``j / N`` summed up:
    ``a_i = 1 / N + ... + i / N = i (i + 1) / 2N``. That is torch-cam's form; the paper was not read. This is not a path
    from black to the masked image: it goes on to ``(N + 1) / 2`` times the image, 5.5 times for 10 samples.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`PerturbationCAM`.
        reshape_transform: As :class:`BaseCAM`.
        samples: ``N``; each costs a forward pass for every channel. 1 is Score-CAM.
        **options: As :class:`PerturbationCAM`.

    Raises:
        ValueError: If ``samples`` or ``batch_size`` is not at least 1.

    Reference:
        Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", 2020 (arXiv 2010.03023), in the
        reading of the library torch-cam.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = None,
        *,
        samples: int = 10,
        **options: Unpack[PerturbationOptions],
    ) -> None:
        check_count("samples", samples)
        super().__init__(model, target_layers, reshape_transform, **options)
        self.samples = samples

    def _changes(self, _size: torch.Size) -> Iterator[Change]:
        for i in range(1, self.samples + 1):
            yield partial(torch.mul, i * (i + 1) / (2 * self.samples))


@register()
@final
class AblationCAM(PerturbationCAM):
    """Ablation-CAM: channels weighted by how far the score drops without them.

    Arguments as :class:`PerturbationCAM`. ``w_k = score - score without channel k``: the channel is set to 0 in the
    layer's output (or input, for :func:`~diffgradcam.layer_input`) and the model runs on from there. With
    ``reshape_transform`` it is set to 0 wherever the grid's channel comes from; a class token, which is not part of the
    grid, stays.

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

    def channel_weights(
        self, forward: ForwardPass, channels: Channels, request: Request, bar: tqdm[NoReturn]
    ) -> Tensor:
        """See :meth:`PerturbationCAM.channel_weights`."""
        count, number = len(forward.logits), channels.number
        index = channels.index.cpu()
        run = forward.from_layer(number, lambda tensor, which: _without(forward, number, tensor, which))

        def ablated(rows: Tensor, which: Tensor) -> Tensor:
            return run(rows, index[rows, which])

        at_once = activations_at_once(forward.activations[number]) if run.remembers else images_at_once(forward.image)
        without = self.each_run(forward, channels.grid.shape[1], ablated, at_once, request, bar)
        return request.values(forward.logits, torch.arange(count)).unsqueeze(2) - without


def _without(forward: ForwardPass, number: int, tensor: Tensor, channels: Tensor) -> Tensor:
    """Set one channel of the grid to 0 in each row of a layer's activations, wherever the grid takes it from."""
    if forward.to_grid(tensor, number) is tensor:
        ablated = tensor.clone()
        ablated[torch.arange(len(channels)), channels] = 0
        return ablated
    with outside_inference_mode(), torch.enable_grad():
        source = tensor.detach().clone().requires_grad_()
        channel = forward.to_grid(source, number)[torch.arange(len(channels)), channels]
        if not channel.requires_grad:
            raise ValueError(
                "reshape_transform= detaches the activations, so AblationCAM cannot tell which of them make a channel; "
                "use tensor operations (permute, reshape, indexing) in it"
            )
        (origin,) = torch.autograd.grad(channel.sum(), source)
    return tensor.masked_fill(origin != 0, 0)


def _batch(cam: PerturbationCAM, forward: ForwardPass) -> Tensor:
    """The first argument of the model, if it has a row for each image."""
    images, count = forward.image, len(forward.logits)
    if not isinstance(images, Tensor) or images.ndim == 0 or len(images) != count:
        what = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{type(cam).__name__} runs the model on one image at a time in different versions, but the image "
            f"argument is {what}; expected a tensor with {count} rows, one for each row of the logits; where another "
            "argument is the image, name it with image="
        )
    return images


def _images(cam: PerturbationCAM, forward: ForwardPass) -> Tensor:
    images = _batch(cam, forward)
    if images.ndim < 3 or not images.is_floating_point():
        raise TypeError(
            f"{type(cam).__name__} masks images, but the image argument is a tensor of {images.dtype} of shape "
            f"{tuple(images.shape)}; expected floating-point images (B, C, H, W), or with one or three spatial "
            "dimensions"
        )
    return images
