"""One self-contained page of what a run found: no script, no network, light or dark as the reader's system is.

Three steps: the results file and the saved arrays (`Page`, `Panel`), what a template shows of them (the functions that
return dicts here), and the templates, `page.html` with `page.css`, which escape every text. The page depends on its
`Page` alone: the same run gives the same bytes. Pictures are inline PNG at their true resolution; the browser scales
them up without smoothing.
"""

import base64
import dataclasses
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from numpy.typing import ArrayLike

from cdisc import storage
from cdisc.app.report import figures
from cdisc.data import pictures
from cdisc.discovery.concepts import Discovery

_TILE = 112  # CSS pixels to which a picture is scaled, roughly.
_SHEET = 264  # The same for a sheet of samples.
_MODE = 80  # The same for one of many modes.

# A figure's key, the decimals that it is shown with, and whether the highest is the best.
_COLUMNS = {
    "joint_accuracy": (2, True),
    "attribute_accuracy": (2, True),
    "precision": (2, True),
    "recall": (2, True),
    "right_recall": (2, True),
    "coverage": (2, True),
    "f1": (2, True),
    "kid": (3, False),
    "distance_to_query": (2, False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One query, what was discovered in it, and what each method made of it.

    Attributes:
      entry: the query's entry in the results file.
      query: (H, W, C) picture in [-1, 1], or (2,) point.
      discovery: the arrays of what was discovered, of the query's shape; None where nothing was.
      samples: method name, one of the results', to (n, H, W, C) or (n, 2), n at least 1.
    """

    entry: Mapping[str, Any]
    query: ArrayLike
    discovery: Discovery | None
    samples: Mapping[str, ArrayLike]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows.

    Attributes:
      title: the heading.
      subtitle: one line below it, as the configuration in words.
      results: the results file's content, as `cdisc.app.report.results.SCHEMA` has it.
      panels: one for each query, in order; taken one by one, so that they need not be in memory together.
      plane: the mixture's cells when the data are points in the plane, else None.
      methods: method name to one sentence that says what it is, for the legend.
      reference: the method that is no contestant, because it knows more than the query; None if there is none.
      panels_shown: how many panels the page has at most.
      samples_shown: how many pictures of each method a panel shows; points are all shown.
      modes_shown: how many modes of each noise level a panel shows.
      hierarchy: which modes merge as the noise grows, as `cdisc.discovery.hierarchy.tree` gives it; None where
        they were not followed.
      hierarchy_modes: the modes of each of its levels, (M, H, W, C) or (M, 2).
    """

    title: str
    subtitle: str
    results: Mapping[str, Any]
    panels: Iterable[Panel]
    plane: figures.Plane | None = None
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    panels_shown: int = 40
    samples_shown: int = 16
    modes_shown: int = 6
    hierarchy: Mapping[str, Any] | None = None
    hierarchy_modes: Sequence[ArrayLike] = ()


def render(page: Page) -> str:
    """The page as one HTML document.

    Raises:
      ValueError: when points come without a plane.
    """
    return "".join(_pieces(page))


def write(path: str | os.PathLike[str], page: Page) -> None:
    """Writes the page to `path`; the file is replaced whole or not at all."""
    storage.write_bytes(pathlib.Path(path), (piece.encode("utf-8") for piece in _pieces(page)))


def _pieces(page: Page) -> Iterator[str]:
    """The document from its beginning to its end, a panel at a time."""
    methods = page.results["methods"]
    colours = figures.method_colours(list(methods))
    evaluations = [query["nfe"] for query in page.results["queries"]]
    return _TEMPLATES.get_template("page.html").generate(
        page=page,
        results=page.results,
        panels=(_panel(panel, page, colours) for panel in itertools.islice(page.panels, page.panels_shown)),
        hierarchy=_hierarchy(page),
        tradeoff=_tradeoff(methods, colours),
        table=_table(methods, colours, ("samples", "queries"), page.reference),
        pooled=_pooled(methods, colours, page.reference),
        longest=max(page.results["seconds"].values(), default=0.0),
        evaluations=np.mean(evaluations) if evaluations else None,
    )


def _panel(panel: Panel, page: Page, colours: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows of one query."""
    view: dict[str, Any] = {"entry": panel.entry, "concepts": (), "modes": ()}
    planar = np.shape(panel.query) == (2,)
    if not planar:
        view["query"] = _picture(pictures.to_uint8(panel.query), f"the query {panel.entry['name']}", _TILE)
    elif page.plane is None:
        raise ValueError("a page of points in the plane needs `plane`")
    if panel.discovery is not None:
        found = _concepts(panel.entry["prototypes"], panel.discovery)
        view |= (
            _points(panel, panel.discovery, found, page.plane)
            if page.plane
            else _pictures(panel, panel.discovery, found)
        )
        view |= {"concepts": found, "modes": () if planar else _modes(panel.entry["name"], panel.discovery, page)}
    return view | {"sheets": [_sheet(panel, page, name, colours[name]) for name in panel.samples]}


def _concepts(entries: Sequence[Mapping[str, Any]], discovery: Discovery) -> list[dict[str, Any]]:
    """The selected concepts: their entries in the results, their colours and their arrays."""
    picked = np.asarray(discovery.selection.indices)[np.asarray(discovery.selection.mask)]
    shares = np.asarray(discovery.ownership)[: len(entries)]
    mean, variance = np.asarray(discovery.experts.mean)[picked], np.asarray(discovery.experts.variance)[picked]
    columns = zip(entries, figures.owner_colours(len(entries)), mean, variance, shares, strict=True)
    return [
        {**entry, "colour": colour, "saddle": _is_saddle(entry["curvature"])}
        | {"mean": mean, "variance": variance, "ownership": share}
        for entry, colour, mean, variance, share in columns
    ]


def _is_saddle(curvature: float | None) -> bool:
    return curvature is not None and curvature > 0


def _pictures(panel: Panel, discovery: Discovery, concepts: list[dict[str, Any]]) -> dict[str, Any]:
    """The concepts with what they own, and their product, as pictures."""
    name, teacher = panel.entry["name"], discovery.teacher
    for number, concept in enumerate(concepts, start=1):
        mean = _picture(pictures.to_uint8(concept["mean"]), f"concept {number} of {name}", _TILE)
        share = f"ownership of concept {number}: its mean share is {np.mean(concept['ownership']):.2f}"
        concept |= {"picture": mean, "share": _picture(figures.ownership_map(concept["ownership"]), share, _TILE)}
    variance, low, high = figures.variance_map(teacher.variance)
    span = f"variance of the product, {_significant(low)} to {_significant(high)}"
    view = {
        "ownership_bar": _source(figures.colorbar(figures.OWNERSHIP_COLORMAP)),
        "mean": _picture(pictures.to_uint8(teacher.mean), f"mean of the product for {name}", _TILE),
        "variance": _picture(variance, span, _TILE) | {"low": low, "high": high},
        "variance_bar": _source(figures.colorbar(figures.VARIANCE_COLORMAP)),
    }
    if concepts:
        owners = figures.owners(np.stack([concept["ownership"] for concept in concepts]))
        view["owners"] = _picture(owners, f"the owner of each pixel for {name}", _TILE)
    return view


def _points(
    panel: Panel, discovery: Discovery, concepts: Sequence[Mapping[str, Any]], plane: figures.Plane
) -> dict[str, Any]:
    """The plane with the query, the concepts and their product, and the concepts' shares of the coordinates."""
    name, product = panel.entry["name"], discovery.teacher
    means, variances = (np.array([concept[key] for concept in concepts]) for key in ("mean", "variance"))
    draw = functools.partial(
        figures.planar_overview, plane, panel.query, means, variances, product.mean, product.variance
    )
    ellipses = f"the plane with the query {name}, {len(concepts)} concepts and their product as 1-sigma ellipses"
    axes = [(axis, float(product.mean[i]), float(product.variance[i])) for i, axis in enumerate("xy")]
    view: dict[str, Any] = {"overview": _chart(draw, ellipses), "axes": axes}
    if concepts:
        bars = functools.partial(figures.ownership_bars, np.stack([c["ownership"] for c in concepts]), ("x", "y"))
        view["bars"] = _chart(bars, f"ownership of each coordinate for {name}")
    return view


def _modes(name: str, discovery: Discovery, page: Page) -> list[dict[str, Any]]:
    """All stationary points, a column for each noise level, from fine to coarse (arXiv 2605.07078, Fig. 2 and 4)."""
    pool, columns = discovery.pool, []
    present = np.flatnonzero(pool.mask)
    for t in dict.fromkeys(int(pool.t[i]) for i in present):
        found = [i for i in present if pool.t[i] == t]
        tiles = [
            {
                "picture": _picture(pictures.to_uint8(pool.m[i]), f"mode at t = {t} of {name}", _MODE),
                "basin": int(pool.basin[i]),
                "saddle": _is_saddle(float(pool.curvature[i])),
            }
            for i in found[: page.modes_shown]
        ]
        columns.append({"t": t, "tiles": tiles, "hidden": len(found) - len(tiles)})
    return columns


def _sheet(panel: Panel, page: Page, name: str, colour: str) -> dict[str, Any]:
    """One method's samples for one query."""
    samples = np.asarray(panel.samples[name])
    alt = f"samples of {name} for {panel.entry['name']}"
    view = {"name": name, "colour": colour, "total": len(samples), "measures": panel.entry["methods"].get(name, {})}
    if page.plane is None:
        shown = samples[: page.samples_shown]
        return view | {"shown": len(shown), "picture": _picture(pictures.grid(shown), alt, _SHEET)}
    draw = functools.partial(figures.planar_samples, page.plane, samples, panel.query, colour=colour)
    return view | {"shown": len(samples), "chart": _chart(draw, alt)}


def _tradeoff(methods: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> dict[str, Any] | None:
    """The chart of joint accuracy against recall, where there are two methods to compare."""
    comparable = [m for m in methods.values() if m["joint_accuracy"] is not None and m["recall"] is not None]
    if len(comparable) < 2:
        return None
    alt = "joint accuracy against recall, one mark with its standard errors for each method"
    return _chart(functools.partial(figures.tradeoff, methods, colours), alt)


def _hierarchy(page: Page) -> dict[str, Any] | None:
    """The modes of all queries as a tree."""
    if page.hierarchy is None:
        return None
    levels = page.hierarchy["levels"]
    alt = f"the tree of modes from t = {levels[0]['t']} at the bottom to t = {levels[-1]['t']} at the top"
    draw = functools.partial(figures.dendrogram, levels, page.hierarchy_modes)
    return {"chart": _chart(draw, alt), "nfe": page.hierarchy["nfe"]}


def _pooled(
    methods: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str], reference: str | None
) -> dict[str, dict[str, Any]]:
    """The paper's two comparisons, of the samples of all queries of a class together, where there are any."""
    pooled = {name: method["pooled"] for name, method in methods.items() if "pooled" in method}
    titles = {
        "faithfulness": "Faithfulness: against the queries of the class",
        "generalization": "Generalization: against other real pictures of the class",
    }
    return {
        title: _table({name: found | found[key] for name, found in pooled.items()}, colours, ("classes",), reference)
        for key, title in (titles.items() if pooled else ())
    }


def _table(
    methods: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str], counts: Sequence[str], reference: str | None
) -> dict[str, Any]:
    """Methods down, figures and then counts across; a column that no method has a figure for is left out."""
    values = {name: _by_column(method) for name, method in methods.items()}
    errors = {name: _by_column(method["standard_error"]) for name, method in methods.items()}
    columns = [
        column
        for column in dict.fromkeys(column for row in values.values() for column in row)
        if any(row.get(column) is not None for row in values.values())
    ]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for column in columns:
        decimals, highest = _COLUMNS[column[0]]
        shown = {name: _number(row.get(column), decimals) for name, row in values.items()}
        contest = {name: v for name, row in values.items() if name != reference and (v := row.get(column)) is not None}
        # Values that print alike are marked alike: the page claims no more than it shows. Where all do, none is best.
        top = _number(max(contest.values(), default=None), decimals)
        decided = highest and len({shown[name] for name in contest}) > 1
        for name in methods:
            error = errors[name].get(column)
            rows[name].append(
                {
                    "value": shown[name],
                    "error": None if error is None else _number(error, decimals),
                    "best": decided and name in contest and shown[name] == top,
                }
            )
    return {
        "headings": ["KID" if key == "kid" else _words(factor or key).capitalize() for key, factor in columns],
        "counts": [_words(count).capitalize() for count in counts],
        "rows": [
            {"name": name, "colour": colours[name], "cells": rows[name], "counts": [methods[name][c] for c in counts]}
            for name in methods
        ],
    }


def _by_column(measures: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    """A method's figures by key and, for an attribute's accuracy, factor."""
    values: dict[tuple[str, str], float | None] = {}
    for key in _COLUMNS:
        if key == "attribute_accuracy":
            values |= {(key, factor): value for factor, value in measures.get(key, {}).items()}
        else:
            values[key, ""] = measures.get(key)
    return values


def _picture(pixels: pictures.Pixels, alt: str, target: int) -> dict[str, Any]:
    """A picture scaled up by a whole factor to about `target` CSS pixels, or smoothly down to it."""
    height, width = pixels.shape[:2]
    enlarged = width <= target
    shown = width * max(1, round(target / width)) if enlarged else target
    size = {"width": shown, "height": round(height * shown / width)}
    return {"src": _source(pixels), "alt": alt, "pixelated": enlarged, **size}


def _chart(draw: Callable[..., pictures.Pixels], alt: str) -> dict[str, Any]:
    """A chart in both themes, one of which the browser shows, at half its pixels: sharp on dense screens."""
    light, dark = draw(theme=figures.LIGHT), draw(theme=figures.DARK)
    size = {"width": light.shape[1] // 2, "height": light.shape[0] // 2}
    return {"light": _source(light), "dark": _source(dark), "alt": alt, **size}


def _source(pixels: pictures.Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(pictures.png(pixels)).decode("ascii")


def _number(value: float | None, decimals: int) -> str:
    """Fixed decimals with a true minus sign; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _significant(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def _words(name: str) -> str:
    return name.replace("_", " ")


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"number": _number, "significant": _significant, "words": _words}
