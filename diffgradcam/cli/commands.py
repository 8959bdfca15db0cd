"""The command ``diffgradcam``."""

from __future__ import annotations

import click

from .. import __version__
from .evaluate import evaluate
from .explaining import compare, explain, layers
from .train import train
from .trusting import audit_command, benchmark_command, sham

_EPILOG = """
\b
Examples:
  diffgradcam explain photo.jpg --method DiffGradCAM --top 3 --out out/
  diffgradcam compare photos/ --html report.html
  diffgradcam audit photos/ --model lite0 --weights suspect.pt --json
  diffgradcam layers torchvision:resnet50

\b
Models:
  lite0              EfficientNet-Lite0, ImageNet: the weights come with a package
  torchvision:NAME   such as torchvision:resnet50
  timm:NAME          such as timm:convnext_tiny
  hf:FOLDER          a model saved by transformers; hf:NAME only with --pretrained
  FILE.py:FACTORY    a function of yours that returns a model. The file is RUN: name
                     only files that you trust

Nothing is downloaded without --pretrained. Without it and without --weights, the
models of torchvision and timm have random weights, and you are told.

Exit codes: 0 done; 1 an error, or an image that could not be read (the others were
explained, and the result names it); 2 a command that makes no sense.
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="diffgradcam")
def main() -> None:
    """Class activation maps that cannot be fooled silently."""


for _command in (explain, compare, audit_command, sham, benchmark_command, layers, train, evaluate):
    main.add_command(_command)
