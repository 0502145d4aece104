"""The judge of a run: bundled, or trained on real pictures and kept in the workdir."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from cdisc import console, storage
from cdisc.app import checkpoints
from cdisc.app.run import Run
from cdisc.app.stages.saved import keep, kept
from cdisc.data import planar
from cdisc.evaluation import judge, protocol
from cdisc.keys import named
from cdisc.networks import bundled

_JUDGED = 1000
"""Real pictures on which the judge is tested."""


def judge_network(run: Run) -> judge.JudgeNetwork:
    """The classifier with one head for each factor."""
    return judge.JudgeNetwork(num_values=run.dataset.split.factors.sizes)


def train_judge(run: Run) -> judge.Params:
    """The judge's parameters, trained on real pictures of every composition."""
    settings, network = run.config.evaluate.judge, judge_network(run)
    key = named(jax.random.key(settings.seed), "judge")
    images, attributes = run.dataset.labelled("train", settings.pictures, settings.seed)
    data = judge.Labelled(jnp.asarray(images), jnp.asarray(attributes))
    params = judge.init(network, named(key, "init"), run.dataset.shape)
    console.say(f"evaluate: training the judge, {settings.steps} steps")
    return judge.train(network, params, judge.draw, data, named(key, "train"), steps=settings.steps)[0]


def load_judge(run: Run) -> judge.Judge:
    """The judge of the samples: exact for points, and for data without factors, of which there is nothing to tell.

    For pictures it is restored, bundled or trained on real ones.
    """
    factors, data = run.dataset.split.factors, run.config.data
    if isinstance(data, planar.Options):
        return judge.nearest_level_judge(factors.names, (data.levels, data.levels), data.stds if data.widths else None)
    if not factors.names:
        return judge.nearest_level_judge((), ())
    path = run.path("evaluate", "judge")
    if not checkpoints.exists(path):
        init = functools.partial(judge.init, judge_network(run), shape=run.dataset.shape)
        like = jax.eval_shape(init, jax.random.key(0))
        keep(path, bundled_judge(run, like) or train_judge(run), judge_about(run))
    return judge.network_judge(judge_network(run), kept(path, judge_about(run)), factors.names)


def bundled_judge(run: Run, like: judge.Params) -> judge.Params | None:
    """The bundled judge; None where there is none, or it was trained otherwise or on other data."""
    if not run.config.evaluate.judge.bundle:
        return None
    try:
        return bundled.restore_npz(judge_bundle(run), like, judge_about(run))
    except bundled.OtherError:
        console.warn(
            f"the judge {run.config.evaluate.judge.bundle} was trained otherwise or on other data: this run trains "
            "one of its own, and figures by the two are not comparable."
        )
        return None


def judge_report(run: Run, judged_by: judge.Judge) -> dict[str, Any]:
    """How a trained judge does on real pictures of the query part, none of which it has seen."""
    images, attributes = run.dataset.labelled("query", _JUDGED, 0)
    found = protocol.calibration(judged_by, jnp.asarray(images), jnp.asarray(attributes))
    single = ", ".join(f"{name} {share:.1%}" for name, share in found["attribute_accuracy"].items())
    console.say(f"evaluate: of unseen real pictures the judge has {found['joint_accuracy']:.1%} right ({single})")
    return found


def judge_bundle(run: Run) -> pathlib.Path:
    """Where the bundled judge lies."""
    return bundled.FOLDER / f"{run.config.evaluate.judge.bundle}.npz"


def judge_about(run: Run) -> dict[str, str]:
    """What must match for a bundled judge to be used."""
    settings = {name: value for name, value in vars(run.config.evaluate.judge).items() if name != "bundle"}
    return {"config": storage.digest(settings), "data": run.dataset.fingerprint}
