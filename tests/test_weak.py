"""Discovery in networks that were trained as little as people's first ones are, with the defaults for them."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import config_of
from PIL import Image

from cdisc.app.config import read
from cdisc.data import digits
from cdisc.discovery import concepts, modes
from cdisc.networks import backbone, bundled

OPTIONS = read(config_of("pretrained.py")).discover


@functools.cache
def network(name: str):
    """A network of `tests/weak`, the eps of its null class, its schedule and a query of its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "FOLDER", pathlib.Path(__file__).with_name("weak"))
        model = bundled.load(name)
    schedule = model.scheduler.schedule()
    eps_fn = backbone.null_eps(backbone.unet(model.network, schedule, model.scheduler.prediction_type), model.params)
    image = Image.fromarray(digits.partition(digits.load("bundled")).query.images[5])
    small = image.resize((model.network.sample_size,) * 2, Image.Resampling.BOX)
    return jax.jit(eps_fn), schedule, jnp.asarray(np.asarray(small, np.float32)[..., None] / 127.5 - 1.0)


@pytest.mark.parametrize("name", ["classes_v", "unconditional", "short_chain"])
def test_the_defaults_find_modes_in_it(name):
    # Catches: mean shift in place of steps that are shortened, one residual for all networks.
    eps_fn, schedule, query = network(name)
    levels = tuple(t * schedule.num_timesteps // 1000 for t in OPTIONS.timesteps)
    options = dataclasses.replace(OPTIONS, timesteps=levels)
    find = jax.jit(lambda query, key: concepts.discover(eps_fn, schedule, query, key, options))
    found = jax.tree.map(np.asarray, find(query, jax.random.key(0)))
    assert found.info.smallest_residual.shape == (len(levels),) and found.info.smallest_residual.max() < 0.2
    assert set(found.pool.t[found.pool.mask].tolist()) == set(levels)
    assert found.pool.residual[found.pool.mask].max() < 0.2
    assert found.selection.mask.any() and np.isfinite(found.teacher.mean).all()
    # The prototypes are pictures, and the query is nearer to its teacher than to paper.
    assert np.abs(found.pool.m[found.pool.mask]).max() < 3.0
    error = np.mean(np.square(found.teacher.mean - np.asarray(query)))
    assert error < 0.5 * np.mean(np.square(np.asarray(query) + 1.0))


def test_mean_shift_leaps_across_its_modes_and_shorter_steps_arrive():
    # Catches: a length that is not shortened, or not for good.
    eps_fn, schedule, query = network("unconditional")
    x, t = modes.starts(schedule, jax.random.key(0), query, jnp.array([400]), 4, "query")

    def residuals(kernel):
        run = functools.partial(modes.ascend, eps_fn, kernel=kernel, max_steps=40, tolerance=5e-3, lanes=4)
        return np.asarray(jax.jit(run)(x, t)[0].residual)

    assert residuals(modes.mean_shift(schedule)).min() > 0.5
    assert residuals(modes.barzilai_borwein(schedule)).max() < 0.05
