"""The program that decodes one picture and ends: run by `adapters.pictures` as a process of its own, within limits.

Standard input is the picture, the only argument what it is said to be. Standard output is a line of JSON, then the
bytes it names. Whatever goes wrong here ends this process and nothing else, so nothing is caught. It imports nothing
of ours: neither settings nor secrets are in its reach.
"""

import copy
import io
import json
import resource
import sys
import warnings
from types import ModuleType

from PIL import (
    GifImagePlugin,
    Image,
    ImageChops,
    ImageMode,
    ImageOps,
    ImagePalette,
    ImageSequence,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

SIZES = (256, 64)
PIXELS_MAX = 16_000_000
MEMORY_BYTES_MAX = 768 * 1024 * 1024
CPU_S_MAX = 10
QUALITY = 80
TYPES = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/gif": "GIF"}
# What Pillow would load when it meets it: once the limits are set no file can be opened any more, ours included.
LOADED: tuple[ModuleType, ...] = (
    GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin, TiffImagePlugin, ImageChops,
    ImageMode, ImagePalette, ImageSequence, copy,
)  # fmt: skip
# A camera's JPEG that has a second picture behind its first is still a JPEG.
_CALLED = {"MPO": "JPEG"}


class Refused(Exception):
    """The picture is none that we take; the message is a stable code."""


def main(content_type: str) -> None:
    """Read a picture, write its squares."""
    content = sys.stdin.buffer.read()
    Image.preinit()
    restrict()
    try:
        squares = squares_of(content, content_type)
    except Refused as refused:
        head, squares = json.dumps({"refused": str(refused)}), []
    else:
        head = json.dumps({"bytes": [len(square) for square in squares]})
    sys.stdout.buffer.write(head.encode() + b"\n" + b"".join(squares))


def restrict() -> None:
    """From here on: bounded memory and processor time, no new file, socket or child."""
    for kind, soft, hard in (
        (resource.RLIMIT_AS, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX),
        (resource.RLIMIT_CPU, CPU_S_MAX, CPU_S_MAX + 1),  # the first ends it by SIGXCPU; SIGKILL could be anybody's
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, 0, 0),
    ):
        try:
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError):
            continue  # macOS knows RLIMIT_AS by name alone; the bound of pixels and the deadline stand there too


def squares_of(content: bytes, content_type: str) -> list[bytes]:
    """The first frame, upright, cut to a square in each size, as WebP without anything else in it."""
    image = opened(content, content_type)
    image.draft("RGB", (2 * SIZES[0], 2 * SIZES[0]))  # a large JPEG is decoded to an eighth, where that is enough
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = upright.point(lambda value: value / 256).convert("L")
    pixels = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    largest = ImageOps.fit(pixels, (SIZES[0], SIZES[0]), Image.Resampling.LANCZOS)
    return [encoded(largest.resize((size, size), Image.Resampling.LANCZOS)) for size in SIZES]


def opened(content: bytes, content_type: str) -> Image.Image:
    """What the bytes are decides, and it must be what was said; nothing is decoded yet. Raises `Refused`."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = PIXELS_MAX
    try:
        image = Image.open(io.BytesIO(content), formats=list(TYPES.values()))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Refused("too_many_pixels") from error
    except UnidentifiedImageError as error:
        raise Refused("not_a_picture") from error
    if image.width * image.height > PIXELS_MAX:
        raise Refused("too_many_pixels")
    if TYPES.get(content_type) != _CALLED.get(str(image.format), image.format):
        raise Refused("other_type")
    return image


def encoded(square: Image.Image) -> bytes:
    """WebP of the pixels alone."""
    square.info.clear()  # a colour profile would be taken over from here
    buffer = io.BytesIO()
    square.save(buffer, "WEBP", quality=QUALITY, method=4, exif=b"", xmp=b"", icc_profile=b"")
    return buffer.getvalue()


if __name__ == "__main__":
    main(sys.argv[1])
