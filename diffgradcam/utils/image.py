"""Image functions under the path that scripts written for pytorch-grad-cam import them from."""

from ..visualize import deprocess_image, preprocess_image, show_cam_on_image

__all__ = ["deprocess_image", "preprocess_image", "show_cam_on_image"]
