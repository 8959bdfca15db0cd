"""Passive fooling without training: add to what all classes share, or move the features to other positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffgradcam._core.batches import image_batches
from diffgradcam._core.checks import check_mask_size, check_mask_varies
from diffgradcam._core.editing import add_to_rows, by_name, copy_model, find_head, linear_head, linear_layers_that_run
from diffgradcam._core.forward import ForwardPass, LayerReader
from diffgradcam._core.layers import LayerInput, LayerSpec
from diffgradcam._core.pooled_linear import pooled_linear_maps
from diffgradcam._core.tensors import widen

Permutation = Callable[[Tensor], Tensor] | Tensor


def common_mode_hoax(
    model: nn.Module,
    target_layer: LayerSpec,
    images: Tensor | Iterable[Any],
    mask: Tensor,
    *,
    head: nn.Module | str | None = None,
    strength: float = 3.0,
    ridge: float = 0.1,
) -> nn.Module:
    """Make GradCAM show a mask without training and without changing a decision.

    The logits of a pooled linear head are ``z_c = w_c . mean(A)``, and GradCAM shows ``w_c . A``. One vector ``v`` that
    is added to every class's row adds the same number to every logit, which softmax cannot see, and ``v . A`` to every
    GradCAM. Here ``v`` is the ridge regression of the mask, centred to mean 0, on the channel activations of all
    positions of all images. What is written is exactly what contrastive maps (DiffGradCAM) leave out;
    :func:`diffgradcam.audit` finds it and :func:`diffgradcam.repair` removes it.

    On images that ``v`` was not fitted on, the map is destroyed rather than replaced: channels say what an image shows,
    and little about where. Measured on EfficientNet-Lite0 (``docs/results/sham_tables.md``, 1000 classes), Pearson's r
    of GradCAM with its clean map / with the border mask: -0.21 / 0.78 on the crops of 12 photographs that ``v`` was
    fitted on, 0.27 / 0.06 on crops of six others. Small models with zero padding carry more about the edge: on
    held-out digits -0.04 / 0.57.

    Args:
        model: Its logits must be one linear layer of the mean, over the positions, of the activations of the target
            layer. It is left as it is and read in evaluation mode, on a copy.
        target_layer: The layer whose GradCAM is to be fooled: a module of ``model``, its name, or
            :func:`~diffgradcam.layer_input` of either.
        images: Images ``(N, ...)``, or an iterable of batches (a ``DataLoader``, for instance), of which only sums are
            kept.
        mask: The wanted map, at the size of the layer's activations, with any values that are not all equal.
        head: The linear layer, or its name; by default the one that turns out to give the logits.
        strength: Size of the written map relative to what was there: the ratio of the root mean squares, over the
            images, of ``v . A`` and of the decided class's map against the mean of the classes. The common-mode share
            that an audit measures is about ``strength**2 / (1 + strength**2)``.
        ridge: Weight of the penalty on ``v``, relative to the mean square of a channel. Low follows the images given,
            high less closely.

    Returns:
        A changed copy.

    Raises:
        ValueError: If the head is of another kind, the mask does not fit the layer or is constant, there are no images,
            an activation is not finite, or an option is out of range.
        TypeError: If ``model`` or ``head`` is of the wrong type.

    Reference:
        What softmax cannot see was used before: Lerma and Lucas, 2023 (arXiv 2307.03305), add a scalar that depends on
        the input to every logit, see :func:`input_scalar_wrapper`; Viering et al., 2019 (arXiv 1907.10901), change
        weights and architecture so that Grad-CAM shows any map. Passive fooling as in Piland, Sweet, Czajka,
        "DiffGradCAM", 2025 (arXiv 2506.08514). Ours: any wanted map by ridge regression, in the weights of the head
        that is there.
    """
    check_ridge(mask, strength, ridge)
    name = None if head is None else find_head(model, head)
    copy, fooled = copy_model(model).eval(), copy_model(model)
    reader = LayerReader(copy, by_name(model, target_layer))
    sums = RidgeSums.zero()
    for batch in image_batches(images):
        images_here = batch.to(next(copy.parameters(), batch).device)
        with linear_layers_that_run(copy) as ran, reader.run(images_here) as forward:
            forward.checks.verify()
            (activations,) = forward.grids()
            check_mask_size(mask, activations.shape[2:], "the activations of the target layer")
            maps, name = _class_maps(copy, name, ran, forward)
            sums = sums.add(activations.detach(), _decided(maps, forward.logits), mask)
    if name is None or not sums.gram.ndim:
        raise ValueError("images is empty; expected at least one image to fit the mask on")
    add_to_rows(linear_head(fooled, name), sums.solve(strength, ridge))
    return fooled


@dataclass(frozen=True)
class SpatialHoax:
    """A hook that permutes the positions of a tensor ``(B, C, *S)``. Being an object, it is copied and pickled."""

    permutation: Permutation
    entering: bool

    def __call__(self, _module: nn.Module, args: Any, output: Any = None) -> Any:
        """Permute what enters (the first argument) or what leaves the layer."""
        if self.entering:
            return (self._permuted(args[0]), *args[1:])
        return self._permuted(output)

    def _permuted(self, tensor: Tensor) -> Tensor:
        positions = tensor.shape[2:].numel()
        if isinstance(self.permutation, Tensor):
            if self.permutation.numel() != positions:
                raise ValueError(
                    f"the permutation has {self.permutation.numel()} positions, but the layer {positions} "
                    f"({tuple(tensor.shape[2:])})"
                )
            index = self.permutation.to(tensor.device).flatten()
            return tensor.flatten(2)[..., index].view_as(tensor)
        permuted = self.permutation(tensor)
        if permuted.shape != tensor.shape:
            raise ValueError(
                f"the permutation turned {tuple(tensor.shape)} into {tuple(permuted.shape)}; expected the same shape, "
                "as from lambda a: a.roll((3, 3), dims=(2, 3))"
            )
        return permuted


def spatial_hoax(model: nn.Module, target_layer: LayerSpec, permutation: Permutation) -> nn.Module:
    """Move every last-layer CAM, DiffGradCAM included, without changing a decision. Contrast gives no protection here.

    The copy permutes the positions of the target layer's activations. Where only an average over the positions follows,
    the logits are the same (to the last bit or so: a sum in another order rounds differently), but no map of that layer
    says any longer where in the *image* the evidence is. What catches it is behaviour, see
    :func:`diffgradcam.audit`.

    The permutation is a hook, not a module put around the layer: names and ``state_dict`` of the copy stay those of the
    model, an input that is permuted is seen by :func:`~diffgradcam.layer_input` of that layer, and ``copy.deepcopy``
    keeps it. A ``state_dict`` holds weights alone: loaded elsewhere it gives the clean model.

    Args:
        model: Any model. It is left as it is.
        target_layer: The layer: a module of ``model``, its name, or :func:`~diffgradcam.layer_input` of either. A CAM
            of the copy is moved if it reads the same place, or one between there and the pooling.
        permutation: A function of activations ``(B, C, *S)`` that moves positions, such as
            ``lambda a: a.roll((3, 3), dims=(2, 3))``, or the index of the position to take for each, any shape with as
            many elements as positions.

    Returns:
        A copy with the hook.

    Raises:
        ValueError: If the target is not a layer of the model, or the index is not a permutation. The copy's forward
            pass raises it if the number of positions differs.
        TypeError: If the permutation is neither a function nor an index.

    Reference:
        Ours.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double()
        >>> images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        >>> moved = spatial_hoax(model, "0", lambda a: a.flip(3))
        >>> torch.allclose(model(images), moved(images)), torch.equal(model[0](images).flip(3), moved[0](images))
        (True, True)
    """
    if isinstance(permutation, Tensor):
        if not torch.equal(permutation.flatten().sort().values.cpu(), torch.arange(permutation.numel())):
            raise ValueError(
                f"the index of shape {tuple(permutation.shape)} is not a permutation; expected each number from 0 to "
                f"{permutation.numel() - 1} once"
            )
    elif not callable(permutation):
        raise TypeError(f"permutation is {type(permutation).__name__}; expected a function or a tensor of indices")
    (layer,) = by_name(model, target_layer)
    moved = copy_model(model)
    entering = isinstance(layer, LayerInput)
    hook = SpatialHoax(permutation, entering)
    module = moved.get_submodule(str(layer.layer if isinstance(layer, LayerInput) else layer))
    if entering:
        module.register_forward_pre_hook(hook)
    else:
        module.register_forward_hook(hook)
    return moved


@dataclass(frozen=True)
class RidgeSums:
    """Sums over images and positions, float64 on the CPU: the normal equations, and the energy of the decided maps.

    Attributes:
        gram: Of the channels, ``(C, C)``.
        moment: Of the channels with the wanted map, ``(C,)``.
        energy: Sum of squares of the decided maps, times the number of positions.
    """

    gram: Tensor
    moment: Tensor
    energy: Tensor

    @classmethod
    def zero(cls) -> RidgeSums:
        """Sums of nothing."""
        zero = torch.zeros((), dtype=torch.float64)
        return cls(zero, zero, zero)

    def add(self, activations: Tensor, decided: Tensor, mask: Tensor) -> RidgeSums:
        """The sums with a batch added.

        Args:
            activations: ``(B, C, *S)``.
            decided: Signed maps of the decided classes against the mean of the classes, ``(B, *S)``.
            mask: The wanted map, ``S``.

        Returns:
            Other sums.
        """
        rows = activations.flatten(2).transpose(1, 2).flatten(0, 1).cpu().double()
        wanted = mask.cpu().double()
        wanted = (wanted - wanted.mean()).flatten().repeat(len(activations))
        return RidgeSums(
            self.gram + rows.T @ rows,
            self.moment + rows.T @ wanted,
            self.energy + (decided.cpu().double() * mask.numel()).square().sum(),
        )

    def solve(self, strength: float, ridge: float) -> Tensor:
        """The vector whose product with the activations is nearest to the wanted map.

        Args:
            strength: Root mean square of that product, relative to that of the decided maps.
            ridge: Weight of the penalty, relative to the mean square of a channel.

        Returns:
            ``(C,)``.

        Raises:
            ValueError: If all activations are 0.
        """
        penalty = ridge * self.gram.diagonal().mean()
        if not bool(penalty > 0):
            raise ValueError(
                "the activations of the target layer are 0 for all images, so no map can be fitted to them"
            )
        vector = torch.linalg.solve(self.gram + penalty * torch.eye(len(self.gram)), self.moment)
        scale = strength * (self.energy / (vector @ self.gram @ vector)).sqrt()
        fitted: Tensor = vector * scale
        return fitted


def _decided(maps: Tensor, logits: Tensor) -> Tensor:
    """The map of the decided class against the mean of the classes, from those of all, ``(B, K, *S)``."""
    return maps[torch.arange(len(maps)), logits.argmax(1)] - maps.mean(1)


def _class_maps(model: nn.Module, name: str | None, ran: list[str], forward: ForwardPass) -> tuple[Tensor, str]:
    """Signed maps ``(B, K, *S)`` of a pooled linear head, and its name: of equal layers one that ran, the last."""
    every = [other for other, module in model.named_modules() if isinstance(module, nn.Linear)]
    candidates = [*reversed(ran), *every] if name is None else [name]
    for candidate in candidates if widen(forward.logits) is forward.logits else ():
        found = pooled_linear_maps(model.get_submodule(candidate), forward.logits, forward.activations)
        if found is not None and bool(found.holds):
            return found.maps, find_head(model, candidate)
    which = "a linear layer" if name is None else f"the linear layer {name!r}"
    raise ValueError(
        f"the logits of {type(model).__name__} are not {which} of the mean of the target layer's activations over the "
        "positions, in float32 or float64; choose the layer right before the pooling, or train the common mode of any "
        "linear head with sham.finetune(..., scope='common_mode')"
    )


def check_ridge(mask: Tensor, strength: float, ridge: float) -> None:
    """Refuse options of the regression that are out of range.

    Args:
        mask: The wanted map.
        strength: Should be above 0.
        ridge: Should be above 0.

    Raises:
        ValueError: If the mask is constant, or a number is not above 0.
    """
    check_mask_varies(mask)
    if not strength > 0:
        raise ValueError(f"strength is {strength}; expected a ratio above 0, such as 3")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; expected a penalty above 0, such as 0.1")
