"""Guidance: a transform from eps-functions to an eps-function.

`eps = eps_null + sum_i w_i(t) (eps_i - eps_null)` (Ho & Salimans 2022; several terms: Liu et al. 2022; a term that is
not a network but a density: arXiv 2605.07078, Eq. 13). With one constant weight, `w = 0` is the unconditional model,
`w = 1` the conditional one.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, expand, sigma

Weight = Callable[[jax.Array], jax.Array]
"""`w(t)` for timesteps (B,): one weight a sample (B,), or one an element (B, ...)."""


def constant(value: float | jax.Array) -> Weight:
    """The same weight at every timestep.

    Examples:
      >>> constant(2.0)(t)
      Array([2., 2.], dtype=float32)
    """
    return lambda t: jnp.full(t.shape, value, jnp.float32)


def interval(
    weight: Weight,
    schedule: Schedule,
    sigma_min: float | jax.Array,
    sigma_max: float | jax.Array = float("inf"),
    outside: float | jax.Array = 0.0,
) -> Weight:
    """`weight` where the noise-to-signal ratio lies in [sigma_min, sigma_max], else `outside`.

    Kynkaanniemi et al. 2024 (arXiv 2404.07724) guide so with `outside` 1: the conditional model itself. With 0 the term
    is left out there.

    Examples:
      >>> interval(constant(2.0), schedule, sigma_min=0.5, outside=1.0)(t)  # of sigma 0.34 and 1.23
      Array([1., 2.], dtype=float32)
    """

    def limited(t: jax.Array) -> jax.Array:
        level = sigma(schedule, t)
        values = weight(t)
        return jnp.where(expand((level >= sigma_min) & (level <= sigma_max), values), values, outside)

    return limited


def guide(eps_null: EpsFn, terms: Sequence[tuple[EpsFn, Weight]]) -> EpsFn:
    """The eps-function moved from `eps_null` towards each term by its weight.

    Args:
      eps_null: the unconditional prediction.
      terms: predictions and their weights. Their directions add; none of them replaces another.

    Returns:
      The guided prediction; it evaluates `eps_null` and each term once.

    Examples:
      >>> towards = lambda x, t: x
      >>> guide(lambda x, t: 0.0 * x, [(towards, constant(2.0))])(x, t)
      Array([[ 1.6,  0.2],
             [-1. ,  0.6]], dtype=float32)
    """

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        return move(eps_null(x, t), [(eps_fn(x, t), weight(t)) for eps_fn, weight in terms])

    return guided


def move(null: jax.Array, terms: Sequence[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """`null + sum_i w_i (eps_i - null)`, for predictions (B, ...) and weights (B,) or (B, ...).

    Examples:
      >>> move(jnp.zeros((2, 2)), [(x, jnp.array([1.0, 2.0]))])
      Array([[ 0.8,  0.1],
             [-1. ,  0.6]], dtype=float32)
    """
    return null + sum(expand(weight, null) * (eps - null) for eps, weight in terms)
