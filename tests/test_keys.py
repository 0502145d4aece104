"""Keys by name, and that no use of randomness shares its key with another."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT

from cdisc.diffusion import exact
from cdisc.diffusion.schedule import linear_beta
from cdisc.evaluation import baselines, judge
from cdisc.keys import named
from cdisc.learning import adapt, pretrain
from cdisc.networks import lora
from cdisc.networks.backbone import Backbone

SCHEDULE = linear_beta(50)


def _apply(params, x, t, embeddings, adapter=None):
    weight = lora.merge(params, adapter or lora.Adapter())["layer"]["kernel"]
    return x @ weight + jnp.sum(embeddings)


BACKBONE = Backbone(apply=_apply, table=lambda p: jnp.eye(3), null=lambda p: jnp.zeros(3), num_blocks=2)
PARAMS = {"layer": {"kernel": jnp.eye(2)}}


@pytest.fixture
def drawn(monkeypatch):
    """The keys from which anything was drawn, as numbers."""
    used = []
    for name in ("normal", "uniform", "randint", "bernoulli", "categorical"):
        draw = getattr(jax.random, name)

        def recorded(key, *args, _draw=draw, **kwargs):
            used.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            return _draw(key, *args, **kwargs)

        monkeypatch.setattr(jax.random, name, recorded)
    return used


def _adapt(key, options):
    pool = jnp.ones((4, 2, 2, 2))
    examples = adapt.Examples(query=jnp.ones((2, 2, 2)), pool=pool, classes=jnp.asarray([1, 0, 2]))
    prior = adapt.Prior(images=pool, labels=jnp.zeros(4, jnp.int32))
    state = adapt.init(BACKBONE, PARAMS, examples, key, options)
    for _ in range(2):
        state, _ = adapt.step(state, BACKBONE, PARAMS, SCHEDULE, examples, prior, key, options)


def test_nothing_in_learning_is_drawn_from_a_key_twice(drawn):
    # Catches: a start and steps that share keys, the same noise at every step or for every query, prior and batch
    # under one key, an adaptation that replays the draws of the one before.
    options = adapt.AdaptOptions(
        pool="both",
        start="normal",
        rank=1,
        alpha=1.0,
        steps=3,
        batch_size=2,
        learning_rate=0.1,
        embedding_learning_rate=0.1,
        null_dropout=0.2,
        prior_weight=1.0,
    )
    for query in range(2):
        key = named(jax.random.key(0), "query", query)
        baselines.class_losses(BACKBONE, PARAMS, SCHEDULE, jnp.ones((2, 2, 2)), named(key, "compare"), num_draws=2)
        for name in ("first", "second"):
            _adapt(named(key, f"fit {name}"), options)
    # 2 for the classes; for each adaptation 2 to begin, and 8 a step: 5 of the batch and 3 of the prior's.
    assert len(drawn) == 2 * (2 + 2 * (2 + 2 * 8))
    assert len(set(drawn)) == len(drawn)


def test_nothing_in_training_is_drawn_from_a_key_twice(drawn):
    # Catches: pictures and noise of a step, or of two steps, under one key; the judge's augmentation under its batch's.
    key = jax.random.key(0)
    for step in range(3):
        pictures, noise = pretrain.keys(named(key, "pretrain"), step)
        jax.random.normal(pictures)
        jax.random.normal(noise)
        options = pretrain.PretrainOptions(
            steps=3, batch_size=2, learning_rate=0.1, warmup_steps=1, decay_steps=1, weight_decay=0.0, clip_norm=1.0,
            ema_decay=0.9, null_dropout=0.1, loss="eps",
        )  # fmt: skip
        state = pretrain.TrainState(step=jnp.int32(step), params={}, ema={}, opt_state=())
        pretrain.draw(state, named(key, "pretrain"), (2, 2, 1), options=options, schedule=SCHEDULE)
        step_key = named(named(key, "judge"), "step", step)
        judge.augment(named(step_key, "augment"), jnp.ones((2, 4, 4, 1)), noise=0.1, max_shift=1)
    assert len(drawn) == 3 * (2 + 3 + 3)
    assert len(set(drawn)) == len(drawn)


def test_a_sample_s_component_and_its_noise_have_keys_of_their_own(drawn):
    # Catches: one key for both, by which a component's samples would share a part of their noise.
    mixture = exact.GaussianMixture(weights=jnp.full(2, 0.5), means=jnp.zeros((2, 3)), variances=jnp.ones((2, 3)))
    exact.sample(mixture, jax.random.key(0), 4)
    assert len(drawn) == len(set(drawn)) == 2


@pytest.mark.parametrize("key", [3, jnp.uint32(3), None, np.zeros(2, np.uint32)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match=r"^the key is .*: give one made by jax\.random\.key\(seed\)\.$"):
        named(key, "name")


RUN = """
import collections, json, pathlib, sys

from cdisc import runtime

runtime.configure()
import jax, numpy as np

drawn = collections.defaultdict(collections.Counter)


def recorded(draw):
    def record(key, *args, **kwargs):
        code = sys._getframe(1).f_code
        where = f"{pathlib.Path(code.co_filename).stem}.{code.co_qualname.split('.')[0]}"
        data = jax.random.key_data(key)
        jax.debug.callback(lambda data: drawn[np.asarray(data).tobytes()].update([where]), data)
        return draw(key, *args, **kwargs)

    return record


for name in ("normal", "uniform", "randint", "bernoulli", "rademacher", "permutation", "choice", "categorical"):
    setattr(jax.random, name, recorded(getattr(jax.random, name)))

from cdisc.app import pipeline
from cdisc.app.config import read
from cdisc.configs import mixture

config = mixture.get_config()
config.discover.update(timesteps=(100, 300), starts_per_t=4, max_steps=10, lanes=4, capacity=4, max_residual=1.0)
config.discover.hierarchy = ()
config.sampling.num_steps = 2
config.adapt.class_draws = 2
config.evaluate.update(num_queries=2, samples=4, references=4)
pipeline.run(read(config), pathlib.Path(sys.argv[1]), ["pretrain", "discover", "adapt", "evaluate"], [])
jax.effects_barrier()
print(json.dumps(list(drawn.values())))
"""


def test_no_two_uses_of_randomness_in_a_run_share_a_key(tmp_path):
    # The one exception is meant: all methods of a query are sampled from the same noise, so that they can be compared
    # one by one. Catches: a stage, a query, chains, probes or draws of the product under another use's key.
    ended = subprocess.run([sys.executable, "-c", RUN, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    drawn = json.loads(ended.stdout.splitlines()[-1])
    once = [next(iter(uses)) for uses in drawn if sum(uses.values()) == 1]
    assert {"modes.starts", "modes.normal_each", "baselines.class_losses", "gaussian.Gaussian"} <= set(once)
    methods = ("poe", "top1", "top3", *("query_only",) * 3)
    assert [uses for uses in drawn if sum(uses.values()) > 1] == [{"adapt.draw": len(methods)}] * 2
