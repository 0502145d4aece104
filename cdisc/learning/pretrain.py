"""Training the class-conditional backbone on the compositions that are not held out."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdisc.diffusion.loss import LOSSES, draw_noise, weighted_errors
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import require_known, require_positive
from cdisc.keys import named
from cdisc.networks import denoiser
from cdisc.networks.backbone import Backbone
from cdisc.networks.unet import UNetConfig

Pictures = tuple[jax.Array, jax.Array]
"""Clean pictures (B, H, W, C) and their classes (B,) int32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """How the backbone is trained; the defaults are the paper's, 100 epochs of ColorMNIST's 120,000 pictures.

    Attributes:
      steps: optimiser steps.
      batch_size: pictures a step.
      learning_rate: of AdamW, held between warm-up and decay.
      warmup_steps: first steps, at least one, in which the rate rises linearly from zero.
      decay_steps: last steps, in which it falls linearly to zero.
      weight_decay: of AdamW.
      clip_norm: largest global norm of a gradient.
      ema_decay: of the averaged parameters, which are the ones used afterwards; lower in the first steps.
      null_dropout: share of the labels replaced by the null class.
      loss: "eps" or "v" (`diffusion.loss.loss_weight`).
      accumulate: micro-batches that a batch is divided into, one after the other, which bounds the memory; except for
        rounding, what is learnt does not depend on it.

    Raises:
      ValueError: for a loss that does not exist, counts below one, a batch that cannot be divided into so many, and
        steps too few for warm-up and decay.
    """

    steps: int = 46_875
    batch_size: int = 256
    learning_rate: float = 2e-4
    warmup_steps: int = 500
    decay_steps: int = 1
    weight_decay: float = 1e-6
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    null_dropout: float = 0.1
    loss: str = "eps"
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Refuses what would fail, or mean something else, when the step is traced."""
        require_known("loss", self.loss, LOSSES)
        require_positive(steps=self.steps, batch_size=self.batch_size, warmup_steps=self.warmup_steps)
        for name, most in {"ema_decay": 1.0, "weight_decay": math.inf}.items():
            if not 0.0 <= getattr(self, name) < most:
                raise ValueError(f"{name} is {getattr(self, name)}: use a number from 0 on, below {most}.")
        if not 0.0 <= self.null_dropout <= 1.0:
            raise ValueError(f"null_dropout is {self.null_dropout}: use a share from 0 to 1.")
        for name in ("learning_rate", "clip_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: use a positive number.")
        if self.decay_steps < 0:
            raise ValueError(f"decay_steps is {self.decay_steps}: use a whole number, 0 for no decay.")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"steps is {self.steps}, fewer than the {self.warmup_steps} of warmup_steps and the "
                f"{self.decay_steps} of decay_steps together: train longer, or lower these."
            )
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate is {self.accumulate}: the batch of {self.batch_size} cannot be divided into so many "
                "equal parts."
            )


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
    """AdamW on clipped gradients; the rate warms up, stays, and decays to zero at the end.

    Examples:
      >>> move, _ = jax.jit(optimizer(few).update)(toy_params, state.opt_state, toy_params)
      >>> bool(move["class_embedding"]["embedding"].any())  # the rate begins at zero
      False
    """
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(network: UNetConfig, options: PretrainOptions, key: jax.Array) -> TrainState:
    """The state before the first step, by one program: else each shape of a parameter would compile some of its own.

    Examples:
      >>> int(init(config, few, key).step)
      0
    """
    params = denoiser.init(network, key)
    # A copy, so that a jitted step may overwrite the whole state.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer(options).init(params))


@flax.struct.dataclass
class StepNoise:
    """The random draws of one step other than its pictures; row i belongs to picture i.

    Attributes:
      dropped: (B,) bool, which labels give way to the null class.
      t: (B,) int32 timesteps.
      noise: (B, H, W, C).
    """

    dropped: jax.Array
    t: jax.Array
    noise: jax.Array


Total = tuple[jax.Array, denoiser.Params]
"""The loss () and its gradient, summed over pictures of the batch."""


def keys(key: jax.Array, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of step `step`: one for its pictures, one for dropout, timesteps and noise.

    Examples:
      >>> of_pictures, of_noise = keys(key, 3)
      >>> bool(jax.random.uniform(of_pictures) == jax.random.uniform(of_noise))
      False
    """
    return named(key, "pictures", step), named(key, "noise", step)


def draw(
    state: TrainState, key: jax.Array, shape: tuple[int, ...], *, options: PretrainOptions, schedule: Schedule
) -> StepNoise:
    """The random draws of the next step besides its pictures; they follow from `key` and `state.step` alone.

    Args:
      state: before the step.
      key: the training's.
      shape: (H, W, C) of a picture.
      options: the training's.
      schedule: the forward process.

    Examples:
      >>> drawn = draw(state, key, (2,), options=few, schedule=schedule)
      >>> drawn.t.shape, drawn.noise.shape
      ((2,), (2, 2))
    """
    key = keys(key, state.step)[1]
    dropped = jax.random.bernoulli(named(key, "dropped"), options.null_dropout, (options.batch_size,))
    t, noise = draw_noise(named(key, "noise"), schedule, (options.batch_size, *shape))
    return StepNoise(dropped=dropped, t=t, noise=noise)


def zero_total(params: denoiser.Params) -> Total:
    """The total of no picture.

    Examples:
      >>> loss, gradient = zero_total(toy_params)
      >>> gradient["class_embedding"]["embedding"].shape
      (3, 2)
    """
    return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)


def example_losses(
    params: denoiser.Params,
    pictures: Pictures,
    t: jax.Array,
    noise: jax.Array,
    *,
    backbone: Backbone,
    schedule: Schedule,
    loss: str,
) -> jax.Array:
    """The loss (B,) of each picture, noised by `noise` to `t` (B,), under its own class.

    Examples:
      >>> how = dict(backbone=toy, schedule=schedule, loss="eps")
      >>> example_losses(toy_params, (x, labels), t, jnp.zeros((2, 2)), **how).shape
      (2,)
    """
    x0, labels = pictures

    def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        return backbone.apply(params, x, t, denoiser.embed(params, labels))

    return weighted_errors(eps_fn, schedule, x0, t, noise, loss)


def add_gradient(
    total: Total,
    params: denoiser.Params,
    pictures: Pictures,
    drawn: StepNoise,
    mask: jax.Array,
    *,
    backbone: Backbone,
    options: PretrainOptions,
    schedule: Schedule,
) -> Total:
    """Adds to `total` what some pictures contribute to the loss of the whole batch and to its gradient.

    Args:
      total: of other pictures.
      params: the parameters.
      pictures: n of the batch.
      drawn: their rows of it.
      mask: (n,) bool, which of them count.
      backbone: the network as a function of its parameters.
      options: the training's.
      schedule: the forward process.

    Examples:
      >>> drawn, both = draw(state, key, (2,), options=few, schedule=schedule), jnp.array([True, True])
      >>> how = dict(backbone=toy, options=few, schedule=schedule)
      >>> added = jax.jit(lambda total: add_gradient(total, toy_params, (x, labels), drawn, both, **how))
      >>> loss, gradient = added(zero_total(toy_params))
      >>> loss.shape
      ()
    """
    x0, labels = pictures
    labels = jnp.where(drawn.dropped, backbone.table(params).shape[0], labels)

    def loss_fn(params: denoiser.Params) -> jax.Array:
        found = example_losses(
            params, (x0, labels), drawn.t, drawn.noise, backbone=backbone, schedule=schedule, loss=options.loss
        )
        return jnp.sum(jnp.where(mask, found, 0.0)) / options.batch_size

    return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params))


def update(state: TrainState, total: Total, *, options: PretrainOptions) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step whose loss and gradient are `total`, and both as metrics.

    Examples:
      >>> after, metrics = update(state, zero_total(toy_params), options=few)
      >>> int(after.step), sorted(metrics)
      (1, ['grad_norm', 'loss'])
    """
    loss, gradients = total
    updates, opt_state = optimizer(options).update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average forgets the random start quickly: its window grows with the steps done.
    decay = jnp.minimum(options.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = optax.incremental_update(params, state.ema, 1.0 - decay)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics


class Step(NamedTuple):
    """One step of training in parts, so that any number of devices can share it.

    Attributes:
      draw: `(state, key) -> drawn`, what is random besides the pictures, leaves (batch_size, ...).
      zero_total: `state -> total`, the total of no pictures.
      add: `(total, state, pictures, drawn, mask) -> total`, for n pictures and what was drawn for them; only those in
        `mask` (n,) count.
      update: `(state, total) -> (state, metrics)`.
      batch_size: pictures in a batch.
      parts: micro-batches of batch_size / parts pictures each, one after the other.
    """

    draw: Callable[[Any, jax.Array], Any]
    zero_total: Callable[[Any], Any]
    add: Callable[[Any, Any, Any, Any, jax.Array], Any]
    update: Callable[[Any, Any], tuple[Any, Any]]
    batch_size: int
    parts: int


def step(backbone: Backbone, options: PretrainOptions, schedule: Schedule, shape: tuple[int, ...]) -> Step:
    """The step that trains a network on pictures of a shape (H, W, C); its metrics are `loss` and `grad_norm`.

    Its randomness follows from the key and `state.step` alone, so that a resumed training equals an unbroken one.

    Examples:
      >>> parts = step(toy, few, schedule, shape=(2,))
      >>> parts.draw(state, key).noise.shape, parts.batch_size
      ((2, 2), 2)
    """
    known: dict[str, Any] = {"options": options, "schedule": schedule}
    return Step(
        draw=functools.partial(draw, shape=shape, **known),
        zero_total=lambda state: zero_total(state.params),
        add=lambda total, state, *share: add_gradient(total, state.params, *share, backbone=backbone, **known),
        update=functools.partial(update, options=options),
        batch_size=options.batch_size,
        parts=options.accumulate,
    )


def validation(
    backbone: Backbone, schedule: Schedule, loss: str, pictures: Pictures, key: jax.Array, batch_size: int
) -> Callable[[denoiser.Params], float]:
    """The mean loss as a function of parameters: always of these pictures, under the noise that `key` draws.

    Examples:
      >>> loss = validation(toy, schedule, "eps", (x, labels), key, batch_size=2)
      >>> loss(toy_params) > 0
      True
    """
    given = (pictures, *map(np.asarray, draw_noise(key, schedule, pictures[0].shape)))
    of_batch = jax.jit(functools.partial(example_losses, backbone=backbone, schedule=schedule, loss=loss))

    def validate(params: denoiser.Params) -> float:
        starts = range(0, len(pictures[0]), batch_size)
        batches = [jax.tree.map(lambda array, i=i: array[i : i + batch_size], given) for i in starts]
        return float(np.mean(np.concatenate([of_batch(params, *arrays) for arrays in batches])))

    return validate
