"""Small files: written whole or not at all, with a checksum where results depend on them; and where caches are."""

import errno
import glob
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Mapping
from typing import Any

from cdisc.errors import UserError, short

_ELSEWHERE = "choose another --workdir"

AGAIN = "delete it and run again; everything else is kept"
"""What to do about a damaged piece of a workdir."""

_CHECKSUM = "sha256"
"""The key under which a JSON file has the checksum of everything else in it."""

_DEEPEST = 300
"""Bytes that paths in a folder may add to its own: Orbax's names in ours."""


class DamagedError(UserError):
    """A file or a folder is not what was written.

    Attributes:
      what: which one, and how that is known.
    """

    def __init__(self, what: str, remedy: str = AGAIN):
        super().__init__(f"{what}: {remedy}.")
        self.what = what


def write_json(path: pathlib.Path, content: Mapping[str, Any], instead: str = _ELSEWHERE) -> None:
    """`write_bytes` of a JSON object and its checksum, for `read_json`."""
    write_text(path, json.dumps({**content, _CHECKSUM: digest(content)}, indent=2) + "\n", instead)


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """What `write_json` wrote, and nothing else: an edit, a flipped bit or a cut are told by the checksum.

    Args:
      path: of the file.
      remedy: what the user may do if it is damaged.

    Raises:
      FileNotFoundError: if there is no such file.
      DamagedError: if it is not what was written.
      UserError: if it cannot be read now.
    """
    try:
        content = json.loads(path.read_bytes())
        if content.pop(_CHECKSUM) == digest(content):
            return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass  # another file, or one that was cut
    raise DamagedError(f"{path} is not as this version wrote it", remedy)


def write_text(path: pathlib.Path, text: str, instead: str = _ELSEWHERE) -> None:
    """`write_bytes` of text, as UTF-8."""
    write_bytes(path, text.encode("utf-8"), instead)


def write_bytes(path: pathlib.Path, content: bytes, instead: str = _ELSEWHERE) -> None:
    """Replaces the file at `path` whole or not at all; where several processes do, the last one's content stays.

    Args:
      path: of the file; its folder is made.
      content: of the file.
      instead: what the user may do if it cannot be written.

    Raises:
      UserError: if it cannot be written.
    """
    prefix = f"{path.name}.{socket.gethostname()}."
    partial = path.with_name(f"{prefix}{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(prefix)}*.partial"):
            try:
                os.kill(int(left.stem.removeprefix(prefix)), 0)
            except ProcessLookupError:
                left.unlink(missing_ok=True)  # a killed process has left it
            except (OSError, OverflowError, ValueError):
                pass  # another user's process, or no process at all
        try:
            partial.write_bytes(content)
            to_disk(partial)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)  # a full disk has no room for it
            raise
    except OSError as error:
        raise unwritable(path, error, instead) from error


def to_disk(path: pathlib.Path) -> None:
    """Waits until a file is on its disk: one that is renamed earlier may be empty after a power failure."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def unwritable(path: pathlib.Path, error: BaseException, instead: str = _ELSEWHERE) -> UserError:
    """The complaint that a file could not be written, and what may be done `instead`."""
    full = "No space left" in str(error)
    reason = "the disk is full" if full else f"the folder cannot be written ({short(error)})"
    return UserError(
        f"{path} was not saved: {reason}; make room or {instead}, then run again: what was finished before is kept."
    )


def unreadable(path: pathlib.Path, error: Exception) -> UserError:
    """The complaint that what is there cannot be read now; not a `DamagedError`, for it may be read later."""
    return UserError(
        f"{path} cannot be read ({short(error)}): see that its disk or network folder is there, then run again."
    )


def complaint(error: OSError, folder: pathlib.Path | None) -> str | None:
    """The sentence for an uncaught OSError; None if it is a mistake in the code.

    Such is a missing file, but not in `folder`, which somebody may have removed while it was used.
    """
    place = pathlib.Path(error.filename).absolute() if isinstance(error.filename, str) else None
    lost = folder and place and place.is_relative_to(folder.absolute())
    if error.errno is None or (error.errno == errno.ENOENT and not lost):
        return None
    return (
        f"{error}: make room, bring the folder back or choose another --workdir, then run again; what was finished "
        "there is kept."
    )


def writable(folder: pathlib.Path, instead: str = _ELSEWHERE) -> None:
    """Makes sure that `folder` exists and can be written; `instead` says what the user may do if it cannot.

    Raises:
      UserError: if not.
    """
    try:
        taken = len(str(folder.absolute()).encode())  # Orbax takes no path that is not UTF-8
        folder.mkdir(parents=True, exist_ok=True)
        room = os.pathconf(folder, "PC_PATH_MAX") - taken
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"{short(folder)} cannot be written ({error}): {instead}.") from error
    if room < _DEEPEST:
        raise UserError(f"{folder!s:.50}... is too long a path to hold files: {instead}.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written: {instead}.")


def cache_folder(name: str) -> pathlib.Path:
    """Where files that can be made again are kept for this user.

    Raises:
      UserError: if neither the environment nor the system's list of users says where that is.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:  # the standard has relative paths ignored
        root = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError("this user has no home folder for caches: set XDG_CACHE_HOME to a folder.") from error
    return root / "cdisc" / name


def digest(content: Any) -> str:
    """SHA-256 of a JSON-like value, in hexadecimal; tuples and lists are the same."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def user_path(given: str) -> pathlib.Path:
    """A path that the user gave, with a first "~" as their home: no shell makes it so after a "="."""
    return pathlib.Path(os.path.expanduser(given))
