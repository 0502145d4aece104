"""Training: its rules by hand on a table of numbers, and the U-Net itself on a tiny problem."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cdisc.app import devices
from cdisc.diffusion.schedule import linear_beta
from cdisc.learning import pretrain
from cdisc.networks import backbone as backbones

SCHEDULE = linear_beta(1000)
OPTIONS = pretrain.PretrainOptions(
    steps=40,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=4,
    decay_steps=10,
    weight_decay=1e-4,
    clip_norm=1.0,
    ema_decay=0.9,
    null_dropout=0.1,
    loss="eps",
)


COLOURS = jnp.asarray([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [0.5, 0.5, 1.0]])


def _share(options, x0, labels):
    """A batch as a step takes it."""
    places, _ = devices.batch_rows(options.batch_size, options.accumulate)
    return x0[places], labels[places]


def _table_backbone(seen):
    """A network that puts out its class embedding, a single number, and shows which it was given."""

    def apply(params, x, t, embeddings, adapter=None):
        jax.debug.callback(lambda e, x: seen.append((np.array(e), np.array(x))), embeddings, x)
        return jnp.broadcast_to(embeddings, x.shape)

    def table(params):
        return params["class_embedding"]["embedding"][:-1]

    return backbones.Backbone(apply=apply, table=table, null=lambda params: params["class_embedding"]["embedding"][-1])


def _table_state(options, values):
    params = {"class_embedding": {"embedding": jnp.asarray(values, jnp.float32)[:, None]}}
    return pretrain.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=pretrain.optimizer(options).init(params),
    )


def _table_step(options, seen):
    step = devices.training_step(pretrain.step(_table_backbone(seen), options, SCHEDULE, (1,)))
    points = _share(options, jnp.zeros((options.batch_size, 1)), jnp.arange(options.batch_size) % 3)
    return functools.partial(step, pictures=points, key=jax.random.key(0))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_null_dropout_replaces_its_share_of_the_labels(rate):
    options, seen = dataclasses.replace(OPTIONS, batch_size=3000, null_dropout=rate), []
    _table_step(options, seen)(_table_state(options, [10.0, 11.0, 12.0, 99.0]))
    jax.effects_barrier()
    embeddings = seen[0][0][:, 0]
    dropped = embeddings == 99.0
    np.testing.assert_array_equal(embeddings[~dropped], (10.0 + np.arange(3000) % 3)[~dropped])
    assert abs(dropped.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / 3000)
    # No class is spared.
    assert abs(dropped[::3].mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / 1000)


def test_the_average_follows_its_rule():
    """`decay = min(ema_decay, (1 + step) / (10 + step))`, of the parameters after the step."""
    options = dataclasses.replace(OPTIONS, ema_decay=0.25, warmup_steps=1)
    state, step = _table_state(options, [1.0, -1.0, 2.0, 0.0]), _table_step(options, [])
    for decay in (1 / 10, 2 / 11, 0.25, 0.25):
        ema = np.asarray(state.ema["class_embedding"]["embedding"], np.float64)
        state, _ = step(state)
        params = np.asarray(state.params["class_embedding"]["embedding"], np.float64)
        expected = decay * ema + (1 - decay) * params
        np.testing.assert_allclose(state.ema["class_embedding"]["embedding"], expected, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 4
    assert np.abs(params - expected).max() > 1e-4


def test_the_steps_draw_apart_and_the_metrics_are_those_of_the_loss():
    options, seen = dataclasses.replace(OPTIONS, batch_size=512, null_dropout=0.0), []
    state, step = _table_state(options, [40.0, 40.0, 40.0, 0.0]), _table_step(options, seen)
    state, metrics = step(state)
    _, _ = step(state)
    jax.effects_barrier()
    assert np.any(seen[0][1] != seen[1][1])
    # A constant 40 against standard normal noise: the mean of (40 - n)^2, before any clipping of its gradient,
    # 2 * 40 / 3 for each of three rows.
    np.testing.assert_allclose(metrics["loss"], 1601.0, rtol=0.02)
    np.testing.assert_allclose(metrics["grad_norm"], 80.0 / np.sqrt(3.0), rtol=0.01)


def test_the_loss_is_the_one_of_the_options():
    losses = {}
    for name in ("eps", "v"):
        options = dataclasses.replace(OPTIONS, loss=name)
        losses[name] = float(_table_step(options, [])(_table_state(OPTIONS, [1.0, 1.0, 1.0, 1.0]))[1]["loss"])
    assert losses["v"] > 10 * losses["eps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mse"}, "loss has 'mse', which cdisc does not know: use one of eps, v"),
        ({"steps": 0}, "steps is 0: use whole numbers from 1 on"),
        ({"batch_size": 0}, "batch_size is 0: use whole numbers from 1 on"),
        ({"warmup_steps": 0}, "warmup_steps is 0: use whole numbers from 1 on"),
        ({"decay_steps": -1}, "decay_steps is -1: use a whole number, 0 for no decay"),
        ({"steps": 13}, "steps is 13, fewer than the 4 of warmup_steps and the 10 of"),
        # Catches: training that climbs its loss, or averages that grow, to the end.
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0: use a positive number"),
        ({"clip_norm": math.inf}, "clip_norm is inf: use a positive number"),
        ({"ema_decay": 1.5}, r"ema_decay is 1\.5: use a number from 0 on, below 1"),
        ({"null_dropout": math.nan}, "null_dropout is nan: use a share from 0 to 1"),
    ],
)
def test_options_that_would_not_train_are_refused(changes, message):
    # Catches: among them, a rate that stays at zero without warm-up, or jumps where warm-up and decay overlap.
    with pytest.raises(ValueError, match=f"^{message}"):
        dataclasses.replace(OPTIONS, **changes)


def test_warm_up_and_decay_may_be_all_there_is():
    assert dataclasses.replace(OPTIONS, steps=14).steps == 14


def test_the_rate_warms_up_stays_and_decays():
    """Under a constant gradient every Adam step is as long as the rate."""
    optimizer = pretrain.optimizer(dataclasses.replace(OPTIONS, weight_decay=0.0))
    params = {"w": jnp.asarray(3.0)}

    def step(state, _):
        updates, state = optimizer.update({"w": jnp.asarray(0.5)}, state, params)
        return state, -updates["w"]

    _, rates = jax.lax.scan(step, optimizer.init(params), length=42)
    expected = 1e-2 * np.concatenate([[0.0, 0.25, 0.5, 0.75], np.ones(26), np.arange(10, 0, -1) / 10, [0.0, 0.0]])
    np.testing.assert_allclose(rates, expected, rtol=1e-3, atol=1e-7)


def test_weight_decay_pulls_on_the_parameters_and_not_on_the_gradient():
    optimizer = pretrain.optimizer(dataclasses.replace(OPTIONS, weight_decay=0.1, warmup_steps=1))
    params = {"w": jnp.asarray([3.0, -2.0])}
    state = optimizer.init(params)
    for expected in (np.zeros(2), -1e-2 * 0.1 * np.asarray([3.0, -2.0])):
        updates, state = optimizer.update({"w": jnp.zeros(2)}, state, params)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_a_gradient_is_clipped_by_the_norm_of_the_whole_tree():
    """Adam by hand on gradients (30, 40) then (0.3, 0.4): the first counts as (0.6, 0.8), the second in full."""
    optimizer = pretrain.optimizer(dataclasses.replace(OPTIONS, weight_decay=0.0, warmup_steps=1))
    params = {"u": jnp.asarray(0.0), "w": jnp.asarray(0.0)}
    state = optimizer.init(params)
    for u, w in ((30.0, 40.0), (0.3, 0.4)):
        updates, state = optimizer.update({"u": jnp.asarray(u), "w": jnp.asarray(w)}, state, params)
    first, second = np.asarray([0.6, 0.8]), np.asarray([0.3, 0.4])
    mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
    square = (0.999 * 0.001 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
    np.testing.assert_allclose([updates["u"], updates["w"]], -1e-2 * mean / np.sqrt(square), rtol=1e-4)


def _compiled(network=tiny.ONE_LEVEL, options=OPTIONS):
    """A step `(state, key) -> (state, metrics)` on three classes of pictures in one colour each."""
    step = devices.training_step(pretrain.step(backbones.unet(network, SCHEDULE), options, SCHEDULE, (8, 8, 3)))

    def advance(state, key):
        labels = jax.random.randint(pretrain.keys(key, state.step)[0], (options.batch_size,), 0, 3)
        pictures = jnp.broadcast_to(COLOURS[labels][:, None, None, :], (options.batch_size, 8, 8, 3))
        return step(state, _share(options, pictures, labels), key)

    return advance


@pytest.fixture(scope="module")
def initial():
    return pretrain.init(tiny.ONE_LEVEL, OPTIONS, jax.random.key(1))


@pytest.fixture
def first(initial):
    """The U-Net's state before training, as a function, because a step overwrites what it is given."""
    return lambda: jax.tree.map(jnp.copy, initial)


@pytest.fixture(scope="module")
def step():
    """The compiled step of the U-Net."""
    return _compiled()


def test_training_starts_with_an_average_of_its_own(initial):
    state = initial
    assert int(state.step) == 0
    for average, leaf in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(average, leaf)
        # A jitted step may overwrite the whole state, so no buffer is in it twice.
        assert average.unsafe_buffer_pointer() != leaf.unsafe_buffer_pointer()


def test_resumed_training_equals_unbroken_training_bit_for_bit(step, initial, first):
    key = jax.random.key(2)
    state, resumed = first(), first()
    for _ in range(6):
        state, _ = step(state, key)
    for _ in range(3):
        resumed, _ = step(resumed, key)
    # As a checkpoint would keep it: arrays alone.
    leaves, structure = jax.tree.flatten(resumed)
    resumed = jax.tree.unflatten(structure, [jnp.asarray(np.array(leaf)) for leaf in leaves])
    for _ in range(3):
        resumed, _ = step(resumed, key)
    assert int(state.step) == int(resumed.step) == 6
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(
        np.any(np.asarray(one) != np.asarray(two))
        for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(initial.params), strict=True)
    )


def test_the_loss_of_the_unet_falls(step, first):
    state, losses = first(), []
    for _ in range(OPTIONS.steps):
        state, metrics = step(state, jax.random.key(3))
        losses.append(float(metrics["loss"]))
    # Nothing but noise is predicted at first; pictures in one colour are found quickly.
    np.testing.assert_allclose(losses[0], 1.0, atol=0.2)
    assert np.mean(losses[-10:]) < 0.8


def _learnt(compiled):
    """The metrics of one step from parameters without a zero, and Adam's first moment, a tenth of the gradient.

    The gradient is clipped to length one before, so the moment is its direction; `grad_norm` is its length.
    """
    params = tiny.random_params(tiny.ONE_LEVEL)
    state = pretrain.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=pretrain.optimizer(OPTIONS).init(params),
    )
    state, metrics = compiled(state, jax.random.key(5))
    return jax.tree.map(float, metrics), optax.tree.get(state.opt_state, "mu")


def _difference(one, two):
    """The largest difference, relative to the largest value."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)]
    return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs)


@pytest.fixture(scope="module")
def learnt(step):
    return _learnt(step)


def test_a_batch_in_parts_is_the_batch_at_once():
    """The same draws bit for bit, so the same loss and gradient, whatever it is divided into."""
    found = []
    for parts in (1, 4):
        options, seen = dataclasses.replace(OPTIONS, accumulate=parts, null_dropout=0.3), []
        state, metrics = _table_step(options, seen)(_table_state(options, [1.0, -1.0, 2.0, 0.0]))
        jax.effects_barrier()
        assert [len(x) for _, x in seen] == [8 // parts] * parts
        # Calls back need not come in order.
        drawn = np.concatenate([np.concatenate(pair, axis=1) for pair in seen])
        found.append((drawn[np.lexsort(drawn.T)], metrics, optax.tree.get(state.opt_state, "mu")))
    (drawn, metrics, moment), (drawn_in_parts, metrics_in_parts, moment_in_parts) = found
    np.testing.assert_array_equal(drawn_in_parts, drawn)
    assert jax.tree.map(float, metrics_in_parts) == pytest.approx(jax.tree.map(float, metrics), rel=1e-6)
    assert _difference(moment_in_parts, moment) < 1e-6


@pytest.mark.parametrize("parts", [0, 3, 16])
def test_a_batch_that_cannot_be_divided_is_refused(parts):
    with pytest.raises(ValueError, match=f"accumulate is {parts}: the batch of 8 cannot be divided"):
        dataclasses.replace(OPTIONS, accumulate=parts)


def test_activations_that_are_computed_anew_give_the_same_gradient(learnt):
    metrics, gradient = _learnt(_compiled(dataclasses.replace(tiny.ONE_LEVEL, remat=True)))
    assert metrics == pytest.approx(learnt[0], rel=1e-5)
    assert _difference(gradient, learnt[1]) < 1e-5


def test_activations_in_bfloat16_leave_everything_that_is_kept_in_float32(learnt, first):
    """And give the gradient in float32 but for their rounding."""
    half = _compiled(dataclasses.replace(tiny.ONE_LEVEL, dtype="bfloat16"))
    state = jax.eval_shape(first)
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype("float32")}
    after, _ = jax.eval_shape(half, state, jax.random.key(0))
    assert after == state
    metrics, gradient = _learnt(half)
    assert metrics == pytest.approx(learnt[0], rel=0.02)
    assert 1e-4 < _difference(gradient, learnt[1]) < 0.05
