"""Adaptation on backbones small enough that the best embedding is known, or that every kernel can be watched."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion.loss import denoising_loss
from cdisc.diffusion.schedule import Schedule, linear_beta
from cdisc.learning import adapt
from cdisc.networks import backbone as backbones
from cdisc.networks import lora

SCHEDULE = linear_beta(1000)
SHAPE = (2, 2, 1)
OPTIONS = adapt.AdaptOptions(pool="query", start="normal", steps=300, batch_size=16, embedding_learning_rate=0.05)
POOL = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)), jnp.float32)
EXAMPLES = adapt.Examples(
    query=jnp.asarray([0.8, -0.3, 0.1, -0.9]).reshape(SHAPE),
    pool=POOL,
    classes=jnp.asarray([2, 0], jnp.int32),
    composed=jnp.asarray([-0.4, 0.3, -0.2, 0.1]),
    given=jnp.asarray([0.1, 0.2, 0.3, 0.4]),
)
PRIOR = adapt.Prior(images=0.7 * POOL[::-1], labels=jnp.asarray([0, 1, 2, 1, 0]))
KEY = jax.random.key(5)


def _change(**changes):
    return dataclasses.replace(OPTIONS, **changes)


# A class is a picture, its embedding that picture's four pixels: `eps` is exact for it, so the best embedding is what
# is to be learnt itself.
TABLE = jnp.asarray([[1.0, 0.0, 0.0, 0.5], [0.0, -1.0, 0.5, 0.0], [0.5, 0.5, -1.0, 0.0]])
POINT_PARAMS = {"table": TABLE, "null": jnp.full(4, 7.0)}


def _point_apply(params, x, t, embeddings, adapter=None):
    a = SCHEDULE.alpha_bar[t][:, None, None, None]
    return (x - jnp.sqrt(a) * embeddings.reshape(-1, *SHAPE)) / jnp.sqrt(1.0 - a)


POINTS = backbones.Backbone(apply=_point_apply, table=lambda p: p["table"], null=lambda p: p["null"])


def _fit(options, examples=EXAMPLES, steps=None, state=None):
    """All steps as one program: there is no convolution here to slow it down."""

    @jax.jit
    def run(examples, state):
        def step(state, _):
            return adapt.step(state, POINTS, POINT_PARAMS, SCHEDULE, examples, PRIOR, KEY, options)

        return jax.lax.scan(step, state, length=options.steps if steps is None else steps)

    state = adapt.init(POINTS, POINT_PARAMS, examples, KEY, options) if state is None else state
    return run(examples, state)


class Sketch(nn.Module):
    """A strided convolution and dense layers: the least that has every kind of kernel."""

    @nn.compact
    def __call__(self, x, embedding):
        h = nn.Conv(3, (3, 3), strides=2, padding=((0, 1), (0, 1)), name="conv")(x)
        h = nn.silu(h + nn.Dense(3, name="class")(embedding)[:, None, None, :])
        return x + nn.Dense(4, name="out")(h).reshape(x.shape)


def _sketch_apply(params, x, t, embeddings, adapter=None):
    return lora.apply(Sketch(), params, adapter, x, embeddings)


SKETCH = backbones.Backbone(apply=_sketch_apply, table=lambda p: p["table"], null=lambda p: p["null"])


@pytest.fixture(scope="module")
def sketch_params():
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda key: Sketch().init(key, jnp.zeros((1, *SHAPE)), jnp.zeros((1, 4))), KEY)["params"]
    net = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    return {**net, **POINT_PARAMS}


@functools.lru_cache
def _sketch_step(options):
    def step(state, examples, key, params, prior):
        return adapt.step(state, SKETCH, params, SCHEDULE, examples, prior, key, options)

    return jax.jit(step)


LORA = _change(rank=2, alpha=4.0, learning_rate=0.02, start="top1", steps=5)


def test_a_free_embedding_starts_small_or_at_the_likeliest_class():
    table = 0.3 * jax.random.normal(KEY, (3, 20_000))
    params = {"table": table, "null": table[0]}
    normal = adapt.init(POINTS, params, EXAMPLES, KEY, OPTIONS)
    assert normal.learnt["embedding"].shape == (20_000,)
    np.testing.assert_allclose(normal.learnt["embedding"].std(), 0.01, rtol=0.03)
    np.testing.assert_allclose(normal.learnt["embedding"].mean(), 0.0, atol=4e-4)
    assert int(normal.step) == 0
    assert set(normal.learnt) == {"embedding"}
    assert adapt.result(normal, POINTS, params, OPTIONS).adapter.factors == {}
    top1 = adapt.init(POINTS, params, EXAMPLES, KEY, _change(start="top1"))
    np.testing.assert_array_equal(top1.learnt["embedding"], table[2])
    composed = adapt.init(POINTS, params, EXAMPLES, KEY, _change(start="composed"))
    np.testing.assert_array_equal(composed.learnt["embedding"], EXAMPLES.composed)
    second = adapt.init(POINTS, params, EXAMPLES, KEY, _change(start="top1"), candidate=1)
    np.testing.assert_array_equal(second.learnt["embedding"], table[0])
    after = adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, _change(start="top1", after="another level"))
    np.testing.assert_array_equal(after.learnt["embedding"], EXAMPLES.given)


def test_an_embedding_in_the_span_starts_small_or_at_the_likeliest_class():
    normal = adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, _change(space="span"))
    assert normal.learnt["embedding"].shape == (3,)
    assert 0 < np.abs(normal.learnt["embedding"]).max() < 0.05
    options = _change(space="span", start="top1")
    top1 = adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, options)
    np.testing.assert_array_equal(top1.learnt["embedding"], [0.0, 0.0, 1.0])
    result = adapt.result(top1, POINTS, POINT_PARAMS, options)
    np.testing.assert_allclose(result.embedding, TABLE[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("pool", "query, teacher, both"),
        ("start", "normal, top1, composed"),
        ("space", "free, span, per_block"),
        ("loss", "eps, v"),
    ],
)
def test_an_unknown_option_is_named(field, known):
    with pytest.raises(ValueError, match=rf"^{field} has 'nearest', which cdisc does not know: use one of {known}\.$"):
        _change(**{field: "nearest"})


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": -1}, "rank is -1"),
        ({"rank": 2, "learning_rate": 0.1}, "alpha is 0.0: with rank 2"),
        ({"rank": 4, "alpha": 8.0}, "learning_rate is 0.0: with rank 4 .*nothing would be learnt"),
        ({"embedding_learning_rate": 0.0}, "embedding_learning_rate is 0.0: with rank 0"),
        ({"space": "per_block"}, "block_learning_rate is 0.0: .*'per_block'"),
        ({"embedding_learning_rate": NAN}, "embedding_learning_rate is nan: use a number from 0 on"),
        ({"learning_rate": NAN}, "^learning_rate is nan"),
        ({"block_learning_rate": -1e-3}, "block_learning_rate is -0.001"),
        ({"prior_weight": NAN}, "prior_weight is nan"),
        ({"null_dropout": 1.0}, "null_dropout is 1.0"),
        ({"null_dropout": NAN}, "null_dropout is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"candidates": 0, "start": "top1"}, "candidates is 0"),
        ({"candidates": 2}, "candidates is 2: only an adaptation that starts at 'top1'"),
        ({"candidates": 2, "start": "top1", "after": "another"}, "candidates is 2"),
        ({"space": "span", "after": "another"}, "space is 'span': an adaptation after another"),
    ],
)
def test_options_under_which_nothing_can_be_learnt_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        _change(**changes)


@pytest.mark.parametrize(
    ("changes", "lacks", "sentence"),
    [
        ({"start": "top1"}, {"classes": 0}, "start is 'top1', and the network has no class"),
        ({"start": "composed"}, {"composable": False}, "start is 'composed', and there are no classes"),
        ({"space": "span"}, {"classes": 0}, "space is 'span', and the network has no classes"),
        ({"prior_weight": 1.0}, {"pictures": False}, "prior_weight is 1.0, and there are no pictures"),
    ],
)
def test_what_a_network_and_its_data_have_nothing_for_is_refused(changes, lacks, sentence):
    # Catches: any of them left out, or asked of options that do not need it.
    there = {"classes": 2, "composable": True, "pictures": True}
    _change(**changes).require(**there)
    _change().require(classes=0, composable=False, pictures=False)
    _change(start="top1", after="one").require(classes=0, composable=False, pictures=False)
    with pytest.raises(ValueError, match=sentence):
        _change(**changes).require(**there | lacks)


def test_factors_may_learn_while_the_embedding_stays():
    assert _change(rank=2, alpha=4.0, learning_rate=0.1, embedding_learning_rate=0.0).rank == 2


def _blocks_apply(params, x, t, embeddings, adapter=None):
    """Pixel l is the mean of what block l sees: a shared embedding makes it one colour."""
    rows = jnp.broadcast_to(embeddings[:, None], (x.shape[0], 4, 4)) if embeddings.ndim == 2 else embeddings
    return _point_apply(params, x, t, rows.mean(axis=2))


BLOCKS = backbones.Backbone(apply=_blocks_apply, table=lambda p: p["table"], null=lambda p: jnp.zeros(4), num_blocks=4)
BY_BLOCK = _change(space="per_block", start="top1", block_learning_rate=0.05)


@pytest.mark.parametrize("given", [None, EXAMPLES.given, jnp.tile(EXAMPLES.given, (4, 1))])
def test_an_embedding_for_each_block_finds_what_no_shared_one_does(given):
    # Catches: d shared by the blocks, d that starts elsewhere, a start or an `after` that is dropped.
    options = dataclasses.replace(BY_BLOCK, decay=True, after="" if given is None else "another")
    examples = EXAMPLES.replace(given=given)
    state = adapt.init(BLOCKS, POINT_PARAMS, examples, KEY, options)
    first = adapt.result(state, BLOCKS, POINT_PARAMS, options).embedding
    np.testing.assert_array_equal(first, np.tile(TABLE[2] if given is None else EXAMPLES.given, (4, 1)))
    assert not np.any(state.learnt["blocks"])
    step = jax.jit(lambda s: adapt.step(s, BLOCKS, POINT_PARAMS, SCHEDULE, examples, PRIOR, KEY, options)[0])
    for _ in range(300):
        state = step(state)
    learnt = adapt.result(state, BLOCKS, POINT_PARAMS, options)
    assert learnt.embedding.shape == (4, 4) and learnt.adapter.factors == {}
    np.testing.assert_allclose(learnt.embedding.mean(axis=1), EXAMPLES.query.ravel(), atol=0.02)


def test_shared_and_per_block_embeddings_have_rates_of_their_own():
    for still, moved in (("embedding", "blocks"), ("blocks", "embedding")):
        rates = {"embedding": 1e-12, "blocks": 1e-12, moved: 0.04}
        options = dataclasses.replace(
            BY_BLOCK, embedding_learning_rate=rates["embedding"], block_learning_rate=rates["blocks"]
        )
        first = adapt.init(BLOCKS, POINT_PARAMS, EXAMPLES, KEY, options)
        state, _ = adapt.step(first, BLOCKS, POINT_PARAMS, SCHEDULE, EXAMPLES, None, KEY, options)
        np.testing.assert_allclose(state.learnt[still], first.learnt[still], atol=1e-9)
        np.testing.assert_allclose(np.abs(state.learnt[moved] - first.learnt[moved]).max(), 0.04, rtol=1e-2)


def test_the_null_class_and_trained_pictures_are_shown_without_the_blocks_part():
    # Catches: d added to the null class or to the prior's pictures.
    seen = []

    def apply(params, x, t, embeddings, adapter=None):
        jax.debug.callback(lambda e: seen.append(np.array(e)), embeddings)
        return x * jnp.sum(embeddings)

    spy = dataclasses.replace(BLOCKS, apply=apply, null=lambda p: p["null"])
    options = dataclasses.replace(BY_BLOCK, null_dropout=0.4, prior_weight=1.0, batch_size=50)
    state = adapt.init(spy, POINT_PARAMS, EXAMPLES, KEY, options)
    rows = jnp.arange(16.0).reshape(4, 4)
    state = state.replace(learnt={**state.learnt, "blocks": rows})
    adapt.step(state, spy, POINT_PARAMS, SCHEDULE, EXAMPLES, PRIOR, KEY, options)
    jax.effects_barrier()
    batch, prior = sorted(seen, key=lambda e: -e.ndim)
    null = (batch == 7.0).all(axis=(1, 2))
    assert 5 < null.sum() < 35
    np.testing.assert_array_equal(batch[~null], np.tile(np.asarray(TABLE)[2] + np.asarray(rows), (np.sum(~null), 1, 1)))
    assert {tuple(row) for row in prior.tolist()} <= {tuple(row) for row in TABLE.tolist()}


def test_a_backbone_without_residual_blocks_has_no_embedding_for_each():
    with pytest.raises(ValueError, match="space is 'per_block', and this backbone has no residual blocks"):
        adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, BY_BLOCK)


@pytest.mark.parametrize("start", adapt.STARTS)
def test_the_free_embedding_finds_the_query(start):
    """The level that composes: its best embedding is the query, which no trained class is."""
    options = _change(start=start)
    first = adapt.result(adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, options), POINTS, POINT_PARAMS, options)
    state, losses = _fit(options)
    learnt = adapt.result(state, POINTS, POINT_PARAMS, options)
    np.testing.assert_allclose(learnt.embedding.reshape(SHAPE), EXAMPLES.query, atol=0.02)
    assert int(state.step) == 300
    queries = jnp.broadcast_to(EXAMPLES.query[None], (64, *SHAPE))
    before, after = (
        denoising_loss(backbones.class_eps(POINTS, POINT_PARAMS, e), SCHEDULE, jax.random.key(9), queries)
        for e in (first.embedding, learnt.embedding)
    )
    assert after < 0.01 * before
    assert np.mean(losses[-10:]) < 0.05 * np.mean(losses[:10])


def test_the_embedding_in_the_span_finds_the_best_combination():
    """A query off the span by a little: what is learnt is in the span, and near the query."""
    coefficients = np.asarray([0.6, -0.3, 0.5])
    inside = coefficients @ np.asarray(TABLE)
    options = _change(space="span")
    state, _ = _fit(options, EXAMPLES.replace(query=jnp.asarray(inside, jnp.float32).reshape(SHAPE)))
    np.testing.assert_allclose(state.learnt["embedding"], coefficients, atol=0.03)
    off, _ = _fit(options)
    learnt = np.asarray(adapt.result(off, POINTS, POINT_PARAMS, options).embedding)
    nearest, *_ = np.linalg.lstsq(np.asarray(TABLE).T, np.asarray(EXAMPLES.query).ravel(), rcond=None)
    np.testing.assert_allclose(learnt, nearest @ np.asarray(TABLE), atol=0.05)
    assert np.abs(learnt - np.asarray(EXAMPLES.query).ravel()).max() > 0.1, "the query of this test is off the span"
    rest = learnt - np.linalg.lstsq(np.asarray(TABLE).T, learnt, rcond=None)[0] @ np.asarray(TABLE)
    np.testing.assert_allclose(rest, np.zeros(4), atol=1e-6)


def test_l1_counts_the_coefficients_of_the_span_alone():
    options = _change(space="span", steps=1)
    state = adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, options)
    state = state.replace(learnt={"embedding": jnp.asarray([0.5, -2.0, 0.25])})
    without, with_l1 = (float(_fit(dataclasses.replace(options, l1=l1), state=state)[1][0]) for l1 in (0.0, 10.0))
    np.testing.assert_allclose(with_l1 - without, 10.0 * 2.75, rtol=1e-4)
    free = adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, OPTIONS)
    assert _fit(_change(l1=10.0), steps=1, state=free)[1] == _fit(OPTIONS, steps=1, state=free)[1]


def _seen(options, examples=EXAMPLES):
    """The pictures and embeddings that one step shows the network, nearly without noise."""
    seen = []

    def apply(params, x, t, embeddings, adapter=None):
        jax.debug.callback(lambda x, e: seen.append((np.array(x), np.array(e))), x, embeddings)
        return x * jnp.sum(embeddings)

    clear = Schedule(alpha_bar=jnp.asarray([1.0, 1.0 - 1e-6, 1.0 - 2e-6]))
    spy = dataclasses.replace(POINTS, apply=apply)
    state = adapt.init(spy, POINT_PARAMS, examples, KEY, options)
    adapt.step(state, spy, POINT_PARAMS, clear, examples, PRIOR, KEY, options)
    jax.effects_barrier()
    return state, seen


@pytest.mark.parametrize(("pool", "share"), [("query", 1.0), ("teacher", 0.0), ("both", 0.5)])
def test_a_batch_comes_from_the_query_the_teacher_or_both(pool, share):
    _, seen = _seen(_change(pool=pool, batch_size=400))
    pictures = np.concatenate([np.asarray(EXAMPLES.query)[None], np.asarray(POOL)])
    distances = np.abs(seen[0][0][:, None] - pictures[None]).max(axis=(2, 3, 4))
    assert (distances.min(axis=1) < 0.02).all()
    counts = np.bincount(distances.argmin(axis=1), minlength=6) / 400
    assert abs(counts[0] - share) <= 5 * np.sqrt(share * (1 - share) / 400)
    np.testing.assert_allclose(counts[1:], (1 - share) / 5, atol=0.1 if share < 1 else 0.0)


def test_no_more_examples_are_needed_than_the_options_say():
    _, seen = _seen(_change(pool="query"), adapt.Examples(EXAMPLES.query))
    assert seen[0][0].shape == (16, *SHAPE)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("pool", {"pool": "both"}),
        ("classes", {"start": "top1"}),
        ("composed", {"start": "composed"}),
        ("given", {"after": "another"}),
    ],
)
def test_examples_that_are_missing_are_named(field, changes):
    with pytest.raises(ValueError, match=f"^examples.{field} is None"):
        _seen(_change(**changes), adapt.Examples(EXAMPLES.query))


@pytest.mark.parametrize(
    ("changes", "key", "sentence"),
    [
        ({"query": EXAMPLES.query.astype(jnp.bfloat16)}, KEY, "examples.query is bfloat16"),
        ({"query": jnp.ones(SHAPE, jnp.uint8)}, KEY, "examples.query is uint8"),
        ({"pool": POOL[0]}, KEY, r"examples.pool has the shape \(2, 2, 1\): give pictures like the query"),
        ({}, 7, "the key is int"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(changes, key, sentence):
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        adapt.fit(POINTS, POINT_PARAMS, SCHEDULE, EXAMPLES.replace(**changes), key, _change(pool="both", steps=1))


def test_candidates_are_compared_by_their_losses_in_the_second_half():
    # Catches: the last loss alone, the mean of all, the first half.
    losses = jnp.asarray([[9.0, 0.0, 1.0, 3.0], [0.0, 0.0, 5.0, 1.0]])
    np.testing.assert_allclose(adapt.late_loss(losses), [2.0, 3.0])
    np.testing.assert_allclose(adapt.late_loss(jnp.asarray([9.0, 1.0, 3.0])), 2.0)


def test_null_dropout_shows_the_null_class_to_its_share():
    state, seen = _seen(_change(null_dropout=0.3, batch_size=2000))
    null = (seen[0][1] == 7.0).all(axis=1)
    assert abs(null.mean() - 0.3) < 5 * np.sqrt(0.21 / 2000)
    np.testing.assert_array_equal(seen[0][1][~null], np.tile(state.learnt["embedding"], (np.sum(~null), 1)))
    _, seen = _seen(OPTIONS)
    np.testing.assert_array_equal(seen[0][1], np.tile(state.learnt["embedding"], (16, 1)))


def test_the_prior_shows_trained_pictures_with_their_own_embeddings():
    assert len(_seen(OPTIONS)[1]) == 1
    _, seen = _seen(_change(prior_weight=1.0, batch_size=100))
    assert len(seen) == 2
    x, embeddings = next(pair for pair in seen if (pair[1] != pair[1][0]).any())
    rows = np.abs(x[:, None] - np.asarray(PRIOR.images)[None]).max(axis=(2, 3, 4)).argmin(axis=1)
    assert set(rows) == set(range(5))
    np.testing.assert_array_equal(embeddings, np.asarray(TABLE)[np.asarray(PRIOR.labels)[rows]])


def _moment(state):
    """Adam's first moment after one step, a tenth of the gradient: of the embedding, and of the adapter."""
    inner = state.opt_state.inner_states
    moments = {name: inner[name].inner_state[0].mu[name] for name in ("embedding", "adapter")}
    return np.asarray(moments["embedding"]), jax.tree.map(np.asarray, moments["adapter"])


def test_the_prior_teaches_the_adapter_and_not_the_embedding(sketch_params):
    states = {}
    for weight in (0.0, 1.0, 2.0):
        options = dataclasses.replace(LORA, prior_weight=weight)
        state = adapt.init(SKETCH, sketch_params, EXAMPLES, KEY, options)
        states[weight], loss = _sketch_step(options)(state, EXAMPLES, KEY, sketch_params, PRIOR)
        assert np.isfinite(loss)
    embeddings, adapters = zip(*(_moment(states[weight]) for weight in (0.0, 1.0, 2.0)), strict=True)
    assert np.abs(embeddings[0]).max() > 1e-4
    np.testing.assert_allclose(embeddings[1], embeddings[0], rtol=1e-4, atol=1e-7)
    without, once, twice = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(a)]) for a in adapters)
    assert np.abs(once - without).max() > 1e-3
    # The gradient is linear in the weight.
    np.testing.assert_allclose(twice - without, 2.0 * (once - without), rtol=1e-3, atol=1e-5)


def test_lora_learns_beside_the_embedding_and_leaves_the_base_alone(sketch_params):
    before = jax.tree.map(np.array, sketch_params)
    state = first = adapt.init(SKETCH, sketch_params, EXAMPLES, KEY, LORA)
    assert set(first.learnt["adapter"].factors) == set(lora.kernels(sketch_params)) == {"conv", "class", "out"}
    step = _sketch_step(LORA)
    for _ in range(LORA.steps):
        state, _ = step(state, EXAMPLES, KEY, sketch_params, PRIOR)
    for path, factors in state.learnt["adapter"].factors.items():
        assert np.any(factors["b"]), path
        assert np.any(np.asarray(factors["a"]) != np.asarray(first.learnt["adapter"].factors[path]["a"])), path
    assert np.any(np.asarray(state.learnt["embedding"]) != np.asarray(first.learnt["embedding"]))
    for leaf, old in zip(jax.tree.leaves(sketch_params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(leaf, old)
    learnt = adapt.result(state, SKETCH, sketch_params, LORA)
    assert learnt.adapter is state.learnt["adapter"]
    assert learnt.adapter.scale == 2.0
    np.testing.assert_array_equal(learnt.embedding, state.learnt["embedding"])


@pytest.mark.parametrize("name", ["learning_rate", "embedding_learning_rate"])
def test_the_embedding_and_the_adapter_have_rates_of_their_own(sketch_params, name):
    options = dataclasses.replace(LORA, **{name: 1e-12})
    first = adapt.init(SKETCH, sketch_params, EXAMPLES, KEY, options)
    state, _ = _sketch_step(options)(first, EXAMPLES, KEY, sketch_params, PRIOR)
    still, moved = ("adapter", "embedding") if name == "learning_rate" else ("embedding", "adapter")
    for leaf, old in zip(*(jax.tree.leaves(each.learnt[still]) for each in (state, first)), strict=True):
        np.testing.assert_allclose(leaf, old, atol=1e-9)
    # The first step of Adam is as long as its rate.
    rate = max(options.learning_rate, options.embedding_learning_rate)
    lengths = jax.tree.map(lambda new, old: np.abs(new - old).max(), state.learnt[moved], first.learnt[moved])
    np.testing.assert_allclose(max(jax.tree.leaves(lengths)), rate, rtol=1e-2)


def test_queries_side_by_side_equal_one_after_the_other(sketch_params):
    options = dataclasses.replace(LORA, pool="both", null_dropout=0.2, prior_weight=0.5)
    many = [
        EXAMPLES,
        dataclasses.replace(EXAMPLES, query=-EXAMPLES.query, pool=0.5 * POOL, classes=jnp.asarray([0, 1])),
    ]
    keys = jax.random.split(KEY, 2)
    alone = []
    for examples, key in zip(many, keys, strict=True):
        state = adapt.init(SKETCH, sketch_params, examples, key, options)
        for _ in range(3):
            state, _ = _sketch_step(options)(state, examples, key, sketch_params, PRIOR)
        alone.append(state)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    state = jax.vmap(lambda examples, key: adapt.init(SKETCH, sketch_params, examples, key, options))(stacked, keys)
    together = jax.jit(jax.vmap(_sketch_step(options), in_axes=(0, 0, 0, None, None)))
    for _ in range(3):
        state, losses = together(state, stacked, keys, sketch_params, PRIOR)
    assert losses.shape == (2,)
    for row, one in enumerate(alone):
        for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(leaf[row], expected, rtol=1e-3, atol=1e-4)


def test_decaying_rates_follow_a_cosine_to_zero():
    options = _change(decay=True, steps=10)
    first = adapt.init(POINTS, POINT_PARAMS, EXAMPLES, KEY, options)
    state, _ = _fit(options, steps=10)
    # At step n the cosine has fallen to (1 + cos(pi n / steps)) / 2; an eleventh step does not move.
    moved = np.abs(_fit(options, steps=1)[0].learnt["embedding"] - first.learnt["embedding"]).max()
    np.testing.assert_allclose(moved, options.embedding_learning_rate, rtol=1e-2)
    after = _fit(options, steps=1, state=state)[0]
    np.testing.assert_array_equal(after.learnt["embedding"], state.learnt["embedding"])


def test_learning_goes_on_as_if_it_had_not_been_interrupted():
    options = _change(pool="both", null_dropout=0.1)
    whole, losses = _fit(options, steps=8)
    half, first = _fit(options, steps=5)
    resumed, second = _fit(options, steps=3, state=jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), half))
    np.testing.assert_allclose(np.concatenate([first, second]), losses, rtol=1e-5)
    np.testing.assert_allclose(resumed.learnt["embedding"], whole.learnt["embedding"], rtol=1e-5, atol=1e-6)
    assert int(resumed.step) == 8
    assert len(set(np.asarray(losses).tolist())) == 8
