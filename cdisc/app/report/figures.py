"""Numbers as colours: functions from arrays to uint8 RGB pictures, and the colours and places of what the page draws.

Pictures are (H, W, C) in [-1, 1], C = 1 or 3. Everything depends on its arguments alone.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import contourpy
import matplotlib
import numpy as np
from matplotlib import colors
from numpy.typing import ArrayLike

from cdisc.data.pictures import Pixels

OWNERSHIP_COLORMAP = "viridis"
"""For ownership weights, 0 to 1: perceptually uniform, and readable without colour vision."""
VARIANCE_COLORMAP = "magma"
"""For variances: perceptually uniform, and not to be taken for an ownership map."""

# Okabe and Ito (2008), grey for their black: eight colours that stay apart without full colour vision.
_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442", "#999999")


def heat(values: ArrayLike, low: float, high: float, colormap: str) -> Pixels:
    """(H, W) numbers to the RGB colours of a matplotlib colormap that runs from `low` to `high`."""
    return matplotlib.colormaps[colormap](np.asarray(colors.Normalize(low, high)(values)), bytes=True)[..., :3]


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
    return tuple(colors.to_hex(colour) for colour in matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def leads(weights: ArrayLike) -> np.ndarray:
    """By how much each prototype owns more of a pixel than any other: (K, H, W), below 0 where another owns more.

    Shares alternate from pixel to pixel where prototypes agree, so they are smoothed by a Gaussian first, whose
    standard deviation is 1/32 of the height.

    Args:
      weights: (K, H, W, C), K from 0 on; compared by their mean over the channels.
    """
    means = np.mean(np.asarray(weights, np.float64), axis=-1)
    width = means.shape[1] / 32.0

    def smoothing(size: int) -> np.ndarray:
        away = np.subtract.outer(np.arange(size), np.arange(size)) / width
        return np.exp(-0.5 * away**2) / np.exp(-0.5 * away**2).sum(axis=1, keepdims=True)

    shares = smoothing(means.shape[1]) @ means @ smoothing(means.shape[2]).T
    others = [np.max(np.delete(shares, number, axis=0), axis=0, initial=0.0) for number in range(len(shares))]
    return shares - np.reshape(others, shares.shape)


def outlines(weights: ArrayLike) -> list[str]:
    """For each prototype the line around where it `leads`, as an SVG path in pixels from the corner."""
    paths = []
    for lead in leads(weights):
        edge = np.pad(np.zeros(lead.shape, bool), 1, constant_values=True)
        lead = np.pad(lead, 1, mode="edge")
        lead = np.where(edge, -np.abs(lead), lead)  # so that lines close along the picture's edge
        lines: Any = contourpy.contour_generator(z=lead).lines(0.0)
        paths.append("".join("M" + "L".join(f"{x - 0.5:.1f} {y - 0.5:.1f}" for x, y in line) + "Z" for line in lines))
    return paths


def variance_map(variance: ArrayLike) -> tuple[Pixels, float, float]:
    """The mean over the channels of a variance (H, W, C) as heat, and the values of its ends, low and high."""
    values = np.mean(np.asarray(variance, np.float64), axis=-1)
    low, high = float(values.min()), float(values.max())
    return heat(values, low, high, VARIANCE_COLORMAP), low, high


def method_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each method, by its place in `names`; kept apart from `owner_colours` by its hues."""
    return dict(zip(names, map(colors.to_hex, itertools.cycle(colors.TABLEAU_COLORS)), strict=False))


def tree_places(levels: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Where the modes of each level lie from left to right: no lines cross, and parents lie between children.

    Args:
      levels: from fine to coarse noise, as `cdisc.discovery.hierarchy.tree` gives them.
    """
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
