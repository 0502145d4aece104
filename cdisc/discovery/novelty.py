"""How far a query lies from what the model can compose, told from the query alone.

At each noise level the modes around a query, as Gaussians, compose it entry by entry: each entry is as likely as the
best of them makes it (the inner maximum of arXiv 2605.07078, Eq. 8). Pictures of trained classes, put through the same
discovery, say how likely compositions are at that level; a query far below them has something that no mode shows.
"""

import jax
import jax.numpy as jnp

from cdisc.discovery.concepts import Discovery, DiscoveryOptions, background_of, candidates


def composed_likelihoods(query: jax.Array, found: Discovery, options: DiscoveryOptions) -> jax.Array:
    """The log likelihood of the query under the best composition of each noise level's modes: (L,) nats an entry.

    An entry that no mode explains better has its likelihood under the background, as in selection.

    Args:
      query: (*shape).
      found: what was discovered in it.
      options: with which; L is the number of its timesteps.

    Examples:
      >>> composed_likelihoods(query, found, options).shape  # one for each of its timesteps
      (2,)
    """
    floor = background_of(query, options).log_prob_of_entries(query)
    likelihood = found.experts.log_prob_of_entries(query[None])  # (N, *shape)
    may_be_picked = candidates(found.pool, options)

    def at(t: jax.Array) -> jax.Array:
        rows = (may_be_picked & (found.pool.t == t)).reshape(-1, *[1] * query.ndim)
        return jnp.mean(jnp.maximum(floor, jnp.max(jnp.where(rows, likelihood, -jnp.inf), axis=0)))

    return jax.vmap(at)(jnp.asarray(options.timesteps, jnp.int32))


def novelty(composed: jax.Array, trained: jax.Array) -> jax.Array:
    """How many standard deviations the query's likelihoods lie below those of trained classes' pictures: ().

    Args:
      composed: (L,) of the query.
      trained: (M, L) of pictures of trained classes that the network did not learn from, M > 1.

    Returns:
      The mean over noise levels; 0 for the average picture of a trained class, larger for a stranger one.

    Raises:
      ValueError: if there are fewer than two such pictures.

    Examples:
      >>> trained = jnp.array([[1.0, 1.0], [3.0, 3.0]])
      >>> novelty(jnp.array([2.0, 2.0]), trained)  # as likely as their mean
      Array(0., dtype=float32)
    """
    if trained.shape[0] < 2:
        raise ValueError(f"novelty needs two pictures of trained classes or more, not {trained.shape[0]}")
    spread = jnp.maximum(jnp.std(trained, axis=0, ddof=1), 1e-6)
    return jnp.mean((jnp.mean(trained, axis=0) - composed) / spread)
