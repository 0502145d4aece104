"""Random keys by name: every use of randomness derives its own key, and no two uses share one.

`jax.random.fold_in(key, i)` equals `jax.random.split(key)[i]`, so small numbers folded in by hand meet the children of
a split elsewhere. A name is hashed to 32 bits first, which keeps it apart from both; a number may follow the name, and
is folded into the name's own key.
"""

import zlib

import jax

from cdisc.errors import require_array


def named(key: jax.Array, name: str, *numbers: int | jax.Array) -> jax.Array:
    """The key of the use `name` of `key`, or of its item `numbers`, such as a step or a row; `name` is static.

    Raises:
      TypeError: if `key` is no random key.
      ValueError: if it is several.
    """
    require_array("the key", key, "key<", (0,), "one made by jax.random.key(seed)")
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
