"""The pictures, the network and the forward process that a configuration names, checked before any work."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from cdisc import console
from cdisc.app import hosts
from cdisc.app.config import DATA, Config, DiffusersFolder
from cdisc.data import Dataset, queries
from cdisc.errors import about
from cdisc.evaluation import composition
from cdisc.networks import denoiser, interop, lora
from cdisc.networks.interop import SchedulerConfig
from cdisc.networks.unet import UNetConfig
from cdisc.options import pretrained_options


def resolve(config: Config) -> tuple[Config, Dataset, UNetConfig | None, SchedulerConfig, Any]:
    """What `config` names; this alone asks whether a network is trained here or was saved by diffusers.

    Returns:
      The configuration, where there is a folder with its way to sample and timesteps of its schedule; the pictures; the
      U-Net's options, None where the score is exact; the forward process and what is predicted; the parameters, None
      where they are to be trained or restored.

    Raises:
      UserError: for anything in the configuration that cannot be used.
    """
    source = config.network
    if isinstance(source, DiffusersFolder):
        return _resolve_folder(config, source)
    with hosts.first_alone():  # some data are made once and kept, which takes minutes
        dataset = next(module for module in DATA.values() if module.Options is type(config.data)).load(config.data)
    split = dataset.split
    composable = isinstance(source, UNetConfig) and composition.composable(split.trained, split.factors.sizes)
    for name, level in config.adapt.levels.items():
        with about(f"config.adapt.levels.{name}."):
            level.require(len(split.trained), composable, pictures=True)
    if not isinstance(source, UNetConfig):
        return config, dataset, None, config.scheduler(), dataset.train
    with about("config.network."):
        network = source.for_classes(len(dataset.split.trained), dataset.shape, dataset.name)
    return config, dataset, network, config.scheduler(), None


def _resolve_folder(
    config: Config, source: DiffusersFolder
) -> tuple[Config, Dataset, UNetConfig, SchedulerConfig, denoiser.Params]:
    """The same for a network that diffusers saved, whose weights are read now: their digest is the fingerprint."""
    network, scheduler = pretrained_options(config, config.adapt.levels)
    if not scheduler.sampler.startswith("DDIM"):
        console.say(f"{source.path} is of a {scheduler.sampler}: here samples are drawn by DDIM, on its schedule")
    given, last, discovery = source.num_timesteps, scheduler.num_train_timesteps, config.discover
    if given != last:
        discovery = discovery.rescaled(given, last)
        console.say(
            f"the network's schedule has {last} timesteps: config.discover's, given for {given}, become "
            f"{discovery.timesteps} and {discovery.hierarchy}"
        )
    sampling = dataclasses.replace(config.sampling, **scheduler.ddim_options)
    config = dataclasses.replace(config, discover=discovery, sampling=sampling)
    with about("config."):
        config.require_timesteps(last)
    params = interop.load(source.path).params
    if source.adapter:
        adapter, embedding = interop.load_adapter(source.adapter, network)
        params = lora.merge(params, adapter)
        if embedding is not None:
            console.warn(f"{source.adapter} has a class of its own besides its factors, which is not used.")
    digest = hashlib.sha256(repr((network, scheduler)).encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    name = pathlib.Path(source.path).expanduser().resolve().name
    dataset = queries.load(name, network.picture_shape, digest.hexdigest())
    null = source.null_class
    return config, dataset, network, scheduler, params if null is None else denoiser.null_last(params, null)
