"""The pictures to compose: held-out ones of a data set, or those that a user brings.

`Options` and `load` are for users' pictures alone, of a network that was trained elsewhere on data that are not here.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from cdisc import console
from cdisc.data import Dataset, compositions, pictures
from cdisc.errors import UserError, short


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """One picture to compose, and what is known about it.

    Attributes:
      name: what it is called in results and report.
      image: (*shape) float32.
      composition: value indices, one for each factor; None if unknown.
      source: where it comes from.
      seed: of all that is done with it.
    """

    name: str
    image: np.ndarray
    composition: compositions.Composition | None
    source: str
    seed: int

    @property
    def crc(self) -> int:
        """By which its pixels are known."""
        return zlib.crc32(self.image.tobytes())


def held_out(
    dataset: Dataset, seed: int, num_queries: int, per_class: int = 0, seeds: Sequence[int] = ()
) -> tuple[Query, ...]:
    """Query pictures of held-out compositions: each composition once in an order drawn by the seed, then again.

    Args:
      dataset: the pictures.
      seed: of the order, and of all that is done with the queries.
      num_queries: how many.
      per_class: how many of each composition, in place of `num_queries`; 0 leaves it at these.
      seeds: the queries are taken under each of these in the place of `seed`, if there are any.

    Raises:
      UserError: for data without held-out compositions.
    """
    known = dataset.split.held_out
    if not known:
        raise UserError("this configuration has no pictures of its own: give --query=PICTURE.")
    count = per_class * len(known) or num_queries
    order = np.random.default_rng(seed).permutation(len(known))
    taken = [  # each composition's pictures at once: for some data, each number of them compiles a program
        dataset.queries(known[j], -(-(count - place) // len(order))) for place, j in enumerate(order[:count])
    ]
    queries = []
    for i in range(count):
        turn, place = divmod(i, len(order))
        composition = known[order[place]]
        name = compositions.title(dataset.split.factors, composition) + (f" ({turn + 1})" if turn else "")
        image = np.asarray(taken[place][turn])
        queries.append(Query(name, image, tuple(composition), f"{dataset.name}, query part", seed))
    again = [dataclasses.replace(q, name=f"{q.name}, seed {other}", seed=other) for other in seeds for q in queries]
    return tuple(again or queries)


def own(paths: Sequence[str], shape: tuple[int, ...], seed: int) -> tuple[Query, ...]:
    """The user's own pictures, about which nothing else is known; a warning says what had to be changed.

    Raises:
      UserError: for a file that cannot be read, and for data that are points.
    """
    if len(shape) != 3:
        raise UserError("--query gives a picture, and this configuration's data are points: leave --query out.")
    queries = []
    for path in paths:
        image, warning = pictures.read_query(path, shape)
        if warning is not None:
            console.warn(warning)
        queries.append(Query(short(pathlib.Path(path).name), image, None, short(path), seed))
    return tuple(queries)


@dataclasses.dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def load(name: str, shape: tuple[int, ...], fingerprint: str) -> Dataset:
    """The data set called `name` that knows the shape of its pictures, and no picture, factor or class.

    All that is known of its pictures is in a network, whose digest is its fingerprint.
    """

    def absent(*_: object) -> NoReturn:
        raise ValueError(f"{name} comes without pictures")

    return Dataset(
        name=name,
        shape=shape,
        split=compositions.CompositionSplit(compositions.Factors(names=(), values=()), trained=(), held_out=()),
        train=None,
        train_batch=absent,
        queries=absent,
        references=absent,
        labelled=absent,
        fingerprint=fingerprint,
    )
