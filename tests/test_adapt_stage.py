"""The stage that fits the adaptations, on a backbone whose best embedding is known, and the samples that it draws."""

import dataclasses
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import config_of

from cdisc.app import devices
from cdisc.app.config import Sampling, read
from cdisc.app.run import Run, prepare
from cdisc.app.stages import adapt as stage
from cdisc.app.stages import evaluate
from cdisc.data import compositions
from cdisc.data.queries import Query
from cdisc.diffusion import exact
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.schedule import linear_beta
from cdisc.errors import UserError
from cdisc.evaluation import methods
from cdisc.learning import adapt
from cdisc.networks import backbone as backbones
from cdisc.networks import interop, lora

SCHEDULE = linear_beta(1000)
TABLE = jnp.asarray([[1.0, 0.0, 0.0, 0.5], [0.0, -1.0, 0.5, 0.0], [0.5, 0.5, -1.0, 0.0]])


def _apply(params, x, t, embeddings, adapter=None):
    """`eps` of a class that is one picture, whose pixels are its embedding."""
    a = SCHEDULE.alpha_bar[t][:, None, None, None]
    return (x - jnp.sqrt(a) * embeddings.reshape(x.shape)) / jnp.sqrt(1.0 - a)


NO_FACTORS = compositions.CompositionSplit(compositions.Factors((), ()), (), ())
RUN = Run(
    config=None,
    workdir=pathlib.Path(),
    dataset=None,
    scheduler=interop.SchedulerConfig(),
    schedule=SCHEDULE,
    network=None,
    backbone=backbones.Backbone(apply=_apply, table=lambda p: p, null=lambda p: p[0]),
    queries=(),
)
CLASSES = ([0, 1, 2], [1, 0, 2])
EXAMPLES = [adapt.Examples(query=TABLE[1].reshape(2, 2, 1), classes=jnp.asarray(classes)) for classes in CLASSES]
KEYS = jnp.stack([jax.random.key(0), jax.random.key(1)])


def _fit(**changes):
    settings = {"pool": "query", "start": "top1", "candidates": 2, "steps": 4, "batch_size": 4}
    options = adapt.AdaptOptions(**(settings | {"embedding_learning_rate": 1e-12} | changes))
    fit = adapt.fitter(RUN.backbone, options, devices.side_by_side)
    found = fit(TABLE, SCHEDULE, *devices.spread((devices.stack(EXAMPLES), KEYS)))
    learnt, losses = devices.gather(found, len(EXAMPLES))
    assert losses.shape == (len(EXAMPLES), options.steps)
    return learnt, losses


def test_each_query_keeps_the_fit_with_the_smaller_loss():
    # Nothing is learnt at rate zero: the fit that starts at the query's own class, here second or first, is exact.
    # So are its losses. Catches: those of the first or the last fit.
    learnt, losses = _fit()
    np.testing.assert_allclose(learnt.embedding, [TABLE[1], TABLE[1]], atol=1e-9)
    np.testing.assert_allclose(losses, 0.0, atol=1e-6)
    learnt, losses = _fit(candidates=1)
    np.testing.assert_allclose(learnt.embedding, [TABLE[0], TABLE[1]], atol=1e-9)
    assert losses[0].min() > 0.1 and losses[1].max() < 1e-6


def test_a_query_alone_learns_what_the_stage_teaches_it():
    # Catches: `fit` with another number of steps or candidates, the first fit or that of the largest loss, other keys.
    changes = {"embedding_learning_rate": 0.05, "candidates": 3, "steps": 5}
    together, _ = _fit(**changes)
    options = adapt.AdaptOptions(pool="query", start="top1", batch_size=4, **changes)
    for place, examples in enumerate(EXAMPLES):
        alone = adapt.Examples(examples.query, classes=examples.classes)
        learnt = adapt.fit(RUN.backbone, TABLE, SCHEDULE, alone, KEYS[place], options)
        np.testing.assert_allclose(learnt.embedding, together.embedding[place], rtol=1e-5, atol=1e-6)


def test_a_query_alone_starts_once_at_each_class_and_ends_at_a_loss_that_is_not_finite(monkeypatch):
    # Catches: the last class again and again, NaN as the smallest loss, another step in the sentence.
    late, late_loss = [], adapt.late_loss
    monkeypatch.setattr(adapt, "late_loss", lambda losses: late.append(float(losses[-1])) or late_loss(losses))
    options = adapt.AdaptOptions(
        pool="query", start="top1", candidates=5, steps=3, batch_size=1, embedding_learning_rate=1e-12
    )
    adapt.fit(RUN.backbone, TABLE, SCHEDULE, EXAMPLES[0], KEYS[0], options)
    assert len(late) == len(set(late)) == 3
    endless = dataclasses.replace(options, embedding_learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        adapt.fit(RUN.backbone, TABLE, SCHEDULE, EXAMPLES[0], KEYS[0], endless)


def test_a_loss_that_is_not_finite_is_named_with_its_step(monkeypatch, tmp_path):
    endless = {**TAUGHT, "pool": "query", "steps": 3, "embedding_learning_rate": 1e30}
    with pytest.raises(UserError, match="embedding: the loss is not finite at step 2"):
        _stage(tmp_path, monkeypatch, [EXAMPLES[0].query], {"embedding": endless})


def test_samples_do_not_depend_on_their_batches_nor_do_programs_on_how_many_there_are(monkeypatch):
    # Catches: noise drawn for each batch by itself, padding left in, densities mixed up, all samples in one batch.
    sample, compiled = methods.ddim, []

    def recorded(eps_fn, schedule, x, **options):
        compiled.append(x.shape[0])
        return sample(eps_fn, schedule, x, **options)

    monkeypatch.setattr(methods, "ddim", recorded)
    config = types.SimpleNamespace(sampling=Sampling(num_steps=3, clip=None, batch=4))
    dataset = types.SimpleNamespace(shape=(2,))
    run = dataclasses.replace(RUN, config=config, dataset=dataset, backbone=backbones.mixture(SCHEDULE))
    means = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]])
    mixture = exact.GaussianMixture(weights=jnp.full(2, 0.5), means=means, variances=jnp.full((2, 2), 0.1))
    densities = [methods.GuidedDensity(embeddings=jnp.eye(2)[i][None], weights=jnp.ones(1)) for i in range(2)]
    keys = [jax.random.key(i) for i in range(2)]
    few = stage.draw(run, mixture, densities, keys, 10)
    np.testing.assert_allclose(few.mean(axis=1), means, atol=0.5)
    assert len(np.unique(few[..., 0])) == 20
    assert stage.draw(run, mixture, densities, keys, 40).shape == (2, 40, 2)
    assert compiled == [4]
    config.sampling = Sampling(num_steps=3, clip=None, batch=16)
    np.testing.assert_allclose(stage.draw(run, mixture, densities, keys, 10), few, atol=1e-5)
    assert compiled == [4, 10]


def _stage(workdir, monkeypatch, pictures, levels, chunk=1, params=TABLE, methods_=None, split=None, **guidance):
    """The stage on a run of these queries: the run, what it left, and the densities of the samples to learn from.

    A query's teacher sits at the query, and so do the samples that are learnt from.
    """
    config = config_of("mixture.py")
    config.guidance.update(w0=3.0, w_max=4.0, elementwise=True)
    config.adapt.update(guidance=guidance or config.adapt.guidance, class_draws=1, chunk=chunk, levels=levels)
    config.adapt.update(composed_draws=24, composed_noise_levels=(0.25, 0.75))
    config.evaluate.methods = methods_ or {}
    queries = tuple(Query(f"picture {i}", np.asarray(x), None, "a test", 0) for i, x in enumerate(pictures))
    shape = queries[0].image.shape
    known = lambda data, key, count, rows: (jnp.zeros((count, *shape)), jnp.zeros(count, jnp.int32))  # noqa: E731
    dataset = types.SimpleNamespace(
        fingerprint="", shape=shape, train=None, train_batch=known, split=split or NO_FACTORS
    )
    backbone = dataclasses.replace(RUN.backbone, num_blocks=0 if split is None else 1)
    run = dataclasses.replace(
        RUN, config=read(config), workdir=workdir, dataset=dataset, queries=queries, backbone=backbone
    )
    teachers = [Gaussian(mean=jnp.asarray(q.image), variance=jnp.full_like(q.image, 0.1)) for q in queries]
    drawn = []

    def recorded(this, params, densities, keys, count):
        drawn.extend(densities)
        return np.stack([np.repeat(np.asarray(d.teacher.mean)[None], count, axis=0) for d in densities])

    monkeypatch.setattr(stage, "draw", recorded)
    found = [types.SimpleNamespace(teacher=teacher) for teacher in teachers]
    return run, list(stage.adapt(run, params, found, True)), drawn


def _losses(run, query, level):
    lines = map(json.loads, (run.workdir / "adapt" / f"query_{query:04d}.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["level"] == level]


TAUGHT = {"pool": "teacher", "start": "top1", "steps": 1, "batch_size": 1, "embedding_learning_rate": 1e-12}


def test_the_samples_that_are_learnt_from_have_a_guidance_of_their_own(monkeypatch, tmp_path):
    # Catches: the pool under the guidance of the reported samples, or the other way round, or a field left out.
    weights = {"w0": 1.5, "w_max": 2.5, "elementwise": False}
    fields = {"guidance": 2.5, "class_sigma_min": 0.25, "class_sigma_max": 12.0}
    fields |= {"teacher_weight": 0.5, "teacher_sigma_min": 0.75}
    chosen = {"new": {"level": "taught"} | fields}
    query = EXAMPLES[0].query
    run, models, drawn = _stage(tmp_path, monkeypatch, [query], {"taught": TAUGHT}, methods_=chosen, **weights)
    shown = evaluate.densities_of(run, TABLE, run.queries[0], models[0])
    found = [(float(r.teacher_weight), r.w_max, r.elementwise) for r in (*drawn, shown["poe"])]
    assert found == [(1.5, 2.5, False), (3.0, 4.0, True)]
    assert float(shown["new"].weights[0]) == fields.pop("guidance")
    assert {name: getattr(shown["new"], name) for name in fields} == fields
    (row,) = map(json.loads, (tmp_path / "adapt" / "query_0000.jsonl").read_text().splitlines())
    assert (row["level"], row["step"]) == ("taught", 1) and row["loss"] > 0.0
    assert (shown["top1"].w_max, shown["top1"].elementwise) == (4.0, True)  # as of every teacher beside a class


@pytest.mark.parametrize("chunk", [1, 2])
def test_each_query_has_what_its_own_picture_teacher_and_samples_taught(monkeypatch, tmp_path, chunk):
    # Catches: the teacher, losses, pool, start or result of another query, or of another chunk's.
    pictures = [TABLE[i].reshape(2, 2, 1) + 0.2 for i in (2, 0, 1)]
    fast = {**TAUGHT, "steps": 60, "embedding_learning_rate": 0.2, "decay": True, "batch_size": 200}
    levels = {"seen": {**fast, "pool": "query"}, "taught": fast, "on": {**TAUGHT, "after": "seen"}}
    run, models, _ = _stage(tmp_path, monkeypatch, pictures, levels, chunk)
    assert len(models) == 3
    for i, (model, picture, nearest) in enumerate(zip(models, pictures, (2, 0, 1), strict=True)):
        np.testing.assert_array_equal(model.teacher.mean, picture)
        assert np.argmin(model.losses) == nearest
        for name in levels:
            np.testing.assert_allclose(model.adaptations[name].embedding, np.ravel(picture), atol=0.1, err_msg=name)
        assert [len(_losses(run, i, name)) for name in levels] == [60, 60, 1]
        seen, on = (model.adaptations[name].embedding for name in ("seen", "on"))
        np.testing.assert_allclose(on, seen, atol=1e-6)


def test_each_query_is_read_as_a_sum_of_its_own_parts(monkeypatch, tmp_path):
    # Catches: the composition of another query, of the nearest trained class, or of the class table's rows as they are;
    # an adaptation that starts elsewhere, no row for it among the methods, and draws or noise levels of its own choice.
    asked, real = [], stage.composition.of_picture
    monkeypatch.setattr(stage.composition, "of_picture", lambda *given, **how: asked.append(how) or real(*given, **how))
    factors = compositions.Factors(("across", "down"), (("left", "right"), ("up", "down", "flat")))
    split = compositions.split(factors, ["across=right down=up", "across=left down=flat"])
    across, down = np.eye(4)[:2], np.array([[0, 0, 1, 0.0], [0, 0, 0, 1], [0, 0, -0.5, 0.5]])
    params = jnp.asarray([across[i] + down[j] for i, j in split.trained], jnp.float32)
    pictures = [jnp.asarray(across[i] + down[j], jnp.float32).reshape(2, 2, 1) for i, j in split.held_out]
    levels = {"on": {**TAUGHT, "pool": "query", "start": "composed"}}
    run, models, _ = _stage(tmp_path, monkeypatch, pictures, levels, 2, params, split=split)
    for query, model, composition in zip(run.queries, models, split.held_out, strict=True):
        np.testing.assert_array_equal(model.composed.composition, composition)
        for embedding in (model.composed.embedding, model.adaptations["on"].embedding):
            np.testing.assert_allclose(embedding, np.ravel(query.image), atol=1e-4)
        shown = evaluate.densities_of(run, params, query, model)["composed"]
        np.testing.assert_allclose(shown.embeddings[0], np.ravel(query.image), atol=1e-4)
    assert all((how["num_draws"], how["noise_levels"]) == (24, (0.25, 0.75)) for how in asked) and asked


def test_every_step_query_and_adaptation_draws_noise_of_its_own(monkeypatch, tmp_path):
    # The queries are equally far from their class, and nothing is learnt: losses differ by their timesteps alone.
    # Catches: one key for all steps, for all queries of a chunk, or for an adaptation and the one after it.
    table = jnp.asarray([[1.0] * 4, [-1.0] * 4])
    pictures = [jnp.full((2, 2, 1), 0.5), jnp.full((2, 2, 1), -0.5)]
    first = {**TAUGHT, "pool": "query", "steps": 3}
    levels = {"first": first, "second": {**first, "after": "first"}, "again": first}
    run, models, _ = _stage(tmp_path, monkeypatch, pictures, levels, chunk=2, params=table)
    for model, row in zip(models, table, strict=True):
        np.testing.assert_allclose(model.adaptations["second"].embedding, row, atol=1e-6)
    seen = [loss for query in (0, 1) for name in levels for loss in _losses(run, query, name)]
    assert len(seen) == 18 and len(set(seen)) == 18


def test_what_a_method_samples_is_what_was_learnt_at_its_scale_beside_its_own_teacher(monkeypatch, tmp_path):
    # Catches: LoRA without its scale, another adaptation's embedding, weights or noise levels of the teacher mixed up,
    # a teacher left beside Top-1 or a method without one.
    def apply(params, x, t, embeddings, adapter=None):
        merged = params if adapter is None else lora.merge(params, adapter)
        return _apply(params["table"], x @ merged["layer"]["kernel"], t, embeddings)

    model = backbones.Backbone(apply=apply, table=lambda p: p["table"], null=lambda p: p["table"][0])
    monkeypatch.setitem(globals(), "RUN", dataclasses.replace(RUN, backbone=model))
    params = {"table": TABLE, "layer": {"kernel": jnp.eye(1)}}
    levels = {
        "plain": {**TAUGHT, "pool": "query"},
        "low_rank": {**TAUGHT, "after": "plain", "rank": 2, "alpha": 6.0, "learning_rate": 0.1},
    }
    chosen = {
        "alone": {"level": "plain", "guidance": 2.0},
        "beside": {"level": "low_rank", "guidance": 1.5, "teacher_weight": 0.4, "teacher_sigma_min": 0.8},
    }
    run, (learnt,), _ = _stage(tmp_path, monkeypatch, [EXAMPLES[0].query], levels, params=params, methods_=chosen)
    found = evaluate.densities_of(run, params, run.queries[0], learnt)
    beside, alone = found["beside"], found["alone"]
    assert beside.adapter.scale == 3.0
    assert any(np.any(leaf) for leaf in jax.tree.leaves(beside.adapter))
    assert beside.adapter is learnt.adaptations["low_rank"].adapter and not alone.adapter.factors
    for density, name, values in ((beside, "low_rank", (1.5, 0.4, 0.8)), (alone, "plain", (2.0, 0.0, 0.0))):
        np.testing.assert_array_equal(density.embeddings[0], learnt.adaptations[name].embedding)
        given = (density.weights[0], density.teacher_weight, density.teacher_sigma_min)
        np.testing.assert_allclose(given, values, rtol=1e-6)
    assert found["top1"].teacher_weight == 0.0 and found["top3"].teacher is None
    np.testing.assert_array_equal(found["top1"].embeddings[0], TABLE[1])
    # As the network computes it: with the scale of its own.
    x, t = jax.random.normal(KEYS[0], (2, 2, 2, 1)), jnp.asarray([100, 800])
    eps = methods.guided_eps(model, params, SCHEDULE, beside.replace(teacher=None))(x, t)
    factors = beside.adapter.factors["layer"]
    kernel = {"kernel": params["layer"]["kernel"] + 3.0 * factors["a"] @ factors["b"]}
    null, given = (
        _apply(TABLE, x @ kernel["kernel"], t, jnp.tile(e[None], (2, 1))) for e in (TABLE[0], beside.embeddings[0])
    )
    np.testing.assert_allclose(eps, null + 1.5 * (given - null), rtol=1e-3, atol=1e-3)


def test_pictures_of_trained_classes_reach_the_steps_that_ask_for_them(monkeypatch, tmp_path):
    # The query is its class and nothing is learnt, so the loss is that of the known pictures, which are not their
    # class's. Catches: an adaptation that is fitted without them, or with them where they have no weight.
    alone = {**TAUGHT, "pool": "query", "steps": 2, "batch_size": 8}
    levels = {"alone": alone, "beside": {**alone, "prior_weight": 1.0}}
    run, _, _ = _stage(tmp_path, monkeypatch, [EXAMPLES[0].query], levels)
    assert max(_losses(run, 0, "alone")) < 1e-6 and min(_losses(run, 0, "beside")) > 0.01


def test_a_network_that_gives_no_numbers_is_named_with_the_query(monkeypatch, tmp_path):
    # Catches: the first class taken for the best of losses that are all NaN.
    with pytest.raises(UserError, match=r"no class has a loss for picture 0: the network's output is NaN"):
        _stage(tmp_path, monkeypatch, [EXAMPLES[0].query], {"taught": TAUGHT}, params=jnp.full((3, 4), jnp.nan))


def test_fields_of_a_guidance_are_checked_before_any_work(tmp_path):
    # As a configuration file of one's own may have them. Catches: leaving out either check.
    for of in (lambda config: config, lambda config: config.adapt):
        config = config_of("mixture.py")
        of(config).guidance.weight = 1.0
        with pytest.raises(UserError, match=r"guidance\.weight does not exist"):
            prepare(read(config), tmp_path, [])
