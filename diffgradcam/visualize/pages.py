"""Pages for the browser from templates: the report of the commands, and the live page of ``diffgradcam view``.

The templates share their style and their parts. A page loads nothing from elsewhere, and whatever is passed is escaped.
"""

from __future__ import annotations

import base64
import functools
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from .arrays import Array

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: Its name, such as ``"report.html"``.
        **values: What it shows. Pictures are arrays ``(H, W, 3)``, uint8, RGB.

    Returns:
        The page. Characters that UTF-8 cannot write (file names of other encodings) are replaced.

    Raises:
        TypeError: If a picture is not uint8 of shape ``(H, W, 3)``.
    """
    page = _environment().get_template(template).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8")


def jpeg(picture: Array) -> bytes:
    """A photograph as a JPEG.

    Args:
        picture: ``(H, W, 3)``, uint8, RGB.

    Returns:
        The file.

    Raises:
        TypeError: If the picture is of another dtype or shape.
    """
    return _encoded(picture, "JPEG", quality=85)


@functools.cache
def _environment() -> Environment:
    import jinja2  # PyTorch needs it too; only a page does here

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader(__package__, "templates"),
    )
    environment.globals["nonce"] = None
    environment.filters |= {
        "photo": lambda picture: _data_uri("jpeg", jpeg(picture)),
        "colours": lambda picture: _data_uri("png", _encoded(picture, "PNG", optimize=True)),
    }
    return environment


def _encoded(picture: Array, kind: str, **options: int) -> bytes:
    if picture.dtype != "uint8" or picture.ndim != 3 or picture.shape[2] != 3:
        raise TypeError(f"a picture is {picture.dtype} of shape {picture.shape}; expected uint8, (H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
