"""Any container of cdisc as one file that says by itself what it holds: a notebook's, or a run's for a query.

A file is an archive of NumPy's: `tree` is JSON, in which containers name their class and arrays their entry. Nothing in
it is run when it is read: classes are dataclasses of cdisc, found by name, and no array holds objects. The archive has
a checksum for each of its entries, so a file that was changed is never taken for what was saved.
"""

import dataclasses
import importlib
import io
import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from cdisc import storage
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
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps(_described(content, arrays))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, tree=np.asarray(tree), **arrays)
    storage.write_bytes(storage.user_path(str(path)), buffer.getvalue(), "choose another path")


def restore(path: str | os.PathLike[str], remedy: str = _REMEDY) -> Any:
    """What `save` wrote; arrays are JAX's.

    Args:
      path: of the file.
      remedy: what is said of a damaged file after the colon.

    Raises:
      UserError: if the file is missing, or cannot be read now.
      DamagedError: if it is damaged, or of another version of cdisc.
    """
    path = storage.user_path(str(path))
    try:
        content = io.BytesIO(path.read_bytes())  # from here on, no error is the disk's
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the path.") from error
    except OSError as error:
        raise storage.unreadable(path, error) from error
    try:
        with np.load(content, allow_pickle=False) as archive:
            return _made(json.loads(str(archive["tree"])), archive)
    except Exception as error:  # whatever NumPy, zipfile and a class raise for what is no such file
        raise DamagedError(f"{path} cannot be read to its end ({error})", remedy) from error


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
