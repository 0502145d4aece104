"""Pictures of what was found and drawn, as matplotlib's figures, which a notebook shows."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import ArrayLike

from cdisc.app.report import figures
from cdisc.data import pictures as pictures_lib


class Drawing(Figure):
    """A figure that a notebook shows by itself; everything else is matplotlib's."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()


def concepts(found: Any) -> Drawing:
    """What was found in a query: the query, its product, and each concept above the part of the query that it owns.

    Args:
      found: what `cdisc.discover` returned, of a picture or of a point in the plane.
    """
    shares = np.asarray(found.concepts.weights)
    if found.query.ndim == 1:
        return _plane(found)
    columns = 2 + len(found.concepts)
    drawing = Drawing(figsize=(1.1 * columns, 2.6), dpi=120, layout="constrained")
    axes = drawing.subplots(2, columns, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    _show(axes[0, 0], found.query, "query")
    _show(axes[0, 1], found.product.mean, "product")
    colours, query = figures.owner_colours(len(shares)), pictures_lib.to_uint8(found.query)
    parts = zip(found.concepts.experts.mean, shares, figures.leads(shares), colours, strict=True)
    for place, (mean, share, lead, colour) in enumerate(parts):
        _show(axes[0, 2 + place], mean, f"concept {place}")
        axes[1, 2 + place].imshow(np.where(lead[..., None] > 0, query, query // 5), interpolation="nearest")
        if lead.min() < 0 < lead.max():
            axes[1, 2 + place].contour(lead, levels=[0.0], colors=colour, linewidths=1.5)
        axes[1, 2 + place].set_title(f"owns {share.mean():.0%}", fontsize=7)
    return drawing


def pictures(samples: ArrayLike, columns: int | None = None) -> Drawing:
    """Pictures (N, H, W, C) in [-1, 1] row by row, or points (N, 2) in the plane."""
    shown = np.asarray(samples)
    if shown.ndim == 2:
        drawing = Drawing(figsize=(3, 3), dpi=120, layout="constrained")
        drawing.subplots().scatter(shown[:, 0], shown[:, 1], s=8)
        return drawing
    grid = pictures_lib.grid(shown, columns=columns)
    inches = 1.0 / 48.0  # of a pixel: twice its size at 96 dots
    drawing = Drawing(figsize=(grid.shape[1] * inches, grid.shape[0] * inches), dpi=96)
    axis = drawing.add_axes((0, 0, 1, 1))
    axis.imshow(grid, interpolation="nearest")
    axis.axis("off")
    return drawing


def _show(axis: Any, picture: ArrayLike, title: str) -> None:
    axis.imshow(pictures_lib.to_uint8(picture), interpolation="nearest")
    axis.set_title(title, fontsize=7)


def _plane(found: Any) -> Drawing:
    """The query as a star, each concept and the product as ellipses of one standard deviation."""
    drawing = Drawing(figsize=(4.2, 3.2), dpi=120, layout="constrained")
    axis = drawing.subplots()
    colours = figures.owner_colours(len(found.concepts))
    experts, product = found.concepts.experts, found.product
    means = [*np.asarray(experts.mean), np.asarray(product.mean)]
    widths = 2.0 * np.sqrt([*np.asarray(experts.variance), np.asarray(product.variance)])
    names = [*(f"concept {place}" for place in range(len(colours))), "product"]
    for mean, (width, height), name, colour in zip(means, widths, names, (*colours, "black"), strict=True):
        axis.add_patch(Ellipse(mean, width, height, facecolor=colour, alpha=0.3))
        axis.scatter(mean[0], mean[1], color=colour, s=20, label=name)
    x, y = np.asarray(found.query)
    axis.scatter(x, y, marker="*", s=90, color="#e5484d", label="query")
    axis.set_aspect("equal")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return drawing
