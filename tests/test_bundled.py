"""The networks that come with cdisc, without the configurations that made them."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from commands import config_of

from cdisc.app.config import read
from cdisc.errors import UserError
from cdisc.networks import bundled, interop


@pytest.mark.parametrize("name", ["colormnist", "avatars", "letters"])
def test_a_bundled_network_is_the_one_of_its_configuration(name):
    # Catches: a file that another version's configuration has made, a schedule or a prediction type left out.
    config = read(config_of(f"{name}.py", "small"))
    model = bundled.load(f"{name}_small")
    assert model.network == config.network
    assert model.scheduler == config.scheduler()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    return tmp_path


def test_what_is_bundled_is_loaded(folder):
    scheduler = interop.SchedulerConfig(num_train_timesteps=2, trained_betas=(0.1, 0.2), clip=None)
    params = tiny.random_params()
    bundled.save_npz(folder / "own.npz", params, {"data": "d"} | bundled.about(tiny.NETWORK, scheduler))
    model = bundled.load("own")
    assert (model.network, model.scheduler) == (tiny.NETWORK, scheduler)
    for leaf, other in zip(jax.tree.leaves(model.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2.0**-11, atol=1e-7)


def test_what_cannot_be_loaded_is_said(folder):
    about = bundled.about(tiny.NETWORK, interop.SchedulerConfig())
    bundled.save_npz(folder / "old.npz", {}, {"data": "d"})
    bundled.save_npz(folder / "other.npz", {}, about)
    bundled.save_npz(folder / "newer.npz", {}, about | {"network": '{"groups": 3}'})
    bundled.save_npz(folder / "old_judge.npz", {}, {})
    with pytest.raises(ValueError, match=r"the name of a bundled network has 'oldest', .* did you mean 'old'"):
        bundled.load("oldest")
    with pytest.raises(ValueError, match="has 'old_judge', which cdisc does not know"):
        bundled.load("old_judge")
    for name, words in {
        "old": r"old.npz does not say what network it holds \('network'\): ",
        "newer": r"newer.npz does not say what network it holds \(.*groups",
        "other": "other.npz has no array",
    }.items():
        with pytest.raises(UserError, match=words):
            bundled.load(name)


def test_another_network_starts_from_its_weights_with_new_classes():
    # Catches: classes of other pictures kept, another null density, another network or forward process accepted.
    known = bundled.load("avatars_small")
    network = dataclasses.replace(known.network, num_class_embeds=5, remat=True)
    found = bundled.start("avatars_small", network, known.scheduler)
    table, null = found["class_embedding"]["embedding"], known.params["class_embedding"]["embedding"][-1]
    np.testing.assert_array_equal(table, np.tile(null, (5, 1)))
    np.testing.assert_array_equal(found["conv_in"]["kernel"], known.params["conv_in"]["kernel"])
    for other in ({"norm_eps": 1e-3}, {"block_out_channels": (64, 64, 80)}):
        with pytest.raises(ValueError, match="avatars_small is another network, or of another forward process"):
            bundled.start("avatars_small", dataclasses.replace(network, **other), known.scheduler)
    with pytest.raises(ValueError, match="of another forward process"):
        bundled.start("avatars_small", network, dataclasses.replace(known.scheduler, beta_end=0.1))
