"""Several processes explain one data set: exactly what one process finds, and what is done stays done."""

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from diffgradcam import GradCAM, layer_input
from diffgradcam.data import explain_dataset, open_explanations
from tests import models

pytest.importorskip("safetensors", reason="stores need the extra store")
gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this build of PyTorch has no gloo, with which processes without GPUs talk to each other",
)
ROOT = Path(__file__).parent.parent
DATASET = TensorDataset(models.images(23), torch.arange(23) % 5, torch.arange(23))
dying = False


def labels(batch):
    if dying and 13 in batch[2]:
        os._exit(1)
    return batch[1]


def explain(folder, sampler=None, seed=0):
    """Batches of 2, shards of 4: the second of two processes has images 4 to 7, 12 to 15 and 20 to 22."""
    cam = GradCAM(models.deep(seed=seed), "relu")
    loader = DataLoader(DATASET, batch_size=2, sampler=sampler)
    return explain_dataset(cam, loader, folder, classes=labels, shard_size=4, progress=False)


def main(rank, folder):
    """One of two processes: explain to ``two``, then to ``died``, where the second process dies at image 13."""
    global dying
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    explain(folder / "two", DistributedSampler(DATASET))  # the sampler pads 23 images to 24
    dying = rank == 1
    explain(folder / "died", DistributedSampler(DATASET))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes explained."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}  # host names may lead nowhere
    commands = [[sys.executable, "-m", "tests.test_distributed", str(rank), str(folder)] for rank in range(2)]
    start = [subprocess.Popen(c, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate(timeout=300)[1] for process in start]
    assert [process.returncode for process in start] == [0, 1], errors
    explain(folder / "one")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@gloo
def test_two_processes_find_exactly_what_one_finds(folder):
    assert contents(folder / "two") == contents(folder / "one")
    found = open_explanations(folder / "two")
    assert [row["position"] for row in found.rows()] == list(range(23))
    assert "index.jsonl" in contents(folder / "two")


@gloo
def test_a_process_that_dies_leaves_the_work_of_the_others(folder):
    found = open_explanations(folder / "died")
    done = {row["position"] for row in found.rows()}
    first = {*range(4), *range(8, 12), *range(16, 20)}
    assert done in (first, first | set(range(4, 8)))  # its own first shard, if that was written when it died
    assert found.missing == 23 - len(done)
    explain(folder / "died")  # one process goes on
    left = {name: data for name, data in contents(folder / "died").items() if not name.endswith(".partial")}
    assert left == contents(folder / "one")


@gloo
def test_torchrun_finds_exactly_what_one_process_finds(tmp_path):
    """As the documentation starts it, here with two processes on this machine."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    start = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", *start, "-m", "tests.test_distributed", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    explain(tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.ray
def test_the_ray_example_finds_what_explain_finds(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="not in the test environment; pip install '.[ray]'")
    monkeypatch.syspath_prepend(ROOT / "examples")
    photos = importlib.import_module("photos")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "ray_data.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    names = ["astronaut", "chelsea", "coffee", "rocket"]
    images = photos.to_input([photos.crop(getattr(photos.data, name)()) for name in names])
    logits, classes, _ = GradCAM(photos.lite0(), layer_input("_avg_pooling")).explain(images)
    probabilities = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    assert done.stdout.splitlines()[-4:] == [
        f"{name}: class {index}, {probability:.0%}, map (7, 7)"
        for name, index, probability in zip(names, classes.tolist(), probabilities.tolist(), strict=True)
    ]
    assert list((tmp_path / "output" / "ray").glob("*.parquet"))


def test_the_ray_example_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.syspath_prepend(ROOT / "examples")
    with pytest.raises(SystemExit, match=r"^$"):
        runpy.run_path(str(ROOT / "examples" / "ray_data.py"), run_name="__main__")
    assert capsys.readouterr().out == "this example needs Ray Data: pip install '.[ray]'\n"


@pytest.fixture
def second_of_three(monkeypatch):
    """Make this process believe that it is the second of three; returns the list that holds the first one's word."""
    word = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(distributed, "broadcast_object_list", lambda box: box.__setitem__(slice(None), word))
    return word


def test_a_process_takes_its_share_of_what_is_missing(tmp_path, second_of_three):
    second_of_three.append([0, 2, 3, 4, 5])
    found = explain(tmp_path)
    assert found.done() == [2, 5]


def test_a_process_with_other_weights_is_refused(tmp_path, second_of_three):
    second_of_three.append([])
    explain(tmp_path)
    with pytest.raises(ValueError, match="holds the explanations of another run \\(weights: "):
        explain(tmp_path, seed=1)


def test_what_the_first_process_refuses_all_refuse(tmp_path, second_of_three):
    second_of_three.append(NotADirectoryError("out is a file"))
    with pytest.raises(NotADirectoryError, match="out is a file"):
        explain(tmp_path)


@pytest.mark.usefixtures("second_of_three")
def test_the_first_process_says_what_it_refuses_before_it_fails(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "broadcast_object_list", said.extend)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder"):
        explain(tmp_path / "file")
    assert isinstance(said[0], NotADirectoryError)


def under_torchrun(folder):
    """One of the processes that torchrun starts; it tells each its rank in the environment."""
    distributed.init_process_group("gloo")
    explain(folder, DistributedSampler(DATASET))
    distributed.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        under_torchrun(Path(sys.argv[1]))
    else:
        main(int(sys.argv[1]), Path(sys.argv[2]))
