"""Import torchvision also where its compiled operators do not load (its CUDA build beside a CPU build of PyTorch).

Its Python code, models included, needs two operators to be *defined* before it can be imported, not to work.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_defined: list[torch.library.Library] = []  # a library's definitions end with the library: keep it


def define_missing_operators() -> None:
    """Define ``torchvision::nms`` and ``qnms`` if torchvision is installed and its own definitions do not load.

    Call it before the first import of torchvision, or of what imports it. It imports nothing itself.
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
