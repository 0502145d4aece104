"""The choice of a few experts that explain the query, entry by entry (arXiv 2605.07078, Eq. 8, 9).

`F(S) = sum_r max(b_r, max_{j in S} l_jr) - sum_r b_r` is monotone and submodular with `F(empty) = 0`, so greedy picks
reach at least `1 - 1/e` of the best K experts (Nemhauser, Wolsey & Fisher 1978), or 1/2 with at most one expert per
timestep (Fisher, Nemhauser & Wolsey 1978). The paper has no background `b`, hence no `F(empty) = 0` and no such
guarantee; with the background far away the picks equal the paper's.
"""

import flax.struct
import jax
import jax.numpy as jnp

from cdisc.discovery import sharding


@flax.struct.dataclass
class Selection:
    """The experts picked, in the order of picking.

    Attributes:
      indices: (K,) int32 into the pool; 0 where nothing was picked.
      mask: (K,) bool, which rows are picks. Picks come first.
      gains: (K,) what each pick added to F, in nats; 0 where nothing was picked.
    """

    indices: jax.Array
    mask: jax.Array
    gains: jax.Array


def objective(likelihood: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """`F(S)` of the set of experts in `mask`: () in nats, at least 0.

    Args:
      likelihood: (N, *shape), the log likelihood of each entry of the query under each expert.
      b: (*shape), the same under the background.
      mask: (N,) bool, the set.

    Examples:
      >>> likelihood, background = jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.zeros(2)
      >>> objective(likelihood, background, jnp.array([True, False]))
      Array(2., dtype=float32)
      >>> objective(likelihood, background, jnp.array([True, True]))
      Array(5., dtype=float32)
    """
    margin = likelihood.reshape(likelihood.shape[0], -1) - b.reshape(1, -1)
    return jnp.sum(jnp.max(jnp.where(mask[:, None], jnp.maximum(margin, 0.0), 0.0), axis=0))


def greedy(
    likelihood: jax.Array,
    b: jax.Array,
    *,
    num_experts: int,
    candidates: jax.Array,
    t: jax.Array | None = None,
    axis_name: str | None = None,
) -> Selection:
    """Picks the expert with the largest gain, then the next, until K are picked or no gain is positive (Eq. 9).

    Args:
      likelihood: (N, *shape), `l_jr = log N(x_q[r]; m_j[r], s2_j[r])` of every entry r of the query, channels included.
      b: (*shape), the same under the background.
      num_experts: K.
      candidates: (N,) bool, which experts may be picked.
      t: (N,) timesteps if at most one expert of each may be picked; None for no such rule.
      axis_name: Over whose devices the candidates are sharded (`sharding`): each computes the gains of its own, and
        the largest of all wins.

    Returns:
      K picks. Among equal gains the lowest index wins.

    Examples:
      >>> likelihood, background = jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.zeros(2)
      >>> picks = greedy(likelihood, background, num_experts=2, candidates=jnp.array([True, True]))
      >>> picks.indices.tolist(), picks.gains.tolist()
      ([1, 0], [3.0, 2.0])
    """
    count = likelihood.shape[0]
    index = sharding.local_rows(count, axis_name)
    row = jnp.minimum(index, count - 1)
    own_likelihood = likelihood.reshape(count, -1)
    if axis_name is not None:  # else it would be a copy of all rows
        own_likelihood = own_likelihood[row]
    kind = (jnp.arange(count) if t is None else t)[row]  # a pick excludes its kind

    def pick(
        carry: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        reached, allowed = carry  # (D,) the log likelihood of each entry under the best so far; (n,)
        gains = jnp.sum(jnp.maximum(own_likelihood - reached[None], 0.0), axis=1)
        gains = jnp.where(allowed, gains, -jnp.inf)
        own = jnp.argmax(gains)
        content = (own_likelihood[own], kind[own])
        best = sharding.best_of_all(sharding.Candidate(gains[own], index[own], content), axis_name)
        best_likelihood, best_kind = best.content
        picked = best.value > 0.0
        reached = jnp.where(picked, jnp.maximum(reached, best_likelihood), reached)
        out = (jnp.where(picked, best.row, 0), picked, jnp.where(picked, best.value, 0.0))
        return (reached, allowed & ~((kind == best_kind) & picked)), out

    # Padding repeats the last candidate, which comes before its copies and excludes them.
    start = sharding.varying_as((b.reshape(-1), candidates[row]), likelihood)
    _, (indices, mask, gains) = jax.lax.scan(pick, start, None, length=num_experts)
    return Selection(indices=indices, mask=mask, gains=gains)
