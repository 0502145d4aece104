"""The evaluation of what was drawn: queries of one class, few samples, and a stop on the way."""

import dataclasses
import json
import re
import shutil
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest
from commands import config_of

from cdisc import errors, signals
from cdisc.app import run
from cdisc.app.config import read
from cdisc.app.report import results as results_lib
from cdisc.app.stages import benchmark, report
from cdisc.app.stages import evaluate as stage
from cdisc.app.stages import judge as judge_stage
from cdisc.app.stages.judge import bundled_judge, judge_about, judge_bundle, load_judge
from cdisc.data import compositions, planar
from cdisc.discovery import concepts
from cdisc.evaluation import metrics, protocol
from cdisc.networks import bundled


def nothing(i):
    """A discovery of query `i` that found nothing, and counted what no other one did."""
    counts = (np.int32(10 * i + n) for n in range(1, 6))
    info = concepts.DiscoveryInfo(
        *counts, *(np.float32(n / 8) for n in range(4)), np.int32(i + 7), np.arange(50, 401, 50), np.full(8, 0.5)
    )
    return types.SimpleNamespace(
        pool=types.SimpleNamespace(mask=(True,)),
        selection=types.SimpleNamespace(indices=(), gains=(), mask=()),
        info=info,
        found=True,
    )


@pytest.fixture
def prepared(tmp_path):
    """A run on the plane: six queries of the first held-out class, five of each of the others."""

    def prepare(samples, queries=21):
        config = config_of("mixture.py")
        config.evaluate.update(num_queries=queries, samples=samples, references=12)
        return run.prepare(read(config), tmp_path, [])

    return prepare


def drawn_of(this):
    """As samples, copies of the queries and points about the middle, some of them elsewhere."""
    stream, count = np.random.default_rng(0), this.config.evaluate.samples
    return [
        {
            "copies": np.repeat(query.image[None], count, 0) + np.float32(1e-3),
            "wide": stream.normal(0.0, 0.7, (count, 2)).astype(np.float32),
        }
        for query in this.queries
    ]


def written(this, drawn):
    stage.write_results(this, [nothing(i) for i in range(len(drawn))], drawn, load_judge(this))
    return results_lib.read(this.path("results.json"))


def test_one_sample_of_each_query_is_measured_by_classes(prepared):
    # The paper's protocol. Catches: a traceback, real pictures pooled, samples of one class compared with another's,
    # errors over queries.
    this = prepared(samples=1)
    drawn = drawn_of(this)
    results = written(this, drawn)
    for i in (0, 20):
        assert results["queries"][i]["nfe"] == i + 7
        found = list(results["queries"][i]["discovery"].values())
        at = [list(range(50, 401, 50)), [0.5] * 8]
        assert found == [*range(10 * i + 1, 10 * i + 6), 0.0, 0.125, 0.25, 0.375, *at]
    assert [query["name"] for query in results["queries"]] == [query.name for query in this.queries]
    for query, known in zip(results["queries"], this.queries, strict=True):
        for figures in query["methods"].values():
            assert figures["precision"] is figures["recall"] is figures["kid"] is None
            assert figures["joint_accuracy"] is not None
        assert query["methods"]["copies"]["distance_to_query"] == pytest.approx(1e-3, rel=1e-2)
        assert query["attributes"] == compositions.attributes(this.dataset.split.factors, known.composition)
    assert "pooled" not in results["methods"][stage.REAL]
    by_class, accuracies = {}, {}
    for i, query in enumerate(this.queries):
        by_class.setdefault(query.composition, []).append(i)
        found = results["queries"][i]["methods"]["wide"]["joint_accuracy"]
        accuracies.setdefault(query.composition, []).append(found)
    assert sorted(map(len, by_class.values())) == [5, 5, 5, 6]
    means = [np.mean(found) for found in accuracies.values()]
    wide = results["methods"]["wide"]
    assert wide["joint_accuracy"] == pytest.approx(np.mean(means))
    assert wide["standard_error"]["joint_accuracy"] == pytest.approx(np.std(means, ddof=1) / 2)
    for name in ("copies", "wide"):
        pooled = results["methods"][name]["pooled"]
        assert pooled["classes"] == 4
        for comparison in protocol.COMPARISONS:
            precisions = []
            for composition, places in by_class.items():
                own = np.stack([this.queries[i].image for i in places])
                real = own if comparison == "faithfulness" else this.dataset.references(composition, 12)
                fake = np.concatenate([drawn[i][name] for i in places])
                precisions.append(float(metrics.precision_recall(jnp.asarray(real), jnp.asarray(fake)).precision))
            assert pooled[comparison]["precision"] == pytest.approx(np.mean(precisions))
    assert results["methods"]["copies"]["pooled"]["faithfulness"]["f1"] == 1.0


@pytest.mark.parametrize(("samples", "queries", "classes"), [(5, 4, 0), (1, 12, 0), (2, 6, 2), (1, 14, 2)])
def test_classes_are_pooled_where_several_queries_have_enough_samples(prepared, samples, queries, classes):
    # Catches: a query alone pooled, which says again what it says by itself; too few pooled, with nothing to say.
    this = prepared(samples, queries)
    methods = written(this, drawn_of(this))["methods"]
    assert methods["wide"].get("pooled", {"classes": 0})["classes"] == classes
    assert (methods["wide"]["recall"] is None) == (samples <= 3)


def test_a_stop_between_the_queries(prepared, monkeypatch):
    # Catches: measuring thousands of queries to the end although the time is up.
    this = prepared(samples=1)
    drawn, asked = drawn_of(this), []
    monkeypatch.setattr(signals, "_asked", None)

    class Watched(list):
        def __getitem__(self, index):
            asked.append(index)
            signals.ask(signal.SIGTERM)
            return super().__getitem__(index)

    with pytest.raises(signals.Stopped):
        written(this, Watched(drawn))
    assert len(asked) == 1
    assert not this.path("results.json").exists()


def test_a_stop_between_the_panels_of_the_page(prepared, monkeypatch):
    this = prepared(samples=1)
    monkeypatch.setattr(signals, "_asked", signal.SIGTERM)
    with pytest.raises(signals.Stopped):
        next(report.panels(this, [nothing(0)] * 21, drawn_of(this), {"queries": [{}] * 21}))


def test_the_bundled_judge_is_used_where_it_fits(tmp_path, monkeypatch, capsys):
    # Catches: a judge that comes and goes with the backbone, one of other data, one that is changed without a word.
    config = config_of("colormnist.py", "small")
    this = types.SimpleNamespace(config=read(config), dataset=types.SimpleNamespace(fingerprint="digits"))
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    like = {"x": np.zeros(2, np.float32)}
    bundled.save_npz(judge_bundle(this), {"x": np.ones(2)}, judge_about(this))
    config.pretrain.update(from_scratch=True, bundle="")
    this.config = read(config)
    np.testing.assert_array_equal(bundled_judge(this, like)["x"], [1.0, 1.0])
    this.dataset.fingerprint = "others"
    assert bundled_judge(this, like) is None
    assert re.search(
        "the judge colormnist_small_judge was trained otherwise .* not comparable", capsys.readouterr().err
    )
    config.evaluate.judge.bundle = ""
    this.config = read(config)
    assert bundled_judge(this, like) is None
    assert capsys.readouterr().err == ""


def test_the_judge_is_made_once_and_is_of_its_run(tmp_path, monkeypatch):
    # Catches: training one although one is bundled, another one at each start, one of other data believed.
    factors = types.SimpleNamespace(names=("digit",), sizes=(2,))
    split = types.SimpleNamespace(factors=factors)
    data = types.SimpleNamespace(fingerprint="digits", shape=(8, 8, 3), split=split)
    this = types.SimpleNamespace(config=read(config_of("colormnist.py")), dataset=data, path=tmp_path.joinpath)
    there = iter([{"x": np.ones(2, np.float32)}, None])
    monkeypatch.setattr(judge_stage, "bundled_judge", lambda run, like: next(there))
    monkeypatch.setattr(judge_stage, "train_judge", lambda run: {"x": np.full(2, 5.0, np.float32)})
    monkeypatch.setattr(judge_stage.judge, "init", lambda network, key, shape: {})
    monkeypatch.setattr(judge_stage.judge, "network_judge", lambda network, params, names: (params["x"][0], names))
    assert load_judge(this) == load_judge(this) == (1.0, ("digit",))
    data.fingerprint = "others"
    with pytest.raises(errors.UserError, match=r"judge holds the results of .* another run: delete it and run again"):
        load_judge(this)
    shutil.rmtree(tmp_path / "evaluate" / "judge")
    assert load_judge(this) == (5.0, ("digit",))


@pytest.mark.parametrize("file", ["colormnist.py", "avatars.py", "letters.py"])
def test_the_judges_that_are_bundled_were_trained_as_their_configuration_says(file):
    # Catches: a field that becomes part of what a judge is, and so leaves the bundled ones unused.
    this = types.SimpleNamespace(config=read(config_of(file, "small")), dataset=types.SimpleNamespace(fingerprint=""))
    with np.load(judge_bundle(this), allow_pickle=False) as archive:
        assert str(archive["about:config"]) == judge_about(this)["config"]


def test_each_seed_has_its_own_keys_and_its_own_pools(tmp_path):
    # Catches: one key for a picture under all seeds, samples of several seeds in one pool, whose copies of a query
    # would have no balls; errors over seeds instead of classes; a pool under another's class or seed.
    config = config_of("mixture.py")
    config.evaluate.update(per_class=4, seeds=(5, 8), samples=2, references=12)
    this = run.prepare(read(config), tmp_path, [])
    assert len(this.queries) == 2 * 4 * len(this.dataset.split.held_out)
    first, again = this.queries[0], this.queries[len(this.queries) // 2]
    assert (first.seed, again.seed) == (5, 8) and first.name == again.name.replace("seed 8", "seed 5")
    np.testing.assert_array_equal(first.image, again.image)
    assert (
        this.key("adapt", first)
        != this.key("adapt", again)
        == this.key("adapt", this.queries[-1].__class__(again.name, again.image, None, "", 8))
    )
    results = written(this, drawn_of(this))
    assert [(query["seed"], query["name"]) for query in results["queries"]] == [(q.seed, q.name) for q in this.queries]
    known = {(json.dumps(query["attributes"]), query["seed"]) for query in results["queries"]}
    pooled = [(json.dumps(found["attributes"]), found["seed"]) for found in results["classes"]]
    assert len(pooled) == 2 * len(this.dataset.split.held_out) and set(pooled) == known
    copies = [found["methods"]["copies"]["faithfulness"] for found in results["classes"]]
    assert all(0.0 <= found["recall"] <= 1.0 and found["precision"] == 1.0 for found in copies)
    assert results["methods"]["copies"]["pooled"]["classes"] == len(this.dataset.split.held_out)


def test_a_benchmark_writes_its_tables_and_figures_from_the_results_alone(prepared):
    this = prepared(samples=4)
    written(this, drawn_of(this))
    benchmark.benchmark(this)
    found = {path.name: path.read_bytes() for path in this.path("benchmark").iterdir()}
    assert {"summary.json", "tables.md", "tables.tex", "joint_accuracy.svg"} <= set(found)
    summary = json.loads(found["summary.json"])
    results = results_lib.read(this.path("results.json"))
    for name, row in results["methods"].items():
        assert summary["methods"][name]["joint_accuracy"][0] == pytest.approx(row["joint_accuracy"])
    pooled = results["methods"]["wide"]["pooled"]["generalization"]
    assert summary["pooled"]["generalization"]["wide"]["f1"] == [pooled["f1"], pooled["standard_error"]["f1"]]
    benchmark.benchmark(this)
    assert found == {path.name: path.read_bytes() for path in this.path("benchmark").iterdir()}


def test_references_that_are_queries_or_were_learnt_from_are_refused(prepared, monkeypatch):
    # Catches: a comparison of a query with itself; a check of names instead of pictures.
    this = prepared(samples=4)
    first = this.queries[0]
    of = this.dataset.references
    same = lambda composition, n: np.concatenate([of(composition, n - 1), first.image[None]])  # noqa: E731
    shared = dataclasses.replace(this, dataset=dataclasses.replace(this.dataset, references=same))
    with pytest.raises(errors.UserError, match=f"planar, {first.name}: picture 15 of the references is picture 0 of"):
        written(shared, drawn_of(this))

    def learnt(data, key, count, places):
        points, labels = this.dataset.train_batch(data, key, count, places)
        return points.at[7].set(of(first.composition, 3)[2]), labels

    shared = dataclasses.replace(this, dataset=dataclasses.replace(this.dataset, train_batch=learnt))
    with pytest.raises(errors.UserError, match="picture 7 of what the network learnt from is picture 2 of the ref"):
        written(shared, drawn_of(this))
    monkeypatch.setattr(planar, "load", lambda _: dataclasses.replace(this.dataset, references=same))
    with pytest.raises(errors.UserError, match="is picture 0 of the queries: take one of them out"):
        prepared(samples=4)
