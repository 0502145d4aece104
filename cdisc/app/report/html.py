"""One self-contained page of what a run found: no script, no network, light or dark as the reader's system is.

The numbers, their order and what is said of them are prepared here; `page.html` and `page.css` say how they look, and
escape every text. The page depends on its `Page` alone: the same run gives the same bytes. Pictures are inline PNG at
their true resolution, which the browser scales up without smoothing; charts are inline SVG in the page's own colours.
"""

import base64
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from numpy.typing import ArrayLike

from cdisc import storage
from cdisc.app.report import figures
from cdisc.data import pictures
from cdisc.diffusion.exact import GaussianMixture
from cdisc.discovery.concepts import Discovery

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

_COMPARISONS = {
    "faithfulness": "Faithfulness: against the queries of the class",
    "generalization": "Generalization: against other real pictures of the class",
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
class Plane:
    """The cells of a mixture over points in the plane, trained ones and held-out ones."""

    trained: GaussianMixture
    held_out: GaussianMixture


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
    plane: Plane | None = None
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
    evaluations = [query["nfe"] for query in page.results["queries"]]
    pooled = {name: method["pooled"] for name, method in methods.items() if "pooled" in method}
    return _TEMPLATES.get_template("page.html").generate(
        page=page,
        results=page.results,
        colours=figures.method_colours(list(methods)),
        panels=(_panel(panel, page) for panel in itertools.islice(page.panels, page.panels_shown)),
        plane=page.plane and _plane(page.plane),
        comparable=[m for m in methods.items() if None not in (m[1]["joint_accuracy"], m[1]["recall"])],
        table=_table(methods, ("samples", "queries"), page.reference),
        pooled={
            title: _table({name: found | found[key] for name, found in pooled.items()}, ("classes",), page.reference)
            for key, title in (_COMPARISONS.items() if pooled else ())
        },
        hierarchy=page.hierarchy and _hierarchy(page.hierarchy["levels"], page.hierarchy_modes),
        longest=max(page.results["seconds"].values(), default=0.0),
        evaluations=np.mean(evaluations) if evaluations else None,
    )


def _panel(panel: Panel, page: Page) -> dict[str, Any]:
    """What the template shows of one query."""
    view: dict[str, Any] = {
        "entry": panel.entry,
        "query": panel.query,
        "samples": panel.samples,
        "concepts": (),
        "modes": (),
    }
    planar = np.shape(panel.query) == (2,)
    if planar and page.plane is None:
        raise ValueError("a page of points in the plane needs `plane`")
    if panel.discovery is not None:
        found, teacher = _concepts(panel.entry["prototypes"], panel.discovery), panel.discovery.teacher
        view |= {"teacher": teacher, "concepts": found}
        if planar:
            view["product"] = _ellipses(teacher.mean[None], teacher.variance[None], 1.0)[0]
        else:
            view |= {"variance": figures.variance_map(teacher.variance), "modes": _modes(panel.discovery, page)}
    return view


def _concepts(entries: Sequence[Mapping[str, Any]], discovery: Discovery) -> list[dict[str, Any]]:
    """The selected concepts: their entries in the results, their colours and their arrays."""
    picked = np.asarray(discovery.selection.indices)[np.asarray(discovery.selection.mask)]
    shares = np.asarray(discovery.ownership)[: len(entries)]
    mean, variance = np.asarray(discovery.experts.mean)[picked], np.asarray(discovery.experts.variance)[picked]
    ellipses = _ellipses(mean, variance, 1.0) if mean.ndim == 2 else [{}] * len(entries)
    columns = zip(entries, figures.owner_colours(len(entries)), mean, shares, ellipses, strict=True)
    return [
        {**entry, "colour": colour, "saddle": _is_saddle(entry["curvature"])}
        | {"mean": mean, "ownership": share, "ellipse": ellipse}
        for entry, colour, mean, share, ellipse in columns
    ]


def _is_saddle(curvature: float | None) -> bool:
    return curvature is not None and curvature > 0


def _modes(discovery: Discovery, page: Page) -> list[dict[str, Any]]:
    """All stationary points, a column for each noise level, from fine to coarse (arXiv 2605.07078, Fig. 2 and 4)."""
    pool, columns = discovery.pool, []
    present = np.flatnonzero(pool.mask)
    for t in dict.fromkeys(int(pool.t[i]) for i in present):
        found = [i for i in present if pool.t[i] == t]
        tiles = [
            {"picture": pool.m[i], "basin": int(pool.basin[i]), "saddle": _is_saddle(float(pool.curvature[i]))}
            for i in found[: page.modes_shown]
        ]
        columns.append({"t": t, "tiles": tiles, "hidden": len(found) - len(tiles)})
    return columns


def _ellipses(means: ArrayLike, variances: ArrayLike, sigmas: float) -> list[dict[str, float]]:
    """Diagonal Gaussians (n, 2) as SVG's ellipses at `sigmas` standard deviations; its second axis runs downwards."""
    rows = zip(np.asarray(means, float), sigmas * np.sqrt(np.asarray(variances, float)), strict=True)
    return [{"cx": x, "cy": -y, "rx": rx, "ry": ry} for (x, y), (rx, ry) in rows]


def _plane(plane: Plane) -> dict[str, Any]:
    """The cells at two standard deviations, the part of the plane that shows them all, and where its ticks are."""
    means = np.concatenate([plane.trained.means, plane.held_out.means]).astype(float)
    reach = 4.0 * math.sqrt(max(np.max(plane.trained.variances), np.max(plane.held_out.variances)))
    low, high = means.min(axis=0) - reach, means.max(axis=0) + reach
    low -= 0.05 * (high - low)  # for the ticks
    return {
        "trained": _ellipses(plane.trained.means, plane.trained.variances, 2.0),
        "held_out": _ellipses(plane.held_out.means, plane.held_out.variances, 2.0),
        "left": low[0],
        "top": -high[1],
        "width": high[0] - low[0],
        "height": high[1] - low[1],
        "ticks": [np.unique(coordinate) for coordinate in means.T],
    }


def _hierarchy(levels: Sequence[Mapping[str, Any]], modes: Sequence[ArrayLike]) -> dict[str, Any]:
    """The modes of all queries as a tree: fine noise at the bottom, coarse at the top; lines as wide as their basins.

    Places are in units of a picture, of which one is `size` CSS pixels.
    """
    places = figures.tree_places(levels)
    columns = 1.0 + max(x for row in places for x in row)
    largest = max(mode["basin"] for level in levels for mode in level["modes"])
    marks = [
        {
            "x": 1.25 * x,
            "y": 1.75 * (len(levels) - 1 - i),
            "mode": array,
            "basin": mode["basin"],
            "width": 1.0 + 4.0 * mode["basin"] / largest,
            "above": None if mode["parent"] is None else 1.25 * places[i + 1][mode["parent"]],
        }
        for i, (level, row, arrays) in enumerate(zip(levels, places, modes, strict=True))
        for mode, x, array in zip(level["modes"], row, np.asarray(arrays), strict=True)
    ]
    size = min(58.0, max(29.0, 1056.0 / columns))
    return {"marks": marks, "width": 1.25 * columns, "height": 1.75 * len(levels), "size": size}


def _table(methods: Mapping[str, Mapping[str, Any]], counts: Sequence[str], reference: str | None) -> dict[str, Any]:
    """Methods down, figures and then counts across; a column that no method has a figure for is left out."""
    values = {name: _by_column(method) for name, method in methods.items()}
    errors = {name: _by_column(method["standard_error"]) for name, method in methods.items()}
    known = [column for row in values.values() for column, value in row.items() if value is not None]
    columns = [column for column in dict.fromkeys(itertools.chain(*values.values())) if column in known]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for column in columns:
        decimals, highest = _COLUMNS[column[0]]
        shown = {name: _number(row.get(column), decimals) for name, row in values.items()}
        contest = {name: v for name, row in values.items() if name != reference and (v := row.get(column)) is not None}
        # Values that print alike are marked alike: the page claims no more than it shows. Where all do, none is best.
        top = _number(max(contest.values(), default=None), decimals)
        decided = highest and len({shown[name] for name in contest}) > 1
        for name, cells in rows.items():
            error = errors[name].get(column)
            cells.append(
                {
                    "value": shown[name],
                    "error": None if error is None else _number(error, decimals),
                    "best": decided and name in contest and shown[name] == top,
                }
            )
    return {
        "headings": ["KID" if key == "kid" else _words(factor or key).capitalize() for key, factor in columns],
        "counts": [_words(count).capitalize() for count in counts],
        "rows": [(name, rows[name], [method[count] for count in counts]) for name, method in methods.items()],
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
_TEMPLATES.filters |= {
    "number": _number,
    "significant": _significant,
    "words": _words,
    "source": _source,
    "place": "{:.4g}".format,
    "to_uint8": pictures.to_uint8,
    "grid": pictures.grid,
    "ownership_map": figures.ownership_map,
}
_TEMPLATES.globals |= {
    "owners": lambda concepts: figures.owners(np.stack([concept["ownership"] for concept in concepts])),
    "ownership_bar": figures.colorbar(figures.OWNERSHIP_COLORMAP),
    "variance_bar": figures.colorbar(figures.VARIANCE_COLORMAP),
}
