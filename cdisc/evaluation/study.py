"""What a run's results say about the paper's claims: intervals over classes, paired differences, and tables.

All of it follows from the results file of a run (`cdisc/app/report/results.schema.json`), so that a table can be drawn
again from what is committed. The paper's own values are those of arXiv 2605.07078, Tables 1 and 2.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cdisc.evaluation import statistics
from cdisc.evaluation.methods import COMPOSED
from cdisc.evaluation.protocol import COMPARISONS, SCALARS

PAPER: dict[str, Any] = json.loads(pathlib.Path(__file__).with_name("paper_results.json").read_text("utf-8"))
"""The paper's two tables: by data set, method and comparison, the mean and standard error of each of its "columns"."""

PAPER_COLUMNS = {
    "fid": ("frechet_distance", 1.0),
    "clip": ("cosine_similarity", 100.0),
    "precision": ("precision", 100.0),
    "recall": ("recall", 100.0),
    "f1": ("f1", 100.0),
}
"""For each column of the paper's tables the figure that stands for it here, and the paper's unit of it."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "colormnist": {
        "discover.starts_per_t": 128,
        "discover.timesteps": list(range(50, 401, 25)),
        "discover.ascent": "adam",
        "discover.max_steps": 150,
        "discover.probes": 4,
        "discover.num_experts": 3,
        "discover.tau": 0.5,
        "guidance.w0": 1.2,
        "sampling.num_steps": 50,
        "adapt.pool_size": 256,
        "adapt.levels.lora.rank": 8,
        "adapt.levels.lora.pool": "teacher",
        "evaluate.per_class": 100,
        "evaluate.references": 100,
        "evaluate.samples": 16,
        "evaluate.seeds": [42],
    }
}
PUBLISHED["celeba"] = PUBLISHED["colormnist"] | {
    "discover.starts_per_t": 8,
    "discover.timesteps": list(range(50, 501, 50)),
    "discover.max_steps": 100,
    "guidance.w0": 0.5,
    "adapt.levels.lora.rank": 16,
}
"""The paper's settings, by data set and field of the configuration, as far as it publishes them."""

DIFFERENCES = ("joint_accuracy", "precision", "right_recall", "coverage")
SHOWN: tuple[tuple[str, str, str], ...] = (
    ("joint_accuracy", "joint accuracy", ".2f"),
    ("precision", "precision", ".2f"),
    ("recall", "recall", ".2f"),
    ("right_recall", "recall of right samples", ".2f"),
    ("coverage", "coverage", ".2f"),
    ("kid", "KID", ".3f"),
    ("frechet_distance", "Fréchet distance", ".2f"),
    ("vendi", "Vendi score", ".1f"),
    ("distance_to_query", "distance to query", ".2f"),
    ("distance_to_training", "to nearest training picture", ".2f"),
)


def summarise(results: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a results file with 95% intervals over classes, and paired differences of its methods.

    The figures of a class are the means over its queries and seeds; classes are what is resampled, always in the same
    way, so that the same results give the same intervals.

    Args:
      results: the content of a results file.
      settings: the configuration that the run had, by dotted names of its fields.

    Returns:
      "methods": for each method and figure its estimate and the ends of its interval; "differences": the same for
      "A - B", where B is `poe`, where A learns from samples of the product and B from the query alone, and where A is
      read (`composed`) and B learnt; "pooled":
      for each of `COMPARISONS` and method the mean and standard error over classes; "deviations" from the paper, in
      sentences; and what the run was.

    Examples:
      >>> summarise(results, {})["methods"]["poe"]["joint_accuracy"][0]
      0.5
    """
    by_class = _by_class(results["queries"])
    queries = results["queries"]
    counts = [figures["samples"] for query in queries for figures in query["methods"].values()]
    named = {
        method: {figure: _figures_of(by_class, method, figure) for figure in SCALARS} for method in results["methods"]
    }
    pairs = [(name, "poe") for name in named if name != "poe" and "poe" in named]
    pairs += [(name, f"{name}_query") for name in named if f"{name}_query" in named]
    pairs += [(COMPOSED, name) for name in ("embedding", "lora") if {COMPOSED, name} <= named.keys()]
    summary = {
        **{name: results[name] for name in ("dataset", "data_hash", "config_hash", "versions", "seconds")},
        "judge": results.get("judge", {}).get("joint_accuracy"),
        "features": results["features"],
        "seeds": sorted({query["seed"] for query in queries}),
        "classes": len(by_class),
        "queries": len(queries),
        "samples": max(counts, default=0),
        "methods": {
            method: {figure: _interval(list(values.values())) for figure, values in figures.items() if values}
            for method, figures in named.items()
        },
        "differences": {
            f"{first} - {second}": {
                figure: found
                for figure in DIFFERENCES
                if (found := _difference(named[first][figure], named[second][figure])) is not None
            }
            for first, second in pairs
        },
        "pooled": {
            comparison: {
                method: {
                    name: [figures["pooled"][comparison][name], figures["pooled"][comparison]["standard_error"][name]]
                    for name, _ in PAPER_COLUMNS.values()
                }
                for method, figures in results["methods"].items()
                if "pooled" in figures
            }
            for comparison in COMPARISONS
        },
    }
    return summary | {"deviations": deviations(summary, settings)}


def sweep(runs: Mapping[str, Mapping[str, Any]], method: str, baseline: str) -> dict[str, dict[str, Any]]:
    """One method under several configurations on the same classes.

    Args:
      runs: name of a configuration to the results of its run.
      method: whose figures are compared.
      baseline: the name of the configuration from which the others differ.

    Returns:
      For each configuration and each figure of `DIFFERENCES` that it has, the estimate and its interval, and the
      "difference" to the baseline with the paired one, None for the baseline itself and where fewer than two classes
      have both.

    Examples:
      >>> found = sweep({"as it is": results, "again": results}, "poe", baseline="as it is")
      >>> found["again"]["joint_accuracy"]["difference"]
      [0.0, 0.0, 0.0]
    """
    found = {
        name: {figure: _figures_of(_by_class(results["queries"]), method, figure) for figure in DIFFERENCES}
        for name, results in runs.items()
    }
    return {
        name: {
            figure: {
                "estimate": _interval(list(values.values())),
                "difference": None if name == baseline else _difference(values, found[baseline][figure]),
            }
            for figure, values in figures.items()
            if values
        }
        for name, figures in found.items()
    }


def _by_class(queries: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """The figures by method of all queries of each class; a picture of unknown composition is one of its own."""
    classes: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for query in queries:
        label = (query["name"],) if query["attributes"] is None else tuple(query["attributes"].values())
        classes.setdefault(label, []).append(query["methods"])
    return classes


def _figures_of(
    by_class: Mapping[tuple[Any, ...], Sequence[Mapping[str, Any]]], method: str, figure: str
) -> dict[tuple[Any, ...], float]:
    """A method's mean figure in each class that has it."""
    found = {
        label: [by[method][figure] for by in members if method in by and by[method].get(figure) is not None]
        for label, members in by_class.items()
    }
    return {label: float(np.mean(values)) for label, values in found.items() if values}


def _interval(values: Sequence[float]) -> list[float | None]:
    if len(values) < 2:
        return [*values, None, None]
    return list(statistics.bootstrap(values, np.random.default_rng(0)))


def _difference(first: Mapping[Any, float], second: Mapping[Any, float]) -> list[float] | None:
    """The paired difference over the classes that both have; None for fewer than two."""
    common = [label for label in first if label in second]
    if len(common) < 2:
        return None
    values, others = ([figures[label] for label in common] for figures in (first, second))
    return list(statistics.paired_bootstrap(values, others, np.random.default_rng(0)))


def deviations(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """In what the run differs from the paper's protocol, each in a sentence.

    Examples:
      >>> deviations(summarise(results, {}), {})[0]
      'The paper has no toys: no value of its stands beside these.'
    """
    dataset = summary["dataset"]
    said = [
        f"Sets of pictures are compared in {summary['features']} features, not in Inception's and CLIP's, so Fréchet "
        "distances and cosines compare methods with one another and not with the paper's.",
        "All samples of a query count; which of its 16 the paper takes is not said.",
        "The widths of Query-only, and Top-3's temperature and guidance, are not published.",
    ]
    if dataset not in PAPER:
        return [f"The paper has no {dataset}: no value of its stands beside these.", *said]
    if dataset == "colormnist":
        said.append("The paper's colours are not published: these are others.")
    published = PUBLISHED[dataset]
    differing = {name: settings.get(name) for name, value in published.items() if _plain(settings.get(name)) != value}
    said += [f"config.{name} is {value}, and {published[name]} in the paper." for name, value in differing.items()]
    if not any(summary["pooled"].values()):
        said.append(
            "With one query of each class there is no set of queries to be faithful to, and generalization is that of "
            "one query's own samples, which copies of the query do not pass."
        )
    return said


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Table(NamedTuple):
    """A table to print.

    Attributes:
      title: one line.
      headers: of its columns.
      rows: of texts, as many as there are headers.
    """

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The tables of a summary: figures from one query each, differences, and those beside the paper's.

    Examples:
      >>> [table.title[:10] for table in tables(summarise(results, {}))]
      ['From one q', 'Difference', 'Generaliza']
    """
    seeds = len(summary["seeds"])
    over = f"{summary['classes']} held-out classes, {summary['queries']} queries, {seeds} seed{'s' * (seeds != 1)}"
    columns = [column for column in SHOWN if any(column[0] in row for row in summary["methods"].values())]
    found = [
        Table(
            f"From one query each ({over}, {summary['samples']} samples; mean and 95% interval over classes)",
            ("method", *(header for _, header, _ in columns)),
            [
                (method, *(_with_interval(row.get(figure), spec) for figure, _, spec in columns))
                for method, row in summary["methods"].items()
            ],
        ),
        Table(
            f"Differences of two methods on the same queries ({over}; in bold where the 95% interval leaves out 0)",
            ("methods", *(header for figure, header, _ in SHOWN if figure in DIFFERENCES)),
            [
                (pair, *(_with_interval(row.get(figure), "+.2f", marked=True) for figure in DIFFERENCES))
                for pair, row in summary["differences"].items()
            ],
        ),
    ]
    for comparison in COMPARISONS:
        rows = _beside_the_paper(summary, comparison)
        if rows:
            headers = ("method", "whose", "FID or Fréchet distance", "CLIP or cosine", "precision", "recall", "F1")
            title = f"{comparison.capitalize()} (mean ± standard error over classes; all but the distance in %)"
            found.append(Table(title, headers, rows))
    return found


def _beside_the_paper(summary: Mapping[str, Any], comparison: str) -> list[tuple[str, ...]]:
    """The rows of one comparison: pooled where there was something to pool, else of one query's own samples."""
    own = dict(summary["pooled"][comparison])
    alone = not own and comparison == "generalization"
    if alone:
        own = {
            method: {name: [(row.get(name) or [None])[0], None] for name, _ in PAPER_COLUMNS.values()}
            for method, row in summary["methods"].items()
        }
    units = dict(PAPER_COLUMNS.values())
    rows = [
        (method, "here", *(_with_error(row[name], unit) for name, unit in units.items())) for method, row in own.items()
    ]
    paper = PAPER.get(summary["dataset"], {})
    for method, row in paper.items():
        rows.append((method, "the paper's", *(f"{mean} ± {error}" for mean, error in row[comparison])))
    return rows if own else []


def _with_interval(found: Sequence[float | None] | None, spec: str, marked: bool = False) -> str:
    if found is None or found[0] is None:
        return "-"
    estimate, low, high = (None if value is None else round(value, 9) + 0.0 for value in found)  # no -0.00
    if low is None or high is None:
        return f"{estimate:{spec}}"
    text = f"{estimate:{spec}} [{low:{spec}}, {high:{spec}}]"
    return f"**{text}**" if marked and not low <= 0.0 <= high else text


def _with_error(found: Sequence[float | None], unit: float) -> str:
    mean, error = found
    if mean is None:
        return "-"
    digits = 1 if unit > 1.0 or mean >= 10.0 else 3
    return f"{unit * mean:.{digits}f}" + ("" if error is None else f" ± {unit * error:.{digits}f}")


def about(summary: Mapping[str, Any]) -> str:
    """What the run was, in a sentence.

    Examples:
      >>> about(summarise(results, {}))
      'Config c, data d, seeds 0; cdisc 0.1.0, jax 0.10.2; 0.0 hours. No judge was trained.'
    """
    versions = ", ".join(f"{name} {summary['versions'][name]}" for name in ("cdisc", "jax"))
    hours = sum(summary["seconds"].values()) / 3600
    judge = summary["judge"]
    trust = "No judge was trained." if judge is None else f"The judge is right on {judge:.1%} of unseen real pictures."
    return (
        f"Config {summary['config_hash'][:12]}, data {summary['data_hash'][:12]}, seeds "
        f"{', '.join(map(str, summary['seeds']))}; {versions}; {hours:.1f} hours. {trust}"
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """The tables and the deviations as Markdown.

    Examples:
      >>> markdown(summarise(results, {})).splitlines()[0]
      '**From one query each (2 held-out classes, 2 queries, 1 seed, 8 samples; mean and 95% interval over classes)**'
    """
    lines: list[str] = []
    for table in tables(summary):
        lines += [f"**{table.title}**", "", _row(table.headers), _row("---" for _ in table.headers)]
        lines += [*(_row(cells) for cells in table.rows), ""]
    return "\n".join([*lines, "What differs from the paper:", "", *(f"* {said}" for said in summary["deviations"]), ""])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def chart(summary: Mapping[str, Any], figure: str) -> str:
    """One figure of every method with its interval, a row each, as SVG.

    Examples:
      >>> chart(summarise(results, {}), "joint_accuracy")[:4]
      '<svg'
    """
    rows = {name: row[figure] for name, row in summary["methods"].items() if figure in row}
    ends = [value for row in rows.values() for value in row if value is not None]
    least, most = min([0.0, *ends]), max([1.0, *ends])
    height = 20 * len(rows)

    def x(value: float) -> float:
        return round(180 + 380 * (value - least) / (most - least), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 {height + 50}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for tick in np.linspace(least, most, 6):
        parts.append(f'<path d="M{x(tick)} 5V{height + 8}" stroke="#d9dce3"/>')
        parts.append(f'<text x="{x(tick)}" y="{height + 24}" text-anchor="middle">{tick:.1f}</text>')
    for place, (name, (estimate, low, high)) in enumerate(rows.items()):
        y = 20 * place + 16
        parts.append(f'<text x="170" y="{y + 4}" text-anchor="end">{name}</text>')
        if low is not None:
            parts.append(f'<path d="M{x(low)} {y}H{x(high)}" stroke="#0072b2" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(estimate)}" cy="{y}" r="4"/>')
    axis = f"{figure.replace('_', ' ')}, mean and 95% interval over {summary['classes']} classes"
    return "\n".join([*parts, f'<text x="370" y="{height + 44}" text-anchor="middle">{axis}</text>', "</svg>", ""])


_LATEX: dict[str, str] = {"±": r"$\pm$", "%": r"\%", "_": r"\_", "é": r"\'e", "=": "$=$"}


def latex(summary: Mapping[str, Any]) -> str:
    """The tables as LaTeX, for the package booktabs; the deviations as comments.

    Examples:
      >>> latex(summarise(results, {})).count("begin{table}")
      3
    """
    lines = [f"% {said}" for said in summary["deviations"]]
    for table in tables(summary):
        lines += [r"\begin{table}", rf"\caption{{{_escape(table.title)}}}", r"\centering"]
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.headers) - 1)}}}", r"\toprule"]
        lines += [_line(table.headers), r"\midrule", *map(_line, table.rows)]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    bold = text.startswith("**")
    escaped = "".join(_LATEX.get(character, character) for character in text.strip("*"))
    return rf"\textbf{{{escaped}}}" if bold else escaped
