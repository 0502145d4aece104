"""Baselines against networks whose losses are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact
from cdisc.diffusion.schedule import linear_beta
from cdisc.evaluation import baselines, composition
from cdisc.networks.backbone import Backbone

SCHEDULE = linear_beta(100)
QUERY = jnp.asarray([0.5, -0.2, 0.1])


def _offset_network(x, t, embedding):
    """Exact for the query itself, but wrong by the embedding."""
    a = SCHEDULE.alpha_bar[t][:, None]
    return (x - jnp.sqrt(a) * QUERY[None]) / jnp.sqrt(1.0 - a) + embedding


def class_losses(conditional, table, *args, **counts):
    """Of a model that has a table for parameters."""
    model = Backbone(lambda params, x, t, embeddings: conditional(x, t, embeddings), lambda params: params, None)
    return baselines.class_losses(model, table, *args, **counts)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_class_losses_are_the_mean_square_errors(batch_size):
    table = jnp.asarray([[0.3, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, -0.2, 0.2], [1.0, 1.0, 1.0]])
    losses = class_losses(
        _offset_network, table, SCHEDULE, QUERY, jax.random.key(0), num_draws=5, batch_size=batch_size
    )
    np.testing.assert_allclose(losses, np.mean(np.square(table), axis=1), atol=2e-5)


def test_every_class_meets_the_same_stratified_draws():
    seen = []

    def conditional(x, t, embedding):
        jax.debug.callback(lambda *values: seen.append(jax.tree.map(np.array, values)), x, t, embedding)
        return jnp.zeros_like(x)

    table = jnp.arange(3.0)[:, None]
    losses = class_losses(conditional, table, SCHEDULE, QUERY, jax.random.key(1), num_draws=10, batch_size=8)
    jax.effects_barrier()
    # The loss of predicting nothing depends on the draws alone, so it must be equal to the last bit.
    assert losses[0] == losses[1] == losses[2]
    x, t, embedding = (np.concatenate(column) for column in zip(*seen, strict=True))
    for c in range(3):
        times = sorted(set(t[embedding[:, 0] == c].tolist()))
        assert [(time - 1) // 10 for time in times] == list(range(10))
        np.testing.assert_array_equal(np.unique(x[embedding[:, 0] == c], axis=0), np.unique(x, axis=0))


def test_class_losses_reach_both_ends_of_the_schedule():
    def conditional(x, t, embedding):
        return jnp.where((t == 1) | (t == 3), 1000.0, 0.0)[:, None] * jnp.ones_like(x)

    # Three draws of three timesteps are 1, 2 and 3, once each.
    losses = class_losses(
        conditional, jnp.zeros((1, 1)), linear_beta(3), QUERY, jax.random.key(2), num_draws=3, batch_size=2
    )
    assert losses[0] == pytest.approx(1e6 * 2 / 3, rel=1e-2)


def test_top1_finds_the_class_that_made_the_query():
    means = jnp.asarray([[0.9, 0.9], [-0.9, 0.9], [-0.9, -0.9], [0.9, -0.9]])

    def conditional(x, t, embedding):
        a = SCHEDULE.alpha_bar[t][:, None]
        return jnp.sqrt(1.0 - a) * (x - jnp.sqrt(a) * embedding) / (a * 0.01 + 1.0 - a)

    query = jnp.asarray([-0.8, -0.95])
    losses = class_losses(conditional, means, SCHEDULE, query, jax.random.key(3), num_draws=16)
    assert baselines.top1(losses) == 2


def test_a_loss_that_is_not_a_number_never_wins():
    # Catches: argmin and top_k as they are, which prefer it.
    losses = jnp.asarray([0.5, jnp.nan, 0.2, 0.3, jnp.inf])
    assert baselines.top1(losses) == 2
    classes, weights = baselines.top3_weights(losses, 0.1)
    np.testing.assert_array_equal(classes, [2, 3, 0])
    np.testing.assert_allclose(weights, jax.nn.softmax(jnp.asarray([-2.0, -3.0, -5.0])), rtol=1e-5)


@pytest.mark.parametrize(
    ("query", "changes", "sentence"),
    [
        (QUERY.astype(jnp.bfloat16), {}, "query is bfloat16 of shape .*: give a picture as float32"),
        (jnp.ones(3, jnp.int32), {}, "query is int32"),
        ([0.5, 0.1], {}, "query is list"),
        (QUERY, {"key": 1}, "the key is int"),
        (QUERY, {"num_draws": 0}, "num_draws is 0"),
    ],
)
def test_what_class_losses_cannot_use_is_named(query, changes, sentence):
    arguments = {"key": jax.random.key(0)} | changes
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        class_losses(_offset_network, jnp.zeros((2, 3)), SCHEDULE, query, **arguments)


def test_top3_weights_are_a_softmax_over_the_three_smallest_losses():
    losses = jnp.asarray([0.5, 0.1, 0.9, 0.2, 0.4])
    classes, weights = baselines.top3_weights(losses, 0.1)
    np.testing.assert_array_equal(classes, [1, 3, 4])
    expected = np.exp([-1.0, -2.0, -4.0])
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)


def test_the_query_only_teacher_is_the_gaussian_around_the_query():
    teacher = baselines.query_only_teacher(QUERY, 0.3)
    mixture = exact.GaussianMixture(weights=jnp.ones(1), means=QUERY[None], variances=jnp.full((1, 3), 0.09))
    x, t = jax.random.normal(jax.random.key(5), (4, 3)), jnp.asarray([1, 20, 60, 100])
    np.testing.assert_allclose(
        teacher.eps(SCHEDULE)(x, t), exact.mixture_eps(mixture, SCHEDULE)(x, t), rtol=1e-4, atol=1e-5
    )


def test_factors_are_told_exactly_where_losses_are_sums_of_parts():
    # Catches: the mean over classes of a value, which held-out ones bias; the nearest class, which is never held out; a
    # constant that moves between factors.
    rng = np.random.default_rng(0)
    sizes = (5, 4, 3)
    cells = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, 3)
    held_out = (cells[:, 1] + cells[:, 2]) % 4 == 0
    parts = [rng.normal(size=(len(cells), size)) for size in sizes]
    losses = sum(part[:, cells[~held_out][:, f]] for f, part in enumerate(parts)) + 7.0
    expected = np.stack([part.argmin(axis=1) for part in parts], axis=1)
    found = composition.factor_verdict(jnp.asarray(losses, jnp.float32), jnp.asarray(cells[~held_out]), sizes)
    np.testing.assert_array_equal(found, expected)
    nearest = cells[~held_out][losses.argmin(axis=1)]
    assert not (nearest == expected).all()
    with pytest.raises(ValueError, match="no trained class shows"):
        composition.factor_verdict(jnp.zeros((1, 2)), jnp.asarray([[0, 0], [1, 0]]), (2, 2))
