"""Chains against the exact modes of mixtures; the pool against small cases worked by hand."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.discovery import covariance, curvature, modes

SCHEDULE = schedule.linear_beta()
merge_with_info = jax.jit(modes.merge, static_argnames="capacity")


def merge(*args, **options) -> modes.ModePool:
    return merge_with_info(*args, **options)[0]


def planar() -> exact.GaussianMixture:
    """Five components in the plane, two of which fuse into one mode as the noise grows."""
    return exact.GaussianMixture(
        weights=jnp.array([0.3, 0.2, 0.2, 0.2, 0.1]),
        means=jnp.array([[-0.8, -0.8], [0.8, -0.7], [-0.7, 0.8], [0.7, 0.8], [0.7, 0.2]]),
        variances=jnp.array([[0.01, 0.02], [0.02, 0.01], [0.01, 0.01], [0.01, 0.02], [0.01, 0.01]]),
    )


def random_mixture(shape: tuple[int, ...], components: int = 4) -> exact.GaussianMixture:
    means_key, variances_key = jax.random.split(jax.random.key(5))
    return exact.GaussianMixture(
        weights=jnp.full(components, 1.0 / components),
        means=jax.random.uniform(means_key, (components, *shape), minval=-1.0, maxval=1.0),
        variances=jax.random.uniform(variances_key, (components, *shape), minval=0.02, maxval=0.2),
    )


def chains_of(x, residual) -> modes.Chains:
    return modes.Chains(x=jnp.asarray(x, jnp.float32), residual=jnp.asarray(residual, jnp.float32))


def pool_at(x: jax.Array, t: jax.Array, mask: jax.Array | None = None) -> modes.ModePool:
    n = x.shape[0]
    return modes.ModePool(
        x=x,
        m=x / jnp.sqrt(schedule.alpha_bar_at(SCHEDULE, t, x)),
        t=t,
        basin=jnp.ones(n, jnp.int32),
        residual=jnp.zeros(n),
        curvature=jnp.full(n, jnp.inf),
        mask=jnp.ones(n, bool) if mask is None else mask,
    )


def curvatures(mixture: exact.GaussianMixture, x: jax.Array, t: jax.Array) -> np.ndarray:
    """The largest Hessian eigenvalue of the exact log density, times `1 - abar_t`, by automatic differentiation."""

    def at(x, t):
        return exact.log_density(mixture, SCHEDULE, x.reshape(1, *mixture.shape), t[None])[0]

    hessians = jax.jit(jax.vmap(jax.hessian(at)))(x.reshape(x.shape[0], -1), t)
    return np.linalg.eigvalsh(np.asarray(hessians))[:, -1] * (1.0 - np.asarray(SCHEDULE.alpha_bar[t]))


def test_starts_have_the_moments_of_their_mode():
    query = jnp.array([0.5, -1.0, 2.0])
    t = jnp.array([50, 400])
    a = np.asarray(SCHEDULE.alpha_bar[t])
    for mode, centred in (("query", 4000), ("hybrid", 2000), ("random", 0)):
        x, ts = modes.starts(SCHEDULE, jax.random.key(0), query, t, 4000, mode)
        assert ts.tolist() == [50] * 4000 + [400] * 4000
        x = np.asarray(x).reshape(2, 4000, 3)
        for i in range(2):
            near, far = x[i, :centred], x[i, centred:]
            if len(near):
                np.testing.assert_allclose(near.mean(0), np.sqrt(a[i]) * np.asarray(query), atol=0.08)
                np.testing.assert_allclose(near.std(0), np.sqrt(1 - a[i]), rtol=0.06)
            if len(far):
                np.testing.assert_allclose(far.mean(0), 0.0, atol=0.08)
                np.testing.assert_allclose(far.std(0), 1.0, rtol=0.06)


def test_starts_round_the_hybrid_half_up_and_refuse_other_modes():
    x, _ = modes.starts(SCHEDULE, jax.random.key(0), jnp.full(2, 1e4), jnp.array([50, 60]), 3, "hybrid")
    assert (np.abs(np.asarray(x)).max(1) > 1e3).tolist() == [True, True, False] * 2
    # Of 3 parts of 2, three starts are from the query: both of the first part, one of the second.
    for part, centred in enumerate(([True, True], [True, False], [False, False])):
        x, _ = modes.starts(SCHEDULE, jax.random.key(0), jnp.full(2, 1e4), jnp.array([50]), 2, "hybrid", part, 3)
        assert (np.abs(np.asarray(x)).max(1) > 1e3).tolist() == centred
    with pytest.raises(ValueError, match="start_mode has"):
        modes.starts(SCHEDULE, jax.random.key(0), jnp.zeros(2), jnp.array([50]), 2, "centred")


@pytest.mark.parametrize("name", ["mean_shift", "adam"])
def test_every_kernel_finds_exactly_the_modes(name):
    mixture = planar()
    kernel, max_steps = {
        "mean_shift": (modes.mean_shift(SCHEDULE), 1000),
        "adam": (modes.adam(SCHEDULE, 0.02), 4000),
    }[name]
    t = jnp.array([40, 150])
    x, ts = modes.starts(SCHEDULE, jax.random.key(1), jnp.zeros(2), t, 40, "random")
    eps_fn = exact.mixture_eps(mixture, SCHEDULE)
    chains, _ = modes.ascend(eps_fn, x, ts, kernel=kernel, max_steps=max_steps, tolerance=3e-5, lanes=16)
    assert float(jnp.max(chains.residual)) < 3e-5
    pool = merge(chains, SCHEDULE, ts, 0.02, 16)
    assert int(pool.basin.sum()) == 80
    for time in (40, 150):
        expected = exact.modes(mixture, SCHEDULE, time)
        found = np.asarray(pool.x)[np.asarray(pool.mask & (pool.t == time))]
        assert found.shape == expected.shape, (time, found, expected)
        distances = np.linalg.norm(found[:, None] - expected[None], axis=-1)
        assert distances.min(0).max() < 2e-3, (found, expected)
    # Fusing is what makes this a test of the noised density and not of the component means.
    assert [len(exact.modes(mixture, SCHEDULE, time)) for time in (40, 150)] == [5, 4]


def test_mean_shift_is_gradient_ascent_with_step_one_minus_abar():
    mixture = random_mixture((6,))
    kernel = modes.mean_shift(SCHEDULE)
    x = jax.random.normal(jax.random.key(0), (8, 6))
    t = jnp.array([1, 50, 100, 200, 300, 400, 700, 1000])

    def total(x):
        return jnp.sum(exact.log_density(mixture, SCHEDULE, x, t))

    eps = jax.jit(exact.mixture_eps(mixture, SCHEDULE))(x, t)
    moved, state = kernel.step(eps, x, t, kernel.init(x))
    assert state == ()
    expected = x + (1.0 - SCHEDULE.alpha_bar[t])[:, None] * jax.jit(jax.grad(total))(x)
    np.testing.assert_allclose(moved, expected, atol=3e-5)


def test_mean_shift_never_lowers_the_density():
    mixture = random_mixture((3, 3, 2))
    kernel = modes.mean_shift(SCHEDULE)
    eps_fn = exact.mixture_eps(mixture, SCHEDULE)
    x, t = modes.starts(SCHEDULE, jax.random.key(3), mixture.means[0], jnp.array([20, 80, 200, 400]), 8, "hybrid")

    def move(x, _):
        return kernel.step(eps_fn(x, t), x, t, ())[0], exact.log_density(mixture, SCHEDULE, x, t)

    _, densities = jax.lax.scan(move, x, None, length=30)
    rises = np.diff(np.asarray(densities), axis=0)
    assert rises.min() > -1e-4
    assert rises[0].min() > 1e-3


def test_adam_moves_uphill_by_its_learning_rate_and_keeps_moments_for_each_chain():
    kernel = modes.adam(SCHEDULE, 0.1)
    x = jnp.zeros((2, 3))
    t = jnp.array([100, 100])
    eps = jnp.array([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]])
    moved, state = kernel.step(eps, x, t, kernel.init(x))
    # Adam's first step has size `learning_rate`; uphill is against eps.
    np.testing.assert_allclose(moved, -0.1 * jnp.sign(eps), rtol=1e-4)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))


def steps(kernel, eps_fn, x, t, count):
    """The points that chains visit: (count + 1, N, *shape)."""

    def move(carry, _):
        x, state = carry
        x, state = kernel.step(eps_fn(x, t), x, t, state)
        return (x, state), x

    _, visited = jax.lax.scan(move, (x, kernel.init(x)), length=count)
    return jnp.concatenate([x[None], visited])


def test_short_steps_are_mean_shifts_where_the_score_is_a_density_s():
    # Catches: a step shortened by rounding, a memory that moves the chain.
    mixture = random_mixture((3, 3, 2))
    eps_fn = exact.mixture_eps(mixture, SCHEDULE)
    x, t = modes.starts(SCHEDULE, jax.random.key(3), mixture.means[0], jnp.array([20, 80, 200, 400]), 4, "hybrid")
    one, two = (steps(kernel(SCHEDULE), eps_fn, x, t, 8) for kernel in (modes.mean_shift, modes.barzilai_borwein))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_short_steps_arrive_where_a_score_bends_too_much_for_mean_shift():
    """A linear score with curvatures -2.3, -1 and -0.2: mean shift multiplies the first coordinate by -1.3."""
    t = jnp.array([200])
    root = jnp.sqrt(1.0 - SCHEDULE.alpha_bar[200])
    bends = jnp.array([[2.3, 1.0, 0.2]])
    x = jnp.array([[0.5, -1.0, 2.0]])
    ends = [
        np.abs(steps(kernel(SCHEDULE), lambda x, t: bends * x / root, x, t, 60)[-1, 0])
        for kernel in (modes.mean_shift, modes.barzilai_borwein)
    ]
    assert ends[0][0] > 1e3
    assert ends[1].max() < 1e-2


def test_long_steps_climb_a_flat_top_and_none_is_longer_than_said():
    """Two Gaussians about to part: near the middle the density is as good as flat, and mean shift crawls."""
    a = SCHEDULE.alpha_bar[300]
    half = 0.99 * jnp.sqrt((a * 0.01 + 1.0 - a) / a)
    pair = exact.GaussianMixture(jnp.full(2, 0.5), jnp.array([[half, 0.0], [-half, 0.0]]), jnp.full((2, 2), 0.01))
    eps_fn = exact.mixture_eps(pair, SCHEDULE)
    t = jnp.full(3, 300)
    x = jnp.sqrt(a) * jnp.array([[0.25, 0.0], [-0.4, 0.3], [0.05, -0.2]])
    long, short = (np.asarray(steps(modes.barzilai_borwein(SCHEDULE, far), eps_fn, x, t, 10)) for far in (0.1, 0.0))
    clean = long / np.sqrt(float(a))
    assert np.abs(clean[-1]).max() < 0.03
    assert np.abs(short[-1][:2, 0]).min() > 0.05
    heights = exact.log_density(pair, SCHEDULE, jnp.asarray(long.reshape(-1, 2)), jnp.full(33, 300))
    heights = np.asarray(heights).reshape(11, 3)
    fell = np.diff(heights, axis=0)[:-1] < -1e-5
    assert (heights[2:] - heights[:-2])[fell].min(initial=0.0) > -1e-5  # what fell is taken back at once
    # The second start lies off the ridge, to which a mean shift takes it.
    assert np.sqrt(np.mean(np.square(np.diff(clean, axis=0)), axis=-1))[1:].max() < 0.1 + 1e-5


MEAN_SHIFT = modes.mean_shift(SCHEDULE)
PLANAR_EPS = exact.mixture_eps(planar(), SCHEDULE)


@functools.cache
def run(
    lanes: int, *, max_steps=60, tolerance=1e-3, kernel=MEAN_SHIFT, eps_fn=PLANAR_EPS
) -> tuple[modes.Chains, modes.AscentInfo]:
    x, t = modes.starts(SCHEDULE, jax.random.key(7), jnp.zeros(2), jnp.array([40, 120, 300]), 6, "hybrid")
    settings = {"kernel": kernel, "max_steps": max_steps, "tolerance": tolerance, "lanes": lanes}
    return jax.jit(functools.partial(modes.ascend, eps_fn, **settings))(x, t)


@pytest.mark.parametrize("name", ["mean_shift", "adam"])
def test_a_chain_does_not_depend_on_the_lanes(name):
    kernel, tolerance = {
        "mean_shift": (MEAN_SHIFT, 1e-3),
        "adam": (modes.adam(SCHEDULE, 0.05), 0.1),
    }[name]
    reference, taken = run(1, kernel=kernel, tolerance=tolerance)
    assert len(set(taken.steps.tolist())) > 4  # chains of unlike length, or the queue is not tested
    assert taken.converged.tolist() == (np.asarray(reference.residual) < tolerance).tolist()
    for lanes in (5, 18, 100):
        chains, info = run(lanes, kernel=kernel, tolerance=tolerance)
        np.testing.assert_array_equal(info.steps, taken.steps)
        np.testing.assert_array_equal(info.converged, taken.converged)
        np.testing.assert_allclose(chains.x, reference.x, atol=1e-5)
        np.testing.assert_allclose(chains.residual, reference.residual, atol=1e-5)


@pytest.mark.parametrize("lanes", [1, 5])
def test_nfe_is_what_was_evaluated_and_no_finished_chain_holds_a_lane(lanes):
    seen = []

    def counting(x, t):
        jax.debug.callback(lambda rows: seen.append(rows.shape[0]), x)
        return PLANAR_EPS(x, t)

    _, info = run(lanes, eps_fn=counting)
    jax.effects_barrier()
    steps, nfe = np.asarray(info.steps), int(info.nfe)
    assert sum(seen) == nfe
    assert set(seen) == {lanes}
    # Graham's bound for list scheduling; running batches to their slowest chain breaks it.
    assert steps.sum() <= nfe <= steps.sum() + (lanes - 1) * steps.max()
    batches = steps[: len(steps) // lanes * lanes].reshape(-1, lanes)
    if lanes > 1:
        assert nfe < lanes * batches.max(1).sum()


@pytest.mark.parametrize(("lanes", "count"), [(4, 7), (16, 5), (4, 0)])
def test_rows_beyond_the_count_are_neither_climbed_from_nor_waited_for(lanes, count):
    # Catches: an idle lane that takes such a row, or a result written for one.
    x, t = modes.starts(SCHEDULE, jax.random.key(7), jnp.zeros(2), jnp.array([40, 120, 300]), 6, "hybrid")
    settings = {"kernel": MEAN_SHIFT, "max_steps": 60, "tolerance": 1e-3, "lanes": lanes}
    whole, whole_info = run(lanes)
    part, info = jax.jit(lambda count: modes.ascend(PLANAR_EPS, x, t, count=count, **settings))(count)
    np.testing.assert_allclose(part.x[:count], whole.x[:count], atol=1e-5)
    np.testing.assert_array_equal(info.steps[:count], whole_info.steps[:count])
    np.testing.assert_array_equal(info.converged[:count], whole_info.converged[:count])
    for rest in (part.x[count:], info.steps[count:], info.converged[count:]):  # a residual of zero is no mode here
        assert not np.asarray(rest).any()
    used = np.asarray(info.steps)
    assert int(info.nfe) <= used.sum() + (lanes - 1) * used.max()


def test_each_chain_has_a_tolerance_of_its_own():
    # Catches: the tolerance of a lane in place of its chain's.
    x, t = modes.starts(SCHEDULE, jax.random.key(7), jnp.zeros(2), jnp.array([40, 120, 300]), 6, "hybrid")
    tolerance = jnp.asarray(np.tile([1e-3, 1e-1, np.inf], 6), jnp.float32)
    settings = {"kernel": MEAN_SHIFT, "max_steps": 60, "lanes": 4}
    chains, info = jax.jit(lambda given: modes.ascend(PLANAR_EPS, x, t, tolerance=given, **settings))(tolerance)
    _, alone = run(4)
    assert (np.asarray(chains.residual) < np.asarray(tolerance)).all() and info.converged.all()
    np.testing.assert_array_equal(info.steps[::3], alone.steps[::3])
    assert (np.asarray(info.steps)[2::3] == 1).all()
    assert (np.asarray(info.steps)[1::3] <= np.asarray(alone.steps)[1::3]).all()


def test_the_residual_belongs_to_the_point_returned():
    chains, info = run(4, max_steps=3)
    _, t = modes.starts(SCHEDULE, jax.random.key(7), jnp.zeros(2), jnp.array([40, 120, 300]), 6, "hybrid")
    eps = PLANAR_EPS(chains.x, t)
    np.testing.assert_allclose(chains.residual, jnp.sqrt(jnp.mean(eps**2, axis=1)), rtol=1e-4)
    assert int(info.steps.max()) == 3
    assert float(chains.residual.max()) > 1e-3 and not info.converged.all()


def test_merge_counts_basins_within_a_timestep_and_keeps_the_best_residual():
    root = float(jnp.sqrt(SCHEDULE.alpha_bar[100]))
    clean = np.array([[0.0, 0.0], [0.05, 0.0], [0.0, 0.06], [1.0, 0.0], [0.0, 0.0]])
    t = jnp.array([100, 100, 100, 100, 300])
    scale = np.array([root] * 4 + [float(jnp.sqrt(SCHEDULE.alpha_bar[300]))])[:, None]
    pool = merge(chains_of(clean * scale, [0.03, 0.01, 0.02, 0.04, 0.05]), SCHEDULE, t, 0.1, 8)
    assert pool.mask.tolist() == [True] * 3 + [False] * 5
    assert pool.t[:3].tolist() == [100, 100, 300]
    assert pool.basin.tolist() == [3, 1, 1, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(pool.m[:3], clean[[1, 3, 4]], atol=1e-6)
    np.testing.assert_allclose(pool.x[:3], (clean * scale)[[1, 3, 4]], atol=1e-6)
    np.testing.assert_allclose(pool.residual[:3], [0.01, 0.04, 0.05])
    # The radius is a root mean square over entries: 0.06 / sqrt(2) is within 0.05, 1 is not.
    assert int(merge(chains_of(clean * scale, [0.0] * 5), SCHEDULE, t, 0.05, 8).mask.sum()) == 3
    assert int(merge(chains_of(clean * scale, [0.0] * 5), SCHEDULE, t, 0.03, 8).mask.sum()) == 5


def test_merge_beyond_capacity_serves_every_timestep_before_any_gets_more():
    # Timestep 100: basins of 3, 2, 1. Timestep 300: one of 1.
    places = [0, 0, 0, 1, 1, 2, 5]
    t = jnp.array([100] * 6 + [300])
    chains = chains_of(np.array(places)[:, None] * np.ones((1, 3)), np.linspace(0.01, 0.02, 7))
    for capacity, expected in (
        (1, [(100, 3)]),
        (2, [(100, 3), (300, 1)]),
        (3, [(100, 3), (100, 2), (300, 1)]),
        (4, [(100, 3), (100, 2), (100, 1), (300, 1)]),
    ):
        pool = merge(chains, SCHEDULE, t, 0.1, capacity)
        assert list(zip(pool.t.tolist(), pool.basin.tolist(), strict=True)) == expected


def test_merge_forgets_what_did_not_arrive_and_pads_with_numbers():
    x = np.array([[0.0, 0.0], [3.0, 3.0], [np.nan, np.nan], [0.0, 0.01]])
    t = jnp.full(4, 100)
    pool = merge(chains_of(x, [0.01, 0.9, np.nan, 0.9]), SCHEDULE, t, 0.1, 6, max_residual=0.05)
    assert pool.mask.tolist() == [True] + [False] * 5
    assert pool.basin.tolist() == [2, 0, 0, 0, 0, 0]  # a late chain may still join
    assert not any(bool(jnp.any(jnp.isnan(leaf))) for leaf in jax.tree.leaves(pool))
    assert bool(jnp.all((pool.t >= 1) & (pool.t <= 1000)))
    assert bool(jnp.all(jnp.isinf(pool.curvature)))
    np.testing.assert_array_equal(pool.x[1:], 0.0)


def test_merge_says_what_it_leaves_out():
    # Catches: chains of earlier rounds, or their absent points, that are counted again; a chain that joins counted.
    at = jnp.full(5, 100)
    x, residual = np.array([[0.0], [1.0], [2.0], [0.0], [5.0]]), [0.01, 0.01, 0.01, 0.9, np.nan]
    pool, info = merge_with_info(chains_of(x, residual), SCHEDULE, at, 0.1, 2, max_residual=0.05)
    assert (int(info.dropped), int(info.leaders_dropped), int(pool.basin.sum())) == (1, 1, 3)
    later = chains_of([[0.0], [7.0]], [0.01, 0.9])
    pool, info = merge_with_info(later, SCHEDULE, at[:2], 0.1, 4, max_residual=0.05, found=pool)
    assert (int(info.dropped), int(info.leaders_dropped), int(pool.basin.sum())) == (1, 0, 4)
    assert pool.mask.tolist() == [True, True, False, False]
    _, info = merge_with_info(later, SCHEDULE, at[:2], 0.1, 4, max_residual=0.05, found=pool)
    assert int(info.dropped) == 1


def test_public_functions_refuse_what_they_would_misread():
    query, key, t = jnp.zeros((2, 2, 3)), jax.random.key(0), jnp.array([50])
    for error, message, args in (
        (TypeError, "query is bfloat16 of shape (2, 2, 3): give one", (key, query.astype(jnp.bfloat16), t)),
        (TypeError, "query is int32", (key, jnp.zeros((2, 2, 3), jnp.int32), t)),
        (ValueError, "query has the shape (1, 2, 2, 3): give one", (key, query[None], t)),
        (TypeError, "key is int of shape ()", (0, query, t)),
        (ValueError, "key has the shape (2,)", (jax.random.split(key), query, t)),
        (TypeError, "t is float32", (key, query, jnp.array([50.0]))),
        (TypeError, "t is int of shape ()", (key, query, 50)),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            modes.starts(SCHEDULE, *args, 4, "query")
    settings = {"kernel": MEAN_SHIFT, "max_steps": 2, "tolerance": 0.1, "lanes": 2}
    for error, message, x, at in (
        (TypeError, "x is float16", jnp.zeros((3, 2), jnp.float16), jnp.full(3, 50)),
        (ValueError, "x has the shape (2,)", jnp.zeros(2), jnp.full(2, 50)),
        (ValueError, "t has the shape ()", jnp.zeros((3, 2)), jnp.int32(50)),
        (ValueError, "t has 2 timesteps and x 3 rows", jnp.zeros((3, 2)), jnp.full(2, 50)),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            modes.ascend(PLANAR_EPS, x, at, **settings)


def test_an_infinite_residual_is_no_mode_however_large_a_residual_may_be():
    pool = merge(chains_of(np.zeros((2, 2)), [np.inf, np.nan]), SCHEDULE, jnp.full(2, 100), 0.1, 2)
    assert not pool.mask.any()


def test_merge_does_not_depend_on_the_order_of_the_chains():
    (chains, _), t = run(4), jnp.repeat(jnp.array([40, 120, 300]), 6)
    shuffled = jax.random.permutation(jax.random.key(0), 18)
    other = modes.Chains(chains.x[shuffled], chains.residual[shuffled])
    one = merge(chains, SCHEDULE, t, 0.05, 10)
    two = merge(other, SCHEDULE, t[shuffled], 0.05, 10)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("cut", [1, 7, 17])
def test_chains_that_come_in_parts_are_merged_as_if_together(cut):
    # Catches: a basin that counts once, a better chain that does not lead, absent places that count, points of other
    # timesteps that are joined.
    (chains, _), t = run(4), jnp.repeat(jnp.array([40, 120, 300]), 6)
    expected = merge(chains, SCHEDULE, t, 0.05, 10)
    assert int(expected.basin.max()) > 2
    found = modes.empty_pool(10, chains.x[0])
    for rows in (slice(0, cut), slice(cut, 18)):
        part = modes.Chains(chains.x[rows], chains.residual[rows])
        found = merge(part, SCHEDULE, t[rows], 0.05, 10, found=found)
    present = int(expected.mask.sum())
    assert found.mask.tolist() == expected.mask.tolist()
    jax.tree.map(lambda one, two: np.testing.assert_array_equal(one[:present], two[:present]), found, expected)
    assert bool(jnp.all((found.t >= 1) & (found.t <= 1000)))


def test_a_chain_that_starts_on_a_saddle_is_told_from_a_mode():
    mixture = exact.GaussianMixture(
        weights=jnp.array([0.5, 0.5]), means=jnp.array([[-0.6, 0.2], [0.6, 0.2]]), variances=jnp.full((2, 2), 0.02)
    )
    eps_fn = exact.mixture_eps(mixture, SCHEDULE)
    t = jnp.full(3, 100)
    root = jnp.sqrt(SCHEDULE.alpha_bar[100])
    x = root * jnp.array([[0.0, 0.2], [-0.5, 0.1], [0.5, 0.3]])
    chains, info = modes.ascend(eps_fn, x, t, kernel=MEAN_SHIFT, max_steps=200, tolerance=1e-5, lanes=2)
    assert int(info.steps[0]) == 1  # the midpoint has no score at all
    pool = merge(chains, SCHEDULE, t, 0.01, 4)
    settings = {"curvature_iterations": 4, "probes": 1, "estimator": "hutchinson", "lanes": 2}
    linearise = jax.jit(functools.partial(covariance.linearise, eps_fn, SCHEDULE, **settings))
    pool, _, _ = linearise(pool, jax.random.key(0))
    saddle = np.abs(np.asarray(pool.m)[:, 0]) < 0.1
    assert float(pool.residual[:3].max()) < 1e-5
    assert (np.asarray(pool.curvature)[:3] > 0).tolist() == saddle[:3].tolist()
    assert saddle[:3].sum() == 1
    assert np.isinf(pool.curvature[3])
    np.testing.assert_allclose(pool.curvature[:3], curvatures(mixture, pool.x[:3], pool.t[:3]), atol=1e-3)


def test_the_newton_distance_is_the_distance_to_the_mode_of_a_gaussian():
    # Catches: a distance in noisy space, one that is a number where there is no point.
    gaussian = exact.GaussianMixture(jnp.ones(1), jnp.array([[0.3, -0.2]]), jnp.full((1, 2), 0.05))
    t = jnp.array([50, 200, 400, 300])
    root = jnp.sqrt(SCHEDULE.alpha_bar[t])[:, None]
    pool = pool_at(root * jnp.array([[0.4, 0.1], [0.2, -0.3], [0.3, -0.2], [0.0, 0.0]]), t, jnp.arange(4) < 3)
    eps = exact.mixture_eps(gaussian, SCHEDULE)(pool.x, t)
    a = SCHEDULE.alpha_bar[t]
    bend = (1.0 - a) / (0.05 * a + 1.0 - a)
    pool = dataclasses.replace(pool, residual=modes.root_mean_square(eps), curvature=-bend)
    expected = np.sqrt(np.mean(np.square(np.asarray(pool.m) - np.array([0.3, -0.2])), axis=1))
    distance = np.asarray(curvature.newton_distance(SCHEDULE, pool))
    np.testing.assert_allclose(distance[:3], expected[:3], atol=1e-5)
    assert np.isinf(distance[3])


def test_the_largest_eigenvalue_is_exact_with_enough_products_and_a_lower_bound_with_fewer():
    mixture = random_mixture((2, 3, 2), components=6)
    t = jnp.array([30, 100, 200, 300, 500, 900])
    x = jax.random.normal(jax.random.key(2), (6, 2, 3, 2)) * 0.5
    expected = 1.0 + curvatures(mixture, x, t)
    first = jax.random.normal(jax.random.key(0), x.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def largest(products):
        apply = curvature.normalised_jacobian(exact.mixture_eps(mixture, SCHEDULE), SCHEDULE, x, t)
        return curvature.largest_eigenvalue(apply, first, products)

    np.testing.assert_allclose(largest(12), expected, atol=2e-4)
    few = np.asarray(largest(4))
    assert np.all(few <= expected + 1e-4)
    np.testing.assert_allclose(few, expected, atol=0.1)


def test_the_largest_eigenvalue_is_that_of_the_symmetric_part():
    matrix = jax.random.normal(jax.random.key(1), (5, 5))
    first = jax.random.normal(jax.random.key(0), (1, 5))
    largest = curvature.largest_eigenvalue(lambda v: jnp.einsum("ij,lj->li", matrix, v, precision="highest"), first, 5)
    np.testing.assert_allclose(largest[0], jnp.linalg.eigvalsh(0.5 * (matrix + matrix.T))[-1], rtol=1e-4)


def test_the_largest_eigenvalue_survives_an_exhausted_krylov_space():
    factors = jnp.array([0.3, 0.9])
    largest = curvature.largest_eigenvalue(lambda v: factors[:, None] * v, jnp.ones((2, 4)), 4)
    np.testing.assert_allclose(largest, factors, rtol=1e-5)


def test_normalised_jacobian_is_the_jacobian_and_linearises_once():
    mixture = random_mixture((5,))
    exact_eps = exact.mixture_eps(mixture, SCHEDULE)
    seen = []

    def counting(x, t):
        jax.debug.callback(lambda rows: seen.append(rows.shape[0]), x)
        return exact_eps(x, t)

    x = jax.random.normal(jax.random.key(0), (3, 5)) * 0.5
    t = jnp.array([50, 200, 400])

    @jax.jit
    def multiplied(x):
        apply = curvature.normalised_jacobian(counting, SCHEDULE, x, t)
        return jnp.stack([apply(jnp.broadcast_to(v, (3, 5))) for v in jnp.eye(5)], axis=-1)

    products = multiplied(x)
    jax.effects_barrier()
    assert seen == [3]

    def x0hat(x, t):
        return exact.posterior_mean(mixture, SCHEDULE, x[None], t[None])[0]

    expected = jax.jit(jax.vmap(jax.jacfwd(x0hat)))(x, t) * jnp.sqrt(SCHEDULE.alpha_bar[t])[:, None, None]
    np.testing.assert_allclose(products, expected, atol=2e-5)


@pytest.mark.parametrize("lanes", [1, 3, 4, 50])
def test_in_lanes_equals_the_whole_batch_up_to_the_last_row_present(lanes):
    x = jnp.arange(14.0).reshape(7, 2)
    mask = jnp.array([True, False, True, True, False, False, False])
    rows = []

    def double(x, t):
        jax.debug.callback(lambda x: rows.append(x.shape[0]), x)
        return 2.0 * x + t[:, None]

    out, nfe = modes.in_lanes(double, (x, jnp.arange(7.0)), mask, lanes=lanes, cost=3)
    jax.effects_barrier()
    width = min(lanes, 7)
    computed = min(-(-4 // width) * width, 7)
    np.testing.assert_array_equal(out[:computed], (2.0 * x + jnp.arange(7.0)[:, None])[:computed])
    np.testing.assert_array_equal(out[computed:], 0.0)
    assert int(nfe) == 3 * sum(rows) == 3 * (-(-4 // width) * width)


def test_in_lanes_computes_nothing_for_an_empty_pool():
    out, nfe = modes.in_lanes(lambda x: x / x, (jnp.zeros((4, 2)),), jnp.zeros(4, bool), lanes=2, cost=5)
    np.testing.assert_array_equal(out, 0.0)
    assert int(nfe) == 0


def test_normal_each_gives_a_row_its_own_noise_whatever_the_batch():
    key = jax.random.key(4)
    many = modes.normal_each(key, jnp.zeros((500, 8)))
    np.testing.assert_array_equal(modes.normal_each(key, jnp.zeros((3, 8))), many[:3])
    np.testing.assert_allclose(jnp.mean(many), 0.0, atol=0.06)
    np.testing.assert_allclose(jnp.std(many), 1.0, atol=0.05)
    assert len(np.unique(np.asarray(many))) > 3900
