"""What concept discovery is compared with: the nearest trained classes, and the query itself.

Top-1: the trained class that denoises the query best takes the teacher's place in Eq. 13. Top-3: the three best, as
`eps_null + w sum_k w_k (eps_k - eps_null)` (Liu et al. 2022, arXiv 2206.01714, Eq. 11). Query-only: a Gaussian around
the query is the teacher. All three go through the sampler that every method uses (arXiv 2605.07078, section 4.2), as a
`methods.GuidedDensity` of `embeddings=table[classes], weights=w * weights`, or of a teacher.

A class has no variance of its own, so the adaptive weight of Eq. 14 is not defined for it: its `w` is a constant.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.loss import eps_error, stratified_timesteps
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import require_array, require_positive
from cdisc.keys import named
from cdisc.networks.backbone import Backbone


def class_losses(
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    query: jax.Array,
    key: jax.Array,
    embeddings: jax.Array | None = None,
    *,
    num_draws: int = 32,
    batch_size: int = 64,
    noise_levels: tuple[float, float] = (0.0, 1.0),
) -> jax.Array:
    """The mean eps loss of the query under every trained class, or under others: (C,).

    All classes meet the same draws of (t, eps), so that their differences carry little of the draws' noise. The
    timesteps are stratified: one in each of `num_draws` equal parts of 1..T. Costs C * `num_draws` network
    evaluations, in batches of `batch_size` pairs of a class and a draw; only that size determines the memory.

    Args:
      backbone: the model.
      params: its parameters.
      schedule: the noise schedule.
      query: (*shape), clean.
      key: a random key.
      embeddings: (C, E) the classes; by default the trained ones, the rows of the backbone's table.
      num_draws: M, noisy copies of the query.
      batch_size: network evaluations at once.
      noise_levels: the part of the schedule whose timesteps are drawn (`loss.stratified_timesteps`).

    Raises:
      TypeError: if the query is no float32 picture, or the key is none.
      ValueError: if a count is below 1.

    Examples:
      >>> losses_of = jax.jit(lambda query: class_losses(toy, toy_params, schedule, query, key, num_draws=4))
      >>> losses = losses_of(query)
      >>> int(top1(losses))  # the class at (1, 0)
      0
    """
    require_array("query", query, "float32", range(1, 9), "a picture as float32")
    require_positive(num_draws=num_draws, batch_size=batch_size)
    table = backbone.table(params) if embeddings is None else embeddings
    times = stratified_timesteps(named(key, "timesteps"), num_draws, schedule.num_timesteps, noise_levels)
    noises = jax.random.normal(named(key, "noise"), (num_draws, *query.shape))

    def batch_losses(pairs: jax.Array) -> jax.Array:
        """The losses of the pairs numbered c * M + m: class c under draw m."""
        c, m = pairs // num_draws, pairs % num_draws
        copies = jnp.broadcast_to(query[None], (pairs.shape[0], *query.shape))
        return eps_error(lambda x, t: backbone.apply(params, x, t, table[c]), schedule, copies, times[m], noises[m])

    num_pairs = table.shape[0] * num_draws
    num_batches = -(-num_pairs // batch_size)
    # The last batch is filled up with pairs from the front; their losses are dropped.
    pairs = jnp.arange(num_batches * batch_size) % num_pairs
    losses = jax.lax.map(batch_losses, pairs.reshape(num_batches, batch_size)).reshape(-1)[:num_pairs]
    return jnp.mean(losses.reshape(table.shape[0], num_draws), axis=1)


def top1(losses: jax.Array) -> jax.Array:
    """The class of the smallest loss, of (C,); the first one on a tie. A loss that is not a number never wins.

    Examples:
      >>> int(top1(jnp.array([0.3, 0.1, jnp.nan])))
      1
    """
    return jnp.argmin(_finite(losses))


def _finite(losses: jax.Array) -> jax.Array:
    """The losses with infinity for what is not a number, which every comparison would prefer."""
    return jnp.where(jnp.isnan(losses), jnp.inf, losses)


@jax.jit
def top3_weights(losses: jax.Array, tau_k: float) -> tuple[jax.Array, jax.Array]:
    """The three classes of the smallest losses, best first, and their weights softmax(-loss / tau_k): both (3,).

    Args:
      losses: (C,), C >= 3.
      tau_k: temperature. Class losses differ by thousandths: at a temperature far above that the weights are equal.

    Examples:
      >>> classes, weights = top3_weights(jnp.array([0.3, 0.1, 0.2, 0.9]), tau_k=0.1)
      >>> classes.tolist(), weights
      ([1, 2, 0], Array([0.67, 0.24, 0.09], dtype=float32))
    """
    negative, classes = jax.lax.top_k(-_finite(losses), 3)
    return classes, jax.nn.softmax(negative / tau_k)


def query_only_teacher(query: jax.Array, sigma: float) -> Gaussian:
    """The teacher `N(query, sigma^2 I)`.

    Examples:
      >>> query_only_teacher(query, sigma=0.5).variance
      Array([0.25, 0.25], dtype=float32)
    """
    return Gaussian(mean=query, variance=jnp.full_like(query, sigma**2))
