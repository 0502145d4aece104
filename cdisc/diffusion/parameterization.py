"""One quantity in four forms: eps, x0 (the posterior mean), v and score are affine in one another given `x_t`.

Every function takes batches: `x` (B, ...) at timesteps `t` (B,), integers in 1..T.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cdisc.diffusion.schedule import Schedule, alpha_bar_at

EpsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""`eps_fn(x, t)`: the noise predicted in `x` (B, ...) at `t` (B,), same shape as `x`.

The one form in which a density enters discovery, guidance and sampling: a network, a mixture and a Gaussian all provide
it. Learning takes a `cdisc.networks.backbone.Backbone` instead: such a function of parameters and a class embedding.
"""


def score_from_eps(schedule: Schedule, eps: jax.Array, t: jax.Array) -> jax.Array:
    """`grad log p_t = -eps / sqrt(1 - abar_t)` (arXiv 2605.07078, Eq. 2).

    Examples:
      >>> score_from_eps(schedule, jnp.ones((1, 2)), jnp.array([1000]))
      Array([[-1., -1.]], dtype=float32)
    """
    return -eps / jnp.sqrt(1.0 - alpha_bar_at(schedule, t, eps))


def eps_from_score(schedule: Schedule, score: jax.Array, t: jax.Array) -> jax.Array:
    """The inverse of `score_from_eps`.

    Examples:
      >>> score = score_from_eps(schedule, x, t)
      >>> bool(jnp.allclose(eps_from_score(schedule, score, t), x))
      True
    """
    return -score * jnp.sqrt(1.0 - alpha_bar_at(schedule, t, score))


def x0_from_eps(schedule: Schedule, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """Tweedie's posterior mean `E[x_0 | x_t]` (Eq. 5).

    Examples:
      >>> x0_from_eps(schedule, x, eps_fn(x, t), t)
      Array([[ 0.96,  0.03],
             [-0.48,  0.01]], dtype=float32)
    """
    a = alpha_bar_at(schedule, t, x)
    return (x - jnp.sqrt(1.0 - a) * eps) / jnp.sqrt(a)


def eps_from_x0(schedule: Schedule, x: jax.Array, x0: jax.Array, t: jax.Array) -> jax.Array:
    """The inverse of `x0_from_eps`.

    Examples:
      >>> x0 = x0_from_eps(schedule, x, eps_fn(x, t), t)
      >>> bool(jnp.allclose(eps_from_x0(schedule, x, x0, t), eps_fn(x, t), atol=1e-4))
      True
    """
    a = alpha_bar_at(schedule, t, x)
    return (x - jnp.sqrt(a) * x0) / jnp.sqrt(1.0 - a)


def v_from_eps(schedule: Schedule, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """The velocity `v = sqrt(abar) eps - sqrt(1 - abar) x_0` (Salimans & Ho 2022).

    Examples:
      >>> v_from_eps(schedule, x, eps_fn(x, t), t).shape
      (2, 2)
    """
    a = alpha_bar_at(schedule, t, x)
    return jnp.sqrt(a) * eps - jnp.sqrt(1.0 - a) * x0_from_eps(schedule, x, eps, t)


def eps_from_v(schedule: Schedule, x: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
    """The inverse of `v_from_eps`.

    Examples:
      >>> v = v_from_eps(schedule, x, eps_fn(x, t), t)
      >>> bool(jnp.allclose(eps_from_v(schedule, x, v, t), eps_fn(x, t), atol=1e-4))
      True
    """
    a = alpha_bar_at(schedule, t, x)
    return jnp.sqrt(a) * v + jnp.sqrt(1.0 - a) * x
