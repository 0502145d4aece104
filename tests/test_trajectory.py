"""Samples with the variance of their way, against DDIM, closed forms and samples that choose late."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.sampling import ddim
from cdisc.diffusion.schedule import linear_beta
from cdisc.evaluation import trajectory as lib

NOISE = linear_beta()


@pytest.mark.parametrize("options", [{}, {"clip": 0.5}, {"clip": 0.5, "use_clipped_model_output": True}])
def test_the_samples_are_those_of_ddim(options):
    eps = Gaussian(jnp.asarray([0.3, -0.2]), jnp.asarray([0.04, 1.0])).eps(NOISE)
    start = jax.random.normal(jax.random.key(0), (5, 2))
    samples, _ = lib.ddim_with_variance(eps, NOISE, start, num_steps=12, last=4, **options)
    np.testing.assert_allclose(samples, ddim(eps, NOISE, start, num_steps=12, **options), atol=1e-6)


def test_a_point_mass_does_not_move_and_a_known_path_has_its_variance():
    # Catches: a variance over pictures or entries, steps from the beginning, the noisy pictures instead of the clean.
    start = jax.random.normal(jax.random.key(1), (3, 2))
    still = Gaussian(jnp.ones(2), jnp.full(2, 1e-12)).eps(NOISE)
    np.testing.assert_allclose(lib.ddim_with_variance(still, NOISE, start, num_steps=8, last=3)[1], 0.0, atol=1e-8)

    def drifting(x, t):
        """The clean picture that is predicted at t is t / 1000 in the first entry and 0 in the other."""
        a = NOISE.alpha_bar[t][:, None]
        x0 = jnp.stack([t / 1000, jnp.zeros(t.shape)], axis=1)
        return (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)

    _, variance = lib.ddim_with_variance(drifting, NOISE, start, num_steps=10, last=3)
    np.testing.assert_allclose(variance, np.var([0.3, 0.2, 0.1]) / 2, rtol=1e-4)
    for last in (1, 11):
        with pytest.raises(ValueError, match=r"outside 2\.\.10"):
            lib.ddim_with_variance(drifting, NOISE, start, num_steps=10, last=last)


def test_samples_that_choose_a_mode_late_waver_more():
    # In one dimension ways do not cross: a start near the middle stays between the modes longest.
    modes = exact.GaussianMixture(jnp.full((2,), 0.5), jnp.asarray([[-0.3], [0.3]]), jnp.full((2, 1), 1e-3))
    start = jnp.linspace(0.2, 2.0, 10)[:, None]
    _, variance = lib.ddim_with_variance(exact.mixture_eps(modes, NOISE), NOISE, start, num_steps=50, last=10)
    assert (np.diff(np.asarray(variance)) < 0).all()
