"""The denoising loss, on which the backbone, the adapters and the class baselines all rest."""

import jax
import jax.numpy as jnp

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, add_noise


def stratified_timesteps(key: jax.Array, batch_size: int, num_timesteps: int) -> jax.Array:
    """Timesteps (B,), each uniform on 1..T, evenly spread over the batch (Kingma et al. 2021, appendix I.1).

    Spreading leaves the expected loss as it is and lowers its variance.
    """
    offsets = (jax.random.uniform(key) + jnp.arange(batch_size) / batch_size) % 1.0
    return jnp.minimum(jnp.floor(offsets * num_timesteps).astype(jnp.int32), num_timesteps - 1) + 1


def eps_error(eps_fn: EpsFn, schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """The mean squared error of the predicted noise for each picture: (B,).

    Args:
      eps_fn: the prediction.
      schedule: the forward process.
      x0: (B, ...) clean pictures.
      t: (B,) timesteps.
      noise: (B, ...) the noise to add, and to find again.
    """
    error = eps_fn(add_noise(schedule, x0, noise, t), t) - noise
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def denoising_loss(eps_fn: EpsFn, schedule: Schedule, key: jax.Array, x0: jax.Array) -> jax.Array:
    """The plain eps loss: the mean of `eps_error` over pictures `x0` (B, ...), noise and timesteps (Ho et al. 2020)."""
    key_t, key_noise = jax.random.split(key)
    t = stratified_timesteps(key_t, x0.shape[0], schedule.num_timesteps)
    return jnp.mean(eps_error(eps_fn, schedule, x0, t, jax.random.normal(key_noise, x0.shape)))
