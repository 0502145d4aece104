"""Pictures that are made once and kept: a memory-mapped array of bytes that a stopped run goes on filling.

Beside the array lies a note of what decides the pictures, of the rows that are there, with the checksum of each block,
and of those that could not be made. What does not match its checksum is never used.
"""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cdisc import console, storage
from cdisc.errors import UserError

INSTEAD = "set --config.data.cache to another folder"
"""What the user may do where a cache cannot be written."""

_NOTE, _IMAGES = "pictures.json", "images.npy"
_REMEDY = "delete that folder, it is made again"


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Pictures that are there.

    Attributes:
      images: (N, H, W, C) uint8, mapped from the file and read-only.
      missing: why a row has no picture, and is black, for each such row.
    """

    images: np.ndarray
    missing: Mapping[int, str]


def folder(given: str, name: str) -> pathlib.Path:
    """The folder `config.data.cache`, or the one called `name` in the user's cache folder where it is empty."""
    return storage.user_path(given) if given else storage.cache_folder(name)


def pictures(
    home: pathlib.Path,
    about: dict[str, str],
    shape: tuple[int, ...],
    make: Callable[[range], Sequence[np.ndarray | str] | np.ndarray],
    what: str,
    at_once: int = 256,
) -> Kept:
    """The pictures that lie in the folder `home`, made first where they are missing.

    Args:
      home: where they lie; only this function writes there.
      about: what decides the pictures. A folder that says otherwise is refused.
      shape: (N, H, W, C) of them all.
      make: the pictures of some rows, each (H, W, C) uint8, or the reason why there is none.
      what: what they are called while they are made.
      at_once: rows made before the next note of how far it is.

    Raises:
      UserError: if the folder holds other pictures, is damaged, or cannot be written where some are missing, be it for
        want of room.
    """
    note, file = home / _NOTE, home / _IMAGES
    label = {"about": about, "shape": list(shape), "at_once": at_once}
    blocks = [range(start, min(start + at_once, shape[0])) for start in range(0, shape[0], at_once)]
    try:
        if not note.exists():
            storage.writable(home, INSTEAD)
            np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
            storage.write_json(note, label | {"checksums": [], "missing": []}, INSTEAD)
        known = storage.read_json(note, _REMEDY)
        checksums, missing = known.pop("checksums"), dict(known.pop("missing"))
        if known != label:
            raise UserError(f"{home} holds other pictures or was made by another version: delete that folder.")
        images = np.lib.format.open_memmap(file, mode="r")
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} of shape {images.shape}")
        for rows, checksum in zip(blocks, checksums, strict=False):
            if zlib.crc32(images[rows.start : rows.stop].data) != checksum:
                raise ValueError(f"rows {rows.start} to {rows.stop - 1} are not what was written")
    except (OSError, ValueError) as error:
        raise storage.DamagedError(f"{file} cannot be used ({error})", _REMEDY) from error
    if len(checksums) < len(blocks):  # a finished cache may be another user's, and read-only
        storage.writable(home, INSTEAD)
    rest, named = blocks[len(checksums) :], f"{what}, {at_once} at a time"
    for rows in console.progress(rest, named, total=len(blocks), first=len(checksums)):
        made = make(rows)
        missing |= {row: why for row, why in zip(rows, made, strict=True) if isinstance(why, str)}
        black = np.zeros(shape[1:], np.uint8)
        content = np.stack([black if isinstance(picture, str) else picture for picture in made]).tobytes()
        # Not through the map, where a full disk would be a signal that kills.
        try:
            with file.open("r+b") as written:
                written.seek(images.offset + rows.start * images.strides[0])
                written.write(content)
                written.flush()
                os.fsync(written.fileno())
        except OSError as error:
            raise storage.unwritable(file, error, INSTEAD) from error
        checksums.append(zlib.crc32(content))
        storage.write_json(note, label | {"checksums": checksums, "missing": list(missing.items())}, INSTEAD)
    return Kept(images, missing)
