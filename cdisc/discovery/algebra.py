"""Concepts that are put together again: one AND another, one in another's place, one but NOT another, one looked up.

A product of experts (arXiv 2605.07078, Eq. 7) is a list of Gaussians with an exponent for each of them in each entry.
Whatever is done to that list is a product of experts again, whose score is known in closed form: no network is
evaluated here. Products, and quotients by a negative weight, are those of Liu et al. 2022 (arXiv 2206.01714), between
clean densities.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import poe, selection
from cdisc.errors import require_array


@flax.struct.dataclass
class Concepts:
    """The density `prod_j N(mean_j, diag(variance_j))^{w_j}`, normalised: K concepts, each with its say in each entry.

    Attributes:
      experts: The K Gaussians, mean and variance (K, *shape).
      weights: (K, *shape) the exponents: an expert's ownership (Eq. 10), negative for what is excluded.
    """

    experts: Gaussian
    weights: jax.Array

    def __len__(self) -> int:
        return self.weights.shape[0]

    def __getitem__(self, which: int | slice | list[int]) -> "Concepts":
        """Some of the concepts, each with the say that it had."""
        rows = np.atleast_1d(np.arange(len(self))[which])
        return jax.tree.map(lambda leaf: leaf[rows], self)

    def __repr__(self) -> str:
        """How many there are, of what."""
        return f"<{len(self)} concepts of shape {self.weights.shape[1:]}>"

    def product(self, background: Gaussian | None = None) -> Gaussian:
        """Their product (Eq. 7), (*shape).

        Args:
          background: N(0, I) if None. It has the say that is left in each entry, `1 - sum_j max(w_j, 0)`; none where
            concepts were selected together, whose ownership sums to one.
        """
        background = _standard_normal(self.weights.shape[1:]) if background is None else background
        rest = jnp.maximum(1.0 - jnp.sum(jnp.maximum(self.weights, 0.0), axis=0), 0.0)
        factors = jax.tree.map(lambda each, other: jnp.concatenate([each, other[None]]), self.experts, background)
        return factors.product(jnp.concatenate([self.weights, rest[None]]))


def _standard_normal(shape: tuple[int, ...]) -> Gaussian:
    return Gaussian(jnp.zeros(shape), jnp.ones(shape))


def conjunction(*parts: Concepts) -> Concepts:
    """One AND the other: the product of their densities, `p ~ prod_i p_i`.

    Precisions add up, so that the product is narrower than each, and where two disagree it lies between them, nearer to
    the narrower one. `restrict` them first where each is to speak of another region.

    Raises:
      ValueError: for none, or for concepts of different shapes.

    Examples:
      >>> conjunction(found.concepts, found.concepts).product().variance / found.concepts.product().variance
      Array([0.5, 0.5], dtype=float32)
    """
    shapes = {part.weights.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"concepts of the shapes {sorted(shapes)} are to be joined: give some, all of one shape.")
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def restrict(concepts: Concepts, where: jax.Array) -> Concepts:
    """The same concepts with their say multiplied by `where` (*shape): 0 silences them in an entry, 1 leaves them.

    Raises:
      ValueError: for a map of another shape.

    Examples:
      >>> restrict(found.concepts, jnp.array([1.0, 0.0])).weights.sum(axis=0)
      Array([1., 0.], dtype=float32)
    """
    if where.shape != concepts.weights.shape[1:]:
        raise ValueError(f"where has the shape {where.shape}: give one weight an entry, {concepts.weights.shape[1:]}.")
    return concepts.replace(weights=concepts.weights * where[None])  # type: ignore[attr-defined]


def replace(concepts: Concepts, index: int, by: Concepts) -> Concepts:
    """The same concepts, but that number `index` is `by`, which takes over its say.

    Args:
      concepts: K.
      index: which of them goes.
      by: the one that comes; its own weights do not matter.

    Raises:
      ValueError: if `by` is several concepts or of another shape, or there is no such index.

    Examples:
      >>> one = Concepts(Gaussian(jnp.zeros((1, 2)), jnp.ones((1, 2))), jnp.ones((1, 2)))
      >>> replace(found.concepts, 0, one).experts.mean[0]
      Array([0., 0.], dtype=float32)
    """
    if len(by) != 1 or by.weights.shape[1:] != concepts.weights.shape[1:]:
        raise ValueError(f"{concepts!r}: one of the same shape can replace one of them, and not {by!r}.")
    if not -len(concepts) <= index < len(concepts):
        raise ValueError(f"index is {index}, and there are {len(concepts)} concepts: count from 0.")
    experts = jax.tree.map(lambda leaf, new: leaf.at[index].set(new[0]), concepts.experts, by.experts)
    return Concepts(experts, concepts.weights)


def largest_exclusion(concepts: Concepts, other: Concepts) -> jax.Array:
    """Below which weight `exclude(concepts, other, weight)` is a density: (), infinite where they meet in no entry.

    The least, over entries, of what the precision of `concepts` is in units of that of `other`.

    Examples:
      >>> wide = Concepts(Gaussian(jnp.zeros((1, 2)), jnp.full((1, 2), 4.0)), jnp.ones((1, 2)))
      >>> narrow = Concepts(Gaussian(jnp.ones((1, 2)), jnp.ones((1, 2))), jnp.ones((1, 2)))
      >>> largest_exclusion(narrow, wide)
      Array(4., dtype=float32)
    """
    precision = 1.0 / concepts.product().variance
    taken = jnp.sum(other.weights / other.experts.variance, axis=0)
    return jnp.min(jnp.where(taken > 0, precision / jnp.where(taken > 0, taken, 1.0), jnp.inf))


def exclude(concepts: Concepts, other: Concepts, weight: float) -> Concepts:
    """`concepts` but NOT `other`: the density `p / p_other^weight`, whose mean moves away from that of `other`.

    Dividing takes precision away, and what has none left in an entry is no density. So `weight` must be below
    `largest_exclusion`. Not to be called under `jax.jit`: whether it is a density decides what is raised.

    Raises:
      ValueError: if it is no density, naming the largest weight; or for a weight that is not positive.

    Examples:
      >>> wide = Concepts(Gaussian(jnp.zeros((1, 2)), jnp.full((1, 2), 4.0)), jnp.ones((1, 2)))
      >>> narrow = Concepts(Gaussian(jnp.ones((1, 2)), jnp.ones((1, 2))), jnp.ones((1, 2)))
      >>> exclude(narrow, wide, 1.0).product().mean  # away from 0
      Array([1.33, 1.33], dtype=float32)
    """
    most = float(largest_exclusion(concepts, other))
    if not 0 < weight < most:
        raise ValueError(
            f"weight is {weight}: dividing by these concepts leaves a density only for weights above 0 and below "
            f"{most:.4g}, where every variance stays positive."
        )
    return conjunction(concepts, other.replace(weights=-weight * other.weights))  # type: ignore[attr-defined]


def explain(
    query: jax.Array,
    experts: Gaussian,
    background: Gaussian,
    *,
    num_experts: int,
    tau: float,
    candidates: jax.Array,
    t: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[selection.Selection, jax.Array]:
    """The few of N experts that explain a query together, and what each of them owns (Eq. 8 to 10).

    Args:
      query: (*shape).
      experts: mean and variance (N, *shape).
      background: which every pick must beat, (*shape).
      num_experts: K, the most that are picked.
      tau: temperature of the ownership.
      candidates: (N,) bool, which may be picked.
      t: (N,) timesteps of which each may be picked once; None for no such rule.
      axis_name: as in `selection.greedy`.

    Returns:
      The picks, and their ownership (K, *shape).

    Examples:
      >>> experts = Gaussian(jnp.array([[1.0, 0.0], [9.0, 0.1]]), jnp.full((2, 2), 0.01))
      >>> broad, may = Gaussian(jnp.zeros(2), jnp.ones(2)), jnp.array([True, True])
      >>> how = dict(num_experts=2, tau=0.5, candidates=may)
      >>> picks, owned = jax.jit(lambda query: explain(query, experts, broad, **how))(jnp.array([1.0, 0.1]))
      >>> owned  # each has one coordinate right
      Array([[1.  , 0.27],
             [0.  , 0.73]], dtype=float32)
    """
    likelihood = experts.log_prob_of_entries(query[None])  # Eq. 8
    picks = selection.greedy(
        likelihood,
        background.log_prob_of_entries(query),
        num_experts=num_experts,
        candidates=candidates,
        t=t,
        axis_name=axis_name,
    )
    return picks, poe.ownership(likelihood[picks.indices], picks.mask, tau)


@flax.struct.dataclass
class Library:
    """N named Gaussians, collected from many queries: what a new one is looked up in.

    Attributes:
      experts: mean and variance (N, *shape).
      names: N names.
    """

    experts: Gaussian
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        """How many there are, of what."""
        return f"<library of {len(self)} concepts of shape {self.experts.mean.shape[1:]}>"


def collect(found: Mapping[str, Concepts]) -> Library:
    """A library of concepts from many queries: each is named after its query and its place there, as "query/0".

    Raises:
      ValueError: for none, or for concepts of different shapes.

    Examples:
      >>> collect({"mine": found.concepts}).names
      ('mine/0',)
    """
    names = tuple(f"{name}/{place}" for name, concepts in found.items() for place in range(len(concepts)))
    return Library(conjunction(*found.values()).experts, names)


def search(
    library: Library, query: jax.Array, *, num_experts: int = 3, tau: float = 0.5, background: Gaussian | None = None
) -> tuple[Concepts, tuple[str, ...]]:
    """The concepts of a library that explain a new query, by the rule that picks them in a discovery.

    No network is evaluated. Not to be called under `jax.jit`: how many explain it is part of the answer.

    Args:
      library: N concepts.
      query: (*shape).
      num_experts: the most that are picked.
      tau: temperature of their ownership.
      background: which each must beat; N(0, I) if None.

    Returns:
      The concepts, best first, and their names; none where none beats the background.

    Raises:
      TypeError: if the query is not float32.
      ValueError: if it is not of the library's shape.

    Examples:
      >>> experts = Gaussian(jnp.array([[1.0, 0.0], [9.0, 9.0]]), jnp.full((2, 2), 0.01))
      >>> concepts, names = search(Library(experts, ("near", "far")), jnp.array([1.0, 0.1]))
      >>> names
      ('near',)
    """
    shape = library.experts.mean.shape[1:]
    require_array("query", query, "float32", (len(shape),), f"one float32 array of shape {shape}")
    if query.shape != shape:
        raise ValueError(f"query has the shape {query.shape}, and the library's concepts {shape}: give one like them.")
    background = _standard_normal(shape) if background is None else background
    present = jnp.ones(len(library), bool)
    picks, owned = explain(query, library.experts, background, num_experts=num_experts, tau=tau, candidates=present)
    rows = np.asarray(picks.indices)[np.asarray(picks.mask)]
    experts = jax.tree.map(lambda leaf: leaf[rows], library.experts)
    return Concepts(experts, owned[: len(rows)]), tuple(library.names[row] for row in rows)
