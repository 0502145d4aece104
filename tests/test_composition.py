"""The composition of a picture, against class tables that are sums by construction, and an exhaustive search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.evaluation import composition

SIZES = (5, 4, 3)
ALL = np.asarray(list(itertools.product(*map(range, SIZES))))
HELD_OUT = (ALL[:, 1] + ALL[:, 2]) % 4 == 0


def _table(seed, noise=0.0, dim=20):
    """Parts, and the class table (all compositions, E) that they sum to."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(size, dim)) for size in SIZES]
    sums = sum(part[ALL[:, f]] for f, part in enumerate(parts)) + rng.normal(size=dim)
    return jnp.asarray(sums + noise * rng.normal(size=sums.shape), jnp.float32)


def test_parts_of_trained_classes_give_the_class_of_every_composition():
    # Catches: parts as means over the classes of a value, which held-out ones bias; the constant left out, or counted
    # once for each factor; the order of the factors.
    table = _table(0)
    parts = composition.parts_of(table[~HELD_OUT], ALL[~HELD_OUT], SIZES)
    np.testing.assert_allclose(parts.embedding(jnp.asarray(ALL)), table, atol=1e-4)


def test_a_value_that_no_class_shows_is_refused():
    with pytest.raises(ValueError, match="no trained class shows"):
        composition.parts_of(jnp.zeros((2, 3)), [[0, 0], [1, 0]], (2, 2))


@pytest.mark.parametrize("seed", range(5))
def test_the_composition_of_a_picture_is_that_of_the_smallest_loss(seed):
    # Catches: a round that changes all factors at once, the loss of the start taken for a candidate's, the search left
    # after one round, argmax.
    rng = np.random.default_rng(seed)
    table = _table(seed)
    parts = composition.parts_of(table[~HELD_OUT], ALL[~HELD_OUT], SIZES)
    true = rng.choice(np.flatnonzero(HELD_OUT))
    target = table[true] + 0.3 * jnp.asarray(rng.normal(size=table.shape[1]), jnp.float32)

    def losses_of(embeddings):
        return jnp.sum(jnp.square(embeddings - target[None]), axis=-1)

    start = ALL[rng.choice(np.flatnonzero(~HELD_OUT))]
    found = jax.jit(lambda: composition.explain(losses_of, parts, start))()
    nearest = int(jnp.argmin(losses_of(parts.embedding(jnp.asarray(ALL)))))
    np.testing.assert_array_equal(found.composition, ALL[nearest])
    np.testing.assert_allclose(found.embedding, parts.embedding(jnp.asarray(ALL[nearest])), rtol=1e-6)
    np.testing.assert_allclose(found.loss, losses_of(found.embedding[None])[0], rtol=1e-4)
    assert found.rounds == 1 + np.sum(ALL[nearest] != start)


def test_losses_that_are_no_numbers_never_win_and_the_search_ends():
    parts = composition.parts_of(_table(1)[~HELD_OUT], ALL[~HELD_OUT], SIZES)
    found = composition.explain(lambda e: jnp.full(len(e), jnp.nan), parts, ALL[7])
    np.testing.assert_array_equal(found.composition, ALL[7])
    assert found.rounds == 1

    calls = itertools.count()

    def rising(embeddings):  # not the same draws: without a bound it would never end
        return jnp.full(len(embeddings), -float(next(calls)))

    with jax.disable_jit():
        assert composition.explain(rising, parts, ALL[7]).rounds == 2 * len(SIZES)


def test_the_second_look_takes_other_draws_and_only_what_came_close(monkeypatch):
    # Catches: the first look's winner kept whatever the second says, the same draws again, as few of them, changes that
    # are none, the worst changes instead of the best.
    table = _table(2)
    parts = composition.parts_of(table[~HELD_OUT], ALL[~HELD_OUT], SIZES)
    true, near = np.asarray([3, 1, 2]), np.asarray([4, 1, 2])
    looks, used = [], []

    def named(key, *uses):
        return (*key, *uses) if isinstance(key, tuple) else uses

    def class_losses(backbone, params, schedule, query, key, embeddings, *, num_draws, batch_size):
        looks.append((num_draws, len(embeddings)))
        used.append(named(key, "draws"))
        wanted = jnp.asarray(near if num_draws == 2 else true)
        distance = jnp.sum(jnp.square(embeddings - parts.embedding(wanted)[None]), axis=-1)
        # In the first look the true one comes second, far before all others.
        away = jnp.sum(jnp.square(embeddings - parts.embedding(jnp.asarray(true))[None]), axis=-1)
        return jnp.where((num_draws == 2) & (away < 1e-3), 1e-2, distance)

    monkeypatch.setattr(composition, "named", named)
    monkeypatch.setattr(composition.baselines, "class_losses", class_losses)
    given = (None, None, None, jnp.zeros(1), jax.random.key(0), parts, jnp.asarray([0, 0, 0]))
    found = composition.of_picture(*given, num_draws=2)
    np.testing.assert_array_equal(found.composition, true)
    np.testing.assert_allclose(found.embedding, parts.embedding(jnp.asarray(true)), rtol=1e-6)
    assert looks == [(2, sum(SIZES)), (8, 4)]
    assert used[0] != used[1]
    rows = np.asarray(found.replace(composition=jnp.asarray(near)).runners_up(parts, 3))
    np.testing.assert_array_equal(rows[:2], [near, true])
    assert (np.sum(rows != near, axis=1) == [0, 1, 1, 1]).all() and len(np.unique(rows, axis=0)) == 4
