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


def test_only_classes_of_factors_whose_values_are_all_shown_are_sums():
    # Catches: a value that occurs in held-out compositions alone, or in none; one factor; more than are compared.
    assert composition.composable([(0, 0), (1, 0), (0, 1)], (2, 2))
    assert not composition.composable([(0, 0), (1, 0)], (2, 2))
    assert not composition.composable([(0,), (1,)], (2,))
    assert not composition.composable([], ())
    many = [(i, i) for i in range(40)]
    assert not composition.composable(many, (40, 40))


@pytest.mark.parametrize("seed", range(5))
def test_the_composition_of_a_picture_is_that_of_the_smallest_loss(seed):
    # Catches: the worst kept instead of the best, losses of another round's order, the first composition for the best.
    table = _table(seed)
    parts = composition.parts_of(table[~HELD_OUT], ALL[~HELD_OUT], SIZES)
    target = table[np.random.default_rng(seed).choice(np.flatnonzero(HELD_OUT))] + 0.3

    def losses_of(number, embeddings):
        return jnp.sum(jnp.square(embeddings - target[None]), axis=-1)

    found = jax.jit(lambda: composition.explain(losses_of, parts, (len(ALL), 8, 2)))()
    nearest = int(jnp.argmin(losses_of(0, parts.embedding(jnp.asarray(ALL)))))
    np.testing.assert_array_equal(found.composition, ALL[nearest])
    np.testing.assert_allclose(found.embedding, parts.embedding(jnp.asarray(ALL[nearest])), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.loss, losses_of(0, found.embedding[None])[0], rtol=1e-3)


def test_losses_that_are_no_numbers_never_win():
    parts = composition.parts_of(_table(1)[~HELD_OUT], ALL[~HELD_OUT], SIZES)

    def losses_of(number, embeddings):
        near = jnp.sum(jnp.square(embeddings - parts.embedding(jnp.asarray(ALL[7]))[None]), axis=-1)
        return jnp.where(near < 1e-3, 1.0, jnp.nan)

    np.testing.assert_array_equal(composition.explain(losses_of, parts, (len(ALL), 4)).composition, ALL[7])


def test_later_rounds_have_fewer_compositions_and_more_draws_of_their_own(monkeypatch):
    # Catches: an early round's winner kept whatever later ones say, the same draws again, as few of them.
    table = _table(2)
    parts = composition.parts_of(table[~HELD_OUT], ALL[~HELD_OUT], SIZES)
    true, near = (parts.embedding(jnp.asarray(of)) for of in ((3, 1, 2), (4, 1, 2)))
    looks, keys = [], []

    def class_losses(backbone, params, schedule, query, key, embeddings, *, num_draws, batch_size, noise_levels):
        assert noise_levels == (0.2, 0.3)  # Catches: a default that wins over what was given
        looks.append((num_draws, len(embeddings)))
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        wanted = true if num_draws == 64 else near  # few draws take another one for the true one
        return jnp.sum(jnp.square(embeddings - wanted[None]), axis=-1)

    monkeypatch.setattr(composition.baselines, "class_losses", class_losses)
    picture, key = jnp.zeros(1), jax.random.key(0)
    found = composition.of_picture(None, None, None, picture, key, parts, num_draws=16, noise_levels=(0.2, 0.3))
    np.testing.assert_array_equal(found.composition, [3, 1, 2])
    assert looks == [(2, 60), (8, 8), (64, 4)]
    assert len(set(keys)) == 3
