import os

# Small tensors gain nothing from threads, and several test processes share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import importlib
import shutil
import signal
import warnings

import pytest
import torch
from hypothesis import settings

from benchmarks.torchvision_shim import define_missing_operators

# No deadline: on a crowded machine the time of one example says nothing. `--hypothesis-profile=thorough` looks longer.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile("quick")


# A shell ignores Ctrl-C for what it runs in the background, and its children inherit that; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What was imported by now stays: the cycle collector, which many tests call, need not look at it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same random numbers, whichever tests ran before it."""
    torch.manual_seed(0)


def import_peer(name):
    """Import an optional library to compare with, or skip the test and say why."""
    define_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other libraries warn about on import is not ours to fix
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed: {error}", allow_module_level=True)


@pytest.fixture(scope="session")
def captum_attr():
    return import_peer("captum.attr")


@pytest.fixture(scope="session")
def pytorch_grad_cam():
    return import_peer("pytorch_grad_cam")


@pytest.fixture(scope="session")
def photos():
    """The module of the examples that has the real model and the real photographs; needs the ``examples`` extra."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="the real model needs the extra examples")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("examples.photos")


@pytest.fixture(scope="session")
def lite0(photos):
    """EfficientNet-Lite0 with its ImageNet weights."""
    return photos.lite0()


@pytest.fixture(scope="session")
def photo_inputs(photos):
    """Real photographs by name, ``(3, 224, 224)``, as the real model takes them."""
    data = pytest.importorskip("skimage.data", reason="the real photographs need the extra examples")
    named = {
        "cat beside coffee": photos.cat_beside_coffee(),
        "cat": photos.crop(data.chelsea()),
        "coffee": photos.crop(data.coffee()),
        "rocket": photos.crop(data.rocket()),
    }
    return dict(zip(named, photos.to_input(list(named.values())), strict=True))


@pytest.fixture(scope="session")
def chromium():
    """A browser without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    with playwright.sync_playwright() as tool:
        installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            browser = tool.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
        yield browser
        browser.close()
