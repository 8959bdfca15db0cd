"""The command ``diffgradcam``."""

from __future__ import annotations

import click

from .. import __version__
from .audit import audit
from .benchmark import benchmark
from .compare import compare
from .evaluate import evaluate
from .explain import explain
from .export import export
from .layers import layers
from .sham import sham
from .train import train
from .view import view

_EPILOG = """
\b
Examples:
  diffgradcam explain photo.jpg --method DiffGradCAM --top 3 --out out/
  diffgradcam compare photos/ --html report.html
  diffgradcam audit photos/ --model lite0 --weights suspect.pt --json
  diffgradcam view photos/
  diffgradcam layers torchvision:resnet50
  diffgradcam export lite0 --out lite0.onnx

\b
Models:
  lite0              EfficientNet-Lite0 for ImageNet; its weights are a Python package
  torchvision:NAME   such as torchvision:resnet50
  timm:NAME          such as timm:convnext_tiny
  hf:FOLDER          a model saved by transformers; hf:NAME needs --pretrained
  FILE.py:FUNCTION   your own function that returns a model. The file is executed, so
                     name only files that you trust

Nothing is downloaded without --pretrained. Without --pretrained and --weights, models
of torchvision and timm have random weights, and a warning says so.

Exit codes: 0 success; 1 an error, or an image that could not be read (the other images
were explained, and the result names it); 2 wrong options.
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="diffgradcam")
def main() -> None:
    """Class activation maps: explain an image classifier, compare methods, and find out whether maps are fooled."""


for _command in (explain, compare, audit, sham, benchmark, layers, export, train, evaluate, view):
    main.add_command(_command)
