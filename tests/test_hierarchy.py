"""The tree of modes against mixtures whose clusters are nested by construction."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, schedule
from cdisc.discovery import concepts, hierarchy, modes

SCHEDULE = schedule.linear_beta()
# Noise-to-signal ratios 0.05, 0.18, 0.55 and 2.0: in turn below the half distances of pairs, of pairs of pairs, of the
# two halves, and above all of them. Equal Gaussians fuse where their standard deviation passes their half distance.
LEVELS = (10, 50, 160, 400)
HALF_DISTANCES = ((0.0, 0.08), (0.3, 0.0), (0.0, 1.0))
OPTIONS = concepts.DiscoveryOptions(hierarchy=LEVELS, max_steps=400, tolerance=1e-3, merge_radius=0.02)


def nested() -> exact.GaussianMixture:
    """Eight components: c // 2 is the pair, c // 4 the half that each belongs to."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))[:, ::-1]
    means = signs @ np.array(HALF_DISTANCES)
    order = np.lexsort((signs[:, 0], signs[:, 1], signs[:, 2]))
    return exact.GaussianMixture(
        weights=jnp.full(8, 0.125), means=jnp.asarray(means[order], jnp.float32), variances=jnp.full((8, 2), 4e-4)
    )


EPS = exact.mixture_eps(nested(), SCHEDULE)


def followed(points, t, options=OPTIONS, eps_fn=EPS) -> hierarchy.Hierarchy:
    run = jax.jit(lambda points, t: hierarchy.follow(eps_fn, SCHEDULE, points, t, options))
    return jax.tree.map(np.asarray, run(jnp.asarray(points, jnp.float32), jnp.asarray(t, jnp.int32)))


@pytest.fixture(scope="module")
def whole() -> hierarchy.Hierarchy:
    """All components followed from the clean side."""
    return followed(nested().means, np.zeros(8))


def test_the_tree_of_nested_clusters_is_the_known_one(whole):
    # Catches: a level started from anywhere but the level below, places that belong to another mode.
    assert whole.t.tolist() == list(LEVELS)
    for mode, size in zip(whole.mode, (1, 2, 4, 8), strict=True):
        cluster = np.arange(8) // size
        np.testing.assert_array_equal(mode[:, None] == mode[None], cluster[:, None] == cluster[None])


def test_the_modes_of_each_level_are_the_exact_ones(whole):
    # Catches: modes kept in noisy space, a root of another level, absent places that look present.
    for level, t in enumerate(LEVELS):
        expected = exact.modes(nested(), SCHEDULE, t) / np.sqrt(float(SCHEDULE.alpha_bar[t]))
        present = np.isfinite(whole.residual[level])
        assert present.tolist() == [i < len(expected) for i in range(8)]
        found = whole.m[level][present]
        # In an order that rounding cannot change.
        found, expected = (points[np.lexsort(points.round(1).T)] for points in (found, expected))
        np.testing.assert_allclose(found, expected, atol=4e-3)
        assert whole.residual[level][present].max() < OPTIONS.tolerance
        assert (whole.m[level][~present] == 0.0).all()
        # A point lies in the mode that its component belongs to.
        distance = np.linalg.norm(whole.m[level][whole.mode[level]] - np.asarray(nested().means), axis=1)
        assert distance.max() < 1.2


def test_modes_stay_apart_where_the_picture_has_shrunk():
    # Catches: a start, or an end, that is compared with clean modes without the level's root, 0.45 at this one.
    pair = exact.GaussianMixture(
        weights=jnp.full(2, 0.5), means=jnp.asarray([[10.0], [20.0]]), variances=jnp.full((2, 1), 4e-4)
    )
    options = concepts.DiscoveryOptions(**{**vars(OPTIONS), "hierarchy": LEVELS[-1:]})
    tree = followed(pair.means, np.zeros(2), options, exact.mixture_eps(pair, SCHEDULE))
    np.testing.assert_allclose(tree.m[0][tree.mode[0]], pair.means, rtol=1e-3)


def test_points_enter_at_their_own_level_in_any_order():
    # Catches: entering a level early or late, at the clean picture instead of the level's noise, or twice.
    means = np.asarray(nested().means)
    points, t = means[[6, 0, 1, 3, 5]], [401, 0, 50, 51, 400]
    tree = followed(points, t)
    assert [(row >= 0).tolist() for row in tree.mode] == [
        [False, True, False, False, False],
        [False, True, True, False, False],
        [False, True, True, True, False],
        [False, True, True, True, True],
    ]
    assert tree.mode[1, 1] == tree.mode[1, 2]
    assert tree.mode[2, 1] == tree.mode[2, 3]
    assert len(set(tree.mode[3, 1:])) == 1
    backwards = followed(points, t, concepts.DiscoveryOptions(**{**vars(OPTIONS), "hierarchy": LEVELS[::-1]}))
    np.testing.assert_array_equal(backwards.mode, tree.mode)


def test_a_mode_is_climbed_from_once():
    # Catches: climbing from every point instead of from every mode, and evaluations that are not counted.
    alone = concepts.DiscoveryOptions(**{**vars(OPTIONS), "lanes": 1})
    once, six = (followed(np.repeat(nested().means[:1], n, axis=0), np.zeros(n), alone) for n in (1, 6))
    start = jnp.sqrt(SCHEDULE.alpha_bar[LEVELS[0]]) * nested().means[:1]
    kernel = concepts.kernel(SCHEDULE, alone)
    _, first = modes.ascend(EPS, start, jnp.asarray(LEVELS[:1]), kernel=kernel, max_steps=400, tolerance=1e-3, lanes=1)
    assert int(six.nfe) == int(once.nfe) + 5 * int(first.nfe)
    assert int(once.nfe) > int(first.nfe) + 3


def test_a_point_that_is_no_number_is_left_out():
    points = np.array(nested().means[:3])
    points[1] = np.nan
    tree = followed(points, np.zeros(3))
    assert tree.mode[:, 1].tolist() == [-1] * 4
    assert tree.mode[1, 0] >= 0 and tree.mode[1, 0] != tree.mode[1, 2]
    assert np.isfinite(tree.m).all()


def test_a_residual_that_overflows_ends():
    # Catches: a mode without a point, which the next level counts once more: chains that no lane ever serves.
    tree = followed(nested().means[:1], np.zeros(1), eps_fn=lambda x, t: jnp.full_like(x, 1e25))
    assert tree.mode.tolist() == [[-1]] * 4


def test_what_cannot_be_followed_is_refused():
    points, t = nested().means, jnp.zeros(8, jnp.int32)
    beyond = concepts.DiscoveryOptions(hierarchy=(10, 1001))
    for error, message, args in (
        (ValueError, "hierarchy has 1001, but the schedule ends at 1000", (points, t, beyond)),
        (TypeError, "points is int32", (points.astype(int), t, OPTIONS)),
        (ValueError, r"points has the shape \(2,\)", (points[0], t[:1], OPTIONS)),
        (TypeError, "t is float32", (points, jnp.zeros(8), OPTIONS)),
        (ValueError, "t has 7 timesteps and points 8 rows", (points, t[:7], OPTIONS)),
    ):
        with pytest.raises(error, match=f"^{message}"):
            hierarchy.follow(EPS, SCHEDULE, *args)


def test_the_tree_as_json():
    # Catches: parents of the wrong level, basins of modes instead of chains, a source named twice.
    found = hierarchy.Hierarchy(
        t=np.array([50, 200, 300]),
        m=np.zeros((3, 4, 2)),
        residual=np.array([[0.5, 0.25, np.inf, np.inf], [0.0, 0.125, np.inf, np.inf], [0.0, np.inf, np.inf, np.inf]]),
        mode=np.array([[1, 0, 1, -1], [0, 1, 0, 0], [0, 0, 0, 0]]),
        nfe=np.array(77),
    )
    tree = hierarchy.tree(found, np.array([1, 2, 4, 8]), ["a", "b", "a", "c"])
    assert json.loads(json.dumps(tree)) == {
        "nfe": 77,
        "levels": [
            {
                "t": 50,
                "modes": [
                    {"parent": 1, "basin": 2, "residual": 0.5, "sources": ["b"]},
                    {"parent": 0, "basin": 5, "residual": 0.25, "sources": ["a"]},
                ],
            },
            {
                "t": 200,
                "modes": [
                    {"parent": 0, "basin": 13, "residual": 0.0, "sources": ["a", "c"]},
                    {"parent": 0, "basin": 2, "residual": 0.125, "sources": ["b"]},
                ],
            },
            {"t": 300, "modes": [{"parent": None, "basin": 15, "residual": 0.0, "sources": ["a", "b", "c"]}]},
        ],
    }
