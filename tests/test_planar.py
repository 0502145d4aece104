"""The planar grid: cells where they should be, held-out cells nowhere in training, streams that repeat."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc import errors
from cdisc.data import compositions, planar
from cdisc.diffusion import exact
from cdisc.diffusion.schedule import linear_beta

LEVELS = (-0.9, -0.3, 0.3, 0.9)
STD = 0.06
HELD_OUT = ("horizontal=-0.9 vertical=0.3", "horizontal=0.9 vertical=-0.3")


def _config(**changes):
    return planar.Options(**{"levels": LEVELS, "std": STD, "held_out": HELD_OUT, **changes})


def _nearest(points):
    return np.abs(np.asarray(points)[:, :, None] - np.asarray(LEVELS)).argmin(-1)


def test_factors_are_named_by_their_levels():
    factors = planar.factors((-1.0, 0.5), (0.0, 1.0, 2.0))
    assert factors.names == ("horizontal", "vertical")
    assert factors.values == (("-1", "0.5"), ("0", "1", "2"))


def test_planar_mixture_puts_each_cell_at_its_levels_in_class_order():
    levels_x, levels_y = (-1.0, 0.5), (0.0, 1.0, 2.0)
    split = compositions.split(planar.factors(levels_x, levels_y), ("horizontal=0.5 vertical=1",))
    trained = planar.planar_mixture(levels_x, levels_y, 0.1, split)
    np.testing.assert_array_equal(trained.means, [[-1, 0], [-1, 1], [-1, 2], [0.5, 0], [0.5, 2]])
    np.testing.assert_allclose(trained.weights, 0.2)
    np.testing.assert_allclose(trained.variances, np.full((5, 2), 0.01), rtol=1e-6)
    held_out = planar.planar_mixture(levels_x, levels_y, 0.1, split, held_out=True)
    np.testing.assert_array_equal(held_out.means, [[0.5, 1]])
    np.testing.assert_array_equal(held_out.weights, [1.0])


def test_train_batch_draws_the_trained_classes_and_no_other():
    data = planar.load(_config())
    assert data.shape == planar.SHAPE
    draw = jax.jit(data.train_batch, static_argnums=2)
    places = np.arange(28_000)
    points, labels = draw(data.train, jax.random.key(0), 28_000, places)
    assert points.shape == (28_000, 2)
    assert labels.dtype == jnp.int32
    cells = _nearest(points)
    np.testing.assert_array_equal(cells, np.asarray(data.split.trained)[np.asarray(labels)])
    compositions.assert_no_held_out(data.split, cells)
    counts = np.bincount(labels, minlength=14)
    assert (np.abs(counts - 2000) < 5 * np.sqrt(2000)).all()
    centres = np.asarray(LEVELS)[cells]
    np.testing.assert_allclose(np.std(np.asarray(points) - centres, axis=0), STD, rtol=0.02)
    again, again_labels = draw(data.train, jax.random.key(0), 28_000, places[::-1])
    other, _ = draw(data.train, jax.random.key(1), 28_000, places)
    np.testing.assert_array_equal(points, again[::-1])
    np.testing.assert_array_equal(labels, again_labels[::-1])
    assert not np.array_equal(points, other)


def test_the_training_distribution_is_the_mixture():
    """The mean log density of batches equals that of exact samples: one density, two samplers."""
    data = planar.load(_config())
    schedule, n = linear_beta(), 20_000
    batch, _ = data.train_batch(data.train, jax.random.key(0), n, np.arange(n))
    samples = exact.sample(data.train, jax.random.key(1), n)
    heights = [exact.log_density(data.train, schedule, x, jnp.zeros(n, jnp.int32)) for x in (batch, samples)]
    # Cells do not overlap: the entropy is that of 14 Gaussians apart.
    entropy = np.log(14) + np.log(2 * np.pi * np.e * STD**2)
    for height in heights:
        np.testing.assert_allclose(np.mean(height), -entropy, atol=5 / np.sqrt(n))


def test_queries_and_references_show_the_cell_and_never_each_other():
    data = planar.load(_config())
    assert len(data.split.held_out) == 2
    for composition in data.split.held_out:
        queries, references = data.queries(composition, 200), data.references(composition, 200)
        assert queries.shape == (200, 2)
        assert queries.dtype == np.float32
        assert (_nearest(queries) == composition).all()
        assert (_nearest(references) == composition).all()
        np.testing.assert_array_equal(data.queries(composition, 5), queries[:5])
        assert not set(map(tuple, queries)) & set(map(tuple, references))
        np.testing.assert_allclose(np.std(queries, axis=0), STD, rtol=0.2)


def test_labelled_points_cover_every_cell():
    data = planar.load(_config())
    for part in ("train", "query"):
        points, attributes = data.labelled(part, 400, 0)
        assert attributes.dtype == np.int32
        np.testing.assert_array_equal(_nearest(points), attributes)
        assert set(map(tuple, attributes)) == set(itertools.product(range(4), range(4)))
    train, query = (data.labelled(part, 400, 0)[0] for part in ("train", "query"))
    assert not np.array_equal(train, query)
    assert not np.array_equal(train, data.labelled("train", 400, 1)[0])
    with pytest.raises(ValueError, match="reference"):
        data.labelled("reference", 4, 0)


def test_a_held_out_cell_has_the_widths_of_its_levels():
    widths = (0.5, 2.0, 1.0, 1.5)
    data = planar.load(_config(widths=widths))
    for trained, variances in zip(data.split.trained, data.train.variances, strict=True):
        np.testing.assert_allclose(variances, (STD * np.asarray(widths)[list(trained)]) ** 2, rtol=1e-6)
    for draw in (data.queries, data.references):
        spread = np.std(draw((0, 2), 4000) - np.asarray([-0.9, 0.3]), axis=0)
        np.testing.assert_allclose(spread, [STD * 0.5, STD * 1.0], rtol=0.05)
    points, attributes = data.labelled("train", 8000, 0)
    far = (np.asarray(points) - np.asarray(LEVELS)[attributes]) / STD
    for level, width in enumerate(widths):
        np.testing.assert_allclose(far[attributes == level].std(), width, rtol=0.06)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"std": 0.0}, "std is 0.0"),
        ({"std": float("nan")}, "std is nan"),
        ({"widths": (1.0, 2.0)}, "one positive number for each of 4 levels"),
        ({"widths": (1.0, 2.0, 0.0, 1.0)}, "one positive number"),
    ],
)
def test_widths_that_are_none_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        _config(**changes)


def test_fingerprint_follows_whatever_decides_the_points():
    reference = planar.load(_config()).fingerprint
    for changes in (
        {"std": 0.07},
        {"widths": (1.0, 1.0, 1.0, 2.0)},
        {"levels": (-0.9, -0.3, 0.3, 0.8, 0.9)},
        {"held_out": HELD_OUT[:1]},
    ):
        assert planar.load(_config(**changes)).fingerprint != reference


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"levels": (0.3, -0.3)}, "increasing"),
        ({"levels": (0.3, 0.3)}, "increasing"),
        ({"levels": ()}, "at least one"),
        ({"levels": (0.3, 0.30000001, 0.9)}, "further apart"),
        ({"held_out": ("horizontal=0.8 vertical=0.9",)}, "did you mean"),
        ({"held_out": ()}, "holds out no composition"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(changes, says):
    with pytest.raises(errors.UserError, match=says):
        planar.load(_config(**changes))


def test_the_defaults_load():
    data = planar.load(planar.Options())
    held_out = np.asarray(data.split.held_out)
    assert len(data.split.trained) == 12
    assert sorted(held_out[:, 0]) == sorted(held_out[:, 1]) == [0, 1, 2, 3]
