"""The networks that come with cdisc, as files in `cdisc/bundled`; `tools/bundle.py` makes them."""

import dataclasses
import functools
import json
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.errors import UserError, require_known
from cdisc.networks import denoiser, interop
from cdisc.networks.unet import UNetConfig

FOLDER = pathlib.Path(__file__).parent.parent / "bundled"


def about(network: UNetConfig, scheduler: interop.SchedulerConfig) -> dict[str, str]:
    """What a file says of its network, as JSON, so that it can be used without the configuration behind it.

    Examples:
      >>> sorted(about(config, interop.SchedulerConfig()))
      ['network', 'scheduler']
    """
    return {"network": json.dumps(dataclasses.asdict(network)), "scheduler": json.dumps(dataclasses.asdict(scheduler))}


def _read(cls: Any, text: str) -> Any:
    """The inverse of what `about` makes of a dataclass."""
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()})


def load(name: str) -> interop.Pretrained:
    """A network that comes with cdisc, with everything needed to use it.

    Args:
      name: "colormnist_small", "avatars_small" or "letters_small".

    Raises:
      ValueError: for a name that does not exist.
      UserError: for a file that is damaged or of another version.

    Examples:
      >>> load("letters_small").network.picture_shape
      (32, 32, 3)
    """
    names = [path.stem for path in FOLDER.glob("*.npz")]
    require_known("the name of a bundled network", name, sorted(set(names) - {f"{stem}_judge" for stem in names}))
    path = FOLDER / f"{name}.npz"
    said = npz_about(path)
    try:
        network, scheduler = _read(UNetConfig, said["network"]), _read(interop.SchedulerConfig, said["scheduler"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not say what network it holds ({error}): install cdisc again, or run tools.bundle."
        ) from error
    like = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    return interop.Pretrained(network, restore_npz(path, like, {}), scheduler)


def start(name: str, network: UNetConfig, scheduler: interop.SchedulerConfig) -> denoiser.Params:
    """The weights of a network that comes with cdisc, each class as the null class is: where other classes are learnt.

    Args:
      name: as `load` takes it.
      network: the one that goes on from there; it may differ in the number of its classes and in `remat`.
      scheduler: its forward process.

    Raises:
      ValueError: for a name that does not exist, another network or another forward process.
      UserError: for a file that is damaged or of another version.

    Examples:
      >>> known = load("letters_small")
      >>> wider = dataclasses.replace(known.network, num_class_embeds=9)
      >>> denoiser.class_table(start("letters_small", wider, known.scheduler)).shape  # and the null class
      (8, 192)
    """
    known = load(name)
    alike = dataclasses.replace(known.network, num_class_embeds=network.num_class_embeds, remat=network.remat)
    forward = ("num_train_timesteps", "beta_start", "beta_end", "prediction_type")
    if alike != network or any(getattr(known.scheduler, key) != getattr(scheduler, key) for key in forward):
        raise ValueError(
            f"{name} is another network, or of another forward process, than config.network and config.diffusion say: "
            "take these from its configuration."
        )
    assert network.num_class_embeds is not None  # of a network that is trained
    return denoiser.new_classes(known.params, network.num_class_embeds - 1)


class OtherError(UserError):
    """A file was made with other settings or data."""


def _name_of(path: Any) -> str:
    return "array:" + jax.tree_util.keystr(path, simple=True, separator="/")


def save_npz(path: pathlib.Path, tree: Any, about: dict[str, str]) -> None:
    """Writes a pytree as one compressed file in half precision, for bundling; `about` says what it is.

    Args:
      path: the file.
      tree: floating-point arrays.
      about: text fields, found again by `restore_npz` and `npz_about`.

    Examples:
      >>> save_npz(folder / "own.npz", {"x": np.ones(2)}, {"data": "toys"})
      >>> (folder / "own.npz").is_file()
      True
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays: dict[str, Any] = {_name_of(path): np.asarray(leaf).astype(np.float16) for path, leaf in leaves}
    texts: dict[str, Any] = {f"about:{name}": np.asarray(text) for name, text in about.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays, **texts)


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All that `save_npz` wrote.

    Raises:
      UserError: if the file is missing or damaged.
    """
    try:
        # A file of our own: NumPy leaves its own open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({error}): install cdisc again, or train with --config.pretrain.from_scratch=True."
        ) from error


def npz_about(path: pathlib.Path) -> dict[str, str]:
    """The text fields that `save_npz` wrote; raises as `restore_npz` does for a file that cannot be read.

    Examples:
      >>> save_npz(folder / "own.npz", {"x": np.ones(2)}, {"data": "toys"})
      >>> npz_about(folder / "own.npz")
      {'data': 'toys'}
    """
    return {name[6:]: str(text) for name, text in _read_npz(path).items() if name.startswith("about:")}


def restore_npz(path: pathlib.Path, like: Any, about: dict[str, str]) -> Any:
    """Reads what `save_npz` wrote, as float32.

    Args:
      path: the file.
      like: the structure and shapes expected.
      about: the text fields expected.

    Raises:
      OtherError: if its fields are others.
      UserError: if the file is missing or damaged, or its arrays are others.

    Examples:
      >>> save_npz(folder / "own.npz", {"x": np.ones(2)}, {"data": "toys"})
      >>> restore_npz(folder / "own.npz", like={"x": np.zeros(2)}, about={"data": "toys"})
      {'x': Array([1., 1.], dtype=float32)}
    """
    content = _read_npz(path)
    for name, text in about.items():
        found = str(content.get(f"about:{name}"))
        if found != text:
            raise OtherError(
                f"{path.name} was made with {name} {found[:12]} and this run has {text[:12]}: undo the change of "
                "config.data, config.diffusion, config.network or config.pretrain, or train this network with "
                "--config.pretrain.from_scratch=True."
            )
    expected, treedef = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for leaf_path, leaf in expected:
        name = _name_of(leaf_path)
        if name not in content or content[name].shape != tuple(leaf.shape):
            raise UserError(
                f"{path.name} has no array {name[6:]} of shape {tuple(leaf.shape)}: it is another network's."
            )
        leaves.append(jnp.asarray(content[name].astype(np.float32)))  # cast by NumPy: nothing to compile
    return jax.tree.unflatten(treedef, leaves)
