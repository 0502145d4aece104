"""What the stage that trains shows of its training."""

import pathlib
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from commands import config_of

from cdisc.diffusion.schedule import linear_beta
from cdisc.errors import UserError
from cdisc.networks import backbone as backbones
from cdisc.networks import interop
from cdisc.run import Run
from cdisc.stages import pretrain as stage

SCHEDULE = linear_beta(1000)


def _apply(params, x, t, embeddings):
    """`eps` of pictures whose first channel is the embedding, and whose others follow from the noise at the start."""
    a = SCHEDULE.alpha_bar[t][:, None, None]
    first = (x[..., 0] - jnp.sqrt(a) * embeddings[:, :, None]) / jnp.sqrt(1.0 - a)
    return jnp.concatenate([first[..., None], jnp.zeros_like(x[..., 1:])], axis=-1)


def pictures_of(trained):
    """What is drawn of so many trained classes, as (rows, columns, 3); the embeddings run from -1 to 1."""
    run = Run(
        config=ml_collections.ConfigDict({"pretrain": {"seed": 0}, "sampling": {"num_steps": 3, "clip": 1.0}}),
        workdir=pathlib.Path(),
        dataset=types.SimpleNamespace(split=types.SimpleNamespace(trained=range(trained)), shape=(1, 1, 3)),
        scheduler=interop.SchedulerConfig(),
        schedule=SCHEDULE,
        network=None,
        backbone=backbones.Backbone(apply=_apply, table=None, null=None),
        queries=(),
    )
    table = jnp.linspace(-1.0, 1.0, trained)[:, None]
    draw = stage.class_pictures(run)
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


@pytest.mark.parametrize(("field", "value"), [("save_every", 0), ("samples_every", -1), ("samples_every", None)])
def test_intervals_that_cannot_be_used(field, value):
    config = config_of("colormnist.py", "tiny")
    del config.pretrain[field]
    if value is not None:
        config.pretrain[field] = value
    with pytest.raises(UserError, match=rf"config\.pretrain\.{field} is {value}: use a whole number"):
        stage.pretrain_options(config)
