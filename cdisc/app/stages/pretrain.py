"""The backbone: restored, bundled, or trained from scratch."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc import console, signals, storage
from cdisc.app import checkpoints, containers, devices, hosts, watch
from cdisc.app import config as config_lib
from cdisc.app.run import Run
from cdisc.app.stages.saved import keep, kept, meet, unfinished
from cdisc.data import Dataset
from cdisc.data.pictures import Pixels, grid, png
from cdisc.diffusion.sampling import ddim
from cdisc.errors import UserError, about
from cdisc.keys import named
from cdisc.learning import pretrain as pretrain_lib
from cdisc.networks import bundled, denoiser
from cdisc.networks.unet import UNetConfig

_METRICS_EVERY = 50
"""How many steps pass before their metrics are read and written: reading them waits for the device."""

_SAMPLE_CLASSES, _SAMPLES_A_CLASS = 8, 4
"""At most this many columns, and this many rows, of the pictures drawn during training."""

_METRICS = ("loss", "grad_norm", "validation_loss")
"""What is measured of a step; the last one, of some steps alone."""

_VALIDATED = 128
"""At least this many noisy pictures, which training does not use, measure how good the averaged parameters are."""

_TRACED_STEPS = 5
"""Steps in a trace: enough to see what repeats, and a file that can be opened."""


def pretrain(run: Run, active: bool) -> Any:
    """The backbone's parameters: given, restored, bundled or trained."""
    if run.params is not None:
        return run.params
    assert run.network is not None  # an exact score has parameters
    path = run.path("pretrain", "params")
    if not hosts.first_says(checkpoints.exists(path)):
        if not active:
            raise unfinished("pretrain", path)
        params = obtain(run, run.network)
        if hosts.first():
            keep(path, params, weights_about(run))
    meet([path])
    return jax.tree.map(jnp.asarray, kept(path, weights_about(run)))


def obtain(run: Run, network: UNetConfig) -> denoiser.Params:
    """The backbone's parameters of another run, bundled or trained, as the configuration says."""
    if run.config.pretrain.restore:
        return restore_backbone(run)
    if run.config.pretrain.from_scratch:
        return train_backbone(run, network)
    name = run.config.pretrain.bundle
    if not name:
        raise UserError("config.pretrain names no bundled backbone: set --config.pretrain.from_scratch=True.")
    like = jax.eval_shape(functools.partial(denoiser.init, network), run.key("pretrain"))
    params: denoiser.Params = bundled.restore_npz(bundled.FOLDER / f"{name}.npz", like, bundle_about(run))
    console.say(f"pretrain: the bundled backbone {name}")
    return params


def weights_about(run: Run) -> dict[str, str]:
    """What must be the same where a trained backbone is reused; where its data are stored does not count."""
    digest = config_lib.backbone_digest(run.config, ("diffusion", "network", "pretrain"))
    return {"data": run.dataset.fingerprint, "diffusion, network or pretrain": digest}


def restore_backbone(run: Run) -> denoiser.Params:
    """The parameters that another run has trained, in the workdir `config.pretrain.restore`.

    Raises:
      UserError: if none are there, or they were trained otherwise or on other data.
    """
    path = storage.user_path(run.config.pretrain.restore) / "pretrain" / "params"
    try:
        found = containers.restore(path)
    except UserError as error:
        raise UserError(
            f"config.pretrain.restore is {run.config.pretrain.restore!r}: name the --workdir of a run that has "
            f"finished pretrain. {error}"
        ) from error
    for section, digest in weights_about(run).items():
        if found["of"].get(section) != digest:
            raise UserError(
                f"the backbone in {path} was trained with other config.{section} than this run has: use the same "
                "values, or leave config.pretrain.restore out."
            )
    console.say(f"pretrain: the backbone in {path}")
    params: denoiser.Params = found["result"]
    return params


def bundle_about(run: Run) -> dict[str, str]:
    """What must match for a bundled backbone to be used."""
    return {"config": config_lib.backbone_digest(run.config), "data": run.dataset.fingerprint}


def read_share(dataset: Dataset, options: pretrain_lib.PretrainOptions, key: jax.Array) -> Callable[[int], Any]:
    """Reads what this process's devices need of a batch, and no more, on the host.

    Args:
      dataset: the pictures.
      options: the training's.
      key: the training's.

    Returns:
      `steps done -> pictures`, those of the next step as `devices.training_step` takes them.
    """
    places, _ = devices.batch_rows(options.batch_size, options.accumulate)
    host = devices.host_device()
    train, key = jax.device_put((dataset.train, key), host)

    def read(step: int) -> Any:
        with jax.default_device(host):
            key_pictures, _ = pretrain_lib.keys(key, step)
            pictures = dataset.train_batch(train, key_pictures, options.batch_size, places.reshape(-1))
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*places.shape, *leaf.shape[1:]), pictures)

    return read


@flax.struct.dataclass
class Progress:
    """What a checkpoint of training holds: all that its end depends on.

    Attributes:
      state: the training's, after a step.
      best: the averaged parameters of the smallest validation loss until then.
      metrics: (steps, 3) float32, the `_METRICS` of each step until then; NaN where there is none.
    """

    state: pretrain_lib.TrainState
    best: denoiser.Params
    metrics: Any


def train_backbone(run: Run, network: UNetConfig) -> denoiser.Params:
    """Trains the backbone, from its last checkpoint if there is one; returns averaged parameters.

    They are the last ones or, with `config.pretrain.result` "best", those with the smallest validation loss, which the
    first process measures every `save_every` steps; what the others return is of no use then.

    Leaves the last checkpoints in `pretrain/train`, each a `Progress`; in `pretrain/metrics.jsonl` a line for each step
    with its `step`, `loss`, `grad_norm` and perhaps `validation_loss`, which nothing reads again; and in
    `pretrain/samples`, every `samples_every` steps, what the averaged parameters draw. All this is the same whether or
    not the training was interrupted. When a signal stops the run, the current step is saved first.
    """
    options = run.config.pretrain
    key_init, key_train, key_samples, key_validation = (
        named(run.key("pretrain"), use) for use in ("init", "train", "samples", "validation")
    )
    folder, given = run.path("pretrain", "train"), None
    if options.start:
        with about("config.pretrain.start: "):
            given = bundled.start(options.start, network, run.scheduler)

    def begin(key: jax.Array) -> Progress:
        state = pretrain_lib.init(network, options, key)
        if given is not None:
            state = state.replace(params=given, ema=jax.tree.map(jnp.copy, given))
        return Progress(state, state.ema, jnp.full((options.steps, len(_METRICS)), jnp.nan))

    like = jax.eval_shape(begin, key_init)
    found = checkpoints.restore_newest(folder, like) if hosts.first() else None  # it removes damaged ones
    first = hosts.first_says(0 if found is None else int(found.state.step))
    if first > 0:
        newest = checkpoints.step_path(folder, first)
        meet([newest])
        found = checkpoints.restore(newest, like) if found is None else found
        console.say(f"pretrain: goes on at step {first} of {options.steps}")
    else:
        found = begin(key_init)
    state = devices.replicate(found.state)
    best, metrics = jax.tree.map(np.array, (found.best, found.metrics))
    del found  # it is on a device
    step = pretrain_lib.step(run.backbone, options, run.schedule, run.dataset.shape)
    train_step = devices.training_step(step)
    read = read_share(run.dataset, options, key_train)
    every, samples_every = options.save_every, options.samples_every
    draw, validate = class_pictures(run, key_samples), validation(run, options, key_validation)
    metrics_path = run.path("pretrain", "metrics.jsonl")
    if hosts.first():
        board = watch.Board(run.path("pretrain", "tensorboard"))
        # Steps that are repeated write their metrics again.
        storage.write_text(metrics_path, "".join(json.dumps(row) + "\n" for row in metric_rows(metrics[:first])))
    history: list[dict[str, jax.Array]] = []
    left = watch.traced(range(first + 1, options.steps + 1), run.trace_folder("pretrain"), _TRACED_STEPS)
    pictures = read(first)
    for done in console.progress(left, "pretrain", options.steps, first, stops=False):
        state, measured = train_step(state, pictures, key_train)
        if done < options.steps:
            pictures = read(done)  # while the devices work
        history.append(measured)
        stopping = hosts.stopping()
        validating = done % every == 0 or done == options.steps
        saving = validating or stopping
        drawing = samples_every > 0 and (done % samples_every == 0 or done == options.steps)
        if saving or drawing or done % _METRICS_EVERY == 0:
            before = done - len(history)
            metrics[before:done, :2], history = finite_metrics(history, done, folder), []
            if hosts.first():
                if validating:
                    metrics[done - 1, 2] = loss = validate(state.ema)
                    if not (metrics[: done - 1, 2] <= loss).any():
                        best = jax.tree.map(np.array, state.ema)
                rows = metric_rows(metrics[:done], before)
                with metrics_path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
                board.scalars(rows)
                if drawing:
                    picture = draw(state.ema)
                    place = run.path("pretrain", "samples", f"step_{done:08d}.png")
                    storage.write_bytes(place, png(picture))
                    board.image(done, "samples", picture)
                if saving:
                    checkpoints.save_step(folder, done, Progress(state, best, metrics), options.keep)
        if stopping:
            signals.obey()
    return state.ema if options.result == "last" else best


def class_pictures(run: Run, key: jax.Array) -> Callable[[denoiser.Params], Pixels]:
    """A function of parameters that draws some trained classes, a column each, from fixed noise shared by a row."""
    trained = len(run.dataset.split.trained)
    columns, rows = min(_SAMPLE_CLASSES, trained), _SAMPLES_A_CLASS
    labels = jnp.asarray(np.tile(np.rint(np.linspace(0, trained - 1, columns)).astype(np.int32), rows))
    noise = jax.random.normal(key, (rows, *run.dataset.shape))

    @jax.jit
    def draw(params: denoiser.Params) -> jax.Array:
        def eps_fn(x: jax.Array, t: jax.Array) -> jax.Array:
            return run.backbone.apply(params, x, t, denoiser.embed(params, labels))

        x = jnp.repeat(noise, columns, axis=0)
        return ddim(eps_fn, run.schedule, x, **run.config.sampling.ddim_options)

    return lambda params: grid(draw(devices.one_copy(params)), columns=columns)


def validation(run: Run, options: pretrain_lib.PretrainOptions, key: jax.Array) -> Callable[[denoiser.Params], float]:
    """The loss of parameters on pictures of the trained classes that training does not use, always the same ones."""
    trained = run.dataset.split.trained
    count = len(trained) * -(-_VALIDATED // len(trained))
    labels = jnp.arange(count, dtype=jnp.int32) % len(trained)
    x0 = jnp.concatenate([run.dataset.queries(composition, 1) for composition in trained])[labels]
    pictures, batch = (x0, labels), run.config.sampling.batch
    validate = pretrain_lib.validation(run.backbone, run.schedule, options.loss, pictures, key, batch)
    return lambda params: validate(devices.one_copy(params))


def finite_metrics(history: Sequence[dict[str, jax.Array]], done: int, folder: pathlib.Path) -> np.ndarray:
    """The loss and the gradient's norm of the steps up to `done`, a row for each step.

    Raises:
      UserError: if one is not finite; names the step, and the last checkpoint in `folder`.
    """
    block = devices.stack(history)
    rows = np.stack([block[name] for name in _METRICS[:2]], axis=1)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = done + 1 - len(rows) + int(np.argmin(finite))
        kept = checkpoints.steps(folder)
        where = f"the checkpoint of step {kept[-1]} is kept" if kept else "no checkpoint had been written"
        raise UserError(
            f"pretrain: the loss or its gradient is not finite at step {bad}; {where}: lower "
            "config.pretrain.learning_rate and choose another --workdir."
        )
    return rows


def metric_rows(metrics: np.ndarray, before: int = 0) -> list[dict[str, float]]:
    """What there is of `Progress.metrics`, with its step, from the step after `before` on."""
    return [
        {"step": step, **{name: value for name, value in zip(_METRICS, row, strict=True) if value == value}}
        for step, row in enumerate(metrics[before:].tolist(), before + 1)
    ]
