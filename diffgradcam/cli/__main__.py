"""``python -m diffgradcam.cli``, where the command is not installed."""

from .commands import main

main(prog_name="diffgradcam")
