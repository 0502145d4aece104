"""Samplers against densities whose every moment, and whose probability flow, is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, sampling
from cdisc.diffusion.schedule import linear_beta

SCHEDULE = linear_beta(1000)
MIXTURE = exact.GaussianMixture(
    weights=jnp.asarray([0.5, 0.3, 0.2]),
    means=jnp.asarray([[0.7, 0.7], [-0.7, 0.2], [0.1, -0.8]]),
    variances=jnp.asarray([[0.01, 0.02], [0.03, 0.01], [0.02, 0.02]]),
)
N = 4000


def _check_moments(samples):
    """Mean, covariance and class shares of the mixture, to five standard errors and the bias of a finite step."""
    weights, means, variances = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(MIXTURE))
    samples = np.asarray(samples, np.float64)
    mean = weights @ means
    centred = means - mean
    covariance = np.einsum("c,ci,cj->ij", weights, centred, centred) + np.diag(weights @ variances)
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * np.sqrt(covariance.max() / N) + 0.005)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.04)
    which = np.argmin(np.sum((samples[:, None] - means[None]) ** 2, axis=2), axis=1)
    np.testing.assert_allclose(np.bincount(which, minlength=3) / N, weights, atol=5 * np.sqrt(0.25 / N) + 0.005)
    for c in range(3):
        np.testing.assert_allclose(samples[which == c].mean(0), means[c], atol=0.025)
        np.testing.assert_allclose(samples[which == c].var(0), variances[c], rtol=0.25)


def test_timesteps_run_from_the_end_of_the_schedule_to_the_clean_picture():
    steps = sampling.timesteps(1000, 50)
    np.testing.assert_array_equal(steps[:, 0], np.arange(1000, 0, -20))
    np.testing.assert_array_equal(steps[:, 1], np.arange(980, -1, -20))
    np.testing.assert_array_equal(sampling.timesteps(4, 4), [[4, 3], [3, 2], [2, 1], [1, 0]])
    np.testing.assert_array_equal(sampling.timesteps(1000, 1), [[1000, 0]])
    uneven = sampling.timesteps(1000, 7)
    assert uneven.dtype == np.int32
    np.testing.assert_array_equal(uneven[1:, 0], uneven[:-1, 1])
    assert np.ptp(uneven[:, 0] - uneven[:, 1]) <= 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # As `DDIMScheduler` of 10 timesteps has them, from 0 there and from 1 here; it steps back by 10 // 4.
        (("leading",), [[7, 5], [5, 3], [3, 1], [1, 0]]),
        (("leading", 1), [[8, 6], [6, 4], [4, 2], [2, 0]]),
        (("leading", 1, False), [[8, 6], [6, 4], [4, 2], [2, 1]]),
        (("leading", 0, False), [[7, 5], [5, 3], [3, 1], [1, 1]]),
        (("linspace",), [[10, 8], [7, 5], [4, 2], [1, 0]]),
        (("trailing", 0, False), [[10, 8], [8, 5], [5, 2], [2, 1]]),
    ],
)
def test_timesteps_of_other_samplers(options, expected):
    # Catches: an offset that is left out, or moves the last step too; a step that ends where the next one begins.
    np.testing.assert_array_equal(sampling.timesteps(10, 4, *options), expected)


def test_timesteps_stay_in_the_schedule():
    with pytest.raises(ValueError, match=r"steps_offset is 4: with 4 steps it leads out of 1\.\.10"):
        sampling.timesteps(10, 4, "leading", 4)
    with pytest.raises(ValueError, match="timestep_spacing has 'even'"):
        sampling.timesteps(10, 4, "even")


@pytest.mark.parametrize("num_steps", [0, -1, 11])
def test_timesteps_refuses_more_steps_than_there_are(num_steps):
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}, outside 1..10"):
        sampling.timesteps(10, num_steps)


def test_ddim_follows_the_probability_flow_of_a_gaussian():
    """From `x_T` the flow ends at the same quantile of `p_0`: `m + s (x_T - sqrt(a) m) / sqrt(a s^2 + 1 - a)`."""
    mean, std = 0.4, 0.3
    gaussian = exact.GaussianMixture(
        weights=jnp.ones(1), means=jnp.full((1, 2, 2, 1), mean), variances=jnp.full((1, 2, 2, 1), std**2)
    )
    x = jax.random.normal(jax.random.key(0), (16, 2, 2, 1))
    samples = sampling.ddim(exact.mixture_eps(gaussian, SCHEDULE), SCHEDULE, x, num_steps=1000)
    a = float(SCHEDULE.alpha_bar[1000])
    expected = mean + std * (np.asarray(x) - np.sqrt(a) * mean) / np.sqrt(a * std**2 + 1 - a)
    np.testing.assert_allclose(samples, expected, atol=0.01)


@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_ddim_ends_on_a_point_mass_in_any_number_of_steps(num_steps):
    point = exact.empirical(jnp.asarray([[0.3, -0.9, 0.5]]))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    samples = sampling.ddim(exact.mixture_eps(point, SCHEDULE), SCHEDULE, x, num_steps=num_steps)
    np.testing.assert_allclose(samples, np.tile([[0.3, -0.9, 0.5]], (5, 1)), atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_has_the_moments_of_the_mixture(eta):
    x = jax.random.normal(jax.random.key(2), (N, 2))
    eps_fn = exact.mixture_eps(MIXTURE, SCHEDULE)
    _check_moments(sampling.ddim(eps_fn, SCHEDULE, x, jax.random.key(3), num_steps=1000, eta=eta))


def test_ancestral_has_the_moments_of_the_mixture():
    x = jax.random.normal(jax.random.key(4), (N, 2))
    _check_moments(sampling.ancestral(exact.mixture_eps(MIXTURE, SCHEDULE), SCHEDULE, x, jax.random.key(5)))


def test_ddim_with_eta_1_over_all_steps_is_ancestral_sampling():
    """Both fold the timestep into the key, so that they agree sample by sample, and so in distribution."""
    schedule = linear_beta(40, 1e-3, 0.3)
    x, key = jax.random.normal(jax.random.key(6), (64, 2)), jax.random.key(7)
    eps_fn = exact.mixture_eps(MIXTURE, schedule)
    stochastic = sampling.ddim(eps_fn, schedule, x, key, num_steps=40, eta=1.0)
    np.testing.assert_allclose(stochastic, sampling.ancestral(eps_fn, schedule, x, key), atol=1e-3)
    # The noise is truly drawn, from this key.
    other = sampling.ddim(eps_fn, schedule, x, jax.random.key(8), num_steps=40, eta=1.0)
    assert np.abs(np.asarray(other - stochastic)).max() > 0.1


def test_ancestral_is_a_chain_of_posteriors():
    """With a point mass the mean and the variance of every transition are those of `q(x_{t-1} | x_t, x_0)`.

    Two steps: `x_1` given `x_2 = x` must be that Gaussian, and the end is `x_0`; stop at `x_1` by looking at its eps.
    """
    schedule = linear_beta(2, 0.3, 0.5)
    a = np.asarray(schedule.alpha_bar, np.float64)
    x0, x2, seen = 0.6, -0.4, []

    def eps_fn(x, t):
        jax.debug.callback(lambda x, t: seen.append((int(t[0]), np.array(x))), x, t)
        return exact.mixture_eps(exact.empirical(jnp.full((1, 1), x0)), schedule)(x, t)

    end = sampling.ancestral(eps_fn, schedule, jnp.full((20_000, 1), x2), jax.random.key(9))
    jax.effects_barrier()
    x1 = dict(seen)[1]
    # Bayes' rule: the prior N(sqrt(a_1) x0, 1 - a_1) times the likelihood N(x_2; sqrt(alpha) x_1, 1 - alpha).
    alpha = a[2] / a[1]
    precision = 1 / (1 - a[1]) + alpha / (1 - alpha)
    mean = (np.sqrt(a[1]) * x0 / (1 - a[1]) + np.sqrt(alpha) * x2 / (1 - alpha)) / precision
    np.testing.assert_allclose(x1.mean(), mean, atol=5 / np.sqrt(20_000 * precision))
    np.testing.assert_allclose(x1.var(), 1 / precision, rtol=5 * np.sqrt(2 / 20_000))
    np.testing.assert_allclose(end, np.full((20_000, 1), x0), atol=1e-4)


def test_ddim_evaluates_the_model_once_for_each_visited_timestep():
    seen = []

    def eps_fn(x, t):
        jax.debug.callback(lambda t: seen.append(np.array(t)), t)
        return x

    sampling.ddim(eps_fn, SCHEDULE, jnp.ones((3, 2)), num_steps=4)
    jax.effects_barrier()
    np.testing.assert_array_equal(np.sort(np.stack(seen), axis=0)[::-1], np.tile([[1000], [750], [500], [250]], (1, 3)))


@pytest.mark.parametrize(
    "sampler", [sampling.ddim, functools.partial(sampling.ancestral, key=jax.random.key(0))], ids=["ddim", "ancestral"]
)
def test_clip_bounds_the_predicted_picture(sampler):
    schedule = linear_beta(30, 1e-3, 0.4)
    beyond = exact.empirical(jnp.asarray([[3.0, -0.2]]))
    eps_fn, x = exact.mixture_eps(beyond, schedule), jax.random.normal(jax.random.key(1), (4, 2))
    kwargs = {"num_steps": 30} if sampler is sampling.ddim else {}
    clipped = sampler(eps_fn, schedule, x, clip=0.5, **kwargs)
    np.testing.assert_allclose(clipped, np.tile([[0.5, -0.2]], (4, 1)), atol=1e-4)
    unclipped = sampler(eps_fn, schedule, x, **kwargs)
    np.testing.assert_allclose(unclipped, np.tile([[3.0, -0.2]], (4, 1)), atol=1e-4)


@pytest.mark.parametrize("use_clipped_model_output", [True, False])
def test_which_noise_goes_with_the_clipped_picture(use_clipped_model_output):
    """Two steps by hand: a prediction far outside at t = T, and nothing to clip afterwards."""
    # Catches: the one reading taken for the other.
    schedule = linear_beta(4, 0.1, 0.4)
    x = jnp.asarray([[0.3], [-0.7]])
    samples = sampling.ddim(
        lambda x, t: jnp.where(t[:, None] == 4, -5.0, 0.1 * x),
        schedule,
        x,
        num_steps=2,
        clip=1.0,
        use_clipped_model_output=use_clipped_model_output,
    )
    a = np.asarray(schedule.alpha_bar, np.float64)
    eps = (np.asarray(x) - np.sqrt(a[4])) / np.sqrt(1 - a[4]) if use_clipped_model_output else -5.0
    middle = np.sqrt(a[2]) + np.sqrt(1 - a[2]) * eps
    expected = (middle - np.sqrt(1 - a[2]) * 0.1 * middle) / np.sqrt(a[2])
    if use_clipped_model_output:
        assert np.abs(expected).max() < 1.0, "this test clips in its first step alone"
    np.testing.assert_allclose(samples, np.clip(expected, -1.0, 1.0), rtol=1e-4)


def test_the_large_variance_is_that_of_the_forward_step():
    """Two steps on white noise, whose chain backwards is the chain forwards: N(0, 1) at every timestep."""
    # Catches: the small variance taken, noise in the last step.
    schedule = linear_beta(2, 0.3, 0.5)
    x, key = jax.random.normal(jax.random.key(0), (40_000, 1)), jax.random.key(1)
    noise = exact.GaussianMixture(weights=jnp.ones(1), means=jnp.zeros((1, 1)), variances=jnp.ones((1, 1)))
    eps_fn, betas = exact.mixture_eps(noise, schedule), np.asarray([0.3, 0.5])
    for variance_type, middle in (("fixed_large", 1.0), ("fixed_small", 1.0 - 0.5 + 0.5 * 0.3 / 0.65)):
        end = sampling.ancestral(eps_fn, schedule, x, key, variance_type=variance_type)
        # The last step, without noise, multiplies by sqrt(1 - beta_1).
        np.testing.assert_allclose(np.var(end), (1 - betas[0]) * middle, rtol=0.03)
    with pytest.raises(ValueError, match="variance_type has 'learned'"):
        sampling.ancestral(eps_fn, schedule, x, key, variance_type="learned")


def test_ddim_wants_a_key_for_its_noise():
    with pytest.raises(ValueError, match="needs a key"):
        sampling.ddim(lambda x, t: x, SCHEDULE, jnp.ones((1, 2)), eta=0.5)


def test_a_key_changes_nothing_without_noise():
    schedule, x = linear_beta(10), jnp.ones((2, 2))
    without = sampling.ddim(lambda x, t: 0.3 * x, schedule, x, num_steps=5)
    np.testing.assert_array_equal(
        sampling.ddim(lambda x, t: 0.3 * x, schedule, x, jax.random.key(0), num_steps=5), without
    )
