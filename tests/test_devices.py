"""The same queries on 1, 2, 4 and 8 devices, each in a process of its own: the number is fixed when JAX starts."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT

# Three queries: one device takes them one after the other, two take two of them side by side and divide the third, four
# and eight divide each. Nothing divides evenly: 10 chains, a pool of 6, 7 samples.
SCRIPT = """
import pathlib, sys

from cdisc import runtime

runtime.configure()
import jax, numpy as np

from cdisc.app import run
from cdisc.app.config import read
from cdisc.app.stages import adapt, discover
from cdisc.configs import mixture
from cdisc.evaluation import methods

config = mixture.get_config()
config.discover.update(timesteps=(100, 300), starts_per_t=5, max_steps=20, lanes=4, capacity=6, hierarchy=())
config.discover.update(curvature_iterations=2, max_curvature=float("inf"))
config.seed = 1  # of which every query picks two experts
config.sampling.update(num_steps=4, batch=3)
config.adapt.class_draws = 4
config.evaluate.num_queries = 3
this = run.prepare(read(config), pathlib.Path(sys.argv[1]), [])
params = this.dataset.train
found = list(discover.discover(this, params, True))
densities = [methods.teacher_density(discovery.teacher, this.config.guidance) for discovery in found]
samples = adapt.draw(this, params, densities, [this.key("evaluate", query) for query in this.queries], 7)
losses = [model.losses for model in adapt.adapt(this, params, found, True)]
leaves = jax.tree_util.tree_leaves_with_path(found)
np.savez(
    pathlib.Path(sys.argv[1]) / "found.npz",
    devices=jax.local_device_count(),
    samples=samples,
    losses=np.stack(losses),
    **{jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves},
)
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """What a number of devices finds."""

    @functools.cache
    def run(devices):
        folder = tmp_path_factory.mktemp(f"devices{devices}")
        options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": options, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", SCRIPT, folder], cwd=ROOT, env=environment, check=True, timeout=300)
        with np.load(folder / "found.npz") as archive:
            return dict(archive)

    return run


# Four and eight go the way that two go; tests/test_mapping.py has a discovery on four and eight.
@pytest.mark.parametrize("devices", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))])
def test_results_do_not_depend_on_the_devices(answer, devices):
    # Catches: chains, modes or candidates left out or in another order, randomness that follows the device, a query
    # that is given another's result, samples that start from the noise of their batch.
    alone, divided = answer(1), answer(devices)
    undivided = range(3 - 3 % devices)  # the queries that a device has to itself
    assert divided["devices"] == devices
    assert alone.keys() == divided.keys()
    for name, values in alone.items():
        if name == "devices" or (name.endswith("/nfe") and int(name[0]) not in undivided):  # idle lanes are counted
            continue
        if values.dtype.kind in "bi":
            np.testing.assert_array_equal(divided[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(divided[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert all(alone[f"{query}/selection/mask"].sum() >= 2 for query in range(3))
    assert alone["samples"].shape == (3, 7, 2)
    assert alone["losses"].shape == (3, 12)
