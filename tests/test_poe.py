"""Ownership, the product with its background, and the adaptive weight; `tests/test_gaussian.py` has the density."""

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion import schedule
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import poe

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


def teacher_of(mask=(True, True, True)) -> Gaussian:
    gaussians, fit = experts()
    return poe.product(gaussians, poe.ownership(fit, jnp.array(mask), 0.5), wide())


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


def test_the_teacher_is_the_product_of_the_experts_present():
    # Catches: a background that multiplies owned entries, an absent expert that does.
    gaussians, fit = experts()
    for mask in ((True, True, True), (True, False, True), (False, True, False)):
        teacher = teacher_of(mask)
        present = jnp.flatnonzero(jnp.array(mask))
        weights = jax.nn.softmax(fit[present] / 0.5, axis=0)
        expected = jax.tree.map(lambda leaf, rows=present: leaf[rows], gaussians).product(weights)
        np.testing.assert_allclose(teacher.mean, expected.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(teacher.variance, expected.variance, rtol=1e-5)
    np.testing.assert_allclose(teacher.mean, gaussians.mean[1], rtol=1e-5, atol=1e-6)  # one expert alone


def test_without_experts_the_teacher_is_the_background():
    gaussians, fit = experts()
    poisoned = Gaussian(gaussians.mean * jnp.nan, gaussians.variance * 0.0)
    teacher = poe.product(poisoned, poe.ownership(fit, jnp.zeros(K, bool), 0.5), wide())
    np.testing.assert_array_equal(teacher.mean, wide().mean)
    np.testing.assert_array_equal(teacher.variance, wide().variance)


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
    np.testing.assert_allclose(weight * teacher.eps(SCHEDULE)(x, t), expected, rtol=1e-5, atol=1e-6)
    mean = poe.adaptive_weight(teacher, SCHEDULE, 0.5, 2.0)(t)
    np.testing.assert_allclose(jnp.mean(weight, axis=(1, 2, 3)), mean, rtol=1e-5)
    capped = poe.adaptive_weight(teacher, SCHEDULE, 0.5, 0.1, elementwise=True)(t)
    np.testing.assert_allclose(capped, jnp.minimum(weight, 0.1))
