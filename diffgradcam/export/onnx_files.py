"""Models with maps as ONNX files, and what runs them: ONNX Runtime, without autograd."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.class_names import ClassNames, GivenClassNames, as_class_names
from .._core.errors import NotTraceable
from .._core.explanation import Explanation
from .._core.optional import import_optional
from .._core.persistence import atomic_file
from .tracing import ModelWithMaps

OUTPUTS = ("logits", "classes", "maps")
_KEY = "diffgradcam"  # of our facts among the file's metadata
_TYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64, "tensor(float16)": torch.float16}
_UNKNOWN = re.compile(r"No (?:ONNX function|decompositions?)[^<]*<OpOverload\(op='([^']+)'")


def write_onnx(
    module: ModelWithMaps,
    file: Path | str,
    *,
    class_names: GivenClassNames | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Write a model with maps as an ONNX file, and its checksum beside it.

    The file has the input ``images`` ``(B, *size)`` and the outputs ``logits``, ``classes`` and ``maps``. Under the key
    ``diffgradcam`` its metadata has, as JSON, the class names, the facts, and what the maps are. The checksum is in
    ``FILE.sha256``, in the form of ``sha256sum``.

    Args:
        module: What :func:`with_maps` returned.
        file: Where.
        class_names: As :class:`~diffgradcam.BaseCAM` takes them.
        facts: What else a reader should know, such as how to prepare images; anything that JSON can hold.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        TypeError: If ``module`` is of another kind, or JSON cannot hold the facts.
        RuntimeError: If ONNX has no operator for a part of it, as for the eigenvectors of EigenCAM.
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
    """
    if not isinstance(module, ModelWithMaps):
        raise TypeError(f"module is {type(module).__name__}; expected what with_maps() returned")
    known = _known(module, class_names, facts)
    import_optional("onnx", "write_onnx")
    operators = import_optional("onnxscript", "write_onnx").opset18
    tensor = next(module.parameters(), torch.empty(0))
    example = torch.zeros(2, *module.size, dtype=module.dtype, device=tensor.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own code
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=OUTPUTS,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                custom_translation_table={torch.ops.aten.sort.stable: _sort(operators)},
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        missing = _UNKNOWN.search(str(error))
        what = f"ONNX has no operator for {missing[1]}" if missing else str(error).strip().splitlines()[-1]
        raise NotTraceable(
            f"{module.explains} cannot be an ONNX file: {what}; run the module itself, or torch.export it, or explain "
            "with another method or layer"
        ) from error
    assert program is not None  # only the old exporter returns nothing
    program.model.metadata_props[_KEY] = known
    return _write(Path(file), program.model_proto.SerializeToString())


class OnnxExplainer:
    """Explains with an ONNX file: decisions and maps from ONNX Runtime, without PyTorch's autograd.

    Args:
        file: What :func:`write_onnx` wrote. If its checksum is beside it, it is verified.
        **options: Of ``onnxruntime.InferenceSession``, such as ``providers=["CUDAExecutionProvider"]``.

    Attributes:
        facts: What :func:`write_onnx` was told, and ``explains``.
        class_names: The names of the classes by index; empty where they are not known.
        size: The shape of one image.

    Raises:
        ValueError: If the checksum differs, the file keeps weights in other files, or it is not a model with maps.
        ImportError: If onnx or onnxruntime is not installed.
    """

    def __init__(self, file: Path | str, **options: Any) -> None:
        runtime, onnx = (import_optional(name, "OnnxExplainer") for name in ("onnxruntime", "onnx"))
        path = Path(file)
        data = _verified(path)
        options.setdefault("providers", ["CPUExecutionProvider"])
        try:
            _refuse_other_files(onnx.ModelProto.FromString(data), onnx.TensorProto)
            self._session = runtime.InferenceSession(data, **options)
        except Exception as error:  # a class of its own for each kind of damage
            raise ValueError(f"{path} cannot be read as an ONNX model: {' '.join(str(error).split())}") from error
        if tuple(output.name for output in self._session.get_outputs()) != OUTPUTS:
            raise ValueError(
                f"{path} has no maps; expected a file of write_onnx() or of the command diffgradcam export"
            )
        inputs = self._session.get_inputs()
        if [image.name for image in inputs] != ["images"] or inputs[0].type not in _TYPES:
            given = ", ".join(f"{image.name}, {image.type}" for image in inputs)
            raise ValueError(f"{path} takes {given}; expected images alone, as a file of write_onnx() does")
        self._dtype = _TYPES[inputs[0].type]
        self.size: tuple[int, ...] = tuple(inputs[0].shape[1:])
        self.facts = _facts(self._session.get_modelmeta().custom_metadata_map.get(_KEY, "{}"), path)
        try:
            self.class_names = ClassNames.from_json(self.facts.get("class_names"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has class names that cannot be read: {error}") from error

    def explain(self, images: Tensor) -> Explanation:
        """Decide and explain, for the classes that the file was made for.

        Args:
            images: ``(B, *size)``, of any device.

        Returns:
            As :meth:`diffgradcam.BaseCAM.explain`, on the CPU.

        Raises:
            TypeError: If the images are of another type of numbers.
            ValueError: If the images are of another size, or the names in the file are not those of the classes.
        """
        if not isinstance(images, Tensor) or images.dtype != self._dtype:
            given = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images are {given}; expected a tensor of {self._dtype}, which the file takes")
        if tuple(images.shape[1:]) != self.size or not len(images):
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (B, {', '.join(map(str, self.size))}), the size "
                "that the file was made for; resize them"
            )
        outputs = self._session.run(OUTPUTS, {"images": images.detach().cpu().numpy()})
        found = Explanation(*map(torch.from_numpy, outputs), class_names=self.class_names)
        self.class_names.check(found.logits)
        return found


def _refuse_other_files(model: Any, tensor: type) -> None:
    """Refuse a model that names other files for the data of a tensor, wherever in it the tensor is."""
    waiting = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, tensor) and message.data_location == message.EXTERNAL:  # type: ignore[attr-defined]
            raise ValueError(
                "it keeps weights in other files, which no checksum covers; expected one file, as write_onnx() makes it"
            )
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend(value if isinstance(value, Sequence) else [value])


def _facts(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} has metadata that cannot be read; expected a file of write_onnx()")
    return found


def _sort(operators: Any) -> Callable[..., Any]:
    """Sorting as ONNX has it: TopK of all, which keeps the order of equal values as a stable sort does."""

    def sort(tensor: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
        length = operators.Gather(operators.Shape(tensor), operators.Constant(value_ints=[dim]))
        return operators.TopK(tensor, length, axis=dim, largest=int(descending))

    return sort


def _known(module: ModelWithMaps, class_names: GivenClassNames | None, facts: Mapping[str, Any] | None) -> str:
    known = {"explains": module.explains, **(facts or {})}
    if names := as_class_names(class_names):
        known["class_names"] = dict(names)
    try:
        return json.dumps(known, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"facts hold what JSON cannot ({error}); expected texts, numbers, lists and dictionaries"
        ) from error


def _write(path: Path, data: bytes) -> str:
    """Write a file and its checksum. Killed at any time, it leaves no file beside the checksum of another one."""
    digest = hashlib.sha256(data).hexdigest()
    sidecar = _checksum_file(path)
    with atomic_file(path) as stream:
        stream.write(data)
        sidecar.unlink(missing_ok=True)
    with atomic_file(sidecar) as stream:
        stream.write(f"{digest}  {path.name}\n".encode())
    return digest


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _verified(path: Path) -> bytes:
    sidecar = _checksum_file(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    data = path.read_bytes()
    if not sidecar.is_file():
        return data
    expected = sidecar.read_text("utf-8", "replace").split()[:1]
    found = hashlib.sha256(data).hexdigest()
    if expected != [found]:
        raise ValueError(
            f"{path} is not what was exported: its SHA-256 is {found}, but {sidecar.name} says "
            f"{expected[0] if expected else 'nothing'}; export the model again"
        )
    return data
