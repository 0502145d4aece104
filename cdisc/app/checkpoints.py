"""Checkpoints: pytrees of arrays, through Orbax, with a manifest of their own.

Each is written to a temporary folder that is renamed, so a killed run leaves no half checkpoint. Orbax casts where
types differ, and answers a damaged file with tracebacks from its threads: the manifest, written last, holds each leaf's
shape and type and each file's checksum, and both are compared before Orbax reads. A checkpoint without a manifest does
not exist.

Of several processes the first one writes and each reads by itself, so none waits for another here.
"""

import hashlib
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cdisc import console, storage
from cdisc.errors import UserError
from cdisc.storage import DamagedError

_MANIFEST = "manifest.json"


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _described(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: [list(array.shape), array.dtype.name] for name, array in arrays.items()}


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _orbax() -> ocp.StandardCheckpointer:
    """Orbax for this process by itself, which writes and reads arrays of the host; left alone it waits for all."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(active_processes={me}, barrier_sync_key_prefix=f"process_{me}")
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def save(path: pathlib.Path, tree: Any, about: Any = None) -> None:
    """Writes a pytree of arrays to the folder `path`, in place of what is there.

    Of several processes the first one does: Orbax writes the host's arrays in that one alone.

    Args:
      path: the folder.
      tree: the arrays.
      about: what else is to be known of them, as JSON can say it, for `about`.

    Raises:
      UserError: if the folder cannot be written; what was there is then still there.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}
    path = path.absolute()
    partial = path.with_name(f"{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # a killed process has left it
        partial.mkdir(parents=True)
        with _orbax() as checkpointer:
            checkpointer.save(partial / "arrays", leaves)
        written = _checksums(partial)
        for name in written:
            storage.to_disk(partial / name)
        manifest = {"leaves": _described(leaves), "files": written, "about": about}
        storage.write_json(partial / _MANIFEST, manifest)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except (OSError, ValueError, UserError) as error:  # Orbax has a ValueError for what the system says
        shutil.rmtree(partial, ignore_errors=True)
        raise storage.unwritable(path, error.__cause__ or error) from error


def exists(path: pathlib.Path) -> bool:
    """Whether `path` holds a finished checkpoint."""
    return (path / _MANIFEST).is_file()


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    try:
        return storage.read_json(path / _MANIFEST, "")
    except (DamagedError, FileNotFoundError) as error:
        raise DamagedError(f"{path} holds no finished checkpoint") from error


def about(path: pathlib.Path) -> Any:
    """What `save` was told of the arrays at `path`.

    Raises:
      DamagedError: if no finished checkpoint is there.
    """
    return _manifest(path)["about"]


def restore(path: pathlib.Path, like: Any) -> Any:
    """Reads the checkpoint at `path` into the structure of `like`.

    Args:
      path: the folder that `save` wrote.
      like: a pytree of arrays or of `jax.ShapeDtypeStruct`, the structure, shapes and types expected.

    Raises:
      DamagedError: if it is missing, cut short or damaged.
      UserError: if it holds other arrays than `like`, or is not to be reached now.
    """
    path = path.absolute()
    manifest = _manifest(path)
    leaves, checksums = manifest["leaves"], manifest["files"]
    try:
        files = _checksums(path)
    except OSError as error:
        raise storage.unreadable(path, error) from error
    target = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named_leaves(like).items()}
    wanted = _described(target)
    for name in [*wanted, *leaves]:
        if leaves.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: {name} is {leaves.get(name)} where {wanted.get(name)} is expected: it comes from another "
                "network or version; use another --workdir."
            )
    for name, checksum in checksums.items():
        if files.get(name) != checksum:
            raise DamagedError(f"{path} is damaged ({name} is not what was written)")
    try:
        with _orbax() as checkpointer:
            values = checkpointer.restore(path / "arrays", target)
    except (OSError, ValueError) as error:  # not the files, which are what was written
        raise storage.unreadable(path, error) from error
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(values[name]) for name in target])


def steps(folder: pathlib.Path) -> list[int]:
    """The steps saved in `folder` by `save_step`, first to last."""
    if not folder.is_dir():
        return []
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*") if exists(path))
    return sorted(int(name) for name in names if name.isdecimal())


def step_path(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Where `save_step` saves a step."""
    return folder / f"step_{step:08d}"


def save_step(folder: pathlib.Path, step: int, tree: Any, keep: int) -> None:
    """Saves `tree` as step `step` of `folder`; removes all but the last `keep` steps, and what a kill left there."""
    save(step_path(folder, step), tree)
    kept = [step_path(folder, last) for last in steps(folder)[-keep:]]
    for path in folder.glob("step_*"):
        if path not in kept:
            shutil.rmtree(path)


def arrays_of(folder: pathlib.Path) -> dict[str, jax.Array]:
    """All arrays of a checkpoint, by their names in it; raises as `restore` does."""
    leaves = _manifest(folder)["leaves"]
    return restore(folder, {name: jax.ShapeDtypeStruct(*leaf) for name, leaf in leaves.items()})


def restore_newest(folder: pathlib.Path, like: Any) -> Any | None:
    """Reads the newest step that `save_step` wrote; a damaged one is removed, with a warning, and the one before read.

    Returns:
      The tree; None if no step is there.

    Raises:
      DamagedError: if all are damaged; the oldest is left there.
      UserError: if the step holds other arrays than `like`.
    """
    paths = [step_path(folder, step) for step in steps(folder)]
    while paths:
        newest = paths.pop()
        try:
            return restore(newest, like)
        except DamagedError as error:
            if not paths:
                raise
            console.warn(f"{error.what}: it is removed, and {paths[-1].name} is tried in its place.")
            shutil.rmtree(newest)
    return None
