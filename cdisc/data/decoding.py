"""Files of pictures, decoded once, on all cores, into a cache of bytes."""

import concurrent.futures
import functools
import io
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np
import PIL
from PIL import Image

from cdisc import console
from cdisc.data import cache, pictures
from cdisc.errors import UserError

VERSIONS = {"decoding": "3", "pillow": PIL.__version__}
"""What decides a decoded picture beside its file: a cache of other versions is another cache."""

MAX_BYTES = 2**27
"""A longer file is no picture."""

_MAX_UNREADABLE = 0.01
_LARGE, _alone = 2**24, concurrent.futures.ThreadPoolExecutor(1)
"""Pictures of more pixels are decoded one at a time, by one thread: each keeps the memory that it once took."""


def read_bytes(file: IO[bytes]) -> bytes:
    """The content of a file or of an archive's member, which may be small and unpack to more than memory holds.

    Raises:
      ValueError: if it is longer than `MAX_BYTES`.
    """
    content = bytearray()
    while piece := file.read(4096):  # small pieces: some compressions unpack what they are given in one go
        content += piece
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return bytes(content)


def decode(data: bytes, size: int) -> np.ndarray:
    """The middle square of a picture, as `pictures.fit` makes it.

    Args:
      data: a file of any format that Pillow reads.
      size: pixels a side.

    Returns:
      (size, size, 3) uint8.

    Raises:
      Exception: what Pillow raises for a damaged file, which can be anything.
    """
    with Image.open(io.BytesIO(data)) as image:
        pixels = image.width * image.height // (8 if image.format in ("JPEG", "MPO") else 1)  # decoded at a part of it
        fit = functools.partial(pictures.fit, image, (size, size, 3))
        return (_alone.submit(fit).result() if pixels > _LARGE else fit())[0]


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
    opened = functools.cache(open_files)

    def one(name: str, read: Callable[[str], bytes]) -> np.ndarray | str:
        try:
            return decode(read(name), size)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's: it may go away
                raise UserError(
                    f"{name} cannot be read ({error.strerror}): see to the folder or the disk that it lies on, then "
                    "run again: what was decoded before is kept."
                ) from error
            return pictures.reason(error)

    # Pillow's warnings are about metadata.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings(action="ignore"):
        begun: dict[str, concurrent.futures.Future[np.ndarray | str]] = {}

        def make(rows: range) -> list[np.ndarray | str]:
            # The next rows are begun as well: they are decoded while these are written.
            for name in files[rows.start : rows.stop + len(rows)]:
                if name not in begun:
                    begun[name] = pool.submit(one, name, opened())
            return [begun.pop(name).result() for name in files[rows.start : rows.stop]]

        kept = cache.pictures(folder, about, (len(files), size, size, 3), make, "decoding pictures")
    bad = {files[row]: why for row, why in kept.missing.items()}
    if bad:
        named = ", ".join(list(bad)[:3]) + (" and others" if len(bad) > 3 else "")
        sentence, first = f"{len(bad)} of {len(files)} images cannot be read", f"The first: {next(iter(bad.values()))}."
        if len(bad) > _MAX_UNREADABLE * len(files):
            raise UserError(f"{sentence} ({named}): replace them and delete {folder}. {first}")
        console.warn(f"{sentence} and are left out: {named}. To try these again, delete {folder}. {first}")
    return kept.images, {name: row for row, name in enumerate(files) if name not in bad}
