"""A network that diffusers saved, as a run meets it: the README's command from end to end, and what is refused."""

import dataclasses
import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from commands import ROOT, config_of, marked, run_here
from PIL import Image

from cdisc.app import checkpoints, pipeline
from cdisc.app.config import read
from cdisc.app.report import results as results_lib
from cdisc.app.run import prepare
from cdisc.app.stages import pretrain
from cdisc.errors import UserError
from cdisc.networks import denoiser, interop

UNCONDITIONAL = dataclasses.replace(tiny.ONE_LEVEL, patch_size=1, num_class_embeds=None, add_attention=False)
CONDITIONAL = dataclasses.replace(UNCONDITIONAL, num_class_embeds=4)


def save(folder, network=UNCONDITIONAL, **scheduler):
    # Where small kernels predict the clean picture, the mean shift is a contraction: there is a mode at every level.
    params = jax.tree.map(lambda leaf: 0.3 * leaf, tiny.random_params(network))
    interop.save(folder, network, params, interop.SchedulerConfig(prediction_type="sample", **scheduler))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of the unconditional network, to be changed at will."""
    return shutil.copytree(saved, tmp_path / "network")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "face.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


def config_with(folder, **changes):
    config = config_of("pretrained.py")
    config.network.path = str(folder)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def prepared(folder, picture, tmp_path, **changes):
    return prepare(read(config_with(folder, **changes)), tmp_path / "run", [str(picture)])


@pytest.fixture(scope="module")
def readme_run(saved, tmp_path_factory):
    """The README's command, on a tiny network and a random picture."""
    home = tmp_path_factory.mktemp("pretrained")
    folder = shutil.copytree(saved, home / "network")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(home / "face.png")
    given = {"FOLDER": str(folder), "face.png": str(home / "face.png"), "runs/face": str(home / "run")}
    words = shlex.split(marked("pretrained").replace("\\\n", ""))
    assert words[1:3] == ["-m", "cdisc.main"]
    arguments = []
    for word in words[3:]:
        name, _, value = word.partition("=")
        arguments.append(f"{name}={given.get(value, value)}")
    assert set(given.values()) <= {argument.partition("=")[2] for argument in arguments}
    ended = run_here(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return home / "run", ended


def test_the_readme_s_command(readme_run):
    # Catches: a stage that needs classes, labels, a judge or a split; figures invented where nothing is known.
    run, ended = readme_run
    assert re.findall(r"^(\w+): [\d.]+ s$", ended.stdout, re.MULTILINE) == list(pipeline.STAGES)
    results = results_lib.read(run / "results.json")
    assert results["dataset"] == "network"
    assert set(results["methods"]) == {"poe", "product", "embedding", "lora", "query_only sigma=0.3"}
    for figures in results["methods"].values():
        assert figures["attribute_accuracy"] == {}
        assert [name for name in ("joint_accuracy", "precision", "recall") if figures[name] is not None] == []
        assert figures["distance_to_query"] > 0.0
    # The weights stay where they are.
    assert [path.name for path in (run / "pretrain").iterdir()] == ["imported.json"]
    learnt = checkpoints.arrays_of(run / "adapt" / "query_0000")
    assert np.abs(learnt["adaptations/embedding/embedding"]).max() > 0.05
    assert "losses" not in learnt


def test_its_report_shows_the_modes_and_their_tree(readme_run):
    run, _ = readme_run
    tree = json.loads((run / "discover" / "hierarchy.json").read_text())
    config = config_of("pretrained.py")
    assert [level["t"] for level in tree["levels"]] == [1000 * share for share in config.discover.hierarchy]
    assert tree["nfe"] > 0
    last = tree["levels"][-1]["modes"]
    assert last and all(mode["parent"] is None and mode["sources"] == ["face.png"] for mode in last)
    for level, above in zip(tree["levels"][:-1], tree["levels"][1:], strict=True):
        assert all(0 <= mode["parent"] < len(above["modes"]) for mode in level["modes"])
    page = (run / "report" / "index.html").read_text()
    for sentence in ("The hierarchy of modes", "Modes of the noised density", f"{tree['nfe']:,} network evaluations"):
        assert sentence in page


def test_what_it_learnt_goes_to_diffusers(readme_run, tmp_path):
    # Catches: a scheduler that is not the folder's, another level's adapter or alpha, an export that asks for more
    # stages than it needs.
    run, _ = readme_run
    config = config_with(run.parent / "network")
    (run / "evaluate").rename(tmp_path / "evaluate")
    pipeline.run(read(config), run, ["discover"], [str(run.parent / "face.png")], export_to=tmp_path / "out")
    (tmp_path / "evaluate").rename(run / "evaluate")
    before, after = interop.load(run.parent / "network"), interop.load(tmp_path / "out" / "backbone")
    assert (after.network, after.scheduler) == (before.network, before.scheduler)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    names = json.loads((tmp_path / "out" / "queries.json").read_text())
    assert list(names) == ["query_0000"] and names["query_0000"]["name"] == "face.png"
    learnt = checkpoints.arrays_of(run / "adapt" / "query_0000")
    for level, settings in config.adapt.levels.items():
        folder = tmp_path / "out" / "query_0000" / level
        row = safetensors.numpy.load_file(folder / interop.EMBEDDING_FILE)["class_embedding.weight"]
        np.testing.assert_array_equal(row[0], learnt[f"adaptations/{level}/embedding"])
        assert (folder / interop.ADAPTER_FILE).exists() == (settings.rank > 0)
    adapter = json.loads((folder / interop.ADAPTER_CONFIG_FILE).read_text())
    assert (level, adapter["r"], adapter["lora_alpha"]) == ("lora", 4, 8.0)


def test_the_default_timesteps_follow_the_length_of_the_chain(picture, tmp_path):
    # Catches: timesteps of T = 1000, for which a shorter chain has no place.
    this = prepared(save(tmp_path / "short", num_train_timesteps=400), picture, tmp_path)
    assert this.config.discover.timesteps == this.config.discover.hierarchy == (20, 40, 80, 120, 160, 200)


def test_another_network_in_the_same_folder_is_noticed(folder, picture, tmp_path):
    # Catches: results of one network shown as another's, and weights that are imported anew without being asked.
    this = prepared(folder, picture, tmp_path)
    pretrain.pretrain(this, active=True)
    params = pretrain.pretrain(this, active=False)
    assert jax.tree.structure(params) == jax.tree.structure(interop.load(folder).params)
    interop.save(folder, UNCONDITIONAL, tiny.random_params(UNCONDITIONAL, seed=1), interop.SchedulerConfig())
    with pytest.raises(UserError, match=r"is not the network that .* was made with"):
        pretrain.pretrain(this, active=True)


def test_the_folder_decides_the_schedule_the_size_and_the_prediction(tmp_path, picture):
    network = dataclasses.replace(UNCONDITIONAL, in_channels=1, out_channels=1, sample_size=16)
    folder = save(tmp_path / "network", network, num_train_timesteps=600)
    this = prepared(folder, picture, tmp_path)
    assert this.dataset.shape == (16, 16, 1)
    assert this.queries[0].image.shape == (16, 16, 1)
    assert this.schedule.num_timesteps == 600
    params = interop.load(folder).params
    x, t = np.zeros((1, 16, 16, 1), np.float32), np.asarray([300])
    x0 = denoiser.apply(network, params, x, t)
    a = float(this.schedule.alpha_bar[300])
    eps = this.backbone.apply(params, x, t, denoiser.null_embedding(params)[None])
    np.testing.assert_allclose(eps, -np.sqrt(a / (1 - a)) * np.asarray(x0), rtol=1e-4, atol=1e-6)


def test_the_null_class_of_a_table_is_where_the_person_says(tmp_path, picture):
    folder = save(tmp_path / "network", CONDITIONAL)
    this = prepared(folder, picture, tmp_path, network__null_class=1)
    params = pretrain.pretrain(this, active=True)
    table = np.asarray(interop.load(folder).params["class_embedding"]["embedding"])
    np.testing.assert_array_equal(this.backbone.null(params), table[1])
    np.testing.assert_array_equal(this.backbone.table(params), table[[0, 2, 3]])


@pytest.mark.parametrize(
    ("network", "changes", "sentence"),
    [
        ({}, {"network__path": ""}, r"path is empty: give --config\.network\.path=FOLDER"),
        ({}, {"network__path": "nowhere"}, "nowhere is no folder"),
        ({"in_channels": 4, "out_channels": 4}, {}, "maps 4 channels to 4: a query is a picture of 1 or 3 channels"),
        ({"out_channels": 6}, {}, "maps 3 channels to 6"),
        ({"center_input_sample": True}, {}, "has center_input_sample"),
        ({"class_embed_type": "timestep"}, {}, "has class_embed_type 'timestep'"),
        ({}, {"network__null_class": 0}, r"has no classes: leave config\.network\.null_class out"),
        ({"num_class_embeds": 4}, {}, "has 4 classes, and config.network.null_class is None: name the row, 0 to 3"),
        ({"num_class_embeds": 4}, {"network__null_class": 4}, "null_class is 4: name the row, 0 to 3"),
        ({}, {"adapt__levels__embedding__start": "top1"}, "has no class to start at: set it to 'normal'"),
        ({}, {"data__name": "planar"}, "'queries' and 'diffusers' go together"),
        ({}, {"discover__hierarchy": (50, 1001)}, r"config\.discover\.hierarchy has 1001"),
        ({}, {"discover__hierarchy": (0,)}, r"discover\.hierarchy is \(0,\): name timesteps from 1 to T, or none"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(folder, tmp_path, picture, network, changes, sentence):
    file = folder / interop.NETWORK_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | network))
    with pytest.raises(UserError, match=sentence):
        prepared(folder, picture, tmp_path, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [("space", "span", "no classes to span one"), ("prior_weight", 1.0, "there are no pictures for it")],
)
def test_a_level_that_needs_classes_or_pictures_is_refused(folder, picture, tmp_path, field, value, sentence):
    config = config_with(folder)
    config.adapt.levels.embedding[field] = value
    with pytest.raises(UserError, match=sentence):
        prepare(read(config), tmp_path / "run", [str(picture)])


def test_the_evaluations_that_its_file_promises():
    found = read(config_of("pretrained.py")).discover.max_evaluations
    assert f"at most {found:,} evaluations" in (ROOT / "configs" / "pretrained.py").read_text(encoding="utf-8")


def test_without_a_query_there_is_nothing_to_do(folder, tmp_path):
    with pytest.raises(UserError, match=r"no pictures of its own: give --query=PICTURE\.$"):
        prepare(read(config_with(folder)), tmp_path / "run", [])
    assert not (tmp_path / "run").exists()


def test_a_folder_that_misses_its_weights(folder, picture, tmp_path):
    (folder / interop.WEIGHTS_FILE).unlink()
    this = prepared(folder, picture, tmp_path)
    with pytest.raises(UserError, match=f"network has no {interop.WEIGHTS_FILE}"):
        pretrain.pretrain(this, active=True)
    assert not (tmp_path / "run" / "pretrain").exists()


def test_a_stage_alone_needs_the_import(folder, picture, tmp_path):
    this = prepared(folder, picture, tmp_path)
    with pytest.raises(UserError, match=r"imported\.json is not there: add pretrain to --stages\.$"):
        pretrain.pretrain(this, active=False)
