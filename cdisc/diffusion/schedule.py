"""The forward process: how much of the picture is left at each noise level.

`x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`, `t` in 1..T (arXiv 2605.07078, Eq. 1). `t = 0` is the clean picture.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Schedule:
    """A variance-preserving noise schedule.

    Attributes:
      alpha_bar: (T + 1,) float32, strictly decreasing, `alpha_bar[0] = 1`. Index it with the timestep itself.
    """

    alpha_bar: jax.Array

    @property
    def num_timesteps(self) -> int:
        """T, the noisiest timestep."""
        return self.alpha_bar.shape[0] - 1


def from_betas(betas: np.ndarray) -> Schedule:
    """The schedule of the chain that loses the share `betas[t - 1]` of its variance in step `t`; betas are (T,)."""
    alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - np.asarray(betas, np.float64))])
    return Schedule(alpha_bar=jnp.asarray(alpha_bar, jnp.float32))


def linear_beta(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """The schedule whose betas grow linearly (Ho et al. 2020; arXiv 2605.07078, appendix C)."""
    return from_betas(np.linspace(beta_start, beta_end, num_timesteps))


def scaled_linear_beta(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """The schedule whose betas have square roots that grow linearly (Rombach et al. 2022)."""
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2)


def squared_cosine(num_timesteps: int = 1000) -> Schedule:
    """The schedule whose `abar` falls as a squared cosine, no beta above 0.999 (Nichol & Dhariwal 2021)."""
    share = np.arange(num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes to `values` (B,) until it broadcasts against `like` (B, ...)."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def alpha_bar_at(schedule: Schedule, t: jax.Array, like: jax.Array) -> jax.Array:
    """`abar_t`, shaped to broadcast against `like` (B, ...); `t` is (B,) integers in 0..T."""
    return expand(schedule.alpha_bar[t], like)


def sigma(schedule: Schedule, t: jax.Array) -> jax.Array:
    """The noise-to-signal ratio `sqrt((1 - abar_t) / abar_t)`: the noise level in units of the clean picture."""
    a = schedule.alpha_bar[t]
    return jnp.sqrt((1.0 - a) / a)


def add_noise(schedule: Schedule, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """`x_t` from a clean picture `x0` (B, ...) and standard normal `eps` (B, ...), `t` (B,) in 0..T (Eq. 1)."""
    a = alpha_bar_at(schedule, t, x0)
    return jnp.sqrt(a) * x0 + jnp.sqrt(1.0 - a) * eps
