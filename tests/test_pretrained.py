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

from cdisc.app import containers, pipeline
from cdisc.app.config import read
from cdisc.app.report import results as results_lib
from cdisc.app.run import opened, prepare
from cdisc.app.stages import pretrain
from cdisc.diffusion import sampling
from cdisc.errors import UserError
from cdisc.networks import denoiser, interop, lora

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
    assert not (run / "pretrain").exists()  # the weights stay where they are
    learnt = containers.restore(run / "adapt" / "query_0000")["result"]
    assert np.abs(learnt.adaptations["embedding"].embedding).max() > 0.05
    assert learnt.losses is None


def test_its_report_shows_the_modes_and_their_tree(readme_run):
    run, _ = readme_run
    tree = json.loads((run / "discover" / "hierarchy.json").read_text())
    config = config_of("pretrained.py")
    assert [level["t"] for level in tree["levels"]] == list(config.discover.hierarchy)
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
    learnt = containers.restore(run / "adapt" / "query_0000")["result"]
    for level, settings in config.adapt.levels.items():
        folder = tmp_path / "out" / "query_0000" / level
        row = safetensors.numpy.load_file(folder / interop.EMBEDDING_FILE)["class_embedding.weight"]
        np.testing.assert_array_equal(row[0], learnt.adaptations[level].embedding)
        assert (folder / interop.ADAPTER_FILE).exists() == (settings.rank > 0)
    adapter = json.loads((folder / interop.ADAPTER_CONFIG_FILE).read_text())
    assert (level, adapter["r"], adapter["lora_alpha"]) == ("lora", 4, 8.0)


def test_another_network_in_the_same_folder_is_noticed(folder, picture, tmp_path):
    # Catches: results of one network, or of one forward process, shown as another's.
    config = read(config_with(folder))
    with opened(config, tmp_path / "run", [str(picture)]) as this:
        jax.tree.map(np.testing.assert_array_equal, pretrain.pretrain(this, True), interop.load(folder).params)
        this.path("discover").mkdir()
    for params, predicts in ((tiny.random_params(UNCONDITIONAL, seed=1), "sample"), (this.params, "epsilon")):
        interop.save(folder, UNCONDITIONAL, params, interop.SchedulerConfig(prediction_type=predicts))
        again = opened(config, tmp_path / "run", [str(picture)])
        with pytest.raises(UserError, match="was made otherwise: data was"), again:
            pass


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
        (
            {"num_class_embeds": 1},
            {"network__null_class": 0, "adapt__levels__embedding__start": "top1"},
            "has no class to start at: set it to 'normal'",
        ),
        ({}, {"adapt__levels__embedding__start": "composed"}, "no classes that are known to be sums of parts"),
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
    with pytest.raises(UserError, match=f"network has no {interop.WEIGHTS_FILE}"):
        prepared(folder, picture, tmp_path)
    assert not (tmp_path / "run").exists()


def test_what_the_folder_says_of_its_sampler_is_what_happens(tmp_path, picture):
    # Catches: a range, a spacing or a last step that is read and not followed; the configuration's range in its place.
    there = {"clip": 3.0, "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
    this = prepared(save(tmp_path / "network", **there), picture, tmp_path, sampling__num_steps=4)
    x = np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32)

    def eps_fn(x, t):
        return 0.1 * x * (t[:, None, None, None] / 500.0)

    expected = sampling.ddim(eps_fn, this.schedule, x, num_steps=4, **there)
    drawn = sampling.ddim(eps_fn, this.schedule, x, **this.config.sampling.ddim_options)
    np.testing.assert_array_equal(drawn, expected)
    own = sampling.ddim(eps_fn, this.schedule, x, num_steps=4, clip=1.0)
    assert np.abs(np.asarray(own) - expected).max() > 0.1
    assert set(config_of("pretrained.py").sampling) == {"num_steps", "batch", "use_clipped_model_output"}


def test_timesteps_are_scaled_to_the_folder_s_schedule(tmp_path, picture, capsys):
    # Catches: timesteps of 1,000 on a schedule of 400, and ones that the person gave for it scaled too.
    folder = save(tmp_path / "network", num_train_timesteps=400)
    this = prepared(folder, picture, tmp_path)
    assert this.config.discover.timesteps == (20, 40, 80, 120, 160, 200)
    assert this.config.discover.hierarchy == (20, 40, 80, 120, 160, 200)
    assert "has 400 timesteps: config.discover's, given for 1000, become (20, 40" in capsys.readouterr().out
    meant = {"network__num_timesteps": 400, "discover__timesteps": (7, 300), "discover__hierarchy": ()}
    assert prepared(folder, picture, tmp_path, **meant).config.discover.timesteps == (7, 300)
    with pytest.raises(UserError, match=r"config\.discover\.timesteps has 500: the schedule has 400 timesteps"):
        prepared(folder, picture, tmp_path, network__num_timesteps=400)
    few = prepared(save(tmp_path / "few", num_train_timesteps=30), picture, tmp_path)
    assert few.config.discover.timesteps == (2, 3, 6, 9, 12, 15)


def test_an_offset_that_leads_out_of_the_schedule_is_refused_before_any_work(tmp_path, picture):
    folder = save(tmp_path / "network", timestep_spacing="leading", steps_offset=50)
    with pytest.raises(
        UserError, match=r"config\.sampling\.steps_offset is 50: with 25 steps it leads out of 1\.\.1000"
    ):
        prepared(folder, picture, tmp_path)


def test_an_adapter_of_peft_is_merged_into_the_network(folder, picture, tmp_path):
    before = interop.load(folder)
    adapter = lora.init(before.params, jax.random.key(0), 2, 4.0)
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
    interop.save_adapter(tmp_path / "adapter", before.network, adapter, jax.numpy.ones(32))
    (tmp_path / "adapter" / interop.EMBEDDING_FILE).unlink()
    this = prepared(folder, picture, tmp_path, network__adapter=str(tmp_path / "adapter"))
    jax.tree.map(np.testing.assert_array_equal, pretrain.pretrain(this, True), lora.merge(before.params, adapter))
    assert this.dataset.fingerprint != prepared(folder, picture, tmp_path).dataset.fingerprint


def test_a_whole_run_on_a_rectangular_grey_network_of_400_timesteps(tmp_path):
    """A network that predicts one picture whatever it is given: that picture is the only mode, and every sample."""
    # Catches: a stage that takes pictures for squares, or for coloured ones; a schedule of 1,000 timesteps.
    network = dataclasses.replace(UNCONDITIONAL, in_channels=1, out_channels=1, sample_size=(8, 12))
    params = tiny.random_params(network)
    params["conv_out"] = {"kernel": jax.numpy.zeros((3, 3, 8, 1)), "bias": jax.numpy.asarray([0.4])}
    scheduler = interop.SchedulerConfig(prediction_type="sample", num_train_timesteps=400)
    interop.save(tmp_path / "network", network, params, scheduler)
    config = config_with(tmp_path / "network", sampling__num_steps=4, evaluate__samples=2, adapt__pool_size=2)
    del config.adapt.levels.lora, config.evaluate.methods.lora
    config.adapt.levels.embedding.steps = 2
    run = tmp_path / "run"
    picture = tmp_path / "grey.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12), np.uint8)).save(picture)
    pipeline.run(read(config), run, pipeline.STAGES, [str(picture)])
    found = containers.restore(run / "discover" / "query_0000")["result"]
    points, valid = found.pool.m, found.pool.mask
    assert points.shape[1:] == (8, 12, 1) and valid.any()
    np.testing.assert_allclose(points[valid], 0.4, atol=1e-3)
    tree = json.loads((run / "discover" / "hierarchy.json").read_text())
    assert [level["t"] for level in tree["levels"]] == [20, 40, 80, 120, 160, 200]
    results = results_lib.read(run / "results.json")
    assert set(results["methods"]) == {"poe", "product", "embedding", "query_only sigma=0.3"}
    assert (run / "report" / "index.html").exists()
