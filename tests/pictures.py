"""Pictures made for a test: good ones, and what strangers send in their place."""

import base64
import hashlib
import io
import json
import struct
import zlib
from typing import Any

from PIL import Image


def picture(size: tuple[int, int] = (300, 200), form: str = "PNG", *, mode: str = "RGB", **options: Any) -> bytes:  # noqa: ANN401 - Pillow's own
    """One with a gradient in it, so that no two sides are alike."""
    gradient = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), gradient)).convert(mode)
    return encoded(image, form, **options)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def exif(orientation: int = 1) -> Image.Exif:
    """Where it was taken, by whom, and how to hold it."""
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010F] = "SECRET-CAMERA"
    found.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return found


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_png_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A chunk more, right behind the header."""
    return png[:33] + png_chunk(kind, body) + png[33:]


def description(name: str, content: bytes, *, nuid: str, size: int | None = None) -> bytes:
    """What a client of the object store says of what it has put."""
    digest = "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
    said = {"name": name, "nuid": nuid, "chunks": 1, "size": len(content) if size is None else size, "digest": digest}
    return json.dumps(said).encode()
