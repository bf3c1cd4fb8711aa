"""The toolbox image: what it makes, and the bombs that it leaves alone."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from jobs import FOLDER, Job
from PIL import Image, PngImagePlugin
from shipped import run

from aios.agents.tools import image as image_box
from aios.syscalls.errors import ToolArguments, ToolFailed


def store(job: Job, name: str, image: Image.Image, format: str, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, format, **options)
    job.aios.sto_put(f"{FOLDER}/{name}", out.getvalue())
    return f"{FOLDER}/{name}"


def stored(job: Job, name: str) -> Image.Image:
    return Image.open(io.BytesIO(job.aios.sto_get(f"{FOLDER}/{name}")))


def test_image_tells_what_an_image_is(job: Job) -> None:
    path = store(job, "a.png", Image.new("RGBA", (40, 20), "red"), "PNG")
    found = run("image.inspect", job, path=path)
    size = len(job.aios.sto_get(path))
    assert found == {
        "path": path, "format": "PNG", "mode": "RGBA", "width": 40, "height": 20, "frames": 1,
        "bytes": size,
    }  # fmt: skip
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    path = store(job, "a.gif", frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert run("image.inspect", job, path=path)["frames"] == 3


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"width": 20}, (20, 10)), ({"height": 5}, (10, 5)), ({"width": 7, "height": 9}, (7, 9)),
        ({"width": 1}, (1, 1)),
    ],
)  # fmt: skip
def test_image_resizes(job: Job, asked: dict[str, int], size: tuple[int, int]) -> None:
    path = store(job, "a.png", Image.new("RGB", (40, 20), "red"), "PNG")
    found = run("image.resize", job, path=path, to=f"{FOLDER}/b.png", **asked)
    assert (found["width"], found["height"], found["format"]) == (*size, "PNG")
    assert stored(job, "b.png").size == size
    assert stored(job, "b.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_image_is_upright_whichever_way_a_camera_held_it(job: Job, format: str) -> None:
    """The red part is above in what a reader of EXIF data shows: orientation 6, a quarter turn."""
    held = Image.new("RGB", (40, 20), "blue")
    held.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = store(job, "a", held, format, exif=exif)
    assert run("image.inspect", job, path=path)["height"] == 40
    run("image.resize", job, path=path, to=f"{FOLDER}/b", width=10)
    run("image.convert", job, path=path, to=f"{FOLDER}/c", format="PNG")
    for name, width in (("b", 10), ("c", 20)):
        found = stored(job, name)
        assert found.size == (width, 2 * width)
        assert found.getexif().get(0x0112, 1) == 1
        red, _, blue = found.convert("RGB").getpixel((width // 2, 2))  # type: ignore[misc]
        assert red - blue > 140


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\xff", b"no EXIF"])
def test_image_with_damaged_exif_data_is_read_as_it_is(job: Job, exif: bytes) -> None:
    path = store(job, "a.jpg", Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert run("image.inspect", job, path=path)["width"] == 40


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_image_converts_whatever_there_is(job: Job, mode: str) -> None:
    path = store(
        job, "a.any", Image.new(mode, (4, 4)), "PNG" if mode in "1L LA P RGBA I;16" else "TIFF"
    )
    for format in image_box.FORMATS:
        found = run("image.convert", job, path=path, to=f"{FOLDER}/b", format=format)
        assert (found["format"], found["width"]) == (format, 4)
        assert stored(job, "b").format == format


def test_image_puts_white_behind_what_is_transparent(job: Job) -> None:
    path = store(job, "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")
    run("image.convert", job, path=path, to=f"{FOLDER}/b.jpg", format="JPEG")
    assert stored(job, "b.jpg").getpixel((4, 4)) == (255, 255, 255)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + end


def test_image_refuses_bombs(job: Job) -> None:
    for width, height in ((6000, 6000), (60_000, 60_000)):  # Pillow warns of one, refuses the other
        job.aios.sto_put(f"{FOLDER}/bomb.png", png_of(width, height))
        with pytest.raises(ToolFailed, match="more than 32000000 pixels"):
            run("image.inspect", job, path=f"{FOLDER}/bomb.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * (80 << 20), zip=True)
    path = store(job, "text.png", Image.new("L", (1, 1)), "PNG", pnginfo=text)
    with pytest.raises(ToolFailed, match="cannot be read as an image"):
        run("image.inspect", job, path=path)


def test_image_makes_no_giants(job: Job) -> None:
    path = store(job, "a.png", Image.new("L", (8, 8)), "PNG")
    with pytest.raises(ToolFailed, match="more than 32000000 pixels"):
        run("image.resize", job, path=path, to=f"{FOLDER}/b", width=8192)
    with pytest.raises(ToolArguments):
        run("image.resize", job, path=path, to=f"{FOLDER}/b", width=8193)
    with pytest.raises(ToolFailed, match="give a width"):
        run("image.resize", job, path=path, to=f"{FOLDER}/b")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", png_of(9, 9)[:45], b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_image_reads_nothing_else(job: Job, content: bytes) -> None:
    job.aios.sto_put(f"{FOLDER}/x.png", content)
    with pytest.raises(ToolFailed, match="cannot be read as an image"):
        run("image.inspect", job, path=f"{FOLDER}/x.png")


def test_image_reads_no_format_that_is_rare(job: Job) -> None:
    path = store(job, "a.png", Image.new("RGB", (8, 8)), "PPM")
    with pytest.raises(ToolFailed, match="cannot be read as an image: it is none of PNG, JPEG"):
        run("image.inspect", job, path=path)


def test_image_reads_no_file_that_is_too_long(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_box, "MAX_BYTES", 10)
    path = store(job, "a.png", Image.new("L", (8, 8)), "PNG")
    with pytest.raises(ToolFailed, match="at most 10 are read"):
        image_box.inspect.run({"path": path}, job)
