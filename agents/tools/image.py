"""Images in the caller's storage."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta
from PIL import Image, ImageOps, UnidentifiedImageError

from aios.agents.runtime.tool import Running, tool
from aios.syscalls.errors import ToolFailed

MAX_BYTES = 32 << 20  # of a file
MAX_PIXELS = 32_000_000  # 128 MB as RGBA
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # above it Pillow warns, which is an error here

Path = Annotated[str, Meta(min_length=1, max_length=200, description="a path in storage")]
Side = Annotated[int, Meta(ge=1, le=8192, description="pixels")]
Format = Literal["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]
FORMATS = get_args(Format)


class Shape(msgspec.Struct):
    path: str
    format: str
    mode: str  # "RGB", "RGBA", "L", ...
    width: int
    height: int
    frames: int
    bytes: int


@tool(name="image.inspect")
def inspect(path: Path, job: Running) -> Shape:
    """An image's format, mode, width, height, frames and bytes."""
    return _opened(path, job)[1]


@tool(name="image.resize", effect=True)
def resize(
    path: Path,
    to: Path,
    job: Running,
    width: Side | None = None,
    height: Side | None = None,
) -> Shape:
    """Store an image in another size. With a width or a height alone its proportions are kept."""
    image, shape = _opened(path, job)
    size = _scaled(image.width, image.height, width, height)
    return _store(image.resize(size), to, shape.format if shape.format in FORMATS else "PNG", job)


@tool(name="image.convert", effect=True)
def convert(path: Path, to: Path, format: Format, job: Running) -> Shape:
    """Store an image in another format: its first frame, on white where that has no
    transparency."""
    return _store(_opened(path, job)[0], to, format, job)


def _scaled(width: int, height: int, across: int | None, down: int | None) -> tuple[int, int]:
    if across is None and down is None:
        raise ToolFailed("give a width, a height, or both")
    across = across or max(1, round(width * (down or height) / height))
    down = down or max(1, round(height * across / width))
    if across * down > MAX_PIXELS:
        raise ToolFailed(f"{across} x {down} is more than {MAX_PIXELS} pixels")
    return across, down


def _opened(path: str, job: Running) -> tuple[Image.Image, Shape]:
    """Open an image, its first frame turned as its EXIF data say, and describe it."""
    size = job.aios.sto_read(path, count=0).info.size
    if size > MAX_BYTES:
        raise ToolFailed(f"{path} has {size} bytes, and at most {MAX_BYTES} are read")
    data = io.BytesIO(job.aios.sto_get(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(data, formats=FORMATS)
            image.load()
        shape, upright = _shape(path, image, size), ImageOps.exif_transpose(image)
        shape.width, shape.height = upright.size
        return upright, shape
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ToolFailed(f"{path} has more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:  # what it says is for programmers
        kinds = ", ".join(FORMATS)
        raise ToolFailed(f"{path} cannot be read as an image: it is none of {kinds}") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:  # Pillow's readers'
        raise ToolFailed(f"{path} cannot be read as an image: {error}") from error


def _store(image: Image.Image, to: str, format: str, job: Running) -> Shape:
    if format in ("JPEG", "BMP"):
        image = _opaque(image)
    elif image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = image.convert("RGBA")
    out = io.BytesIO()
    image.save(out, format)
    job.aios.sto_put(to, out.getvalue(), media=Image.MIME[format])
    return _shape(to, Image.open(out, formats=(format,)), len(out.getvalue()))


def _opaque(image: Image.Image) -> Image.Image:
    seen = image.convert("RGBA")
    white = Image.new("RGB", seen.size, "white")
    white.paste(seen, mask=seen.getchannel("A"))
    return white


def _shape(path: str, image: Image.Image, size: int) -> Shape:
    frames = getattr(image, "n_frames", 1)
    return Shape(path, image.format or "", image.mode, image.width, image.height, frames, size)
