"""The stage that fits the levels, on a backbone whose best embedding is known, and the samples that it draws."""

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
from cdisc.app import run as run_lib
from cdisc.app.config import Sampling, read
from cdisc.app.run import Query, Run, prepare
from cdisc.app.stages import adapt as stage
from cdisc.app.stages import evaluate
from cdisc.diffusion import exact
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.schedule import linear_beta
from cdisc.errors import UserError
from cdisc.evaluation import methods
from cdisc.learning import adapt
from cdisc.networks import backbone as backbones
from cdisc.networks import interop

SCHEDULE = linear_beta(1000)
TABLE = jnp.asarray([[1.0, 0.0, 0.0, 0.5], [0.0, -1.0, 0.5, 0.0], [0.5, 0.5, -1.0, 0.0]])


def _apply(params, x, t, embeddings, adapter=None):
    """`eps` of a class that is one picture, whose pixels are its embedding."""
    a = SCHEDULE.alpha_bar[t][:, None, None, None]
    return (x - jnp.sqrt(a) * embeddings.reshape(x.shape)) / jnp.sqrt(1.0 - a)


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
    compiled = stage.compiled_level(RUN, options)
    learnt, losses = stage.fit_level(compiled, TABLE, devices.stack(EXAMPLES), None, KEYS, "embedding", options)
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
    begun, init = [], adapt._init
    monkeypatch.setattr(adapt, "_init", lambda *given: begun.append(given[-1]) or init(*given))
    options = adapt.AdaptOptions(
        pool="query", start="top1", candidates=5, steps=3, batch_size=1, embedding_learning_rate=1e-12
    )
    adapt.fit(RUN.backbone, TABLE, SCHEDULE, EXAMPLES[0], KEYS[0], options)
    assert begun == [0, 1, 2]
    endless = dataclasses.replace(options, embedding_learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        adapt.fit(RUN.backbone, TABLE, SCHEDULE, EXAMPLES[0], KEYS[0], endless)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    with pytest.raises(UserError, match="the loss of level embedding is not finite at step 2"):
        _fit(embedding_learning_rate=1e30)


def test_samples_do_not_depend_on_their_batches_nor_do_programs_on_how_many_there_are(monkeypatch):
    # Catches: noise drawn for each batch by itself, padding left in, recipes mixed up, all samples in one batch.
    sample, compiled = run_lib.ddim, []

    def recorded(eps_fn, schedule, x, **options):
        compiled.append(x.shape[0])
        return sample(eps_fn, schedule, x, **options)

    monkeypatch.setattr(run_lib, "ddim", recorded)
    config = types.SimpleNamespace(sampling=Sampling(num_steps=3, clip=None, batch=4))
    dataset = types.SimpleNamespace(shape=(2,))
    run = dataclasses.replace(RUN, config=config, dataset=dataset, backbone=backbones.mixture(SCHEDULE))
    means = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]])
    mixture = exact.GaussianMixture(weights=jnp.full(2, 0.5), means=means, variances=jnp.full((2, 2), 0.1))
    recipes = [methods.Recipe(embeddings=jnp.eye(2)[i][None], weights=jnp.ones(1)) for i in range(2)]
    keys = [jax.random.key(i) for i in range(2)]
    few = stage.draw(run, mixture, recipes, keys, 10)
    np.testing.assert_allclose(few.mean(axis=1), means, atol=0.5)
    assert len(np.unique(few[..., 0])) == 20
    assert stage.draw(run, mixture, recipes, keys, 40).shape == (2, 40, 2)
    assert compiled == [4]
    config.sampling = Sampling(num_steps=3, clip=None, batch=16)
    np.testing.assert_allclose(stage.draw(run, mixture, recipes, keys, 10), few, atol=1e-5)
    assert compiled == [4, 10]


def test_the_samples_that_are_learnt_from_have_a_guidance_of_their_own(monkeypatch, tmp_path):
    # Catches: the pool under the guidance of the reported samples, or the other way round, or a field left out.
    config = config_of("mixture.py")
    config.guidance.update(w0=3.0, w_max=4.0, elementwise=True)
    config.adapt.update(guidance={"w0": 1.5, "w_max": 2.5, "elementwise": False}, class_draws=1)
    config.adapt.levels.taught = {"pool": "teacher", "start": "top1", "steps": 1, "batch_size": 1}
    config.adapt.levels.taught.embedding_learning_rate = 1e-12
    fields = {"guidance": 2.5, "class_sigma_min": 0.25, "class_sigma_max": 12.0}
    fields |= {"teacher_weight": 0.5, "teacher_sigma_min": 0.75}
    config.evaluate.methods.new = {"level": "taught"} | fields
    query = Query("picture", np.asarray(EXAMPLES[0].query), None, "a test")
    dataset = types.SimpleNamespace(shape=query.image.shape)
    run = dataclasses.replace(RUN, config=read(config), workdir=tmp_path, dataset=dataset, queries=(query,))
    image = jnp.asarray(query.image)
    teacher = Gaussian(mean=image, variance=jnp.ones_like(image))
    drawn = []

    def recorded(this, params, recipes, keys, count):
        drawn.extend(recipes)
        return np.zeros((len(recipes), count, *this.dataset.shape), np.float32)

    monkeypatch.setattr(stage, "draw", recorded)
    models = stage.adapt(run, TABLE, [types.SimpleNamespace(teacher=teacher)], True)
    shown = evaluate.recipes_of(run, TABLE, query, models[0])
    found = [(float(r.teacher_weight), r.w_max, r.elementwise) for r in (*drawn, shown["poe"])]
    assert found == [(1.5, 2.5, False), (3.0, 4.0, True)]
    assert float(shown["new"].weights[0]) == fields.pop("guidance")
    assert {name: getattr(shown["new"], name) for name in fields} == fields
    (row,) = map(json.loads, (tmp_path / "adapt" / "query_0000.jsonl").read_text().splitlines())
    assert (row["level"], row["step"]) == ("taught", 1) and row["loss"] > 0.0
    assert (shown["top1"].w_max, shown["top1"].elementwise) == (4.0, True)  # as of every teacher beside a class


def test_fields_of_a_guidance_are_checked_before_any_work(tmp_path):
    # As a configuration file of one's own may have them. Catches: leaving out either check.
    for of in (lambda config: config, lambda config: config.adapt):
        config = config_of("mixture.py")
        of(config).guidance.weight = 1.0
        with pytest.raises(UserError, match=r"guidance\.weight does not exist"):
            prepare(read(config), tmp_path, [])
