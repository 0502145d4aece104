"""The judge: it learns what it is shown, its features have their scale, and its verdict ignores slight noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.evaluation import judge as judging
from cdisc.networks.unet import space_to_depth

FACTORS = ("place", "colour")
NETWORK = judging.JudgeNetwork(num_values=(3, 2), width=8, num_features=12)
SHAPE = (8, 8, 3)


def _pictures(n, seed):
    """A 2 x 2 square in one of three places, red or blue, on grey that varies."""
    rng = np.random.default_rng(seed)
    attributes = np.stack([rng.integers(0, 3, n), rng.integers(0, 2, n)], axis=-1)
    images = np.broadcast_to(rng.uniform(-0.3, 0.3, (n, 1, 1, 1)), (n, *SHAPE)).astype(np.float32).copy()
    for image, (place, colour) in zip(images, attributes, strict=True):
        image[3:5, 2 * place + 1 : 2 * place + 3] = -1.0
        image[3:5, 2 * place + 1 : 2 * place + 3, 2 * colour] = 1.0
    return jnp.asarray(images), jnp.asarray(attributes, jnp.int32)


@functools.cache
def _trained():
    params = judging.init(NETWORK, jax.random.key(0), SHAPE)
    data = judging.Labelled(*_pictures(256, seed=0))
    batch = functools.partial(judging.draw, batch_size=32)
    return judging.train(
        NETWORK, params, batch, data, jax.random.key(1), steps=120, learning_rate=1e-2, noise=0.1, max_shift=0
    )


def test_training_makes_a_judge_of_unseen_pictures():
    params, losses = _trained()
    assert losses.shape == (120,)
    # ln 3 + ln 2 is chance.
    assert np.mean(losses[:3]) > 1.5 and np.mean(losses[-20:]) < 0.1
    images, attributes = _pictures(200, seed=1)
    judge = judging.network_judge(NETWORK, params, FACTORS)
    assert judge.factors == FACTORS
    assert [logits.shape for logits in judge.predict(images)] == [(200, 3), (200, 2)]
    assert np.mean(judging.verdict(judge, images) == attributes) > 0.98


def test_the_verdict_stands_under_slight_noise():
    params, _ = _trained()
    images, attributes = _pictures(200, seed=2)
    noisy = images + 0.1 * jax.random.normal(jax.random.key(2), images.shape)
    judge = judging.network_judge(NETWORK, params, FACTORS)
    assert np.mean(judging.verdict(judge, noisy) == attributes) > 0.97


def test_features_are_the_penultimate_layer_with_mean_zero_and_mean_square_one():
    params, _ = _trained()
    images, _ = _pictures(10, seed=3)
    judge = judging.network_judge(NETWORK, params, FACTORS)
    features = judge.features(images)
    assert features.shape == (10, 12)
    np.testing.assert_allclose(jnp.mean(features, axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.mean(jnp.square(features), axis=1), 1.0, rtol=1e-3)
    # Every head is linear in them.
    for logits in judge.predict(images):
        design = np.concatenate([features, np.ones((10, 1))], axis=1)
        fit = np.linalg.lstsq(design[:, :], np.asarray(logits), rcond=None)[0]
        np.testing.assert_allclose(design @ fit, logits, atol=1e-3)
    head = params["Dense_1"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], judge.predict(images)[0], atol=1e-4)


def test_a_picture_is_judged_alone_whatever_the_batch_and_in_half_precision():
    params, _ = _trained()
    images, _ = _pictures(7, seed=4)
    whole = judging.network_judge(NETWORK, params, FACTORS)
    small = judging.network_judge(NETWORK, params, FACTORS, batch_size=3)
    np.testing.assert_allclose(small.features(images), whole.features(images), atol=1e-5)
    half = judging.network_judge(NETWORK, jax.tree.map(lambda p: p.astype(jnp.float16), params), FACTORS)
    assert half.features(images).dtype == jnp.float32
    np.testing.assert_allclose(half.features(images), whole.features(images), atol=0.02)


def test_training_is_a_function_of_its_key():
    params = judging.init(NETWORK, jax.random.key(0), SHAPE)
    data = judging.Labelled(*_pictures(64, seed=5))
    batch = functools.partial(judging.draw, batch_size=8)
    runs = [
        judging.train(NETWORK, params, batch, data, jax.random.key(seed), steps=2, max_shift=1)[1] for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.all(runs[0] != runs[2])


def test_loss_is_the_cross_entropy_summed_over_factors():
    params = judging.init(NETWORK, jax.random.key(6), SHAPE)
    images, attributes = _pictures(5, seed=6)
    logits, _ = NETWORK.apply({"params": params}, images)
    expected = 0.0
    for f, head in enumerate(logits):
        probabilities = np.exp(head) / np.exp(head).sum(-1, keepdims=True)
        expected -= np.mean(np.log(probabilities[np.arange(5), attributes[:, f]]))
    assert judging.loss(NETWORK, params, images, attributes) == pytest.approx(expected, rel=1e-5)


def test_augment_shifts_within_bounds_and_noises_each_picture_by_its_own_scale():
    images = jnp.zeros((4, 9, 9, 1)).at[:, 4, 4].set(100.0)
    places = set()
    for key in jax.random.split(jax.random.key(7), 60):
        shifted = judging.augment(key, images, noise=0.0, max_shift=1)
        assert jnp.sum(shifted) == 400.0
        places.add(divmod(int(jnp.argmax(shifted[0])), 9))
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
    noise = judging.augment(jax.random.key(8), jnp.zeros((2000, 16, 16, 1)), noise=0.2, max_shift=0)
    scales = np.sort(np.std(noise, axis=(1, 2, 3)))
    # Uniform on [0, 0.2].
    np.testing.assert_allclose(scales[[200, 1000, 1800]], [0.02, 0.1, 0.18], atol=0.01)


def test_draw_keeps_pictures_with_their_attributes_and_reaches_all():
    data = judging.Labelled(jnp.arange(5.0)[:, None, None, None], jnp.arange(5)[:, None])
    images, attributes = judging.draw(data, jax.random.key(9), batch_size=200)
    np.testing.assert_array_equal(images[:, 0, 0, 0], attributes[:, 0])
    assert set(attributes[:, 0].tolist()) == {0, 1, 2, 3, 4}


def test_the_default_judge_of_32_by_32_pictures_is_small():
    network = judging.JudgeNetwork(num_values=(10, 4, 4))
    params = jax.eval_shape(lambda key: judging.init(network, key, (32, 32, 3)), jax.random.key(0))
    assert 2 * sum(p.size for p in jax.tree.leaves(params)) < 300_000


def test_the_first_convolution_sees_each_two_by_two_block():
    image = jnp.arange(4 * 4 * 2.0).reshape(1, 4, 4, 2)
    blocks = space_to_depth(image, 2)
    np.testing.assert_array_equal(blocks[0, 1, 0], image[0, 2:4, 0:2].reshape(-1))


def test_the_nearest_level_judge_is_exact():
    judge = judging.nearest_level_judge(("x", "y"), ((-1.0, 0.0, 1.0), (0.0, 10.0)))
    points = jnp.asarray([[-0.6, 4.9], [0.4, 5.1], [7.0, -3.0]])
    np.testing.assert_array_equal(judging.verdict(judge, points), [[0, 0], [1, 1], [2, 0]])
    np.testing.assert_array_equal(judge.features(points), points)
    np.testing.assert_allclose(judge.predict(points)[1][0], [-(4.9**2), -(5.1**2)], rtol=1e-5)


def test_between_levels_of_two_widths_the_more_likely_one_is_seen():
    judge = judging.nearest_level_judge(("x",), ((0.0, 1.0),), (0.1, 0.4))
    points = np.linspace(-3, 4, 141, dtype=np.float32)[:, None]
    likely = [-0.5 * ((points[:, 0] - level) / std) ** 2 - np.log(std) for level, std in ((0.0, 0.1), (1.0, 0.4))]
    # Catches: the distance alone, and a log density without its normaliser. Far on the left the wide level wins.
    np.testing.assert_array_equal(judging.verdict(judge, points)[:, 0], np.argmax(likely, axis=0))
    assert judging.verdict(judge, jnp.asarray([[-2.0], [0.32], [0.2]]))[:, 0].tolist() == [1, 1, 0]


def test_names_must_match_the_factors():
    with pytest.raises(ValueError, match="1 names for a judge of 2 factors"):
        judging.network_judge(NETWORK, {}, ("place",))
    with pytest.raises(ValueError, match="1 names for 2 coordinates"):
        judging.nearest_level_judge(("x",), ((0.0,), (1.0,)))
