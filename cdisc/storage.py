"""Small files: written whole or not at all, and where those that can be made again are kept."""

import errno
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Iterable
from typing import Any

from cdisc.errors import UserError

_ELSEWHERE = "choose another --workdir"


def write_text(path: pathlib.Path, text: str, instead: str = _ELSEWHERE) -> None:
    """`write_bytes` of text, as UTF-8."""
    write_bytes(path, [text.encode("utf-8")], instead)


def write_bytes(path: pathlib.Path, pieces: Iterable[bytes], instead: str = _ELSEWHERE) -> None:
    """Replaces the file at `path` whole or not at all; where several processes do, the last one's content stays.

    Args:
      path: of the file; its folder is made.
      pieces: of the content, in their order.
      instead: what the user may do if it cannot be written.

    Raises:
      UserError: if it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.writelines(pieces)
        to_disk(partial)
        partial.replace(path)
    except OSError as error:
        raise unwritable(path, error, instead) from error


def to_disk(path: pathlib.Path) -> None:
    """Waits until a file is on its disk: one that is renamed earlier may be empty after a power failure."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def unwritable(path: pathlib.Path, error: OSError, instead: str = _ELSEWHERE) -> UserError:
    """The complaint that a file could not be written, and what may be done `instead`."""
    reason = "the disk is full" if error.errno == errno.ENOSPC else f"the folder cannot be written ({error})"
    return UserError(
        f"{path} was not saved: {reason}; make room or {instead}, then run again: what was finished before is kept."
    )


def writable(folder: pathlib.Path, instead: str = _ELSEWHERE) -> None:
    """Makes sure that `folder` exists and can be written; `instead` says what the user may do if it cannot.

    Raises:
      UserError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, instead) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: {instead}.")


def cache_folder(name: str) -> pathlib.Path:
    """Where files that can be made again are kept for this user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "cdisc" / name


def digest(content: Any) -> str:
    """SHA-256 of a JSON-like value, in hexadecimal; tuples and lists are the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def user_path(given: str) -> pathlib.Path:
    """A path that the user gave, with a first "~" as their home: no shell makes it so after a "="."""
    return pathlib.Path(os.path.expanduser(given))
