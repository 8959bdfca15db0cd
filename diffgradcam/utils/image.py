"""Image functions under the path that scripts written for pytorch-grad-cam import them from."""

from ..visualize import preprocess_image, show_cam_on_image

__all__ = ["preprocess_image", "show_cam_on_image"]
