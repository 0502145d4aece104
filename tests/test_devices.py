"""The same queries on 1, 2, 4 and 8 devices, each in a process of its own: the number is fixed when JAX starts."""

import os
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT

# Three queries: one device takes them one after the other, two take two of them side by side and divide the third, four
# and eight divide each. Nothing divides evenly: 10 chains, a pool of 6, 7 samples.
SCRIPT = """
import pathlib, runpy, sys

from cdisc import runtime

runtime.configure()
import jax, numpy as np

from cdisc import run
from cdisc.stages import adapt, discover

config = runpy.run_path("configs/mixture.py")["get_config"]()
config.discover.update(timesteps=(100, 300), starts_per_t=5, max_steps=20, lanes=4, capacity=6, hierarchy=())
config.discover.update(curvature_iterations=2, max_curvature=float("inf"))
config.sampling.update(num_steps=4, batch=3)
config.evaluate.num_queries = 3
this = run.prepare(config, pathlib.Path(sys.argv[1]), [])
params = this.dataset.train
found = list(discover.discover(this, params, True))
recipes = [adapt.teacher_recipe(discovery.teacher, this.options.guidance) for discovery in found]
samples = adapt.draw(this, params, recipes, [this.key("evaluate", query) for query in this.queries], 7)
leaves = jax.tree_util.tree_leaves_with_path(found)
np.savez(
    pathlib.Path(sys.argv[1]) / "found.npz",
    devices=jax.local_device_count(),
    samples=samples,
    **{jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves},
)
"""
COUNTS = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    found = {}
    for devices in COUNTS:
        folder = tmp_path_factory.mktemp(f"devices{devices}")
        options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": options, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", SCRIPT, folder], cwd=ROOT, env=environment, check=True, timeout=300)
        with np.load(folder / "found.npz") as archive:
            found[devices] = dict(archive)
    return found


@pytest.mark.parametrize("devices", COUNTS[1:])
def test_results_do_not_depend_on_the_devices(answers, devices):
    # Catches: chains, modes or candidates left out or in another order, randomness that follows the device, a query
    # that is given another's result, samples that start from the noise of their batch.
    alone, divided = answers[1], answers[devices]
    assert divided["devices"] == devices
    assert alone.keys() == divided.keys()
    for name, values in alone.items():
        if name == "devices" or name.endswith("/nfe"):  # idle lanes are counted
            continue
        if values.dtype.kind in "bi":
            np.testing.assert_array_equal(divided[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(divided[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert all(alone[f"{query}/selection/mask"].sum() >= 2 for query in range(3))
    assert alone["samples"].shape == (3, 7, 2)
