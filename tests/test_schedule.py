"""The forward process: its closed form, its inverses and the moments of what it makes."""

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion import schedule as schedules

SCHEDULE = schedules.linear_beta()


def test_linear_beta_is_the_product_of_its_betas():
    assert SCHEDULE.num_timesteps == 1000
    assert SCHEDULE.alpha_bar.shape == (1001,)
    assert SCHEDULE.alpha_bar.dtype == jnp.float32
    assert float(SCHEDULE.alpha_bar[0]) == 1.0
    abar = 1.0
    for t in range(1, 1001):
        abar *= 1.0 - (1e-4 + (2e-2 - 1e-4) * (t - 1) / 999)
        if t in (1, 2, 500, 1000):
            np.testing.assert_allclose(SCHEDULE.alpha_bar[t], abar, rtol=1e-6)
    assert (np.diff(SCHEDULE.alpha_bar) < 0).all()
    short = schedules.linear_beta(2, beta_start=0.5, beta_end=0.75)
    np.testing.assert_allclose(short.alpha_bar, [1.0, 0.5, 0.125], rtol=1e-6)


def test_scaled_linear_beta_is_the_product_of_squared_steps():
    schedule = schedules.scaled_linear_beta(3, beta_start=0.01, beta_end=0.25)
    np.testing.assert_allclose(schedule.alpha_bar, np.cumprod([1.0, 0.99, 0.91, 0.75]), rtol=1e-6)


def test_squared_cosine_is_the_formula_until_a_beta_would_be_too_large():
    def f(share):
        return np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2

    schedule = schedules.squared_cosine(4)
    expected = [f(t / 4) / f(0) for t in range(4)]
    np.testing.assert_allclose(schedule.alpha_bar[:4], expected, rtol=1e-5)
    # f(1) = 0 would lose everything in the last step.
    np.testing.assert_allclose(schedule.alpha_bar[4], 0.001 * expected[3], rtol=1e-5)


def test_from_betas_is_the_running_product():
    np.testing.assert_allclose(schedules.from_betas([0.5, 0.75]).alpha_bar, [1.0, 0.5, 0.125], rtol=1e-6)


def test_expand_appends_axes_and_leaves_scalars_of_a_batch():
    values = jnp.arange(3.0)
    assert schedules.expand(values, jnp.zeros((3, 4, 5, 2))).shape == (3, 1, 1, 1)
    assert schedules.expand(values, jnp.zeros(3)).shape == (3,)
    assert schedules.expand(jnp.ones((3, 4)), jnp.zeros((3, 4, 2))).shape == (3, 4, 1)


def test_alpha_bar_at_takes_each_row_its_own_timestep():
    at = schedules.alpha_bar_at(SCHEDULE, jnp.array([0, 1000, 7]), jnp.zeros((3, 2, 2, 1)))
    assert at.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal(at.ravel(), np.asarray(SCHEDULE.alpha_bar)[[0, 1000, 7]])


def test_sigma_is_the_noise_to_signal_ratio():
    t = jnp.array([0, 1, 100, 1000])
    a = np.asarray(SCHEDULE.alpha_bar, np.float64)[[0, 1, 100, 1000]]
    np.testing.assert_allclose(schedules.sigma(SCHEDULE, t), np.sqrt((1 - a) / a), rtol=1e-5)
    assert float(schedules.sigma(SCHEDULE, jnp.array(0))) == 0.0


def test_add_noise_has_the_moments_of_eq_1():
    n = 100_000
    key_x, key_eps = jax.random.split(jax.random.key(0))
    x0 = 0.7 + 0.3 * jax.random.normal(key_x, (n, 2))
    eps = jax.random.normal(key_eps, (n, 2))
    for t in (1, 300, 1000):
        a = float(SCHEDULE.alpha_bar[t])
        x = np.asarray(schedules.add_noise(SCHEDULE, x0, eps, jnp.full(n, t)))
        std = np.sqrt(a * 0.09 + 1 - a)
        np.testing.assert_allclose(x.mean(0), np.sqrt(a) * 0.7, atol=5 * std / np.sqrt(n))
        np.testing.assert_allclose(x.std(0), std, rtol=5 / np.sqrt(n))
        covariance = np.mean((x - x.mean(0)) * np.asarray(eps), axis=0)
        np.testing.assert_allclose(covariance, np.sqrt(1 - a), atol=10 / np.sqrt(n))


def test_add_noise_at_t_0_is_the_picture_and_rows_keep_their_timestep():
    x0 = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    eps = jax.random.normal(jax.random.key(1), x0.shape)
    x = schedules.add_noise(SCHEDULE, x0, eps, jnp.array([0, 1000]))
    np.testing.assert_array_equal(x[0], x0[0])
    np.testing.assert_allclose(x[1], eps[1], atol=0.03)
