"""Figures: pixels and colours that can be said beforehand."""

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


def test_owners_gives_each_pixel_the_colour_of_the_largest_mean_weight() -> None:
    weights = np.zeros((3, 1, 3, 2))
    weights[:, 0, 0] = [[0.4, 0.4], [0.5, 0.1], [0.1, 0.5]]  # No channel alone has the first as its largest.
    weights[:, 0, 1] = [[0.2, 0.2], [0.2, 0.2], [0.6, 0.6]]
    weights[:, 0, 2] = [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]]
    picked = ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in figures.owners(weights)[0]]
    colours = figures.owner_colours(3)
    assert picked == [colours[0], colours[2], colours[1]]


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
