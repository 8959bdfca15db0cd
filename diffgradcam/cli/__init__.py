"""The same from a shell: ``diffgradcam explain photo.jpg``. Needs click; nothing else of the library imports this."""

from .commands import main

__all__ = ["main"]
