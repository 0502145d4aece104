"""What the stages hand to the algorithms: whose data, which options, which keys; and queries of which nothing comes."""

import dataclasses
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import config_of

from cdisc.app import pipeline
from cdisc.app import run as run_lib
from cdisc.app.config import read
from cdisc.app.report import results as results_lib
from cdisc.app.stages import discover, evaluate, export, judge
from cdisc.app.stages.adapt import QueryModel
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import concepts
from cdisc.evaluation import baselines, features, options, protocol
from cdisc.evaluation.options import Method
from cdisc.keys import named
from cdisc.learning import adapt as adapt_lib
from cdisc.networks import lora

QUERIES = 3


def mixture(**changes):
    config = config_of("mixture.py")
    small = {
        "discover.timesteps": (100, 300),
        "discover.starts_per_t": 4,
        "discover.max_steps": 12,
        "discover.capacity": 16,
        "discover.hierarchy": (),
        "sampling.num_steps": 4,
        "adapt.class_draws": 8,
        "evaluate.num_queries": QUERIES,
        "evaluate.samples": 8,
        "evaluate.references": 8,
        "evaluate.query_only_sigmas": (),
    }
    config.update_from_flattened_dict(small | {name.replace("__", "."): value for name, value in changes.items()})
    return read(config)


@pytest.fixture
def this(tmp_path):
    return run_lib.prepare(mixture(), tmp_path, [])


def discovered(mask, curvature=(-0.5, 0.5, -0.1, -0.2), t=(100, 100, 300, 300)):
    """A discovery of points that are numbered."""
    n = len(mask)
    pool = types.SimpleNamespace(
        mask=np.asarray(mask),
        m=np.arange(2.0 * n, dtype=np.float32).reshape(n, 2),
        t=np.asarray(t, np.int32),
        basin=np.arange(1, n + 1),
        curvature=np.asarray(curvature, np.float32),
    )
    return types.SimpleNamespace(pool=pool, found=any(mask))


FOUND, NOTHING = discovered((True,) * 4), discovered((False,) * 4)


def model_of(i):
    """What is known of query i: a teacher and an embedding that are its number."""
    teacher = Gaussian(mean=jnp.full(2, float(i)), variance=jnp.full(2, 1e-6))
    learnt = {
        name: adapt_lib.Adaptation(embedding=jnp.full(12, 10.0 * i + j), adapter=lora.Adapter())
        for j, name in enumerate(("one", "two"))
    }
    return QueryModel(teacher=teacher, losses=jnp.roll(jnp.arange(12.0), i), composed=None, adaptations=learnt)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_every_query_is_sampled_with_what_is_its_own(this, monkeypatch, at_once):
    # Catches: the first model of a chunk for the first query of the run, keys or models in another order, one key for
    # all queries, the product drawn from the noise that samples start from.
    started, products = [], []

    def draw(run, params, densities, keys, count):
        started.extend(np.asarray(jax.random.key_data(key)).tolist() for key in keys)
        means = [jnp.zeros(2) if density.teacher is None else density.teacher.mean for density in densities]
        return np.stack([np.broadcast_to(mean, (count, 2)) for mean in means])

    sample = Gaussian.sample

    def recorded(teacher, key, n):
        products.append(np.asarray(jax.random.key_data(key)).tolist())
        return sample(teacher, key, n)

    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "write_results", lambda *_: None)
    monkeypatch.setattr(Gaussian, "sample", recorded)
    monkeypatch.setattr(evaluate.jax, "local_device_count", lambda: at_once)
    monkeypatch.setattr(baselines, "query_only_teacher", lambda image, sigma: Gaussian(image, image**2))
    models = [model_of(i) for i in range(QUERIES)]
    this = dataclasses.replace(this, backbone=dataclasses.replace(this.backbone, table=lambda _: jnp.zeros((12, 12))))
    samples = evaluate.evaluate(this, None, [FOUND] * QUERIES, models, True)
    for i, query in enumerate(this.queries):
        np.testing.assert_allclose(samples[i]["poe"], i)
        np.testing.assert_allclose(samples[i]["product"], i, atol=0.01)
        np.testing.assert_allclose(samples[i]["query_only sigma=1"], np.broadcast_to(query.image, (8, 2)), rtol=1e-6)
    keys = [tuple(np.asarray(jax.random.key_data(this.key("evaluate", query))).tolist()) for query in this.queries]
    assert len(set(map(tuple, started))) == len(set(map(tuple, products))) == len(set(keys)) == QUERIES
    assert not set(map(tuple, started)) & set(map(tuple, products))


def test_what_a_method_is_made_of(this):
    # Catches: another level's embedding, any field of a method left out or taken from elsewhere, a teacher that stays
    # beside Top-1.
    levels = {
        name: adapt_lib.AdaptOptions(pool="query", start="normal", steps=1, batch_size=1, embedding_learning_rate=0.1)
        for name in ("one", "two")
    }
    methods = {
        "plain": Method(level="two", guidance=1.5),
        "beside": Method(level="one", guidance=2.5, teacher_weight=0.25, teacher_sigma_min=0.75),
        "within": Method(level="one", guidance=2.0, class_sigma_min=0.5, class_sigma_max=4.0),
    }
    config = dataclasses.replace(
        this.config,
        adapt=dataclasses.replace(this.config.adapt, levels=levels),
        evaluate=dataclasses.replace(this.config.evaluate, methods=methods, class_guidance=3.5),
        guidance=dataclasses.replace(this.config.guidance, w0=0.125, w_max=5.0, elementwise=True),
    )
    this = dataclasses.replace(this, config=config)
    table = this.backbone.table(this.dataset.train)
    factors = {"kernel": types.SimpleNamespace()}
    adapters = {name: lora.Adapter(factors=factors) for name in ("one", "two")}
    model = model_of(1)
    for name, adapter in adapters.items():
        model.adaptations[name] = dataclasses.replace(model.adaptations[name], adapter=adapter)
    densities = evaluate.densities_of(this, this.dataset.train, this.queries[0], model)
    for name, method in methods.items():
        density = densities[name]
        np.testing.assert_array_equal(density.embeddings, model.adaptations[method.level].embedding[None])
        assert density.adapter is adapters[method.level]
        assert density.weights.tolist() == [method.guidance]
        assert (density.teacher_weight, density.teacher_sigma_min) == (method.teacher_weight, method.teacher_sigma_min)
        assert (density.class_sigma_min, density.class_sigma_max) == (method.class_sigma_min, method.class_sigma_max)
        assert (density.w_max, density.elementwise) == (5.0, True)
        assert density.teacher is model.teacher
    poe, top1, top3 = (densities[name] for name in ("poe", "top1", "top3"))
    assert (poe.teacher, poe.teacher_weight, poe.teacher_sigma_min) == (model.teacher, 0.125, 0.0)
    np.testing.assert_array_equal(top1.embeddings[0], table[1])  # losses are rolled by one
    assert (top1.weights.tolist(), top1.teacher_weight, top1.adapter.factors) == ([3.5], 0.0, {})
    np.testing.assert_array_equal(top3.embeddings, table[jnp.asarray([1, 2, 3])])
    assert top3.teacher is None
    assert float(jnp.sum(top3.weights)) == pytest.approx(3.5)
    query_only = densities["query_only sigma=1"]
    np.testing.assert_array_equal(query_only.teacher.mean, this.queries[0].image)
    assert query_only.teacher_weight == 0.125


def test_no_picture_is_reference_and_real_sample_at_once(this, monkeypatch):
    # Catches: real pictures measured against themselves, samples of a query measured as another's.
    numbered = np.arange(32.0, dtype=np.float32).reshape(16, 2)
    asked, scored = [], []

    def references(composition, n):
        asked.append((composition, n))
        return numbered[:n]

    def score_samples(judged_by, samples, query, composition, given, *, k, extract, training):
        scored.append((np.asarray(samples), np.asarray(given)))
        return protocol.unjudged(samples, query)

    monkeypatch.setattr(evaluate.protocol, "score_samples", score_samples)
    this = dataclasses.replace(this, dataset=dataclasses.replace(this.dataset, references=references))
    drawn = np.full((8, 2), -1.0, np.float32)
    judged_by = judge.load_judge(this)
    compared_in, learnt = features.judge_features(judged_by), np.full((1, 2), -2.0, np.float32)
    figures, _ = evaluate.score_class(this, [0], [{"poe": drawn}], judged_by, compared_in, learnt)
    assert asked == [(this.queries[0].composition, 16)]
    assert list(figures[0]) == ["poe", "real pictures"]
    (poe, known), (real, again) = scored
    np.testing.assert_array_equal(poe, drawn)
    np.testing.assert_array_equal(known, again)
    assert len(known) == len(real) == 8
    assert not {row.tobytes() for row in known} & {row.tobytes() for row in real}


def test_the_judge_learns_from_training_pictures_and_is_tested_on_others(tmp_path, monkeypatch):
    # Catches: a judge trained on the queries' part, or tested on what it has learnt; arguments of its section lost.
    config = config_of("colormnist.py", "tiny")
    config.evaluate.judge.update(seed=5, pictures=40, steps=3)
    this = run_lib.prepare(read(config), tmp_path, [])
    asked, trained = [], []
    labelled = this.dataset.labelled

    def recorded(part, n, seed):
        asked.append((part, n, seed))
        return labelled(part, min(n, 40), seed)

    def train(network, params, draw, data, key, *, steps):
        trained.append((len(data.images), steps, np.asarray(jax.random.key_data(key)).tolist()))
        return params, []

    monkeypatch.setattr(judge.judge, "init", lambda network, key, shape: {"x": jnp.zeros(())})
    monkeypatch.setattr(judge.judge, "train", train)
    monkeypatch.setattr(judge.protocol, "calibration", lambda *_: {"joint_accuracy": 1.0, "attribute_accuracy": {}})
    this = dataclasses.replace(this, dataset=dataclasses.replace(this.dataset, labelled=recorded))
    judge.judge_report(this, judge.load_judge(this))
    assert asked == [("train", 40, 5), ("query", judge._JUDGED, 0)]
    root = np.asarray(jax.random.key_data(named(named(jax.random.key(5), "judge"), "train"))).tolist()
    assert trained == [(40, 3, root)]


def test_discovery_has_the_options_and_each_query_its_key(this, monkeypatch):
    # Catches: options of one's own, a query's picture with another's key.
    given, handed = [], []

    def divided(one, num_shared):
        def mapped(items, params):
            handed.append(items)
            jax.eval_shape(lambda item: one(item, params, None), jax.tree.map(lambda x: x[0], items))
            return items[0]

        return mapped

    monkeypatch.setattr(discover.devices, "divided", divided)
    monkeypatch.setattr(discover.concepts, "discover", lambda *a: given.append(a[4]) or a[2])
    monkeypatch.setattr(discover, "saved_by_query", lambda run, stage, active, at_once, work: work([2, 0]))
    monkeypatch.setattr(discover.concepts, "or_nothing", lambda discovery: FOUND)
    discover.discover(this, this.dataset.train, True)
    assert set(given) == {this.config.discover}
    images, keys = handed[-1]
    for row, i in enumerate((2, 0)):
        np.testing.assert_array_equal(images[row], this.queries[i].image)
        assert keys[row] == this.key("discover", this.queries[i])


def test_no_saddle_and_nothing_coarser_is_followed(this, monkeypatch, tmp_path):
    # Catches: saddles, places of the pool that hold nothing, or levels beyond the last, as leaves of the hierarchy; a
    # hierarchy of fewer queries taken for that of more, a mode of one query taken for another's.
    given = []

    def follow(eps_fn, schedule, points, t, options):
        given.append((points.shape, options.hierarchy))
        return points

    monkeypatch.setattr(discover.hierarchy_lib, "follow", follow)
    monkeypatch.setattr(discover.hierarchy_lib, "tree", lambda _, basins, of: {"basins": basins.tolist(), "of": of})
    config = dataclasses.replace(
        this.config, discover=dataclasses.replace(this.config.discover, hierarchy=(100, 200), max_curvature=0.1)
    )
    this = dataclasses.replace(this, config=config, queries=this.queries[:2])
    first = discovered((True, True, True, False), curvature=(-0.5, 0.5, 0.05, -1.0), t=(100, 100, 200, 100))
    second = discovered((True, True), curvature=(-0.5, -0.5), t=(300, 50))
    tree, points = discover.follow(this, this.dataset.train, [first, second], True)
    names = [query.name for query in this.queries]
    assert tree == {"basins": [1, 3, 2], "of": [names[0], names[0], names[1]]}
    np.testing.assert_array_equal(points, [[0, 1], [4, 5], [2, 3]])
    this = dataclasses.replace(this, queries=this.queries[:1])
    tree, points = discover.follow(this, this.dataset.train, [first], True)
    assert len(points) == 2


def test_what_learns_from_the_product():
    # Catches: a level that is taken for independent of it although the one before learns from it.
    def level(pool, after=""):
        return adapt_lib.AdaptOptions(
            pool=pool, start="normal", after=after, steps=1, batch_size=1, embedding_learning_rate=0.1
        )

    levels = {
        "own": level("query"),
        "both": level("both"),
        "taught": level("teacher", after="own"),
        "later": level("query", after="both"),
        "after own": level("query", after="own"),
    }
    methods = {
        "alone": Method(level="own"),
        "beside": Method(level="own", teacher_weight=0.1),
        "learnt": Method(level="later"),
    }
    names = ("poe", "product", "top1", "top3", "query_only sigma=1", *methods)
    needing = [name for name in names if options.needs_product(levels, methods, name)]
    assert needing == ["poe", "product", "beside", "learnt"]
    found = {name: options.learns_from_product(levels, name) for name in levels}
    assert found == {"own": False, "both": True, "taught": True, "later": True, "after own": False}


@pytest.fixture(scope="module")
def without_modes(tmp_path_factory):
    """A run one of whose queries has no modes."""
    workdir, patch = tmp_path_factory.mktemp("run"), pytest.MonkeyPatch()
    or_nothing, calls = concepts.or_nothing, itertools.count()

    def nothing(discovery):
        broken = dataclasses.replace(discovery.teacher, mean=discovery.teacher.mean * np.nan)
        return or_nothing(dataclasses.replace(discovery, teacher=broken) if next(calls) == 1 else discovery)

    with patch.context() as context:
        context.setattr(concepts, "or_nothing", nothing)
        pipeline.run(mixture(discover__hierarchy=(100, 300)), workdir, pipeline.STAGES, [])
    return workdir


def test_a_query_without_modes_is_a_result(without_modes, capsys):
    # Catches: a run that ends at it, its figures for those of a method, a report that cannot show it.
    results = results_lib.read(without_modes / "results.json")
    first, second, third = results["queries"]
    assert "failed" not in first and "failed" not in third
    assert second["failed"].startswith("the score of the backbone led to no finite mode")
    assert second["prototypes"] == []
    assert set(first["methods"]) - set(second["methods"]) == {"poe", "product"}
    assert {"top1", "top3", "query_only sigma=1", "real pictures"} == set(second["methods"])
    counts = {name: (figures["queries"], figures["failed"]) for name, figures in results["methods"].items()}
    assert counts["poe"] == counts["product"] == (2, 1)
    assert counts["top1"] == counts["real pictures"] == (3, 0)
    assert second["name"] in (without_modes / "report" / "index.html").read_text()
    before = (without_modes / "discover" / "query_0001").stat().st_mtime_ns
    pipeline.run(mixture(discover__hierarchy=(100, 300)), without_modes, pipeline.STAGES, [])
    assert (without_modes / "discover" / "query_0001").stat().st_mtime_ns == before
    assert "evaluate: 1 of 3 queries: the score of the backbone led to no finite mode" in capsys.readouterr().err


def test_a_run_goes_on_with_more_queries_and_other_samples(without_modes, capsys):
    # Catches: discovery or adaptation made again, samples of another number kept, a hierarchy of fewer queries.
    kept = [path for stage in ("discover", "adapt") for path in (without_modes / stage).glob("query_????")]
    assert len(kept) == 2 * QUERIES
    before = [path.stat().st_mtime_ns for path in kept]
    more = mixture(discover__hierarchy=(100, 300), evaluate__num_queries=4, evaluate__samples=6)
    pipeline.run(more, without_modes, pipeline.STAGES, [])
    assert [path.stat().st_mtime_ns for path in kept] == before
    results = results_lib.read(without_modes / "results.json")
    assert len(results["queries"]) == 4
    assert {figures["samples"] for query in results["queries"] for figures in query["methods"].values()} == {6}
    assert "config.evaluate.samples was 8 and is 6" in capsys.readouterr().out


def test_a_run_of_which_nothing_comes_ends_and_says_so(tmp_path, capsys):
    config = mixture(discover__max_residual=1e-30, discover__tolerance=1e-30)
    pipeline.run(config, tmp_path, pipeline.STAGES, [])
    results = results_lib.read(tmp_path / "results.json")
    assert all("failed" in query for query in results["queries"])
    assert set(results["methods"]) == {"top1", "top3", "query_only sigma=1", "real pictures"}
    said = capsys.readouterr().err
    assert "evaluate: 3 of 3 queries: " in said
    assert re.search(
        r"no finite mode, .*; the smallest residuals are 0\.\d{3} at t = 100, 0\.\d{3} at t = 300 \(", said
    )


def test_what_a_query_without_modes_has_not_learnt_is_not_exported(tmp_path, monkeypatch):
    # Catches: an adapter of a product that there was not.
    saved = []
    monkeypatch.setattr(export.interop, "save", lambda *_: None)
    monkeypatch.setattr(export.interop, "save_adapter", lambda folder, *_: saved.append(folder.relative_to(tmp_path)))
    options = {"start": "normal", "steps": 1, "batch_size": 1, "embedding_learning_rate": 0.1}
    levels = {name: adapt_lib.AdaptOptions(pool=pool, **options) for name, pool in (("one", "query"), ("two", "both"))}
    this = types.SimpleNamespace(
        network="",
        scheduler=None,
        config=types.SimpleNamespace(adapt=types.SimpleNamespace(levels=levels)),
        queries=[types.SimpleNamespace(name="q", source="s")] * 2,
    )
    export.export(this, None, [NOTHING, FOUND], [model_of(0), model_of(1)], tmp_path)
    assert [str(path) for path in saved] == ["query_0000/one", "query_0001/one", "query_0001/two"]


def test_every_use_of_randomness_has_a_root_of_its_own(this):
    # Catches: a judge that draws what pretraining draws, a query's key that is a stage's, or another query's.
    judged = named(jax.random.key(0), "judge")
    roots = [this.key(stage) for stage in run_lib.STAGES] + [judged]
    roots += [this.key(stage, query) for stage in run_lib.STAGES for query in this.queries]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in roots}) == len(roots)
    again = dataclasses.replace(this, queries=this.queries[::-1])
    assert this.key("adapt", this.queries[2]) == again.key("adapt", again.queries[0])
    other = dataclasses.replace(this, config=dataclasses.replace(this.config, seed=1))
    assert this.key("adapt") != other.key("adapt")
    assert this.key("pretrain") == other.key("pretrain")  # which has a seed of its own
