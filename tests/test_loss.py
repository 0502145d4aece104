"""The denoising loss: its timesteps, its error and its weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import loss
from cdisc.diffusion.parameterization import v_from_eps
from cdisc.diffusion.schedule import add_noise, linear_beta

SCHEDULE = linear_beta(1000)


def test_stratified_timesteps_put_one_in_each_part_of_the_schedule():
    for seed in range(5):
        t = np.asarray(loss.stratified_timesteps(jax.random.key(seed), 10, 1000))
        assert t.dtype == np.int32
        assert sorted((t - 1) // 100) == list(range(10))
        # One offset serves all of them.
        np.testing.assert_array_equal(np.diff(np.sort(t)), np.full(9, 100))
    every = np.sort(loss.stratified_timesteps(jax.random.key(9), 40, 20))
    np.testing.assert_array_equal(every, np.repeat(np.arange(1, 21), 2))


def test_stratified_timesteps_are_uniform_at_every_place_of_the_batch():
    """So a place's label or noise has no timestep of its own. 20 cells, 4,000 draws: chi-square has 19 degrees."""
    n, num_timesteps = 4000, 20
    t = jax.vmap(lambda key: loss.stratified_timesteps(key, 3, num_timesteps))(jax.random.split(jax.random.key(0), n))
    assert t.shape == (n, 3)
    for place in range(3):
        counts = np.bincount(np.asarray(t)[:, place], minlength=num_timesteps + 1)
        assert counts[0] == 0
        assert len(counts) == num_timesteps + 1
        expected = n / num_timesteps
        assert np.sum((counts[1:] - expected) ** 2 / expected) < 19 + 5 * np.sqrt(2 * 19)


def test_stratified_timesteps_of_some_noise_levels_fill_that_part_of_the_schedule_alone():
    for seed in range(5):
        t = np.sort(loss.stratified_timesteps(jax.random.key(seed), 10, 1000, (0.35, 0.6)))
        np.testing.assert_array_equal((t - 351) // 25, np.arange(10))  # Catches: a span that begins at 1
    t, _ = loss.draw_noise(jax.random.key(0), SCHEDULE, (64, 2), (0.9, 1.0))
    assert t.min() > 900 and t.max() <= 1000
    for wrong in ((0.6, 0.35), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.5,), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match=r"noise_levels is .*two growing shares"):
            loss.stratified_timesteps(jax.random.key(0), 10, 1000, wrong)


def test_eps_error_is_the_mean_square_over_each_picture():
    x0 = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    t = jnp.asarray([1, 500, 1000])
    offset = jnp.asarray([0.0, 0.5, -2.0])[:, None, None, None]

    def eps_fn(x, times):
        np.testing.assert_array_equal(times, t)
        np.testing.assert_allclose(x, add_noise(SCHEDULE, x0, noise, t))
        return noise + offset

    np.testing.assert_allclose(loss.eps_error(eps_fn, SCHEDULE, x0, t, noise), [0.0, 0.25, 4.0], atol=1e-6)
    half = loss.eps_error(lambda x, t: noise.at[:, :2].add(1.0), SCHEDULE, x0, t, noise)
    np.testing.assert_allclose(half, [0.5, 0.5, 0.5], atol=1e-6)


def test_the_v_weight_turns_the_error_of_eps_into_that_of_v():
    t = jnp.asarray([50, 200, 400, 700])
    x0 = jax.random.normal(jax.random.key(0), (4, 3, 3, 1))
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    guess = noise + 0.5 * jax.random.normal(jax.random.key(2), x0.shape)
    x = add_noise(SCHEDULE, x0, noise, t)
    v_error = jnp.mean(
        jnp.square(v_from_eps(SCHEDULE, x, guess, t) - v_from_eps(SCHEDULE, x, noise, t)), axis=(1, 2, 3)
    )
    weighted = loss.loss_weight(SCHEDULE, t, "v") * loss.eps_error(lambda x, t: guess, SCHEDULE, x0, t, noise)
    np.testing.assert_allclose(weighted, v_error, rtol=1e-3)


def test_the_eps_weight_is_one():
    np.testing.assert_array_equal(loss.loss_weight(SCHEDULE, jnp.asarray([1, 1000]), "eps"), [1.0, 1.0])


@pytest.mark.parametrize("name", loss.LOSSES)
def test_denoising_loss_is_the_weighted_mean_over_all_timesteps(name):
    """A model wrong by a constant: with as many pictures as timesteps, each timestep is met once, whatever the key."""
    schedule = linear_beta(16, 0.01, 0.5)
    x0 = jnp.full((16, 2, 2, 1), 0.3)

    def wrong_by_half(x, t):
        a = schedule.alpha_bar[t][:, None, None, None]
        return (x - jnp.sqrt(a) * 0.3) / jnp.sqrt(1.0 - a) + 0.5

    value = loss.denoising_loss(wrong_by_half, schedule, jax.random.key(3), x0, name)
    weights = 1.0 if name == "eps" else 1.0 / np.asarray(schedule.alpha_bar)[1:]
    np.testing.assert_allclose(value, 0.25 * np.mean(weights), rtol=1e-4)


def test_denoising_loss_of_predicting_nothing_is_the_power_of_the_noise():
    x0 = jnp.zeros((64, 8, 8, 1))
    values = [loss.denoising_loss(lambda x, t: jnp.zeros_like(x), SCHEDULE, jax.random.key(s), x0) for s in range(2)]
    np.testing.assert_allclose(values, [1.0, 1.0], atol=5 * np.sqrt(2 / 4096))
    assert values[0] != values[1]


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match="loss has 'x0', which cdisc does not know: use one of eps, v"):
        loss.loss_weight(SCHEDULE, jnp.asarray([1]), "x0")
    with pytest.raises(ValueError, match="'x0'"):
        loss.denoising_loss(lambda x, t: x, SCHEDULE, jax.random.key(0), jnp.ones((1, 2)), "x0")
