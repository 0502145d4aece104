"""Composed likelihoods against sums worked out by hand; novelty against a standard score."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import novelty as lib
from cdisc.discovery.concepts import DiscoveryOptions

OPTIONS = DiscoveryOptions(timesteps=(50, 200, 300), background_variance=4.0)


def log_normal(x, mean, variance):
    return -0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance)


def found_in(means, variances, t, mask=None, curvature=None):
    count = len(t)
    pool = types.SimpleNamespace(
        mask=jnp.asarray([True] * count if mask is None else mask),
        curvature=jnp.asarray([-1.0] * count if curvature is None else curvature),
        t=jnp.asarray(t),
    )
    return types.SimpleNamespace(pool=pool, experts=Gaussian(jnp.asarray(means), jnp.asarray(variances)))


def test_each_entry_is_as_likely_as_the_best_mode_of_the_level_makes_it():
    # Catches: a maximum over all levels, one mode for all entries, a sum instead of a mean, no background.
    query = jnp.asarray([1.0, -1.0])
    means = [[1.0, 5.0], [5.0, -1.0], [1.0, -1.0]]
    found = found_in(means, [[0.01, 0.01], [0.04, 0.04], [0.5, 0.5]], [50, 50, 200])
    fine = (log_normal(1.0, 1.0, 0.01) + log_normal(-1.0, -1.0, 0.04)) / 2
    coarse = log_normal(1.0, 1.0, 0.5)
    nothing = log_normal(1.0, 0.0, 4.0)  # no mode at the third level
    np.testing.assert_allclose(lib.composed_likelihoods(query, found, OPTIONS), [fine, coarse, nothing], rtol=1e-5)


def test_saddles_and_empty_rows_compose_nothing():
    query = jnp.zeros(2)
    found = found_in(np.zeros((2, 2)), np.full((2, 2), 0.01), [50, 50], [True, False], [1.0, -1.0])
    background = log_normal(0.0, 0.0, 4.0)
    np.testing.assert_allclose(lib.composed_likelihoods(query, found, OPTIONS), [background] * 3, rtol=1e-5)


def test_novelty_counts_standard_deviations_below_trained_pictures():
    # Catches: the sign, a spread over levels, one level that drowns the others.
    trained = jnp.asarray([[1.0, 100.0], [3.0, 300.0]])
    spread = np.sqrt(2.0) * np.asarray([1.0, 100.0])
    assert float(lib.novelty(jnp.asarray([2.0, 200.0]), trained)) == pytest.approx(0.0, abs=1e-6)
    composed = jnp.asarray([2.0 - 3.0 * spread[0], 200.0 - 1.0 * spread[1]])
    assert float(lib.novelty(composed, trained)) == pytest.approx(2.0, rel=1e-5)
    with pytest.raises(ValueError, match="two pictures of trained classes or more, not 1"):
        lib.novelty(composed, trained[:1])
