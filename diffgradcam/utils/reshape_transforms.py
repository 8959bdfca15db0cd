"""Reshape transforms under the path that scripts written for pytorch-grad-cam import them from."""

from ..tokens import swinT_reshape_transform, tokens_to_grid, vit_reshape_transform

__all__ = ["swinT_reshape_transform", "tokens_to_grid", "vit_reshape_transform"]
