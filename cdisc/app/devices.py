"""The one place that knows devices: it maps a function of one query over many queries, and divides a training batch.

Algorithms treat one query. Here queries are padded to a multiple of the devices and spread over them; those of one
device run side by side (`vmap`) or one after the other. Results come back in order, without the padding. Queries are
spread over the devices of this process alone, so that processes need not wait for one another; a training batch is
divided among the devices of all processes (`training_step`).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cdisc.learning import pretrain

_DEVICES = "devices"
"""The name of the axis of devices; trees with a leading axis of them are called spread."""

_SPREAD, _SHARED = PartitionSpec(_DEVICES), PartitionSpec()


def by_pmap(fn: Callable[..., Any], spread: int, shared: int, everywhere: bool, **options: Any) -> Callable[..., Any]:
    """`fn` on every device by `jax.pmap`.

    Args:
      fn: treats what one device has, and may use collectives over the axis of devices.
      spread: how many arguments come first, each with a leading axis of this process's devices.
      shared: how many follow, the same on all devices.
      everywhere: on the devices of all processes together; else on those of this one.
      **options: `out_axes=None` for results that are the same on all devices, else they are spread; `donate_argnums`.
    """
    devices = None if everywhere else jax.local_devices()
    return jax.pmap(fn, _DEVICES, in_axes=(0,) * spread + (None,) * shared, devices=devices, **options)


def by_shard_map(
    fn: Callable[..., Any], spread: int, shared: int, everywhere: bool, out_axes: int | None = 0, **options: Any
) -> Callable[..., Any]:
    """The same by `jax.shard_map`."""
    mesh = _mesh(everywhere)
    in_specs = (_SPREAD,) * spread + (_SHARED,) * shared

    def on_device(*args: Any) -> Any:
        out = fn(*jax.tree.map(lambda leaf: leaf[0], args[:spread]), *args[spread:])
        return out if out_axes is None else jax.tree.map(lambda leaf: leaf[None], out)

    out_specs = _SHARED if out_axes is None else _SPREAD
    mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs), **options)

    def apply(*args: Any) -> Any:
        if everywhere and jax.process_count() > 1:
            return mapped(*multihost_utils.host_local_array_to_global_array(args, mesh, in_specs))
        return mapped(*jax.device_put(args, tuple(NamedSharding(mesh, spec) for spec in in_specs)))

    return apply


map_devices = by_pmap  # `by_shard_map` computes the same


def _mesh(everywhere: bool = False) -> Mesh:
    return Mesh(np.asarray(jax.devices() if everywhere else jax.local_devices()), (_DEVICES,))


def size(tree: Any) -> int:
    """The leading axis Q of a tree of stacked queries."""
    return jax.tree.leaves(tree)[0].shape[0]


def spread(tree: Any) -> Any:
    """`split` into as many parts as this process has devices, each of which holds its part."""
    return jax.device_put(split(tree, jax.local_device_count()), NamedSharding(_mesh(), _SPREAD))


def replicate(tree: Any) -> Any:
    """`tree` on every device of this process, as `training_step` takes and returns it; leaves keep their shapes."""
    return jax.device_put(tree, NamedSharding(_mesh(), _SHARED))


# One small program for a whole tree; leaf by leaf, each shape would compile a program of its own.
@functools.partial(jax.jit, static_argnums=1)
def split(tree: Any, parts: int) -> Any:
    """Reshapes leaves (Q, ...) to (parts, ceil(Q / parts), ...), the last row repeated as padding."""
    each = -(-size(tree) // parts)
    rows = jnp.minimum(jnp.arange(parts * each), size(tree) - 1).reshape(parts, each)
    return jax.tree.map(lambda values: values[rows], tree)


@functools.partial(jax.jit, static_argnums=1)
def gather(tree: Any, count: int) -> Any:
    """The inverse of `split`: leaves (count, ...)."""
    return jax.tree.map(lambda values: values.reshape(-1, *values.shape[2:])[:count], tree)


def one_copy(tree: Any) -> Any:
    """The copy of a replicated tree on this process's first device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def side_by_side(fn: Callable[..., Any], num_shared: int) -> Callable[..., Any]:
    """`fn(item, *shared)` for spread items: at once on all devices, and vectorised over the items of each.

    The result takes and returns spread trees, so that a loop over steps moves nothing between devices.

    Args:
      fn: treats one item.
      num_shared: how many arguments follow the item, the same for all items.
    """

    def on_device(items: Any, *shared: Any) -> Any:
        if size(items) > 1:
            return jax.vmap(fn, in_axes=(0, *(None,) * num_shared))(items, *shared)
        # A convolution whose kernel has a batch axis, be it of one, compiles and runs more slowly than one without.
        out = fn(jax.tree.map(lambda values: values[0], items), *shared)
        return jax.tree.map(lambda values: values[None], out)

    return map_devices(on_device, 1, num_shared, everywhere=False)


def one_by_one(fn: Callable[..., Any], num_shared: int, at_once: int | None = None) -> Callable[..., Any]:
    """`fn(item, *shared)` for items (Q, ...), of which the devices treat `at_once` at a time; by default, one each.

    For functions whose work differs from query to query, such as a loop that stops by its own residual: vectorised,
    the quickest query would wait for the slowest. The other arguments are those of `side_by_side`.
    """
    mapped, at_once = side_by_side(fn, num_shared), at_once or jax.local_device_count()

    def apply(items: Any, *shared: Any) -> Any:
        starts = range(0, size(items), at_once)
        parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + at_once], items) for i in starts]
        out = [gather(mapped(spread(part), *shared), size(part)) for part in parts]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *out)

    return apply


def divided(fn: Callable[..., Any], num_shared: int) -> Callable[..., Any]:
    """`fn(item, *shared, axis_name=...)` for items (D, ...), at most as many as there are devices.

    With as many items as devices, each device treats one, as in `one_by_one`. With fewer, they are treated one after
    the other, each by all devices at once, over which its rows are sharded (`discovery.sharding`): none is idle. `fn`
    treats one item, alone where `axis_name` is None, otherwise together with the other devices of that axis.
    """
    alone = one_by_one(functools.partial(fn, axis_name=None), num_shared)
    # A single item is spread as a copy for each device, and all of them are left with its result.
    together = one_by_one(functools.partial(fn, axis_name=_DEVICES), num_shared, at_once=1)
    return lambda items, *shared: (together if size(items) < jax.local_device_count() else alone)(items, *shared)


def groups(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """`items` in runs of `count`."""
    return (items[i : i + count] for i in range(0, len(items), count))


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves have a leading axis, from trees of one structure."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def unstack(tree: Any) -> list[Any]:
    """The inverse of `stack`."""
    host = jax.tree.map(np.asarray, tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(size(host))]


def host_device() -> jax.Device:
    """The host's processor, for what is prepared while the devices work: on a device it would wait its turn."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


def batch_rows(count: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures of a batch go to the devices of this process.

    Args:
      count: pictures in the batch.
      parts: micro-batches of count / parts pictures each.

    Returns:
      Their indices in the batch, and whether they count, both (devices, parts, each): where the devices of all
      processes do not divide the batch evenly, it is padded with pictures that do not count.
    """
    local, devices = jax.local_device_count(), jax.device_count()
    part = count // parts
    each = -(-part // devices)
    index = np.arange(local) + jax.process_index() * local  # of this process's devices, among all
    columns = index[:, None] * each + np.arange(each)
    rows = np.arange(parts)[None, :, None] * part + np.minimum(columns, part - 1)[:, None]
    return rows, np.broadcast_to((columns < part)[:, None], rows.shape)


def training_step(step: pretrain.Step) -> Callable[[Any, Any, jax.Array], tuple[Any, Any]]:
    """A step as a function `(state, pictures, key) -> (state, metrics)`, which overwrites its state.

    The state is one that `replicate` made; `pictures` has the leaves (devices, parts, each, ...) of `batch_rows`. Every
    device draws all other randomness for the whole batch, so that it does not depend on their number. Each sums the
    gradient over its own pictures; the sum over all devices of all processes updates the state, of which each keeps a
    copy.

    Each micro-batch is a call of one program; a loop inside it would multiply compile time if unrolled, and slow XLA's
    CPU convolution gradients if not.
    """
    rows, mask = batch_rows(step.batch_size, step.parts)

    def begin(rows: jax.Array, pictures: Any, mask: jax.Array, state: Any, key: jax.Array) -> tuple[Any, Any]:
        drawn = jax.tree.map(lambda leaf: leaf[rows], step.draw(state, key))
        # What came from the host is returned, so that it is moved once and not with every part.
        return step.zero_total(state), (pictures, drawn, mask)

    def add_part(total: Any, batch: Any, state: Any, index: jax.Array) -> Any:
        # A gradient by what all devices share would be summed over them at once: each takes that of its own copy.
        state = jax.lax.pcast(state, _DEVICES, to="varying")
        return step.add(total, state, *jax.tree.map(lambda leaf: leaf[index], batch))

    def finish(total: Any, state: Any) -> tuple[Any, Any]:
        return step.update(state, jax.lax.psum(total, _DEVICES))

    begin_all = map_devices(begin, 3, 2, everywhere=True)
    add_all = map_devices(add_part, 2, 2, everywhere=True, donate_argnums=0)
    finish_all = map_devices(finish, 1, 1, everywhere=True, out_axes=None, donate_argnums=1)

    def advance(state: Any, pictures: Any, key: jax.Array) -> tuple[Any, Any]:
        total, batch = begin_all(rows, pictures, mask, state, key)
        for index in range(step.parts):
            total = add_all(total, batch, state, np.int32(index))
        return finish_all(total, state)

    return advance
