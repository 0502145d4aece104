"""Compositions, the pictures that show them, and the pictures that a user brings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cdisc.data.compositions import Composition, CompositionSplit


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Everything that training, discovery and evaluation need to know of a data set.

    Attributes:
      name: What the results call it.
      shape: The shape of one example, such as (32, 32, 3).
      split: Which compositions are trained and which are held out.
      train: What `train_batch` draws from.
      train_batch: `(train, key, batch_size, places (n,)) -> (examples (n, *shape), labels (n,) int32)`: those examples
        of a batch that stand at `places`, which follow from `key` and `batch_size`; no others are read. A label is an
        index into `split.trained`.
      queries: `(composition, n) -> (n, *shape)`: always the same n examples that no training saw.
      references: `(composition, n) -> (n, *shape)`: the same, from a part that shares nothing with the queries.
      labelled: `(part, n, seed) -> (examples (n, *shape), value indices (n, F) int32)` over ALL compositions, for the
        judge; `part` is "train" or "query".
      fingerprint: SHA-256 in hexadecimal of all that decides the examples.
    """

    name: str
    shape: tuple[int, ...]
    split: CompositionSplit
    train: Any
    train_batch: Callable[[Any, jax.Array, int, np.ndarray], tuple[jax.Array, jax.Array]]
    queries: Callable[[Composition, int], np.ndarray]
    references: Callable[[Composition, int], np.ndarray]
    labelled: Callable[[str, int, int], tuple[np.ndarray, np.ndarray]]
    fingerprint: str
