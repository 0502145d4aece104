"""The networks that come with cdisc, as files beside this one; `cdisc.bundle` makes them."""

import dataclasses
import functools
import json
import pathlib

import jax

from cdisc import checkpoints
from cdisc.config import parse
from cdisc.errors import UserError, require_known
from cdisc.networks import denoiser, interop
from cdisc.networks.unet import UNetConfig

FOLDER = pathlib.Path(__file__).parent


def about(network: UNetConfig, scheduler: interop.SchedulerConfig) -> dict[str, str]:
    """What a file says of its network, as JSON, so that it can be used without the configuration behind it."""
    return {"network": json.dumps(dataclasses.asdict(network)), "scheduler": json.dumps(dataclasses.asdict(scheduler))}


def load(name: str) -> interop.Pretrained:
    """A network that comes with cdisc, with everything needed to use it.

    Args:
      name: "colormnist_small" or "avatars_small".

    Raises:
      ValueError: for a name that does not exist.
      UserError: for a file that is damaged or of another version.
    """
    names = [path.stem for path in FOLDER.glob("*.npz")]
    require_known("the name of a bundled network", name, sorted(set(names) - {f"{stem}_judge" for stem in names}))
    path = FOLDER / f"{name}.npz"
    said = checkpoints.npz_about(path)
    try:
        network = parse(UNetConfig, json.loads(said["network"]), "network")
        scheduler = parse(interop.SchedulerConfig, json.loads(said["scheduler"]), "scheduler")
    except (KeyError, ValueError, UserError) as error:
        raise UserError(
            f"{path} does not say what network it holds ({error}): install cdisc again, or run cdisc.bundle."
        ) from error
    like = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    return interop.Pretrained(network, checkpoints.restore_npz(path, like, {}), scheduler)
