"""One training: cross-entropy alone or guided by saliency, resumable at every epoch, on one process or on many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .._core.layers import LayerSpec
from .._core.outputs import find_logits
from ..data import SaliencyItem
from ..losses import (
    CamalLoss,
    ContrastSalienceLoss,
    CyborgLoss,
    DifferenceSalienceLoss,
    DivergenceSalienceLoss,
    SaliencyGuidedLoss,
)
from ..methods.gradient import GradCAM
from ..metrics import auroc
from .checkpoint import Checkpoint, check_weights, load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint
from .guidance import guided_loss, twice_differentiable
from .images import augmented
from .protocol import Settings

_BLUR = (0.1, 2.0)  # as in VISER
_TEST_BATCH = 64


class Epoch(NamedTuple):
    """Means over the steps of one epoch, and how good the model was after it.

    Attributes:
        epoch: From 1.
        loss: The total.
        classification: Cross-entropy.
        saliency: The saliency loss, unweighted; 0 for cross-entropy alone.
        score: On the validation images: AUROC, or accuracy with more than two classes; None without such images.
    """

    epoch: int
    loss: float
    classification: float
    saliency: float
    score: float | None


class Fit(NamedTuple):
    """A finished training.

    Attributes:
        model: In evaluation mode, with the weights that were selected.
        history: All epochs.
        selected: The epoch whose weights these are, from 1.
    """

    model: nn.Module
    history: list[Epoch]
    selected: int


def fit(
    model: nn.Module,
    train: Dataset[SaliencyItem],
    settings: Settings,
    *,
    layer: LayerSpec,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    validation: Dataset[SaliencyItem] | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    about: Mapping[str, Any] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Fit:
    """Train a model.

    With a ``checkpoint``, the state is written there after every epoch, and what lies there is gone on with: a
    training that was killed at any time and is started again ends with the same numbers as one that was not (on a GPU
    as far as its kernels repeat themselves). Where
    ``torch.distributed`` is initialised, each process takes its part of every batch, and the first one writes.

    Args:
        model: Classifier; it is trained in place.
        train: Training images, of one size.
        settings: See :class:`~diffgradcam.training.Settings`.
        layer: Where maps are taken, as any CAM takes it.
        reshape_transform: As any CAM takes it; for a transformer, ``tokens_to_grid``.
        validation: Images to choose the best epoch with. Needed for ``select="best"``.
        device: Where to train.
        checkpoint: File of the state, ``.safetensors``.
        about: What else must be the same to go on with a checkpoint, such as the data; what JSON can hold.
        workers: Processes that read images.
        progress: Show a bar.

    Returns:
        See :class:`Fit`.

    Raises:
        ValueError: If the best epoch is wanted without validation images, the checkpoint is of another training, there
            are fewer images than one batch has, or the loss is no longer finite.
    """
    count = len(train)  # type: ignore[arg-type]
    if settings.select == "best" and validation is None:
        raise ValueError("select='best' needs validation images: pass them, or keep the last epoch with select='last'")
    steps = count // settings.batch_size
    if not steps:
        raise ValueError(f"{count} training images for a batch of {settings.batch_size}: expected at least one batch")
    rank, world = place()
    if settings.batch_size % world:
        raise ValueError(f"a batch of {settings.batch_size} for {world} processes: expected a multiple of them")
    device = torch.device(device)
    model.to(device)
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # convolutions are faster so
    criterion = _criterion(settings, train, device)
    optimizer = _optimizer(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp and device.type == "cuda")
    history: list[Epoch] = []
    made_with = json.loads(json.dumps({**(about or {}), "settings": settings.to_dict()}))
    best = _copied(model)
    selected = 0
    if checkpoint is not None and checkpoint.is_file():
        state = read_checkpoint(checkpoint)
        if state.about.get("made_with") != made_with:
            raise ValueError(
                f"{checkpoint} was made with {state.about.get('made_with')}, but this training has {made_with}: choose "
                "another folder, or the same options"
            )
        try:
            best, history, selected = _restore(state, model, optimizer, scaler)
        except (ValueError, TypeError, LookupError, RuntimeError) as error:
            raise ValueError(f"{checkpoint} cannot be gone on with ({error}); delete it to begin again") from error
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    bar = tqdm(
        total=settings.epochs * steps,
        initial=len(history) * steps,
        desc=f"{settings.loss}, seed {settings.seed}",
        unit="step",
        disable=not progress or rank > 0,
    )
    with bar:
        for epoch in range(len(history), settings.epochs):
            seed_epoch(settings.seed, epoch)
            batches = _batches(train, settings, epoch, rank, world, workers)
            attention = nullcontext() if settings.loss == "ce" else twice_differentiable()
            with GradCAM(model, [layer], reshape_transform, rectify=False) as cam, attention:
                means = _epoch(wrapped, cam, batches, settings, epoch, steps, criterion, optimizer, scaler, device, bar)
            score = None if validation is None else _score(model, validation, device)
            history.append(Epoch(epoch + 1, *means, score))
            if settings.select == "last" or not selected or _better(score, history[selected - 1].score):
                selected, best = epoch + 1, _copied(model)
            if checkpoint is not None and rank == 0:
                tensors, groups = optimizer_tensors(optimizer)
                parts = {"model": model.state_dict(), "best": best, "optimizer": tensors}
                write_checkpoint(
                    checkpoint,
                    {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()},
                    {
                        "made_with": made_with,
                        "history": [list(each) for each in history],
                        "selected": selected,
                        "groups": groups,
                        "scaler": scaler.state_dict(),
                    },
                )
    model.load_state_dict(best)
    return Fit(model.eval(), history, selected)


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed PyTorch for one epoch, so that an epoch does not depend on how many ran before it in this process.

    Args:
        seed: Of the training.
        epoch: From 0.
    """
    torch.manual_seed(_mixed(seed, epoch))


@torch.no_grad()
def predict(
    model: nn.Module, dataset: Dataset[SaliencyItem], device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Logits and labels of a data set, in its order.

    Args:
        model: In evaluation mode.
        dataset: Images of one size.
        device: Where the model is.

    Returns:
        ``(logits (N, K) float32, labels (N,))``, on the CPU.
    """
    logits, labels = [], []
    for batch in DataLoader(dataset, batch_size=_TEST_BATCH):
        logits.append(find_logits(model(batch.image.to(device))).float().cpu())
        labels.append(batch.label)
    return torch.cat(logits), torch.cat(labels)


def _restore(
    state: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[dict[str, Tensor], list[Epoch], int]:
    """Put everything back: the best weights, the history, and which epoch they are of. Raises where a part is bad."""
    own, best = state.part("model"), state.part("best")
    for weights in (own, best):
        check_weights(weights, model.state_dict())
    history = [Epoch(*values) for values in state.about["history"]]
    selected = state.about["selected"]
    if not all(value is None or isinstance(value, int | float) for epoch in history for value in epoch):
        raise TypeError("its history holds something else than numbers")
    if not isinstance(selected, int) or not 1 <= selected <= len(history):
        raise ValueError(f"it selects epoch {selected!r} of {len(history)}")
    load_optimizer(optimizer, state.part("optimizer"), state.about["groups"])
    scaler.load_state_dict(state.about["scaler"])
    model.load_state_dict(own)
    return best, history, selected


def _criterion(settings: Settings, train: Dataset[SaliencyItem], device: torch.device) -> Callable[..., Any]:
    weights = _class_weights(train).to(device) if settings.class_weights else None
    if settings.loss == "ce":
        return lambda logits, labels: F.cross_entropy(logits, labels, weights)
    losses: dict[str, nn.Module] = {
        "cyborg": CyborgLoss(),
        "difference": DifferenceSalienceLoss(),
        "contrast": ContrastSalienceLoss(),
        "divergence": DivergenceSalienceLoss(settings.divergence_weight),
        "camal": CamalLoss(),
    }
    return SaliencyGuidedLoss(
        losses[settings.loss], settings.alpha, blur=_BLUR if settings.blur else None, class_weights=weights
    )


def labels_of(dataset: Dataset[SaliencyItem]) -> Tensor:
    """Labels of a data set, read without its images where it says them.

    Args:
        dataset: A data set with an attribute ``labels``, a subset of one, or any other.

    Returns:
        ``(N,)``, int64.
    """
    if isinstance(dataset, torch.utils.data.Subset):
        return labels_of(dataset.dataset)[list(dataset.indices)]
    known = getattr(dataset, "labels", None)
    if known is not None:
        return torch.as_tensor(known)
    return torch.stack([torch.as_tensor(dataset[i].label) for i in range(len(dataset))])  # type: ignore[arg-type]


def _class_weights(train: Dataset[SaliencyItem]) -> Tensor:
    counts = torch.bincount(labels_of(train)).float()
    return counts.sum() / (len(counts) * counts.clamp_min(1))


def _optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, rate, settings.momentum, weight_decay=decay)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(trained, rate, weight_decay=decay)


def _batches(
    train: Dataset[SaliencyItem], settings: Settings, epoch: int, rank: int, world: int, workers: int
) -> Iterator[SaliencyItem]:
    """This process's part of each batch; what is left over when no whole batch can be made is left out."""
    count, size = len(train), settings.batch_size  # type: ignore[arg-type]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_mixed(settings.seed, epoch, "order")))
    batches: list[list[int]] = [
        order[start : start + size][rank::world].tolist() for start in range(0, count - size + 1, size)
    ]
    return iter(DataLoader(train, batch_sampler=batches, num_workers=workers))


def _epoch(
    model: nn.Module,
    cam: GradCAM,
    batches: Iterator[SaliencyItem],
    settings: Settings,
    epoch: int,
    steps: int,
    criterion: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    bar: Any,
) -> tuple[float, float, float]:
    model.train()
    losses = []
    cast = torch.float16 if device.type == "cuda" else torch.bfloat16
    generator = torch.Generator().manual_seed(_mixed(settings.seed, epoch, f"augmentation {place()[0]}"))
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(epoch * steps + step, steps)
        images, human = augmented(batch.image, batch.saliency, settings.augment, generator)
        images, human = images.to(device), human.to(device)
        labels, has = batch.label.to(device), batch.has_saliency.to(device)
        with torch.autocast(device.type, dtype=cast, enabled=settings.amp):
            logits = find_logits(model(images)).float()
        if isinstance(criterion, SaliencyGuidedLoss):
            loss, classification, saliency = guided_loss(
                cam, criterion, logits, labels, human, has, choice=settings.explained
            )
        else:
            loss = classification = criterion(logits, labels)
            saliency = loss.new_zeros(())
        optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        losses.append(torch.stack([loss, classification, saliency]).detach())
        bar.update()
    # Brought to the CPU once an epoch: until then no step waits for the device. Not every device has float64.
    means = torch.stack(losses).cpu().double().mean(0)
    if not bool(means.isfinite().all()):
        raise ValueError(f"the loss is no longer finite in epoch {epoch + 1}: expected a lower learning rate")
    return float(means[0]), float(means[1]), float(means[2])


def _score(model: nn.Module, validation: Dataset[SaliencyItem], device: torch.device) -> float:
    logits, labels = predict(model.eval(), validation, device)
    if logits.shape[1] == 2:
        return auroc(labels, logits[:, 1] - logits[:, 0])
    return float((logits.argmax(1) == labels).double().mean())


def _better(score: float | None, before: float | None) -> bool:
    return score is not None and (before is None or score > before)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def place() -> tuple[int, int]:
    """Rank of this process and number of processes; ``(0, 1)`` where it is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _mixed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")
