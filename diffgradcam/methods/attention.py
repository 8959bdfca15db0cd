"""LeGrad: what the attention of transformer blocks contributes to a score."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from .._core import messages
from .._core.base import ScoredCAM, ScoredOptions
from .._core.checks import described
from .._core.forward import ForwardPass, LayerReader, ReshapeTransform
from .._core.inputs import Inputs
from .._core.layers import LayerSpec, layer_input
from .._core.registry import register
from .._core.requests import Request
from .._core.tensors import widen
from .._core.wrappers import written_out_attention
from ..tokens import tokens_to_grid

Head = Callable[[Tensor], Tensor]


@register(command=False)
@final
class LeGrad(ScoredCAM):
    """LeGrad: the positive gradient of a block's own score with respect to its attention.

    The score of a block is that of the logits that the head gives for the mean of the tokens which leave the block. Its
    gradient with respect to the attention probabilities is rectified, averaged over heads and queries, and read at the
    patches; the maps of several blocks are averaged. Name several late blocks: the method is made for it.

    The model runs once without gradients, and each block once more, with them, on what entered it. Attention is found
    as the softmax in the graph, whichever module or function computes it. Blocks that attend within windows (Swin) have
    no such attention and are refused.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: Blocks of a transformer, such as ``[f"blocks.{i}" for i in range(8, 12)]``; each takes tokens
            ``(B, N, C)`` and returns as many.
        reshape_transform: Brings tokens into the form ``(B, C, h, w)``.
        head: From the mean of the tokens ``(B, C)`` to logits ``(B, K)``, as at the end of the model: often
            ``nn.Sequential(model.norm, model.head)``.
        **options: As :class:`ScoredCAM`, but ``run``.

    Raises:
        TypeError: If ``head`` cannot be called, or ``run`` is given.
        ValueError: When explaining, if a block has no attention between its tokens, or several, or the head returns
            another number of logits than the model.

    Reference:
        Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
        ICCV 2025 (arXiv 2404.03214), and the authors' code for CLIP, which the pooling by the mean is read in.

    Example:
        >>> class Tiny(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = nn.Conv2d(3, 8, 4, stride=4)
        ...         self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        ...         self.head = nn.Linear(8, 5)
        ...
        ...     def forward(self, images):
        ...         return self.head(self.block(self.embed(images).flatten(2).transpose(1, 2)).mean(1))
        >>> model = Tiny().eval()
        >>> LeGrad(model, "block", head=model.head).explain(torch.rand(2, 3, 16, 16)).maps.shape
        torch.Size([2, 4, 4])
    """

    needs_graph: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        target_layers: LayerSpec | Sequence[LayerSpec],
        reshape_transform: ReshapeTransform | None = tokens_to_grid,
        *,
        head: Head,
        **options: Unpack[ScoredOptions],
    ) -> None:
        if not callable(head):
            raise TypeError(
                f"head is {described(head)}; expected a function of pooled tokens (B, C) that returns logits (B, K), "
                "such as nn.Sequential(model.norm, model.head)"
            )
        if "run" in options:
            raise TypeError("LeGrad takes blocks that run once and no run=")
        self.head = head
        entering: Any = target_layers
        if isinstance(target_layers, str | nn.Module):
            entering = layer_input(target_layers)
        elif isinstance(target_layers, Sequence):
            entering = [layer_input(each) if isinstance(each, str | nn.Module) else each for each in target_layers]
        super().__init__(model, entering, reshape_transform, **options)

    def layer_maps(self, forward: ForwardPass, request: Request) -> list[Tensor]:
        """See :meth:`BaseCAM.layer_maps`: for each block, the attention that its tokens get."""
        return forward.every_layer(
            [self._block_maps(forward, number, request) for number in range(len(forward.layers))]
        )

    def _block_maps(self, forward: ForwardPass, number: int, request: Request) -> Tensor:
        layer = forward.layers[number]
        if any(parameter.is_inference() for parameter in layer.module.parameters()):
            raise RuntimeError(messages.inference_weights())
        entering = forward.activations[number].detach().requires_grad_()
        with torch.enable_grad(), forward.mixed_precision(), written_out_attention():
            leaving = layer.module(entering)
            tokens = leaving[0] if isinstance(leaving, tuple) else leaving
            if not isinstance(tokens, Tensor) or tokens.shape[:2] != entering.shape[:2] or tokens.ndim != 3:
                raise ValueError(
                    f"{layer.name} takes {described(entering)} and returns {described(tokens)}; expected a block that "
                    "takes tokens (B, N, C) and returns as many"
                )
            logits = self.head(tokens.mean(1))
        if not isinstance(logits, Tensor) or logits.shape != forward.logits.shape:
            raise ValueError(
                f"head returned {described(logits)} for the mean of the tokens of {layer.name}; expected logits as the "
                f"model's, shape {tuple(forward.logits.shape)}"
            )
        maps = []
        for cotangent in request.cotangents(logits).unbind(1):
            gradients = _attention_gradients(logits, entering, cotangent)
            if len(gradients) != 1:
                raise ValueError(
                    f"{layer.name} has {len(gradients)} attentions between its {entering.shape[1]} tokens; expected a "
                    "transformer block with one softmax over all tokens"
                )
            received = widen(gradients[0]).relu().mean((1, 2))
            maps.append(self.reduction(forward.to_grid(received.unsqueeze(2), number)))
        return torch.stack(maps, 1)

    def _make_reader(self) -> LayerReader:
        return BlockReader(
            self.model,
            self.target_layers,
            self.reshape_transform,
            self.output,
            image=self.image,
            graph=self.needs_graph,
        )


class BlockReader(LayerReader):
    """Reads what enters blocks; the modules of its layers take that alone, and have their other arguments with them."""

    @contextmanager
    def run_on(self, inputs: Inputs) -> Iterator[ForwardPass]:
        """See :meth:`LayerReader.run`."""
        with _recorded_calls([layer.module for layer in self.layers]) as calls, super().run_on(inputs) as forward:
            forward.layers = [
                layer._replace(module=_WithArguments(layer.module, calls[layer.module])) for layer in forward.layers
            ]
            yield forward


class _WithArguments(nn.Module):
    """A block, called again with the arguments that it had, but for the tokens."""

    def __init__(self, block: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.block = block
        self._inputs = inputs

    def forward(self, tokens: Tensor) -> Any:
        inputs = self._inputs.replaced(tokens)
        return self.block(*inputs.args, **inputs.kwargs)


@contextmanager
def _recorded_calls(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Inputs]]:
    """The arguments of each module in the forward pass of this thread."""
    calls: dict[nn.Module, Inputs] = {}
    thread = threading.get_ident()

    # PyTorch may leave out the keyword arguments while the thread that set the hook, another one, removes it.
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if threading.get_ident() == thread:
            calls[module] = Inputs(args, kwargs or {})

    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            stack.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        yield calls


def _attention_gradients(logits: Tensor, entering: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The gradient with respect to each softmax between all tokens, ``(B, H, N, N)``.

    Args:
        logits: ``(B, K)``, with the graph down to the tokens.
        entering: Tokens, ``(B, N, C)``.
        cotangent: Of the logits, ``(B, K)``.
    """
    found: list[Tensor] = []

    def take(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[0]
        if gradient is not None and gradient.ndim > 2 and gradient.shape[-2:] == (count, count):
            found.append(gradient.detach().reshape(len(entering), -1, count, count))

    count = entering.shape[1]
    with ExitStack() as stack:
        for node in _softmax_nodes(logits):
            stack.callback(node.register_prehook(take).remove)
        torch.autograd.grad(logits, entering, cotangent.to(logits), retain_graph=True, allow_unused=True)
    return found


def _softmax_nodes(output: Tensor) -> list[Any]:
    """The nodes of its graph that are softmax functions, safe ones included."""
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return [node for node in seen if re.search(r"(?<!Log)SoftmaxBackward\d*$", node.name())]
