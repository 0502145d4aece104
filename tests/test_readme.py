"""The README's commands and its notebook examples are true."""

import configparser
import functools
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import PAGES, README, ROOT, marked, run_here

import cdisc
from cdisc.diffusion import gaussian
from cdisc.diffusion.schedule import linear_beta
from cdisc.evaluation import judge
from cdisc.networks import bundled
from cdisc.networks.backbone import null_eps


def test_every_shell_command_is_run_by_ci_or_a_test():
    blocks = re.findall(r"```bash\n(.*?)```", PAGES, re.DOTALL)
    ran = re.findall(r"\$\(readme ([a-z-]+)\)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    # tests/test_pretrained.py and tests/test_folder.py run those that need a network or pictures of the person's own,
    # tests/test_launch.py those that need a cluster.
    assert sorted(marked(name) for name in [*ran, "pretrained", "folder", "launch", "fashion"]) == sorted(blocks)


@pytest.mark.parametrize("name", ["main-job", "more-commands", "dry-run", "hosts", "faces", "folder"])
def test_commands_name_files_that_exist(name):
    words = shlex.split(marked(name), comments=True)
    for word in words:
        for option in ("--config=", "--query="):
            if word.startswith(option):
                assert (ROOT / word.removeprefix(option).split(":")[0]).is_file()


def test_the_command_for_files_of_mnist_s_format_is_accepted(tmp_path):
    # Catches: a field that is gone. tests/test_digits.py reads such files; training on them takes an hour.
    words = shlex.split(marked("fashion").replace("\\\n", "").replace("runs/fashion", str(tmp_path / "run")))
    assert words[1:3] == ["-m", "cdisc.main"]
    ended = run_here(*words[3:], "--dry_run")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_extras_that_are_named_exist():
    metadata = configparser.ConfigParser(interpolation=None)
    metadata.read(ROOT / "setup.cfg")
    text = PAGES + (ROOT / "launch" / "slurm.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"'\.\[(\w+)\]'", text))
    assert {"cuda", "tpu", "faces", "test"} <= named <= set(metadata["options.extras_require"])


def test_commands_for_celeba_say_where_it_is():
    texts = [PAGES, *((ROOT / "launch" / name).read_text(encoding="utf-8") for name in ("slurm.sh", "tpu_pod.sh"))]
    lines = [line for text in texts for line in re.sub(r"\\\n#?\s*", "", text).splitlines()]
    commands = [line for line in lines if re.search(r"--config=configs/celeba\.py .*--workdir", line)]
    assert len(commands) == 4
    assert all("--config.data.root=" in command for command in commands)


FUNCTIONS = (ROOT / "docs" / "functions.md").read_text(encoding="utf-8")
EIGHT_LINES, COMPOSE, ANY_MODEL, ALGEBRA, *EXAMPLES = re.findall(r"```python\n(.*?)```", FUNCTIONS, re.DOTALL)
RUN = (EIGHT_LINES, COMPOSE, ANY_MODEL, ALGEBRA)
FEWER = {
    "DiscoveryOptions(n": "DiscoveryOptions(timesteps=(100, 300), starts_per_t=4, max_steps=10, lanes=8, capacity=8, "
    "curvature_iterations=1, probes=4, max_residual=1.0, n",
    "(16, 32, 32, 3)": "(4, 32, 32, 3)",
    "candidates=2": "candidates=1",
    "batch_size=16": "batch_size=8",
}
"""What makes the examples with the bundled network quick."""


def judged(*pictures: jax.Array) -> list[np.ndarray]:
    """What the bundled judge sees in digits."""
    network = judge.JudgeNetwork(num_values=(10, 4, 4))
    like = jax.eval_shape(functools.partial(judge.init, network, shape=(32, 32, 3)), jax.random.key(0))
    params = bundled.restore_npz(bundled.FOLDER / "colormnist_small_judge.npz", like, {})
    judged_by = judge.network_judge(network, params, ("digit", "digit_colour", "background"))
    return [np.asarray(judge.verdict(judged_by, jnp.asarray(each))) for each in pictures]


def test_the_readme_s_eight_lines_are_those_of_the_page():
    assert re.findall(r"```python\n(.*?)```", README, re.DOTALL) == [EIGHT_LINES]
    assert len([line for line in EIGHT_LINES.splitlines() if line]) <= 8


@pytest.mark.slow
def test_the_eight_lines_compose():
    # Catches: settings that are not those of the command, a class that is not the query's.
    names: dict = {}
    exec(EIGHT_LINES + COMPOSE, names)
    query, samples, varied, more = judged(
        names["query"][None], *(names[name] for name in ("samples", "varied", "more"))
    )
    assert names["attributes"] == {"digit": "3", "digit_colour": "pink", "background": "dark_purple"}
    assert (more == query).all(axis=1).mean() >= 0.75
    assert (samples == query).all(axis=1).mean() >= 0.75
    assert (varied == query).all(axis=1).mean() >= 0.75
    assert np.std(names["varied"], axis=0).mean() > 2 * np.std(names["samples"], axis=0).mean()


def test_any_function_is_a_model():
    names: dict = {"cdisc": cdisc}
    exec(ANY_MODEL, names)
    x, t = jnp.ones((2, 2)), jnp.array([10, 500])
    for model in names["models"]:
        assert null_eps(model.backbone, model.params)(x, t).shape == x.shape
    closed = null_eps(names["models"][0].backbone, None)(x, t)
    np.testing.assert_allclose(
        closed, gaussian.Gaussian(jnp.zeros(2), jnp.ones(2)).eps(names["noise"])(x, t), rtol=1e-5
    )


def test_concepts_are_put_together_as_the_page_says(tmp_path, monkeypatch):
    # Catches: a function whose arguments changed, parts exchanged, a library that finds another's concept.
    monkeypatch.chdir(tmp_path)
    names: dict = {"cdisc": cdisc, "jnp": jnp, "noise": linear_beta()}
    exec(ALGEBRA, names)
    means = {name: np.asarray(names[name].product().mean) for name in ("high", "both", "corner", "swapped", "without")}
    np.testing.assert_allclose(means["high"], [1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(means["both"], [0.5, 0.5], atol=0.1)
    np.testing.assert_allclose(means["corner"], [1.0, 0.0], atol=0.1)
    np.testing.assert_allclose(means["swapped"], [0.0, 0.0], atol=0.1)
    assert (means["without"] > means["high"]).all()
    assert [name.split("/")[0] for name in names["names"]] == ["high"] and names["points"].shape == (8, 2)


def test_every_name_of_the_facade_is_in_an_example():
    containers = {"Concepts", "Found", "Library", "Model"}
    assert {f"cdisc.{name}" for name in set(cdisc.__all__) - containers} <= set(re.findall(r"cdisc\.\w+", "".join(RUN)))


@pytest.fixture(scope="module")
def plane() -> dict:
    """What the first example leaves."""
    names: dict = {}
    exec(EXAMPLES[0], names)
    return names


def test_the_example_in_the_plane_composes(plane):
    # The query lies between the two components: one explains each coordinate, and the samples lie where both do.
    assert plane["samples"].shape == (16, 2)
    assert abs(plane["samples"] - 1.0).max() < 0.5


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_examples_with_the_bundled_network_compose(plane, whole, monkeypatch):
    # Catches: samples of the null model or of a trained class, the wrong weights, a query that is not the picture's.
    monkeypatch.chdir(ROOT)
    names = dict(plane)
    for example in EXAMPLES[1:]:
        for text, fewer in {} if whole else FEWER.items():
            example = example.replace(text, fewer)
        exec(example, names)
    query, samples, varied = judged(names["query"][None], names["samples"], names["varied"])
    assert (samples == query).all(axis=1).mean() >= 0.75
    # One start alone composes the colours, and may end at another digit.
    assert (varied == query)[:, 0 if whole else 1 :].all(axis=1).mean() >= 0.75
