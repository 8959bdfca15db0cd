"""Ctrl-C between two lines of the library, in exports and in the callbacks of trainers."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffgradcam import GradCAM, LayerCAM
from diffgradcam._core.tracing import current_trace
from diffgradcam.export import OnnxExplainer, onnx_files, with_maps, write_onnx
from diffgradcam.losses import DifferenceSalienceLoss, SaliencyGuidedLoss
from diffgradcam.training import audit_in_training, draw_maps, guided_loss
from tests.conftest import import_peer
from tests.integrations.data import SIZE, items, network
from tests.untouched import untouched

from .test_interruptions import interrupt_at

IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def process():
    """What an export could leave switched, of the process."""
    return (
        torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(), current_trace(),
        torch.autograd.is_multithreading_enabled(), torch._C._len_torch_dispatch_stack(),
        torch._C._len_torch_function_stack(),
    )  # fmt: skip


def export(model, _):
    with_maps(GradCAM(model.eval(), "features"), IMAGES, "top2")


def export_each_class(model, _):
    with_maps(LayerCAM(model.eval(), ["features", "norm"]), IMAGES, [0, 2])


def draw(model, _):
    draw_maps(GradCAM(model.train(), "features"), IMAGES)


def audit(model, _):
    audit_in_training(GradCAM(model.train(), "features"), IMAGES)


def guide(model, _):
    loss = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.5)
    labels, human = torch.tensor([0, 1]), torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with GradCAM(model.train(), "features", rectify=False) as cam:
        guided_loss(cam, loss, model(IMAGES), labels, human)


# name: (what is done, whether the model trains, every how many lines in the short form)
WORK = {
    "with_maps": (export, False, 991),
    "with_maps of each class": (export_each_class, False, 1987),
    "draw_maps": (draw, True, 61),
    "audit_in_training": (audit, True, 31),
    "guided_loss": (guide, True, 13),
}


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.siege)])
@pytest.mark.parametrize("name", WORK)
@pytest.mark.filterwarnings("ignore:the audit of Network says")  # its weights are random
def test_ctrl_c_between_two_lines(name, long, tmp_path):
    work, training, every = WORK[name]
    model = network().train(training)
    work(model, tmp_path)  # what is imported late is imported
    before, line = process(), 1
    while True:
        with untouched(model, buffers=name != "guided_loss"):  # its forward pass is the user's own
            came = interrupt_at(line, lambda: work(model, tmp_path))
        assert process() == before, line
        if not came:
            break
        line += -(-every // 20) if long else every
    assert line > 100


class Stubborn(nn.Module):
    """Ctrl-C comes when it is put into evaluation mode."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "training" and value is False:
            raise KeyboardInterrupt("on the way into evaluation mode")


def test_ctrl_c_while_a_model_is_put_into_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Dropout(), Stubborn(), nn.ReLU())
    with untouched(model), pytest.raises(KeyboardInterrupt, match="on the way into evaluation mode"):
        draw_maps(GradCAM(model, "0"), IMAGES)


# A file that is open when Ctrl-C comes while its with block is being left is closed by Python itself, which says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.siege)])
def test_ctrl_c_in_an_export_leaves_the_old_file_or_the_new_one(tmp_path, every, monkeypatch):
    pytest.importorskip("onnxscript", reason="ONNX files need the extra onnx")
    module = with_maps(GradCAM(network().eval(), "features"), IMAGES)
    proto = SimpleNamespace(SerializeToString=lambda: b"new")
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), model_proto=proto)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    file, line, seen = tmp_path / "m.onnx", 1, set()
    write_onnx(module, file)
    while True:
        onnx_files._write(file, b"old")
        came = interrupt_at(line, lambda: write_onnx(module, file))
        seen.add(onnx_files._verified(file))  # raises for a file beside the checksum of another one
        assert {path.name for path in tmp_path.iterdir()} <= {"m.onnx", "m.onnx.sha256"}
        if not came:
            break
        line += every
    assert seen == {b"old", b"new"}
    with pytest.raises(ValueError, match="cannot be read as an ONNX model"):
        OnnxExplainer(file)


def lightning_module(model, lightning):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def log_dict(self, *_, **__):
            pass

    return Module()


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.siege)])
def test_ctrl_c_in_a_guided_step_of_lightning(every):
    """The callback is called as Lightning calls it: at the start, in each step, at the end or when anything raises."""
    lightning = import_peer("lightning.pytorch")
    from diffgradcam.integrations.lightning import SaliencyGuidance

    model = network().train()
    module, batch = (
        lightning_module(model, lightning),
        [torch.stack(part) for part in list(zip(*items(4), strict=True))[:4]],
    )
    cam = GradCAM(model, "features", rectify=False)
    loss = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.5)
    callback = SaliencyGuidance(cam, loss, labels=1, human=2, mask=3)
    plain, own = module.training_step.__func__, sorted(vars(module))

    def fit():
        try:
            callback.on_fit_start(None, module)
            module.training_step(batch, 0)
            callback.on_fit_end(None, module)
        except BaseException as error:
            callback.on_exception(None, module, error)
            raise

    line = 1
    while True:
        with untouched(model, buffers=False), contextlib.suppress(KeyboardInterrupt):
            came = interrupt_at(line, fit)
        assert module.training_step.__func__ is plain
        assert sorted(vars(module)) == own
        if not came:
            break
        line += every
    assert line > 100
