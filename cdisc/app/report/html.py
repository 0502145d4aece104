"""One self-contained page of what a run found: no script, no network, light or dark as the reader's system is.

`render` is a function of a `Page` alone, so the same run gives the same bytes. Pictures are inline PNG at their true
resolution; the browser scales them up without smoothing. Every text from outside is escaped.
"""

import base64
import dataclasses
import functools
import html
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cdisc import storage
from cdisc.app.report import figures
from cdisc.data import pictures

_TILE = 112  # CSS pixels to which a picture is scaled, roughly.
_SHEET = 264  # The same for a sheet of samples.
_MODE = 80  # The same for one of many modes.
_COORDINATES = ("x", "y")

# Key, heading, decimals, and whether the highest is the best.
_COLUMNS = (
    ("joint_accuracy", "Joint accuracy", 2, True),
    ("attribute_accuracy", "", 2, True),
    ("precision", "Precision", 2, True),
    ("recall", "Recall", 2, True),
    ("f1", "F1", 2, True),
    ("kid", "KID", 3, False),
    ("distance_to_query", "Distance to query", 2, False),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prototype:
    """A selected concept: the Gaussian N(mean, diag(variance)) of one mode of the noised density, and its share.

    Attributes:
      mean: (H, W, C) picture in [-1, 1], or (2,) point.
      variance: like `mean`.
      ownership: like `mean`, the weights w_j(r) of the product in 0..1 (arXiv 2605.07078, Eq. 10).
      t: the timestep of whose density this is a mode.
      basin: how many ascent chains ended there.
      gain: what its selection added to the objective, in nats.
      curvature: largest curvature of log p_t there, in units of 1 / (1 - abar_t); below 0 at a mode. May be NaN.
    """

    mean: ArrayLike
    variance: ArrayLike
    ownership: ArrayLike
    t: int
    basin: int
    gain: float
    curvature: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mode:
    """A stationary point of the noised density.

    Attributes:
      mean: (H, W, C) picture in [-1, 1], the clean prototype.
      t: the timestep.
      basin: how many ascent chains ended there.
      curvature: as in `Prototype`; above 0 at a saddle.
    """

    mean: ArrayLike
    t: int
    basin: int
    curvature: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryPanel:
    """One query, what was discovered from it, and what each method made of it.

    Attributes:
      name: the panel's heading.
      attributes: the true composition, factor to value; None when it is not known.
      query: (H, W, C) picture in [-1, 1], or (2,) point.
      prototypes: the selected concepts, in the order of selection; may be empty.
      modes: all that was found, from fine to coarse noise, the largest basin of each noise level first; pictures only.
      mean: like `query`, of the product of experts N(mean, diag(variance)).
      variance: like `query`.
      samples: method name, one of the results', to (n, H, W, C) or (n, 2), n at least 1.
      measures: method name to this query's figures, as `methods` of a query in the results file.
      discovery: what was left out, as `discovery` of a query in the results file; None does not say.
    """

    name: str
    attributes: Mapping[str, str] | None
    query: ArrayLike
    prototypes: tuple[Prototype, ...]
    mean: ArrayLike
    variance: ArrayLike
    samples: Mapping[str, ArrayLike]
    measures: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    modes: tuple[Mode, ...] = ()
    discovery: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows.

    Attributes:
      title: the heading.
      subtitle: one line below it, as the configuration in words.
      results: the results file's content, as `cdisc.app.report.results.SCHEMA` has it.
      queries: the panels, in order; taken one by one, so that they need not be in memory together.
      plane: the mixture's cells when the data are points in the plane, else None.
      methods: method name to one sentence that says what it is, for the legend.
      queries_shown: how many panels the page has at most.
      samples_shown: how many pictures of each method a panel shows; points are all shown.
      modes_shown: how many modes of each noise level a panel shows.
      hierarchy: which modes merge as the noise grows, as `cdisc.discovery.hierarchy.tree` gives it; None where
        they were not followed.
      hierarchy_modes: the modes of each of its levels, (M, H, W, C) or (M, 2).
    """

    title: str
    subtitle: str
    results: Mapping[str, Any]
    queries: Iterable[QueryPanel]
    plane: figures.Plane | None = None
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    queries_shown: int = 40
    samples_shown: int = 16
    modes_shown: int = 6
    hierarchy: Mapping[str, Any] | None = None
    hierarchy_modes: Sequence[ArrayLike] = ()


_MEASURES = (
    ("Joint accuracy", "Share of the samples whose every attribute is the query's."),
    (
        "Precision and recall",
        "Share of the samples that look like real pictures of the class, and share of the real pictures that the "
        "samples cover. Guidance trades recall for accuracy, so a method is better only where it lies above and to "
        "the right; a copy of the query has full accuracy and no recall.",
    ),
    ("Distance to query", "RMS difference of a sample to the query: near zero, the samples are copies."),
)

_TERMS = (
    ("Query", "The one picture that was given, as a rule of a composition that no training picture has."),
    (
        "Concept",
        "A mode of the network's own density at noise level t, found by ascent from many starts. Its basin is how many "
        "starts ended in it, its gain what it adds to the explanation of the query, and its curvature is below zero at "
        "a true mode.",
    ),
    (
        "Ownership",
        "A concept's share of the product at each place, from 0 to 1: the mean over the channels. The owner map shows "
        "whose share is the largest.",
    ),
    (
        "Product",
        "The product of the concepts' Gaussians, each weighted by its ownership: a mean, and a variance that says "
        "where the concepts leave freedom.",
    ),
    ("Samples", "What each method makes of this one query, without a look at any other picture of its class."),
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1c20; --muted: #5f6673; --line: #e3e5ea; --page: #fbfbfc; --card: #ffffff;
  --accent: #3b5bdb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --muted: #9aa1ad; --line: #2c3038; --page: #131519;
  --card: #1b1e24; --accent: #91a7ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 48px 28px 64px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.02em; margin: 0; font-weight: 650; }
h2 { font-size: 19px; letter-spacing: -0.01em; margin: 0 0 4px; font-weight: 620; }
h3 { font-size: 12px; margin: 0 0 10px; color: var(--muted); font-weight: 600; letter-spacing: 0.02em; }
p { margin: 0; }
.subtitle { color: var(--muted); margin-top: 6px; font-size: 16px; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 22px; margin-top: 14px; color: var(--muted); font-size: 13px; }
h2 + .facts { margin-top: 2px; }
.facts b { color: var(--ink); font-weight: 550; }
code { font: 12.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
section { margin-top: 28px; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
.methods { width: 100%; }
th { text-align: right; font-weight: 550; color: var(--muted); font-size: 12.5px; padding: 6px 10px;
  white-space: nowrap; border-bottom: 1px solid var(--line); }
td { text-align: right; padding: 7px 10px; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child td, tr:last-child th[scope=row] { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th[scope=row] { color: var(--ink); font-size: 14px; }
.error { color: var(--muted); font-size: 12px; }
.best { font-weight: 700; }
.columns { display: flex; flex-wrap: wrap; gap: 28px 40px; align-items: flex-start; }
.columns > * { flex: 1 1 300px; min-width: 0; }
.columns > .chart { flex: 0 1 auto; }
.chart { max-width: 100%; height: auto; display: block; }
.scroll .chart { max-width: none; }
dl { margin: 0; font-size: 13.5px; }
dt { font-weight: 600; }
dd { margin: 0 0 8px; color: var(--muted); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.row { display: flex; flex-wrap: wrap; gap: 20px 36px; margin-top: 18px; align-items: flex-start; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
figure { margin: 0; }
figure img, .stack img { display: block; border-radius: 2px; }
.pixels { image-rendering: pixelated; }
figcaption, .caption { font-size: 12px; line-height: 1.45; color: var(--muted); font-variant-numeric: tabular-nums; }
figcaption { margin-top: 6px; width: 0; min-width: 100%; }
figcaption b, .caption b { color: var(--ink); font-weight: 600; }
.owners { gap: 28px; margin: 12px 0 18px; }
.stack { display: flex; flex-direction: column; gap: 6px; }
.scale { display: flex; align-items: center; gap: 6px; font-size: 11.5px; color: var(--muted); margin-top: 6px;
  font-variant-numeric: tabular-nums; }
.scale img { height: 7px; flex: 1 1 auto; min-width: 0; border-radius: 2px; }
.sheets { gap: 22px 20px; }
.modes { display: flex; gap: 14px; align-items: flex-start; }
.samples { margin-top: 22px; padding-top: 18px; border-top: 1px solid var(--line); }
.below { margin-top: 16px; }
.note { margin-top: 8px; font-size: 13.5px; }
.none { color: var(--muted); font-size: 14px; }
.times td:last-child { text-align: left; }
.bar { display: inline-block; height: 8px; border-radius: 2px; background: var(--accent); vertical-align: middle; }
footer { margin-top: 28px; color: var(--muted); font-size: 12.5px; }
@media (max-width: 600px) { main { padding: 28px 14px; } section { padding: 16px; } }
@media print { section { break-inside: avoid; } }
"""


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float | None, decimals: int) -> str:
    """Fixed decimals with a true minus sign; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _significant(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def _source(pixels: pictures.Pixels) -> str:
    return "data:image/png;base64," + base64.b64encode(pictures.png(pixels)).decode("ascii")


def _image(pixels: pictures.Pixels, alt: str, target: int) -> str:
    """A picture scaled up by a whole factor to about `target` CSS pixels, or smoothly down to it."""
    height, width = pixels.shape[:2]
    factor = max(1, round(target / width))
    shown = width * factor if width <= target else target
    kind = ' class="pixels"' if width <= target else ""
    size = f'width="{shown}" height="{round(height * shown / width)}"'
    return f'<img{kind} src="{_source(pixels)}" alt="{_text(alt)}" {size}>'


def _chart(draw: Callable[..., pictures.Pixels], alt: str) -> str:
    """A chart in both themes, one of which the browser shows, at half its pixels: sharp on dense screens."""
    light, dark = draw(theme=figures.LIGHT), draw(theme=figures.DARK)
    height, width = light.shape[:2]
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_source(dark)}">'
        f'<img class="chart" src="{_source(light)}" alt="{_text(alt)}" width="{width // 2}" height="{height // 2}">'
        "</picture>"
    )


def _scale(colormap: str, low: str, high: str, width: int) -> str:
    bar = _source(figures.colorbar(colormap))
    return (
        f'<div class="scale" style="width:{width}px">{_text(low)}'
        f'<img src="{bar}" alt="colour scale from {_text(low)} to {_text(high)}">{_text(high)}</div>'
    )


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _tile_width(picture: ArrayLike) -> int:
    width = np.shape(picture)[1]
    return width * max(1, round(_TILE / width)) if width <= _TILE else _TILE


def _swatch(colour: str) -> str:
    return f'<span class="swatch" style="background:{colour}"></span>'


def _values(measures: Mapping[str, Any]) -> dict[str, float | None]:
    """A method's figures by column heading, with one column for each factor."""
    values: dict[str, float | None] = {}
    for key, heading, _, _ in _COLUMNS:
        if key == "attribute_accuracy":
            values.update((_heading(factor), value) for factor, value in measures.get(key, {}).items())
        else:
            values[heading] = measures.get(key)
    return values


def _heading(factor: str) -> str:
    return factor.replace("_", " ").capitalize()


def _methods_table(
    methods: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str], counts: Sequence[str] = ("samples", "queries")
) -> str:
    """Methods down, figures and then counts across; a column that no method has a figure for is left out."""
    values = {name: _values(method) for name, method in methods.items()}
    errors = {name: _values(method["standard_error"]) for name, method in methods.items()}
    known = {heading: (decimals, highest) for _, heading, decimals, highest in _COLUMNS}
    headings = [
        heading
        for heading in dict.fromkeys(heading for row in values.values() for heading in row)
        if any(row.get(heading) is not None for row in values.values())
    ]
    cells: dict[str, list[str]] = {name: [] for name in methods}
    for heading in headings:
        decimals, highest = known.get(heading, (2, True))
        top = max(value for row in values.values() if (value := row.get(heading)) is not None)
        for name, row in values.items():
            shown, error = _number(row.get(heading), decimals), errors[name].get(heading)
            # Values that print alike are marked alike: the page claims no more than it shows.
            mark = ' class="best"' if highest and shown == _number(top, decimals) else ""
            spread = "" if error is None else f' <span class="error">± {_number(error, decimals)}</span>'
            cells[name].append(f"<td><span{mark}>{shown}</span>{spread}</td>")
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in ["Method", *headings, *map(_heading, counts)])
    body = "".join(
        f'<tr><th scope="row">{_swatch(colours[name])}{_text(name)}</th>{"".join(cells[name])}'
        f"{''.join(f'<td>{method[count]:,}</td>' for count in counts)}</tr>"
        for name, method in methods.items()
    )
    return (
        f'<div class="scroll"><table class="methods"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _pooled_tables(methods: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """The paper's two comparisons, of the samples of all queries of a class together, where there are any."""
    pooled = {name: method["pooled"] for name, method in methods.items() if "pooled" in method}
    if not pooled:
        return ""
    tables = "".join(
        f'<h3 class="below">{title}</h3>'
        + _methods_table({name: {**found, **found[key]} for name, found in pooled.items()}, colours, ("classes",))
        for key, title in (
            ("faithfulness", "Faithfulness: against the queries of the class"),
            ("generalization", "Generalization: against other real pictures of the class"),
        )
    )
    return (
        "<section><h2>Methods, all queries of a class together</h2>"
        '<p class="none">The paper\'s comparison, in which a method that copies its query looks diverse.</p>'
        f"{tables}</section>"
    )


def _definitions(entries: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in entries) + "</dl>"


def _method_colours(page: Page) -> dict[str, str]:
    """One colour for each method throughout the page."""
    return figures.method_colours(list(page.results["methods"]))


def _methods_section(page: Page) -> str:
    """The table, the chart of the trade-off where there is one, and what the figures mean."""
    methods = page.results["methods"]
    if not methods:
        return ""
    colours = _method_colours(page)
    comparable = [m for m in methods.values() if m["joint_accuracy"] is not None and m["recall"] is not None]
    blocks = []
    if len(comparable) > 1:
        chart = _chart(
            functools.partial(figures.tradeoff, methods, colours),
            "joint accuracy against recall, one mark with its standard errors for each method",
        )
        blocks.append(f'<div class="chart">{chart}</div>')
    blocks.append(_definitions(_MEASURES))
    return (
        "<section><h2>Methods</h2>"
        '<p class="none">Mean ± standard error over the classes of the queries; the highest of a column is bold.</p>'
        f'<div class="below">{_methods_table(methods, colours)}</div>'
        f'<div class="columns below">{"".join(blocks)}</div></section>' + _pooled_tables(methods, colours)
    )


def _legend(page: Page) -> str:
    """What a panel shows, and next to it the methods' sentences if the page has them."""
    half = (len(_TERMS) + 1) // 2
    columns = (_TERMS, tuple(page.methods.items())) if page.methods else (_TERMS[:half], _TERMS[half:])
    return (
        '<section><h2>How to read this page</h2><div class="columns below">'
        f"{''.join(map(_definitions, columns))}</div></section>"
    )


def _prototype_caption(number: int, prototype: Prototype, colour: str) -> str:
    return (
        f"{_swatch(colour)}<b>Concept {number}</b><br>t = {prototype.t} · basin {prototype.basin:,}<br>"
        f"gain {_number(prototype.gain, 0)} nats<br>"
        f"curvature {_number(prototype.curvature, 2)}"
    )


def _picture_discovery(panel: QueryPanel) -> str:
    """The query, the concepts above their ownership, and the product, from left to right."""
    colours = figures.owner_colours(len(panel.prototypes))
    width = _tile_width(panel.query)
    groups = [("Query", _figure(_image(pictures.to_uint8(panel.query), f"the query {panel.name}", _TILE), "as given"))]
    if panel.prototypes:
        tiles = "".join(
            f'<div class="stack" style="width:{width}px">'
            + _image(pictures.to_uint8(prototype.mean), f"concept {number} of {panel.name}", _TILE)
            + _figure(
                _image(
                    figures.ownership_map(prototype.ownership),
                    f"ownership of concept {number}: its mean share is {np.asarray(prototype.ownership).mean():.2f}",
                    _TILE,
                )
                + _scale(figures.OWNERSHIP_COLORMAP, "0", "1", width),
                _prototype_caption(number, prototype, colour),
            )
            + "</div>"
            for number, (prototype, colour) in enumerate(zip(panel.prototypes, colours, strict=True), start=1)
        )
        groups.append(("Discovered concepts, and what each owns", tiles))
    variance, low, high = figures.variance_map(panel.variance)
    product = [_figure(_image(pictures.to_uint8(panel.mean), f"mean of the product for {panel.name}", _TILE), "mean")]
    if panel.prototypes:
        owners = figures.owners(np.stack([np.asarray(prototype.ownership) for prototype in panel.prototypes]))
        key = "<br>".join(f"{_swatch(colour)}concept {i}" for i, colour in enumerate(colours, start=1))
        product.append(_figure(_image(owners, f"the owner of each pixel for {panel.name}", _TILE), f"owner<br>{key}"))
    product.append(
        _figure(
            _image(variance, f"variance of the product, {_significant(low)} to {_significant(high)}", _TILE)
            + _scale(figures.VARIANCE_COLORMAP, _significant(low), _significant(high), width),
            "variance",
        )
    )
    groups.append(("Their product", "".join(product)))
    return "".join(f'<div><h3>{title}</h3><div class="tiles">{content}</div></div>' for title, content in groups)


def _modes(panel: QueryPanel, page: Page) -> str:
    """All modes in columns, one for each noise level, from fine to coarse (arXiv 2605.07078, Fig. 2 and 4)."""
    if not panel.modes:
        return ""
    query = _image(pictures.to_uint8(panel.query), f"the query {panel.name}", _MODE)
    columns = [f'<div class="stack"><h3>query</h3>{query}</div>']
    for t in dict.fromkeys(mode.t for mode in panel.modes):
        found = [mode for mode in panel.modes if mode.t == t]
        tiles = "".join(
            _figure(
                _image(pictures.to_uint8(mode.mean), f"mode at t = {t} of {panel.name}", _MODE),
                f"{mode.basin:,}{' (saddle)' if mode.curvature > 0 else ''}",
            )
            for mode in found[: page.modes_shown]
        )
        hidden = len(found) - page.modes_shown
        more = f'<span class="caption">{hidden} more</span>' if hidden > 0 else ""
        columns.append(f'<div class="stack"><h3>t = {t}</h3>{tiles}{more}</div>')
    return (
        '<div class="samples"><h3>Modes of the noised density, from fine to coarse noise, and their basins</h3>'
        f'<div class="scroll"><div class="modes">{"".join(columns)}</div></div></div>'
    )


def _hierarchy_section(page: Page) -> str:
    """The modes of all queries as a tree."""
    hierarchy = page.hierarchy
    if hierarchy is None:
        return ""
    levels = hierarchy["levels"]
    chart = _chart(
        functools.partial(figures.dendrogram, levels, page.hierarchy_modes),
        f"the tree of modes from t = {levels[0]['t']} at the bottom to t = {levels[-1]['t']} at the top",
    )
    return (
        "<section><h2>The hierarchy of modes</h2>"
        '<p class="none">Each mode followed to coarser noise: those that end in one place become one. '
        f"Below a mode, how many starts came to it. {hierarchy['nfe']:,} network evaluations.</p>"
        f'<div class="scroll below">{chart}</div></section>'
    )


def _planar_discovery(panel: QueryPanel, plane: figures.Plane) -> str:
    """The plane with the query, the concepts and their product, beside the concepts' shares of the coordinates."""
    means = np.array([np.asarray(prototype.mean) for prototype in panel.prototypes])
    variances = np.array([np.asarray(prototype.variance) for prototype in panel.prototypes])
    overview = _chart(
        functools.partial(figures.planar_overview, plane, panel.query, means, variances, panel.mean, panel.variance),
        f"the plane with the query {panel.name}, {len(means)} concepts and their product as 1-sigma ellipses",
    )
    product = "<br>".join(
        f"{axis}: mean {_number(mean, 2)}, variance {_significant(variance)}"
        for axis, mean, variance in zip(
            _COORDINATES, map(float, np.asarray(panel.mean)), map(float, np.asarray(panel.variance)), strict=True
        )
    )
    blocks = [f"<div><h3>Query, concepts and their product (ellipses at one sigma)</h3>{overview}</div>"]
    side = ""
    if panel.prototypes:
        weights = np.stack([np.asarray(prototype.ownership) for prototype in panel.prototypes])
        bars = _chart(
            functools.partial(figures.ownership_bars, weights, _COORDINATES),
            f"ownership of each coordinate for {panel.name}",
        )
        captions = "".join(
            f'<div class="caption">{_prototype_caption(number, prototype, colour)}</div>'
            for number, (prototype, colour) in enumerate(
                zip(panel.prototypes, figures.owner_colours(len(panel.prototypes)), strict=True), start=1
            )
        )
        side = f'<h3>Who owns each coordinate</h3>{bars}<div class="tiles owners">{captions}</div>'
    blocks.append(f'<div>{side}<h3>Their product</h3><div class="caption">{product}</div></div>')
    return "".join(blocks)


def _sample_caption(name: str, shown: int, total: int, values: Mapping[str, Any] | None) -> str:
    count = f"{shown} of {total}" if shown < total else f"{total}"
    parts = [f"{count} samples"]
    if values is not None:
        for key, label in (("joint_accuracy", "joint"), ("recall", "recall"), ("distance_to_query", "distance")):
            if values.get(key) is not None:
                parts.append(f"{label} {_number(values[key], 2)}")
    return f"<b>{_text(name)}</b><br>{' · '.join(parts)}"


def _samples(panel: QueryPanel, page: Page, plane: figures.Plane | None) -> str:
    colours = _method_colours(page)
    sheets = []
    for name, samples in panel.samples.items():
        total = len(np.asarray(samples))
        alt = f"samples of {name} for {panel.name}"
        if plane is None:
            shown = min(total, page.samples_shown)
            picture = _image(pictures.grid(np.asarray(samples)[:shown]), alt, _SHEET)
        else:
            shown = total
            draw = functools.partial(figures.planar_samples, plane, samples, panel.query, colour=colours[name])
            picture = _chart(draw, alt)
        sheets.append(_figure(picture, _sample_caption(name, shown, total, panel.measures.get(name))))
    if not sheets:
        return ""
    return (
        '<div class="samples"><h3>Samples from this query alone</h3>'
        f'<div class="tiles sheets">{"".join(sheets)}</div></div>'
    )


def _left_out(info: Mapping[str, Any]) -> str:
    """One line on what a discovery left out."""
    return (
        f'<p class="none below">Of {info["chains"]} chains {info["unconverged"]} did not converge and '
        f"{info['dropped']} were dropped; {info['leaders_dropped']} points found no room, {info['saddles']} were "
        f"saddles. The variances are {100 * info['clipped_below']:.0f}% at the floor, the selected concepts' "
        f"{100 * info['experts_clipped_below']:.0f}%.</p>"
    )


def _panel(panel: QueryPanel, page: Page) -> str:
    planar = np.shape(panel.query) == (2,)
    if planar and page.plane is None:
        raise ValueError("a page of points in the plane needs `plane`")
    facts = ""
    if panel.attributes is not None:
        facts = (
            '<p class="facts">'
            + "".join(
                f"<span>{_text(factor.replace('_', ' '))} <b>{_text(value.replace('_', ' '))}</b></span>"
                for factor, value in panel.attributes.items()
            )
            + "</p>"
        )
    note = "No concept explains this query better than the background does."
    note = "" if panel.prototypes else f'<p class="note">{note}</p>'
    note += _left_out(panel.discovery) if panel.discovery else ""
    plane = page.plane if planar else None
    discovery = _picture_discovery(panel) if plane is None else _planar_discovery(panel, plane)
    return (
        f'<section><h2>{_text(panel.name)}</h2>{facts}{note}<div class="row">{discovery}</div>'
        f"{_modes(panel, page)}{_samples(panel, page, plane)}</section>"
    )


def _run_section(results: Mapping[str, Any]) -> str:
    """Where the time went, and with which versions."""
    seconds = results["seconds"]
    longest = max(seconds.values(), default=0.0)
    stages = "".join(
        f'<tr><th scope="row">{_text(stage.replace("_", " "))}</th><td>{_number(value, 1)} s</td>'
        f'<td><span class="bar" style="width:{180.0 * value / max(longest, 1e-9):.0f}px"></span></td></tr>'
        for stage, value in seconds.items()
    )
    versions = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>'
        for name, value in results["versions"].items()
    )
    evaluations = [query["nfe"] for query in results["queries"]]
    cost = ""
    if evaluations:
        cost = (
            f'<p class="none below">Discovery took {np.mean(evaluations):,.0f} network evaluations '
            "a query on average.</p>"
        )
    return (
        '<section><h2>The run</h2><div class="columns below">'
        f'<div><h3>Seconds per stage</h3><table class="times">{stages}</table>{cost}</div>'
        f"<div><h3>Versions</h3><table>{versions}</table></div></div></section>"
    )


def render(page: Page) -> str:
    """The page as one HTML document.

    Raises:
      ValueError: when points come without a plane.
    """
    return "".join(_pieces(page))


def _pieces(page: Page) -> Iterator[str]:
    """The document from its beginning to its end, a panel at a time."""
    results = page.results
    facts = "".join(
        f"<span>{name} <b>{value}</b></span>"
        for name, value in (
            ("data", _text(results["dataset"])),
            ("queries", f"{len(results['queries']):,}"),
            ("seed", _text(results["seed"])),
            ("config", f"<code>{_text(results['config_hash'])}</code>"),
        )
    )
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(page.title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<header><h1>{_text(page.title)}</h1><p class="subtitle">{_text(page.subtitle)}</p>'
        f'<div class="facts">{facts}</div></header>'
    )
    yield _methods_section(page)
    yield _legend(page)
    yield _hierarchy_section(page)
    if len(results["queries"]) > page.queries_shown:
        yield (
            f'<section><p class="none">The first {page.queries_shown:,} of {len(results["queries"]):,} queries follow; '
            "the figures of all are in results.json.</p></section>"
        )
    for panel in itertools.islice(page.queries, page.queries_shown):
        yield _panel(panel, page)
    yield _run_section(results)
    yield (
        "<footer>Concept discovery at test time, after arXiv 2605.07078. Made by cdisc.</footer></main></body></html>\n"
    )


def write(path: str | os.PathLike[str], page: Page) -> None:
    """Writes the page to `path`; the file is replaced whole or not at all."""
    storage.write_bytes(pathlib.Path(path), (piece.encode("utf-8") for piece in _pieces(page)))
