"""Figures as arrays: functions from numbers to uint8 RGB or RGBA pictures, with no global plotting state.

Pictures are (H, W, C) in [-1, 1], C = 1 or 3. The charts have a transparent background and are drawn in a `Theme`, so
that a page can show the one that suits it. Everything depends on its arguments alone: the same input, the same bytes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import collections, offsetbox
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from cdisc.data.pictures import Pixels, to_uint8

OWNERSHIP_COLORMAP = "viridis"
"""For ownership weights, 0 to 1: perceptually uniform, and readable without colour vision."""
VARIANCE_COLORMAP = "magma"
"""For variances: perceptually uniform, and not to be taken for an ownership map."""

_DPI = 192
_QUERY_COLOUR = "#e5484d"
# Okabe and Ito (2008): seven colours that stay apart without full colour vision.
_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")
_MARKERS = "osD^vPXph<>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a chart on a page: text, less important text, and grid lines."""

    ink: str
    muted: str
    faint: str


LIGHT = Theme(ink="#1a1c20", muted="#6b7280", faint="#d9dce3")
DARK = Theme(ink="#e8eaee", muted="#9aa1ad", faint="#363b45")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane:
    """The cells of a planar mixture: where the trained and the held-out components lie.

    Attributes:
      trained_means: (C, 2).
      trained_variances: (C, 2) diagonal variances.
      held_out_means: (M, 2).
      held_out_variances: (M, 2) diagonal variances.
    """

    trained_means: ArrayLike
    trained_variances: ArrayLike
    held_out_means: ArrayLike
    held_out_variances: ArrayLike


def heat(values: ArrayLike, low: float, high: float, colormap: str) -> Pixels:
    """(H, W) numbers to the RGB colours of a matplotlib colormap that runs from `low` to `high`."""
    position = (np.asarray(values, np.float64) - low) / (high - low) if high > low else np.zeros(np.shape(values))
    return matplotlib.colormaps[colormap](np.clip(position, 0.0, 1.0), bytes=True)[..., :3]


def colorbar(colormap: str, *, width: int = 128) -> Pixels:
    """The colours of a colormap from left (low) to right (high): (1, width, 3)."""
    return heat(np.linspace(0.0, 1.0, width)[None, :], 0.0, 1.0, colormap)


def ownership_map(weights: ArrayLike) -> Pixels:
    """One prototype's share w_j(r) of the product (arXiv 2605.07078, Eq. 10), as heat from 0 to 1.

    Args:
      weights: (H, W, C) in 0..1; the map shows the mean over the channels.
    """
    return heat(np.mean(np.asarray(weights, np.float64), axis=-1), 0.0, 1.0, OWNERSHIP_COLORMAP)


def owner_colours(count: int) -> tuple[str, ...]:
    """`count` distinct colours "#rrggbb", the same for a prototype wherever it is shown."""
    if count <= len(_OKABE_ITO):
        return _OKABE_ITO[:count]
    wheel = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count), bytes=True)
    return tuple("#{:02x}{:02x}{:02x}".format(*colour[:3]) for colour in wheel)


def owners(weights: ArrayLike) -> Pixels:
    """Each pixel in the colour of the prototype with the largest weight there (ties: the first).

    Args:
      weights: (K, H, W, C), K at least 1; compared by their mean over the channels.
    """
    means = np.mean(np.asarray(weights, np.float64), axis=-1)
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in owner_colours(len(means))], np.uint8)
    return colours[np.argmax(means, axis=0)]


def variance_map(variance: ArrayLike) -> tuple[Pixels, float, float]:
    """The mean over the channels of a variance (H, W, C) as heat, and the values of its ends, low and high."""
    values = np.mean(np.asarray(variance, np.float64), axis=-1)
    low, high = float(values.min()), float(values.max())
    return heat(values, low, high, VARIANCE_COLORMAP), low, high


def _pixels(figure: Figure) -> Pixels:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def _axes(width: float, height: float, theme: Theme) -> tuple[Figure, Axes]:
    """A transparent figure with one set of axes, quiet enough to lie on a page."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.faint)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    return figure, axes


def _legend(axes: Axes, theme: Theme, **where: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, borderaxespad=0.0, **where)


def _ellipses(axes: Axes, means: ArrayLike, variances: ArrayLike, **style: Any) -> None:
    """Diagonal Gaussians at one sigma: (n, 2) means and variances, in one artist, which draws faster than n."""
    width, height = 2.0 * np.sqrt(np.asarray(variances, np.float64)).T
    where: Any = {"units": "xy", "offsets": np.asarray(means, np.float64), "offset_transform": axes.transData}
    axes.add_collection(collections.EllipseCollection(width, height, np.zeros_like(width), **where, **style))


def _draw_plane(axes: Axes, plane: Plane, theme: Theme) -> None:
    """The cells at two standard deviations, filled where trained and dashed where held out, and the limits."""
    trained = np.asarray(plane.trained_means, np.float64)
    held_out = np.asarray(plane.held_out_means, np.float64)
    trained_variances = np.asarray(plane.trained_variances, np.float64)
    held_out_variances = np.asarray(plane.held_out_variances, np.float64)
    _ellipses(axes, trained, 4.0 * trained_variances, facecolor=theme.muted, edgecolor="none", alpha=0.3, zorder=1)
    dashed = {"facecolor": "none", "edgecolor": theme.muted, "linestyle": (0, (3, 2))}
    _ellipses(axes, held_out, 4.0 * held_out_variances, **dashed, zorder=1)
    centres = np.concatenate([trained, held_out])
    reach = 4.0 * np.sqrt(np.concatenate([trained_variances, held_out_variances]).max())
    axes.set_xlim(centres[:, 0].min() - reach, centres[:, 0].max() + reach)
    axes.set_ylim(centres[:, 1].min() - reach, centres[:, 1].max() + reach)
    axes.set_aspect("equal", anchor="W")


def planar_overview(
    plane: Plane,
    query: ArrayLike,
    prototypes: ArrayLike,
    variances: ArrayLike,
    mean: ArrayLike,
    variance: ArrayLike,
    *,
    theme: Theme = LIGHT,
) -> Pixels:
    """A query in the plane, the selected prototypes and their product, each Gaussian as its 1-sigma ellipse.

    Args:
      plane: the mixture's cells.
      query: (2,).
      prototypes: (K, 2) means, in the order of selection.
      variances: (K, 2).
      mean: (2,) of the product.
      variance: (2,) of the product.
      theme: the colours.
    """
    figure, axes = _axes(5.4, 3.6, theme)
    _draw_plane(axes, plane, theme)
    axes.scatter([], [], s=60, color=theme.muted, alpha=0.3, label="trained")
    axes.scatter([], [], s=60, facecolor="none", edgecolor=theme.muted, linestyle="--", label="held out")
    centres = np.asarray(prototypes, np.float64).reshape(-1, 2)
    spreads = np.asarray(variances, np.float64).reshape(-1, 2)
    colours = owner_colours(len(centres))
    _ellipses(axes, centres, spreads, facecolor=colours, alpha=0.25, zorder=2)
    _ellipses(axes, centres, spreads, facecolor="none", edgecolor=colours, linewidth=1.5, zorder=3)
    for number, (centre, colour) in enumerate(zip(centres, colours, strict=True), start=1):
        axes.scatter(centre[0], centre[1], s=22, color=colour, zorder=4, label=f"concept {number}")
    product, spread = np.asarray(mean, np.float64)[None], np.asarray(variance, np.float64)[None]
    _ellipses(axes, product, spread, facecolor="none", edgecolor=theme.ink, linewidth=1.5, zorder=5)
    axes.scatter(product[:, 0], product[:, 1], s=36, marker="x", color=theme.ink, zorder=6, label="product")
    star = np.asarray(query, np.float64)
    axes.scatter(star[0], star[1], s=110, marker="*", color=_QUERY_COLOUR, zorder=7, label="query")
    _legend(axes, theme, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return _pixels(figure)


def planar_samples(plane: Plane, samples: ArrayLike, query: ArrayLike, *, colour: str, theme: Theme = LIGHT) -> Pixels:
    """One method's samples (n, 2) over the mixture's cells, with the query (2,) as a star."""
    figure, axes = _axes(2.4, 2.4, theme)
    _draw_plane(axes, plane, theme)
    points = np.asarray(samples, np.float64)
    axes.scatter(points[:, 0], points[:, 1], s=5, color=colour, alpha=0.7, linewidths=0.0, zorder=3)
    star = np.asarray(query, np.float64)
    axes.scatter(star[0], star[1], s=50, marker="*", color=_QUERY_COLOUR, zorder=4)
    return _pixels(figure)


def ownership_bars(weights: ArrayLike, names: Sequence[str], *, theme: Theme = LIGHT) -> Pixels:
    """Who owns each coordinate: bars from 0 to 1, split among the prototypes in their colours.

    Args:
      weights: (K, D) ownership weights, summing to 1 over K.
      names: the D coordinates.
      theme: the colours.
    """
    shares = np.asarray(weights, np.float64)
    figure, axes = _axes(2.6, 0.55 + 0.36 * shares.shape[1], theme)
    left = np.zeros(shares.shape[1])
    for share, colour in zip(shares, owner_colours(len(shares)), strict=True):
        axes.barh(np.arange(shares.shape[1]), share, left=left, height=0.62, color=colour)
        left = left + share
    axes.set_yticks(np.arange(shares.shape[1]), list(names))
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.0)
    axes.set_xticks([0.0, 0.5, 1.0])
    return _pixels(figure)


def dendrogram(levels: Sequence[Mapping[str, Any]], modes: Sequence[ArrayLike], *, theme: Theme = LIGHT) -> Pixels:
    """Which modes merge as the noise grows: fine noise at the bottom, coarse at the top, the modes as pictures.

    Below each mode is its basin; the more chains followed a line, the wider it is.

    Args:
      levels: L levels from fine to coarse, as `cdisc.discovery.hierarchy.tree` gives them.
      modes: for each level its modes, pictures (M, H, W, C) in [-1, 1] or points (M, 2).
      theme: the colours.
    """
    places = _tree_places(levels)
    columns = 1.0 + max(x for row in places for x in row)
    size = min(0.6, max(0.3, 11.0 / columns))  # of a picture, in inches
    figure, axes = _axes(1.0 + 1.25 * size * columns, 0.3 + 1.75 * size * len(levels), theme)
    largest = max(mode["basin"] for level in levels for mode in level["modes"])
    for y, (level, row, arrays) in enumerate(zip(levels, places, modes, strict=True)):
        for mode, x, array in zip(level["modes"], row, np.asarray(arrays), strict=True):
            if mode["parent"] is not None:
                above = places[y + 1][mode["parent"]]
                width = 1.0 + 4.0 * mode["basin"] / largest
                bend = ([x, x, above, above], [y, y + 0.5, y + 0.5, y + 1])
                axes.plot(*bend, color=theme.muted, alpha=0.4, linewidth=width, zorder=1)
            if array.ndim == 1:
                text = "\n".join(f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in array)
                axes.text(x, y, text, fontsize=7, ha="center", va="center", color=theme.ink, zorder=2)
            else:
                pixels = to_uint8(array)
                zoom = size * 72.0 / max(pixels.shape[:2])  # an image's own pixels are points
                picture = offsetbox.OffsetImage(pixels, zoom=zoom)
                axes.add_artist(offsetbox.AnnotationBbox(picture, (x, y), frameon=False, pad=0.0))
            axes.annotate(
                f"{mode['basin']}",
                (x, y),
                xytext=(-36.0 * size, -36.0 * size - 2.0),
                textcoords="offset points",
                fontsize=7,
                ha="left",
                va="top",
                color=theme.muted,
            )
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(-0.7, len(levels) - 0.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(levels)), [f"t = {level['t']}" for level in levels])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _pixels(figure)


def _tree_places(levels: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Where the modes of each level lie from left to right: no lines cross, and parents lie between children."""
    places = [[math.nan] * len(level["modes"]) for level in levels]
    leaves = 0

    def put(level: int, mode: int) -> float:
        nonlocal leaves
        below = levels[level - 1]["modes"] if level > 0 else []
        children = [put(level - 1, child) for child, found in enumerate(below) if found["parent"] == mode]
        if not children:
            leaves += 1
        places[level][mode] = sum(children) / len(children) if children else leaves - 1.0
        return places[level][mode]

    for level, found in enumerate(levels):
        for mode in range(len(found["modes"])):
            if found["modes"][mode]["parent"] is None:
                put(level, mode)
    return places


def method_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each method, by its place in `names`; kept apart from `owner_colours` by its hues."""
    wheel = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {
        name: "#{:02x}{:02x}{:02x}".format(*(round(255 * c) for c in wheel[i % len(wheel)]))
        for i, name in enumerate(names)
    }


def intervals(
    rows: Mapping[str, Sequence[Any]], label: str, colours: Mapping[str, str], *, theme: Theme = LIGHT
) -> Pixels:
    """One figure of each method with its interval, methods from top to bottom.

    Args:
      rows: method name to the estimate and both ends of its interval, which are None where there is none.
      label: of the axis: the figure, its unit and how much it rests on.
      colours: method name to colour.
      theme: the other colours.
    """
    figure, axes = _axes(5.4, 0.6 + 0.24 * len(rows), theme)
    axes.grid(axis="x", color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for place, (name, (estimate, low, high)) in enumerate(rows.items()):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colours[name], linewidth=1.5)
        axes.plot([estimate], [place], marker=_MARKERS[place % len(_MARKERS)], color=colours[name], markersize=5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=9)
    return _pixels(figure)


def tradeoff(methods: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str], *, theme: Theme = LIGHT) -> Pixels:
    """Joint accuracy against recall, one mark with its standard errors for each method.

    Guidance trades the one for the other, so a method is better only where it lies above and to the right.

    Args:
      methods: the `methods` of a results file; one that lacks either figure is left out.
      colours: method name to colour.
      theme: the other colours.
    """
    shown = [name for name, m in methods.items() if m["joint_accuracy"] is not None and m["recall"] is not None]
    figure, axes = _axes(5.4, 3.0, theme)
    axes.grid(color=theme.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for index, name in enumerate(shown):
        method, error = methods[name], methods[name]["standard_error"]
        axes.errorbar(
            method["recall"],
            method["joint_accuracy"],
            xerr=error["recall"],
            yerr=error["joint_accuracy"],
            fmt=_MARKERS[index % len(_MARKERS)],
            markersize=7,
            color=colours[name],
            elinewidth=1.0,
            label=name,
            clip_on=False,
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("recall", fontsize=9)
    axes.set_ylabel("joint accuracy", fontsize=9)
    _legend(axes, theme, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return _pixels(figure)
