"""The two backbones against what they are made of: an exact mixture, and the U-Net itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cdisc.diffusion import exact
from cdisc.diffusion.parameterization import eps_from_v
from cdisc.diffusion.schedule import linear_beta
from cdisc.networks import backbone, denoiser, lora, unet

SCHEDULE = linear_beta(1000)
MIXTURE = exact.GaussianMixture(
    weights=jnp.asarray([0.5, 0.3, 0.2]),
    means=jnp.asarray([[0.7, 0.7], [-0.7, 0.2], [0.1, -0.8]]),
    variances=jnp.asarray([[0.01, 0.02], [0.03, 0.01], [0.02, 0.02]]),
)
X = jax.random.normal(jax.random.key(0), (4, 2))
T = jnp.asarray([1, 100, 400, 1000])


def test_the_null_class_of_the_mixture_is_the_mixture():
    model = backbone.mixture(SCHEDULE)
    np.testing.assert_array_equal(model.null(MIXTURE), MIXTURE.weights)
    expected = exact.mixture_eps(MIXTURE, SCHEDULE)(X, T)
    np.testing.assert_allclose(backbone.null_eps(model, MIXTURE)(X, T), expected, rtol=1e-5, atol=1e-5)


def test_a_class_of_the_mixture_is_its_component():
    model = backbone.mixture(SCHEDULE)
    table = model.table(MIXTURE)
    np.testing.assert_array_equal(table, np.eye(3))
    for c in range(3):
        expected = exact.mixture_eps(exact.component(MIXTURE, c), SCHEDULE)(X, T)
        np.testing.assert_allclose(backbone.class_eps(model, MIXTURE, table[c])(X, T), expected, rtol=1e-5, atol=1e-5)


def test_an_embedding_of_the_mixture_is_its_weights_row_by_row():
    model = backbone.mixture(SCHEDULE)
    embeddings = jnp.asarray([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    out = model.apply(MIXTURE, X, T, embeddings)
    for row in range(4):
        mixture = MIXTURE.replace(weights=embeddings[row])
        alone = exact.mixture_eps(mixture, SCHEDULE)(X[row : row + 1], T[row : row + 1])[0]
        np.testing.assert_allclose(out[row], alone, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def params():
    return tiny.random_params()


@pytest.fixture(scope="module")
def raw(params):
    """The network's own output for four pictures, classes and timesteps, in its own count."""
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    embeddings = params["class_embedding"]["embedding"]
    out = jax.jit(lambda p, t: unet.UNet2D(tiny.NETWORK).apply({"params": p}, x, t, embeddings))(params, T - 1)
    return x, embeddings, out


def test_the_unet_predicts_eps_at_timesteps_from_one(params, raw):
    x, embeddings, out = raw
    model = backbone.unet(tiny.NETWORK, SCHEDULE)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x, T, embeddings), out, atol=1e-5)
    np.testing.assert_array_equal(model.table(params), denoiser.class_table(params))
    np.testing.assert_array_equal(model.null(params), denoiser.null_embedding(params))


def test_v_prediction_is_turned_into_eps(params, raw):
    x, embeddings, out = raw
    applied = jax.jit(backbone.unet(tiny.NETWORK, SCHEDULE, "v_prediction").apply)(params, x, T, embeddings)
    np.testing.assert_allclose(applied, eps_from_v(SCHEDULE, x, out, T), atol=1e-5)
    a = np.asarray(SCHEDULE.alpha_bar, np.float64)[np.asarray(T)][:, None, None, None]
    np.testing.assert_allclose(applied, np.sqrt(a) * out + np.sqrt(1 - a) * x, atol=1e-4)


def test_a_predicted_picture_is_turned_into_eps(params, raw):
    x, embeddings, out = raw
    applied = jax.jit(backbone.unet(tiny.NETWORK, SCHEDULE, "sample").apply)(params, x, T, embeddings)
    a = np.asarray(SCHEDULE.alpha_bar, np.float64)[np.asarray(T)][:, None, None, None]
    np.testing.assert_allclose(applied, (x - np.sqrt(a) * out) / np.sqrt(1 - a), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "t", "rows", "sentence"),
    [
        (jnp.ones((8, 8, 3)), T[0], 1, r"x has the shape \(8, 8, 3\): give pictures"),
        (jnp.ones((4, 8, 8, 3), jnp.bfloat16), T, 4, "x is bfloat16"),
        (jnp.ones((4, 8, 8, 3), jnp.uint8), T, 4, "x is uint8"),
        (jnp.ones((4, 8, 8, 3)), T[:3], 4, r"x has the shape \(4, 8, 8, 3\) and t \(3,\): give one for each row"),
        (jnp.ones((4, 8, 8, 3)), T, 1, r"x has the shape \(4, 8, 8, 3\) and embeddings \(1, 32\)"),
    ],
)
def test_what_a_network_cannot_take_is_named(params, x, t, rows, sentence):
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        backbone.unet(tiny.NETWORK, SCHEDULE).apply(params, x, t, jnp.zeros((rows, 32)))


def test_a_mixture_takes_a_batch_and_no_adapter():
    model, weights = backbone.mixture(SCHEDULE), jnp.eye(3)[:2]
    with pytest.raises(ValueError, match=r"^x has the shape \(2,\)"):
        model.apply(MIXTURE, X[0], T[:2], weights)
    with pytest.raises(TypeError, match=r"^x is int32"):
        model.apply(MIXTURE, jnp.ones((2, 2), jnp.int32), T[:2], weights)
    factors = {"layer": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 2))}}
    with pytest.raises(ValueError, match="an exact mixture has no layers"):
        model.apply(MIXTURE, X[:2], T[:2], weights, lora.Adapter(factors))
    np.testing.assert_array_equal(
        model.apply(MIXTURE, X[:2], T[:2], weights, lora.Adapter()), model.apply(MIXTURE, X[:2], T[:2], weights)
    )


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match=r"prediction_type has 'noise'.*epsilon, v_prediction, sample"):
        backbone.unet(tiny.NETWORK, SCHEDULE, "noise")


def test_a_network_without_a_first_timestep_is_refused():
    fourier = dataclasses.replace(tiny.NETWORK, time_embedding_type="fourier")
    with pytest.raises(ValueError, match="time_embedding_type is 'fourier'"):
        backbone.unet(fourier, SCHEDULE)


def test_class_eps_gives_the_whole_batch_one_embedding():
    def apply(params, x, t, embeddings, adapter=None):
        return x + params * embeddings * t[:, None]

    model = backbone.Backbone(apply=apply, table=lambda params: jnp.eye(2), null=lambda params: jnp.asarray([3.0, 4.0]))
    t = np.asarray(T)[:, None]
    class_out = backbone.class_eps(model, 2.0, jnp.asarray([0.5, -1.0]))(X, T)
    np.testing.assert_allclose(class_out, np.asarray(X) + 2.0 * np.asarray([[0.5, -1.0]]) * t, rtol=1e-6)
    null_out = backbone.null_eps(model, 2.0)(X, T)
    np.testing.assert_allclose(null_out, np.asarray(X) + 2.0 * np.asarray([[3.0, 4.0]]) * t, rtol=1e-6)
