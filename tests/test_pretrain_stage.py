"""What the stage that trains shows of its training."""

import json
import pathlib
import runpy
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from commands import ROOT, config_of

from cdisc.app import checkpoints
from cdisc.app.config import Sampling, backbone_digest, read
from cdisc.app.run import Run
from cdisc.app.stages import pretrain as stage
from cdisc.diffusion.schedule import linear_beta
from cdisc.errors import UserError
from cdisc.networks import backbone as backbones
from cdisc.networks import bundled, interop

SCHEDULE = linear_beta(1000)


def _apply(params, x, t, embeddings, adapter=None):
    """`eps` of pictures whose first channel is the embedding, and whose others follow from the noise at the start."""
    a = SCHEDULE.alpha_bar[t][:, None, None]
    first = (x[..., 0] - jnp.sqrt(a) * embeddings[:, :, None]) / jnp.sqrt(1.0 - a)
    return jnp.concatenate([first[..., None], jnp.zeros_like(x[..., 1:])], axis=-1)


def pictures_of(trained):
    """What is drawn of so many trained classes, as (rows, columns, 3); the embeddings run from -1 to 1."""
    run = Run(
        config=types.SimpleNamespace(sampling=Sampling(num_steps=3)),
        workdir=pathlib.Path(),
        dataset=types.SimpleNamespace(split=types.SimpleNamespace(trained=range(trained)), shape=(1, 1, 3)),
        scheduler=interop.SchedulerConfig(),
        schedule=SCHEDULE,
        network=None,
        backbone=backbones.Backbone(apply=_apply, table=None, null=None),
        queries=(),
    )
    table = jnp.linspace(-1.0, 1.0, trained)[:, None]
    draw = stage.class_pictures(run, jax.random.key(0))
    picture = draw({"class_embedding": {"embedding": table}})
    np.testing.assert_array_equal(draw({"class_embedding": {"embedding": table}}), picture)
    return picture[::2, ::2, :3]  # a gap of one pixel between pictures of one


def test_a_column_is_a_class_and_a_row_is_a_noise():
    # Catches: rows taken for columns, the first classes only, noise of its own for each picture, or one for all.
    cells = pictures_of(15)
    assert cells.shape == (4, 8, 3)
    expected = np.rint(255 * np.linspace(0, 14, 8).astype(int) / 14)
    np.testing.assert_array_equal(cells[..., 0], np.tile(expected, (4, 1)))
    np.testing.assert_array_equal(cells[:, :, 1:], np.repeat(cells[:, :1, 1:], 8, axis=1))
    assert len({tuple(row) for row in cells[:, 0, 1:]}) > 1


def test_fewer_classes_than_columns():
    assert pictures_of(3).shape == (4, 3, 3)


@pytest.mark.parametrize(("field", "value"), [("save_every", 0), ("keep", 0), ("samples_every", -1)])
def test_intervals_that_cannot_be_used(field, value):
    config = config_of("colormnist.py", "tiny")
    config.pretrain[field] = value
    with pytest.raises(UserError, match=rf"^config\.pretrain\.{field} is {value}: use (a )?whole number"):
        read(config)


def trained(workdir, fingerprint="faces", **changes):
    """A run of one number, whose backbone is the bundled one unless changed."""
    config = config_of("colormnist.py", "small")
    config.update_from_flattened_dict(changes)
    return types.SimpleNamespace(
        config=read(config),
        path=workdir.joinpath,
        key=lambda stage: jax.random.key(0),
        network=types.SimpleNamespace(),
        params=None,
        dataset=types.SimpleNamespace(fingerprint=fingerprint),
    )


@pytest.fixture
def one_number(monkeypatch):
    """A backbone of one number in the place of every network."""
    monkeypatch.setattr(stage.denoiser, "init", lambda network, key: {"x": jnp.zeros(())})
    monkeypatch.setattr(bundled, "restore_npz", lambda path, like, about: {"x": jnp.float32(3.0)})


def test_a_backbone_of_another_run_is_taken_if_it_was_trained_alike(one_number, tmp_path):
    # Catches: weights of other data or options, or of nowhere, taken silently; a place that counts.
    assert stage.pretrain(trained(tmp_path / "first"), True)["x"] == 3.0
    other = {"pretrain.restore": str(tmp_path / "first"), "pretrain.bundle": "", "data.root": "moved", "seed": 7}
    assert stage.pretrain(trained(tmp_path / "second", **other), True)["x"] == 3.0
    for fingerprint, changes, named in (
        ("digits", {}, "config.data"),
        ("faces", {"pretrain.steps": 9_999}, "config.diffusion, network or pretrain"),
        ("faces", {"diffusion.beta_end": 0.1}, "config.diffusion, network or pretrain"),
    ):
        with pytest.raises(UserError, match=f"was trained with other {named} than this run"):
            stage.pretrain(trained(tmp_path / "third", fingerprint, **other, **changes), True)
    with pytest.raises(UserError, match=r"restore is .*: name the --workdir of a run that has .*params does not exist"):
        stage.pretrain(trained(tmp_path / "third", **(other | {"pretrain.restore": str(tmp_path)})), True)


def test_a_slow_process_goes_the_way_of_the_first(one_number, tmp_path, monkeypatch):
    # Catches: a process that sees what the first has saved meanwhile, and leaves out the meeting after it.
    stage.pretrain(trained(tmp_path), True)
    meetings = []
    monkeypatch.setattr(stage.hosts, "gather", lambda said="": meetings.append(said) or ["false", said])
    monkeypatch.setattr(stage.hosts, "first", lambda: False)
    assert stage.pretrain(trained(tmp_path), True)["x"] == 3.0
    assert meetings == ["true", ""]


def test_training_goes_on_where_the_first_process_does(tmp_path, monkeypatch, capsys):
    # Catches: the newest step that a process is shown, which may be older or damaged; not waiting for the first one's.
    monkeypatch.setattr(toy_run.pretrain_lib, "init", toy_run.init)
    _, average = toy_run.run(tmp_path)
    folder, waited = tmp_path / "pretrain" / "train", []
    assert checkpoints.steps(folder) == [30, 40]
    monkeypatch.setattr(stage, "meet", waited.extend)
    monkeypatch.setattr(stage.hosts, "gather", lambda said="": ["30" if said.isdecimal() else said])
    monkeypatch.setattr(stage.hosts, "first", lambda: False)
    capsys.readouterr()
    np.testing.assert_array_equal(toy_run.run(tmp_path)[1], average)
    assert "pretrain: goes on at step 30 of 40" in capsys.readouterr().out
    assert waited == [checkpoints.step_path(folder, 30)]


def test_a_result_that_does_not_exist():
    config = config_of("colormnist.py", "tiny")
    config.pretrain.result = "bset"
    with pytest.raises(UserError, match=r"^config\.pretrain\.result has 'bset', .*; did you mean 'best'\?"):
        read(config)


@pytest.mark.parametrize(
    "file", ["avatars.py", "celeba.py", "colormnist.py", "letters.py", "mixture.py", "pretrained.py"]
)
def test_every_configuration_can_be_used(file):
    # Catches: a check that refuses a variant which nothing here runs.
    variants = runpy.run_path(str(ROOT / "configs" / file)).get("VARIANTS")
    for variant in [()] if variants is None else [(variant,) for variant in variants]:
        read(config_of(file, *variant)).require_timesteps(SCHEDULE.num_timesteps)


def test_the_validation_loss_is_that_of_every_class_on_its_own_picture():
    """A network whose error is its embedding: the mean of their squares."""
    # Catches: a class left out, labels that are not those of the pictures, a batch that is cut short.
    shown = []

    def apply(params, x, t, embeddings, adapter=None):
        # The picture of class c is c / 10 everywhere, and its noise is found but for the embedding.
        a = SCHEDULE.alpha_bar[t][:, None]
        shown.append(x.shape[0])
        return (x - jnp.sqrt(a) * embeddings / 10.0) / jnp.sqrt(1.0 - a) + embeddings

    this = types.SimpleNamespace(
        config=types.SimpleNamespace(sampling=Sampling(batch=40)),
        key=lambda stage: jax.random.key(0),
        schedule=SCHEDULE,
        dataset=types.SimpleNamespace(
            split=types.SimpleNamespace(trained=range(3)),
            queries=lambda composition, n: np.full((n, 2), composition / 10.0, np.float32),
        ),
        backbone=backbones.Backbone(apply=apply, table=None, null=None),
    )
    table = jnp.asarray([[0.0], [1.0], [2.0]])
    params = {"class_embedding": {"embedding": table}}
    found = stage.validation(this, types.SimpleNamespace(loss="eps"), jax.random.key(0))(params)
    # At the first timesteps little noise is divided by: float32 leaves a few thousandths.
    assert found == pytest.approx(5.0 / 3.0, rel=0.01)
    assert shown == [40, 9]  # 129 = 3 * 43 pictures in batches, of which two sizes are compiled
    # Weighted by 1 / abar of each timestep, which the noisiest decide. Catches: another loss than the training's.
    assert stage.validation(this, types.SimpleNamespace(loss="v"), jax.random.key(0))(params) > 10 * found


@pytest.mark.parametrize(("last", "expected"), [(9.0, 1), (0.5, 4)])
def test_the_best_average_is_kept_and_used_where_it_is_asked_for(tmp_path, monkeypatch, last, expected):
    """Four validations, and the last one anew in a run that goes on."""
    # Catches: the largest loss, the last one, a best one that a run which goes on has forgotten.
    seen, losses = [], iter([3.0, 1.0, 2.0, 2.5, last, *(4 * [9.0])])

    def validate(params):
        seen.append(np.asarray(params["class_embedding"]["embedding"]))
        return next(losses)

    monkeypatch.setattr(toy_run.pretrain_lib, "init", toy_run.init)
    monkeypatch.setattr(stage, "validation", lambda this, options, key: validate)
    _, average = toy_run.run(tmp_path, result="best")
    np.testing.assert_array_equal(average, seen[1])
    shutil.rmtree(checkpoints.step_path(tmp_path / "pretrain" / "train", toy_run.STEPS))
    _, average = toy_run.run(tmp_path, result="best")
    np.testing.assert_array_equal(average, seen[expected])
    rows = [json.loads(line) for line in (tmp_path / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    validated = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert validated == {10: 3.0, 20: 1.0, 30: 2.0, 40: last}
    np.testing.assert_array_equal(toy_run.run(tmp_path / "last")[1], seen[3])


def test_weights_steps_pictures_and_validation_draw_from_keys_of_their_own(tmp_path, monkeypatch):
    # Catches: the first step's noise in the pictures of samples or the validation, weights that share a step's key.
    keys = {}

    class EnoughError(Exception):
        pass

    def init(network, options, key):
        keys.setdefault("init", key)
        return toy_run.init(network, options, key)

    def stop(run, options, key):
        keys["validation"] = key
        raise EnoughError

    monkeypatch.setattr(toy_run.pretrain_lib, "init", init)
    monkeypatch.setattr(stage.jax, "eval_shape", lambda init, key: init(key))
    monkeypatch.setattr(stage, "read_share", lambda dataset, options, key: keys.setdefault("train", key))
    monkeypatch.setattr(stage, "class_pictures", lambda run, key: keys.setdefault("samples", key))
    monkeypatch.setattr(stage, "validation", stop)
    with pytest.raises(EnoughError):
        toy_run.run(tmp_path)
    assert keys.keys() == {"init", "train", "samples", "validation"}
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys.values()}) == 4


def test_training_starts_from_the_weights_of_a_bundled_network(tmp_path, monkeypatch):
    # Catches: weights that are drawn anew all the same, another network's, a sentence that does not name the field.
    given, asked = {"class_embedding": {"embedding": jnp.full((4, 3), 5.0)}}, []
    monkeypatch.setattr(toy_run.pretrain_lib, "init", toy_run.init)
    monkeypatch.setattr(bundled, "start", lambda name, network, scheduler: asked.append(name) or given)
    _, average = toy_run.run(tmp_path / "one", start="faces")
    assert asked == ["faces"]
    assert np.mean(average) > 3  # from ones it comes to less than 2
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^config\.pretrain\.start: .*did you mean 'avatars_small'"):
        toy_run.run(tmp_path / "two", start="avatar_small")


@pytest.mark.parametrize(("start", "alike"), [(None, True), ("avatars_small", False)])
def test_where_training_starts_counts_only_where_it_is_named(start, alike):
    # Catches: bundles that a new field makes strange, weights from elsewhere under the digest of fresh ones.
    content = config_of("avatars.py", "small")
    plain = backbone_digest(read(content))
    content.pretrain.start = start
    assert (backbone_digest(read(content)) == plain) == alike
    assert bundled.npz_about(bundled.FOLDER / "avatars_small.npz")["config"] == plain
