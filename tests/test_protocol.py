"""The protocol on the plane, where the judge is exact: ceilings, copies, means, errors, and the choice of sigma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.app.report import results
from cdisc.evaluation import judge as judging
from cdisc.evaluation import metrics, protocol

LEVELS = (-0.9, -0.3, 0.3, 0.9)
JUDGE = judging.nearest_level_judge(("horizontal", "vertical"), (LEVELS, LEVELS))
CELL = (0, 2)


def _cell(key, n, cell=CELL):
    centre = jnp.asarray([LEVELS[cell[0]], LEVELS[cell[1]]])
    return centre[None] + 0.06 * jax.random.normal(key, (n, 2))


def test_real_pictures_reach_the_ceiling_and_copies_do_not():
    keys = jax.random.split(jax.random.key(0), 4)
    query, references = _cell(keys[0], 1)[0], _cell(keys[1], 100)
    real = protocol.score_samples(JUDGE, _cell(keys[2], 60), query, CELL, references)
    assert real["joint_accuracy"] == 1.0 and real["precision"] > 0.8 and real["recall"] > 0.8
    copies = query[None] + 1e-4 * jax.random.normal(keys[3], (60, 2))
    copied = protocol.score_samples(JUDGE, copies, query, CELL, references)
    assert copied["joint_accuracy"] == 1.0 and copied["precision"] == 1.0 and copied["recall"] == 0.0
    assert copied["distance_to_query"] < 1e-3 < real["distance_to_query"]
    assert copied["kid"] > real["kid"]


def test_figures_agree_with_the_metrics_and_keep_the_factors_apart():
    keys = jax.random.split(jax.random.key(1), 3)
    references, query = _cell(keys[2], 12), jnp.asarray([-0.9, 0.3])
    near = query[None] + 0.3 * (_cell(keys[0], 6) - query[None])  # which recall less than all samples do
    samples = jnp.concatenate([near, _cell(keys[1], 2, (0, 3)), _cell(keys[1], 2, (1, 0))])
    figures = protocol.score_samples(JUDGE, samples, query, jnp.asarray(CELL), references, k=2)
    assert figures["joint_accuracy"] == pytest.approx(0.6)
    assert figures["attribute_accuracy"] == pytest.approx({"horizontal": 0.8, "vertical": 0.6})
    precision, recall = metrics.precision_recall(references, samples, k=2)
    assert precision != recall
    assert (figures["precision"], figures["recall"]) == (float(precision), float(recall))
    right = jnp.asarray([True] * 6 + [False] * 4)
    assert figures["right_recall"] == float(metrics.right_recall(references, samples, right, k=2)) != figures["recall"]
    assert (figures["density"], figures["coverage"]) == metrics.density_coverage(references, samples, k=2)
    assert figures["vendi"] == float(metrics.vendi(samples, metrics.median_distance(references)))
    for figure in (metrics.kid, metrics.frechet_distance, metrics.cosine_similarity):
        assert figures[figure.__name__] == figure(references, samples)
    assert figures["f1"] == metrics.f1(figures["precision"], figures["recall"])
    assert figures["distance_to_query"] == float(metrics.distance_to_query(samples, query))
    assert figures["samples"] == 10


def test_figures_that_cannot_be_computed_are_none():
    samples = _cell(jax.random.key(2), 5)
    figures = protocol.score_samples(JUDGE, samples, samples[0], None, None)
    assert figures["distance_to_query"] > 0.0 and figures["samples"] == 5
    assert all(figures[name] is None for name in protocol.SCALARS if name != "distance_to_query")
    assert figures["attribute_accuracy"] == {"horizontal": None, "vertical": None}


@pytest.mark.parametrize(("samples", "references"), [(1, 9), (3, 9), (9, 3), (4, 4)])
def test_few_samples_leave_out_what_needs_more(samples, references):
    # Catches: a traceback after hours of work, figures lost that one sample has, k samples taken for enough.
    keys = jax.random.split(jax.random.key(5), 2)
    few = _cell(keys[0], samples)
    figures = protocol.score_samples(JUDGE, few, few[0], CELL, _cell(keys[1], references), k=3)
    assert figures["joint_accuracy"] == 1.0 and figures["distance_to_query"] is not None
    for name in ("kid", "frechet_distance", "cosine_similarity", "vendi"):
        assert (figures[name] is None) == (samples == 1)
    for name in ("precision", "recall", "f1", "right_recall", "density", "coverage"):
        assert (figures[name] is None) == (min(samples, references) <= 3)


def test_what_needs_no_judge_is_what_the_judge_leaves():
    samples = _cell(jax.random.key(2), 5)
    judged = protocol.score_samples(JUDGE, samples, samples[0], None, None)
    assert protocol.unjudged(samples, samples[0], JUDGE.factors) == judged
    assert protocol.unjudged(samples, samples[0]) == {**judged, "attribute_accuracy": {}}


def test_accuracy_of_the_judge_itself():
    cells = [(0, 0), (1, 3), (2, 2), (3, 1)]
    points = jnp.asarray([[LEVELS[x], LEVELS[y]] for x, y in cells])
    wrong = jnp.asarray(cells).at[0, 1].set(1)
    assert protocol.accuracy(JUDGE, points, wrong) == {
        "joint_accuracy": 0.75,
        "attribute_accuracy": {"horizontal": 1.0, "vertical": 0.75},
    }


def test_trust_is_accuracy_and_calibration_by_factor():
    def predict(images):
        sure, unsure = jnp.asarray([9.0, -9.0]), jnp.asarray([0.1, -0.1])
        return jnp.tile(sure, (len(images), 1)), jnp.tile(unsure, (len(images), 1))

    judge = judging.Judge(factors=("sure", "unsure"), predict=predict, features=lambda images: images)
    found = protocol.calibration(judge, jnp.zeros((4, 2)), jnp.asarray([(0, 0), (0, 0), (1, 0), (1, 0)]))
    assert found["joint_accuracy"] == 0.5 and found["attribute_accuracy"] == {"sure": 0.5, "unsure": 1.0}
    # Sure of itself and right half of the time; hardly sure, at 1 / (1 + e^-0.2), and always right.
    assert found["balanced_accuracy"] == {"sure": 0.5, "unsure": 1.0}
    assert found["calibration_error"] == pytest.approx({"sure": 0.5, "unsure": 1 - 1 / (1 + np.exp(-0.2))}, abs=1e-6)


def test_pooling_hides_what_the_protocol_shows():
    # A method that copies its query: perfect when pooled over queries, without recall from any one of them.
    keys = jax.random.split(jax.random.key(3), 3)
    queries, references = _cell(keys[0], 50), _cell(keys[1], 50)
    copies = queries + 1e-5 * jax.random.normal(keys[2], queries.shape)
    pooled = protocol.score_pooled(copies, queries, references)
    assert pooled["faithfulness"]["precision"] == pooled["faithfulness"]["recall"] == 1.0
    assert pooled["faithfulness"]["f1"] == 1.0
    general = pooled["generalization"]
    assert general["recall"] > 0.7
    precision, recall = metrics.precision_recall(references, copies)
    assert general["f1"] == pytest.approx(2 * float(precision * recall / (precision + recall)))
    assert general["kid"] == float(metrics.kid(references, copies))
    one = protocol.score_samples(JUDGE, jnp.tile(queries[:1], (20, 1)), queries[0], CELL, references)
    assert one["recall"] == 0.0


def test_pooling_with_fewer_queries_than_neighbours():
    keys = jax.random.split(jax.random.key(6), 3)
    samples, queries, references = (_cell(key, n) for key, n in zip(keys, (8, 2, 9), strict=True))
    pooled = protocol.score_pooled(samples, queries, references)
    faithful, general = pooled["faithfulness"], pooled["generalization"]
    assert faithful["precision"] is None and faithful["recall"] is None and faithful["f1"] is None
    assert faithful["kid"] == float(metrics.kid(queries, samples))
    assert None not in general.values()


def test_other_features_than_the_judges_and_training_pictures():
    # Catches: the judge's features in the place of those asked for, verdicts in other features than the judge's.
    keys = jax.random.split(jax.random.key(7), 3)
    samples, references, training = (_cell(key, 9) for key in keys)

    def extract(points):
        return points[:, :1]

    figures = protocol.score_samples(JUDGE, samples, samples[0], CELL, references, extract=extract, training=training)
    assert figures["kid"] == metrics.kid(references[:, :1], samples[:, :1])
    assert figures["joint_accuracy"] == 1.0
    assert figures["distance_to_training"] == float(jnp.mean(metrics.nearest_distance(samples, training)))


def test_a_class_is_measured_query_by_query_and_pooled():
    # Catches: real pictures pooled, samples of one query measured as another's, a pool in other features.
    keys = jax.random.split(jax.random.key(8), 4)
    queries, references, real = list(_cell(keys[0], 4)), _cell(keys[1], 9), _cell(keys[2], 5)
    drawn = [{"near": query[None] + 0.01 * jax.random.normal(keys[3], (2, 2))} for query in queries]

    def extract(points):
        return 2.0 * points

    figures, pooled = protocol.score_class(
        JUDGE, queries, iter(drawn), CELL, references, real={"real": real}, k=3, extract=extract
    )
    for query, samples, found in zip(queries, drawn, figures, strict=True):
        assert list(found) == ["near", "real"]
        expected = protocol.score_samples(JUDGE, samples["near"], query, CELL, references, extract=extract)
        assert found["near"] == expected
    together = jnp.concatenate([samples["near"] for samples in drawn])
    sets = (extract(pictures) for pictures in (together, jnp.stack(queries), references))
    assert pooled == {"near": protocol.score_pooled(*sets)}
    for few in (queries[:1], queries):
        _, pooled = protocol.score_class(JUDGE, few, drawn[: len(few)], CELL, None if few is queries else references)
        assert pooled == {}


def test_pictures_that_two_parts_share_are_refused_by_name():
    parts = {"the queries": np.eye(3), "the references": 2 * np.eye(3), "training": np.ones((2, 3))}
    protocol.require_disjoint(parts)  # a part may repeat itself
    parts["training"][1] = [0.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="picture 1 of training is picture 1 of the references: take one"):
        protocol.require_disjoint(parts)


def test_pooled_figures_are_averaged_over_the_classes_that_have_them():
    def pooled(value, other):
        figures = dict.fromkeys(protocol.POOLED, value)
        return {"poe": {"faithfulness": {**figures, "f1": other}, "generalization": figures}}

    assert protocol.aggregate_pooled([{}, {}]) == {}
    out = protocol.aggregate_pooled([pooled(0.2, None), {}, pooled(0.6, 0.5)])["poe"]
    assert out["classes"] == 2
    again = protocol.aggregate_pooled([pooled(0.2, None), pooled(0.4, None), pooled(0.6, 0.5)], ["a", "a", "b"])["poe"]
    assert again["classes"] == 2 and again["generalization"]["kid"] == pytest.approx((0.3 + 0.6) / 2)
    assert out["generalization"]["kid"] == pytest.approx(0.4)
    assert out["generalization"]["standard_error"]["kid"] == pytest.approx(0.2)
    assert out["faithfulness"]["f1"] == 0.5 and out["faithfulness"]["standard_error"]["f1"] is None


def _figures(joint, recall=0.0, **changes):
    return {
        "joint_accuracy": joint,
        "attribute_accuracy": {"horizontal": joint},
        "precision": 0.5,
        "recall": recall,
        "right_recall": 0.05,
        "density": 1.2,
        "coverage": 0.3,
        "kid": 0.1,
        "vendi": 2.5,
        "f1": 0.4,
        "frechet_distance": 1.5,
        "cosine_similarity": 0.9,
        "distance_to_query": 0.2,
        "distance_to_training": 0.3,
        "samples": 10,
        **changes,
    }


def test_aggregate_gives_means_and_standard_errors_over_queries():
    queries = [
        {"poe": _figures(0.2), "lora": _figures(1.0)},
        {"poe": _figures(0.4, precision=None), "lora": _figures(1.0)},
        {"poe": _figures(0.9, kid=None)},
    ]
    out = protocol.aggregate(queries)
    assert list(out) == ["poe", "lora"]
    poe = out["poe"]
    assert poe["joint_accuracy"] == pytest.approx(0.5)
    error = np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3)
    assert poe["standard_error"]["joint_accuracy"] == pytest.approx(error)
    assert poe["attribute_accuracy"] == pytest.approx({"horizontal": 0.5})
    assert poe["standard_error"]["attribute_accuracy"] == pytest.approx({"horizontal": error})
    assert (poe["precision"], poe["standard_error"]["precision"]) == (0.5, 0.0)
    assert (poe["density"], poe["coverage"], poe["vendi"]) == pytest.approx((1.2, 0.3, 2.5))
    assert (poe["samples"], poe["queries"]) == (30, 3)
    assert (out["lora"]["samples"], out["lora"]["queries"]) == (20, 2)


def test_aggregate_leaves_unknown_what_no_query_has_and_the_error_of_one():
    out = protocol.aggregate([{"poe": _figures(0.2, kid=None)}])["poe"]
    assert out["kid"] is None and out["standard_error"]["kid"] is None
    assert out["joint_accuracy"] == 0.2 and out["standard_error"]["joint_accuracy"] is None


def test_aggregate_weighs_groups_and_not_queries():
    queries = [{"poe": _figures(v)} for v in (0.0, 0.0, 0.3, 1.0)]
    out = protocol.aggregate(queries, groups=["a", "a", "a", "b"])["poe"]
    assert out["joint_accuracy"] == pytest.approx((0.1 + 1.0) / 2)
    assert out["standard_error"]["joint_accuracy"] == pytest.approx(np.std([0.1, 1.0], ddof=1) / np.sqrt(2))
    assert out["queries"] == 4
    with pytest.raises(ValueError, match="1 groups for 4 queries"):
        protocol.aggregate(queries, groups=["a"])


def test_figures_follow_the_schema_of_the_results():
    samples = _cell(jax.random.key(4), 8)
    queries = [
        {"poe": protocol.score_samples(JUDGE, samples, samples[0], CELL, samples)},
        {"poe": protocol.score_samples(JUDGE, samples, samples[0], None, None)},
    ]
    entry = {"name": "q", "attributes": None, "source": "planar", "prototypes": [], "nfe": 0}
    results.validate(
        {
            "schema_version": results.SCHEMA_VERSION,
            "dataset": "planar",
            "data_hash": "def",
            "config_hash": "",
            "seed": 0,
            "versions": {},
            "seconds": {},
            "queries": [{**entry, "methods": methods} for methods in queries],
            "methods": protocol.aggregate(queries),
        }
    )


def test_best_sigma_is_the_most_accurate_then_the_one_of_most_recall():
    assert protocol.best_sigma({0.1: _figures(0.8, 0.0), 0.3: _figures(0.9, 0.0), 1.0: _figures(0.1, 0.9)}) == 0.3
    assert protocol.best_sigma({0.1: _figures(0.9, 0.0), 0.3: _figures(0.9, 0.2), 0.5: _figures(0.9, 0.1)}) == 0.3
    # Sums that differ by rounding are a tie.
    assert protocol.best_sigma({0.1: _figures(0.1 + 0.2, 0.0), 0.3: _figures(0.3, 0.2)}) == 0.3
    assert protocol.best_sigma({0.5: _figures(0.9, 0.2), 0.1: _figures(0.9, 0.2)}) == 0.1
    assert protocol.best_sigma({0.5: _figures(0.9, None), 0.7: _figures(0.9, 0.0)}) == 0.7


def test_best_sigma_needs_figures():
    with pytest.raises(ValueError, match="no sigma"):
        protocol.best_sigma({})
    with pytest.raises(ValueError, match=r"sigma 0\.1 has no joint accuracy"):
        protocol.best_sigma({0.1: _figures(None)})
