"""The command line: ``diffgradcam explain photo.jpg``. It needs click; nothing else in the library imports it."""

from ._main import main

__all__ = ["main"]
