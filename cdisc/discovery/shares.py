"""How the members of a named axis divide the rows of one computation among them: chains, modes, candidates.

A function that is given an `axis_name` is run by every member of that axis, as `jax.vmap`, `jax.pmap` and
`jax.shard_map` do, on the same arguments. Each member works on its own rows, and each ends up with the whole result.
None means that the computation is not shared.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def rows_of(count: int, axis_name: str | None) -> jax.Array:
    """The rows out of `count` that fall to this member: (ceil(count / members),) int32.

    A member has every `members`-th row, because neighbours tend to take equally long. Numbers from `count` on are not
    rows; they come last.
    """
    if axis_name is None:
        return jnp.arange(count, dtype=jnp.int32)
    members = jax.lax.axis_size(axis_name)
    return jax.lax.axis_index(axis_name) + members * jnp.arange(-(-count // members), dtype=jnp.int32)


def by_rows(fn: Callable[[Any, jax.Array], Any], rows: Any, mask: jax.Array, axis_name: str | None) -> Any:
    """`fn(rows, mask)`, each member treating its own rows.

    Args:
      fn: From rows, and which of them matter, to a tree of arrays that lead with the same rows, and of totals over
        them, which have no axis. Rows must not depend on each other.
      rows: A tree of arrays (N, ...).
      mask: (N,) bool, which rows matter.
      axis_name: Whose members divide the rows; None for no division.
    """
    if axis_name is None:
        return fn(rows, mask)
    count = mask.shape[0]
    mine = rows_of(count, axis_name)
    row = jnp.minimum(mine, count - 1)
    out = fn(jax.tree.map(lambda leaf: leaf[row], rows), mask[row] & (mine < count))

    def whole(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:
            return jax.lax.psum(leaf, axis_name)
        gathered = jax.lax.all_gather(leaf, axis_name, axis=1)  # (rows of a member, members, ...)
        return gathered.reshape(-1, *leaf.shape[1:])[:count]

    return jax.tree.map(whole, out)


class Candidate(NamedTuple):
    """The best row that a member has.

    Attributes:
      value: (), by which rows are compared.
      row: () int32, its number among the rows of all members.
      content: what else is needed of it, a tree of arrays.
    """

    value: jax.Array
    row: jax.Array
    content: Any


def best_of_all(candidate: Candidate, axis_name: str | None) -> Candidate:
    """The candidate with the largest value; on a tie the lowest row, as in an `argmax` over all rows."""
    if axis_name is None:
        return candidate
    candidates = jax.lax.all_gather(candidate, axis_name)
    in_order = jnp.argsort(candidates.row)
    winner = in_order[jnp.argmax(candidates.value[in_order])]
    return jax.tree.map(lambda leaf: leaf[winner], candidates)
