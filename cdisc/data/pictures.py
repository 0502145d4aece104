"""Reading the one picture that a person brings: the query."""

import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from cdisc import errors

# A picture this much wider or higher than wanted would show stretched content.
_MAX_STRETCH = 1.25
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
    if max(scale) > _MAX_STRETCH * min(scale):
        raise errors.UserError(
            f"{path} is {picture.width}x{picture.height} pixels, too elongated for {width}x{height}: crop it to shape."
        )
    picture, mode_notes = _to_mode(picture, _MODES[channels], path)
    notes += mode_notes
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
