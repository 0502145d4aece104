"""The pictures, the network and the forward process that a configuration names, checked before any work."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from cdisc import console
from cdisc.app import hosts
from cdisc.app.config import Config, DiffusersFolder
from cdisc.data import Dataset, avatars, celeba, colormnist, folder, letters, planar, queries
from cdisc.diffusion.sampling import timesteps
from cdisc.errors import UserError, about
from cdisc.learning.adapt import AdaptOptions
from cdisc.networks import backbone, interop
from cdisc.networks.interop import SchedulerConfig
from cdisc.networks.unet import UNetConfig

_DATA: tuple[Any, ...] = (colormnist, avatars, letters, celeba, planar, folder)


def resolve(config: Config) -> tuple[Config, Dataset, UNetConfig | None, SchedulerConfig]:
    """What `config` names; this alone asks whether a network is trained here or was saved by diffusers.

    Returns:
      The configuration, where there is a folder with its way to sample and timesteps of its schedule; the pictures; the
      U-Net's options, None where the score is exact; the forward process and what is predicted.

    Raises:
      UserError: for anything in the configuration that cannot be used.
    """
    source = config.network
    if isinstance(source, DiffusersFolder):
        network, scheduler = pretrained_options(config, config.adapt.levels)
        if not scheduler.sampler.startswith("DDIM"):
            console.say(f"{source.path} is of a {scheduler.sampler}: here samples are drawn by DDIM, on its schedule")
        config = dataclasses.replace(
            _at_the_schedule_of(config, scheduler.num_train_timesteps),
            sampling=dataclasses.replace(config.sampling, **scheduler.ddim_options),
        )
        check_timesteps(config, scheduler.num_train_timesteps)
        name = pathlib.Path(source.path).expanduser().resolve().name
        return config, queries.load(name, network.picture_shape), network, scheduler
    scheduler = config.scheduler()
    check_timesteps(config, scheduler.num_train_timesteps)
    with hosts.first_alone():  # some data are made once and kept, which takes minutes
        dataset = next(data for data in _DATA if data.Options is type(config.data)).load(config.data)
    return config, dataset, trained_network(source, dataset) if isinstance(source, UNetConfig) else None, scheduler


def _at_the_schedule_of(config: Config, last: int) -> Config:
    """The timesteps of `config.discover`, given for `network.num_timesteps`, at the same parts of `last` timesteps."""
    given = config.network.num_timesteps if isinstance(config.network, DiffusersFolder) else last
    if given == last:
        return config

    def scaled(chosen: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(max(1, round(t * last / given)) for t in chosen))

    discovery = config.discover
    discovery = dataclasses.replace(
        discovery, timesteps=scaled(discovery.timesteps), hierarchy=scaled(discovery.hierarchy)
    )
    console.say(
        f"the network's schedule has {last} timesteps: config.discover's, given for {given}, become "
        f"{discovery.timesteps} and {discovery.hierarchy}"
    )
    return dataclasses.replace(config, discover=discovery)


def check_timesteps(config: Config, last: int) -> None:
    """Checks that a schedule of `last` timesteps has those that a configuration names.

    Raises:
      UserError: if not.
    """
    discovery = config.discover
    named = {"discover.timesteps": discovery.timesteps, "discover.hierarchy": discovery.hierarchy}
    for name, given in (named | {"sampling.num_steps": (config.sampling.num_steps,)}).items():
        if max(given, default=0) > last:
            raise UserError(f"config.{name} has {max(given)}: the schedule has {last} timesteps, so use at most that.")
    sampling = config.sampling
    with about("config.sampling."):
        timesteps(last, sampling.num_steps, sampling.timestep_spacing, sampling.steps_offset)


def trained_network(network: UNetConfig, dataset: Dataset) -> UNetConfig:
    """`config.network` for a data set; a table of None gets a row for each trained class and the null class.

    Raises:
      UserError: for a network that cannot be trained on them.
    """
    shape, classes = network.picture_shape, len(dataset.split.trained)
    if dataset.shape != shape:
        raise UserError(
            f"config.network is for pictures of {'x'.join(map(str, shape))} (sample_size, in_channels), and those of "
            f"{dataset.name} are {'x'.join(map(str, dataset.shape))}: make them agree."
        )
    if network.num_class_embeds is None:
        network = dataclasses.replace(network, num_class_embeds=classes + 1)
    if network.num_class_embeds != classes + 1:
        raise UserError(
            f"config.network.num_class_embeds is {network.num_class_embeds}, but the split trains {classes}: "
            f"set it to {classes + 1}, one row for the null class."
        )
    if network.class_embed_type is not None:
        raise UserError(f"config.network.class_embed_type is {network.class_embed_type!r}: a run needs a table, None.")
    return network


def pretrained_options(config: Any, levels: Mapping[str, AdaptOptions]) -> tuple[UNetConfig, SchedulerConfig]:
    """The options of the network in the folder `config.network.path`.

    Args:
      config: a `Config`, or the `ConfigDict` that becomes one.
      levels: of adaptation.

    Raises:
      UserError: for a network, or a level of adaptation, that a run whose only data are queries cannot use.
    """
    folder, null = config.network.path, config.network.null_class
    if not folder:
        raise UserError("config.network.path is empty: give --config.network.path=FOLDER, one that diffusers saved.")
    network, scheduler = interop.load_options(folder)
    if network.in_channels not in (1, 3) or network.out_channels != network.in_channels:
        raise UserError(
            f"{folder} maps {network.in_channels} channels to {network.out_channels}: a query is a picture of 1 or 3 "
            "channels, so use a network that maps these to as many."
        )
    if network.center_input_sample:
        raise UserError(f"{folder} has center_input_sample: queries are in [-1, 1], so use a network without it.")
    if network.class_embed_type is not None:
        raise UserError(f"{folder} has class_embed_type {network.class_embed_type!r}: a run needs a table, null.")
    with about(f"{folder}: "):
        backbone.unet(network, scheduler.schedule(), scheduler.prediction_type)
    rows = network.num_class_embeds
    if rows is None and null is not None:
        raise UserError(f"{folder} has no classes: leave config.network.null_class out.")
    if rows is not None and (null is None or not 0 <= null < rows):
        raise UserError(
            f"{folder} has {rows} classes, and config.network.null_class is {null}: name the row, 0 to {rows - 1}, "
            "that was trained to stand for no class; without one there is no unconditional density to climb."
        )
    for name, level in levels.items():
        with about(f"config.adapt.levels.{name}."):
            if rows in (None, 1) and not level.after and level.start == "top1":
                raise ValueError(f"start is 'top1', and {folder} has no class to start at: set it to 'normal'.")
            if rows in (None, 1) and level.space == "span":
                raise ValueError(f"space is 'span', and {folder} has no classes to span one: set it to 'free'.")
            if level.prior_weight > 0:
                raise ValueError(
                    f"prior_weight is {level.prior_weight}, and there are no pictures for it: set it to 0."
                )
    return network, scheduler
