"""A training step of a configuration on random pictures, as the benchmarks time it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from cdisc import config as config_lib
from cdisc import parallel
from cdisc.diffusion.schedule import Schedule
from cdisc.learning import pretrain
from cdisc.networks import backbone
from cdisc.networks.unet import UNetConfig
from cdisc.run import scheduler_of
from cdisc.stages.pretrain import compiled_step, pretrain_options


class Training(NamedTuple):
    """What is trained, and `advance(state) -> (state, metrics)`, which overwrites the state that it is given."""

    network: UNetConfig
    model: backbone.Backbone
    options: pretrain.PretrainOptions
    schedule: Schedule
    state: pretrain.TrainState
    advance: Callable[[pretrain.TrainState], tuple[pretrain.TrainState, Any]]


def training(config: ml_collections.ConfigDict) -> Training:
    """The training of a configuration, before its first step."""
    scheduler = scheduler_of(config)
    schedule = scheduler.schedule()
    network = config_lib.options(UNetConfig, config.network, "network", ignore=("kind",))
    model = backbone.unet(network, schedule, scheduler.prediction_type)
    options = pretrain_options(config)

    def batch(data: Any, key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        picture = (network.sample_size, network.sample_size, network.in_channels)
        return jax.random.normal(key, (size, *picture)), jnp.zeros(size, jnp.int32)

    step = compiled_step(backbone=model, options=options, schedule=schedule, batch_fn=batch)
    state = parallel.replicate(pretrain.init(network, options, jax.random.key(0)))
    return Training(network, model, options, schedule, state, functools.partial(step, data=None, key=jax.random.key(1)))
