"""The product of the selected experts: the Gaussian that represents the query's class (arXiv 2605.07078, Eq. 7, 10-14).

Its noised densities and its score are in `cdisc.diffusion.gaussian`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.schedule import Schedule, expand


def ownership(l_selected: jax.Array, mask: jax.Array, tau: float) -> jax.Array:
    """How much of each entry each expert owns, `w_j(r) = softmax_j(l_jr / tau)` (Eq. 10).

    Args:
      l_selected: (K, *shape) log likelihoods of the query's entries under the selected experts.
      mask: (K,) bool, which of the K are experts.
      tau: Temperature; towards 0 the likeliest expert owns an entry alone.

    Returns:
      (K, *shape), summing to one in each entry; zero where masked, and zero everywhere if there is no expert.

    Examples:
      >>> likelihoods = jnp.array([[0.0, -9.0], [-9.0, 0.0]])
      >>> ownership(likelihoods, jnp.array([True, True]), tau=0.5)
      Array([[1., 0.],
             [0., 1.]], dtype=float32)
    """
    present = expand(mask, l_selected)
    # A finite stand-in for -inf: even without any expert the softmax stays finite, and the result below is zero.
    logits = jnp.where(present, l_selected / tau, jnp.finfo(l_selected.dtype).min)
    return jnp.where(present, jax.nn.softmax(logits, axis=0), 0.0)


def product(experts: Gaussian, weights: jax.Array, background: Gaussian) -> Gaussian:
    """The weighted product of the experts, and the background in entries that no expert owns (Eq. 7).

    Args:
      experts: The K selected experts, mean and variance (K, *shape).
      weights: (K, *shape) from `ownership`.
      background: One Gaussian, mean and variance (*shape).

    Examples:
      >>> experts = Gaussian(jnp.array([[1.0, 5.0], [5.0, 2.0]]), jnp.full((2, 2), 0.1))
      >>> product(experts, jnp.eye(2), Gaussian(jnp.zeros(2), jnp.ones(2))).mean  # each where it owns
      Array([1., 2.], dtype=float32)
    """
    unowned = jnp.all(weights == 0, axis=0).astype(weights.dtype)
    factors = jax.tree.map(lambda each, other: jnp.concatenate([each, other[None]]), experts, background)
    return factors.product(jnp.concatenate([weights, unowned[None]]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly the teacher guides the null model (Eq. 14, `adaptive_weight`).

    Attributes:
      w0: its weight at pure noise.
      w_max: the weight's cap.
      elementwise: whether each element has a weight of its own.
    """

    w0: float = 1.2
    w_max: float = 2.0
    elementwise: bool = False


def adaptive_weight(
    teacher: Gaussian, schedule: Schedule, w0: float | jax.Array, w_max: float, elementwise: bool = False
) -> Callable[[jax.Array], jax.Array]:
    """The guidance weight of the teacher, `w(t) = min(w0 * mean(a S_T + 1 - a), w_max)` (Eq. 14).

    Near `w0` at high noise, near `w0 mean(S_T)` at low noise: a narrow teacher leaves it to the network to clean up the
    picture. The cap binds only if `mean(a S_T + 1 - a) > w_max / w0`: for the paper's 1.2 and 2 that takes a mean
    variance above 1.67, which no density of pictures in [-1, 1] has, though the "laplace" reading of a Jacobian
    (`covariance.variance`), which contains the noise, can. The paper's settings also name a variance mode
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

    Examples:
      >>> weight = adaptive_weight(Gaussian(jnp.zeros(2), jnp.full(2, 0.1)), schedule, w0=1.2, w_max=2.0)
      >>> weight(jnp.array([1, 1000]))
      Array([0.12, 1.2 ], dtype=float32)
    """

    def weight(t: jax.Array) -> jax.Array:
        variance = teacher.noised(schedule, t).variance
        if not elementwise:
            variance = jnp.mean(variance, axis=tuple(range(1, variance.ndim)))
        return jnp.minimum(w0 * variance, w_max)

    return weight
