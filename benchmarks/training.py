"""A training step of a configuration on random pictures, as the benchmarks time it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from cdisc.app import devices
from cdisc.app.config import Config
from cdisc.diffusion.schedule import Schedule
from cdisc.learning import pretrain
from cdisc.networks import backbone
from cdisc.networks.unet import UNetConfig


class Training(NamedTuple):
    """What is trained, and `advance(state) -> (state, metrics)`, which overwrites the state that it is given."""

    network: UNetConfig
    model: backbone.Backbone
    options: pretrain.PretrainOptions
    schedule: Schedule
    state: pretrain.TrainState
    advance: Callable[[pretrain.TrainState], tuple[pretrain.TrainState, Any]]


def training(config: Config) -> Training:
    """The training of a configuration, before its first step."""
    scheduler, network, options = config.scheduler(), config.network, config.pretrain
    assert isinstance(network, UNetConfig)
    schedule = scheduler.schedule()
    model = backbone.unet(network, schedule, scheduler.prediction_type)

    picture = network.picture_shape
    places, _ = devices.batch_rows(options.batch_size, options.accumulate)
    noise = np.random.default_rng(0).standard_normal((*places.shape, *picture), np.float32)
    pictures = (noise, np.zeros(places.shape, np.int32))
    step = devices.training_step(pretrain.step(model, options, schedule, picture))
    state = devices.replicate(pretrain.init(network, options, jax.random.key(0)))
    advance = functools.partial(step, pictures=pictures, key=jax.random.key(1))
    return Training(network, model, options, schedule, state, advance)
