"""What a picture is composed of, told by the class table of a network that never saw the whole.

Classes of a network that was trained on compositions of factors (digit x colour x ground) are nearly sums: one vector
for each factor's value. The vectors follow from the trained classes by least squares, and sums of them name classes
that were never trained. Which sum a picture shows is told as the diffusion classifier tells a class (Li et al. 2023,
arXiv 2303.16203): by the smallest denoising loss. This needs the factors of the trained classes, which the paper's
method does without (arXiv 2605.07078), and nothing is learnt from the picture but which values it has.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.schedule import Schedule
from cdisc.evaluation import baselines
from cdisc.keys import named
from cdisc.networks.backbone import Backbone

MOST = 1024
"""How many compositions there may be: the losses of all are compared."""


@flax.struct.dataclass
class Parts:
    """A class table as sums of parts: the class of a composition is the sum of one part for each factor.

    Attributes:
      values: (V, E) the parts, one for each value of the first factor, then of the second, and so on.
      sizes: how many values each of the F factors has; V in all.
    """

    values: jax.Array
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def compositions(self) -> np.ndarray:
        """All of them, in lexicographic order: (N, F) int32."""
        return np.stack(np.unravel_index(np.arange(math.prod(self.sizes)), self.sizes), axis=-1).astype(np.int32)

    def embedding(self, composition: jax.Array) -> jax.Array:
        """The class embedding (..., E) of compositions (..., F), value indices."""
        return _indicators(composition, self.sizes) @ self.values


@flax.struct.dataclass
class Explained:
    """The composition that explains a picture best, as a class of the network.

    Attributes:
      composition: (F,) int32, its value indices.
      embedding: (E,) the sum of its parts.
      loss: () the picture's denoising loss under it.
    """

    composition: jax.Array
    embedding: jax.Array
    loss: jax.Array


def _indicators(composition: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Compositions (..., F) as (..., V): one 1 for each factor."""
    return jnp.concatenate([jax.nn.one_hot(composition[..., f], size) for f, size in enumerate(sizes)], axis=-1)


def composable(factors: Sequence[Sequence[int]], sizes: Sequence[int]) -> bool:
    """Whether classes are sums of parts that can be told: two factors or more, each value of which some class shows.

    Args:
      factors: (C, F) the value indices of the trained classes.
      sizes: how many values each factor has; at most `MOST` compositions in all.

    Examples:
      >>> composable([[0, 0], [0, 1], [1, 0]], sizes=(2, 2)), composable([[0], [1]], sizes=(2,))
      (True, False)
    """
    shown = all(
        set(column) == set(range(size)) for column, size in zip(zip(*factors, strict=True), sizes, strict=False)
    )
    return len(sizes) > 1 and bool(factors) and shown and math.prod(sizes) <= MOST


def parts_of(table: jax.Array, factors: np.ndarray | Sequence[Sequence[int]], sizes: Sequence[int]) -> Parts:
    """The parts whose sums are nearest to a class table, by least squares.

    What all classes share could stand in any factor: the solution of least norm fixes it, and sums are the same.

    Args:
      table: (C, E) embeddings of the trained classes.
      factors: (C, F) their value indices.
      sizes: how many values each factor has.

    Raises:
      ValueError: for a value that no class has, whose part nothing tells.

    Examples:
      >>> table = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
      >>> parts_of(table, [[0, 0], [0, 1], [1, 0]], sizes=(2, 2)).values.shape
      (4, 2)
    """
    design = _indicators(jnp.asarray(np.asarray(factors)), sizes)
    if not bool(np.any(np.asarray(design) > 0, axis=0).all()):
        raise ValueError("a value that no trained class shows has no part: leave it out of the factors.")
    return Parts(jnp.linalg.lstsq(design, table)[0], tuple(sizes))


def factor_verdict(losses: jax.Array, factors: np.ndarray | Sequence[Sequence[int]], sizes: Sequence[int]) -> jax.Array:
    """Which value of each factor a picture shows, by the losses of classes none of which need be its own: (Q, F).

    The diffusion classifier (Li et al. 2023, arXiv 2303.16203) takes the class of the smallest loss, which is never a
    held-out one. Here the losses are explained by a sum of one part for each factor's value, by least squares, and the
    value with the smallest part is taken: for losses that are such sums it is exact, also for compositions that no
    class shows and with classes missing at random places.

    Args:
      losses: (Q, C) of `baselines.class_losses`.
      factors: (C, F) value indices of the classes.
      sizes: how many values each factor has; each value occurs in some class.

    Raises:
      ValueError: for a value that no class has, whose part nothing tells.

    Examples:
      >>> losses = jnp.array([[3.0, 2.0, 2.0]])  # each of the two changes helps
      >>> factor_verdict(losses, [[0, 0], [0, 1], [1, 0]], sizes=(2, 2))  # of (1, 1), which is no class
      Array([[1, 1]], dtype=int32)
    """
    # Constants move freely between factors, but no comparison within one depends on them.
    parts = parts_of(losses.T, factors, sizes).values
    each = jnp.split(parts, np.cumsum(sizes)[:-1])
    return jnp.stack([jnp.argmin(part, axis=0) for part in each], axis=-1).astype(jnp.int32)


def explain(losses_of: Callable[[int, jax.Array], jax.Array], parts: Parts, counts: Sequence[int]) -> Explained:
    """The composition with the smallest loss, by successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943).

    A loss is a mean over draws, and few draws tell most compositions from the best: those go early. With losses that do
    not depend on the draws the answer is that of an exhaustive search.

    Args:
      losses_of: `(round, embeddings (n, E)) -> losses (n,)`, such as `baselines.class_losses` with more draws in later
        rounds. What is not a number never wins.
      parts: of the class table.
      counts: how many compositions take part in each round, all or fewer; the best of a round go on to the next one.

    Examples:
      >>> table = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
      >>> parts = parts_of(table, [[0, 0], [0, 1], [1, 0]], sizes=(2, 2))
      >>> losses_of = lambda turn, embeddings: jnp.sum((embeddings - jnp.array([[1.0, 1.0]])) ** 2, axis=1)
      >>> jax.jit(lambda parts: explain(losses_of, parts, counts=(4, 2)))(parts).composition
      Array([1, 1], dtype=int32)
    """
    left = jnp.asarray(parts.compositions)
    losses = jnp.zeros(len(left))
    for number, count in enumerate(counts):
        left = left[jnp.argsort(losses)[:count]]  # what is not a number comes last
        losses = losses_of(number, parts.embedding(left))
    best = baselines.top1(losses)
    return Explained(left[best], parts.embedding(left[best]), losses[best])


def of_picture(
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    query: jax.Array,
    key: jax.Array,
    parts: Parts,
    *,
    num_draws: int = 16,
    batch_size: int = 64,
    noise_levels: tuple[float, float] = (0.35, 0.6),
) -> Explained:
    """`explain` by the denoising losses of a picture; the arguments are those of `baselines.class_losses`.

    All N compositions meet an eighth of `num_draws`, the best eighth of them a half, and the best four meet four times
    as many. Each round has draws of its own. They lie at the `noise_levels` where a composition is decided: below, the
    losses differ by details of the picture, and above by nothing. Of 120 digits whose colours were given, 64 draws at
    these levels told 0.97, and 256 at all levels 0.93.

    Examples:
      >>> table = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
      >>> parts = parts_of(table, [[0, 0], [0, 1], [1, 0]], sizes=(2, 2))
      >>> seen = jnp.array([1.0, 1.0])
      >>> read = jax.jit(lambda seen: of_picture(toy, toy_params, schedule, seen, key, parts, num_draws=8))
      >>> read(seen).composition
      Array([1, 1], dtype=int32)
    """
    draws = (-(-num_draws // 8), -(-num_draws // 2), 4 * num_draws)
    total = math.prod(parts.sizes)

    def losses_of(number: int, embeddings: jax.Array) -> jax.Array:
        known = (backbone, params, schedule, query, named(key, "round", number), embeddings)
        return baselines.class_losses(*known, num_draws=draws[number], batch_size=batch_size, noise_levels=noise_levels)

    return explain(losses_of, parts, (total, max(-(-total // 8), 4), 4))
