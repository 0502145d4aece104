"""The exact mixture against dense evaluation, autodiff, quadrature and a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, parameterization
from cdisc.diffusion.schedule import add_noise, linear_beta

SCHEDULE = linear_beta()
T = np.array([1, 2, 50, 200, 400, 700, 999, 1000])
WEIGHTS = np.array([0.2, 0.3, 0.5])
MEANS = np.array([[0.6, -0.4], [-0.7, 0.1], [0.2, 0.9]])
DIAGONAL = np.array([[0.05, 0.10], [0.20, 0.02], [0.03, 0.04]])
ISOTROPIC = np.array([[0.05], [0.20], [0.03]])
KINDS = {"diagonal": DIAGONAL, "isotropic": ISOTROPIC, "points": np.zeros((3, 1)), "flat": DIAGONAL * [0.0, 1.0]}

log_density = jax.jit(exact.log_density)
responsibilities = jax.jit(exact.responsibilities)
posterior_mean = jax.jit(exact.posterior_mean)
posterior_variance = jax.jit(exact.posterior_variance)
sample = jax.jit(exact.sample, static_argnums=2)


@jax.jit
def eps_of(mixture, x, t):
    return exact.mixture_eps(mixture, SCHEDULE)(x, t)


@jax.jit
def score_of(mixture, x, t):
    return jax.grad(lambda x: jnp.sum(exact.log_density(mixture, SCHEDULE, x, t)))(x)


@jax.jit
def jacobian_of(mixture, x, t):
    """`d posterior_mean / d x`, (B, 2, 2)."""

    def mean_of_one(point, step):
        return exact.posterior_mean(mixture, SCHEDULE, point[None], step[None])[0]

    return jax.vmap(jax.jacfwd(mean_of_one))(x, t)


def _mixture(variances):
    return exact.GaussianMixture(*(jnp.asarray(v, jnp.float32) for v in (WEIGHTS, MEANS, variances)))


def _noisy_points(mixture, seed=0):
    """One sample of `p_t` for each t of `T`."""
    clean_key, noise_key = jax.random.split(jax.random.key(seed))
    clean = sample(mixture, clean_key, len(T))
    return add_noise(SCHEDULE, clean, jax.random.normal(noise_key, clean.shape), jnp.asarray(T))


def _dense_joint(variances, x, t):
    """`log w_c + log N(x; ...)`, (B, C), in float64 with full covariance matrices."""
    out = np.empty((len(x), len(WEIGHTS)))
    for b, (point, step) in enumerate(zip(np.asarray(x, np.float64), t, strict=True)):
        a = float(SCHEDULE.alpha_bar[step])
        for c in range(len(WEIGHTS)):
            covariance = a * np.diag(np.broadcast_to(variances[c], (2,))) + (1 - a) * np.eye(2)
            gap = point - np.sqrt(a) * MEANS[c]
            logdet = np.linalg.slogdet(2 * np.pi * covariance)[1]
            out[b, c] = np.log(WEIGHTS[c]) - 0.5 * (gap @ np.linalg.solve(covariance, gap) + logdet)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_log_density_and_responsibilities_equal_a_dense_evaluation(kind):
    mixture = _mixture(KINDS[kind])
    x = _noisy_points(mixture)
    joint = _dense_joint(KINDS[kind], x, T)
    top = joint.max(axis=1, keepdims=True)
    expected = top[:, 0] + np.log(np.exp(joint - top).sum(axis=1))
    # The matrix product's distances are good to 1e-7, which 2 (1 - a) = 2e-4 divides at t = 1.
    np.testing.assert_allclose(log_density(mixture, SCHEDULE, x, T), expected, rtol=1e-5, atol=5e-3)
    late = T >= 50
    np.testing.assert_allclose(log_density(mixture, SCHEDULE, x, T)[late], expected[late], rtol=1e-5, atol=1e-5)
    gamma = responsibilities(mixture, SCHEDULE, x, T)
    np.testing.assert_allclose(gamma, np.exp(joint - expected[:, None]), atol=1e-3)


def test_log_density_at_t_0_is_the_clean_density_and_integrates_to_one():
    mixture = _mixture(DIAGONAL)
    axis = np.linspace(-4, 4, 400)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), jnp.float32)
    cell = (axis[1] - axis[0]) ** 2
    for t in (0, 300):
        density = jnp.exp(log_density(mixture, SCHEDULE, grid, jnp.full(len(grid), t)))
        np.testing.assert_allclose(jnp.sum(density) * cell, 1.0, atol=1e-3)
    at_mean = log_density(exact.component(mixture, 2), SCHEDULE, mixture.means[2:], jnp.array([0]))
    np.testing.assert_allclose(at_mean, -np.log(2 * np.pi * np.sqrt(0.03 * 0.04)), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_eps_is_the_scaled_gradient_of_the_log_density(kind):
    mixture = _mixture(KINDS[kind])
    x = _noisy_points(mixture)
    score = score_of(mixture, x, T)
    eps = eps_of(mixture, x, jnp.asarray(T))
    np.testing.assert_allclose(eps, parameterization.eps_from_score(SCHEDULE, score, jnp.asarray(T)), atol=2e-3)
    assert np.isfinite(eps).all()
    assert np.abs(eps).max() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_mean_is_tweedies(kind):
    mixture = _mixture(KINDS[kind])
    x, t = _noisy_points(mixture), jnp.asarray(T)
    eps = eps_of(mixture, x, t)
    expected = parameterization.x0_from_eps(SCHEDULE, x, eps, t)
    np.testing.assert_allclose(posterior_mean(mixture, SCHEDULE, x, t), expected, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_variance_is_second_order_tweedie(kind):
    mixture = _mixture(KINDS[kind])
    x, t = _noisy_points(mixture), jnp.asarray(T)
    a = np.asarray(SCHEDULE.alpha_bar)[T]

    jacobian = jacobian_of(mixture, x, t)
    expected = ((1 - a) / np.sqrt(a))[:, None] * np.einsum("bdd->bd", jacobian)
    actual = posterior_variance(mixture, SCHEDULE, x, t)
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-6)
    assert (actual >= 0).all()


def test_posterior_moments_equal_quadrature_in_one_dimension():
    mixture = exact.GaussianMixture(
        weights=jnp.array([0.4, 0.6]), means=jnp.array([[-0.8], [0.7]]), variances=jnp.array([[0.1], [0.02]])
    )
    axis = np.linspace(-3, 3, 20_001)
    prior = sum(w * np.exp(-0.5 * (axis - m) ** 2 / v) / np.sqrt(v) for w, m, v in ((0.4, -0.8, 0.1), (0.6, 0.7, 0.02)))
    t = np.array([1, 50, 300, 600, 1000])
    x = np.array([0.5, 0.1, 0.0, -0.3, 1.0])
    mean = posterior_mean(mixture, SCHEDULE, jnp.asarray(x[:, None], jnp.float32), t)[:, 0]
    variance = posterior_variance(mixture, SCHEDULE, jnp.asarray(x[:, None], jnp.float32), t)[:, 0]
    for b in range(len(t)):
        a = float(SCHEDULE.alpha_bar[t[b]])
        posterior = prior * np.exp(-0.5 * (x[b] - np.sqrt(a) * axis) ** 2 / (1 - a))
        posterior /= posterior.sum()
        expected_mean = posterior @ axis
        np.testing.assert_allclose(mean[b], expected_mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(variance[b], posterior @ (axis - expected_mean) ** 2, rtol=1e-3)


def test_isotropic_shape_gives_the_numbers_of_the_full_shape():
    images = jax.random.uniform(jax.random.key(0), (40, 6, 6, 3), minval=-1.0)
    blurred = exact.empirical(images, bandwidth=0.2)
    assert blurred.variances.shape == (40, 1, 1, 1)
    full = blurred.replace(variances=jnp.broadcast_to(blurred.variances, images.shape))
    t = jnp.array([50, 200, 400, 1000])
    x = add_noise(SCHEDULE, images[:4], jax.random.normal(jax.random.key(1), (4, 6, 6, 3)), t)
    for function in (log_density, posterior_mean, posterior_variance):
        actual, expected = function(blurred, SCHEDULE, x, t), function(full, SCHEDULE, x, t)
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)
    eps = eps_of(blurred, x, t)
    assert eps.shape == x.shape
    np.testing.assert_allclose(eps, eps_of(full, x, t), atol=1e-4)


def test_empirical_is_the_limit_of_tiny_bandwidths():
    images = jax.random.uniform(jax.random.key(0), (20, 4, 4, 1), minval=-1.0)
    t = jnp.array([1, 100, 400, 1000])
    x = add_noise(SCHEDULE, images[:4], jax.random.normal(jax.random.key(1), (4, 4, 4, 1)), t)
    points = exact.empirical(images)
    assert float(points.variances.max()) == 0.0
    tiny = exact.empirical(images, bandwidth=1e-4)
    eps = eps_of(points, x, t)
    np.testing.assert_allclose(eps, eps_of(tiny, x, t), atol=2e-3)
    np.testing.assert_allclose(posterior_mean(points, SCHEDULE, x, t)[0], images[0], atol=1e-5)
    assert float(posterior_variance(points, SCHEDULE, x, t)[0].max()) < 1e-6
    np.testing.assert_allclose(posterior_mean(points, SCHEDULE, x, t)[3], images.mean(0), atol=0.05)


def test_eps_far_from_everything_and_on_top_of_a_point_is_finite():
    points = exact.empirical(jnp.asarray(MEANS, jnp.float32))
    t = jnp.array([1, 1, 1000, 1000])
    x = jnp.array([MEANS[0], [80.0, -80.0], MEANS[0], [80.0, -80.0]], jnp.float32)
    eps = eps_of(points, x, t)
    root = np.sqrt(1 - np.asarray(SCHEDULE.alpha_bar)[[1, 1000]])
    assert np.isfinite(eps).all()
    np.testing.assert_allclose(eps[1], (x[1] - MEANS[0]) / root[0], rtol=1e-3)
    np.testing.assert_allclose(eps[3], x[3] / root[1], rtol=1e-3)
    for function in (posterior_mean, posterior_variance, log_density):
        assert np.isfinite(function(points, SCHEDULE, x, t)).all()


def test_sample_has_the_moments_of_the_mixture():
    mixture = _mixture(DIAGONAL)
    n = 200_000
    samples = np.asarray(sample(mixture, jax.random.key(0), n))
    mean = WEIGHTS @ MEANS
    spread = MEANS - mean
    covariance = np.diag(WEIGHTS @ DIAGONAL) + np.einsum("c,ci,cj->ij", WEIGHTS, spread, spread)
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * np.sqrt(covariance.max() / n))
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.006)
    np.testing.assert_array_equal(samples[:8], sample(mixture, jax.random.key(0), n)[:8])
    assert sample(exact.empirical(jnp.ones((3, 4, 4, 2))), jax.random.key(0), 5).shape == (5, 4, 4, 2)


def test_restrict_conditions_on_components():
    mixture = _mixture(DIAGONAL)
    x, t = _noisy_points(mixture), jnp.asarray(T)
    by_index = exact.restrict(mixture, jnp.array([2, 0]))
    np.testing.assert_allclose(by_index.weights, [0.5 / 0.7, 0.2 / 0.7], rtol=1e-6)
    np.testing.assert_array_equal(by_index.means, mixture.means[jnp.array([2, 0])])
    by_mask = exact.restrict(mixture, jnp.array([True, False, True]))
    np.testing.assert_allclose(by_mask.weights, [0.2 / 0.7, 0.0, 0.5 / 0.7], rtol=1e-6)
    # Bayes: p(x) = sum over the parts of P(part) p(x | part).
    parts = [log_density(part, SCHEDULE, x, t) for part in (by_index, exact.component(mixture, 1))]
    whole = np.logaddexp(np.log(0.7) + parts[0], np.log(0.3) + parts[1])
    np.testing.assert_allclose(log_density(mixture, SCHEDULE, x, t), whole, rtol=1e-5, atol=1e-5)
    eps_by_mask, eps_by_index = (eps_of(m, x, t) for m in (by_mask, by_index))
    np.testing.assert_allclose(eps_by_mask, eps_by_index, atol=1e-5)
    assert np.isfinite(score_of(by_mask, x, t)).all()


def test_eps_of_a_component_is_the_paper_s_gaussian_eps():
    """Eq. 12 of arXiv 2605.07078, written out for one Gaussian."""
    mixture = _mixture(DIAGONAL)
    assert mixture.shape == (2,)
    x, a = np.asarray(_noisy_points(mixture), np.float64), np.asarray(SCHEDULE.alpha_bar, np.float64)[T][:, None]
    expected = np.sqrt(1 - a) * (x - np.sqrt(a) * MEANS[1]) / (a * DIAGONAL[1] + 1 - a)
    alone = exact.component(mixture, 1)
    np.testing.assert_allclose(eps_of(alone, jnp.asarray(x, jnp.float32), T), expected, rtol=1e-3)


def _grid_maxima(mixture, t, half_width=2.0, n=401):
    """The points of a dense grid that are higher than all eight neighbours, in float64."""
    axis = np.linspace(-half_width, half_width, n)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    a = float(SCHEDULE.alpha_bar[t])
    density = np.zeros((n, n))
    for weight, mean, variance in zip(
        *(np.asarray(v, np.float64) for v in (mixture.weights, mixture.means, mixture.variances)), strict=True
    ):
        spread = a * variance + 1 - a
        squares = np.sum((grid - np.sqrt(a) * mean) ** 2 / spread, axis=-1)
        density += weight * np.exp(-0.5 * squares) / np.sqrt(np.prod(spread))
    inner = density[1:-1, 1:-1]
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    peaks = np.all([inner > density[1 + i : n - 1 + i, 1 + j : n - 1 + j] for i, j in shifts], axis=0)
    return grid[1:-1, 1:-1][peaks], axis[1] - axis[0]


@pytest.mark.parametrize(("t", "count"), [(10, 4), (150, 3), (400, 1)])
def test_modes_are_the_maxima_of_a_dense_grid(t, count):
    mixture = exact.GaussianMixture(
        weights=jnp.array([0.2, 0.3, 0.3, 0.2]),
        means=jnp.array([[-0.9, -0.6], [0.8, -0.7], [0.5, 0.9], [-0.6, -0.2]]),
        variances=jnp.array([[0.02, 0.01], [0.05, 0.02], [0.01, 0.06], [0.01, 0.01]]),
    )
    found = exact.modes(mixture, SCHEDULE, t)
    peaks, spacing = _grid_maxima(mixture, t)
    assert found.shape == (count, 2)
    assert len(peaks) == count
    gaps = np.linalg.norm(found[:, None] - peaks[None], axis=-1)
    assert (gaps.min(axis=0) < spacing).all()
    assert (gaps.min(axis=1) < spacing).all()
    heights = log_density(mixture, SCHEDULE, jnp.asarray(found), jnp.full(count, t))
    assert (np.diff(heights) <= 0).all()
    eps = eps_of(mixture, jnp.asarray(found), jnp.full(count, t))
    np.testing.assert_allclose(eps, 0.0, atol=1e-4)


def test_modes_leave_a_saddle_that_symmetry_holds_a_mean_on():
    # The middle component's mean has zero score, but the pair above and below it is far heavier.
    mixture = exact.GaussianMixture(
        weights=jnp.array([0.49, 0.02, 0.49]),
        means=jnp.array([[0.0, -0.6], [0.0, 0.0], [0.0, 0.6]]),
        variances=jnp.full((3, 2), 0.04),
    )
    t = 100
    centre = jnp.zeros((1, 2))
    np.testing.assert_allclose(eps_of(mixture, centre, jnp.array([t])), 0.0, atol=1e-6)
    found = exact.modes(mixture, SCHEDULE, t)
    peaks, spacing = _grid_maxima(mixture, t)
    assert len(found) == len(peaks) == 2
    np.testing.assert_allclose(np.sort(found[:, 1]), np.sort(peaks[:, 1]), atol=spacing)


def test_modes_of_points_and_of_absent_components():
    points = exact.empirical(jnp.asarray(MEANS, jnp.float32))
    a = float(SCHEDULE.alpha_bar[20])
    found = exact.modes(points, SCHEDULE, 20)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sqrt(a) * np.sort(MEANS, axis=0), atol=1e-5)
    assert len(exact.modes(exact.restrict(points, jnp.array([True, False, True])), SCHEDULE, 20)) == 2
    assert exact.modes(exact.empirical(jnp.ones((2, 3, 3, 1))), SCHEDULE, 1).shape == (1, 3, 3, 1)
    with pytest.raises(ValueError, match="t >= 1"):
        exact.modes(points, SCHEDULE, 0)
    with pytest.raises(ValueError, match="still move"):
        exact.modes(_mixture(DIAGONAL), SCHEDULE, 200, max_steps=2)


def test_eps_does_not_depend_on_the_rest_of_the_batch():
    mixture = _mixture(DIAGONAL)
    x, t = _noisy_points(mixture), jnp.asarray(T)
    eps_fn = jax.jit(exact.mixture_eps(mixture, SCHEDULE))
    np.testing.assert_allclose(eps_fn(x, t)[3:4], eps_fn(x[3:4], t[3:4]), rtol=1e-6, atol=1e-7)


def test_posterior_variance_in_chunks_equals_one_chunk(monkeypatch):
    mixture = _mixture(DIAGONAL)
    x, t = _noisy_points(mixture), jnp.asarray(T)
    whole = posterior_variance(mixture, SCHEDULE, x, t)
    monkeypatch.setattr(exact, "_VARIANCE_ELEMENTS", 3 * mixture.means.size)
    np.testing.assert_allclose(exact.posterior_variance(mixture, SCHEDULE, x, t), whole, rtol=1e-6)
