"""Data sets whose pictures are kept as bytes, found by composition: what avatars and photographs have in common."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc import errors
from cdisc.data import Dataset, compositions

Rows = Mapping[compositions.Composition, np.ndarray]
"""For each composition, the rows of an array of pictures that show it."""


@flax.struct.dataclass
class Classes:
    """The uniform distribution over classes, and given one over its pictures.

    Attributes:
      rows: (n,) int32 into the images, sorted by class.
      starts: (classes + 1,) int32; the pictures of class c are those of `rows[starts[c]:starts[c + 1]]`.
      images: (N, H, W, C) uint8; may be mapped from a file, and is no leaf: only what is drawn is read.
    """

    rows: jax.Array
    starts: jax.Array
    images: np.ndarray = flax.struct.field(pytree_node=False)


_Array = TypeVar("_Array", jax.Array, np.ndarray)


def to_float(images: _Array) -> _Array:
    """Bytes as float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


@functools.partial(jax.jit, static_argnums=3)
def _draw(rows: jax.Array, starts: jax.Array, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    label_key, row_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (batch_size,), 0, starts.shape[0] - 1)
    return rows[jax.random.randint(row_key, labels.shape, starts[labels], starts[labels + 1])], labels


def train_batch(classes: Classes, key: jax.Array, batch_size: int, places: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Some pictures of a batch, of which each is of a class drawn uniformly, then of a row drawn uniformly.

    Args:
      classes: the distribution.
      key: the only source of randomness.
      batch_size: B.
      places: (n,) which of the B; no other picture is read.

    Returns:
      Pictures (n, H, W, C) float32 in [-1, 1] and classes (n,) int32.
    """
    rows, labels = (np.asarray(drawn)[places] for drawn in _draw(classes.rows, classes.starts, key, batch_size))
    return to_float(jnp.asarray(classes.images[rows])), jnp.asarray(labels)


def dataset(
    name: str,
    images: np.ndarray,
    split: compositions.CompositionSplit,
    *,
    train: Rows,
    query: Rows,
    reference: Rows,
    judge: Rows,
    digest: str,
) -> Dataset:
    """The data set of pictures that are already there.

    Args:
      name: see `Dataset`.
      images: (N, H, W, C) uint8; may be mapped from a file.
      split: the compositions.
      train: the rows that the denoiser learns from, of the trained compositions and no others.
      query: the rows that are composed, and on which the judge is validated.
      reference: the rows that samples are compared with.
      judge: the rows that the judge learns from.
      digest: of all that decides the pictures; with the split, it makes the fingerprint.

    Raises:
      ValueError: if a held-out composition is trained on, or a row is in two of training (the judge's included),
        queries and references.
      UserError: if a trained class has no picture.
    """
    compositions.assert_no_held_out(split, np.asarray(list(train)))
    parts = {"training": (train, judge), "query": (query,), "reference": (reference,)}
    rows = {part: np.concatenate([found for of in maps for found in of.values()]) for part, maps in parts.items()}
    for one, other in itertools.combinations(parts, 2):
        leaked = np.intersect1d(rows[one], rows[other])
        if leaked.size:
            raise ValueError(f"row {leaked[0]} is in the {one} part and in the {other} part")
    counts = [len(train.get(composition, ())) for composition in split.trained]
    if 0 in counts:
        empty = compositions.describe(split.factors, split.trained[counts.index(0)])
        raise errors.UserError(f"the trained class {empty} has no picture: give more data, or train fewer classes.")
    ordered = np.concatenate([train[composition] for composition in split.trained])

    def of(rows: Rows, part: str, composition: compositions.Composition, n: int) -> np.ndarray:
        found = rows.get(composition, np.zeros(0, int))[:n]
        if len(found) < n:
            raise errors.UserError(
                f"{n} {part} pictures of {compositions.describe(split.factors, composition)} are wanted and there "
                f"are {len(found)}: ask for fewer, or give more data."
            )
        return to_float(images[found])

    def labelled(part: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if part not in ("train", "query"):
            raise ValueError(f'part is "{part}": a judge may learn from "train" and be validated on "query"')
        known = judge if part == "train" else query
        rows = np.concatenate(list(known.values()))
        attributes = np.repeat(np.asarray(list(known), np.int32), [len(found) for found in known.values()], axis=0)
        drawn = np.random.default_rng([("train", "query").index(part), seed]).integers(0, len(rows), n)
        return to_float(images[rows[drawn]]), attributes[drawn]

    return Dataset(
        name=name,
        shape=images.shape[1:],
        split=split,
        train=Classes(
            rows=jnp.asarray(ordered, jnp.int32),
            starts=jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32),
            images=images,
        ),
        train_batch=train_batch,
        queries=lambda composition, n: of(query, "query", composition, n),
        references=lambda composition, n: of(reference, "reference", composition, n),
        labelled=labelled,
        fingerprint=hashlib.sha256(json.dumps([digest, dataclasses.asdict(split)]).encode()).hexdigest(),
    )
