"""Concepts put together again, against densities on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import algebra, concepts

GRID = np.linspace(-20.0, 20.0, 20_001)


def some(seed: int, count: int = 2, weights: float | None = None) -> algebra.Concepts:
    """Random concepts of three entries, whose weights sum to one unless given."""
    rng = np.random.default_rng(seed)
    mean, spread, shares = (
        jnp.asarray(rng.uniform(*ends, (count, 3)), jnp.float32) for ends in ((-1, 1), (0.2, 1), (1, 2))
    )
    shares = shares / shares.sum(0, keepdims=True) if weights is None else jnp.full_like(shares, weights)
    return algebra.Concepts(Gaussian(mean, spread), shares)


def by_quadrature(*factors: tuple[algebra.Concepts, float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each entry under the product of densities, each to a power, summed up on a grid."""
    logs = np.zeros((3, GRID.size))
    for concept, power in factors:
        mean, variance, weights = (
            np.asarray(a, float)[..., None] for a in (concept.experts.mean, concept.experts.variance, concept.weights)
        )
        logs += power * np.sum(weights * -0.5 * (np.square(GRID - mean) / variance), axis=0)
    p = np.exp(logs - logs.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p @ GRID
    return mean, p @ np.square(GRID) - np.square(mean)


def assert_is(product: Gaussian, expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(product.mean, expected[0], atol=1e-4)
    np.testing.assert_allclose(product.variance, expected[1], rtol=1e-3)


def test_and_is_the_product_of_both_densities():
    # Catches: weights that are averaged or renormalised, a background that has a say beside whole concepts.
    a, b = some(0), some(1, count=3)
    both = algebra.conjunction(a, b)
    assert len(both) == 5
    assert_is(both.product(), by_quadrature((a, 1.0), (b, 1.0)))


def test_not_divides_by_the_density_and_moves_away_from_it():
    # Catches: a negative weight that is clipped or left out.
    a, b = some(2), some(3)
    weight = 0.7 * float(algebra.largest_exclusion(a, b))
    product = algebra.exclude(a, b, weight).product()
    assert_is(product, by_quadrature((a, 1.0), (b, -weight)))
    before = a.product()
    assert (np.sign(product.mean - before.mean) == np.sign(before.mean - b.product().mean)).all()


def test_not_is_refused_from_the_weight_on_at_which_no_density_is_left():
    # Catches: a bound that is an entry's own and not the least of all; one that admits a variance below zero.
    a, b = some(4), some(5)
    most = float(algebra.largest_exclusion(a, b))
    ratios = np.sum(a.weights / a.experts.variance, 0) / np.sum(b.weights / b.experts.variance, 0)
    assert most == pytest.approx(float(ratios.min()), rel=1e-5)
    assert (algebra.exclude(a, b, 0.99 * most).product().variance > 0).all()
    for weight in (1.01 * most, 0.0, float("nan")):
        with pytest.raises(ValueError, match=f"below {most:.4g}"):
            algebra.exclude(a, b, weight)
    nowhere = algebra.restrict(b, jnp.zeros(3))
    assert float(algebra.largest_exclusion(a, nowhere)) == np.inf


def test_a_concept_that_replaces_another_has_its_say():
    # Catches: the new concept's own weights, another one's place.
    a, b = some(6, count=3), some(7, count=1)
    new = algebra.replace(a, 1, b)
    np.testing.assert_array_equal(new.weights, a.weights)
    np.testing.assert_array_equal(new.experts.mean[1], b.experts.mean[0])
    for kept in (0, 2):
        np.testing.assert_array_equal(new.experts.mean[kept], a.experts.mean[kept])
    expected = [algebra.Concepts(part.experts, a.weights[i : i + 1]) for i, part in enumerate((a[0], b, a[2]))]
    assert_is(new.product(), by_quadrature(*((part, 1.0) for part in expected)))
    with pytest.raises(ValueError, match="index is 3, and there are 3 concepts"):
        algebra.replace(a, 3, b)
    with pytest.raises(ValueError, match="one of the same shape can replace one of them"):
        algebra.replace(a, 0, some(8))


def test_the_background_has_the_say_that_is_left():
    # Catches: entries without a concept whose variance is infinite; a background that dilutes whole concepts.
    a = some(9)
    silenced = algebra.restrict(a, jnp.array([0.0, 1.0, 0.5])).product()
    whole, half = a.product(), 0.5
    assert float(silenced.mean[0]) == 0.0
    assert float(silenced.variance[0]) == 1.0
    np.testing.assert_allclose(silenced.variance[1], whole.variance[1], rtol=1e-5)
    np.testing.assert_allclose(1 / silenced.variance[2], half / whole.variance[2] + half, rtol=1e-5)
    with pytest.raises(ValueError, match=r"where has the shape \(2,\)"):
        algebra.restrict(a, jnp.ones(2))


def test_concepts_of_different_shapes_are_not_joined():
    other = algebra.Concepts(Gaussian(jnp.zeros((1, 2)), jnp.ones((1, 2))), jnp.ones((1, 2)))
    for parts in ((some(0), other), ()):
        with pytest.raises(ValueError, match="all of one shape"):
            algebra.conjunction(*parts)


def test_the_concepts_of_a_discovery_multiply_to_its_teacher():
    # Catches: rows of the selection that are no picks, ownership of other rows.
    noise = schedule.linear_beta()
    mixture = exact.GaussianMixture(jnp.full(2, 0.5), jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.full((2, 2), 0.01))
    options = concepts.DiscoveryOptions(timesteps=(50, 200), starts_per_t=4, lanes=8, capacity=8, probes=2)

    @jax.jit
    def find(query):
        return concepts.discover(exact.mixture_eps(mixture, noise), noise, query, jax.random.key(0), options)

    found = find(jnp.array([1.0, 1.0]))
    assert len(found.concepts) == int(found.selection.mask.sum()) < options.num_experts
    for ours, theirs in zip(jax.tree.leaves(found.concepts.product()), jax.tree.leaves(found.teacher), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_library_gives_back_the_concept_that_made_a_picture():
    # Catches: names of other rows, picks that are not the likeliest, an order that is not theirs.
    queries = {f"query{seed}": some(seed, count=2) for seed in range(4)}
    library = algebra.collect(queries)
    assert library.names[5] == "query2/1"
    picked, names = algebra.search(library, queries["query2"].experts.mean[1], num_experts=1)
    assert names == ("query2/1",)
    np.testing.assert_array_equal(picked.experts.mean[0], queries["query2"].experts.mean[1])
    np.testing.assert_array_equal(picked.weights, 1.0)


def test_a_library_in_which_nothing_explains_the_picture_says_so():
    library = algebra.collect({"far": some(0)})
    picked, names = algebra.search(library, jnp.full(3, 40.0), background=Gaussian(jnp.full(3, 40.0), jnp.ones(3)))
    assert len(picked) == 0
    assert names == ()
    np.testing.assert_array_equal(picked.product().variance, 1.0)
    with pytest.raises(ValueError, match=r"query has the shape \(4,\)"):
        algebra.search(library, jnp.zeros(4))
    with pytest.raises(TypeError, match="query is int32"):
        algebra.search(library, jnp.zeros(3, jnp.int32))
