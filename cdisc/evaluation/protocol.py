"""What is measured for each query, and how the queries' figures become a method's.

The protocol's own question is the user's: from ONE query, do the samples show its composition, look like real pictures
of it, and cover it? So each query's samples are measured on their own (`score_samples`), against reference pictures of
the same composition that no model and no judge has seen. The paper pools one sample from each of many queries
(`score_pooled`; arXiv 2605.07078, section 4.2), which lets a method that copies its query pass for a diverse one; so
the pooled figures come in addition to each query's own, not instead of them.

A figure that cannot be computed is None: accuracies without the attributes wanted; figures of sets without references
or with too few samples, as with one sample of a query.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.discovery.concepts import Discovery
from cdisc.evaluation import metrics
from cdisc.evaluation.judge import Judge, verdict

Figures = dict[str, Any]
"""Figures by name, plain Python numbers or None; `attribute_accuracy` holds one for each factor."""

SETS = (
    "precision",
    "recall",
    "f1",
    "density",
    "coverage",
    "kid",
    "frechet_distance",
    "cosine_similarity",
    "vendi",
)
"""Figures of features alone, of samples against references."""

SCALARS = ("joint_accuracy", "right_recall", *SETS, "distance_to_query", "distance_to_training")
POOLED = ("precision", "recall", "f1", "kid", "frechet_distance", "cosine_similarity")
COMPARISONS = ("faithfulness", "generalization")

Extract = Callable[[jax.Array], jax.Array]
"""Pictures (N, *shape) to the features (N, D) in which sets are compared, such as `Judge.features`."""


def accuracy(judge: Judge, images: jax.Array, attributes: jax.Array) -> Figures:
    """The judge's own accuracies on real pictures (N, *shape) of known attributes (N, F): how far to trust it.

    Examples:
      >>> accuracy(judge, jnp.array([[0.9, 0.1], [-0.8, 0.7]]), jnp.array([[1, 0], [0, 0]]))
      {'joint_accuracy': 0.5, 'attribute_accuracy': {'x': 1.0, 'y': 0.5}}
    """
    return _accuracies(judge, verdict(judge, images), attributes)


def _accuracies(judge: Judge, seen: jax.Array, attributes: jax.Array) -> Figures:
    return {
        "joint_accuracy": float(metrics.joint_accuracy(seen, attributes)),
        "attribute_accuracy": _by_factor(judge, metrics.attribute_accuracy(seen, attributes)),
    }


def calibration(judge: Judge, images: jax.Array, attributes: jax.Array) -> Figures:
    """How far to trust the judge: its accuracies, and whether its confidence says how often it is right.

    Args:
      judge: the judge to test.
      images: (N, *shape) real pictures that it has not seen.
      attributes: (N, F) their value indices.

    Returns:
      What `accuracy` returns, and for each factor the `balanced_accuracy` and the `calibration_error`, 0 at best.

    Examples:
      >>> found = calibration(judge, jnp.array([[0.9, 0.1], [-0.8, 0.7]]), jnp.array([[1, 0], [0, 1]]))
      >>> sorted(found)
      ['attribute_accuracy', 'balanced_accuracy', 'calibration_error', 'joint_accuracy']
    """
    heads = list(zip(judge.predict(images), attributes.T, strict=True))
    return accuracy(judge, images, attributes) | {
        of.__name__: _by_factor(judge, jnp.stack([of(logits, values) for logits, values in heads]))
        for of in (metrics.balanced_accuracy, metrics.calibration_error)
    }


def score_samples(
    judge: Judge,
    samples: jax.Array,
    query: jax.Array,
    attributes: jax.Array | Sequence[int] | None,
    references: jax.Array | None,
    *,
    k: int = 3,
    extract: Extract | None = None,
    training: jax.Array | None = None,
) -> Figures:
    """The figures of one method on one query.

    Real pictures of the composition in the place of `samples` give the ceiling: what even a perfect method would get
    with so few samples.

    Args:
      judge: tells the attributes.
      samples: (n, *shape), all made from this query.
      query: (*shape).
      attributes: (F,) value indices wanted, or None where the query's composition is not known.
      references: (N, *shape) other real pictures of the composition, or None.
      k: see `metrics.precision_recall`; with k samples or references, or fewer, there is neither.
      extract: the features in which samples and references are compared; None takes the judge's.
      training: (M, *shape) pictures that the network learnt from, or None.

    Returns:
      `SCALARS`, attribute_accuracy and samples.

    Examples:
      >>> figures = score_samples(judge, real[:5] + 0.01, real[0], (1, 0), real, k=2)
      >>> figures["joint_accuracy"], figures["samples"]
      (1.0, 5)
    """
    figures = unjudged(samples, query, judge.factors)
    if training is not None:
        figures["distance_to_training"] = float(jnp.mean(metrics.nearest_distance(samples, training)))
    if references is not None:
        real, fake = ((extract or judge.features)(pictures) for pictures in (references, samples))
        figures |= _set_figures(real, fake, k)
    if attributes is not None:
        seen, wanted = verdict(judge, samples), jnp.asarray(attributes)
        figures |= _accuracies(judge, seen, wanted)
        if figures["recall"] is not None:
            figures["right_recall"] = float(metrics.right_recall(real, fake, metrics.all_right(seen, wanted), k=k))
    return figures


def unjudged(samples: jax.Array, query: jax.Array, factors: Sequence[str] = ()) -> Figures:
    """The figures of `score_samples` that need neither a judge nor other pictures; the rest is None.

    Examples:
      >>> unjudged(x, query)["samples"]
      2
    """
    return {
        **dict.fromkeys(SCALARS),
        "attribute_accuracy": dict.fromkeys(factors),
        "distance_to_query": float(metrics.distance_to_query(samples, query)),
        "samples": samples.shape[0],
    }


def score_pooled(samples: jax.Array, queries: jax.Array, references: jax.Array, *, k: int = 3) -> dict[str, Figures]:
    """The paper's comparison for one composition, in whatever features it is given instead of Inception's and CLIP's.

    Args:
      samples: (n, D) features of samples, as many from each of the queries; one in the paper.
      queries: (m, D) features of the queries themselves.
      references: (N, D) features of other pictures of the composition.
      k: see `metrics.precision_recall`.

    Returns:
      "faithfulness", against the queries, and "generalization", against the references: `POOLED` of each.

    Examples:
      >>> figures = score_pooled(real[:5] + 0.01, real[:1], real, k=2)
      >>> sorted(figures), figures["generalization"]["precision"]
      (['faithfulness', 'generalization'], 1.0)
    """
    compared = zip(COMPARISONS, (queries, references), strict=True)
    return {name: _set_figures(real, samples, k, POOLED) for name, real in compared}


def score_class(
    judge: Judge,
    queries: Sequence[jax.Array],
    drawn: Iterable[Mapping[str, jax.Array]],
    attributes: Sequence[int] | None,
    references: jax.Array | None,
    *,
    real: Mapping[str, jax.Array] | None = None,
    k: int = 3,
    extract: Extract | None = None,
    training: jax.Array | None = None,
) -> tuple[list[dict[str, Figures]], dict[str, dict[str, Figures]]]:
    """What was drawn for the queries of one composition, measured.

    Args:
      judge: tells the attributes.
      queries: Q pictures (*shape).
      drawn: for each of them, method name to samples; taken one by one.
      attributes: as in `score_samples`, like the rest.
      references: as there.
      real: other real pictures by name, measured as a method is. They are the same for all queries, so they are not
        pooled: they would be copies of one another.
      k: as there.
      extract: as there.
      training: as there.

    Returns:
      For each query, method name to its figures (`score_samples`); and method name to the figures of all queries
      together (`score_pooled`), empty for a single query, without references, or with too few samples.

    Examples:
      >>> drawn = [{"mine": real + 0.01}, {"mine": real - 0.01}]
      >>> by_query, pooled = score_class(judge, [real[0], real[1]], drawn, (1, 0), real, k=2)
      >>> by_query[0]["mine"]["joint_accuracy"], list(pooled)
      (1.0, ['mine'])
    """
    features = extract or judge.features
    figures: list[dict[str, Figures]] = []
    pools: dict[str, list[np.ndarray]] = {}
    for query, by_method in zip(queries, drawn, strict=True):
        given = {**by_method, **(real or {})}
        figures.append(
            {
                name: score_samples(
                    judge, samples, query, attributes, references, k=k, extract=extract, training=training
                )
                for name, samples in given.items()
            }
        )
        if len(queries) > 1 and references is not None:
            for name, samples in by_method.items():
                pools.setdefault(name, []).append(np.asarray(features(samples)))
    together = {name: np.concatenate(pool) for name, pool in pools.items()}
    if references is None or not together or any(len(pool) <= k for pool in together.values()):
        return figures, {}
    own, others = features(jnp.stack(list(queries))), features(references)
    return figures, {name: score_pooled(jnp.asarray(pool), own, others, k=k) for name, pool in together.items()}


def require_disjoint(parts: Mapping[str, np.ndarray]) -> None:
    """Refuses a picture that two parts of the data share: it would be measured against itself.

    Args:
      parts: name of a part to its pictures (N, *shape).

    Raises:
      ValueError: naming the pictures.

    Examples:
      >>> require_disjoint({"the queries": np.zeros((1, 2)), "the references": np.ones((3, 2))})
    """
    known: dict[bytes, tuple[str, int]] = {}
    for part, pictures in parts.items():
        for place, picture in enumerate(np.asarray(pictures)):
            other, row = known.setdefault(picture.tobytes(), (part, place))
            if other != part:
                raise ValueError(f"picture {place} of {part} is picture {row} of {other}: take one of them out.")


def _set_figures(real: jax.Array, fake: jax.Array, k: int, wanted: Sequence[str] = SETS) -> Figures:
    """Figures of features (N, D) of real pictures and (n, D) of samples; None where a set is too small for one."""
    smaller = min(len(real), len(fake))
    found: dict[str, Any] = {}
    if smaller > k:
        found |= metrics.precision_recall(real, fake, k=k)._asdict()
        found |= metrics.density_coverage(real, fake, k=k)._asdict()
        found["f1"] = metrics.f1(float(found["precision"]), float(found["recall"]))
    if smaller > 1:
        for figure in (metrics.kid, metrics.frechet_distance, metrics.cosine_similarity):
            found[figure.__name__] = figure(real, fake)
        if "vendi" in wanted:  # whose time grows with the cube of the samples
            found["vendi"] = metrics.vendi(fake, metrics.median_distance(real))
    return dict.fromkeys(wanted) | {name: float(found[name]) for name in wanted if name in found}


def _by_factor(judge: Judge, values: jax.Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(judge.factors, np.asarray(values), strict=True)}


def aggregate(queries: Sequence[Mapping[str, Figures]], groups: Sequence[Hashable] | None = None) -> dict[str, Figures]:
    """Each method's means and standard errors over queries.

    A query for which a figure is None does not enter that figure. A method need not have run on every query.

    Args:
      queries: for each query, method name to figures from `score_samples`.
      groups: for each query, what it is a repetition of, such as its composition. Queries are then averaged within
        their group, and means and errors are over groups, because queries of one group are not independent. None: each
        query is a group of its own.

    Returns:
      For each method the figures' means, "standard_error" with the same names (None where fewer than two groups have
      the figure), "samples" in all, and how many "queries".

    Examples:
      >>> of = lambda value: dict.fromkeys(SCALARS, value) | {"attribute_accuracy": {}, "samples": 8}
      >>> found = aggregate([{"mine": of(0.2)}, {"mine": of(0.4)}])["mine"]
      >>> round(found["recall"], 2), round(found["standard_error"]["recall"], 2), found["queries"]
      (0.3, 0.1, 2)
    """
    labels = list(range(len(queries))) if groups is None else list(groups)
    if len(labels) != len(queries):
        raise ValueError(f"{len(labels)} groups for {len(queries)} queries")
    # A dictionary and not a set: methods keep the order in which they first appear.
    methods = dict.fromkeys(name for query in queries for name in query)
    out: dict[str, Figures] = {}
    for method in methods:
        present = [(label, query[method]) for label, query in zip(labels, queries, strict=True) if method in query]
        factors = dict.fromkeys(name for _, figures in present for name in figures["attribute_accuracy"])
        moments = {name: _moments([(label, figures[name]) for label, figures in present]) for name in SCALARS}
        by_factor = {
            name: _moments([(label, figures["attribute_accuracy"].get(name)) for label, figures in present])
            for name in factors
        }
        out[method] = {
            **{name: mean for name, (mean, _) in moments.items()},
            "attribute_accuracy": {name: mean for name, (mean, _) in by_factor.items()},
            "standard_error": {
                **{name: error for name, (_, error) in moments.items()},
                "attribute_accuracy": {name: error for name, (_, error) in by_factor.items()},
            },
            "samples": sum(figures["samples"] for _, figures in present),
            "queries": len(present),
        }
    return out


def aggregate_pooled(
    classes: Sequence[Mapping[str, Mapping[str, Figures]]], groups: Sequence[Hashable] | None = None
) -> dict[str, Figures]:
    """Each method's means and standard errors, over classes, of the figures of `score_pooled`.

    Args:
      classes: for each class, method name to its pooled figures.
      groups: for each of them, what it is a repetition of, as in `aggregate`, such as a class under another seed.

    Returns:
      For each method and comparison the figures' means and "standard_error" with the same names, as in `aggregate`, and
      in how many "classes" the method was pooled.

    Examples:
      >>> figures = {"faithfulness": dict.fromkeys(POOLED, 0.5), "generalization": dict.fromkeys(POOLED, 0.5)}
      >>> aggregate_pooled([{"mine": figures}, {"mine": figures}])["mine"]["classes"]
      2
    """
    labels = list(range(len(classes))) if groups is None else list(groups)
    out: dict[str, Figures] = {}
    for method in dict.fromkeys(name for found in classes for name in found):
        present = [(label, found[method]) for label, found in zip(labels, classes, strict=True) if method in found]
        out[method] = {"classes": len({label for label, _ in present})}
        for comparison in COMPARISONS:
            moments = {
                name: _moments([(label, pooled[comparison][name]) for label, pooled in present]) for name in POOLED
            }
            out[method][comparison] = {
                **{name: mean for name, (mean, _) in moments.items()},
                "standard_error": {name: error for name, (_, error) in moments.items()},
            }
    return out


def overall(
    queries: Sequence[Mapping[str, Figures]],
    labels: Sequence[Hashable],
    pools: Sequence[Mapping[str, Mapping[str, Figures]]],
    pool_labels: Sequence[Hashable],
) -> dict[str, Figures]:
    """What `aggregate` makes of queries; for each method how many "failed", having none, and `aggregate_pooled`.

    Examples:
      >>> figures = {"mine": dict.fromkeys(SCALARS, 0.5) | {"attribute_accuracy": {}, "samples": 8}}
      >>> overall([figures, figures], ["disc", "star"], [], [])["mine"]["recall"]
      0.5
    """
    methods = aggregate(queries, labels)
    pooled = aggregate_pooled(pools, pool_labels)
    for name, figures in methods.items():
        figures |= {"failed": len(queries) - figures["queries"]} | ({"pooled": pooled[name]} if name in pooled else {})
    return methods


def describe(discovery: Discovery) -> dict[str, Any]:
    """What the results say of a discovery: its picks as "prototypes", best first, its "nfe" and what it left out.

    Examples:
      >>> sorted(describe(found))
      ['discovery', 'nfe', 'prototypes']
    """
    pool, picks, info = discovery.pool, discovery.selection, vars(discovery.info)
    prototypes = [
        {"t": int(pool.t[j]), "basin": int(pool.basin[j]), "gain": float(picks.gains[i])}
        | {"curvature": float(pool.curvature[j]), "residual": float(pool.residual[j])}
        for i, j in enumerate(picks.indices)
        if picks.mask[i]
    ]
    left = {name: value for name, value in info.items() if name != "nfe"}
    return {"prototypes": prototypes, "nfe": int(info["nfe"]), "discovery": left}


def _moments(values: Sequence[tuple[Hashable, float | None]]) -> tuple[float | None, float | None]:
    """Mean over groups of the groups' means, and its standard error s / sqrt(groups), s with groups - 1."""
    groups: dict[Hashable, list[float]] = {}
    for label, value in values:
        if value is not None:
            groups.setdefault(label, []).append(value)
    means = [float(np.mean(members)) for members in groups.values()]
    if not means:
        return None, None
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(np.mean(means)), error


def best_sigma(figures: Mapping[float, Mapping[str, Any]]) -> float:
    """The width at which Query-only is at its best, for a fair comparison next to a width as in the paper.

    The paper's Query-only scores far below what a good width reaches, so one fixed width would be a straw man. The
    highest joint accuracy wins; on a tie the highest recall, because copying makes accuracy easy; if that ties too, the
    smallest sigma. The choice sees the very figures that are then reported, so it can favour only the baseline, never
    what is compared with it.

    Args:
      figures: sigma to the method's figures at that sigma, from `aggregate` or `score_samples`.

    Raises:
      ValueError: if there is none, or any lacks its joint accuracy.

    Examples:
      >>> best_sigma({0.1: {"joint_accuracy": 0.9, "recall": 0.0}, 0.3: {"joint_accuracy": 0.9, "recall": 0.1}})
      0.3
    """
    if not figures:
        raise ValueError("no sigma to choose from")
    for sigma, row in figures.items():
        if row["joint_accuracy"] is None:
            raise ValueError(f"sigma {sigma} has no joint accuracy: the attributes wanted were not known")

    def merit(sigma: float) -> tuple[float, float, float]:
        recall = figures[sigma]["recall"]
        # Rounded, so that means that differ only by the order of summation tie.
        return (round(figures[sigma]["joint_accuracy"], 9), -1.0 if recall is None else round(recall, 9), -sigma)

    return max(figures, key=merit)
