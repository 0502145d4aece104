"""What a picture is composed of, told by the class table of a network that never saw the whole.

Classes of a network that was trained on compositions of factors (digit x colour x ground) are nearly sums: one vector
for each factor's value. The vectors follow from the trained classes by least squares, and sums of them name classes
that were never trained. Which sum a picture shows is told as the diffusion classifier tells a class (Li et al. 2023,
arXiv 2303.16203): by the smallest denoising loss. This needs the factors of the trained classes, which the paper's
method does without (arXiv 2605.07078), and nothing is learnt from the picture but which values it has.
"""

import dataclasses
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
    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """For each of the V values its factor, and its number within the factor."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes), np.concatenate([np.arange(n) for n in self.sizes])

    @property
    def max_losses(self) -> int:
        """The most losses that `explain` asks for."""
        return 2 * len(self.sizes) * sum(self.sizes)

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
      rounds: () int32, what the search took.
      others: (V,) the losses of the last round: of the composition with each value in turn.
    """

    composition: jax.Array
    embedding: jax.Array
    loss: jax.Array
    rounds: jax.Array
    others: jax.Array

    def runners_up(self, parts: Parts, count: int) -> jax.Array:
        """The composition and the `count` changes of one value that come next, best first: (1 + count, F)."""
        factor, value = (jnp.asarray(column) for column in parts.columns)
        order = jnp.argsort(jnp.where(value == self.composition[factor], jnp.inf, self.others))[:count]
        changed = jax.vmap(lambda row: self.composition.at[factor[row]].set(value[row]))(order)
        return jnp.concatenate([self.composition[None], changed])


def _indicators(composition: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Compositions (..., F) as (..., V): one 1 for each factor."""
    return jnp.concatenate([jax.nn.one_hot(composition[..., f], size) for f, size in enumerate(sizes)], axis=-1)


def parts_of(table: jax.Array, factors: np.ndarray | Sequence[Sequence[int]], sizes: Sequence[int]) -> Parts:
    """The parts whose sums are nearest to a class table, by least squares.

    What all classes share could stand in any factor: the solution of least norm fixes it, and sums are the same.

    Args:
      table: (C, E) embeddings of the trained classes.
      factors: (C, F) their value indices.
      sizes: how many values each factor has.

    Raises:
      ValueError: for a value that no class has, whose part nothing tells.
    """
    design = _indicators(jnp.asarray(np.asarray(factors)), sizes)
    if not bool(np.any(np.asarray(design) > 0, axis=0).all()):
        raise ValueError("a value that no trained class shows has no part: leave it out of the factors.")
    return Parts(jnp.linalg.lstsq(design, table)[0], tuple(sizes))


def explain(losses_of: Callable[[jax.Array], jax.Array], parts: Parts, start: jax.Array) -> Explained:
    """The composition with the smallest loss, by steepest descent: a round changes the one value that helps most.

    Costs V losses a round: as many rounds as values change and one more, at most 2 F (`Parts.max_losses`). Where the
    loss is itself a sum of one part for each factor, the composition found has the smallest loss of all; in general, no
    change of one value makes it smaller.

    Args:
      losses_of: `embeddings (V, E) -> losses (V,)`, always with the same draws, such as `baselines.class_losses`. What
        is not a number counts as infinite.
      parts: of the class table.
      start: (F,) int32, the composition to begin with, such as that of the trained class with the smallest loss.
    """
    factor, value = parts.columns
    changed = factor[:, None] == np.arange(len(parts.sizes))  # (V, F), which factor each candidate changes

    def improve(carry: Explained) -> Explained:
        candidates = jnp.where(changed, value[:, None], carry.composition[None])
        losses = losses_of(parts.embedding(candidates))
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        best = jnp.argmin(losses)
        composition = jnp.where(losses[best] < carry.loss, candidates[best], carry.composition)
        least = jnp.minimum(losses[best], carry.loss)
        return Explained(composition, parts.embedding(composition), least, carry.rounds + 1, losses)

    def unfinished(carry: tuple[Explained, jax.Array]) -> jax.Array:
        return carry[1] & (carry[0].rounds < 2 * len(parts.sizes))

    def advance(carry: tuple[Explained, jax.Array]) -> tuple[Explained, jax.Array]:
        found = improve(carry[0])
        return found, found.loss < carry[0].loss

    start = jnp.asarray(start, jnp.int32)
    unknown = jnp.full(len(factor), jnp.inf)
    begin = Explained(start, parts.embedding(start), unknown[0], jnp.asarray(0, jnp.int32), unknown)
    return jax.lax.while_loop(unfinished, advance, (begin, jnp.asarray(True)))[0]


def of_picture(
    backbone: Backbone,
    params: Any,
    schedule: Schedule,
    query: jax.Array,
    key: jax.Array,
    parts: Parts,
    start: jax.Array,
    *,
    num_draws: int = 32,
    batch_size: int = 64,
) -> Explained:
    """`explain` by the denoising losses of a picture, and a second look at the changes that come next.

    With few draws a loss is noisy: of 20 digits whose colours were given, 32 draws told 0.96 and 128 all. So the
    composition and its three `runners_up` meet four times as many other draws, and the best of these is returned.

    The arguments are those of `baselines.class_losses`, and those of `explain`.
    """

    def losses_of(embeddings: jax.Array, use: str = "search", times: int = 1) -> jax.Array:
        counts = {"num_draws": times * num_draws, "batch_size": batch_size}
        return baselines.class_losses(backbone, params, schedule, query, named(key, use), embeddings, **counts)

    found = explain(losses_of, parts, start)
    last = found.runners_up(parts, 3)
    losses = losses_of(parts.embedding(last), "last", 4)
    best = baselines.top1(losses)
    chosen = last[best]
    return dataclasses.replace(found, composition=chosen, embedding=parts.embedding(chosen), loss=losses[best])
