"""Pictures that are made once and kept: a memory-mapped array of bytes that a stopped run goes on filling."""

import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from cdisc import checkpoints, console, signals
from cdisc.errors import UserError

_ABOUT, _IMAGES, _DONE = "about.json", "images.npy", "done.txt"


def pictures(
    folder: pathlib.Path,
    about: dict[str, str],
    shape: tuple[int, ...],
    make: Callable[[range], np.ndarray],
    what: str,
    at_once: int = 256,
) -> np.ndarray:
    """The pictures that lie in `folder`, made first where they are missing.

    Args:
      folder: where they lie; only this function writes there.
      about: what decides the pictures. A folder that says otherwise is refused.
      shape: (N, H, W, C) of them all.
      make: the pictures of some rows, (len(rows), H, W, C) uint8.
      what: what they are called while they are made.
      at_once: rows made before the next note of how far it is.

    Returns:
      (N, H, W, C) uint8, mapped from the file and read-only.

    Raises:
      UserError: if the folder holds other pictures, is damaged, or cannot be written where some are missing.
    """
    label = json.dumps({**about, "shape": "x".join(map(str, shape))}, indent=2, sort_keys=True) + "\n"
    note, file, done = folder / _ABOUT, folder / _IMAGES, folder / _DONE
    try:
        # A finished cache may be another person's, and read-only.
        if not done.exists() or done.read_text(encoding="utf-8") != str(shape[0]):
            checkpoints.writable(folder)
        if not note.exists():
            # The length is the file's from the start: a disk that is too small says so now.
            images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
            checkpoints.write_text(done, "0")
            checkpoints.write_text(note, label)
        if note.read_text(encoding="utf-8") != label:
            raise UserError(f"{folder} holds other pictures or was made by another version: delete that folder.")
        first = int(done.read_text(encoding="utf-8"))
        images = np.lib.format.open_memmap(file, mode="r+" if first < shape[0] else "r")
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"{_IMAGES} holds {images.dtype} of shape {images.shape}")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be used ({error}): delete that folder, it is made again.") from error
    starts = range(first, shape[0], at_once)
    for start in console.progress(starts, what, total=-(-shape[0] // at_once), first=first // at_once):
        signals.obey()
        rows = range(start, min(start + at_once, shape[0]))
        images[rows.start : rows.stop] = make(rows)
        # Unlike images.flush(), lets the threads that make the next rows go on.
        with file.open("r+b") as written:
            os.fsync(written.fileno())
        checkpoints.write_text(done, str(rows.stop))
    images.flags.writeable = False
    return images
