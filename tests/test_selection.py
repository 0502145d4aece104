"""Greedy against every subset."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.discovery import selection

N, D, K = 8, 12, 3
greedy = jax.jit(selection.greedy, static_argnames="num_experts")


def instances(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random log likelihoods (count, N, D) and backgrounds (count, D)."""
    rng = np.random.default_rng(seed)
    return rng.normal(-1.0, 1.5, (count, N, D)), rng.normal(-1.0, 0.5, (count, D))


def value(fit, b, subset) -> float:
    """F(S), from its definition."""
    best = np.max(np.concatenate([b[None], fit[list(subset)]]), axis=0)
    return float(best.sum() - b.sum())


def pick(fit, b, **options) -> selection.Selection:
    options = {"num_experts": K, "candidates": jnp.ones(len(fit), bool)} | options
    return greedy(jnp.asarray(fit, jnp.float32), jnp.asarray(b, jnp.float32), **options)


def chosen(picks: selection.Selection) -> list[int]:
    return np.asarray(picks.indices)[np.asarray(picks.mask)].tolist()


def test_objective_is_its_definition():
    fits, bs = instances(5)
    for fit, b in zip(fits, bs, strict=True):
        for subset in [(), (0,), (2, 5), tuple(range(N))]:
            mask = jnp.zeros(N, bool).at[jnp.array(subset, int)].set(True)
            found = selection.objective(jnp.asarray(fit, jnp.float32), jnp.asarray(b, jnp.float32), mask)
            assert float(found) == pytest.approx(value(fit, b, subset), abs=1e-4)
            # Pictures and vectors are the same thing.
            shaped = selection.objective(jnp.asarray(fit.reshape(N, 2, 2, 3)), jnp.asarray(b.reshape(2, 2, 3)), mask)
            assert float(shaped) == pytest.approx(float(found), abs=1e-4)


def test_the_objective_is_monotone_with_diminishing_returns():
    fits, bs = instances(3, seed=1)
    evaluate = jax.jit(selection.objective)
    for fit, b in zip(jnp.asarray(fits, jnp.float32), jnp.asarray(bs, jnp.float32), strict=True):

        def f(subset, fit=fit, b=b):
            return float(evaluate(fit, b, jnp.isin(jnp.arange(N), jnp.array([*subset, -1]))))

        assert f(()) == 0.0
        for small, large in [((), (1,)), ((1,), (1, 2)), ((1, 2), (1, 2, 3, 4))]:
            assert f(large) >= f(small)
            for j in (5, 6, 7):
                assert f((*small, j)) - f(small) >= f((*large, j)) - f(large) - 1e-4


def test_greedy_reaches_its_guarantee_and_reports_its_gains():
    fits, bs = instances(40)
    ratios = []
    for fit, b in zip(fits, bs, strict=True):
        picks = pick(fit, b)
        subset = chosen(picks)
        assert len(set(subset)) == K
        best = max(value(fit, b, s) for s in itertools.combinations(range(N), K))
        ratios.append(value(fit, b, subset) / best)
        for i in range(K):
            gains = [value(fit, b, [*subset[:i], j]) - value(fit, b, subset[:i]) for j in range(N)]
            assert float(picks.gains[i]) == pytest.approx(max(gains), abs=1e-4)
            assert subset[i] == int(np.argmax(gains))
    assert min(ratios) >= 1 - 1 / np.e
    assert min(ratios) < 1.0  # greedy is not exhaustive search, or the instances are too easy to tell


def test_with_at_most_one_per_timestep_greedy_keeps_half_of_the_best():
    fits, bs = instances(30, seed=2)
    t = np.array([50, 50, 50, 100, 100, 200, 200, 300])
    bound = False
    for fit, b in zip(fits, bs, strict=True):
        subset = chosen(pick(fit, b, t=jnp.asarray(t)))
        assert len(set(t[subset])) == len(subset) == K
        best = max(value(fit, b, s) for s in itertools.combinations(range(N), K) if len({int(t[j]) for j in s}) == K)
        assert value(fit, b, subset) >= 0.5 * best
        bound |= subset != chosen(pick(fit, b))
    assert bound  # the rule changed some pick


def test_with_the_background_far_away_the_picks_are_the_papers():
    fits, _ = instances(40, seed=3)
    for fit in fits:
        paper: list[int] = []
        for _ in range(K):
            totals = [-np.inf if j in paper else float(np.max(fit[[*paper, j]], axis=0).sum()) for j in range(N)]
            paper.append(int(np.argmax(totals)))
        assert chosen(pick(fit, np.full(D, -500.0))) == paper


def test_greedy_stops_when_nothing_is_gained():
    b = np.zeros(3)
    fit = np.array([[-1.0, -1.0, -1.0], [2.0, -1.0, 0.0], [1.0, -5.0, 0.0]])
    picks = pick(fit, b)
    assert chosen(picks) == [1]
    assert picks.mask.tolist() == [True, False, False]
    assert picks.indices.tolist() == [1, 0, 0]
    assert picks.gains.tolist() == [2.0, 0.0, 0.0]
    assert not bool(pick(fit - 10.0, b).mask.any())
    assert chosen(pick(fit, b, t=jnp.array([1, 2, 3]))) == [1]


def test_ties_go_to_the_lowest_index_and_copies_are_picked_once():
    fit = np.tile(np.array([[1.0, 2.0, -1.0]]), (4, 1))
    assert chosen(pick(fit, np.zeros(3))) == [0]
    two = np.array([[0.0, 3.0], [3.0, 0.0], [0.0, 3.0]])
    assert chosen(pick(two, np.zeros(2))) == [0, 1]


def test_what_is_no_candidate_is_never_picked_whatever_it_holds():
    fits, bs = instances(1)
    fit, b = fits[0].copy(), bs[0]
    candidates = jnp.array([True, False, True, True, False, True, True, True])
    reference = pick(np.where(np.asarray(candidates)[:, None], fit, -1e4), b)
    for poison in (np.nan, np.inf, -np.inf, 1e6):
        fit[[1, 4]] = poison
        picks = pick(fit, b, candidates=candidates)
        jax.tree.map(np.testing.assert_array_equal, picks, reference)
    assert not bool(pick(fit, b, candidates=jnp.zeros(N, bool)).mask.any())


def test_greedy_is_jittable_and_takes_more_places_than_candidates():
    fits, bs = instances(1)
    jitted = jax.jit(lambda fit, b: pick(fit, b, num_experts=N + 3))
    picks = jitted(fits[0], bs[0])
    assert picks.mask.shape == (N + 3,)
    assert int(picks.mask.sum()) <= N
    total = selection.objective(jnp.asarray(fits[0]), jnp.asarray(bs[0]), jnp.ones(N, bool))
    np.testing.assert_allclose(jnp.sum(picks.gains), total, rtol=1e-5)
