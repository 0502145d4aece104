"""The diagonal Gaussian against dense ones built from precision matrices, and its score against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.diffusion.gaussian import Gaussian

SCHEDULE = schedule.linear_beta()
SHAPE = (2, 2, 3)
K = 3


def factors() -> tuple[Gaussian, jax.Array]:
    """K densities, and weights that sum to one in each entry."""
    keys = jax.random.split(jax.random.key(0), 3)
    gaussians = Gaussian(
        mean=jax.random.uniform(keys[0], (K, *SHAPE), minval=-1.0, maxval=1.0),
        variance=jax.random.uniform(keys[1], (K, *SHAPE), minval=0.02, maxval=0.5),
    )
    return gaussians, jax.nn.softmax(2.0 * jax.random.normal(keys[2], (K, *SHAPE)), axis=0)


def one() -> Gaussian:
    gaussians, weights = factors()
    return gaussians.product(weights)


def dense(scale=1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of the weighted product, from dense precision matrices in float64."""
    gaussians, weights = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).reshape(K, -1), part) for part in factors()
    )
    precisions = [np.diag(scale * w / s2) for w, s2 in zip(weights, gaussians.variance, strict=True)]
    covariance = np.linalg.inv(sum(precisions))
    return covariance @ sum(p @ m for p, m in zip(precisions, gaussians.mean, strict=True)), covariance


def dense_log_density(x, mean, covariance):
    offset = x - mean
    _, logdet = jnp.linalg.slogdet(covariance)
    return -0.5 * (offset @ jnp.linalg.solve(covariance, offset) + logdet + len(mean) * jnp.log(2 * jnp.pi))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_product_is_the_dense_product(scale):
    # Catches: weights on the variances instead of the precisions, weights that are normalised.
    gaussians, weights = factors()
    product = gaussians.product(scale * weights)
    mean, covariance = dense(scale)
    np.testing.assert_allclose(product.mean.reshape(-1), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(product.variance.reshape(-1), np.diag(covariance), rtol=1e-4)


def test_the_product_is_proportional_to_the_weighted_factors():
    gaussians, weights = factors()
    x = jax.random.normal(jax.random.key(9), (6, *SHAPE))
    entries = jax.vmap(lambda x: gaussians.log_prob_of_entries(x[None]))(x)
    constant = jnp.sum(weights[None] * entries, axis=(1, 2, 3, 4)) - one().log_prob(x)
    np.testing.assert_allclose(constant, constant[0], atol=2e-3)


def test_a_factor_of_weight_zero_is_left_out_whatever_it_holds():
    # Catches: 0 * NaN, or 0 / 0, in a sum; a gradient through them.
    gaussians, weights = factors()
    without = weights.at[1].set(0.0)
    expected = gaussians.product(without)
    for mean, variance in ((jnp.nan, jnp.nan), (jnp.inf, 0.0), (1e30, jnp.inf)):
        poisoned = Gaussian(gaussians.mean.at[1].set(mean), gaussians.variance.at[1].set(variance))
        jax.tree.map(np.testing.assert_array_equal, poisoned.product(without), expected)
    assert np.isinf(gaussians.product(jnp.zeros_like(weights)).variance).all()


def test_log_prob_is_the_dense_one_and_the_sum_of_its_entries():
    mean, covariance = dense()
    x = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    expected = [dense_log_density(row.reshape(-1), mean, covariance) for row in x]
    np.testing.assert_allclose(one().log_prob(x), jnp.array(expected), rtol=1e-4)
    gaussians, _ = factors()
    entries = gaussians.log_prob_of_entries(x[:1])
    np.testing.assert_allclose(
        entries, jax.scipy.stats.norm.logpdf(x[:1], gaussians.mean, jnp.sqrt(gaussians.variance)), rtol=1e-4, atol=1e-5
    )
    # N densities at once.
    many = jax.vmap(lambda gaussian: gaussian.log_prob(x))(gaussians)
    np.testing.assert_allclose(many[:, 0], jnp.sum(entries, axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("t", [1, 50, 400, 1000])
def test_eps_is_that_of_the_noised_dense_gaussian(t):
    mean, covariance = dense()
    a = float(SCHEDULE.alpha_bar[t])
    noised = jnp.asarray(a * covariance + (1 - a) * np.eye(len(mean)), jnp.float32)
    shifted = jnp.asarray(np.sqrt(a) * mean, jnp.float32)
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    score = jax.vmap(jax.grad(lambda row: dense_log_density(row, shifted, noised)))(x.reshape(4, -1))
    eps = one().eps(SCHEDULE)(x, jnp.full(4, t))
    assert eps.shape == x.shape
    np.testing.assert_allclose(eps.reshape(4, -1), -np.sqrt(1 - a) * score, rtol=1e-3, atol=1e-4)


def test_eps_is_the_gradient_of_the_noised_log_prob():
    # Catches: a timestep that is another row's, a mean or a variance that is not noised.
    x, t = jax.random.normal(jax.random.key(2), (4, *SHAPE)), jnp.array([3, 60, 300, 900])

    def log_prob(x, density):
        return density.log_prob(x[None])[0]

    score = jax.vmap(jax.grad(log_prob))(x, one().noised(SCHEDULE, t))
    root = jnp.sqrt(1.0 - schedule.alpha_bar_at(SCHEDULE, t, x))
    np.testing.assert_allclose(one().eps(SCHEDULE)(x, t), -root * score, rtol=1e-4, atol=1e-5)


def test_eps_and_the_noised_density_are_those_of_a_mixture_of_one():
    x, t = jax.random.normal(jax.random.key(2), (4, *SHAPE)), jnp.array([3, 60, 300, 900])
    single = exact.GaussianMixture(jnp.ones(1), one().mean[None], one().variance[None])
    np.testing.assert_allclose(
        one().eps(SCHEDULE)(x, t), exact.mixture_eps(single, SCHEDULE)(x, t), rtol=1e-4, atol=1e-5
    )
    found = jax.vmap(lambda density, x: density.log_prob(x[None])[0])(one().noised(SCHEDULE, t), x)
    np.testing.assert_allclose(found, exact.log_density(single, SCHEDULE, x, t), rtol=1e-4)


def test_samples_have_the_moments_and_are_noised_to_the_noised_density():
    density, n = one(), 20_000
    draws = density.sample(jax.random.key(3), n)
    assert draws.shape == (n, *SHAPE)
    noise = jax.random.normal(jax.random.key(4), draws.shape)
    later = schedule.add_noise(SCHEDULE, draws, noise, jnp.full(n, 200))
    at_200 = jax.tree.map(lambda leaf: leaf[0], density.noised(SCHEDULE, jnp.array([200])))
    for x, expected in ((draws, density), (later, at_200)):
        standard_error = jnp.sqrt(expected.variance / n)
        assert float(jnp.abs((x.mean(0) - expected.mean) / standard_error).max()) < 5
        np.testing.assert_allclose(x.var(0), expected.variance, rtol=0.06)
