"""The card of a query: what was found in it and what was made of it, as JSON. The page shows nothing else of a query.

Pictures are PNG as data URIs, at their true resolution. `docs/running.md` has the keys.
"""

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cdisc.app.report import figures
from cdisc.app.report.results import json_safe
from cdisc.data import pictures
from cdisc.discovery.concepts import Discovery


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One query, what was discovered in it, and what each method made of it.

    Attributes:
      entry: the query's entry in the results file.
      query: (H, W, C) picture in [-1, 1], or (2,) point.
      discovery: the arrays of what was discovered, of the query's shape; None where nothing was.
      samples: method name, one of the results', to (n, H, W, C) or (n, 2), n at least 1.
      warning: a sentence about the query that stands above the rest; empty for none.
    """

    entry: Mapping[str, Any]
    query: ArrayLike
    discovery: Discovery | None
    samples: Mapping[str, ArrayLike]
    warning: str = ""


def card(panel: Panel, samples_shown: int = 16, modes_shown: int = 6) -> dict[str, Any]:
    """All that the page shows of a query, of what JSON can hold.

    Args:
      panel: the query.
      samples_shown: how many pictures of each method it has; of points it has all.
      modes_shown: how many modes it has of each noise level.
    """
    planar = np.shape(panel.query) == (2,)
    show: Callable[[Any], Any] = np.asarray if planar else picture
    made = {
        "query": show(panel.query),
        "warning": panel.warning,
        "concepts": [],
        "modes": [],
        "samples": {
            name: {"drawn": len(drawn), "figures": panel.entry["methods"].get(name, {})}
            | ({"points": drawn} if planar else _sheet(drawn[:samples_shown]))
            for name, drawn in ((name, np.asarray(drawn)) for name, drawn in panel.samples.items())
        },
    }
    if panel.discovery is not None:
        mean, variance = panel.discovery.teacher.mean, panel.discovery.teacher.variance
        made["concepts"] = _concepts(panel.entry["prototypes"], panel.discovery)
        if planar:
            made["product"] = {"mean": mean, "variance": variance, **ellipses(mean[None], variance[None], 1.0)[0]}
        else:
            pixels, low, high = figures.variance_map(variance)
            made["product"] = {"mean": picture(mean), "variance": png(pixels) | {"low": low, "high": high}}
            made["modes"] = _modes(panel.discovery, modes_shown)
    kept = {name: value for name, value in panel.entry.items() if name not in ("prototypes", "methods")}
    return json_safe(kept | made)


def _concepts(entries: Sequence[Mapping[str, Any]], discovery: Discovery) -> list[dict[str, Any]]:
    """The selected concepts: their entries in the results, their colours, their means and what they own."""
    picked = np.asarray(discovery.selection.indices)[np.asarray(discovery.selection.mask)]
    shares = np.asarray(discovery.ownership)[: len(entries)]
    mean, variance = np.asarray(discovery.experts.mean)[picked], np.asarray(discovery.experts.variance)[picked]
    if mean.ndim == 2:
        points = zip(mean, shares, ellipses(mean, variance, 1.0), strict=True)
        drawn = [{"mean": m, "ownership": share, **ellipse} for m, share, ellipse in points]
    else:
        maps = [png(figures.ownership_map(share)) for share in shares]
        places = zip(mean, maps, figures.outlines(shares), strict=True)
        drawn = [{"mean": picture(m), "ownership": owned, "outline": line} for m, owned, line in places]
    columns = zip(entries, figures.owner_colours(len(entries)), shares, drawn, strict=True)
    return [
        {**entry, "colour": colour, "saddle": _is_saddle(entry["curvature"]), "share": share.mean(), **of}
        for entry, colour, share, of in columns
    ]


def _is_saddle(curvature: float | None) -> bool:
    return curvature is not None and curvature > 0


def _modes(discovery: Discovery, shown: int) -> list[dict[str, Any]]:
    """All stationary points, a column for each noise level, from fine to coarse (arXiv 2605.07078, Fig. 2 and 4)."""
    pool, columns = discovery.pool, []
    present = np.flatnonzero(pool.mask)
    for t in dict.fromkeys(int(pool.t[i]) for i in present):
        found = [i for i in present if pool.t[i] == t]
        tiles = [
            {"picture": picture(pool.m[i]), "basin": pool.basin[i], "saddle": _is_saddle(float(pool.curvature[i]))}
            for i in found[:shown]
        ]
        columns.append({"t": t, "tiles": tiles, "hidden": len(found) - len(tiles)})
    return columns


def _sheet(samples: np.ndarray) -> dict[str, Any]:
    return {"shown": len(samples), "picture": png(pictures.grid(samples))}


def picture(values: ArrayLike) -> dict[str, Any]:
    """(H, W, C) in [-1, 1] as `png` has it."""
    return png(pictures.to_uint8(values))


def png(pixels: pictures.Pixels) -> dict[str, Any]:
    """(H, W, 3 or 4) bytes as a data URI, with its size."""
    source = "data:image/png;base64," + base64.b64encode(pictures.png(pixels)).decode("ascii")
    return {"source": source, "width": pixels.shape[1], "height": pixels.shape[0]}


def ellipses(means: ArrayLike, variances: ArrayLike, sigmas: float) -> list[dict[str, float]]:
    """Diagonal Gaussians (n, 2) as SVG's ellipses at `sigmas` standard deviations; its second axis runs downwards."""
    rows = zip(np.asarray(means, float), sigmas * np.sqrt(np.asarray(variances, float)), strict=True)
    return [{"cx": x, "cy": -y, "rx": rx, "ry": ry} for (x, y), (rx, ry) in rows]
