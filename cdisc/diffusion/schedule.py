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
    """The schedule of the chain that loses the share `betas[t - 1]` of its variance in step `t`; betas are (T,).

    Examples:
      >>> from_betas(np.array([0.5, 0.5])).alpha_bar  # from t = 0 on
      Array([1.  , 0.5 , 0.25], dtype=float32)
    """
    alpha_bar = np.concatenate([[1.0], np.cumprod(1.0 - np.asarray(betas, np.float64))])
    return Schedule(alpha_bar=jnp.asarray(alpha_bar, jnp.float32))


def linear_beta(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """The schedule whose betas grow linearly (Ho et al. 2020; arXiv 2605.07078, appendix C).

    Examples:
      >>> linear_beta().num_timesteps, round(float(linear_beta().alpha_bar[500]), 4)
      (1000, 0.0786)
    """
    return from_betas(np.linspace(beta_start, beta_end, num_timesteps))


def scaled_linear_beta(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2) -> Schedule:
    """The schedule whose betas have square roots that grow linearly (Rombach et al. 2022).

    Examples:
      >>> round(float(scaled_linear_beta(1000, 0.00085, 0.012).alpha_bar[500]), 4)
      0.2777
    """
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2)


def squared_cosine(num_timesteps: int = 1000) -> Schedule:
    """The schedule whose `abar` falls as a squared cosine, no beta above 0.999 (Nichol & Dhariwal 2021).

    Examples:
      >>> round(float(squared_cosine().alpha_bar[500]), 4)
      0.4938
    """
    share = np.arange(num_timesteps + 1) / num_timesteps
    alpha_bar = np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999))


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes to `values` (B,) until it broadcasts against `like` (B, ...).

    Examples:
      >>> expand(jnp.array([1, 2]), pictures).shape
      (2, 1, 1, 1)
    """
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def alpha_bar_at(schedule: Schedule, t: jax.Array, like: jax.Array) -> jax.Array:
    """`abar_t`, shaped to broadcast against `like` (B, ...); `t` is (B,) integers in 0..T.

    Examples:
      >>> alpha_bar_at(schedule, t, x)
      Array([[0.9],
             [0.4]], dtype=float32)
    """
    return expand(schedule.alpha_bar[t], like)


def sigma(schedule: Schedule, t: jax.Array) -> jax.Array:
    """The noise-to-signal ratio `sqrt((1 - abar_t) / abar_t)`: the noise level in units of the clean picture.

    Examples:
      >>> sigma(schedule, jnp.array([0, 100, 1000]))
      Array([  0.  ,   0.34, 157.41], dtype=float32)
    """
    a = schedule.alpha_bar[t]
    return jnp.sqrt((1.0 - a) / a)


def add_noise(schedule: Schedule, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """`x_t` from a clean picture `x0` (B, ...) and standard normal `eps` (B, ...), `t` (B,) in 0..T (Eq. 1).

    Examples:
      >>> add_noise(schedule, jnp.ones((2, 2)), jnp.zeros((2, 2)), t)  # the square root of abar
      Array([[0.95, 0.95],
             [0.63, 0.63]], dtype=float32)
    """
    a = alpha_bar_at(schedule, t, x0)
    return jnp.sqrt(a) * x0 + jnp.sqrt(1.0 - a) * eps
