"""The U-Net as functions of its parameters: the class table, and the count of timesteps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cdisc.networks import denoiser, unet


@pytest.fixture(scope="module")
def params():
    return tiny.random_params()


@pytest.fixture(scope="module")
def initial():
    return denoiser.init(tiny.NETWORK, jax.random.key(0))


def test_init_is_a_function_of_its_key(initial):
    shapes = jax.eval_shape(lambda key: denoiser.init(tiny.NETWORK, key), jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), initial) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    for same, leaf in zip(
        jax.tree.leaves(denoiser.init(tiny.NETWORK, jax.random.key(0))), jax.tree.leaves(initial), strict=True
    ):
        np.testing.assert_array_equal(same, leaf)
    other = denoiser.init(tiny.NETWORK, jax.random.key(1))
    for path in ("conv_in", "class_embedding"):
        pairs = zip(jax.tree.leaves(other[path]), jax.tree.leaves(initial[path]), strict=True)
        assert any(np.any(np.asarray(one) != np.asarray(two)) for one, two in pairs)


def test_the_class_table_starts_small(initial):
    table = np.asarray(initial["class_embedding"]["embedding"])
    assert table.shape == (4, 32)
    np.testing.assert_allclose(table.std(), 0.02, rtol=5 / np.sqrt(2 * table.size))
    assert abs(table.mean()) < 5 * 0.02 / np.sqrt(table.size)


def test_an_unconditional_network_has_no_table():
    config = dataclasses.replace(tiny.NETWORK, num_class_embeds=None)
    shapes = jax.eval_shape(lambda key: denoiser.init(config, key), jax.random.key(0))
    assert "class_embedding" not in shapes
    out = jax.eval_shape(lambda p: denoiser.apply(config, p, jnp.zeros((2, 8, 8, 3)), jnp.ones(2, jnp.int32)), shapes)
    assert out.shape == (2, 8, 8, 3)


def test_the_last_row_of_the_table_is_the_null_class(params):
    table = np.asarray(params["class_embedding"]["embedding"])
    np.testing.assert_array_equal(denoiser.class_table(params), table[:3])
    np.testing.assert_array_equal(denoiser.null_embedding(params), table[3])


def test_an_unconditional_network_is_its_own_null_class():
    config = dataclasses.replace(tiny.NETWORK, num_class_embeds=None)
    params = tiny.random_params(config)
    assert denoiser.class_table(params).shape == (0, 32)
    np.testing.assert_array_equal(denoiser.null_embedding(params), np.zeros(32))


def test_a_number_is_embedded_as_a_timestep_with_weights_of_its_own():
    config = dataclasses.replace(tiny.NETWORK, class_embed_type="timestep", num_class_embeds=None)
    params = tiny.random_params(config)
    numbers = jnp.asarray([3, 40])
    layers = jax.tree.map(np.asarray, params["class_embedding"])
    x = np.asarray(unet.time_embedding(numbers, 8, True, 0))
    x = x @ layers["linear_1"]["kernel"] + layers["linear_1"]["bias"]
    expected = x / (1 + np.exp(-x)) @ layers["linear_2"]["kernel"] + layers["linear_2"]["bias"]
    np.testing.assert_allclose(denoiser.embed_number(config, params, numbers), expected, atol=1e-5)
    identity = dataclasses.replace(config, class_embed_type="identity")
    assert "class_embedding" not in tiny.random_params(identity)


def test_an_added_class_comes_before_the_null_class(params):
    new = jnp.arange(32.0)
    config, added = denoiser.add_class(tiny.NETWORK, params, new)
    table = np.asarray(params["class_embedding"]["embedding"])
    assert config.num_class_embeds == 5
    np.testing.assert_array_equal(added["class_embedding"]["embedding"], [*table[:3], new, table[3]])
    np.testing.assert_array_equal(params["class_embedding"]["embedding"], table)
    unconditional = {name: part for name, part in params.items() if name != "class_embedding"}
    config, added = denoiser.add_class(dataclasses.replace(tiny.NETWORK, num_class_embeds=None), unconditional, new)
    assert config.num_class_embeds == 2
    np.testing.assert_array_equal(added["class_embedding"]["embedding"], [new, np.zeros(32)])


def test_any_row_can_be_made_the_null_class(params):
    table = np.asarray(params["class_embedding"]["embedding"])
    for row, order in ((0, [1, 2, 3, 0]), (2, [0, 1, 3, 2]), (3, [0, 1, 2, 3])):
        moved = denoiser.null_last(params, row)
        np.testing.assert_array_equal(moved["class_embedding"]["embedding"], table[order])
    assert moved["conv_in"] is params["conv_in"]


def test_embed_looks_up_labels_and_the_null_class(params):
    table = np.asarray(params["class_embedding"]["embedding"])
    embedded = denoiser.embed(params, jnp.asarray([2, 0, 3, 2]))
    np.testing.assert_array_equal(embedded, table[[2, 0, 3, 2]])
    np.testing.assert_array_equal(embedded[2], denoiser.null_embedding(params))


def test_apply_counts_timesteps_from_one_and_the_network_from_zero(params):
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    c = denoiser.embed(params, jnp.asarray([0, 1, 3]))
    module = jax.jit(lambda p, t: unet.UNet2D(tiny.NETWORK).apply({"params": p}, x, t, c))
    applied = jax.jit(lambda p, t: denoiser.apply(tiny.NETWORK, p, x, t, c))(params, jnp.asarray([1, 17, 1000]))
    np.testing.assert_allclose(applied, module(params, jnp.asarray([0, 16, 999])), atol=1e-6)
    # One step is seen, even at the noisy end where neighbours differ least.
    unshifted = module(params, jnp.asarray([1, 17, 1000]))
    assert (np.abs(np.asarray(unshifted - applied)).max(axis=(1, 2, 3)) > 1e-3).all()
