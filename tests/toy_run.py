"""A run of next to nothing, as one of several processes: `python tests/toy_run.py` with the command's own options.

Five queries that are doubled, and the training of twelve numbers. With `--call=N` and `--signal=NUMBER` the process
with `--victim=I` sends itself that signal at the N-th step that it makes.
"""

import os
import pathlib
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cdisc import runtime, signals
from cdisc.app import cli, config, devices, hosts, pipeline
from cdisc.app.stages import pretrain
from cdisc.app.stages.saved import saved_by_query
from cdisc.diffusion.schedule import linear_beta
from cdisc.learning import pretrain as pretrain_lib
from cdisc.networks.backbone import Backbone

STEPS, QUERIES = 40, 5
_CALL = flags.DEFINE_integer("call", 0, "At which step.")
_SIGNAL = flags.DEFINE_integer("signal", 0, "Which signal.")
_VICTIM = flags.DEFINE_integer("victim", 0, "Whose.")


def run(workdir: pathlib.Path, result: str = "last", start: str | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """What is made of the queries, and the average of the numbers trained."""
    options = config.Pretrain(
        steps=STEPS,
        batch_size=6,  # which four devices do not divide
        learning_rate=1e-2,
        warmup_steps=4,
        decay_steps=10,
        weight_decay=1e-4,
        clip_norm=1.0,
        ema_decay=0.9,
        null_dropout=0.1,
        loss="eps",
        accumulate=2,
        save_every=10,
        samples_every=0,
        result=result,
        start=start,
    )
    this = types.SimpleNamespace(
        config=types.SimpleNamespace(pretrain=options, sampling=config.Sampling()),
        path=workdir.joinpath,
        key=lambda stage: jax.random.key(0),
        queries=[types.SimpleNamespace(crc=i, seed=0) for i in range(QUERIES)],
        schedule=linear_beta(1000),
        scheduler=None,
        trace_folder=lambda stage: None,
        content={"config": {"pretrain": {"result": result}}, "data": "", "queries": {}},
        dataset=types.SimpleNamespace(
            train=jnp.arange(9.0).reshape(3, 3) / 9.0,
            train_batch=_draw,
            queries=lambda composition, n: np.full((n, 3), composition / 3.0, np.float32),
            shape=(3,),
            split=types.SimpleNamespace(trained=range(3)),
        ),
        backbone=Backbone(
            apply=lambda params, x, t, embeddings: x * embeddings,
            table=lambda params: params["class_embedding"]["embedding"][:-1],
            null=lambda params: params["class_embedding"]["embedding"][-1],
        ),
    )
    mapped = devices.one_by_one(lambda x, factor: x * factor, num_shared=1)

    def work(indices):
        return devices.unstack(mapped(jnp.asarray(indices, jnp.float32), jnp.float32(2.0)))

    doubled = saved_by_query(this, "discover", True, jax.local_device_count(), work)
    return doubled, np.asarray(pretrain.train_backbone(this, None)["class_embedding"]["embedding"])


def _draw(data, key, batch_size, places):
    labels = jax.random.randint(key, (batch_size,), 0, 3)
    return (data[labels] + jax.random.normal(key, (batch_size, 3)))[places], labels[places]


def init(network, options, key):
    """The numbers before training, in the place of a network's."""
    params = {"class_embedding": {"embedding": jnp.ones((4, 3))}}
    return pretrain_lib.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=pretrain_lib.optimizer(options).init(params),
    )


def _hurt(training_step):
    """The step, which hurts its process when the time has come."""

    def compile_step(known):
        step, calls = training_step(known), iter(range(1, STEPS + 1))

        def hurting(*given):
            made = next(calls)
            if jax.process_index() == _VICTIM.value and 0 < _CALL.value <= made:
                if made == _CALL.value:
                    os.kill(os.getpid(), _SIGNAL.value)
                time.sleep(0.3)  # JAX looks once a second, and then asks the others
            return step(*given)

        return hurting

    return compile_step


def _in_place_of_the_pipeline(config, workdir, stages, queries, **options):
    run(workdir)
    hosts.gather()


if __name__ == "__main__":
    pretrain_lib.init = init
    devices.training_step = _hurt(devices.training_step)
    pipeline.run = _in_place_of_the_pipeline
    signals.install()
    runtime.configure()
    app.run(cli.main, flags_parser=cli.parse)
    sys.exit()
