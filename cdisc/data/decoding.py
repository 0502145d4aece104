"""Files of pictures, decoded once, on all cores, into a cache of bytes."""

import concurrent.futures
import functools
import io
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import PIL
from PIL import Image, ImageOps

from cdisc import console, storage
from cdisc.data import cache
from cdisc.errors import UserError

VERSIONS = {"decoding": "1", "pillow": PIL.__version__}
"""What decides a decoded picture beside its file: a cache of other versions is another cache."""

_MAX_UNREADABLE = 0.01
_UNREADABLE = "unreadable.txt"
"""Beside the decoded pictures, where there are such: the files that could not be read, a line each."""

# What Pillow and zip files raise where they are damaged, depending on the format, or encrypted.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, RuntimeError),
    *(struct.error, Image.DecompressionBombError, zipfile.BadZipFile, zlib.error),
)


def decode(data: bytes, size: int) -> np.ndarray:
    """The middle square of a picture, upright as its camera says and on white where it is transparent.

    Args:
      data: a file of any format that Pillow reads.
      size: pixels a side.

    Returns:
      (size, size, 3) uint8.

    Raises:
      OSError, SyntaxError or another one: what Pillow raises for a damaged file.
      ValueError: if it has more than 8 bits a channel.
    """
    with Image.open(io.BytesIO(data)) as image:
        # Decodes a JPEG at a half or a quarter where that is still large enough.
        image.draft("RGB", (size, size))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            raise ValueError("more than 8 bits a channel")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = (left, top, left + side, top + side)
        opaque: Image.Image = image
        if image.has_transparency_data:
            opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        if opaque.mode != "RGB":  # else it would be copied, which takes a tenth of the time
            opaque = opaque.convert("RGB")
        return np.asarray(opaque.resize((size, size), Image.Resampling.BILINEAR, box=square))


def decode_all(
    folder: pathlib.Path,
    about: dict[str, str],
    size: int,
    files: Sequence[str],
    open_files: Callable[[], Callable[[str], bytes]],
) -> tuple[np.ndarray, dict[str, int]]:
    """The pictures, from the cache once they are in it. Says which could not be read.

    Args:
      folder: the cache, see `cache.pictures`.
      about: what decides the pictures.
      size: pixels a side.
      files: N names.
      open_files: called when the first file is needed, and not where the cache has them all; gives a function from a
        name to the bytes of its file, which is called in many threads.

    Returns:
      (N, size, size, 3) uint8, mapped from a file, and the row of each file that could be read.

    Raises:
      UserError: if more than one in a hundred is damaged, the system cannot read one, or the cache cannot be used.
    """
    note = folder / _UNREADABLE

    def unreadable() -> list[str]:
        return note.read_text(encoding="utf-8").splitlines() if note.exists() else []

    opened = functools.cache(open_files)

    def one(name: str, read: Callable[[str], bytes]) -> np.ndarray | None:
        try:
            return decode(read(name), size)
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's: it may go away
                raise UserError(
                    f"{name} cannot be read ({error.strerror}): see to the folder or the disk that it lies on, then "
                    "run again: what was decoded before is kept."
                ) from error
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        begun: dict[str, concurrent.futures.Future[np.ndarray | None]] = {}

        def make(rows: range) -> np.ndarray:
            # The next rows are begun as well: they are decoded while these are written.
            for name in files[rows.start : rows.stop + len(rows)]:
                if name not in begun:
                    begun[name] = pool.submit(one, name, opened())
            made = {name: begun.pop(name).result() for name in files[rows.start : rows.stop]}
            lost = [name for name, image in made.items() if image is None]
            if lost:  # noted before the rows are: a run that is stopped in between makes them again
                storage.write_text(note, "\n".join(dict.fromkeys([*unreadable(), *lost])), cache.INSTEAD)
            black = np.zeros((size, size, 3), np.uint8)
            return np.stack([black if image is None else image for image in made.values()])

        images = cache.pictures(folder, about, (len(files), size, size, 3), make, "decoding pictures")
    bad = unreadable()
    left_out = set(bad)
    rows = {name: row for row, name in enumerate(files) if name not in left_out}
    if bad:
        named = ", ".join(bad[:3]) + (" and others" if len(bad) > 3 else "")
        sentence = f"{len(bad)} of {len(files)} images cannot be read"
        if len(bad) > _MAX_UNREADABLE * len(files):
            raise UserError(f"{sentence} ({named}): replace them and delete {folder}.")
        console.warn(f"{sentence} and are left out: {named}. To try these again, delete {folder}.")
    return images, rows
