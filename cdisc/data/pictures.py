"""Pictures as files and pixels: how one is read, for data sets and queries alike, and what a user is shown."""

import contextlib
import io
import math
import os
import pathlib
import re
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile

from cdisc import storage
from cdisc.errors import UserError, short

Pixels = NDArray[np.uint8]

# Narrower than a quarter of the wanted side there is too little to enlarge.
_MIN_SCALE, _MIN_SIDE = 0.25, 8
_MODES = {1: "L", 3: "RGB"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows a picture upright, by its EXIF orientation."""

_CICP = {
    "PNG": re.compile(rb"\0\0\0\x04cICP(.)(.)", re.DOTALL),
    "AVIF": re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL),
}
"""Where a file has the numbers of its colours (ITU-T H.273): of the primaries and of the transfer."""
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_PRIMARIES = {
    1: _SRGB,
    2: _SRGB,  # not said
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""By number: x and y of white, red, green and blue."""
_POWERS = dict.fromkeys((1, 2, 6, 13, 14, 15)) | {4: 2.2, 5: 2.8, 8: 1.0}
"""By number: the power of a value that is its light; None for sRGB's curve, by which television's is shown, too."""


def read_query(path: str | pathlib.Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, str | None]:
    """Reads a picture and brings it to the shape that a network was trained on, as `fit` does with data sets' pictures.

    Args:
      path: A picture file of any format that Pillow reads.
      shape: Wanted height, width and channels (1 or 3).

    Returns:
      The picture, `shape` float32 in [-1, 1], and a sentence about everything that had to be changed or looks
      mistaken, None if there is nothing to say.

    Raises:
      UserError: If the file is missing, damaged, no picture, far too small, or has more pixels than Pillow opens.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise ValueError(f"pictures have 1 or 3 channels, not {channels}")
    if not str(path).strip():
        raise UserError("a query is empty: give the path of a picture.")
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # a `Path` of one has a single slash
        raise UserError(f"{short(path)} is an address: download the picture first and give the file's path.")
    path = storage.user_path(str(path))
    said = short(path)
    try:
        if path.is_dir():
            raise UserError(f"{said} is a folder: give one picture file.")
        if not path.is_file():
            raise UserError(f"the picture {said} does not exist or is no file: check the path.")
        # Pillow's warnings are about metadata and size: what matters of these is refused or said.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if min(image.size) < _MIN_SIDE or min(image.width / width, image.height / height) < _MIN_SCALE:
                raise UserError(
                    f"{said} is {image.width}x{image.height} pixels, too small for {width}x{height}: give a larger "
                    "picture."
                )
            # The second picture of a photograph is its preview.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            pixels, notes = fit(image, shape)
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{said} is no picture in a known format: give a PNG or JPEG file.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{said} has too many pixels to open: scale it down.") from error
    # Pillow raises whatever its decoders do for damaged files.
    except Exception as error:
        system = isinstance(error, OSError) and error.errno is not None
        advice = "see to the path, and that you may read it" if system else "save it anew as PNG"
        raise UserError(f"{said} cannot be read ({reason(error)}): {advice}.") from error
    if frames > 1:
        notes.insert(0, f"it has {frames} frames, of which the first is used")
    return _as_numbers(pixels), _told(said, pixels, notes)


def _as_numbers(pixels: Pixels) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def _told(said: str, pixels: Pixels, notes: list[str]) -> str | None:
    if np.ptp(pixels, axis=(0, 1)).max() < 8:
        notes.append("all its pixels have nearly the same colour")
    return f"{said}: {', and '.join(notes)}." if notes else None


def as_query(of: Any, shape: tuple[int, ...] | None) -> tuple[np.ndarray, str | None]:
    """A picture or a point from whatever a person has it in.

    Args:
      of: a file's path, an image of Pillow, bytes (H, W, C), or numbers, pictures in [-1, 1].
      shape: wanted; None for any, which a file or an image cannot be fitted to.

    Returns:
      It, `shape` float32; and a sentence about what had to be changed, as `read_query` has it.

    Raises:
      TypeError, ValueError: for what is no finite array of that shape.
      UserError: as `read_query`.
    """
    if isinstance(of, str | os.PathLike | Image.Image):
        if shape is None or len(shape) != 3:
            raise ValueError("this model takes arrays of any shape, so a file cannot be fitted to it: give an array.")
        if not isinstance(of, Image.Image):
            return read_query(str(of), shape)
        pixels, notes = fit(of, shape)
        return _as_numbers(pixels), _told("the query", pixels, notes)
    values = np.asarray(of)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"the query is {values.dtype} of shape {values.shape}: give a picture or a point as numbers.")
    if values.ndim not in (1, 2, 3) or (shape is not None and values.shape != shape):
        wanted = "one picture (H, W, C) or point (d,)" if shape is None else f"one of {shape}"
        raise ValueError(f"the query has the shape {values.shape}: give {wanted}.")
    if not np.isfinite(values).all():
        raise ValueError("the query has entries that are not finite: give numbers.")
    if values.dtype == np.uint8:
        return _as_numbers(values), None
    warning = None
    if shape is not None and len(shape) == 3:  # what another model takes is not known
        if (most := np.abs(values).max()) > 2.0:
            raise ValueError(f"the query has values up to {most:g}: give a picture in [-1, 1], or bytes (uint8).")
        if values.min() >= 0.0:
            warning = "the query has no value below 0, and black is -1: see that it is in [-1, 1]."
    return values.astype(np.float32), warning


def fit(image: Image.Image, shape: tuple[int, int, int]) -> tuple[Pixels, list[str]]:
    """The middle of a picture at a network's size: upright as its camera says, in sRGB, and on white.

    Areas are averaged, so that an enlarged pixel picture shrinks to itself; a small picture is enlarged smoothly.

    Args:
      image: as it was opened.
      shape: wanted height, width and channels (1 or 3).

    Returns:
      (H, W, C) uint8, and what had to be changed, in clauses.

    Raises:
      Image.DecompressionBombError: if it has more pixels than Pillow's `MAX_IMAGE_PIXELS`.
      ValueError: if its channels have 32 bits.
      Exception: whatever a decoder raises for a damaged file.
    """
    height, width, channels = shape
    size = image.size
    # Decodes a JPEG at a half or less where that is still large enough, whichever side is up.
    drafted = image.draft("RGB", (max(height, width),) * 2)
    if Image.MAX_IMAGE_PIXELS is not None and math.prod(image.size) > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"it has {math.prod(image.size)} pixels")
    if image.format == "EPS":  # which Ghostscript would run
        raise ValueError("it is a program that draws, and no picture")
    colours, orientation = _colours(image), _load(image)
    picture = _eight_bits(image)
    size = size if drafted else picture.size
    # Turned last, when there are few pixels; until then, what is wanted lies as the file does.
    across = orientation in (5, 6, 7, 8)
    wanted = (height, width) if across else (width, height)
    picture, notes = _srgb(_resized(picture, wanted), colours, _MODES[channels])
    if orientation in _TURNS:
        picture = picture.transpose(_TURNS[orientation])
    if across:
        size = (size[1], size[0])
    left, top, right, bottom = _middle(size, (width, height))
    crop = (right - left, bottom - top)
    if crop != size:
        notes.append(f"its middle of {crop[0]}x{crop[1]} pixels was taken")
    if crop != (width, height):
        notes.append(f"it was resized from {crop[0]}x{crop[1]} to {width}x{height} pixels")
    return np.asarray(picture).reshape(shape), notes


def _middle(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around the middle of a picture of `size` that has the shape of `wanted`."""
    scale = min(size[0] / wanted[0], size[1] / wanted[1])
    width, height = round(wanted[0] * scale), round(wanted[1] * scale)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _resized(picture: Image.Image, wanted: tuple[int, int]) -> Image.Image:
    """The middle of a picture, in steps: averages of whole blocks, as small as leaves enough, then what remains."""
    box = _middle(picture.size, wanted)
    width, height = box[2] - box[0], box[3] - box[1]
    factor = max(1, min(width // wanted[0], height // wanted[1]))
    blocks = picture.reduce(factor, box) if factor > 1 else picture.crop(box)
    smooth = Image.Resampling.BILINEAR if width >= wanted[0] else Image.Resampling.BICUBIC
    return blocks.resize(wanted, smooth, box=(0, 0, width / factor, height / factor))


def _load(image: Image.Image) -> int | None:
    """Decodes a picture, and gives its EXIF orientation: no more of its metadata is read, for it may be wrong."""
    with contextlib.suppress(Exception):  # whatever Pillow raises for metadata that it cannot read
        if image.format == "TIFF":  # it would read on in them while it decodes
            image.info.pop("xmp", None)
            exif = image.getexif()
            for tag in set(exif) - {ExifTags.Base.Orientation}:
                del exif[tag]
    image.load()
    with contextlib.suppress(Exception):
        given = image.info.get("exif")
        return _orientation(given) if given else image.getexif().get(ExifTags.Base.Orientation)
    return None


def _orientation(exif: bytes) -> int | None:
    """The orientation that EXIF data say, whatever the other tags say: Pillow leaves out what follows a wrong one."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == ExifTags.Base.Orientation:  # two bytes, but some write one or four
            return struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], exif, entry + 8)[0]
    return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """A decoded picture as L, LA, RGB, RGBA, CMYK or LAB: those whose pixels can be averaged."""
    mode, clear = image.mode, image.info.get("transparency")
    if mode == "F" or (mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("its channels have 32 bits and an unknown range")
    if mode.startswith("I"):
        values = np.asarray(image)
        grey = Image.fromarray((values // 257 + (values % 257 > 128)).astype(np.uint8))
        if clear is not None:
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return grey
    wanted = mode if mode in ("CMYK", "LAB") else "L" if mode in ("1", "L", "LA", "La") else "RGB"
    wanted += "A" if image.has_transparency_data else ""
    return image if mode == wanted else image.convert(wanted)


def _colours(image: Image.Image) -> Any:
    """What an open file says of its colours: a profile; primaries and power; None if they are sRGB's.

    Of numbers that are not known, it is these, in words.
    """
    info, found = image.info, None
    if profile := info.get("icc_profile"):
        return profile
    if isinstance(image, ImageFile.ImageFile) and image.format in _CICP and image.fp is not None:
        place = image.fp.tell()
        image.fp.seek(0)
        found = _CICP[image.format].search(image.fp.read(2**16).partition(b"IDAT")[0])
        image.fp.seek(place)
    primaries, power = _SRGB, None
    if found:
        numbers = found[1][0], found[2][0]
        if numbers[0] not in _PRIMARIES or numbers[1] not in _POWERS:
            return f"its colours are numbers {numbers[0]} and {numbers[1]} of H.273 and were taken for those of sRGB"
        primaries, power = _PRIMARIES[numbers[0]], _POWERS[numbers[1]]
    elif "srgb" not in info:
        given, gamma = info.get("chromaticity", _SRGB), info.get("gamma", 0.0)
        # Some are damaged: three points in a line span no colours.
        spanned = min(given) > 0.0 and abs(np.linalg.det([given[2::2], given[3::2], (1, 1, 1)])) > 0.02
        if spanned and not np.allclose(given, _SRGB, atol=2e-3):
            primaries = given
        # 0.45455 beside sRGB's primaries is how sRGB is written for old programs.
        if 0.2 < gamma < 5.0 and (primaries is not _SRGB or abs(gamma - 0.45455) > 0.005):
            power = 1.0 / gamma
    return None if primaries is _SRGB and power is None else (primaries, power)


def _srgb(picture: Image.Image, colours: Any, mode: str) -> tuple[Image.Image, list[str]]:
    """What `_eight_bits` gave in the colours of sRGB, grey ("L") or not ("RGB"), on white; and what is said of it.

    `colours` is what `_colours` found.
    """
    notes, alpha = [], None
    if picture.mode in ("LA", "RGBA"):
        alpha = picture.getchannel("A")
        picture = picture.convert(picture.mode[:-1])
    is_grey = picture.mode == "L"
    if picture.mode == "LAB":
        picture = _converted(picture, ImageCms.createProfile("LAB"))
    elif isinstance(colours, bytes):
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(colours))
            # A grey picture may have a profile for colours; any other mismatch is refused.
            of_colours = given.profile.xcolor_space.strip() == "RGB"
            picture = _converted(picture.convert("RGB") if is_grey and of_colours else picture, given)
        except (OSError, ImageCms.PyCMSError):
            notes.append("its colour profile cannot be used and was left out")
    elif picture.mode == "CMYK":
        notes.append("it has CMYK colours without a profile, which are shown as nearly as can be")
    elif isinstance(colours, str):
        notes.append(colours)
    elif colours is not None:
        picture = _from_light(picture, *colours)
    if picture.mode == "CMYK":
        picture = picture.convert("RGB")
    if alpha is not None and np.asarray(alpha).min() < 255:
        notes.append("it was put on white where it is transparent")
        picture = Image.composite(picture, Image.new(picture.mode, picture.size, "white"), alpha)
    if is_grey and mode == "RGB":
        notes.append("it is grey and the network expects colour")
    if not is_grey and mode == "L":
        notes.append("its colours were turned into grey")
    return picture.convert(mode), notes


def _converted(picture: Image.Image, profile: Any) -> Image.Image:
    """A picture with the colours of a profile, in sRGB."""
    found = ImageCms.profileToProfile(picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert found is not None  # which it is where a picture is changed in place
    return found


def _from_light(picture: Image.Image, primaries: Sequence[float], power: float | None) -> Image.Image:
    """A picture in sRGB whose values, to a power (None: sRGB's curve), are the light of these primaries."""
    values = np.asarray(picture) / 255.0
    light = (
        np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        if power is None
        else (values**power)
    )
    if light.ndim == 3:
        light = light @ np.linalg.solve(_in_xyz(_SRGB), _in_xyz(primaries)).T
    light = light.clip(0.0, 1.0)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.rint(255.0 * values).astype(np.uint8))


def _in_xyz(primaries: Sequence[float]) -> np.ndarray:
    """(3, 3) what of X, Y and Z, as parts of white's, the red, green and blue have that make it white together."""
    x, y = np.reshape(primaries, (4, 2)).T
    white, *colours = np.stack([x / y, np.ones(4), (1.0 - x - y) / y], axis=1)
    columns = np.transpose(colours) / white[:, None]
    return columns * np.linalg.solve(columns, np.ones(3))


def reason(error: Exception) -> str:
    """Why a picture cannot be read, in a line, from what was raised."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no picture in a known format"
    system = error.strerror if isinstance(error, OSError) else None
    return short(" ".join(str(system or error).split())) or type(error).__name__


def png(pixels: Pixels) -> bytes:
    """The PNG file of an (H, W, 3) RGB or (H, W, 4) RGBA picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def to_uint8(picture: ArrayLike) -> Pixels:
    """(..., H, W, C) in [-1, 1] to RGB bytes (..., H, W, 3), rounded and clipped; one channel becomes grey."""
    values = np.asarray(picture, np.float64)
    if values.ndim < 3 or values.shape[-1] not in (1, 3):
        raise ValueError(f"a picture has shape (..., H, W, 1 or 3), not {values.shape}")
    scaled = np.rint(np.clip((values + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(scaled, (*scaled.shape[:-1], 3)))


def grid(pictures: ArrayLike, *, columns: int | None = None, gap: int | None = None) -> Pixels:
    """Pictures (N, H, W, C) row by row in one RGBA picture, with transparent gaps.

    Args:
      pictures: (N, H, W, C) in [-1, 1], N at least 1.
      columns: how many to a row; the least that make the grid at least as wide as high if None.
      gap: transparent pixels between neighbours; a sixteenth of the height if None.
    """
    tiles = to_uint8(pictures)
    n, height, width = tiles.shape[:3]
    if columns is None:
        columns = math.ceil(math.sqrt(n))
    if gap is None:
        gap = max(1, height // 16)
    rows = math.ceil(n / columns)
    out = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
    for index, tile in enumerate(tiles):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        out[y : y + height, x : x + width, :3] = tile
        out[y : y + height, x : x + width, 3] = 255
    return out
