"""eps, x0, v and score: each conversion against its definition, and against its inverse."""

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion import parameterization as forms
from cdisc.diffusion.schedule import add_noise, linear_beta

SCHEDULE = linear_beta()
T = jnp.array([1, 50, 400, 800, 1000])
A = np.asarray(SCHEDULE.alpha_bar, np.float64)[np.asarray(T)][:, None, None, None]
SHAPE = (5, 4, 4, 3)
X0 = jax.random.uniform(jax.random.key(0), SHAPE, minval=-1.0)
EPS = jax.random.normal(jax.random.key(1), SHAPE)
X = add_noise(SCHEDULE, X0, EPS, T)


def test_true_noise_gives_back_the_picture_and_the_other_way_round():
    # Division by sqrt(abar_T) = 0.006 and by sqrt(1 - abar_1) = 0.01 magnifies rounding a hundredfold.
    np.testing.assert_allclose(forms.x0_from_eps(SCHEDULE, X, EPS, T), X0, atol=1e-4)
    np.testing.assert_allclose(forms.eps_from_x0(SCHEDULE, X, X0, T), EPS, atol=1e-4)


def test_v_is_its_definition():
    expected = np.sqrt(A) * np.asarray(EPS) - np.sqrt(1 - A) * np.asarray(X0)
    np.testing.assert_allclose(forms.v_from_eps(SCHEDULE, X, EPS, T), expected, atol=1e-4)
    np.testing.assert_allclose(forms.eps_from_v(SCHEDULE, X, jnp.asarray(expected, jnp.float32), T), EPS, atol=1e-4)


def test_score_is_the_gradient_of_the_log_density_of_the_noise():
    """Given x0, `x_t` is Gaussian, and its score at `x_t` must be that of the true eps."""

    def log_density(x):
        a = SCHEDULE.alpha_bar[T].reshape(-1, 1, 1, 1)
        return -0.5 * jnp.sum(jnp.square(x - jnp.sqrt(a) * X0) / (1.0 - a))

    score = forms.score_from_eps(SCHEDULE, EPS, T)
    np.testing.assert_allclose(score, jax.grad(log_density)(X), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(score, -np.asarray(EPS) / np.sqrt(1 - A), rtol=1e-3)


def test_every_form_returns_to_eps():
    """The inverses are exact for any prediction, not only for the true noise."""
    guess = jax.random.normal(jax.random.key(2), SHAPE)
    through_score = forms.eps_from_score(SCHEDULE, forms.score_from_eps(SCHEDULE, guess, T), T)
    through_v = forms.eps_from_v(SCHEDULE, X, forms.v_from_eps(SCHEDULE, X, guess, T), T)
    through_x0 = forms.eps_from_x0(SCHEDULE, X, forms.x0_from_eps(SCHEDULE, X, guess, T), T)
    np.testing.assert_allclose(through_score, guess, rtol=1e-5)
    np.testing.assert_allclose(through_v, guess, atol=2e-4)
    np.testing.assert_allclose(through_x0, guess, atol=2e-4)


def test_tweedie_agrees_with_eq_5():
    """`x0hat = (x + (1 - abar) score) / sqrt(abar)`, for any prediction."""
    guess = jax.random.normal(jax.random.key(2), SHAPE)
    score = np.asarray(forms.score_from_eps(SCHEDULE, guess, T), np.float64)
    expected = (np.asarray(X, np.float64) + (1 - A) * score) / np.sqrt(A)
    np.testing.assert_allclose(forms.x0_from_eps(SCHEDULE, X, guess, T), expected, rtol=1e-3, atol=1e-3)


def test_each_row_uses_its_own_timestep():
    """A row of the batch equals a batch of one."""
    for function in (forms.x0_from_eps, forms.v_from_eps, forms.eps_from_x0, forms.eps_from_v):
        whole = function(SCHEDULE, X, EPS, T)
        alone = function(SCHEDULE, X[2:3], EPS[2:3], T[2:3])
        np.testing.assert_allclose(whole[2:3], alone, rtol=1e-6, atol=1e-6)
        assert whole.shape == SHAPE
