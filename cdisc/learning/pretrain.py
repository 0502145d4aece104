"""Training the class-conditional backbone on the compositions that are not held out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cdisc.diffusion.loss import denoising_loss
from cdisc.diffusion.schedule import Schedule
from cdisc.networks import denoiser
from cdisc.networks.backbone import Backbone
from cdisc.networks.unet import UNetConfig

BatchFn = Callable[[Any, jax.Array, int], tuple[jax.Array, jax.Array]]
"""`batch_fn(data, key, batch_size)`: pictures (B, H, W, C) and labels (B,), a function of the key alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """How the backbone is trained.

    Attributes:
      steps: optimiser steps.
      batch_size: pictures a step.
      learning_rate: of AdamW, held between warm-up and decay.
      warmup_steps: first steps, in which the rate rises linearly from zero.
      decay_steps: last steps, in which it falls linearly to zero.
      weight_decay: of AdamW.
      clip_norm: largest global norm of a gradient.
      ema_decay: of the averaged parameters, which are the ones that are used; lower in the first steps.
      null_dropout: share of the labels replaced by the null class.
      loss: "eps" or "v" (`diffusion.loss.loss_weight`).
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    weight_decay: float
    clip_norm: float
    ema_decay: float
    null_dropout: float
    loss: str


@flax.struct.dataclass
class TrainState:
    """All that training carries from one step to the next.

    Attributes:
      step: () int32, steps done.
      params: the parameters.
      ema: their exponential moving average.
      opt_state: the optimiser's.
    """

    step: jax.Array
    params: denoiser.Params
    ema: denoiser.Params
    opt_state: optax.OptState


def optimizer(options: PretrainOptions) -> optax.GradientTransformation:
    """AdamW on clipped gradients; the rate warms up, stays, and decays to zero at the end."""
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, options.learning_rate, options.warmup_steps),
            optax.linear_schedule(options.learning_rate, 0.0, options.decay_steps),
        ],
        [options.steps - options.decay_steps],
    )
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm), optax.adamw(rate, weight_decay=options.weight_decay)
    )


def init(network: UNetConfig, options: PretrainOptions, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params = denoiser.init(network, key)
    # A copy, so that a jitted step may be given the whole state to overwrite.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer(options).init(params))


def train_step(
    state: TrainState,
    data: Any,
    key: jax.Array,
    *,
    backbone: Backbone,
    options: PretrainOptions,
    schedule: Schedule,
    batch_fn: BatchFn,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step. Its randomness follows from `key` and `state.step` alone, so a resumed run equals an unbroken one.

    Args:
      state: the state before the step.
      data: what `batch_fn` draws from.
      key: the key of the whole run.
      backbone: the network as a function of its parameters.
      options: the training's.
      schedule: the forward process.
      batch_fn: draws a batch.

    Returns:
      The state after the step, and `loss` and `grad_norm`, both scalars.
    """
    key_batch, key_null, key_loss = jax.random.split(jax.random.fold_in(key, state.step), 3)
    x0, labels = batch_fn(data, key_batch, options.batch_size)
    null = backbone.table(state.params).shape[0]
    labels = jnp.where(jax.random.bernoulli(key_null, options.null_dropout, labels.shape), null, labels)

    def loss_fn(params: denoiser.Params) -> jax.Array:
        def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
            return backbone.apply(params, x, t, denoiser.embed(params, labels))

        return denoising_loss(eps_fn, schedule, key_loss, x0, options.loss)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer(options).update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average forgets the random start quickly: its window grows with the steps done.
    decay = jnp.minimum(options.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = optax.incremental_update(params, state.ema, 1.0 - decay)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics
