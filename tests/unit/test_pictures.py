"""Pictures from strangers: the good ones come out as bare squares, the others do no harm."""

import asyncio
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from adapters import pictures
from adapters.picture_worker import is_another_file
from adapters.pictures import BadPicture, Pictures
from domain.refusals import Overloaded
from tests.pictures import encoded, exif, opened, picture, png_chunk, with_png_chunk

KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


async def squares(content: bytes, kind: str) -> dict[int, bytes]:
    """Each within ten seconds; memory is the process' own limit, which has a test of its own."""
    async with asyncio.timeout(10):
        return await Pictures().squares(content, kind)


async def refusal(content: bytes, kind: str) -> str:
    with pytest.raises(BadPicture) as refused:
        await squares(content, kind)
    return refused.value.code


def colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = image.convert("RGBA").getpixel((x, y))
    assert isinstance(found, tuple)
    return tuple(int(part) for part in found)


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1, 1), (3, 1000), (64, 64)], ids=str)
async def test_a_picture_of_any_kind_and_size_becomes_two_squares(form: str, size: tuple[int, int]) -> None:
    found = await squares(picture(size, form), KINDS[form])
    for pixels in (256, 64):
        image = opened(found[pixels])
        assert (image.format, image.size) == ("WEBP", (pixels, pixels))


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize(
    "other", [b"PK\x03\x04 and a zip", b"\n<html><script>alert(1)</script>", b"%PDF-1.7", b"#!/bin/sh"]
)
async def test_a_picture_that_is_another_file_too_is_refused(form: str, other: bytes) -> None:
    for progressive in (False, True) if form == "JPEG" else (False,):
        content = picture(form=form, progressive=progressive) + other
        assert await refusal(content, KINDS[form]) == "not_a_picture"


@pytest.mark.parametrize("form", KINDS)
async def test_what_pads_a_file_or_a_phone_writes_behind_its_picture_is_left_away(form: str) -> None:
    padded = picture(form=form) + bytes(16)
    assert await squares(padded, KINDS[form])
    if form == "JPEG":
        assert await squares(picture(form=form) + picture(form=form), KINDS[form])
        assert await squares(picture(form=form) + b"\x00\x00\x00\x18ftypmp42 a film", KINDS[form])


@pytest.mark.parametrize("form", KINDS)
def test_where_a_picture_ends_is_found_in_any(form: str) -> None:
    """Of all sizes and colours, animated too: the end is that of the bytes."""
    for size in ((1, 1), (3, 1000), (300, 200), (64, 64)):
        for mode in ("RGB", "L") if form == "JPEG" else ("RGB", "P"):
            content = picture(size, form, mode=mode)
            assert not is_another_file(content, form), (size, mode)
    if form != "JPEG":
        frames = [Image.new("RGB", (40, 30), (shade, 0, 0)) for shade in (0, 90, 180)]
        moving = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert not is_another_file(moving, form)
        assert is_another_file(moving + b"x", form)


@given(st.binary(max_size=400), st.sampled_from(sorted(KINDS)))
def test_looking_for_the_end_ends_itself_whatever_the_bytes(junk: bytes, form: str) -> None:
    assert is_another_file(picture((8, 8), form)[:14] + junk, form) in {True, False}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
async def test_a_picture_of_any_colours_is_read(mode: str) -> None:
    form = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    if mode == "I;16":
        content = encoded(Image.new("I;16", (50, 50), 0x8000), form)
    else:
        content = encoded(Image.new("RGB", (50, 50), (128, 128, 128)).convert(mode), form)
    found = colour(opened((await squares(content, KINDS[form]))[64]), 30, 30)
    assert mode == "1" or all(abs(part - 128) < 12 for part in found[:3])


@pytest.mark.parametrize(
    ("image", "form", "options"),
    [
        (Image.new("RGBA", (99, 99), (255, 0, 0, 0)), "PNG", {}),
        (Image.new("LA", (99, 99), (255, 0)), "PNG", {}),
        (Image.new("RGBA", (99, 99), (255, 0, 0, 0)).quantize(8), "PNG", {}),
        (Image.new("P", (99, 99), 3), "GIF", {"transparency": 3}),
        (Image.new("RGBA", (99, 99), (255, 0, 0, 0)), "WEBP", {"lossless": True, "exact": True}),
    ],
    ids=["RGBA", "LA", "palette", "GIF", "WebP"],
)
async def test_what_is_transparent_stays_so(image: Image.Image, form: str, options: dict[str, Any]) -> None:
    found = await squares(encoded(image, form, **options), KINDS[form])
    assert colour(opened(found[256]), 100, 100)[3] == 0


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_a_picture_is_turned_upright_by_its_exif(orientation: int) -> None:
    upright = Image.new("RGB", (200, 200), "white")
    upright.paste((255, 0, 0), (0, 0, 100, 100))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    held = upright.transpose(Image.Transpose(back[orientation])) if orientation in back else upright
    found = opened((await squares(encoded(held, "JPEG", exif=exif(orientation)), "image/jpeg"))[256])
    assert colour(found, 60, 60)[1] < 60 < colour(found, 190, 60)[1]
    assert colour(found, 190, 190)[1] > 200 < colour(found, 60, 190)[1]


@pytest.mark.parametrize("form", KINDS)
async def test_nothing_but_pixels_comes_out(form: str) -> None:
    secret = b"SECRET-METADATA"
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"exif": exif(), "comment": secret, "icc_profile": secret * 20, "xmp": secret},
        "PNG": {"exif": exif(), "pnginfo": _text(secret), "icc_profile": secret * 20},
        "WEBP": {"exif": exif().tobytes(), "icc_profile": secret * 20, "xmp": secret},
        "GIF": {"comment": secret},
    }
    content = picture((300, 300), form, **options[form])
    assert b"SECRET" in content
    for square in (await squares(content, KINDS[form])).values():
        assert b"SECRET" not in square
        assert not {b"EXIF", b"XMP ", b"ICCP", b"ANIM"} & {square[at : at + 4] for at in range(len(square))}
        assert not opened(square).getexif()


def _text(secret: bytes) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", secret.decode())
    text.add_itxt("XML:com.adobe.xmp", secret.decode())
    return text


@pytest.mark.parametrize("form", ["GIF", "JPEG"])
async def test_of_a_comment_that_is_a_program_nothing_is_kept(form: str) -> None:
    hidden = b"*/=1;alert(document.domain)//<script>"
    content = picture((300, 300), form, comment=hidden)
    assert hidden in content
    for square in (await squares(content, KINDS[form])).values():
        assert hidden not in square
        assert square.startswith(b"RIFF")
        assert int.from_bytes(square[4:8], "little") + 8 == len(square)
        assert opened(square).format == "WEBP"


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
async def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (100, 100), (0, number, 255 * (number % 2))) for number in range(150)]
    frames[0] = Image.new("RGB", (100, 100), (250, 0, 0))
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=10)
    assert getattr(opened(content), "n_frames", 1) > 100
    found = opened((await squares(content, KINDS[form]))[256])
    assert getattr(found, "n_frames", 1) == 1
    assert colour(found, 128, 128)[0] > 200


async def test_a_camera_that_puts_a_second_picture_behind_the_first_is_no_matter() -> None:
    first, second = Image.new("RGB", (300, 300), (250, 0, 0)), Image.new("RGB", (90, 90), (0, 250, 0))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    found = opened((await squares(content, "image/jpeg"))[256])
    assert colour(found, 128, 128)[0] > 200


def _large(mode: str, size: tuple[int, int], form: str, **options: object) -> bytes:
    return encoded(Image.new(mode, size), form, **options)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (lambda: _large("1", (9000, 9000), "PNG"), "image/png"),
        (lambda: _large("L", (9000, 9000), "PNG"), "image/png"),
        (lambda: _claims("PNG", 40_000, 40_000), "image/png"),
        (lambda: _claims("PNG", 0x7FFF_FFFF, 0x7FFF_FFFF), "image/png"),
        (lambda: _large("L", (4001, 4000), "JPEG", quality=1), "image/jpeg"),
        (lambda: _claims("GIF", 65_535, 65_535), "image/gif"),
    ],
    ids=["81 MP in 10 kB", "81 MP", "1.6 GP", "all that fits", "a little over", "a large GIF"],
)
async def test_too_many_pixels_are_refused_before_they_are_decoded(content: Callable[[], bytes], kind: str) -> None:
    assert await refusal(content(), kind) == "too_many_pixels"


def _claims(form: str, width: int, height: int) -> bytes:
    """A small picture whose header says that it is another size."""
    content = bytearray(picture((20, 20), form))
    if form == "PNG":
        return (
            bytes(content[:8])
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + bytes(content[33:])
        )
    if form == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def _vp8x(width: int, height: int) -> bytes:
    """An animated WebP whose canvas would take gigabytes."""
    frame = picture((16, 16), "WEBP")[12:]
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little") + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    anmf = bytes(6) + (15).to_bytes(3, "little") * 2 + (10).to_bytes(3, "little") + b"\0" + frame
    body += b"ANMF" + struct.pack("<I", len(anmf)) + anmf
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "image/png"),
    "text": (lambda: b"GIF89a", "image/gif"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "image/png"),
    "ico": (lambda: picture((32, 32), "ICO"), "image/png"),
    "tiff": (lambda: picture((32, 32), "TIFF"), "image/png"),
    "bmp": (lambda: picture((32, 32), "BMP"), "image/png"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "image/png"),
    "pdf": (lambda: picture((32, 32), "PDF"), "image/png"),
    "avif": (lambda: picture((32, 32), "AVIF"), "image/webp"),
    "jpeg 2000": (lambda: picture((32, 32), "JPEG2000"), "image/jpeg"),
    "a PNG cut off": (lambda: picture((300, 300))[:-2000], "image/png"),
    "a JPEG cut off": (lambda: picture((300, 300), "JPEG")[:-900], "image/jpeg"),
    "a WebP cut off": (lambda: picture((300, 300), "WEBP")[:-300], "image/webp"),
    "a GIF cut off": (lambda: picture((300, 300), "GIF")[:-900], "image/gif"),
    "a PNG of another type": (picture, "image/jpeg"),
    "a type that does not exist": (picture, "PNG"),
    "a PNG that claims more": (lambda: _claims("PNG", 4000, 4000), "image/png"),
    "a PNG of no width": (lambda: _claims("PNG", 0, 10), "image/png"),
    "a deep zTXt": (
        lambda: with_png_chunk(picture(), b"zTXt", b"x\0\0" + zlib.compress(bytes(200_000_000), 9)), "image/png",
    ),
    "a deep profile": (
        lambda: with_png_chunk(picture(), b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000), 9)), "image/png",
    ),
    "a canvas of gigabytes": (lambda: _vp8x(16_383, 16_383), "image/webp"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_good_picture_is_refused_within_bounds(name: str) -> None:
    content, kind = HOSTILE[name]
    assert await refusal(content(), kind) in {"not_a_picture", "other_type", "too_many_pixels", "damaged"}


async def test_a_gif_that_claims_a_large_screen_comes_out_small() -> None:
    found = await squares(_claims("GIF", 4000, 4000), "image/gif")
    assert opened(found[256]).size == (256, 256)


@pytest.mark.parametrize("form", KINDS)
async def test_the_largest_picture_of_each_kind_is_read_within_bounds(form: str) -> None:
    image = Image.effect_noise((4000, 4000), 60).convert("P" if form == "GIF" else "RGBA" if form == "PNG" else "RGB")
    options = {"JPEG": {"exif": exif(6), "progressive": True}, "PNG": {"exif": exif(6), "compress_level": 1}}
    assert len(await squares(encoded(image, form, **options.get(form, {"method": 0})), KINDS[form])) == 2


async def test_noise_fits_into_one_chunk_of_the_object_store() -> None:
    noise = Image.frombytes("RGBA", (256, 256), os.urandom(256 * 256 * 4))
    found = await squares(encoded(noise, "PNG"), "image/png")
    assert 50_000 < len(found[256]) <= pictures.SQUARE_BYTES_MAX


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Another program in the place of the one that decodes."""

    def use(text: str) -> None:
        path = tmp_path / "worker.py"
        path.write_text(f"import json, os, resource, signal, sys, time\n{text}\n")
        monkeypatch.setattr(pictures, "_PROGRAM", path)

    return use


@pytest.mark.parametrize(
    "text",
    [
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.abort()",
        "sys.exit(3)",
        "bytearray(1 << 46)",
        "resource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass",
        "print('no JSON')",
        "print('[]')",
        "print(json.dumps({'bytes': [3, 3]})); print('abcdef', end='')",
        "print(json.dumps({'bytes': [-3, 9]})); print('abcdef', end='')",
        "while True: sys.stdout.write('x' * 100000)",
    ],
    ids=["segfault", "abort", "exit", "memory", "cpu", "words", "list", "no webp", "negative", "endless"],
)
async def test_a_process_that_breaks_is_a_refusal_and_the_next_picture_is_read(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with monkeypatch.context():
        program(text)
        reader = Pictures()
        with pytest.raises(BadPicture, match="damaged"):
            await reader.squares(picture(), "image/png")
    monkeypatch.undo()
    assert await reader.squares(picture(), "image/png")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS holds no process to RLIMIT_AS")
async def test_the_process_cannot_have_more_memory_than_its_limit(program: Callable[[str], None]) -> None:
    for megabytes, code in ((300, "fits"), (800, "damaged")):
        program(
            f"sys.path.insert(0, {str(Path(pictures.__file__).parent)!r})\nimport picture_worker\n"
            f"picture_worker.restrict()\nbytearray({megabytes} << 20)\nprint(json.dumps({{'refused': 'fits'}}))"
        )
        assert await refusal(picture(), "image/png") == code


@pytest.mark.parametrize("deed", ["open('/dev/null')", "socket.socket()", "subprocess.run('true')"])
async def test_the_process_opens_nothing_once_it_reads_a_picture(program: Callable[[str], None], deed: str) -> None:
    program(
        f"sys.path.insert(0, {str(Path(pictures.__file__).parent)!r})\nimport picture_worker, socket, subprocess\n"
        f"picture_worker.restrict()\n{deed}\nprint(json.dumps({{'refused': 'could'}}))"
    )
    assert await refusal(picture(), "image/png") == "damaged"


async def test_a_process_that_hangs_is_killed_at_its_deadline(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    program(f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    monkeypatch.setattr(pictures, "DEADLINE_S", 1.0)
    with pytest.raises(Overloaded):
        await Pictures().squares(picture(), "image/png")
    assert not _runs(int(pid_file.read_text()))


async def test_a_process_that_somebody_kills_is_told_apart(program: Callable[[str], None]) -> None:
    program("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(Overloaded):
        await Pictures().squares(picture(), "image/png")


async def test_whoever_leaves_takes_the_process_along(program: Callable[[str], None], tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    program(f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    task = asyncio.create_task(Pictures().squares(picture(), "image/png"))
    async with asyncio.timeout(10):
        while not pid_file.exists() or not pid_file.read_text():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _runs(int(pid_file.read_text()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_process_knows_nothing_of_ours(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", "nats://worker:hunter2@127.0.0.1")
    program("print(json.dumps({'refused': ' '.join([*os.environ.values(), os.getcwd(), *sys.path])}))")
    said = await refusal(picture(), "image/png")
    assert "hunter2" not in said
    assert str(Path(__file__).parents[2]) not in said.split()


async def test_few_are_decoded_at_once_and_no_more_wait_than_there_is_room_for() -> None:
    reader, inside, most = Pictures(), 0, 0

    async def decode() -> None:
        nonlocal inside, most
        async with reader.place():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    room = pictures.AT_ONCE_MAX + pictures.WAITING_MAX
    done = await asyncio.gather(*(decode() for _ in range(room + 5)), return_exceptions=True)
    assert most == pictures.AT_ONCE_MAX
    assert [type(outcome) for outcome in done] == [type(None)] * room + [Overloaded] * 5
    await decode()  # every place is free again
