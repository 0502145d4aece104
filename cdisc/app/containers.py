"""Any container of cdisc, saved so that it says by itself what it holds: a notebook's as a file, a stage's by Orbax.

Both have the arrays by name and a `tree` in JSON, in which containers name their class and arrays their entry. A file
is an archive of NumPy's. Nothing is run when it is read: classes are dataclasses of cdisc, found by name, and no array
holds objects. Both have checksums of all that they hold, so what was changed is never taken for what was saved.
"""

import dataclasses
import functools
import importlib
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from cdisc import storage
from cdisc.app import checkpoints
from cdisc.errors import UserError
from cdisc.storage import DamagedError

_REMEDY = "it is damaged, no file of cdisc.save, or of another version"


def save(path: str | os.PathLike[str], content: Any) -> None:
    """Writes containers, arrays, numbers, texts and None, in lists, tuples and dictionaries, to one file.

    Args:
      path: of the file, which is replaced whole or not at all.
      content: what is to be kept, such as what `cdisc.discover` or `cdisc.adapt` returned.

    Raises:
      TypeError: for what is none of these, such as a function: a `cdisc.Model` is loaded anew instead.
      UserError: if the file cannot be written.
    """
    storage.write_bytes(storage.user_path(str(path)), pack(content), "choose another path")


def checkpoint(path: pathlib.Path, content: Any) -> None:
    """`content`, as `save` takes it, as an Orbax checkpoint in the folder `path`; raises as `checkpoints.save` does."""
    arrays: dict[str, np.ndarray] = {}
    tree = _described(content, arrays)
    checkpoints.save(path, arrays, tree)


def restore(path: str | os.PathLike[str], remedy: str = _REMEDY) -> Any:
    """What `save` wrote, or what a stage of a run has left in a folder; arrays are JAX's.

    Args:
      path: of the file or the folder.
      remedy: what is said of a damaged one after the colon.

    Raises:
      UserError: if it is missing, or cannot be read now.
      DamagedError: if it is damaged, or of another version of cdisc.
    """
    path = storage.user_path(str(path))
    read: Callable[[], Any]
    try:
        if path.is_dir():
            tree, arrays = checkpoints.about(path), checkpoints.arrays_of(path)
            if tree is None:
                raise UserError(
                    f"{path} is a checkpoint of training, which says not what it holds: give pretrain/params."
                )
            read = functools.partial(_made, tree, arrays)
        else:
            read = functools.partial(unpack, path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path.") from error
    except OSError as error:
        raise storage.unreadable(path, error) from error
    try:
        return read()  # from here on, no error is the disk's
    except Exception as error:  # whatever NumPy, zipfile and a class raise for what is no such file
        raise DamagedError(f"{path} cannot be read to its end ({error})", remedy) from error


def pack(content: Any) -> bytes:
    """`content`, as `save` takes it, as the bytes of such a file."""
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(_described(content, arrays))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, tree=np.asarray(tree), **arrays)
    return buffer.getvalue()


def unpack(packed: bytes) -> Any:
    """The inverse of `pack`; of other bytes it raises anything."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        return _made(json.loads(str(archive["tree"])), archive)


def _described(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` in the form of JSON; its arrays are added to `arrays`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_described(item, arrays) for item in value]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _described(item, arrays) for name, item in value.items()}}
    kind = type(value)
    if dataclasses.is_dataclass(value) and kind.__module__.startswith("cdisc."):
        fields = {field.name: _described(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if hasattr(value, "dtype") and np.size(value) == 0:  # which Orbax does not save
        return {"empty": [str(value.dtype), *np.shape(value)]}
    if hasattr(value, "dtype") and np.asarray(value).dtype.kind in "biuf":
        name = f"array_{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    raise TypeError(f"{kind.__name__} cannot be saved: give containers of cdisc, arrays, numbers or texts.")


def _made(described: Any, arrays: Any) -> Any:
    """The inverse of `_described`."""
    if not isinstance(described, dict):
        return described
    ((kind, content), *rest) = described.items()
    if kind == "array":
        return jnp.asarray(arrays[content])
    if kind == "empty":
        return jnp.zeros(content[1:], content[0])
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_made(item, arrays) for item in content)
    if kind == "dict":
        return {name: _made(item, arrays) for name, item in content.items()}
    module, _, name = content.partition(":")
    if not module.startswith("cdisc."):
        raise ValueError(f"{content} is no container of cdisc")
    cls = getattr(importlib.import_module(module), name)
    dataclasses.fields(cls)  # a TypeError for what is no container
    return cls(**{field: _made(item, arrays) for field, item in dict(rest)["fields"].items()})
