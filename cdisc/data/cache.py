"""Pictures that are made once and kept: a memory-mapped array of bytes that a stopped run goes on filling."""

import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from cdisc import console, storage
from cdisc.errors import UserError

INSTEAD = "set --config.data.cache to another folder"
"""What the user may do where a cache cannot be written."""

_ABOUT, _IMAGES, _DONE = "about.json", "images.npy", "done.txt"


def folder(given: str, name: str) -> pathlib.Path:
    """The folder `config.data.cache`, or the one called `name` in the user's cache folder where it is empty."""
    return pathlib.Path(given).expanduser() if given else storage.cache_folder(name)


def pictures(
    home: pathlib.Path,
    about: dict[str, str],
    shape: tuple[int, ...],
    make: Callable[[range], np.ndarray],
    what: str,
    at_once: int = 256,
) -> np.ndarray:
    """The pictures that lie in the folder `home`, made first where they are missing.

    Args:
      home: where they lie; only this function writes there.
      about: what decides the pictures. A folder that says otherwise is refused.
      shape: (N, H, W, C) of them all.
      make: the pictures of some rows, (len(rows), H, W, C) uint8.
      what: what they are called while they are made.
      at_once: rows made before the next note of how far it is.

    Returns:
      (N, H, W, C) uint8, mapped from the file and read-only.

    Raises:
      UserError: if the folder holds other pictures, is damaged, or cannot be written where some are missing, be it for
        want of room.
    """
    label = json.dumps({**about, "shape": "x".join(map(str, shape))}, indent=2, sort_keys=True) + "\n"
    note, file, done = home / _ABOUT, home / _IMAGES, home / _DONE
    try:
        # A finished cache may be another user's, and read-only.
        if not done.exists() or done.read_text(encoding="utf-8") != str(shape[0]):
            storage.writable(home, INSTEAD)
        if not note.exists():
            np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
            storage.write_text(done, "0", INSTEAD)
            storage.write_text(note, label, INSTEAD)
        if note.read_text(encoding="utf-8") != label:
            raise UserError(f"{home} holds other pictures or was made by another version: delete that folder.")
        first = int(done.read_text(encoding="utf-8"))
        images = np.lib.format.open_memmap(file, mode="r")
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"{_IMAGES} holds {images.dtype} of shape {images.shape}")
    except (OSError, ValueError) as error:
        raise UserError(f"{home} cannot be used ({error}): delete that folder, it is made again.") from error
    starts = range(first, shape[0], at_once)
    named = f"{what}, {at_once} at a time"
    for start in console.progress(starts, named, total=-(-shape[0] // at_once), first=first // at_once):
        rows = range(start, min(start + at_once, shape[0]))
        made = make(rows)
        # Not through the map, where a full disk would be a signal that kills.
        try:
            with file.open("r+b") as written:
                written.seek(images.offset + start * images.strides[0])
                written.write(made.tobytes())
                written.flush()
                os.fsync(written.fileno())
        except OSError as error:
            raise storage.unwritable(file, error, INSTEAD) from error
        storage.write_text(done, str(rows.stop), INSTEAD)
    return images
