"""Two processes of Lightning train what one does with the whole batch, the first logs, and both stop together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from diffgradcam import GradCAM
from diffgradcam.robustness import AuditThresholds
from tests.conftest import import_peer

from .data import SIZE, criterion, items, network, same_weights, trained
from .logs import pictures_of

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this build of PyTorch has no gloo, with which processes without GPUs talk to each other",
)
ROOT = Path(__file__).parents[2]
IMAGES = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def marked():
    """Images that all have a human map, so that the mean over two halves is that over all."""
    return [item._replace(saliency=item.image.mean(0).abs(), has_saliency=torch.tensor(True)) for item in items()]


def main(rank, folder):
    """One of the processes. Only the first one would call the model fooled."""
    torch.set_num_threads(1)
    lightning = import_peer("lightning.pytorch")
    from diffgradcam.integrations.lightning import AuditEachEpoch, MapLogger, SaliencyGuidance
    from tests.integrations.test_lightning import Module

    model = network(norm=False)
    cam = GradCAM(model, "features", rectify=False)
    callbacks = [
        SaliencyGuidance(cam, criterion(), labels="label", human="saliency"),
        MapLogger(cam, IMAGES[:2], every_n_steps=1),
        AuditEachEpoch(cam, IMAGES, on_fooled="stop", thresholds=AuditThresholds(agreement=-1.0 if rank else 1.0)),
    ]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, callbacks=callbacks, enable_checkpointing=False,
        logger=lightning.loggers.TensorBoardLogger(folder, name="", version=""), enable_progress_bar=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    sampler = DistributedSampler(marked(), num_replicas=2, rank=rank, shuffle=False)
    trainer.fit(Module(model), DataLoader(marked(), batch_size=4, sampler=sampler))
    assert trainer.current_epoch == 1
    torch.save(model.state_dict(), folder / f"{rank}.pt")


def test_two_processes_train_what_one_does_and_one_of_them_logs(tmp_path):
    import_peer("lightning.pytorch")
    import_peer("tensorboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                                "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.test_two_processes", str(rank), str(tmp_path)],
            cwd=ROOT, env=environment | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    plain = network(norm=False)
    trained(plain, marked(), size=8)
    for rank in range(2):
        found = network(norm=False)
        found.load_state_dict(torch.load(tmp_path / f"{rank}.pt", weights_only=True))
        same_weights(found, plain)
    assert ["says: FOOLED" in text for text in errors] == [True, False]
    assert [step for step, _ in pictures_of(tmp_path)] == [0, 1, 2]
    assert len(list(tmp_path.glob("events.*"))) == 1


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
