"""Guided densities against their formula on an exact backbone, and the one sampler that serves them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cdisc.diffusion import exact
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.sampling import ddim
from cdisc.diffusion.schedule import linear_beta, sigma
from cdisc.evaluation import methods
from cdisc.evaluation.options import Evaluate, Method
from cdisc.learning.adapt import Adaptation, AdaptOptions
from cdisc.networks import backbone as backbones
from cdisc.networks import lora

SCHEDULE = linear_beta(1000)
MIXTURE = exact.GaussianMixture(
    weights=jnp.asarray([0.5, 0.3, 0.2]),
    means=jnp.asarray([[0.7, 0.7], [-0.7, 0.2], [0.1, -0.8]]),
    variances=jnp.asarray([[0.01, 0.02], [0.03, 0.01], [0.02, 0.02]]),
)
BACKBONE = backbones.mixture(SCHEDULE)
TEACHER = Gaussian(mean=jnp.asarray([0.2, -0.4]), variance=jnp.asarray([0.05, 3.0]))
X = jax.random.normal(jax.random.key(0), (4, 2))
T = jnp.asarray([20, 250, 600, 1000])


def _eps(weights, x=X):
    """The exact prediction of the mixture with these weights, in float64."""
    a = np.asarray(SCHEDULE.alpha_bar, np.float64)[np.asarray(T)][:, None, None]
    means, variances = np.asarray(MIXTURE.means, np.float64)[None], np.asarray(MIXTURE.variances, np.float64)[None]
    spread = a * variances + 1 - a
    offset = np.asarray(x, np.float64)[:, None] - np.sqrt(a) * means
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(weights, np.float64)) - 0.5 * np.sum(offset**2 / spread + np.log(spread), axis=2)
    gamma = np.exp(logs - logs.max(axis=1, keepdims=True))
    gamma /= gamma.sum(axis=1, keepdims=True)
    return np.sqrt(1 - a[:, 0]) * np.sum(gamma[:, :, None] * offset / spread, axis=1)


def _teacher_terms():
    """The teacher's prediction and its noised variance, (4, 2) in float64."""
    a = np.asarray(SCHEDULE.alpha_bar, np.float64)[np.asarray(T)][:, None]
    spread = a * np.asarray(TEACHER.variance, np.float64) + 1 - a
    return np.sqrt(1 - a) * (np.asarray(X) - np.sqrt(a) * np.asarray(TEACHER.mean)) / spread, spread


@pytest.fixture(scope="module")
def predict():
    """The compiled prediction of a density at X, T."""
    return jax.jit(lambda density: methods.guided_eps(BACKBONE, MIXTURE, SCHEDULE, density)(X, T))


def test_a_teacher_and_classes_add_to_the_null_model(predict):
    classes = jnp.asarray([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    level = np.asarray(sigma(SCHEDULE, T))
    density = methods.GuidedDensity(
        embeddings=classes,
        weights=jnp.asarray([1.3, -0.4]),
        teacher=TEACHER,
        teacher_weight=0.8,
        teacher_sigma_min=float(level[1:3].mean()),
        w_max=1.0,
    )
    null = _eps(MIXTURE.weights)
    teacher, spread = _teacher_terms()
    # Eq. 14 with its cap, and nothing below the noise level.
    weight = np.minimum(0.8 * spread.mean(axis=1, keepdims=True), 1.0) * np.asarray([[0.0], [0.0], [1.0], [1.0]])
    assert (weight[2:] < 1.0).all()
    expected = null + weight * (teacher - null) + 1.3 * (_eps(classes[0]) - null) - 0.4 * (_eps(classes[1]) - null)
    np.testing.assert_allclose(predict(density), expected, rtol=1e-3, atol=2e-3)


def test_classes_guide_in_an_interval_and_are_the_conditional_model_elsewhere(predict):
    # Catches: no class at all outside, weights of 1 for each of several classes, an interval for the teacher too.
    classes = jnp.asarray([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    level = np.asarray(sigma(SCHEDULE, T))
    density = methods.GuidedDensity(
        TEACHER,
        0.8,
        embeddings=classes,
        weights=jnp.asarray([1.5, 0.5]),
        class_sigma_min=float(level[:2].mean()),
        class_sigma_max=float(level[2:].mean()),
    )
    null = _eps(MIXTURE.weights)
    teacher, spread = _teacher_terms()
    weight = np.minimum(0.8 * spread.mean(axis=1, keepdims=True), 2.0)
    inside = np.asarray([[0.0], [1.0], [1.0], [0.0]])
    expected = null + weight * (teacher - null)
    for c, w in zip(classes, (1.5, 0.5), strict=True):
        expected += (w * inside + w / 2.0 * (1 - inside)) * (_eps(c) - null)
    np.testing.assert_allclose(predict(density), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("elementwise", [False, True])
def test_a_teacher_alone_is_eq_13(predict, elementwise):
    density = methods.GuidedDensity(TEACHER, 1.2, w_max=1.4, elementwise=elementwise)
    null = _eps(MIXTURE.weights)
    teacher, spread = _teacher_terms()
    weight = np.minimum(1.2 * (spread if elementwise else spread.mean(axis=1, keepdims=True)), 1.4)
    assert (weight == 1.4).any()
    np.testing.assert_allclose(predict(density), null + weight * (teacher - null), rtol=1e-3, atol=2e-3)


def test_a_class_of_weight_one_is_the_class_and_no_class_is_the_null_model(predict):
    alone = methods.GuidedDensity(embeddings=jnp.asarray([[0.0, 0.0, 1.0]]), weights=jnp.asarray([1.0]))
    np.testing.assert_allclose(predict(alone), _eps([0.0, 0.0, 1.0]), rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(predict(methods.GuidedDensity()), _eps(MIXTURE.weights), rtol=1e-3, atol=2e-3)


def _sampler(traces):
    def run(density, key):
        traces.append(density)
        x = jax.random.normal(key, (5, 2))
        eps_fn = methods.guided_eps(BACKBONE, MIXTURE, SCHEDULE, density)
        return ddim(eps_fn, SCHEDULE, x, num_steps=2, clip=None)

    return jax.jit(run)


def test_densities_of_one_structure_share_one_compilation():
    traces = []
    sampler, table = _sampler(traces), BACKBONE.table(MIXTURE)
    other = Gaussian(mean=-TEACHER.mean, variance=2.0 * TEACHER.variance)
    outs = [
        sampler(methods.GuidedDensity(teacher, w0), jax.random.key(seed))
        for teacher, w0, seed in ((TEACHER, 1.2, 0), (other, 1.2, 0), (other, 0.5, 1))
    ]
    assert len(traces) == 1
    assert all(np.any(np.asarray(one) != np.asarray(outs[0])) for one in outs[1:])
    for c, w in ((0, 1.0), (1, 2.0)):
        sampler(
            methods.GuidedDensity(embeddings=table[c][None], weights=jnp.asarray([w], jnp.float32)), jax.random.key(0)
        )
    assert len(traces) == 2
    for w, level in ((0.2, 0.8), (0.4, 0.0)):
        density = methods.GuidedDensity(
            embeddings=table[0][None],
            weights=jnp.asarray([2.0], jnp.float32),
            teacher=TEACHER,
            teacher_weight=w,
            teacher_sigma_min=level,
        )
        sampler(density, jax.random.key(0))
    assert len(traces) == 3


def test_an_adapter_adapts_the_class_and_the_null_model():
    """A density with an adapter is the density without one, of the merged parameters."""
    params, x = tiny.random_params(tiny.ONE_LEVEL), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32),
        lora.init(params, jax.random.key(2), 2, 1.0),
    )
    model = backbones.unet(tiny.ONE_LEVEL, SCHEDULE)
    embeddings = jnp.asarray(rng.standard_normal((1, 32)), jnp.float32)

    @jax.jit
    def predict(params, density):
        return methods.guided_eps(model, params, SCHEDULE, density)(x, jnp.asarray([10, 800]))

    weights = jnp.asarray([0.7])
    density = methods.GuidedDensity(embeddings=embeddings, weights=weights, adapter=adapter)
    plain = methods.GuidedDensity(embeddings=embeddings, weights=weights)
    expected = np.asarray(predict(lora.merge(params, adapter), plain))
    np.testing.assert_allclose(predict(params, density), expected, atol=5e-4 * max(1.0, expected.std()))
    assert np.abs(expected - np.asarray(predict(params, plain))).max() > 0.1 * expected.std()


def test_a_class_by_blocks_is_guided_from_the_null_class_of_the_network():
    # Catches: the null class moved by the blocks' part too, or only one row used.
    params, x = tiny.random_params(tiny.ONE_LEVEL), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    model, t = backbones.unet(tiny.ONE_LEVEL, SCHEDULE), jnp.asarray([10, 800])
    rows = jax.random.normal(jax.random.key(2), (model.num_blocks, 32))
    density = methods.GuidedDensity(embeddings=rows[None], weights=jnp.asarray([1.7]))
    out, null, given = jax.jit(
        lambda params, density: (
            methods.guided_eps(model, params, SCHEDULE, density)(x, t),
            backbones.null_eps(model, params)(x, t),
            backbones.class_eps(model, params, rows)(x, t),
        )
    )(params, density)
    np.testing.assert_allclose(out, null + 1.7 * (given - null), atol=2e-4)
    assert np.abs(given - null).max() > 0.05


def test_every_method_has_a_sentence_and_says_what_it_learnt():
    # Catches: a method without a sentence, that of another level, a teacher that is not named, a lost start or pool.
    options = {"steps": 1, "batch_size": 1, "embedding_learning_rate": 0.1}
    levels = {
        "first": AdaptOptions(pool="teacher", start="top1", candidates=2, **options),
        "then": AdaptOptions(
            pool="both", start="top1", after="first", rank=4, alpha=4, learning_rate=1, space="free", **options
        ),
        "query": AdaptOptions(pool="query", start="normal", space="span", **options),
    }
    evaluate = Evaluate(
        query_only_sigma=0.5,
        query_only_sigmas=(0.1, 0.5),
        methods={
            "alone": Method(level="query", guidance=3.0),
            "beside": Method(level="then", teacher_weight=0.25),
            "one": Method(level="first"),
        },
    )
    learnt = {name: Adaptation(jnp.zeros(3), lora.Adapter()) for name in levels}
    densities = methods.densities(
        jnp.zeros(2), TEACHER, jnp.eye(3), jnp.arange(3.0), jnp.ones(3), learnt, evaluate, methods.poe.Guidance()
    )
    sentences = methods.sentences(evaluate, {name: level.describe() for name, level in levels.items()})
    assert set(sentences) == set(densities)
    span = "Learns a new class embedding in the span of the trained ones from the query, starting at noise; guidance 3."
    assert sentences["alone"] == span
    assert sentences["beside"] == (
        "Learns a new class embedding and LoRA of rank 4 from the query and the teacher's samples, starting at what "
        "first learnt; guidance 2, the teacher beside it at weight 0.25."
    )
    assert "from the teacher's samples, starting at one of the 2 nearest classes" in sentences["one"]
    assert [name for name, sentence in sentences.items() if "publishes" in sentence] == ["query_only sigma=0.5"]
