"""``python -m diffgradcam.cli``, where the command is not installed."""

from ._main import main

main(prog_name="diffgradcam")
