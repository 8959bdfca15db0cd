"""Explanations that ship: a model and its maps as one module, for ``torch.compile``, ``torch.export`` and ONNX."""

from .onnx_files import OnnxExplainer, write_onnx
from .tracing import ModelWithMaps, with_maps

__all__ = ["ModelWithMaps", "OnnxExplainer", "with_maps", "write_onnx"]
