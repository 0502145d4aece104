"""The product against dense Gaussians built from precision matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.discovery import poe
from cdisc.discovery.gaussians import Gaussian, log_normal

SCHEDULE = schedule.linear_beta()
SHAPE = (2, 2, 3)
K = 3


def experts() -> tuple[Gaussian, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    gaussians = Gaussian(
        mean=jax.random.uniform(keys[0], (K, *SHAPE), minval=-1.0, maxval=1.0),
        variance=jax.random.uniform(keys[1], (K, *SHAPE), minval=0.02, maxval=0.5),
    )
    return gaussians, jax.random.normal(keys[2], (K, *SHAPE))


def wide() -> Gaussian:
    return Gaussian(mean=jnp.full(SHAPE, 0.25), variance=jnp.full(SHAPE, 2.0))


def teacher_of(mask=(True, True, True)) -> poe.Teacher:
    gaussians, fit = experts()
    mask = jnp.array(mask)
    return poe.fuse(gaussians, poe.ownership(fit, mask, 0.5), mask, background=wide())


def dense(teacher_mask=(True, True, True)) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance (d, d) of the product, from dense precision matrices in float64."""
    gaussians, fit = experts()
    weights = np.asarray(poe.ownership(fit, jnp.array(teacher_mask), 0.5), np.float64).reshape(K, -1)
    means = np.asarray(gaussians.mean, np.float64).reshape(K, -1)
    precisions = [np.diag(w / s2) for w, s2 in zip(weights, np.asarray(gaussians.variance).reshape(K, -1), strict=True)]
    covariance = np.linalg.inv(sum(precisions))
    return covariance @ sum(p @ m for p, m in zip(precisions, means, strict=True)), covariance


def dense_log_density(x, mean, covariance):
    offset = x - mean
    _, logdet = jnp.linalg.slogdet(covariance)
    return -0.5 * (offset @ jnp.linalg.solve(covariance, offset) + logdet + len(mean) * jnp.log(2 * jnp.pi))


def test_ownership_is_a_softmax_over_the_experts_present():
    _, fit = experts()
    weights = poe.ownership(fit, jnp.array([True, False, True]), 0.5)
    np.testing.assert_allclose(jnp.sum(weights, axis=0), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(weights[1], 0.0)
    np.testing.assert_allclose(weights[0] / weights[2], jnp.exp((fit[0] - fit[2]) / 0.5), rtol=1e-4)
    np.testing.assert_allclose(poe.ownership(fit, jnp.ones(3, bool), 1e-3), fit == fit.max(0, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(poe.ownership(fit, jnp.zeros(3, bool), 0.5), 0.0)


def test_ownership_ignores_what_an_absent_place_holds():
    _, fit = experts()
    mask = jnp.array([True, True, False])
    for poison in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
        np.testing.assert_array_equal(
            poe.ownership(fit.at[2].set(poison), mask, 0.5), poe.ownership(fit.at[2].set(-3.0), mask, 0.5)
        )


@pytest.mark.parametrize("mask", [(True, True, True), (True, True, False)])
def test_the_product_is_the_dense_product(mask):
    teacher = teacher_of(mask)
    mean, covariance = dense(mask)
    np.testing.assert_allclose(teacher.mean.reshape(-1), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(teacher.variance.reshape(-1), np.diag(covariance), rtol=1e-4)
    assert teacher.weights.shape == (K, *SHAPE)


def test_the_product_is_proportional_to_the_weighted_experts():
    gaussians, _ = experts()
    teacher = teacher_of()
    x = jax.random.normal(jax.random.key(9), (6, *SHAPE))
    weighted = jnp.sum(
        teacher.weights[None] * log_normal(x[:, None], gaussians.mean[None], gaussians.variance[None]),
        axis=(1, 2, 3, 4),
    )
    constant = weighted - poe.log_density(teacher, x)
    np.testing.assert_allclose(constant, constant[0], atol=2e-3)


def test_log_density_is_the_dense_one():
    mean, covariance = dense()
    x = jax.random.normal(jax.random.key(1), (5, *SHAPE))
    expected = [dense_log_density(row.reshape(-1), mean, covariance) for row in x]
    np.testing.assert_allclose(poe.log_density(teacher_of(), x), jnp.array(expected), rtol=1e-4)


@pytest.mark.parametrize("t", [1, 50, 400, 1000])
def test_eps_is_that_of_the_noised_dense_gaussian(t):
    mean, covariance = dense()
    a = float(SCHEDULE.alpha_bar[t])
    noised = jnp.asarray(a * covariance + (1 - a) * np.eye(len(mean)), jnp.float32)
    shifted = jnp.asarray(np.sqrt(a) * mean, jnp.float32)
    teacher = teacher_of()
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    ts = jnp.full(4, t)
    flat = x.reshape(4, -1)
    score = jax.vmap(jax.grad(lambda row: dense_log_density(row, shifted, noised)))(flat)
    eps = poe.teacher_eps(teacher, SCHEDULE)(x, ts)
    assert eps.shape == x.shape
    np.testing.assert_allclose(eps.reshape(4, -1), -np.sqrt(1 - a) * score, rtol=1e-3, atol=1e-4)


def test_eps_at_mixed_timesteps_is_that_of_a_mixture_of_one():
    teacher = teacher_of()
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    t = jnp.array([3, 60, 300, 900])
    single = exact.GaussianMixture(jnp.ones(1), teacher.mean[None], teacher.variance[None])
    np.testing.assert_allclose(
        poe.teacher_eps(teacher, SCHEDULE)(x, t), exact.mixture_eps(single, SCHEDULE)(x, t), rtol=1e-4, atol=1e-5
    )


def test_samples_have_the_teachers_moments():
    teacher = teacher_of()
    draws = poe.sample(teacher, jax.random.key(3), 20_000)
    assert draws.shape == (20_000, *SHAPE)
    standard_error = jnp.sqrt(teacher.variance / 20_000)
    assert float(jnp.abs((draws.mean(0) - teacher.mean) / standard_error).max()) < 5
    np.testing.assert_allclose(draws.var(0), teacher.variance, rtol=0.06)


def test_without_experts_the_teacher_is_the_background():
    gaussians, fit = experts()
    mask = jnp.zeros(K, bool)
    poisoned = Gaussian(gaussians.mean * jnp.nan, gaussians.variance * 0.0)
    teacher = poe.fuse(poisoned, poe.ownership(fit, mask, 0.5), mask, background=wide())
    np.testing.assert_array_equal(teacher.mean, wide().mean)
    np.testing.assert_array_equal(teacher.variance, wide().variance)
    np.testing.assert_array_equal(teacher.weights, 0.0)


def test_the_adaptive_weight_is_equation_14():
    teacher = teacher_of()
    t = jnp.array([1, 50, 400, 1000])
    a = np.asarray(SCHEDULE.alpha_bar[t], np.float64)
    expected = 1.2 * np.array([np.mean(k * np.asarray(teacher.variance) + 1 - k) for k in a])
    weight = poe.adaptive_weight(teacher, SCHEDULE, 1.2, 2.0)(t)
    assert weight.shape == (4,)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    np.testing.assert_allclose(weight[-1], 1.2, rtol=1e-3)
    assert float(weight[0]) < 0.25
    capped = poe.adaptive_weight(teacher, SCHEDULE, 1.2, 0.7)(t)
    np.testing.assert_allclose(capped, np.minimum(expected, 0.7), rtol=1e-5)


def test_the_elementwise_weight_cancels_the_precision_exactly():
    teacher = teacher_of()
    t = jnp.array([5, 200, 800])
    x = jax.random.normal(jax.random.key(4), (3, *SHAPE))
    weight = poe.adaptive_weight(teacher, SCHEDULE, 0.5, 2.0, elementwise=True)(t)
    assert weight.shape == x.shape
    a = schedule.alpha_bar_at(SCHEDULE, t, x)
    expected = 0.5 * jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * teacher.mean[None])
    np.testing.assert_allclose(weight * poe.teacher_eps(teacher, SCHEDULE)(x, t), expected, rtol=1e-5, atol=1e-6)
    mean = poe.adaptive_weight(teacher, SCHEDULE, 0.5, 2.0)(t)
    np.testing.assert_allclose(jnp.mean(weight, axis=(1, 2, 3)), mean, rtol=1e-5)
    capped = poe.adaptive_weight(teacher, SCHEDULE, 0.5, 0.1, elementwise=True)(t)
    np.testing.assert_allclose(capped, jnp.minimum(weight, 0.1))
