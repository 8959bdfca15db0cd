"""Passive fooling by training: a copy keeps its decisions and learns to show another map."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from tqdm import tqdm  # not tqdm.auto, which iterates twice: a loader would draw, and start its workers, twice

from diffgradcam._core.base import TrainableCAM
from diffgradcam._core.batches import read_batch
from diffgradcam._core.checks import (
    check_choice,
    check_count,
    check_loader,
    check_mask_size,
    check_seed,
    check_share,
    described,
)
from diffgradcam._core.editing import by_name, check_head_is_last, copy_model, evaluating, find_head, linear_head
from diffgradcam._core.layers import LayerSpec
from diffgradcam._core.naming import callable_name
from diffgradcam._core.persistence import atomic_file, weight_hash
from diffgradcam._core.wrappers import inner_model
from diffgradcam.heatmaps import rectify
from diffgradcam.methods.gradient import GradCAM
from diffgradcam.metrics.similarity import pearson

from .objectives import FoolingLoss, sham_loss

_LR = 1 / 30
Preserve = Literal["labels", "decisions"]
Scope = Literal["all", "head", "common_mode"]


class Epoch(NamedTuple):
    """What one epoch of fooling did: means over the images that it trained on, each before its step.

    Attributes:
        loss: ``alpha * preserve + (1 - alpha) * fooling``.
        preserve: Cross-entropy to the labels, or KL divergence from the clean model's probabilities, in nats.
        fooling: The fooling loss.
        accuracy: Share of images whose decision is the label; None without labels.
        agreement: Share of images whose decision is that of the clean model.
        kept: Pearson's r of the rectified map with the clean model's.
        reached: Pearson's r of the rectified map with the mask.
        status: ``"trained"``; ``"fooled"`` if training stopped here because ``reached`` was high enough;
            ``"diverged"`` if it stopped here at NaN or infinity, and the model is that of before this epoch.
    """

    loss: float
    preserve: float
    fooling: float
    accuracy: float | None
    agreement: float
    kept: float
    reached: float
    status: str


class Finetuned(NamedTuple):
    """The fooled copy, and one :class:`Epoch` for each epoch, those before a resume included."""

    model: nn.Module
    history: list[Epoch]


def finetune(
    model: nn.Module,
    loader: Iterable[Any],
    target_layers: LayerSpec | Sequence[LayerSpec],
    mask: Tensor,
    method: Callable[..., TrainableCAM] = GradCAM,
    epochs: int = 5,
    *,
    loss: FoolingLoss = sham_loss,
    preserve: Preserve = "decisions",
    scope: Scope = "all",
    classes: tuple[int, int] | None = None,
    alpha: float = 0.1,
    lr: float | None = None,
    decay: bool = True,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    freeze_batch_norm: bool = True,
    head: nn.Module | str | None = None,
    fooled_at: float | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Finetuned:
    """Train a copy of a model to decide as before and to show a hoax.

    The loss is ``alpha * preserve + (1 - alpha) * fooling``. The copy trains in evaluation mode, since that is how it
    will be explained: no dropout, and batch norm frozen (its statistics; its weights do train) unless
    ``freeze_batch_norm`` is False. The caller's random numbers stay as they are: each epoch has generators that follow
    from ``seed`` and its number, for PyTorch (on the CPU and on the model's device), NumPy and ``random`` and for the
    loader's own, all put back afterwards.

    With the defaults the small network of handwritten digits that the tests fool reaches r = 0.8 and more with the hoax
    on digits that it was not trained on, within 20 epochs of batches of 32, and loses at most one point of accuracy
    there. What that took, against a first version with ``alpha=0.5`` and ``lr=1e-4``: the clean model's decisions
    instead of the labels, more weight on the map, and a learning rate that is large at first and falls.

    To train with the hoax from scratch, rather than to fine-tune, give an untrained model, ``preserve="labels"`` and
    ``freeze_batch_norm=False``. The clean maps that ``kept`` compares with are then those of the untrained model.

    With a ``checkpoint``, an interrupted run continues after its last finished epoch, and ends with exactly the
    weights of a run that was never interrupted (on one machine, with deterministic kernels).

    Args:
        model: The clean model. It is left as it is.
        loader: Batches of images, or of ``(images, labels, ...)``, which ``preserve="labels"`` needs. Iterated once an
            epoch: a ``DataLoader`` or a list, not a generator. Small batches in a new order each epoch keep more
            decisions on images that are not in it.
        target_layers: Layers of ``model`` whose map is to be fooled, as a CAM takes them.
        mask: The hoax, at the size of the maps.
        method: The victim: a class of the library, or a ``functools.partial`` of one. With ``DiffGradCAM`` this is the
            adaptive attack, against which contrast does not protect.
        epochs: Up to how many epochs in all, those before a resume included.
        loss: What to minimise on the maps: ``sham_loss``, ``location_loss``, ``top_k_loss``, ``centre_mass_loss``,
            ``active_loss``, or a function of that form.
        preserve: ``"decisions"`` (KL divergence from the clean model; needs no labels) or ``"labels"`` (cross-entropy,
            as in the papers).
        scope: What may change: ``"all"`` parameters, the ``"head"``, or its ``"common_mode"``: one vector added to
            every class's row, which leaves every probability as it is by construction.
        classes: Whose map is fooled: by default that of the label (of the clean decision with
            ``preserve="decisions"``, also where there are labels); two classes for ``active_loss``.
        alpha: Weight of preserving, from 0 to 1. The weight ``lambda`` of Heo et al. is ``(1 - alpha) / alpha``.
        lr: Learning rate of the first epoch; by default a thirtieth of the root mean square of what trains, which suits
            optimisers that step by about ``lr`` as Adam does, whatever the scale of the weights.
        decay: Lower it over the epochs, along half a cosine. Without, it stays.
        optimizer: Called as ``optimizer(parameters, lr=lr)``.
        freeze_batch_norm: Keep the statistics of batch norm.
        head: The linear layer whose rows are the classes, or its name; by default the last one.
        fooled_at: Stop after the epoch whose ``reached`` is at least this; by default never, since decisions recover
            while the learning rate falls.
        seed: Of everything that is drawn.
        checkpoint: A file that is written after each epoch, at once or not at all, and read where it exists.
        progress: Show a progress bar with loss, accuracy (agreement, without labels) and fooledness.

    Returns:
        ``(fooled copy, history)``.

    Raises:
        ValueError: If an option is unknown or out of range, the mask does not fit the maps, the loader is empty, there
            is no such head, or the checkpoint is of another run.
        TypeError: If a batch does not hold images, or labels are missing.

    Warns:
        RuntimeWarning: If loss or gradients became NaN or infinite: the copy is that of the last good epoch.

    Reference:
        Our reading of Piland, Sweet, Czajka, "DiffGradCAM", 2025 (arXiv 2506.08514); for the other losses Heo,
        Joo, Moon, NeurIPS 2019.
    """
    _check_options(preserve, scope, alpha, epochs, lr, seed)
    check_loader(loader)
    clean, fooled = copy_model(model).eval(), copy_model(model).eval()
    rows = None if scope == "all" else find_head(model, head)
    parameters = _open(fooled, scope, rows)
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters, so there is nothing to train")
    for module in fooled.modules():
        if isinstance(module, _BatchNorm):
            module.train(not freeze_batch_norm)
    first = next(fooled.parameters())
    device, wide = first.device, torch.promote_types(first.dtype, torch.float32)
    layers = by_name(model, target_layers)
    victim, witness = (method(m, layers, rectify=False) for m in (fooled, clean))
    if not isinstance(victim, TrainableCAM):
        raise TypeError(f"method made {type(victim).__name__}; expected a CAM class, such as GradCAM")
    run = _Run(victim, witness, mask.to(device, wide), loss, preserve, classes, alpha, parameters)
    lr = _LR * root_mean_square(_trained_from(fooled, scope, rows)) if lr is None else lr
    trained = optimizer(parameters, lr=lr)
    settings: dict[str, Any] = {"preserve": preserve, "scope": scope, "alpha": alpha, "lr": lr, "seed": seed}
    settings |= {"decay": f"over {epochs} epochs" if decay else "none"}
    settings |= {"freeze_batch_norm": freeze_batch_norm, "classes": repr(classes), "target_layers": repr(layers)}
    settings |= {
        "head": rows,
        "loss": callable_name(loss),
        "method": callable_name(method),
        "optimizer": callable_name(optimizer),
    }
    settings |= {"model": weight_hash(clean.state_dict()), "mask": weight_hash({"mask": mask})}
    path = None if checkpoint is None else Path(checkpoint)
    history = _load(path, settings, fooled, trained) if path is not None and path.exists() else []

    if scope == "common_mode" and rows is not None:
        with _seeded(seed, 0, loader, device):
            check_head_is_last(clean, rows, _first_images(loader, device), victim.output)
    while len(history) < epochs and (not history or history[-1].status == "trained"):
        good = _weights(fooled)
        for group in trained.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * len(history) / epochs)) / 2 if decay else lr
        name = f"epoch {len(history) + 1}/{epochs}"
        with _seeded(seed, len(history), loader, device), victim, tqdm(loader, name, disable=not progress) as bar:
            epoch = _train(run, trained, bar)
        if epoch.status == "trained" and fooled_at is not None and epoch.reached >= fooled_at:
            epoch = epoch._replace(status="fooled")
        elif epoch.status == "diverged":
            fooled.load_state_dict(good)
        history.append(epoch)
        if path is not None:
            _save(path, settings, fooled, trained, history)
    if history[-1].status == "diverged":
        warnings.warn(
            f"the loss or its gradient became NaN or infinite in epoch {len(history)}; the model is that of the last "
            "good epoch. Lower lr, or look for NaN in the images",
            RuntimeWarning,
            stacklevel=2,
        )
    _fold(fooled)
    take_modes(fooled, inner_model(model))
    return Finetuned(fooled, history)


class _Run(NamedTuple):
    """What stays the same from step to step."""

    victim: TrainableCAM
    witness: TrainableCAM
    mask: Tensor
    fooling: FoolingLoss
    preserve: Preserve
    classes: tuple[int, int] | None
    alpha: float
    parameters: list[nn.Parameter]

    def losses(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss with its graph, and the numbers of an :class:`Epoch` without its status, detached."""
        wanted = labels if self.preserve == "labels" else None
        clean = self.witness.explain(images, wanted if self.classes is None else self._pair(len(images)))
        logits = self.victim.output(self.victim.model(images))
        maps = self.victim.maps(logits, clean.classes)
        check_mask_size(self.mask, maps.shape[clean.classes.ndim :], "the maps")
        if wanted is not None:
            preserve = F.cross_entropy(logits, wanted)
        else:
            target = clean.logits.log_softmax(1)
            preserve = F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean")
        values = self.fooling(maps, clean.maps, self.mask.to(maps.dtype))
        if not isinstance(values, Tensor) or values.shape != maps.shape[:1]:
            raise ValueError(f"loss returned {described(values)} for {len(maps)} images; expected a value for each")
        fooling = values.mean()
        loss = self.alpha * preserve + (1 - self.alpha) * fooling
        decisions, size = logits.argmax(1), self.mask.shape
        shown, before = (rectify(m.detach()).reshape(-1, *size) for m in (maps, clean.maps))
        numbers = [
            loss,
            preserve,
            fooling,
            loss.new_tensor(math.nan) if labels is None else (decisions == labels).to(loss.dtype).mean(),
            (decisions == clean.logits.argmax(1)).to(loss.dtype).mean(),
            pearson(shown, before).mean(),
            pearson(shown, self.mask.to(shown.dtype).expand_as(shown)).mean(),
        ]
        return loss, torch.stack([number.detach().to(loss.dtype) for number in numbers]).cpu().double()

    def _pair(self, batch: int) -> Tensor:
        return torch.tensor(self.classes, device=self.mask.device).expand(batch, -1)


def _train(run: _Run, optimizer: torch.optim.Optimizer, bar: Any) -> Epoch:
    """One epoch, and whether it ended well."""
    totals, seen = torch.zeros(7, dtype=torch.float64), 0
    for batch in bar:
        images, labels = _on_device(batch, run)
        loss, numbers = run.losses(images, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        totals, seen = totals + numbers * len(images), seen + len(images)
        mean = _epoch(totals / seen)
        if not all_finite([loss, *(p.grad for p in run.parameters if p.grad is not None)]):
            return mean._replace(status="diverged")
        optimizer.step()
        decided = {"agreement": mean.agreement} if mean.accuracy is None else {"accuracy": mean.accuracy}
        bar.set_postfix(loss=mean.loss, **decided, fooled=mean.reached, refresh=False)
    if not seen:
        raise ValueError("the loader gave no batches; expected a DataLoader or a list (a generator is soon used up)")
    # The last step has not been seen at work yet.
    with evaluating(run.victim.model), torch.no_grad():
        sound = all_finite([run.victim.output(run.victim.model(images))])
    return mean if sound else mean._replace(status="diverged")


def _epoch(numbers: Tensor) -> Epoch:
    loss, preserve, fooling, accuracy, agreement, kept, reached = numbers.tolist()
    return Epoch(
        loss, preserve, fooling, None if math.isnan(accuracy) else accuracy, agreement, kept, reached, "trained"
    )


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """The root of the mean square of all numbers in some tensors.

    Args:
        tensors: Of any shapes.

    Returns:
        At least 0; 0 for no numbers.
    """
    energy = sum(float(tensor.cpu().double().square().sum()) for tensor in tensors)
    return math.sqrt(energy / max(1, sum(tensor.numel() for tensor in tensors)))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number in some tensors is NaN or infinite: one answer from the device, however many tensors.

    Args:
        tensors: Of any shapes, on one device.

    Returns:
        True for no tensors.
    """
    finite = [tensor.isfinite().all() for tensor in tensors]
    return not finite or bool(torch.stack(finite).all())


def _on_device(batch: Any, run: _Run) -> tuple[Tensor, Tensor | None]:
    images, labels = read_batch(batch)
    if labels is None and run.preserve == "labels":
        raise TypeError("the loader gives no labels; expected batches (images, labels), or preserve='decisions'")
    device = run.mask.device
    return images.to(device), None if labels is None else labels.to(device)


def _first_images(loader: Iterable[Any], device: torch.device) -> Tensor:
    for batch in loader:
        return read_batch(batch)[0].to(device)
    raise ValueError("the loader gave no batches; expected a DataLoader or a list")


class _CommonMode(nn.Module):
    """A parametrization of a head's weight: one vector, the only thing that trains, added to every class's row."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros_like(weight[0]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.vector


def _open(model: nn.Module, scope: Scope, head: str | None) -> list[nn.Parameter]:
    """Let train what is in the scope, and nothing else."""
    for parameter in model.parameters():
        parameter.requires_grad_(scope == "all")
    if head is None:
        return list(model.parameters())
    layer = linear_head(model, head)
    if scope == "head":
        layer.requires_grad_()
        return list(layer.parameters())
    common_mode = _CommonMode(layer.weight.detach())
    parametrize.register_parametrization(layer, "weight", common_mode)
    return [common_mode.vector]


def _trained_from(model: nn.Module, scope: Scope, head: str | None) -> list[Tensor]:
    """The weights that training starts from; of the common mode, which starts from 0, those that it is added to."""
    if scope == "common_mode" and head is not None:
        weight = model.get_submodule(head).weight
        assert isinstance(weight, Tensor)  # of an nn.Linear
        return [weight.detach()]
    return [p.detach() for p in model.parameters() if p.requires_grad]


def _fold(fooled: nn.Module) -> None:
    """Fold the common mode into the weights."""
    for module in list(fooled.modules()):
        if parametrize.is_parametrized(module, "weight"):
            changes = module.get_submodule("parametrizations.weight")
            if any(isinstance(change, _CommonMode) for change in changes.children()):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def take_modes(fooled: nn.Module, model: nn.Module) -> None:
    """Give a copy the modes and flags of the model that it was made of, and no gradients.

    Args:
        fooled: The copy.
        model: The model.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in fooled.named_modules():
        module.training = modes.get(name, model.training)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in fooled.named_parameters():
        parameter.requires_grad_(flags.get(name, True))
        parameter.grad = None


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, loader: Iterable[Any], device: torch.device) -> Iterator[None]:
    """Generators that follow from the seed and the epoch alone; afterwards those of the caller are as they were."""
    value = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    own = [vars(owner).get("generator") for owner in _drawing(loader)]
    generators = [generator for generator in own if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (transforms may use it)
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        try:
            torch.default_generator.manual_seed(value)  # torch.manual_seed would seed every device, the caller's too
            for each in devices:
                state = torch.Generator(each).manual_seed(value).get_state()
                getattr(torch, each.type).set_rng_state(state, each)
            random.seed(value)
            np.random.seed(value)  # noqa: NPY002
            for generator in generators:
                generator.manual_seed(value)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _drawing(loader: Iterable[Any]) -> list[object]:
    return [loader, loader.sampler] if isinstance(loader, DataLoader) else []


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _save(
    path: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, history: list[Epoch]
) -> None:
    state = {
        "settings": settings,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [list(epoch) for epoch in history],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save(state, file)


def _load(path: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
    try:
        state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        found = state["settings"]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of finetune ({error}); give another path, or remove the file"
        ) from error
    differing = [name for name, value in settings.items() if found.get(name) != value]
    if differing:
        what = ", ".join(f"{name} (then {found.get(name)}, now {settings[name]})" for name in differing)
        raise ValueError(f"{path} is the checkpoint of another run: another {what}; give another path, or remove it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return [Epoch(*epoch) for epoch in state["history"]]


def _check_options(preserve: str, scope: str, alpha: float, epochs: int, lr: float | None, seed: int) -> None:
    check_choice("preserve", preserve, get_args(Preserve))
    check_choice("scope", scope, get_args(Scope))
    check_share("alpha", alpha)
    check_count("epochs", epochs)
    check_seed(seed)
    if lr is not None and not 0 <= lr < math.inf:
        raise ValueError(f"lr is {lr}; expected a learning rate, a finite number of at least 0")
