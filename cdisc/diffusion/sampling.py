"""From noise to pictures, given an eps-function: DDIM and ancestral sampling, each one `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn, eps_from_x0, x0_from_eps
from cdisc.diffusion.schedule import Schedule, alpha_bar_at


def timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The visited timesteps (num_steps + 1,), evenly spaced from T down to 0.

    Raises:
      ValueError: if `num_steps` is not in 1..T.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps is {num_steps}, outside 1..{num_timesteps}")
    return np.rint(np.linspace(num_timesteps, 0, num_steps + 1)).astype(np.int32)


def _predict(
    eps_fn: EpsFn, schedule: Schedule, x: jax.Array, t: jax.Array, clip: float | None
) -> tuple[jax.Array, jax.Array]:
    """The predicted clean picture, clipped if asked, and the noise that goes with it."""
    eps = eps_fn(x, t)
    x0 = x0_from_eps(schedule, x, eps, t)
    if clip is None:
        return x0, eps
    x0 = jnp.clip(x0, -clip, clip)
    return x0, eps_from_x0(schedule, x, x0, t)


def ddim(
    eps_fn: EpsFn,
    schedule: Schedule,
    x: jax.Array,
    key: jax.Array | None = None,
    *,
    num_steps: int = 50,
    eta: float = 0.0,
    clip: float | None = None,
) -> jax.Array:
    """Samples by DDIM (Song et al. 2021, Eq. 12 and 16).

    Args:
      eps_fn: the prediction, guided or not.
      schedule: the forward process.
      x: (B, ...) the start at t = T, standard normal.
      key: for the noise of each step; needed if `eta > 0`.
      num_steps: evaluations of `eps_fn`.
      eta: 0 is deterministic; 1 over all T steps is ancestral sampling.
      clip: the predicted clean picture is clipped to [-clip, clip]; None leaves it.

    Returns:
      (B, ...) clean pictures.

    Raises:
      ValueError: if `eta > 0` without a key.
    """
    if eta > 0 and key is None:
        raise ValueError("eta > 0 draws noise and so needs a key")
    visited = jnp.asarray(timesteps(schedule.num_timesteps, num_steps))

    def step(x: jax.Array, now_next: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, s = (jnp.full(x.shape[:1], value) for value in now_next)
        x0, eps = _predict(eps_fn, schedule, x, t, clip)
        a_t, a_s = alpha_bar_at(schedule, t, x), alpha_bar_at(schedule, s, x)
        std = eta * jnp.sqrt((1.0 - a_s) / (1.0 - a_t) * (1.0 - a_t / a_s))
        x = jnp.sqrt(a_s) * x0 + jnp.sqrt(jnp.maximum(1.0 - a_s - std**2, 0.0)) * eps
        if key is not None and eta > 0:
            x = x + std * jax.random.normal(jax.random.fold_in(key, now_next[0]), x.shape)
        return x, None

    return jax.lax.scan(step, x, (visited[:-1], visited[1:]))[0]


def ancestral(
    eps_fn: EpsFn, schedule: Schedule, x: jax.Array, key: jax.Array, *, clip: float | None = None
) -> jax.Array:
    """Samples by the reverse chain through all T steps (Ho et al. 2020, Eq. 6 and 7).

    Args:
      eps_fn: the prediction, guided or not.
      schedule: the forward process.
      x: (B, ...) the start at t = T, standard normal.
      key: for the noise of each step.
      clip: the predicted clean picture is clipped to [-clip, clip]; None leaves it.

    Returns:
      (B, ...) clean pictures.
    """

    def step(x: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        t = jnp.full(x.shape[:1], now)
        x0, _ = _predict(eps_fn, schedule, x, t, clip)
        a_t, a_s = alpha_bar_at(schedule, t, x), alpha_bar_at(schedule, t - 1, x)
        alpha = a_t / a_s
        # The mean and variance of q(x_{t-1} | x_t, x_0).
        mean = (jnp.sqrt(a_s) * (1.0 - alpha) * x0 + jnp.sqrt(alpha) * (1.0 - a_s) * x) / (1.0 - a_t)
        variance = (1.0 - a_s) / (1.0 - a_t) * (1.0 - alpha)
        noise = jax.random.normal(jax.random.fold_in(key, now), x.shape)
        return mean + jnp.sqrt(variance) * noise, None

    return jax.lax.scan(step, x, jnp.arange(schedule.num_timesteps, 0, -1))[0]
