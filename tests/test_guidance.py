"""Guidance against its formula, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import guidance
from cdisc.diffusion.schedule import linear_beta, sigma

SCHEDULE = linear_beta(1000)
X = jax.random.normal(jax.random.key(0), (3, 2, 4))
T = jnp.asarray([5, 400, 1000])


def _null(x, t):
    return 0.5 * x


def _first(x, t):
    return jnp.sin(x)


def _second(x, t):
    return x * (t[:, None, None] / 1000.0)


def test_constant_is_one_weight_for_each_sample():
    weights = guidance.constant(1.5)(T)
    assert weights.shape == (3,)
    assert weights.dtype == jnp.float32
    np.testing.assert_array_equal(weights, [1.5, 1.5, 1.5])
    # A weight may be an argument of a compiled program.
    traced = jax.jit(lambda w: guidance.constant(w)(T))(jnp.float32(-2.0))
    np.testing.assert_array_equal(traced, [-2.0, -2.0, -2.0])


def test_interval_keeps_the_weight_between_both_levels_and_at_them():
    level = np.asarray(sigma(SCHEDULE, jnp.arange(1001)))
    weight = guidance.interval(lambda t: 1.0 + t.astype(jnp.float32), SCHEDULE, level[200], level[600])
    t = jnp.asarray([1, 199, 200, 400, 600, 601, 1000])
    np.testing.assert_array_equal(weight(t), [0.0, 0.0, 201.0, 401.0, 601.0, 0.0, 0.0])


def test_interval_has_no_upper_end_unless_given_one():
    weight = guidance.interval(guidance.constant(2.0), SCHEDULE, 0.8)
    np.testing.assert_array_equal(weight(jnp.asarray([1, 1000])), [0.0, 2.0])
    everywhere = guidance.interval(guidance.constant(2.0), SCHEDULE, 0.0)
    np.testing.assert_array_equal(everywhere(jnp.asarray([1, 1000])), [2.0, 2.0])


def test_interval_takes_another_weight_outside():
    # Catches: the conditional model left out where it should go on without guidance.
    level = np.asarray(sigma(SCHEDULE, jnp.arange(1001)))
    weight = guidance.interval(guidance.constant(3.0), SCHEDULE, level[200], level[600], outside=1.0)
    np.testing.assert_array_equal(weight(jnp.asarray([1, 199, 200, 600, 601])), [1.0, 1.0, 3.0, 3.0, 1.0])


def test_interval_treats_weights_of_single_elements_by_their_sample():
    weight = guidance.interval(lambda t: jnp.ones((t.shape[0], 2, 4)), SCHEDULE, 0.8)
    values = weight(T)
    assert values.shape == X.shape
    np.testing.assert_array_equal(values[0], np.zeros((2, 4)))
    np.testing.assert_array_equal(values[2], np.ones((2, 4)))


def test_guide_adds_every_direction_from_the_null_prediction():
    per_element = jax.random.uniform(jax.random.key(1), X.shape)
    terms = [(_first, lambda t: t / 100.0), (_second, lambda t: per_element)]
    x, t = np.asarray(X, np.float64), np.asarray(T, np.float64)[:, None, None]
    null, first, second = 0.5 * x, np.sin(x), x * t / 1000.0
    expected = null + t / 100.0 * (first - null) + np.asarray(per_element) * (second - null)
    np.testing.assert_allclose(guidance.guide(_null, terms)(X, T), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guidance.guide(_null, terms[::-1])(X, T), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("w", "expected"), [(0.0, _null), (1.0, _first)])
def test_guide_by_one_weight_ends_at_the_null_and_at_the_conditional_model(w, expected):
    guided = guidance.guide(_null, [(_first, guidance.constant(w))])(X, T)
    np.testing.assert_allclose(guided, expected(X, T), atol=1e-6)


def test_guide_without_terms_is_the_null_model():
    np.testing.assert_array_equal(guidance.guide(_null, [])(X, T), _null(X, T))


def test_guide_evaluates_each_model_once():
    calls = []

    def counted(name, eps_fn):
        def call(x, t):
            calls.append(name)
            return eps_fn(x, t)

        return call

    terms = [(counted("first", _first), guidance.constant(0.3)), (counted("second", _second), guidance.constant(2.0))]
    guidance.guide(counted("null", _null), terms)(X, T)
    assert sorted(calls) == ["first", "null", "second"]
