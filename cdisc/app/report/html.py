"""One self-contained page of what a run found: no network, light or dark as the reader's system is.

The numbers, their order and what is said of them are prepared here and in `cards.py`; `page.html`, `page.css` and
`page.js` say how they look and what moves, and escape every text. The page depends on its `Page` alone: the same run
gives the same bytes. The browser scales pictures up without smoothing; charts are SVG in the page's own colours.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from numpy.typing import ArrayLike

from cdisc import storage
from cdisc.app.report import cards as cards_lib
from cdisc.app.report import figures
from cdisc.diffusion.exact import GaussianMixture

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
class Plane:
    """The cells of a mixture over points in the plane, trained ones and held-out ones."""

    trained: GaussianMixture
    held_out: GaussianMixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that the page shows.

    Attributes:
      title: the heading.
      results: the results file's content, as `cdisc.app.report.results.SCHEMA` has it.
      panels: one for each query, in order; taken one by one, so that they need not be in memory together.
      plane: the mixture's cells when the data are points in the plane, else None.
      methods: method name to one sentence that says what it is, for the legend.
      shown_first: the methods whose samples a query opens with; those of the others are folded below.
      dials: name of an adaptation to its methods by growing guidance, two or more, which differ in nothing else.
      reference: the method that is no contestant, because it knows more than the query; None if there is none.
      bytes_shown: how long the shown queries' cards are together at most; the first one is shown however long it is.
      hierarchy: which modes merge as the noise grows, as `cdisc.discovery.hierarchy.tree` gives it; None where
        they were not followed.
      hierarchy_modes: the modes of each of its levels, (M, H, W, C) or (M, 2).
    """

    title: str
    results: Mapping[str, Any]
    panels: Iterable[cards_lib.Panel]
    plane: Plane | None = None
    methods: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shown_first: Sequence[str] = ()
    dials: Mapping[str, Mapping[float, str]] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    bytes_shown: int = 2_500_000
    hierarchy: Mapping[str, Any] | None = None
    hierarchy_modes: Sequence[ArrayLike] = ()


def write(folder: str | os.PathLike[str], page: Page) -> None:
    """Writes `index.html`, and each query's card as `cards/query_0000.json`; a file is replaced whole or not at all."""

    def noted() -> Iterator[dict[str, Any]]:
        for number, card in enumerate(map(cards_lib.card, page.panels)):
            storage.write_json(pathlib.Path(folder, "cards", f"query_{number:04d}.json"), card)
            yield card

    storage.write_text(pathlib.Path(folder, "index.html"), render(page, noted()))


def render(page: Page, cards: Iterable[Mapping[str, Any]] | None = None) -> str:
    """The page as one HTML document.

    Args:
      page: all that it shows.
      cards: those of its panels, where they are made already.

    Raises:
      ValueError: when points come without a plane.
    """
    shown: list[Mapping[str, Any]] = []
    room = page.bytes_shown
    for card in map(cards_lib.card, page.panels) if cards is None else cards:
        if page.plane is None and "source" not in card["query"]:
            raise ValueError("a page of points in the plane needs `plane`")
        room -= len(json.dumps(card))
        if room >= 0 or not shown:
            shown.append(card)
    methods = page.results["methods"]
    evaluations = [query["nfe"] for query in page.results["queries"]]
    pooled = {name: method["pooled"] for name, method in methods.items() if "pooled" in method}
    return _TEMPLATES.get_template("page.html").render(
        page=page,
        results=page.results,
        cards=shown,
        colours=figures.method_colours(list(methods)),
        plane=page.plane and _plane(page.plane),
        comparable={name: m for name, m in methods.items() if None not in (m["joint_accuracy"], m["recall"])},
        table=_table(methods, ("samples", "queries"), page.reference),
        pooled={
            title: _table({name: found | found[key] for name, found in pooled.items()}, ("classes",), page.reference)
            for key, title in (_COMPARISONS.items() if pooled else ())
        },
        hierarchy=page.hierarchy and _hierarchy(page.hierarchy["levels"], page.hierarchy_modes),
        longest=max(page.results["seconds"].values(), default=0.0),
        evaluations=np.mean(evaluations) if evaluations else None,
    )


def _plane(plane: Plane) -> dict[str, Any]:
    """The cells at two standard deviations, the part of the plane that shows them all, and where its ticks are."""
    means = np.concatenate([plane.trained.means, plane.held_out.means]).astype(float)
    reach = 4.0 * math.sqrt(max(np.max(plane.trained.variances), np.max(plane.held_out.variances)))
    low, high = means.min(axis=0) - reach, means.max(axis=0) + reach
    low -= 0.05 * (high - low)  # for the ticks
    return {
        "trained": cards_lib.ellipses(plane.trained.means, plane.trained.variances, 2.0),
        "held_out": cards_lib.ellipses(plane.held_out.means, plane.held_out.variances, 2.0),
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
            "mode": array if array.ndim == 1 else cards_lib.picture(array),
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
    """Methods down, with what they rest on, figures across; a column that no method has a figure for is left out."""
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
        "rows": [
            (name, rows[name], ", ".join(f"{method[count]:,} {count}" for count in counts))
            for name, method in methods.items()
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
    "place": "{:.4g}".format,
}
_TEMPLATES.globals |= {
    "ownership_bar": cards_lib.png(figures.colorbar(figures.OWNERSHIP_COLORMAP)),
    "variance_bar": cards_lib.png(figures.colorbar(figures.VARIANCE_COLORMAP)),
}
