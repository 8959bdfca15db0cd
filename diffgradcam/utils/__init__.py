"""The module paths that scripts written for pytorch-grad-cam import from."""
