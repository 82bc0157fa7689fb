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


# What follows a picture in its file, where that is another file too. Phones write things of their own behind a JPEG.
_OTHER_FILES = (
    b"pk\x03\x04", b"pk\x05\x06", b"%pdf", b"rar!", b"7z\xbc\xaf", b"\x7felf", b"mz\x90", b"#!", b"<",
)  # fmt: skip


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
    kind = _CALLED.get(str(image.format), str(image.format))
    if TYPES.get(content_type) != kind:
        raise Refused("other_type")
    if is_another_file(content, kind):
        raise Refused("not_a_picture")
    return image


def is_another_file(content: bytes, kind: str) -> bool:
    """Does another file follow the picture, so that these bytes are both? What stands in the picture's own comments is
    not looked at: none of it is kept."""
    behind = content[_ENDS[kind](content) :].strip(b"\x00\t\r\n ")
    return behind.lower().startswith(_OTHER_FILES) if kind == "JPEG" else bool(behind)


def _end_of_png(content: bytes) -> int:
    """PNG 3, section 5.3: chunks of length, name, data and checksum, the last of which is IEND."""
    at = 8
    while at + 12 <= len(content):
        name, at = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4])
        if name == b"IEND":
            return at
    return len(content)


def _end_of_gif(content: bytes) -> int:
    """GIF89a: blocks behind the header and its colours, until the trailer."""
    at = 13 + _colours(content[10])
    while at < len(content) and content[at] != 0x3B:
        if content[at] == 0x2C and at + 10 < len(content):
            at += 11 + _colours(content[at + 9])  # a picture: its place, its colours, the size of its codes
        else:
            at += 2  # an extension and its kind
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    return at + 1


def _colours(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_webp(content: bytes) -> int:
    """RFC 9649, section 2.4: the size in the header counts what follows it."""
    return 8 + int.from_bytes(content[4:8], "little")


def _end_of_jpeg(content: bytes) -> int:
    """ITU T.81, annex B: segments up to the end marker; in scanned data a marker is what no zero follows."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:
            at += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 1:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4])
            at = _next_marker(content, at) if marker == 0xDA else at
    return len(content) if at + 2 > len(content) or content[at : at + 2] != b"\xff\xd9" else at + 2


def _next_marker(content: bytes, at: int) -> int:
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        if content[at + 1] != 0 and not 0xD0 <= content[at + 1] <= 0xD7:
            return at
        at += 2
    return len(content)


_ENDS = {"PNG": _end_of_png, "GIF": _end_of_gif, "WEBP": _end_of_webp, "JPEG": _end_of_jpeg}


def encoded(square: Image.Image) -> bytes:
    """WebP of the pixels alone."""
    square.info.clear()  # a colour profile would be taken over from here
    buffer = io.BytesIO()
    square.save(buffer, "WEBP", quality=QUALITY, method=4, exif=b"", xmp=b"", icc_profile=b"")
    return buffer.getvalue()


if __name__ == "__main__":
    main(sys.argv[1])
