"""The product of the selected experts: a Gaussian teacher, exact at every noise level (arXiv 2605.07078, Eq. 7, 10-12).

The product is formed between clean densities and then noised. Noising first and adding the scores afterwards would
describe another density: the noise would be counted once per expert.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, alpha_bar_at, expand
from cdisc.discovery.gaussians import Gaussian, log_normal


@flax.struct.dataclass
class Teacher:
    """The density `N(x_0; mean, diag(variance))`.

    Attributes:
      mean: (*shape), `mu_T`.
      variance: (*shape), `S_T`, positive.
      weights: (K, *shape), the share `w_j(r)` of each expert in each entry. The shares of an entry sum to one, or to
        zero where the teacher has no expert.
    """

    mean: jax.Array
    variance: jax.Array
    weights: jax.Array


def ownership(l_selected: jax.Array, mask: jax.Array, tau: float) -> jax.Array:
    """The share of each expert in each entry, `w_j(r) = softmax_j(l_jr / tau)` (Eq. 10).

    Args:
      l_selected: (K, *shape) log likelihoods of the query's entries under the selected experts.
      mask: (K,) bool, which of the K places hold an expert.
      tau: Temperature; towards 0 the likeliest expert owns an entry alone.

    Returns:
      (K, *shape), zero at masked places; zero everywhere if no place holds an expert.
    """
    present = expand(mask, l_selected)
    # A finite stand-in for -inf: even without any expert the softmax stays finite, and the result below is zero.
    logits = jnp.where(present, l_selected / tau, jnp.finfo(l_selected.dtype).min)
    return jnp.where(present, jax.nn.softmax(logits, axis=0), 0.0)


def fuse(gaussians: Gaussian, weights: jax.Array, mask: jax.Array, *, background: Gaussian) -> Teacher:
    """The weighted product `prod_j N(m_j, s2_j)^{w_j}`, entry by entry (Eq. 7).

    `1/S_T = sum_j w_j / s2_j` and `mu_T = S_T sum_j w_j m_j / s2_j`.

    Args:
      gaussians: The K selected experts, mean and variance (K, *shape).
      weights: (K, *shape) from `ownership`.
      mask: (K,) bool, which of the K places hold an expert.
      background: One Gaussian, mean and variance (*shape): the teacher if no place holds an expert.
    """
    present = expand(mask, weights)
    shares = jnp.where(present, weights / gaussians.variance, 0.0)
    precision = jnp.sum(shares, axis=0)
    information = jnp.sum(jnp.where(present, shares * gaussians.mean, 0.0), axis=0)
    any_expert = jnp.any(mask)
    variance = 1.0 / jnp.where(any_expert, precision, 1.0)
    return Teacher(
        mean=jnp.where(any_expert, variance * information, background.mean),
        variance=jnp.where(any_expert, variance, background.variance),
        weights=weights,
    )


def log_density(teacher: Teacher, x: jax.Array) -> jax.Array:
    """`log q_T(x)` of clean pictures `x` (B, *shape), in nats: (B,)."""
    entries = log_normal(x, teacher.mean[None], teacher.variance[None])
    return jnp.sum(entries, axis=tuple(range(1, entries.ndim)))


def teacher_eps(teacher: Teacher, schedule: Schedule) -> EpsFn:
    """The exact noise prediction of the teacher, `sqrt(1 - a) (x - sqrt(a) mu_T) / (a S_T + 1 - a)` (Eq. 12)."""

    def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
        a = alpha_bar_at(schedule, t, x)
        return jnp.sqrt(1.0 - a) * (x - jnp.sqrt(a) * teacher.mean[None]) / _noised_variance(teacher, schedule, t)

    return eps_fn


def sample(teacher: Teacher, key: jax.Array, n: int) -> jax.Array:
    """`n` independent clean draws: (n, *shape)."""
    noise = jax.random.normal(key, (n, *teacher.mean.shape), teacher.mean.dtype)
    return teacher.mean[None] + jnp.sqrt(teacher.variance)[None] * noise


def adaptive_weight(
    teacher: Teacher, schedule: Schedule, w0: float | jax.Array, w_max: float, elementwise: bool = False
) -> Callable[[jax.Array], jax.Array]:
    """The guidance weight of the teacher, `w(t) = min(w0 * mean(a S_T + 1 - a), w_max)` (Eq. 14).

    Near `w0` at high noise, near `w0 mean(S_T)` at low noise: a narrow teacher leaves it to the network to clean up the
    picture. The cap binds only if `mean(a S_T + 1 - a) > w_max / w0`: for the paper's 1.2 and 2 that takes a mean
    variance above 1.67, which no density of pictures in [-1, 1] has, though the "laplace" reading of a Jacobian
    (`gaussians.variance`), which contains the noise, can. The paper's settings also name a variance mode
    "entropy-adaptive" without defining it; it is not implemented.

    Args:
      teacher: The product of experts.
      schedule: The noise schedule.
      w0: Weight at pure noise.
      w_max: Cap.
      elementwise: Leave the mean out. `W(t) = w0 (a S_T + 1 - a)` is a weight per entry that cancels the teacher's
        precision exactly, where the mean cancels it on average: `W eps_T = w0 sqrt(1 - a) (x - sqrt(a) mu_T)`.

    Returns:
      A function from `t` (B,) to weights (B,), or (B, *shape) if `elementwise`.
    """

    def weight(t: jax.Array) -> jax.Array:
        variance = _noised_variance(teacher, schedule, t)
        if not elementwise:
            variance = jnp.mean(variance, axis=tuple(range(1, variance.ndim)))
        return jnp.minimum(w0 * variance, w_max)

    return weight


def _noised_variance(teacher: Teacher, schedule: Schedule, t: jax.Array) -> jax.Array:
    """`a S_T + 1 - a` (B, *shape)."""
    variance = teacher.variance[None]
    a = alpha_bar_at(schedule, t, variance)
    return a * variance + (1.0 - a)
