"""The Jacobian diagonal and the variances against analytic scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.discovery import covariance, modes

SCHEDULE = schedule.linear_beta()
SHAPE = (8, 8, 3)


def picture_covariance() -> np.ndarray:
    """Entries that are alike between neighbours and between channels, as in natural pictures: (192, 192)."""
    y, x, c = (axis.reshape(-1) for axis in np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    distance = np.hypot(y[:, None] - y[None], x[:, None] - x[None])
    return 0.25 * np.exp(-distance / 3.0) * np.where(c[:, None] == c[None], 1.0, 0.8)


def gaussian_prior(dense: np.ndarray, t: int):
    """The exact eps of `N(0, covariance)` at one timestep, and its `U = sqrt(a) d x0hat / dx` (d, d)."""
    a = float(SCHEDULE.alpha_bar[t])
    identity = np.eye(len(dense))
    inverse = np.linalg.inv(a * dense + (1 - a) * identity)
    matrix = jnp.asarray(np.sqrt(1 - a) * inverse, jnp.float32)

    def eps_fn(x, t):
        del t
        return jnp.matmul(x.reshape(x.shape[0], -1), matrix, precision="highest").reshape(x.shape)

    return eps_fn, identity - (1 - a) * inverse


def estimates(t: int, rows: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """`rows` independent estimates (rows, d) of one diagonal, and U."""
    eps_fn, jacobian = gaussian_prior(picture_covariance(), t)
    x = jnp.zeros((rows, *SHAPE))
    u = covariance.jacobian_diagonal(eps_fn, SCHEDULE, x, jnp.full(rows, t), jax.random.key(0), **options)
    assert u.shape == x.shape
    return np.asarray(u).reshape(rows, -1), jacobian


def small_mixture() -> exact.GaussianMixture:
    key = jax.random.key(5)
    return exact.GaussianMixture(
        weights=jnp.array([0.5, 0.3, 0.2]),
        means=jax.random.uniform(key, (3, 2, 2, 3), minval=-1.0, maxval=1.0),
        variances=jax.random.uniform(jax.random.fold_in(key, 1), (3, 2, 2, 3), minval=0.02, maxval=0.2),
    )


def test_exact_diagonal_is_second_order_tweedie():
    mixture = small_mixture()
    t = jnp.array([20, 100, 250, 400])
    x = jax.random.normal(jax.random.key(0), (4, 2, 2, 3)) * 0.7
    u = covariance.exact_diagonal(exact.mixture_eps(mixture, SCHEDULE), SCHEDULE, x, t)
    a = SCHEDULE.alpha_bar[t][:, None, None, None]
    expected = exact.posterior_variance(mixture, SCHEDULE, x, t) * a / (1 - a)
    np.testing.assert_allclose(u, expected, atol=2e-5, rtol=1e-4)


def test_hutchinson_has_the_mean_and_the_variance_of_the_theory():
    rows, probes = 1500, 4
    u, jacobian = estimates(300, rows, probes=probes, estimator="hutchinson")
    predicted = (np.square(jacobian).sum(1) - np.square(np.diag(jacobian))) / probes
    standard_error = np.sqrt(predicted / rows)
    assert np.abs((u.mean(0) - np.diag(jacobian)) / standard_error).max() < 5
    np.testing.assert_allclose(u.var(0), predicted, rtol=0.25)
    np.testing.assert_allclose(u.var(0).mean(), predicted.mean(), rtol=0.03)
    # The trace sees every pair twice.
    np.testing.assert_allclose(u.sum(1).var(), 2 * predicted.sum(), rtol=0.15)


def test_the_lattice_is_unbiased_with_the_variance_of_its_colours():
    rows, probes = 1500, 16
    u, jacobian = estimates(300, rows, probes=probes, estimator="lattice")
    colours = covariance.lattice_colours(SHAPE, probes).reshape(-1)
    same = colours[:, None] == colours[None]
    predicted = np.where(same, np.square(jacobian), 0.0).sum(1) - np.square(np.diag(jacobian))
    assert np.abs((u.mean(0) - np.diag(jacobian)) / np.sqrt(predicted / rows)).max() < 5
    np.testing.assert_allclose(u.var(0).mean(), predicted.mean(), rtol=0.05)


@pytest.mark.parametrize(("t", "probes"), [(50, 4), (200, 16), (400, 32)])
def test_the_lattice_beats_hutchinson_at_equal_probes_on_pictures(t, probes):
    errors = {}
    for estimator in covariance.ESTIMATORS:
        u, jacobian = estimates(t, 64, probes=probes, estimator=estimator)
        errors[estimator] = np.sqrt(np.mean(np.square(u - np.diag(jacobian)))) / np.diag(jacobian).mean()
    assert errors["lattice"] < 0.6 * errors["hutchinson"], errors


def test_the_lattice_is_exact_with_a_probe_for_each_entry():
    mixture = small_mixture()
    eps_fn = exact.mixture_eps(mixture, SCHEDULE)
    t = jnp.array([100, 300])
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 3)) * 0.7
    u = covariance.jacobian_diagonal(eps_fn, SCHEDULE, x, t, jax.random.key(1), probes=40, estimator="lattice")
    np.testing.assert_allclose(u, covariance.exact_diagonal(eps_fn, SCHEDULE, x, t), atol=1e-6)
    assert covariance.products_of("lattice", 40, 12) == 12
    assert covariance.products_of("hutchinson", 40, 12) == 40


@pytest.mark.parametrize("estimator", covariance.ESTIMATORS)
def test_an_estimate_does_not_depend_on_the_other_rows(estimator):
    eps_fn = exact.mixture_eps(small_mixture(), SCHEDULE)
    x = jax.random.normal(jax.random.key(0), (5, 2, 2, 3)) * 0.5
    t = jnp.array([50, 100, 200, 300, 400])

    def u(x, t):
        return covariance.jacobian_diagonal(eps_fn, SCHEDULE, x, t, jax.random.key(3), probes=4, estimator=estimator)

    np.testing.assert_allclose(u(x[:2], t[:2]), u(x, t)[:2], atol=1e-6)
    same = u(jnp.stack([x[0]] * 3), jnp.full(3, 200))
    assert float(jnp.abs(same[0] - same[1]).max()) > 1e-3  # yet every row has probes of its own


def test_jacobian_diagonal_refuses_other_estimators():
    with pytest.raises(ValueError, match="estimator has"):
        covariance.jacobian_diagonal(
            lambda x, t: x, SCHEDULE, jnp.zeros((1, 2)), jnp.ones(1, int), jax.random.key(0), probes=1, estimator="x"
        )


@pytest.mark.parametrize("probes", [4, 8, 16, 32])
def test_lattice_colours_keep_the_neighbours_of_a_pixel_apart(probes):
    colours = covariance.lattice_colours((12, 12, 3), probes)
    assert set(np.unique(colours)) == set(range(probes))
    counts = np.bincount(colours.reshape(-1))
    assert counts.max() - counts.min() <= 4
    y, x, c = (axis.reshape(-1) for axis in np.meshgrid(*(np.arange(n) for n in (12, 12, 3)), indexing="ij"))
    flat = colours.reshape(-1)
    squared = (y[:, None] - y[None]) ** 2 + (x[:, None] - x[None]) ** 2
    shared = (flat[:, None] == flat[None]) & ~np.eye(len(flat), dtype=bool)
    # Within a channel, and between any two entries.
    assert squared[shared & (c[:, None] == c[None])].min() >= {4: 4, 8: 8, 16: 10, 32: 32}[probes]
    assert squared[shared].min() >= {4: 1, 8: 2, 16: 4, 32: 9}[probes]


def test_lattice_colours_of_other_shapes_go_in_turn():
    assert covariance.lattice_colours((5,), 3).tolist() == [0, 1, 2, 0, 1]
    assert len(np.unique(covariance.lattice_colours((2, 2, 3), 12))) == 12


@pytest.mark.parametrize(("t", "laplace", "posterior"), [(50, 0.080, 0.019), (400, 4.17, 0.049)])
def test_the_three_covariances_of_a_gaussian_component(t, laplace, posterior):
    true = 0.05
    component = exact.GaussianMixture(jnp.ones(1), jnp.full((1, 3), 0.3), jnp.full((1, 3), true))
    ts = jnp.full(2, t)
    x = jnp.sqrt(SCHEDULE.alpha_bar[t]) * jnp.full((2, 3), 0.3)
    u = covariance.exact_diagonal(exact.mixture_eps(component, SCHEDULE), SCHEDULE, x, ts)
    s2 = {
        kind: covariance.variance(SCHEDULE, u, ts, kind=kind, delta=1e-4, floor=1e-6)[0]
        for kind in covariance.COVARIANCES
    }
    a = float(SCHEDULE.alpha_bar[t])
    np.testing.assert_allclose(s2["deconvolved"], true, rtol=2e-3)
    np.testing.assert_allclose(s2["posterior"], exact.posterior_variance(component, SCHEDULE, x, ts), rtol=2e-3)
    np.testing.assert_allclose(s2["laplace"], (a * true + 1 - a) / a, rtol=1e-3)
    # The figures of the specification, to the digits it gives.
    assert float(s2["laplace"][0, 0]) == pytest.approx(laplace, rel=0.01)
    assert float(s2["posterior"][0, 0]) == pytest.approx(posterior, abs=6e-4)


@pytest.mark.parametrize("kind", covariance.COVARIANCES)
def test_noisy_diagonals_give_positive_variances_and_say_which_are_bounds(kind):
    u = jnp.array([[-3.0, 0.0, 0.5, 1.0, 7.0]])
    t = jnp.array([200])
    s2, clipped = covariance.variance(SCHEDULE, u, t, kind=kind, delta=0.01, floor=1e-3)
    a = float(SCHEDULE.alpha_bar[200])
    assert float(s2.min()) >= 1e-3
    assert np.all(np.diff(np.asarray(s2)[0]) >= 0)
    np.testing.assert_array_equal(clipped.below, s2 == 1e-3)
    if kind == "posterior":  # wider than the noise, as around a saddle: no pole, so no bound
        assert not clipped.above.any()
        np.testing.assert_allclose(s2[0, 2:], (1 - a) / a * u[0, 2:], rtol=1e-5)
    else:
        assert clipped.above.tolist() == [[False, False, False, True, True]]
        largest, _ = covariance.variance(SCHEDULE, jnp.array([[0.99]]), t, kind=kind, delta=0.01, floor=1e-3)
        np.testing.assert_allclose(s2[0, 3:], largest[0, 0], rtol=1e-5)
    everywhere, clipped = covariance.variance(SCHEDULE, u, t, kind=kind, delta=0.01, floor=50.0)
    assert float(everywhere.min()) == 50.0
    assert clipped.below.tolist()[0][:3] == [True] * 3
    with pytest.raises(ValueError, match="covariance has"):
        covariance.variance(SCHEDULE, u, t, kind="full", delta=0.01, floor=1e-3)


@pytest.mark.parametrize("kind", ["posterior", "deconvolved"])
def test_the_smallest_variance_is_the_same_at_every_noise_level(kind):
    # Catches: a lower bound of `u`, which is a bound of `r u`, 130 times as high at t = 400 as at 50.
    t = jnp.array([50, 200, 400])
    s2, clipped = covariance.variance(SCHEDULE, jnp.full((3, 2), 1e-9), t, kind=kind, delta=1e-3, floor=1e-4)
    np.testing.assert_array_equal(s2, jnp.float32(1e-4))
    assert clipped.below.all()


def test_one_linearisation_gives_a_pool_its_curvatures_and_posteriors_and_padding_is_harmless():
    mixture = small_mixture()
    eps_fn = exact.mixture_eps(mixture, SCHEDULE)
    t = jnp.array([50, 100, 300, 50, 50])
    mask = jnp.array([True, True, True, False, False])
    # Near a component, where every u is below 1; farther out a posterior can be wider than the clip allows.
    m = jnp.where(mask[:, None, None, None], mixture.means[jnp.array([0, 1, 2, 0, 0])] + 0.05, 0.0)
    x = m * jnp.sqrt(schedule.alpha_bar_at(SCHEDULE, t, m))
    pool = modes.ModePool(x, m, t, jnp.ones(5, jnp.int32), jnp.zeros(5), jnp.zeros(5), mask)
    options = {"curvature_iterations": 100, "probes": 12, "estimator": "lattice", "lanes": 2}
    linearise = jax.jit(lambda pool, key: covariance.linearise(eps_fn, SCHEDULE, pool, key, **options))
    measured, u, nfe = linearise(pool, jax.random.key(0))
    jacobian = jax.jacfwd(lambda x, t: exact.posterior_mean(mixture, SCHEDULE, x[None], t[None])[0])
    jacobians = jax.jit(jax.vmap(jacobian))(x, t)
    hessians = jnp.sqrt(SCHEDULE.alpha_bar[t])[:, None, None] * jacobians.reshape(5, 12, 12) - jnp.eye(12)[None]
    np.testing.assert_allclose(measured.curvature[:3], jnp.linalg.eigvalsh(hessians)[:3, -1], atol=2e-4)
    assert np.isinf(measured.curvature[3:]).all()
    variance, _ = covariance.variance(SCHEDULE, u, t, kind="posterior", delta=1e-4, floor=1e-6)
    expected = exact.posterior_variance(mixture, SCHEDULE, x[:3], t[:3])
    np.testing.assert_allclose(variance[:3], expected, rtol=2e-3, atol=1e-5)
    assert bool(jnp.all(jnp.isfinite(variance) & (variance > 0)))
    assert int(nfe) == 4 * (1 + 12 + 12)  # never more products than entries
