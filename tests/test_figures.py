"""Figures: pixels that can be said beforehand, and charts measured by the colours in them."""

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pytest

from cdisc.app.report import figures


def _mask(pixels: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    """Where an RGBA picture is opaque and of this colour "#rrggbb"."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels[..., :3].astype(int) - rgb).max(axis=-1) <= tolerance) & (pixels[..., 3] > 200)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Centre x, centre y, width and height of the set pixels."""
    ys, xs = np.nonzero(mask)
    return (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2, xs.max() - xs.min(), ys.max() - ys.min()


@pytest.fixture
def plane() -> figures.Plane:
    return figures.Plane(
        trained_means=np.array([[-1.0, -1.0], [1.0, 1.0]]),
        trained_variances=np.full((2, 2), 0.01),
        held_out_means=np.array([[1.0, -1.0]]),
        held_out_variances=np.full((1, 2), 0.01),
    )


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


def test_planar_overview_draws_ellipses_of_one_standard_deviation(plane: figures.Plane) -> None:
    means = np.array([[-0.5, 0.5], [0.5, -0.5]])
    variances = np.array([[0.16, 0.01], [0.01, 0.04]])
    far = np.array([1.2, 1.2])
    pixels = figures.planar_overview(plane, far, means, variances, far, np.full(2, 1e-4))
    chart = pixels[:, : pixels.shape[1] * 6 // 10]  # Without the legend.
    first, second = (_box(_mask(chart, colour)) for colour in figures.owner_colours(2))
    unit = second[0] - first[0]  # Pixels between the means, which are one apart on either axis.
    assert second[1] - first[1] == pytest.approx(unit, abs=3)
    assert [first[2] / unit, first[3] / unit] == pytest.approx([0.8, 0.2], abs=0.04)
    assert [second[2] / unit, second[3] / unit] == pytest.approx([0.2, 0.4], abs=0.04)


def test_planar_overview_takes_no_prototypes(plane: figures.Plane) -> None:
    empty = np.zeros((0, 2))
    pixels = figures.planar_overview(plane, np.zeros(2), empty, empty, np.zeros(2), np.ones(2))
    assert not _mask(pixels, figures.owner_colours(1)[0]).any()
    assert pixels[0, 0, 3] == 0


def test_planar_samples_shows_every_sample_where_it_is(plane: figures.Plane) -> None:
    colour = "#1f77b4"
    corners = np.repeat(np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]]), 9, axis=0)  # Opaque where piled up.
    pixels = figures.planar_samples(plane, corners, np.zeros(2), colour=colour)
    mask = _mask(pixels, colour, tolerance=30)
    x, y, width, height = _box(mask)
    assert width == pytest.approx(height, abs=2)
    upper, left = np.indices(mask.shape)[0] < y, np.indices(mask.shape)[1] < x
    assert not (mask & upper & left).any()
    for part in (mask & ~upper & left, mask & ~upper & ~left, mask & upper & ~left):
        assert part.any()


def test_ownership_bars_split_a_bar_as_the_weights() -> None:
    pixels = figures.ownership_bars(np.array([[0.75, 0.5], [0.25, 0.5]]), ["x", "y"])
    first, second = (_mask(pixels, colour) for colour in figures.owner_colours(2))
    middle = pixels.shape[0] // 2
    upper = first[: middle - 20].sum() / (first | second)[: middle - 20].sum()
    assert upper == pytest.approx(0.75, abs=0.02)  # x is above y.
    ys = np.nonzero(first.any(axis=1))[0]
    lowest = first[ys.max() - 5].sum(), second[ys.max() - 5].sum()
    assert lowest[0] == pytest.approx(lowest[1], abs=3)


def test_method_colours_are_distinct_and_follow_the_order() -> None:
    colours = figures.method_colours(["a", "b", "c"])
    assert list(colours) == ["a", "b", "c"]
    assert len(set(colours.values())) == 3
    assert not set(colours.values()) & set(figures.owner_colours(7))


def _method(recall: float | None, accuracy: float | None) -> dict[str, Any]:
    return {"recall": recall, "joint_accuracy": accuracy, "standard_error": {"recall": None, "joint_accuracy": 0.1}}


def test_tradeoff_puts_recall_across_and_accuracy_up_and_leaves_out_the_unknown() -> None:
    methods = {"a": _method(0.0, 0.5), "b": _method(1.0, 0.5), "c": _method(0.5, 1.0), "d": _method(None, 0.2)}
    colours = figures.method_colours(list(methods))
    pixels = figures.tradeoff(methods, colours)
    boxes = {}
    for name in "abc":
        mask = _mask(pixels, colours[name])
        columns = np.nonzero(mask.any(axis=0))[0]
        mask[:, columns[np.argmax(np.diff(columns))] + 1 :] = False  # After the gap comes the legend.
        boxes[name] = _box(mask)
    assert boxes["a"][0] < boxes["c"][0] < boxes["b"][0]
    assert boxes["a"][1] == pytest.approx(boxes["b"][1], abs=4)
    assert boxes["c"][1] < boxes["a"][1] - 50
    assert boxes["a"][3] > 1.5 * boxes["a"][2]  # The error bar stands upright.
    assert not _mask(pixels, colours["d"]).any()


def test_a_dendrogram_has_parents_above_and_between_their_children() -> None:
    # Catches: levels upside down, a leaf over another's branch, a picture at another mode's place.
    colours = {
        "left": (255, 0, 0),
        "middle": (0, 255, 0),
        "right": (0, 0, 255),
        "low": (255, 255, 0),
        "top": (255, 0, 255),
    }
    picture = {name: np.broadcast_to(np.array(c) / 127.5 - 1.0, (4, 4, 3)) for name, c in colours.items()}
    # The children of "low" are the first and the last of their level: "middle" must not come between them.
    levels = [
        {"t": 50, "modes": [{"parent": p, "basin": 3} for p in (1, 0, 1)]},
        {"t": 100, "modes": [{"parent": 0, "basin": 3}, {"parent": 0, "basin": 6}]},
        {"t": 300, "modes": [{"parent": None, "basin": 9}]},
    ]
    modes = [
        [picture["left"], picture["middle"], picture["right"]],
        [picture["middle"], picture["low"]],
        [picture["top"]],
    ]
    pixels = figures.dendrogram(levels, modes)
    boxes = {name: _box(_mask(pixels, "#{:02x}{:02x}{:02x}".format(*c))) for name, c in colours.items()}
    x = {name: box[0] for name, box in boxes.items()}
    assert x["low"] == pytest.approx((x["left"] + x["right"]) / 2, abs=2)
    assert not x["left"] < x["middle"] < x["right"]
    assert x["top"] == pytest.approx((x["low"] + x["middle"]) / 2, abs=2)
    assert boxes["top"][1] < boxes["low"][1] < boxes["left"][1]
    assert boxes["left"][1] == pytest.approx(boxes["right"][1], abs=2)


def test_a_dendrogram_of_points_needs_no_pictures() -> None:
    levels = [{"t": 50, "modes": [{"parent": None, "basin": 3}, {"parent": None, "basin": 1}]}]
    drawn = [figures.dendrogram(levels, [points]) for points in (np.zeros((2, 2)), np.ones((2, 2)))]
    assert (drawn[0] != drawn[1]).any()


def test_charts_follow_the_theme_and_are_the_same_bytes_each_time(plane: figures.Plane) -> None:
    def draw(theme: figures.Theme) -> np.ndarray:
        return figures.planar_samples(plane, np.zeros((4, 2)), np.ones(2), colour="#1f77b4", theme=theme)

    np.testing.assert_array_equal(draw(figures.LIGHT), draw(figures.LIGHT))
    assert (draw(figures.LIGHT) != draw(figures.DARK)).any()


def test_no_global_plotting_state() -> None:
    code = "import sys; import cdisc.app.report.html; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
