"""On a GPU all is as on the CPU: ``make test-device``. Without one, all of this is skipped.

The cases are those that ``tests/test_devices.py`` runs on a pretend accelerator; here they run on a real one, with what
only a real one has. ``TEST_DEVICE=cpu`` rehearses it: that the tests themselves are in order.
"""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import diffgradcam as dgc
from diffgradcam.data import explain_dataset, open_explanations
from diffgradcam.export import with_maps
from tests import test_devices as cases
from tests.test_waits import Waits

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("no CUDA device: make test-device needs one", allow_module_level=True)

close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4, equal_nan=True)
IMAGES, LABELS = cases.IMAGES, cases.LABELS
# Adam divides by the size of a gradient, however small: what differs by rounding in float32 moves weights visibly.
TRAINED = ("finetune", "autofool")


@pytest.fixture(autouse=True)
def _single_precision():
    """TensorFloat-32, the default of cuDNN, rounds to 10 bits; and the same sums in each run."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False, allow_tf32=False):
        yield


def here(value):
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def on_both(case):
    expected = case(cases.network(), IMAGES)
    return tree_map(here, case(cases.network().to(DEVICE), IMAGES.to(DEVICE))), tree_map(here, expected)


@pytest.mark.parametrize(("name", "way"), cases.EXPLAINED)
def test_maps_of_a_method(name, way):
    close(*on_both(partial(cases.WAYS[way], cases.CAMS[name])))


@pytest.mark.parametrize("name", cases.CAMS)
def test_the_call_of_a_method_also_takes_images_on_the_cpu(name):
    expected = cases.CAMS[name](cases.network(), "relu")(IMAGES, LABELS.tolist())
    cam = cases.CAMS[name](cases.network().to(DEVICE), "relu")
    for images in (IMAGES.to(DEVICE), IMAGES):
        close(cam(images, LABELS.tolist()), expected)


@pytest.mark.parametrize("name", [*cases.ON_DEVICE, *cases.ON_CPU])
def test_results(name):
    """Losses, attacks, audit, repair, fine-tuning, metrics, targets and all else that a tensor enters."""
    case = (cases.ON_DEVICE | cases.ON_CPU)[name]
    if not name.startswith(TRAINED):
        close(*on_both(case))
        return
    expected = case(cases.network().double(), IMAGES.double())
    found = tree_map(here, case(cases.network().double().to(DEVICE), IMAGES.double().to(DEVICE)))
    close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["GradCAM", "Score", "Ablation"])
def test_autocast(name, dtype):
    if DEVICE == "cpu" and dtype == torch.float16:
        pytest.skip("float16 is for GPUs")
    make = (cases.CAMS | {"GradCAM": dgc.GradCAM})[name]
    expected = make(cases.network(), "relu").explain(IMAGES, LABELS).maps
    cam = make(cases.network().to(DEVICE), "relu")
    with torch.autocast(DEVICE, dtype):
        maps = cam.explain(IMAGES.to(DEVICE), LABELS).maps
    assert maps.dtype == torch.float32
    torch.testing.assert_close(here(maps), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_a_training_step_with_maps_under_a_gradient_scaler():
    """Under the scaler the weights move as without it."""

    def trained(device, scale):
        model = cases.network().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**8, enabled=scale)
        with dgc.GradCAM(model, "relu") as cam:
            for _ in range(3):
                optimizer.zero_grad()
                logits = model(IMAGES.to(device))
                loss = F.cross_entropy(logits, LABELS.to(device)) + cam.maps(logits, LABELS.to(device)).square().mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        return here(model.head.weight)

    close(trained(DEVICE, scale=True), trained("cpu", scale=False))


def test_a_seed_gives_the_same_on_every_device():
    smooth = lambda model, images: dgc.NoiseSmooth(dgc.GradCAM(model, "relu"), samples=3, seed=4).explain(images)  # noqa: E731
    close(*on_both(smooth))


@pytest.mark.skipif(DEVICE != "cuda", reason="elsewhere the classes are looked at")
def test_a_class_out_of_range_in_a_training_step_fails_an_assertion_on_the_device():
    code = "import torch, diffgradcam; from tests import test_devices as cases; model = cases.network().cuda()\n"
    code += "with diffgradcam.GradCAM(model, 'relu') as cam:\n"
    code += "    print(cam.maps(model(cases.IMAGES.cuda()), torch.tensor([0, 3, 5], device='cuda')).sum())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "maps(): the classes are not class indices of this model" in run.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [dgc.GradCAM, dgc.DiffGradCAM])
def test_all_classes_under_autocast_are_in_closed_form(method, dtype):
    if DEVICE == "cpu" and dtype == torch.float16:
        pytest.skip("float16 is for GPUs")
    model = cases.pooled(classes=100).to(DEVICE)
    with torch.autocast(DEVICE, dtype):
        every = method(model, "relu").explain(IMAGES.to(DEVICE), "all").maps
        some = method(model, "relu").explain(IMAGES.to(DEVICE), torch.arange(60, 70).expand(3, -1)).maps
    close(every[:, 60:70], some, rtol=0.02, atol=0.02 * float(some.abs().max()))


class Sequence(nn.Module):
    """A convolution for each frame, then a recurrent layer: cuDNN has no backward pass for it in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        frames = self.conv(images).relu().mean(2).transpose(1, 2)
        return self.head(self.rnn(frames)[0][:, -1])


@pytest.mark.parametrize("make", [dgc.GradCAM, cases.CAMS["Ablation"]])
def test_a_network_with_a_recurrent_layer(make):
    torch.manual_seed(0)
    model = Sequence().eval()
    expected = make(model, "conv").explain(IMAGES, 1).maps
    close(here(make(model.to(DEVICE), "conv").explain(IMAGES.to(DEVICE), 1).maps), expected)


def test_distributed_data_parallel_with_one_process(tmp_path):
    """NCCL where there is a GPU: a step with maps, and a data set."""
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    distributed.init_process_group(backend, f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = cases.network().to(DEVICE)
        wrapped = nn.parallel.DistributedDataParallel(model)
        with dgc.GradCAM(wrapped, ["relu"]) as cam:
            logits = wrapped(IMAGES.to(DEVICE))
            (F.cross_entropy(logits, LABELS.to(DEVICE)) + cam.maps(logits, LABELS.to(DEVICE)).mean()).backward()
        plain = cases.network()
        with dgc.GradCAM(plain, ["relu"]) as cam:
            logits = plain(IMAGES)
            (F.cross_entropy(logits, LABELS) + cam.maps(logits, LABELS).mean()).backward()
        close(here(model.conv.weight.grad), plain.conv.weight.grad)

        loader = torch.utils.data.DataLoader(list(IMAGES), batch_size=2, pin_memory=DEVICE == "cuda")
        explain_dataset(dgc.GradCAM(wrapped, "relu"), loader, tmp_path / "out", device=DEVICE, progress=False)
        maps = torch.cat([maps for _, maps in open_explanations(tmp_path / "out").shards()])
        plain = cases.network()
        plain.load_state_dict(model.cpu().state_dict())
        close(maps, dgc.GradCAM(plain, "relu").explain(IMAGES).maps)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("method", [dgc.GradCAM, dgc.DiffGradCAM, dgc.LayerCAM])
def test_explain_waits_once(method):
    cam = method(cases.network().to(DEVICE), "relu")
    images = IMAGES.to(DEVICE)
    cam.explain(images)  # the first call also looks whether the outputs are probabilities
    with Waits() as waits:
        cam.explain(images, "all")
    assert sum(waits.found.values()) == 1


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA reports each wait")
def test_explain_waits_once_by_the_count_of_cuda():
    cam = dgc.GradCAM(cases.network().to(DEVICE), "relu")
    images = IMAGES.to(DEVICE)
    cam.explain(images)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as seen:
            cam.explain(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) == 1


def test_a_data_set_from_pinned_memory_is_as_on_the_cpu(tmp_path):
    """Batches are sent ahead in a stream of their own, and results come back without a wait; one image is broken."""
    images = torch.rand(40, *IMAGES.shape[1:], generator=torch.Generator().manual_seed(3))
    images[17, 0, 0, 0] = torch.nan

    def run(device, out):
        loader = torch.utils.data.DataLoader(list(images), batch_size=4, pin_memory=device == "cuda")
        cam = dgc.DiffGradCAM(cases.network().to(device), "relu")
        return explain_dataset(
            cam, loader, tmp_path / out, shard_size=8, device=device, on_error="skip", progress=False, classes="top5"
        )

    ours, expected = run(DEVICE, "device"), run("cpu", "cpu")
    for (rows, maps), (expected_rows, expected_maps) in zip(ours.shards(), expected.shards(), strict=True):
        close(maps, expected_maps)
        for row, other in zip(rows, expected_rows, strict=True):
            assert row.keys() == other.keys()
            close(
                [row.get("score", 0), row.get("probability", 0)], [other.get("score", 0), other.get("probability", 0)]
            )


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA has graphs")
@pytest.mark.parametrize("method", [dgc.GradCAM, dgc.DiffGradCAM, dgc.LayerCAM])
def test_maps_in_the_model_can_be_captured_in_a_cuda_graph(method):
    cam = method(cases.network().to(DEVICE), "relu")
    static = IMAGES.to(DEVICE)
    module = with_maps(cam, static, "top5" if method is dgc.GradCAM else "argmax")
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        module(static)  # what is allocated once is allocated before the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        logits, classes, maps = module(static)
    others = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    static.copy_(others)
    graph.replay()
    expected = cam.explain(others, classes)
    close(logits, expected.logits)
    close(maps, expected.maps)


@pytest.mark.skipif(DEVICE != "cuda", reason="only CUDA has graphs")
def test_a_training_step_with_maps_can_be_captured_in_a_cuda_graph():
    """Nothing between the forward pass and the gradients waits for the device."""
    model = cases.network().to(DEVICE)
    static, labels = IMAGES.to(DEVICE), LABELS.to(DEVICE)
    cam = dgc.DiffGradCAM(model, "relu")

    def loss():
        logits = model(static)
        return F.cross_entropy(logits, labels) + cam.maps(logits, labels).square().mean()

    weights = list(model.parameters())
    with cam:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.autograd.grad(loss(), weights)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = torch.autograd.grad(loss(), weights)
        static.copy_(static.flip(0))
        graph.replay()
        close(captured, torch.autograd.grad(loss(), weights))
