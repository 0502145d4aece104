"""Pictures as files and pixels: the query that a user brings, and what a user is shown."""

import io
import math
import os
import pathlib
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from cdisc import errors

Pixels = NDArray[np.uint8]

# Of a picture this much wider or higher than wanted the middle is taken, as of the pictures that a network is trained
# on; beyond it the user had better choose. CelebA's, 178 x 218, are within.
_MAX_ELONGATION = 1.25
# Narrower than a quarter of the wanted side there is too little to enlarge; the upper bound catches posters.
_MIN_SCALE, _MAX_SCALE = 0.25, 64
_MIN_SIDE = 8
_MODES = {1: "L", 3: "RGB"}


def read_query(path: str | pathlib.Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, str | None]:
    """Reads a picture and brings it to the shape that a network was trained on.

    Args:
      path: A picture file of any format that Pillow reads.
      shape: Wanted height, width and channels (1 or 3).

    Returns:
      The picture, `shape` float32 in [-1, 1], and a sentence about everything that had to be changed or looks
      mistaken, None if there is nothing to say.

    Raises:
      UserError: If the file is missing, damaged, no picture, or one that cannot be made to fit without guessing:
        transparent, more than 8 bits a channel, far too small, far too large or too elongated.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise ValueError(f"pictures have 1 or 3 channels, not {channels}")
    path = pathlib.Path(path)
    picture, notes = _open(path)
    scale = (picture.width / width, picture.height / height)
    if min(picture.size) < _MIN_SIDE or min(scale) < _MIN_SCALE:
        raise errors.UserError(
            f"{path} is {picture.width}x{picture.height} pixels, too small for {width}x{height}: give a larger picture."
        )
    if max(scale) > _MAX_SCALE:
        raise errors.UserError(
            f"{path} is {picture.width}x{picture.height} pixels, too large for {width}x{height}: scale it down."
        )
    if max(scale) > _MAX_ELONGATION * min(scale):
        raise errors.UserError(
            f"{path} is {picture.width}x{picture.height} pixels, too elongated for {width}x{height}: crop it to shape."
        )
    picture, mode_notes = _to_mode(picture, _MODES[channels], path)
    notes += mode_notes
    crop = (round(width * min(scale)), round(height * min(scale)))
    if picture.size != crop:
        notes.append(f"its middle of {crop[0]}x{crop[1]} pixels was taken")
        left, top = (picture.width - crop[0]) // 2, (picture.height - crop[1]) // 2
        picture = picture.crop((left, top, left + crop[0], top + crop[1]))
    if picture.size != (width, height):
        notes.append(f"it was resized from {picture.width}x{picture.height} to {width}x{height} pixels")
        # Averaging whole blocks gives back an enlarged pixel picture exactly; enlarging needs a smooth filter.
        resample = Image.Resampling.BOX if min(scale) >= 1.0 else Image.Resampling.BICUBIC
        picture = picture.resize((width, height), resample)
    pixels = np.asarray(picture, np.uint8).reshape(shape)
    if (pixels == pixels[:1, :1]).all():
        notes.append("all its pixels have the same colour")
    warning = f"{path}: {', and '.join(notes)}." if notes else None
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0), warning


def as_query(of: Any, shape: tuple[int, ...] | None) -> tuple[np.ndarray, str | None]:
    """A picture or a point from whatever a person has it in.

    Args:
      of: a file's path, an image of Pillow, bytes (H, W, C), or numbers, pictures in [-1, 1].
      shape: wanted; None for any, which a file cannot be fitted to.

    Returns:
      It, `shape` float32; and a sentence about what had to be changed, as `read_query` has it.

    Raises:
      TypeError, ValueError: for what is no finite array of that shape.
      UserError: as `read_query`.
    """
    if isinstance(of, str | os.PathLike):
        if shape is None or len(shape) != 3:
            raise ValueError("this model takes arrays of any shape, so a file cannot be fitted to it: give an array.")
        return read_query(pathlib.Path(of), shape)
    values = np.asarray(of)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"the query is {values.dtype} of shape {values.shape}: give a picture or a point as numbers.")
    if values.ndim not in (1, 2, 3) or (shape is not None and values.shape != shape):
        wanted = "one picture (H, W, C) or point (d,)" if shape is None else f"one of {shape}"
        raise ValueError(f"the query has the shape {values.shape}: give {wanted}.")
    if not np.isfinite(values).all():
        raise ValueError("the query has entries that are not finite: give numbers.")
    scaled = values / np.float32(127.5) - np.float32(1.0) if values.dtype == np.uint8 else values
    return scaled.astype(np.float32), None


def _open(path: pathlib.Path) -> tuple[Image.Image, list[str]]:
    """Decodes the file completely, upright as its camera says."""
    if not path.exists():
        raise errors.UserError(f"the picture {path} does not exist: check the path.")
    if path.is_dir():
        raise errors.UserError(f"{path} is a folder: give one picture file.")
    notes = []
    try:
        with warnings.catch_warnings():
            # A size that Pillow warns about is refused by `read_query` anyway, but only after decoding it.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                frames = getattr(file, "n_frames", 1)
                if frames > 1:
                    notes.append(f"it has {frames} frames, of which the first is used")
                file.load()
                return ImageOps.exif_transpose(file), notes
    except Image.UnidentifiedImageError as error:
        raise errors.UserError(f"{path} is no picture in a known format: give a PNG or JPEG file.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise errors.UserError(f"{path} has too many pixels to open: scale it down.") from error
    # Pillow raises any of these for damaged files, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError) as error:
        raise errors.UserError(f"{path} cannot be read ({error}): save it anew as PNG.") from error


def _to_mode(picture: Image.Image, mode: str, path: pathlib.Path) -> tuple[Image.Image, list[str]]:
    """Converts to grey ("L") or colour ("RGB"), refusing what would need a guess."""
    if picture.mode.startswith(("I", "F")):
        raise errors.UserError(f"{path} has more than 8 bits a channel: save it with 8 bits a channel.")
    if picture.has_transparency_data:
        if np.asarray(picture.convert("RGBA").getchannel("A")).min() < 255:
            raise errors.UserError(f"{path} has transparent pixels: save it on an opaque background.")
        picture = picture.convert("RGBA").convert("L" if picture.mode in ("L", "LA") else "RGB")
    if picture.mode == mode:
        return picture, []
    is_grey = picture.mode in ("1", "L")
    if mode == "RGB":
        notes = ["it is grey and the network expects colour"] if is_grey else []
    else:
        notes = [] if is_grey else ["its colours were turned into grey"]
    return picture.convert(mode), notes


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
