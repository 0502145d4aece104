"""Discovery as a whole, on a mixture whose held-out composition is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import concepts, curvature, modes, selection
from cdisc.learning import cost

SCHEDULE = schedule.linear_beta()
LEVELS = (-0.8, 0.0, 0.8)
HELD_OUT = (0.8, -0.8)
SMALL = concepts.DiscoveryOptions(
    timesteps=(20, 60, 100), starts_per_t=8, max_steps=60, lanes=8, capacity=16, curvature_iterations=2, probes=2
)


FLOATS = [field.name for field in dataclasses.fields(concepts.DiscoveryOptions) if field.type is float]


def grid() -> exact.GaussianMixture:
    """All pairs of levels but one: in the plane, a picture of two attributes."""
    cells = jnp.array([(x, y) for x in LEVELS for y in LEVELS if (x, y) != HELD_OUT])
    return exact.GaussianMixture(jnp.full(8, 0.125), cells, jnp.full((8, 2), 0.01))


def eps_fn(x, t):
    return exact.mixture_eps(grid(), SCHEDULE)(x, t)


@functools.partial(jax.jit, static_argnames="options")
def find(query, key, options=SMALL) -> concepts.Discovery:
    return concepts.discover(eps_fn, SCHEDULE, query, key, options)


def test_a_held_out_composition_is_made_of_its_trained_halves():
    options = dataclasses.replace(SMALL, start_mode="random", starts_per_t=30, capacity=32, covariance="deconvolved")
    found = find(jnp.array(HELD_OUT), jax.random.key(0), options)
    picked = found.selection.mask
    assert int(picked.sum()) >= 2
    prototypes = np.asarray(found.pool.m)[np.asarray(found.selection.indices)[np.asarray(picked)]]
    # Each attribute of the query has an expert that carries it, though no expert carries both.
    nearest = np.abs(prototypes - np.array(HELD_OUT)).min(0)
    assert nearest.max() < 0.1
    assert np.abs(prototypes - np.array(HELD_OUT)).max(1).min() > 0.5
    np.testing.assert_allclose(found.teacher.mean, HELD_OUT, atol=0.1)
    np.testing.assert_allclose(jnp.sum(found.ownership, axis=0), 1.0, rtol=1e-5)


def test_discovery_is_consistent_with_its_parts():
    query = jnp.array([0.7, 0.1])
    found = find(query, jax.random.key(1))
    candidates = np.asarray(found.pool.mask) & (np.asarray(found.pool.curvature) < 0)
    picked = np.asarray(found.selection.indices)[np.asarray(found.selection.mask)]
    assert len(picked) >= 1
    assert candidates[picked].all()
    assert (np.asarray(found.pool.residual)[picked] <= SMALL.max_residual).all()
    assert 0 < int(found.info.nfe) <= SMALL.max_evaluations
    picks, _, teacher = concepts.assemble(query, found.pool, found.experts, SMALL)
    np.testing.assert_array_equal(picks.indices, found.selection.indices)
    np.testing.assert_allclose(teacher.mean, found.teacher.mean, atol=1e-6)
    assert not any(bool(jnp.any(jnp.isnan(leaf))) for leaf in jax.tree.leaves(found))


def test_discovery_is_deterministic_and_the_same_for_a_query_alone():
    queries = jnp.array([[0.7, 0.1], [-0.5, 0.6]])
    keys = jax.random.split(jax.random.key(2), 2)
    together = jax.jit(lambda q, k: jax.lax.map(lambda a: find(*a), (q, k)))(queries, keys)
    for i in range(2):
        alone = find(queries[i], keys[i])
        jax.tree.map(np.testing.assert_array_equal, alone, find(queries[i], keys[i]))
        jax.tree.map(
            lambda one, many, i=i: np.testing.assert_allclose(one, many[i], rtol=1e-4, atol=1e-5), alone, together
        )
    assert float(jnp.abs(together.teacher.mean[0] - together.teacher.mean[1]).max()) > 0.1


def test_one_compilation_serves_all_queries():
    before = find._cache_size()
    options = dataclasses.replace(SMALL, tau=0.25)
    for i in range(3):
        find(jnp.full(2, 0.1 * i), jax.random.key(i), options)
    assert find._cache_size() == before + 1


def test_saddles_are_no_candidates_unless_asked_for():
    root = jnp.sqrt(SCHEDULE.alpha_bar[jnp.array([60, 60])])[:, None]
    m = jnp.array([[0.4, 0.0], [0.0, 0.0]])  # between two cells; in a cell
    t = jnp.array([60, 60])
    pool = modes.ModePool(
        m * root, m, t, jnp.ones(2, jnp.int32), jnp.zeros(2), jnp.array([0.3, -0.4]), jnp.ones(2, bool)
    )
    experts = Gaussian(mean=m, variance=jnp.full((2, 2), 0.05))
    query = jnp.array([0.4, 0.0])
    picks, _, _ = concepts.assemble(query, pool, experts, SMALL)
    assert np.asarray(picks.indices)[np.asarray(picks.mask)].tolist() == [1]
    picks, _, _ = concepts.assemble(query, pool, experts, dataclasses.replace(SMALL, max_curvature=float("inf")))
    assert int(picks.indices[0]) == 0


def test_options_reach_the_selection():
    query = jnp.array([0.05, 0.02])
    found = find(query, jax.random.key(3))
    several = dataclasses.replace(SMALL, background_variance=100.0, num_experts=6)
    free, _, _ = concepts.assemble(query, found.pool, found.experts, several)
    partition, _, _ = concepts.assemble(query, found.pool, found.experts, dataclasses.replace(several, one_per_t=True))
    times = np.asarray(found.pool.t)[np.asarray(partition.indices)[np.asarray(partition.mask)]]
    assert len(set(times.tolist())) == len(times)
    assert int(free.mask.sum()) >= 1
    assert free.mask.shape == (6,)


def test_a_query_that_nothing_explains_gets_the_background():
    found = find(jnp.array([0.1, 0.1]), jax.random.key(4))
    options = dataclasses.replace(SMALL, background_mean=30.0, background_variance=0.5)
    picks, _, teacher = concepts.assemble(jnp.array([30.0, 30.0]), found.pool, found.experts, options)
    assert not bool(picks.mask.any())
    np.testing.assert_array_equal(teacher.mean, 30.0)
    np.testing.assert_array_equal(teacher.variance, 0.5)


def test_both_ascents_find_the_same_prototypes():
    query = jnp.array([-0.6, 0.7])
    one = find(query, jax.random.key(5))
    adam = dataclasses.replace(SMALL, ascent="adam", learning_rate=0.02, max_steps=600, tolerance=2e-3)
    two = find(query, jax.random.key(5), adam)
    firsts = [found.pool.m[found.selection.indices[0]] for found in (one, two)]
    np.testing.assert_allclose(firsts[0], firsts[1], atol=0.02)
    assert np.sign(np.asarray(firsts[0])).tolist() == [-1.0, 1.0]
    np.testing.assert_allclose(one.teacher.mean, two.teacher.mean, atol=0.05)


def test_the_info_counts_what_was_left_out():
    """Two far components; the score overflows left of a threshold, and chains that come there are dropped."""
    pair = exact.GaussianMixture(jnp.full(2, 0.5), jnp.array([[-1.0, 0.2], [1.0, 0.2]]), jnp.full((2, 2), 0.01))
    exact_eps = exact.mixture_eps(pair, SCHEDULE)
    options = dataclasses.replace(
        SMALL, timesteps=(60,), starts_per_t=16, rounds=4, capacity=3, start_mode="random", tolerance=1e-3
    )

    @functools.partial(jax.jit, static_argnames="options")
    def run(threshold, options=options):
        def overflowing(x, t):
            return jnp.where(x[:, :1] < threshold, jnp.inf, exact_eps(x, t))

        return concepts.discover(overflowing, SCHEDULE, jnp.array([1.0, 0.2]), jax.random.key(0), options)

    found = run(0.0)
    assert int(found.info.chains) == 16
    assert 0 < int(found.info.dropped) == int(found.info.unconverged) < 16  # all others arrive
    assert int(found.pool.basin.sum()) == 16 - int(found.info.dropped)
    nothing = run(100.0)
    assert (int(nothing.info.dropped), int(nothing.info.unconverged), int(nothing.info.saddles)) == (16, 16, 0)
    assert not nothing.pool.mask.any() and not nothing.selection.mask.any()
    assert float(nothing.info.clipped_below) == float(nothing.info.experts_clipped_below) == 0.0
    # Too few steps: no residual is small, and none is dropped; each chain leads, and the pool has room for one.
    short = dataclasses.replace(options, max_steps=2, max_residual=float("inf"), capacity=1, merge_radius=1e-6)
    info = run(-100.0, short).info
    assert (int(info.chains), int(info.unconverged), int(info.dropped), int(info.leaders_dropped)) == (16, 16, 0, 15)
    assert int(info.nfe) <= short.max_evaluations


def test_the_info_says_how_much_of_the_variances_is_a_bound():
    # Catches: shares over absent points, shares of the pool for those of the picks, bounds that are swapped.
    options = dataclasses.replace(SMALL, covariance="deconvolved", floor=0.012, delta=0.45, max_curvature=-0.38)
    found = find(jnp.array([0.7, 0.1]), jax.random.key(1), options)
    pool, s2 = found.pool, np.asarray(found.experts.variance)
    mask, picked = np.asarray(pool.mask), np.asarray(found.selection.indices)[np.asarray(found.selection.mask)]
    a = np.asarray(SCHEDULE.alpha_bar[pool.t])[:, None]
    below, above = s2 == np.float32(0.012), s2 >= (1 - a) / a * 0.55 / 0.45 * 0.99999
    assert 0 < below[mask].mean() < 1 and 0 < above[mask].mean() < 1 and mask.sum() < 16 and len(picked) > 0
    for rows, low, high in (
        (mask, found.info.clipped_below, found.info.clipped_above),
        (picked, found.info.experts_clipped_below, found.info.experts_clipped_above),
    ):
        np.testing.assert_allclose(low, below[rows].mean(), rtol=1e-5)
        np.testing.assert_allclose(high, above[rows].mean(), rtol=1e-5)
    assert int(found.info.saddles) == (mask & (np.asarray(pool.curvature) >= -0.38)).sum() > 0


def test_rounds_find_what_is_found_at_once():
    """From pure noise, 60 chains at each of two levels find all eight cells, whatever they are divided into."""
    many = dataclasses.replace(SMALL, timesteps=(20, 60), starts_per_t=60, capacity=24, start_mode="random")
    query = jnp.array(HELD_OUT)
    cells = {tuple(np.rint(cell * 10).astype(int).tolist()) for cell in np.asarray(grid().means)}
    for rounds in (1, 6):
        options = dataclasses.replace(many, rounds=rounds)
        found = find(query, jax.random.key(6), options)
        mask = np.asarray(found.pool.mask)
        assert int(found.pool.basin.sum()) == 120  # every chain is counted
        assert int(found.info.nfe) <= options.max_evaluations
        for t in (20, 60):
            here = np.asarray(found.pool.m)[mask & (np.asarray(found.pool.t) == t)]
            assert {tuple(np.rint(m * 10).astype(int).tolist()) for m in here} >= cells
    # Rounds start from noise of their own: else each point of the first would be found six times.
    assert len(set(np.asarray(found.pool.basin)[mask].tolist()) - {0, 6, 12, 18}) > 2


FLAT = concepts.DiscoveryOptions(timesteps=(300,), starts_per_t=48, max_steps=400)


@functools.partial(jax.jit, static_argnames="options")
def modes_of(mixture: exact.GaussianMixture, key, options=FLAT) -> concepts.Discovery:
    return concepts.discover(exact.mixture_eps(mixture, SCHEDULE), SCHEDULE, jnp.zeros(mixture.shape), key, options)


def merging(seed: int) -> exact.GaussianMixture:
    """Up to five Gaussians in three dimensions, most of them about to become one: a pair, a simplex, or any."""
    rng = np.random.default_rng(seed)
    kind, count = seed % 3, int(rng.integers(2, 6))
    a = float(SCHEDULE.alpha_bar[300])
    deviation = np.sqrt((a * 0.02 + 1.0 - a) / a)  # of the noised components, in clean space
    means = rng.standard_normal((count, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    variances, weights = np.full((count, 3), 0.02), np.full(count, 1.0 / count)
    if kind == 0:
        means = rng.uniform(-2.5, 2.5, (count, 3)) * deviation
        variances, weights = rng.uniform(0.005, 0.2, (count, 3)), rng.dirichlet(np.full(count, 3.0))
    elif kind == 1:  # they part where their half distance is one deviation
        means = np.concatenate([means[:1], -means[:1], 2.5 * means[2:]]) * rng.uniform(0.95, 1.05) * deviation
    else:
        means *= np.sqrt(3.0) * rng.uniform(0.8, 1.15) * deviation
    absent = 5 - count
    return exact.GaussianMixture(
        jnp.asarray(np.append(weights, np.zeros(absent)), jnp.float32),
        jnp.asarray(np.concatenate([means, np.zeros((absent, 3))]), jnp.float32),
        jnp.asarray(np.concatenate([variances, np.ones((absent, 3))]), jnp.float32),
    )


def dense_search(mixture: exact.GaussianMixture, t: int, starts: int = 200) -> np.ndarray:
    """All clean modes, densest first, of a search by Newton's steps in float64: uphill, halved until they climb."""
    alive, a = np.asarray(mixture.weights) > 0, float(SCHEDULE.alpha_bar[t])
    weights = np.asarray(mixture.weights, np.float64)[alive]
    means = np.sqrt(a) * np.asarray(mixture.means, np.float64)[alive]
    spread = a * np.asarray(mixture.variances, np.float64)[alive] + 1.0 - a
    rng = np.random.default_rng(0)
    which = rng.choice(len(weights), starts)
    x = np.concatenate([means[which] + np.sqrt(spread[which]) * rng.standard_normal((starts, 3)), means])

    def at(x):
        offset = (x[:, None] - means) / spread
        logs = np.log(weights) - 0.5 * np.sum(offset**2 * spread + np.log(spread), axis=2)
        top = logs.max(axis=1, keepdims=True)
        share = np.exp(logs - top)
        height = top[:, 0] + np.log(share.sum(axis=1))
        share /= share.sum(axis=1, keepdims=True)
        slope = -np.einsum("nc,ncd->nd", share, offset)
        bend = np.einsum("nc,nci,ncj->nij", share, offset, offset) - slope[:, :, None] * slope[:, None]
        return height, slope, bend - np.einsum("nc,cd->nd", share, 1.0 / spread)[:, :, None] * np.eye(3)

    height, slope, bend = at(x)
    for _ in range(200):
        values, vectors = np.linalg.eigh(bend)
        step = np.einsum("nij,nkj,nk->ni", vectors / np.maximum(np.abs(values), 1e-3)[:, None], vectors, slope)
        length = np.ones(len(x))
        for _ in range(30):
            length[at(x + length[:, None] * step)[0] < height - 1e-13] /= 2.0
        x = x + length[:, None] * step
        height, slope, bend = at(x)
        if np.abs(slope).max() < 1e-10:
            break
    found = []
    for i in np.argsort(-height):
        is_mode = np.abs(slope[i]).max() < 1e-6 and np.linalg.eigvalsh(bend[i])[-1] < 1e-6
        if is_mode and all(np.sqrt(np.mean(np.square(x[i] - other) / a)) > 0.02 for other in found):
            found.append(x[i])
    return np.asarray(found) / np.sqrt(a)


def test_every_mode_is_found_once_and_certified_in_a_hundred_mixtures():
    # Catches: chains at rest on a flat top that are left there, or merged without climbing; a step that leads to
    # another mode; a certificate in noisy space.
    for seed in range(100):
        mixture = merging(seed)
        found = modes_of(mixture, jax.random.key(seed))
        kept = np.asarray(found.pool.mask & (found.pool.curvature < 0))
        reach = concepts.PART * FLAT.merge_radius
        assert np.asarray(curvature.newton_distance(SCHEDULE, found.pool))[kept].max() < reach, seed
        assert int(found.info.nfe) <= FLAT.max_evaluations
        expected = dense_search(mixture, 300)
        distance = np.sqrt(np.mean(np.square(np.asarray(found.pool.m)[kept][:, None] - expected), axis=2))
        # A third of the true distance on the flattest of tops.
        assert distance.min(axis=1).max() < 3.0 * reach, (seed, distance)
        assert len(set(distance.argmin(axis=1))) == len(distance), (seed, distance)
        # None is missed where chains start, but for those that are one with another.
        within = np.sqrt(np.mean(np.square(expected), axis=1)) < 1.0
        near = np.sqrt(np.mean(np.square(expected[:, None] - expected), axis=2)) < 1.5 * FLAT.merge_radius
        hit = distance.min(axis=0) < 3.0 * reach
        assert (near & hit).any(axis=1)[within].all(), (seed, distance)


def test_without_polish_a_flat_top_is_found_several_times():
    # Catches: a budget of none that is not kept; polish that the test above would not need.
    a = float(SCHEDULE.alpha_bar[300])
    half = 0.99 * np.sqrt((a * 0.02 + 1.0 - a) / a)
    means = jnp.zeros((5, 3)).at[0, 0].set(half).at[1, 0].set(-half)
    pair = exact.GaussianMixture(jnp.array([0.5, 0.5, 0.0, 0.0, 0.0]), means, jnp.full((5, 3), 0.02))
    left = modes_of(pair, jax.random.key(1), dataclasses.replace(FLAT, polish=0))
    polished = modes_of(pair, jax.random.key(1))
    assert int(polished.pool.mask.sum()) == 1
    np.testing.assert_allclose(polished.pool.m[0], 0.0, atol=0.02)
    assert int(left.pool.mask.sum()) > int(polished.pool.mask.sum())
    assert int(polished.pool.basin.sum()) == int(left.pool.basin.sum()) == 48


@pytest.mark.parametrize("weak", [0.05, 0.2])
def test_a_level_at_which_no_residual_is_small_is_left_out_or_takes_larger_ones(weak):
    # Catches: larger residuals at a level that has small ones; a smallest residual of another level.
    exact_eps = exact.mixture_eps(grid(), SCHEDULE)

    def noisy(x, t):  # at t = 60 it sees noise of 0.1 everywhere
        eps = exact_eps(x, t)
        floor = jnp.where(t == 60, 0.1, 0.0)
        return eps * jnp.sqrt(1.0 + jnp.square(floor / modes.root_mean_square(eps)))[:, None]

    options = dataclasses.replace(SMALL, weak_residual=weak, polish=0)
    find = jax.jit(lambda query, key: concepts.discover(noisy, SCHEDULE, query, key, options))
    found = find(jnp.array([0.7, 0.1]), jax.random.key(1))
    smallest = np.asarray(found.info.smallest_residual)
    assert smallest.shape == (3,) and smallest[1] >= 0.1 and smallest[[0, 2]].max() < SMALL.tolerance
    at = set(np.asarray(found.pool.t)[np.asarray(found.pool.mask)].tolist())
    assert at == ({20, 100} if weak < 0.1 else {20, 60, 100})


@pytest.mark.parametrize("estimator", ["lattice", "hutchinson"])
def test_no_key_is_used_twice(estimator, monkeypatch):
    # Catches: rounds that start from the same noise, rows or probes that share a key, a key that is drawn from and has
    # others derived from it.
    drawn_from, derived_from = [], []

    def recorded(fn, used):
        def record(data):
            used.append(tuple(np.ravel(data).tolist()))

        def called(key, *args, **options):
            jax.debug.callback(record, jax.random.key_data(key))
            return fn(key, *args, **options)

        return called

    for name, used in (("normal", drawn_from), ("rademacher", drawn_from), ("fold_in", derived_from)):
        monkeypatch.setattr(jax.random, name, recorded(getattr(jax.random, name), used))
    options = dataclasses.replace(SMALL, timesteps=(60,), starts_per_t=4, rounds=2, capacity=4, estimator=estimator)
    jax.jit(lambda key: concepts.discover(eps_fn, SCHEDULE, jnp.array([0.7, 0.1]), key, options))(jax.random.key(0))
    jax.effects_barrier()
    # Two rounds; then for each of four rows a start of the Krylov space, and one sign field or two probes.
    assert len(drawn_from) == 2 + 4 + 4 * (1 if estimator == "lattice" else 2)
    assert len(set(drawn_from)) == len(drawn_from)
    assert derived_from and not set(drawn_from) & set(derived_from)


def test_memory_follows_from_the_chains_of_a_round():
    def temporaries(starts_per_t, rounds):
        options = dataclasses.replace(SMALL, starts_per_t=starts_per_t, rounds=rounds)
        _, lowered = cost.account(
            lambda query, key: concepts.discover(eps_fn, SCHEDULE, query, key, options),
            jax.ShapeDtypeStruct((2,), jnp.float32),
            jax.eval_shape(lambda: jax.random.key(0)),
        )
        return cost.temporaries(lowered)

    assert temporaries(32 * 16, 16) < 0.4 * temporaries(32 * 4, 1)


def test_the_default_options_keep_to_the_budget():
    options = concepts.DiscoveryOptions()
    # 48 chains of 40, then 32 modes with 1 + 8 and 1 + 16 evaluations; and what flat tops may take.
    assert options.max_evaluations == 1920 + 32 * 25 + options.polish == 2720 + 2000
    assert dataclasses.replace(options, starts_per_t=12, rounds=2, polish=0).max_evaluations == 2720 + 1920
    assert hash(options) == hash(concepts.DiscoveryOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_mode": "near"}, "start_mode has 'near', which cdisc does not know: use one of query, hybrid, random"),
        ({"ascent": "sgd"}, "ascent"),
        ({"estimator": "full"}, "estimator"),
        ({"covariance": "dense"}, "covariance"),
        ({"probes": 0}, "probes is 0"),
        ({"rounds": 4}, "rounds is 4: the 6 chains"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"floor": float("nan")}, "floor"),
        ({"delta": 0.5}, "delta"),
        ({"timesteps": ()}, "timesteps"),
        ({"timesteps": (0, 50)}, "timesteps"),
        ({"polish": -1}, "polish is -1"),
        ({"timesteps": (50, 100, 50)}, "timesteps has 50 more than once"),
        ({"hierarchy": (10, 20, 20)}, "hierarchy has 20 more than once"),
        *(({field: float("nan")}, f"{field} is nan") for field in FLOATS),
        ({"max_residual": 0.0}, "max_residual is 0.0"),
    ],
)
def test_options_that_cannot_be_run_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        concepts.DiscoveryOptions(**change)


def test_options_given_as_lists_can_be_static_arguments():
    given = dataclasses.replace(SMALL, timesteps=[20, 60, 100], hierarchy=[20])
    assert hash(given) == hash(dataclasses.replace(SMALL, hierarchy=(20,)))


def test_what_is_no_picture_or_no_key_is_refused():
    query, key = jnp.zeros((4, 4, 3)), jax.random.key(0)
    for error, message, args in (
        (TypeError, "query is bfloat16", (query.astype(jnp.bfloat16), key)),
        (TypeError, "query is uint8", (query.astype(jnp.uint8), key)),
        (ValueError, r"query has the shape \(1, 4, 4, 3\): give one float32 picture", (query[None], key)),
        (TypeError, r"the key is int of shape \(\): give one made by", (query, 0)),
        (TypeError, "the key is uint32", (query, jax.random.PRNGKey(0))),
        (ValueError, r"the key has the shape \(2,\)", (query, jax.random.split(key))),
    ):
        with pytest.raises(error, match=f"^{message}"):
            concepts.discover(eps_fn, SCHEDULE, *args, SMALL)


def test_timesteps_beyond_the_schedule_are_refused():
    options = dataclasses.replace(SMALL, timesteps=(50, 101))
    with pytest.raises(ValueError, match="the schedule ends at 100"):
        concepts.discover(eps_fn, schedule.linear_beta(100), jnp.zeros(2), jax.random.key(0), options)


@pytest.mark.parametrize(("mean", "variance"), [(np.nan, 1.0), (0.5, np.inf), (0.5, np.nan)])
def test_what_is_not_finite_is_a_discovery_without_modes(mean, variance):
    # Catches: a check of the mean alone; modes, picks or a teacher that stay.
    points, all_of = jnp.full((2, 3), 0.5), jnp.ones(2, bool)
    given = concepts.Discovery(
        pool=dataclasses.replace(modes.empty_pool(2, points[0]), mask=all_of),
        experts=Gaussian(points, points),
        selection=selection.Selection(indices=jnp.arange(2), mask=all_of, gains=jnp.ones(2)),
        ownership=points,
        teacher=Gaussian(jnp.full(3, 0.5), jnp.ones(3)),
        info=None,
    )
    assert concepts.or_nothing(given) is given and given.found
    teacher = Gaussian(given.teacher.mean.at[1].set(mean), given.teacher.variance.at[2].set(variance))
    nothing = concepts.or_nothing(dataclasses.replace(given, teacher=teacher))
    assert not nothing.found and len(nothing.concepts) == 0
    np.testing.assert_array_equal([nothing.teacher.mean, nothing.teacher.variance], [[0.0] * 3, [1.0] * 3])
