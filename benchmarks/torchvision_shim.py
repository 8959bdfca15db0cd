"""Import torchvision even if its compiled operators do not load (its CUDA build with a CPU build of PyTorch).

To be imported, its Python code, including the models, needs two operators to be *defined*; they need not work.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_defined: list[torch.library.Library] = []  # definitions last only as long as the library object


def define_missing_operators() -> None:
    """Define ``torchvision::nms`` and ``qnms`` if torchvision is installed and its own definitions do not load.

    Call it before torchvision is first imported, directly or by another module. It imports nothing itself.
    """
    spec = importlib.util.find_spec("torchvision")
    if _defined or spec is None or spec.origin is None:
        return
    for compiled in Path(spec.origin).parent.glob("_C*.*"):  # _C.so, since 0.29 _C_stable.so
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _defined.append(library)
