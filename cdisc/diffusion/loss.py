"""The denoising loss, by which the backbone and the adapters learn and the class baselines compare classes."""

import jax
import jax.numpy as jnp

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, add_noise
from cdisc.errors import require_known

LOSSES = ("eps", "v")


def require_noise_levels(**values: tuple[float, ...]) -> None:
    """Refuses what is no part of a schedule, two growing shares of its timesteps.

    Raises:
      ValueError: naming the option and its value.

    Examples:
      >>> require_noise_levels(mine=(0.6, 0.35))
      Traceback (most recent call last):
        ...
      ValueError: mine is (0.6, 0.35): use two growing shares of the timesteps, such as (0.35, 0.6).
    """
    for name, shares in values.items():
        if len(shares) != 2 or not 0.0 <= shares[0] < shares[1] <= 1.0:
            raise ValueError(f"{name} is {shares}: use two growing shares of the timesteps, such as (0.35, 0.6).")


def stratified_timesteps(
    key: jax.Array, batch_size: int, num_timesteps: int, noise_levels: tuple[float, float] = (0.0, 1.0)
) -> jax.Array:
    """Timesteps (B,), each uniform on 1..T, evenly spread over the batch (Kingma et al. 2021, appendix I.1).

    Spreading leaves the expected loss as it is and lowers its variance. With other `noise_levels` they lie in that part
    of the schedule alone: (0.35, 0.6) of 1000 timesteps are 351 to 600.

    Examples:
      >>> t = stratified_timesteps(key, batch_size=4, num_timesteps=1000)
      >>> jnp.sort((t - 1) // 250)  # one in each quarter
      Array([0, 1, 2, 3], dtype=int32)
    """
    require_noise_levels(noise_levels=noise_levels)
    offsets = (jax.random.uniform(key) + jnp.arange(batch_size) / batch_size) % 1.0
    low, high = noise_levels
    offsets = low + (high - low) * offsets
    return jnp.minimum(jnp.floor(offsets * num_timesteps).astype(jnp.int32), num_timesteps - 1) + 1


def eps_error(eps_fn: EpsFn, schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """The mean squared error of the predicted noise for each picture: (B,).

    Args:
      eps_fn: the prediction.
      schedule: the forward process.
      x0: (B, ...) clean pictures.
      t: (B,) timesteps.
      noise: (B, ...) the noise to add, and to find again.

    Examples:
      >>> eps_error(lambda x, t: 0.0 * x, schedule, x, t, noise=jnp.ones_like(x))
      Array([1., 1.], dtype=float32)
    """
    error = eps_fn(add_noise(schedule, x0, noise, t), t) - noise
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def loss_weight(schedule: Schedule, t: jax.Array, loss: str) -> jax.Array:
    """What multiplies the eps error at `t` (B,): 1 for the "eps" loss, `1 / abar_t` for the "v" loss.

    An error of eps is `sqrt(abar_t)` times that of v, so the weighted error is that of v: it counts what the eps loss
    hardly sees, the colours and the class at high noise (Salimans & Ho 2022).

    Raises:
      ValueError: for another loss.

    Examples:
      >>> loss_weight(schedule, jnp.array([1, 1000]), "eps")
      Array([1., 1.], dtype=float32)
      >>> loss_weight(schedule, jnp.array([1, 300]), "v")
      Array([1.  , 2.52], dtype=float32)
    """
    require_known("loss", loss, LOSSES)
    return jnp.ones(t.shape) if loss == "eps" else 1.0 / schedule.alpha_bar[t]


def draw_noise(key: jax.Array, schedule: Schedule, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Timesteps (B,) and noise (B, ...) for pictures of `shape` (B, ...).

    Examples:
      >>> t, noise = draw_noise(key, schedule, (2, 4, 4, 3))
      >>> t.shape, noise.shape
      ((2,), (2, 4, 4, 3))
    """
    key_t, key_noise = jax.random.split(key)
    return stratified_timesteps(key_t, shape[0], schedule.num_timesteps), jax.random.normal(key_noise, shape)


def weighted_errors(
    eps_fn: EpsFn, schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array, loss: str = "eps"
) -> jax.Array:
    """The `eps_error` of pictures `x0` (B, ...), each weighted as `loss` says: (B,).

    Examples:
      >>> weighted_errors(lambda x, t: 0.0 * x, schedule, x, t, jnp.ones_like(x), "v")
      Array([1.11, 2.52], dtype=float32)
    """
    return loss_weight(schedule, t, loss) * eps_error(eps_fn, schedule, x0, t, noise)


def denoising_loss(eps_fn: EpsFn, schedule: Schedule, key: jax.Array, x0: jax.Array, loss: str = "eps") -> jax.Array:
    """The mean of the weighted `eps_error` over pictures `x0` (B, ...), noise and timesteps (Ho et al. 2020).

    Examples:
      >>> loss = jax.jit(lambda x0: denoising_loss(eps_fn, schedule, key, x0))
      >>> bool(loss(jnp.array([[1.0, 0.0]])) < 1.0)
      True
    """
    return jnp.mean(weighted_errors(eps_fn, schedule, x0, *draw_noise(key, schedule, x0.shape), loss))
