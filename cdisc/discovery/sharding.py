"""The rows of one computation, sharded over the devices of a named axis: chains, modes, candidates.

A function that is given an `axis_name` is called on every device of that axis with the same arguments, as under
`jax.pmap` and `jax.shard_map` (or `jax.vmap`, whose lanes are the devices then). Each device computes its own rows, and
all of them end up with the whole result. None means that there is no such axis.

Under `jax.shard_map`, a value that differs between devices has another type than one that does not, and a loop's carry
must enter with the type that it leaves with: `varying` and `varying_as` see to that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def varying_as(tree: Any, x: jax.Array) -> Any:
    """`tree` with the same values, taken to differ between devices if `x` does.

    Examples:
      >>> varying_as(jnp.zeros(2), jnp.ones(3))
      Array([0., 0.], dtype=float32)
    """
    # Arrays made like `x` inherit its type, and so does their sum with any other; the compiler drops the zeros.
    return jax.tree.map(lambda leaf: leaf + jnp.zeros_like(x, shape=(), dtype=leaf.dtype), tree)


def varying(tree: Any, axis_name: str | None) -> Any:
    """`tree` with the same values, taken to differ between the devices of the axis.

    Examples:
      >>> varying(jnp.zeros(2), None)  # no axis: nothing differs
      Array([0., 0.], dtype=float32)
      >>> jax.vmap(lambda _: varying(jnp.zeros(2), "lanes"), axis_name="lanes")(jnp.arange(3)).shape
      (3, 2)
    """
    return tree if axis_name is None else varying_as(tree, jax.lax.axis_index(axis_name))


def local_rows(count: int, axis_name: str | None) -> jax.Array:
    """The numbers of this device's rows out of `count`: (ceil(count / devices),) int32.

    A device has every `devices`-th row, because neighbours tend to take equally long. Numbers from `count` on are
    padding and come last.

    Examples:
      >>> local_rows(3, None)
      Array([0, 1, 2], dtype=int32)
      >>> jax.vmap(lambda _: local_rows(3, "lanes"), axis_name="lanes")(jnp.arange(2)).tolist()
      [[0, 2], [1, 3]]
    """
    if axis_name is None:
        return jnp.arange(count, dtype=jnp.int32)
    devices = jax.lax.axis_size(axis_name)
    return jax.lax.axis_index(axis_name) + devices * jnp.arange(-(-count // devices), dtype=jnp.int32)


def map_rows(fn: Callable[[Any, jax.Array], Any], rows: Any, mask: jax.Array, axis_name: str | None) -> Any:
    """`fn(rows, mask)`, computed by each device on its own rows.

    Args:
      fn: From rows, and which of them are to be computed, to a tree of arrays that lead with the same rows, and of
        totals over them, which have no axis. Rows must not depend on each other.
      rows: A tree of arrays (N, ...).
      mask: (N,) bool, which rows are to be computed.
      axis_name: Over whose devices the rows are sharded; None for no sharding.

    Examples:
      >>> rows = jnp.arange(3.0)
      >>> map_rows(lambda rows, mask: (rows**2, mask.sum()), rows, rows < 2, None)
      (Array([0., 1., 4.], dtype=float32), Array(2, dtype=int32))
    """
    if axis_name is None:
        return fn(rows, mask)
    count = mask.shape[0]
    index = local_rows(count, axis_name)
    row = jnp.minimum(index, count - 1)
    out = fn(jax.tree.map(lambda leaf: leaf[row], rows), mask[row] & (index < count))

    def whole(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:
            return varying(jax.lax.psum(leaf, axis_name), axis_name)
        gathered = jax.lax.all_gather(leaf, axis_name, axis=1)  # (rows of a device, devices, ...)
        return gathered.reshape(-1, *leaf.shape[1:])[:count]

    return jax.tree.map(whole, out)


class Candidate(NamedTuple):
    """The best row of a device.

    Attributes:
      value: (), by which rows are compared.
      row: () int32, its number among the rows of all devices.
      content: What else is needed of it, a tree of arrays.
    """

    value: jax.Array
    row: jax.Array
    content: Any


def best_of_all(candidate: Candidate, axis_name: str | None) -> Candidate:
    """The candidate with the largest value; on a tie the lowest row, as in an `argmax` over all rows.

    Examples:
      >>> best_of_all(Candidate(jnp.float32(2.0), jnp.int32(7), "this one"), None).content
      'this one'
    """
    if axis_name is None:
        return candidate
    candidates = jax.lax.all_gather(candidate, axis_name)
    in_order = jnp.argsort(candidates.row)
    winner = in_order[jnp.argmax(candidates.value[in_order])]
    return jax.tree.map(lambda leaf: leaf[winner], candidates)
