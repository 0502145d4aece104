"""The network and the forward process of a configuration, with what can be checked of them before any work."""

import dataclasses
from collections.abc import Mapping

from cdisc.app.config import Config, DiffusersFolder
from cdisc.data import Dataset
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import UserError, about
from cdisc.learning.adapt import AdaptOptions
from cdisc.networks import interop
from cdisc.networks.unet import UNetConfig


def with_timesteps(config: Config, schedule: Schedule) -> Config:
    """The configuration with timesteps of a schedule in place of shares of its length.

    Raises:
      UserError: for timesteps, or steps of a sampler, that the schedule does not have.
    """
    last, steps = schedule.num_timesteps, config.sampling.num_steps
    if steps > last:
        raise UserError(
            f"config.sampling.num_steps has {steps}: the schedule has {last} timesteps, so use at most that."
        )
    with about("config.discover."):
        return dataclasses.replace(config, discover=config.discover.at(schedule))


def picture_shape(network: UNetConfig) -> tuple[int, int, int]:
    """(H, W, C) of what a network denoises."""
    return network.sample_size, network.sample_size, network.in_channels


def trained_network(network: UNetConfig, dataset: Dataset) -> UNetConfig:
    """`config.network` for a data set; a table of None gets a row for each trained class and the null class.

    Raises:
      UserError: for a network that cannot be trained on them.
    """
    shape, classes = picture_shape(network), len(dataset.split.trained)
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


def imported_network(
    source: DiffusersFolder, levels: Mapping[str, AdaptOptions]
) -> tuple[UNetConfig, interop.SchedulerConfig]:
    """The options of the network in the folder `config.network.path`.

    Raises:
      UserError: for a network, or a level of adaptation, that a run whose only data are queries cannot use.
    """
    folder, null = source.path, source.null_class
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
