"""Figures: pixels and colours that can be said beforehand."""

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from cdisc.app.report import figures


def test_heat_runs_from_low_to_high_and_clips() -> None:
    wheel = matplotlib.colormaps["viridis"]
    expected = np.array([wheel(p, bytes=True)[:3] for p in (0.0, 0.0, 0.5, 1.0, 1.0)])
    np.testing.assert_array_equal(figures.heat(np.array([[1.0, 2.0, 3.0, 4.0, 9.0]]), 2.0, 4.0, "viridis")[0], expected)


def test_heat_of_an_empty_range_is_the_lowest_colour() -> None:
    flat = figures.heat(np.full((2, 2), 3.0), 3.0, 3.0, "magma")
    np.testing.assert_array_equal(flat, np.broadcast_to(matplotlib.colormaps["magma"](0.0, bytes=True)[:3], (2, 2, 3)))


def test_colorbar_runs_from_the_lowest_colour_to_the_highest() -> None:
    bar = figures.colorbar("magma", width=9)
    assert bar.shape == (1, 9, 3)
    np.testing.assert_array_equal(bar[0, 0], matplotlib.colormaps["magma"](0.0, bytes=True)[:3])
    np.testing.assert_array_equal(bar[0, -1], matplotlib.colormaps["magma"](1.0, bytes=True)[:3])


def test_ownership_map_is_the_mean_over_channels_on_a_scale_from_0_to_1() -> None:
    weights = np.zeros((1, 2, 3))
    weights[0, 1] = [0.0, 0.75, 0.75]
    wheel = matplotlib.colormaps[figures.OWNERSHIP_COLORMAP]
    # A map scaled to its own range would show the second pixel as 1.
    np.testing.assert_array_equal(
        figures.ownership_map(weights)[0], [wheel(0.0, bytes=True)[:3], wheel(0.5, bytes=True)[:3]]
    )


@pytest.mark.parametrize("count", [0, 3, 7, 12])
def test_owner_colours_are_distinct(count: int) -> None:
    colours = figures.owner_colours(count)
    assert len(set(colours)) == count == len(colours)
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours)


def test_owner_colours_do_not_change_with_the_count() -> None:
    assert figures.owner_colours(5)[:3] == figures.owner_colours(3)


def _inside(path: str, x: float, y: float) -> bool:
    """Whether a point lies in a path by the even-odd rule."""
    found = False
    for ring in path.removesuffix("Z").split("Z"):
        corners = [tuple(map(float, corner.split())) for corner in ring.removeprefix("M").split("L")] if ring else []
        for (x1, y1), (x2, y2) in itertools.pairwise(corners):
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
                found = not found
    return found


def test_outlines_hold_what_each_prototype_owns_most_of() -> None:
    # Catches: x and y exchanged, a path off by half a pixel, one that ends at the edge, a hole that is filled.
    weights = np.zeros((3, 64, 96, 2))
    weights[0, :40], weights[1, 40:] = 1.0, 1.0
    weights[0, 10:20, 30:50], weights[2, 10:20, 30:50] = 0.0, 1.0
    paths = figures.outlines(weights)
    for x, y, owner in (
        (0.5, 0.5, 0),
        (95.5, 38.0, 0),
        (95.5, 63.5, 1),
        (0.5, 42.0, 1),
        (40.0, 15.0, 2),
        (25.0, 15.0, 0),
    ):
        assert [_inside(path, x, y) for path in paths] == [number == owner for number in range(3)], (x, y)
    assert not any(_inside(path, 96.5, 30.0) or _inside(path, 40.0, -0.5) for path in paths)


def test_outlines_smooth_what_alternates_and_take_one_prototype_or_none() -> None:
    # Catches: a checkerboard drawn pixel by pixel.
    checks = np.indices((64, 64)).sum(axis=0) % 2
    weights = np.stack([0.6 * checks, 1.0 - 0.6 * checks])[..., None]  # the second owns 0.7 on average
    first, second = figures.outlines(weights)
    assert first == "" and second.count("M") == 1
    (alone,) = figures.outlines(np.ones((1, 8, 8, 3)))
    assert _inside(alone, 0.4, 0.4) and _inside(alone, 7.6, 7.6)
    assert figures.outlines(np.zeros((0, 8, 8, 3))) == []


def test_variance_map_states_its_ends() -> None:
    variance = np.array([[[0.1, 0.3], [1.0, 2.0]]])
    pixels, low, high = figures.variance_map(variance)
    assert (low, high) == pytest.approx((0.2, 1.5))
    wheel = matplotlib.colormaps[figures.VARIANCE_COLORMAP]
    np.testing.assert_array_equal(pixels[0], [wheel(0.0, bytes=True)[:3], wheel(1.0, bytes=True)[:3]])


def test_method_colours_are_distinct_and_follow_the_order() -> None:
    colours = figures.method_colours(["a", "b", "c"])
    assert list(colours) == ["a", "b", "c"]
    assert len(set(colours.values())) == 3
    assert not set(colours.values()) & set(figures.owner_colours(7))


def test_no_global_plotting_state() -> None:
    code = "import sys; import cdisc.app.report.html; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
