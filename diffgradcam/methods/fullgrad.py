"""FullGrad: what the input and every bias of the network contribute to a score."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Unpack

from .. import heatmaps
from .._core.base import ScoredCAM, ScoredOptions
from .._core.forward import ForwardPass, LayerReader
from .._core.inputs import Inputs
from .._core.layers import Layer, LayerSpec, layer_input
from .._core.outputs import check_rows
from .._core.registry import register
from .._core.requests import Request
from .._core.wrappers import inner_model


def magnitude(channels: Tensor) -> Tensor:
    """How much each position contributes: the channels' magnitudes, scaled to [0, 1] together, then summed.

    Args:
        channels: Gradients times inputs or biases, ``(B, C, *S)``.

    Returns:
        Maps, ``(B, *S)``, at least 0. Channels that are all the same, as of zeros, give 0.
    """
    return heatmaps.minmax(channels.abs()).sum(1)


@register(command=False)
@final
class FullGrad(ScoredCAM):
    """FullGrad: input-gradient and bias-gradients, from the whole network, at the size of the input.

    ``psi(x dS/dx) + sum_l psi(b_l dS/db_l)``, where ``b_l`` is what layer ``l`` adds at each position of its output:
    the bias of a convolution, and ``b - w mean / std`` of a batch normalisation. ``psi`` takes magnitudes, scales them
    to [0, 1] over the channels and positions of a layer, sums over the channels and resizes to the
    input. For a network of convolutions, batch normalisations, ReLU, pooling and linear layers the
    unscaled terms and the biases of the linear layers add up to the logit. The biases of linear layers have no position
    and are left out, as in the authors' code; so are layers without a linear form, such as layer normalisation.

    The map has no sign, and it shows where the score *depends* on something, for or against. The gradient goes through
    the whole model, so it costs about as much as a training step; no ``.grad`` is touched. pytorch-grad-cam differs in
    scaling every channel for itself; the authors' code also interpolates with the corners aligned.

    Args:
        model: As :class:`BaseCAM`; in evaluation mode where it has batch normalisation.
        target_layers: There is no choice of layers: all are taken, and naming some warns. The argument is here so that
            calls of pytorch-grad-cam run.
        **options: As :class:`ScoredCAM`, but ``run``.

    Raises:
        TypeError: If ``run`` is given.
        ValueError: When explaining, if a batch normalisation normalises with the statistics of the batch.

    Reference:
        Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019, and the
        authors' code, fullgrad-saliency.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> FullGrad(model).explain(torch.rand(5, 3, 8, 8)).maps.shape
        torch.Size([5, 8, 8])
    """

    reduction = staticmethod(magnitude)

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec] = (),
        **options: Unpack[ScoredOptions],
    ) -> None:
        if "run" in options:
            raise TypeError("FullGrad takes every run of every module and no run=")
        if not (isinstance(target_layers, Sequence) and not target_layers):
            warnings.warn(
                "FullGrad takes the input and every bias of the model: target_layers is not used", stacklevel=2
            )
        super().__init__(model, layer_input(inner_model(model)), **options)

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`: the sum over the input and the biases, at the size of the input."""
        grids = forward.grids()
        blocks = []
        for block in forward.blocks(request):
            layers = [
                torch.stack([self.layer_map(grid, row) for row in gradients.unbind(1)], 1)
                for grid, gradients in zip(grids, forward.gradients(block), strict=True)
            ]
            shape = layers[0].shape
            resized = [heatmaps.resize(maps.flatten(0, 1), shape[2:]) for maps in layers]
            blocks.append(torch.stack(resized).sum(0).view(shape))
        return [torch.cat(blocks, 1)]

    def _make_reader(self) -> LayerReader:
        return BiasReader(self.model, self.target_layers, output=self.output, image=self.image)


class BiasReader(LayerReader):
    """Reads the input of a model and every bias on the way to the logits."""

    @contextmanager
    def run_on(self, inputs: Inputs) -> Iterator[ForwardPass]:
        """See :meth:`LayerReader.run`; the activations are the input and, after it, the biases at each position."""
        with _recorded_biases(self.model_to_run()) as recorded, super().run_on(inputs) as forward:
            (images,) = forward.activations
            biases = [(name, bias) for name, bias in recorded if bias.ndim == images.ndim]
            for name, bias in biases:
                check_rows(repr(name), bias, forward.logits)
            modules = dict(self.model_to_run().named_modules())
            layers = [Layer(modules[name], False, None, None, repr(name)) for name, _ in biases]
            forward.add(layers, [bias for _, bias in biases])
            yield forward


@contextmanager
def _recorded_biases(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Record what every convolution and batch normalisation adds at each position of its output, ``(B, C, *S)``.

    The recorded tensor enters the output as ``bias - bias.detach()``, which is 0: the output keeps its values, and its
    gradient with respect to the bias at each position becomes accessible, whatever overwrites the output later.
    """
    recorded: list[tuple[str, Tensor]] = []
    thread = threading.get_ident()

    def record(name: str, module: _ConvNd | _BatchNorm, _args: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != thread or not torch.is_grad_enabled():
            return None
        bias = _bias(name, module)
        if bias is None:
            return None
        everywhere = bias.to(output).view(-1, *[1] * (output.ndim - 2)).expand_as(output).requires_grad_()
        recorded.append((name, everywhere))
        return output + (everywhere - everywhere.detach())

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, _ConvNd | _BatchNorm):
                stack.callback(module.register_forward_hook(partial(record, name)).remove)
        yield recorded


def _bias(name: str, module: _ConvNd | _BatchNorm) -> Tensor | None:
    """What a layer adds to a channel of its output, whatever its input is, ``(C,)``; None if that is nothing."""
    if not isinstance(module, _BatchNorm):
        bias: Tensor | None = module.bias
        return None if bias is None else bias.detach().clone()
    if module.training or module.running_mean is None or module.running_var is None:
        raise ValueError(
            f"batch normalisation {name!r} normalises with the statistics of the batch, so an image's map would depend "
            "on its batch and the bias has no fixed value; call model.eval() first, and use track_running_stats=True"
        )
    scale = (module.running_var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight
    implicit = -module.running_mean * scale
    return (implicit if module.bias is None else implicit + module.bias).detach()
