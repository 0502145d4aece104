"""Agreement of sets of Gaussians whose matching is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion.gaussian import Gaussian
from cdisc.evaluation.stability import agreement


def of(means, deviations):
    return Gaussian(jnp.asarray(means, jnp.float32), jnp.square(jnp.asarray(deviations, jnp.float32)))


def test_the_order_of_concepts_does_not_matter_and_distances_are_those_of_wasserstein():
    # Catches: pairs by place, each to its nearest (which one could be for all), variances for deviations.
    first = of([[0.0, 0.0], [3.0, 0.0], [9.0, 9.0]], np.full((3, 2), 0.5))
    second = of([[9.0, 9.0], [0.0, 0.0], [3.0, 4.0]], [[0.5, 0.5], [0.5, 1.5], [0.5, 0.5]])
    found = agreement(first, second, radius=0.1)
    assert found.overlap == pytest.approx(2 / 3)
    assert found.distance == pytest.approx((0.0 + np.sqrt(1.0 / 2) + np.sqrt(16.0 / 2)) / 3, rel=1e-6)
    assert agreement(first, first, radius=0.1) == (1.0, 0.0)


def test_a_greedy_matching_would_be_worse():
    # The first of A is nearest to the first of B, but then the second would be 10 away.
    first, second = of([[0.0], [1.0]], np.ones((2, 1))), of([[0.9], [-9.0]], np.ones((2, 1)))
    assert agreement(first, second, radius=1.0).distance == pytest.approx((0.1 + 9.0) / 2, rel=1e-5)


def test_a_set_that_is_larger_overlaps_in_part():
    first, second = of([[0.0]], [[1.0]]), of([[0.0], [5.0], [7.0], [8.0]], np.ones((4, 1)))
    assert agreement(first, second, radius=0.5).overlap == agreement(second, first, radius=0.5).overlap == 0.25
    with pytest.raises(ValueError, match="not 0 and 1"):
        agreement(of(np.zeros((0, 1)), np.ones((0, 1))), first, radius=1.0)
